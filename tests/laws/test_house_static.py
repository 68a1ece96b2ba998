"""Laws of the house that the package's own text shows.

Above `spec` no room knows a part, nothing is kept under an `id`, and nobody compares printed words.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import llmcalc
from llmcalc import Breakdown, roofline, serving, spec
from llmcalc.memory import kv_cache_bytes, parameters, weight_bytes
from llmcalc.spec import Layer, Part, Residual
from tests import house

PACKAGE: Final = Path(llmcalc.__file__).parent

#: Rooms that may know parts: where they are described, built and read from configs.
ROOMS_OF_PARTS: Final = ("spec", "models", "huggingface", "strategies.py")

#: What a room above `spec` asks of a description besides its ledger.
FACTS_OF_A_MODEL: Final = {
    "name", "embed_dim", "embedding", "head", "layers", "num_layers", "max_positions", "ledger",
    "multi_token_ledger", "multi_token", "checkpoint", "notes",
}  # fmt: skip


def trees(*without: str) -> Iterator[tuple[str, ast.Module]]:
    """Give the modules outside of some rooms, by their paths in the package."""
    for name, tree in parsed().items():
        if name.split("/")[0] not in without and not name.startswith(without):
            yield name, tree


@cache
def parsed() -> dict[str, ast.Module]:
    """Return all modules of the package."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def part_classes() -> set[str]:
    """Return the names of all parts and residual steps, and of what they are made of."""
    for module in pkgutil.iter_modules(spec.__path__, "llmcalc.spec."):
        importlib.import_module(module.name)
    found: set[str] = set()
    kinds: list[Any] = [Part, Residual]
    while kinds:
        kind = kinds.pop()
        if kind.__module__.startswith("llmcalc."):
            found.add(kind.__name__)
            kinds += kind.__subclasses__()
    return found


def part_modules() -> set[str]:
    """Return the modules that have a part."""
    names = part_classes()
    return {
        module.name
        for module in pkgutil.iter_modules(spec.__path__, "llmcalc.spec.")
        if any(
            inspect.isclass(value) and value.__module__ == module.name
            for name, value in vars(importlib.import_module(module.name)).items()
            if name in names
        )
    } - {"llmcalc.spec.model", "llmcalc.spec.part"}


def test_the_laws_below_know_the_parts() -> None:
    assert {"Attention", "LatentAttention", "Experts", "Mamba2", "Block", "SharedBlock"} < (
        part_classes()
    )
    assert {"llmcalc.spec.attention", "llmcalc.spec.experts"} < part_modules()
    assert "llmcalc.spec.items" not in part_modules()


def found_in(nodes: Iterator[tuple[str, ast.AST]]) -> list[str]:
    """Return where nodes stand, and what they are."""
    return [f"{name}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}" for name, node in nodes]


def nodes(*without: str) -> Iterator[tuple[str, ast.AST]]:
    """Give every node outside of some rooms, with its module's path."""
    for name, tree in trees(*without):
        for node in ast.walk(tree):
            yield name, node


def test_no_room_above_spec_imports_a_part() -> None:
    classes, modules = part_classes(), part_modules()

    def imports_part(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmcalc.spec"):
            return node.module in modules or any(one.name in classes for one in node.names)
        return isinstance(node, ast.Import) and any(one.name in modules for one in node.names)

    assert found_in(one for one in nodes(*ROOMS_OF_PARTS) if imports_part(one[1])) == []


#: What only layers, residual steps and parts have.
OF_PARTS: Final = {"parts", "layer", "check_width", "usual_label", "adds_up"}

#: The one fact of a residual step that a ledger states (`ResidualStep`), and names that mean
#: something else.
OTHERWISE: Final = {("roofline/communication.py", "adds_up"), ("headers/finding.py", "parts")}


def test_no_room_above_spec_asks_a_part_for_its_attributes() -> None:
    read = {
        (name, node.attr)
        for name, node in nodes(*ROOMS_OF_PARTS)
        if isinstance(node, ast.Attribute) and node.attr in OF_PARTS
    }
    assert read <= OTHERWISE
    for kind, names in ((Layer, {"parts"}), (Residual, {"parts", "adds_up"}), (Part, {"items"})):
        assert names <= {*vars(kind)}


def test_no_room_above_spec_asks_whether_something_has_an_attribute() -> None:
    def asks(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            return False
        return node.func.id == "hasattr" or (
            node.func.id == "getattr"
            and isinstance(node.args[0], ast.Name)
            and node.args[0].id in {"part", "block", "layer", "item", "mixer", "cache", "tensor"}
        )

    assert found_in(one for one in nodes(*ROOMS_OF_PARTS) if asks(one[1])) == []


def test_rooms_above_spec_ask_a_model_for_its_ledger_and_few_facts() -> None:
    def is_model(node: ast.expr) -> bool:
        return (isinstance(node, ast.Name) and node.id == "spec") or (
            isinstance(node, ast.Attribute) and node.attr == "spec"
        )

    read = {
        node.attr
        for _, node in nodes(*ROOMS_OF_PARTS, "plots", "cli", "__main__.py")
        if isinstance(node, ast.Attribute) and is_model(node.value)
    }
    assert {"ledger", "name"} <= read
    assert read - {*spec.__all__, "model"} <= FACTS_OF_A_MODEL  # the package of that name has these


# Nothing under an id ------------------------------------------------------------------------


def test_nothing_is_kept_under_an_id() -> None:
    """But for the memo of `copy.deepcopy`, which is Python's own."""
    memo = [
        node.slice
        for _, node in nodes()
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "memo"
    ]

    def is_id(node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "id"
            and node not in memo
        )

    assert found_in(one for one in nodes() if is_id(one[1])) == []


def test_what_is_kept_of_models_is_kept_by_one_function() -> None:
    """No module has a memory of its own that grows with the models it was asked about."""

    def reads_store(node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Attribute)
            and node.attr == "kept"
            and ast.unparse(node.value).endswith("ledger")
        )

    def remembers_models(node: ast.AST) -> bool:
        if not isinstance(node, ast.FunctionDef):
            return False
        marks = {ast.unparse(one).split("(")[0].split(".")[-1] for one in node.decorator_list}
        taken = {one.arg for one in node.args.args}
        return bool(marks & {"cache", "lru_cache"} and taken & {"spec", "ledger", "step", "fold"})

    assert found_in(one for one in nodes("spec", "models") if reads_store(one[1])) == []
    assert found_in(one for one in nodes("models") if remembers_models(one[1])) == []


# Nobody compares printed words --------------------------------------------------------------

#: Rooms of printed words: they make them, show them, or print what people typed.
ROOMS_OF_WORDS: Final = (
    "breakdown.py", "folds/pieces.py", "folds/breakdowns.py", "tables.py", "plots", "cli",
    "__main__.py", "models", "huggingface", "headers",
)  # fmt: skip

#: Facts that stand on items, counts and pieces, and are compared with words of their own.
FACTS: Final = {
    "group", "kind", "role", "sort", "tokens", "rest", "policy", "pool_rule", "share_of", "of",
    "cache_groups", "limited_by", "asked", "part", "level",
}  # fmt: skip

#: Axes have a vocabulary: how they are split depends on their names. `field` is one of `attrs`.
AXES: Final = {"axis", "heads", "field"}

#: Comparisons of other words, each with what is compared.
ALLOWED: Final = {
    # Arguments of a call, which people give.
    ("planning/plans.py", "order"),
    ("roofline/attention.py", "algorithm"),
    # Where something stands (`Place`), and what kind of matrix an expert's is (`_MATRICES`).
    ("layouts.py", "place[0]"),
    ("layouts.py", "where"),
    ("serving/loading.py", "matrix"),
    # The group of a tensor, as `group`, or as the name of a tensor in a file tells it.
    ("files/comparing.py", "group"),
    ("formats/llama_cpp.py", "group"),
    ("formats/modules.py", "group"),
    ("formats/llama_cpp.py", "name"),  # of a role
    ("formats/modules.py", "name"),  # of a role
    ("serving/activations.py", "role"),
    ("serving/activations.py", "linears"),  # by their roles
    # The roles of caches that an argument has formats for.
    ("folds/storage.py", "set(state)"),
    # Two sides of a matrix, which the loop itself names.
    ("folds/storage.py", "name"),
    # The rules of counts and of spans, and formats of files.
    ("folds/counts.py", "kind"),
    ("roofline/efficiency.py", "kind"),
    ("formats/checkpoint.py", "kind"),
    ("formats/checkpoint.py", "strategy"),
    ("serving/paging.py", "sort"),
    ("serving/paging.py", "_sort(span)[0]"),
    # Figures of a log, and the terms that they are compared with.
    ("serving/comparisons.py", "unit"),
    ("serving/comparisons.py", "one.term"),
    ("serving/logs.py", "figure.name"),
    ("serving/reconciling.py", "figure.name"),
    ("serving/reconciling.py", "term"),
    ("serving/identities.py", "name"),
    # Columns of a table.
    ("roofline/sweeps.py", "one.name"),
}


def printed_words() -> set[str]:
    """Return the words that workings print: names of factors and of terms, and groups."""
    words: set[str] = set()
    for name in ("mistralai/Mixtral-8x7B-v0.1", "deepseek-ai/DeepSeek-V3.2-Exp", "zamba2"):
        model = house.model(name)
        common: dict[str, Any] = {"batch": 2, "new": 3, "past": 50}
        answers: tuple[Breakdown[Any, Any], ...] = (
            parameters(model),
            weight_bytes(model, weights="fp8-block128"),
            kv_cache_bytes(model, context=9, batch=2, kv="bf16"),
            roofline.flops(model, **common),
            roofline.bytes_moved(model, weights="Q4_K_M", kv="bf16", **common),
            serving.loaded_weights(model, weights="bf16"),
            serving.activation_peak(model),
        )
        for answer in answers:
            for term in answer.terms:
                words |= {*term.path, *(word for _, word in term.factors)}
    return words - {""}


def texts(node: ast.expr) -> list[str]:
    """Return the literal strings of one side of a comparison."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.Set | ast.Tuple | ast.List):
        return [text for one in node.elts for text in texts(one)]
    return []


def is_fact(node: ast.expr) -> bool:
    """Whether something is a fact of an item, or the name of an axis."""
    if not isinstance(node, ast.Attribute):
        return False
    owner = node.value
    last = owner.attr if isinstance(owner, ast.Attribute) else ast.unparse(owner)
    return node.attr in FACTS or (node.attr == "name" and last in AXES)


def compared(tree: ast.Module, words: set[str]) -> Iterator[str]:
    """Give what is compared with a printed word."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if {text for side in sides for text in texts(side)} & words:
                yield from (
                    ast.unparse(side) for side in sides if not texts(side) and not is_fact(side)
                )
        elif isinstance(node, ast.MatchValue) and {*texts(node.value)} & words:
            yield ast.unparse(node)


def test_nobody_compares_a_printed_word() -> None:
    words = printed_words()
    assert {"tokens", "layers", "experts per token", "bytes", "vocab", "requests", "k", "q"} < words
    found = {
        (name, side)
        for name, tree in trees(*ROOMS_OF_WORDS, "spec")
        for side in compared(tree, words)
    }
    assert found - ALLOWED == set()


def test_nobody_takes_names_of_factors_apart() -> None:
    """Factors are unpacked as a size and a name; where the name is used, it is only printed."""
    rooms = {
        "folds/storage.py", "memory", "roofline", "serving", "planning", "formats", "layouts.py",
        "folds",
    }  # fmt: skip
    found = []
    for name, tree in trees(*ROOMS_OF_WORDS, "spec", "files"):
        if name.split("/")[0] not in rooms:
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp):
                continue
            for loop in node.generators:
                source = ast.unparse(loop.iter)
                if "factors" not in source or not isinstance(loop.target, ast.Tuple):
                    continue
                used = {
                    one.id for one in ast.walk(node)
                    if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)
                }  # fmt: skip
                last = loop.target.elts[-1]
                if isinstance(last, ast.Name) and last.id in used:
                    found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


#: Modules that take names apart that stand in files, logs or configs, or that people gave.
OF_FILES: Final = (
    "files", "headers", "huggingface", "models", "serving/stated.py", "serving/wordings.py",
    "serving/logs.py", "serving/identities.py", "formats/checkpoint.py", "formats/modules.py",
    "formats/blocks.py", "hardware.py", "errors.py", "plots", "cli", "__main__.py",
)  # fmt: skip

#: A mix of llama.cpp is a word of its vocabulary, in the room of its rules.
MIXES: Final = {("formats/llama_cpp.py", "mix.startswith('IQ4')")}

_TAKEN_APART: Final = {
    "startswith", "endswith", "removeprefix", "removesuffix", "split", "partition", "rpartition",
    "find", "index", "match", "search",
}  # fmt: skip


def test_nobody_takes_a_word_apart() -> None:
    found = {
        (name, ast.unparse(node))
        for name, tree in trees(*OF_FILES)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _TAKEN_APART
        and any(
            word in ast.unparse(node.func.value).split(".")[-1]
            for word in ("name", "label", "title", "path", "mix", "word", "factor", "working")
        )
    }
    assert found - MIXES == set()
