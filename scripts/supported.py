"""Write what `llmcalc.huggingface.supported` lists, and the tables of the page that shows it.

    python -m scripts.supported

What each model type is made of is read from the specs of the configurations in tests/data; how it
was checked, from what was measured there and from the exceptions that the tests in tests/oracles
name. The result is llmcalc/huggingface/supported.json, and the tables in
docs/reference/supported-models.md that stand between markers.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmcalc import LlmcalcError, ModelSpec, huggingface, load_model, memory
from llmcalc.huggingface import catalogue
from llmcalc.huggingface.registry import HEADLESS, SAME_AS
from llmcalc.spec import Block, Cache, Constant, Experts, LayerRun
from tests.altered import small
from tests.oracles import test_published_models as published
from tests.oracles import test_transformers_caches as caches
from tests.oracles import test_transformers_flops as flops
from tests.truth import rows

ROOT: Final = Path(__file__).parent.parent
TARGET: Final = ROOT / "llmcalc" / "huggingface" / "supported.json"
PAGE: Final = ROOT / "docs" / "reference" / "supported-models.md"

#: What spans are called in the listing.
SPANS: Final = {
    "Chunk": "chunk",
    "Compressed": "compressed",
    "Full": "full",
    "Remainder": "remainder",
    "TopK": "top-k",
    "Window": "window",
}

#: What the scopes of tests/data/default_configs.jsonl are called on the page.
SCOPES: Final = {"in-first": "in wide use", "in-second": "rarer, or very new"}


Listing: TypeAlias = dict[str, dict[str, Any]]


def listing() -> Listing:
    """Return the content of supported.json."""
    counted, run = _by_type("default_configs", "real_models"), _by_type("tiny_measured")
    return {
        model_type: _entry(model_type, counted[model_type], run[model_type])
        for model_type in huggingface.supported()
    }


def _entry(
    model_type: str, counted: list[dict[str, Any]], run: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what is listed of a type, of the rows that were measured for it."""
    if model_type in HEADLESS:
        # Compared with modules that the tests build, from this configuration and altered ones.
        configs = [{**small(model_type), "model_type": model_type}]
        equal = ["parameters", "groups", "caches", "flops"]
        mixture = any(isinstance(part, Experts) for part in _parts(load_model(configs[0])))
        equal[2:2] = ["active parameters"] if mixture else []
    elif not counted:
        # Not in transformers: compared with totals that were published.
        entries = [entry for entry in _catalogued() if entry.config["model_type"] == model_type]
        known = [entry for entry in entries if entry.published is not None]
        configs = [dict(entry.config) for entry in known or entries]
        equal = ["parameters"] if known else []
    else:
        configs = [row["config"] for row in counted + run]
        equal = list(_equal(counted, run))
    return {
        **_made_of([load_model(config) for config in configs]),
        "configs": len(counted) or len(configs),
        "equal": equal,
        "remarks": list(_remarks(model_type)),
    }


def _by_type(*names: str) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for name in names:
        for row in rows(name):
            found[row["model_type"]].append(row)
    return found


def _parts(spec: ModelSpec) -> Iterator[Any]:
    """Give the parts of all layers."""
    for run in spec.layers:
        for step in run.layer.blocks:
            yield from step.parts


def _made_of(specs: list[ModelSpec]) -> dict[str, list[str]]:
    layers = [run for spec in specs for run in spec.layers]
    steps = [step for run in layers for step in run.layer.blocks]
    parts = [
        *(part for step in steps for part in step.parts),
        *(step for step in steps if not isinstance(step, Block)),
        *(extra for spec in specs for extra in spec.beside),
    ]
    held = [cache for spec in specs for _, cache in spec.ledger.caches]
    return {
        # Layers of one kind that differ in sizes have numbers behind the label.
        "layer_kinds": _once(re.sub(r" \d+$", "", run.label) or _group(run) for run in layers),
        "cache_kinds": _once(map(_cache_kind, held)),
        "parts": _once(name for part in parts if (name := type(part).__name__)[0] != "_"),
    }


def _group(run: LayerRun) -> str:
    """Return the group of what a layer without a label holds."""
    return next(run.layer.parts).group


def _cache_kind(cache: Cache) -> str:
    if isinstance(cache.span, Constant):
        return cache.role
    return f"{cache.role} {SPANS[type(cache.span).__name__]}"


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _equal(counted: list[dict[str, Any]], run: list[dict[str, Any]]) -> Iterator[str]:
    """Name the quantities that the tests hold against measured ones."""
    yield "parameters"
    yield "groups"
    if any(row["n_active_params"] is not None for row in counted):
        yield "active parameters"
    measured = [row["transformers_cache_meta"] for row in counted if "model_id" in row]
    measured += [
        row["cache_after_prefill"] for row in run if row["model_type"] != "recurrent_gemma"
    ]
    if any(cache is not None for cache in measured):
        yield "caches"
    if any(row["model_type"] not in flops.BY_ROUTER for row in run):
        yield "flops"


def _remarks(model_type: str) -> Iterator[str]:
    if model_type not in CONFIG_MAPPING and model_type not in SAME_AS:
        known = any(
            entry.published is not None
            for entry in _catalogued()
            if entry.config["model_type"] == model_type
        )
        held = "held against published totals" if known else "no published total is known"
        yield f"parameters: its code is in its own repository: {held}"
    groups, why = published.JOINED.get(model_type, ((), ""))
    if groups:
        yield f"groups: {' + '.join(groups)} as one sum: {why}"
    if model_type in caches.WITHOUT_CACHE:
        yield f"caches: {caches.WITHOUT_CACHE[model_type]}"
    for table in (flops.BY_ROUTER, flops.WITHOUT_DECODE, flops.COUNTED_MORE):
        if model_type in table:
            yield f"flops: {table[model_type]}"


def tables(listed: Listing) -> dict[str, str]:
    """Return the tables of the page, by the names of their markers."""
    return {
        "checks": _table(("", *SCOPES.values(), "all"), _checks(listed)),
        "published": _table(("published models", "equal"), _published()),
        "exceptions": _table(("model type", "what", "why"), _exceptions(listed)),
        "types": _table(("model type", "layers", "caches", "parts"), _types(listed)),
        "refused": _refused(),
        "names": _table(("model", "model type", "parameters", "published total"), _names()),
    }


def _table(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    rule = tuple("---" for _ in head)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def _checks(listed: Listing) -> Iterator[tuple[str, ...]]:
    scope = {
        row["model_type"]: row["scope"] for row in rows("default_configs") if row["scope"] in SCOPES
    }
    expected: dict[str, set[str]] = {
        "parameters": set(scope),
        "groups": set(scope),
        "active parameters": {
            row["model_type"]
            for row in rows("default_configs")
            if row["n_active_params"] is not None and row["model_type"] in scope
        },
        "caches": set(scope),
        "flops": set(scope),
    }
    names = {"active parameters": "active parameters, of mixtures of experts", "flops": "FLOPs"}
    for quantity, types in expected.items():
        cells = []
        for kinds in [*({name} for name in SCOPES), set(SCOPES)]:
            wanted = [name for name in types if scope[name] in kinds]
            equal = [name for name in wanted if quantity in listed[name]["equal"]]
            cells.append(f"{len(equal)} of {len(wanted)}")
        yield names.get(quantity, quantity), *cells


def _published() -> Iterator[tuple[str, str]]:
    found = rows("real_models")
    size = len(found)
    yield "parameters and groups equal those of the module", f"{size} of {size}"
    known = sum(row["verified"] for row in found)
    yield "of these, the module's total equals a published exact number", f"{known} of {size}"
    size, known = len(_catalogued()), sum(entry.published is not None for entry in _catalogued())
    yield "models by name: the total equals a published exact number", f"{known} of {size}"
    yield "models by name: no published exact number is known", f"{size - known} of {size}"


def _catalogued() -> list[catalogue.Entry]:
    return [entry for entry in map(catalogue.find, catalogue.names()) if entry is not None]


def _exceptions(listed: Listing) -> Iterator[tuple[str, str, str]]:
    for model_type, entry in listed.items():
        for remark in entry["remarks"]:
            what, _, why = remark.partition(": ")
            if what == "groups":
                groups, _, why = why.partition(": ")
                what = f"groups: {groups}"
            yield f"`{model_type}`", what.replace("flops", "FLOPs"), why


def _types(listed: Listing) -> Iterator[tuple[str, ...]]:
    for model_type, entry in listed.items():
        same = f" (the code of `{SAME_AS[model_type]}`)" if model_type in SAME_AS else ""
        kinds = (", ".join(entry[kind]) for kind in ("layer_kinds", "cache_kinds", "parts"))
        yield f"`{model_type}`{same}", *kinds


def _refused() -> str:
    read, refused = [], []
    for row in rows("default_configs"):
        if row["scope"] in SCOPES:
            continue
        try:
            load_model(row["config"])
        except LlmcalcError:
            refused.append(f"`{row['model_type']}`")
        else:
            read.append(f"`{row['model_type']}`")
    return (
        f"Refused ({len(refused)}): {', '.join(refused)}.\n\n"
        f"Read for their language model ({len(read)}): {', '.join(read)}.\n"
    )


def _names() -> Iterator[tuple[str, ...]]:
    for entry in _catalogued():
        spec = load_model(entry.name)
        total = f"{memory.parameters(spec).total:,}".replace(",", " ")
        beside = re.sub("^parameters(, | and |)", "", entry.published_counts or "")
        known = "not known" if entry.published is None else "equal"
        known += f", with {beside}" if beside else ""
        names = ", ".join(f"`{spelling}`" for spelling in (entry.name, *entry.aliases))
        yield names, f"`{_inner(entry.config)['model_type']}`", total, known


def _inner(config: Any) -> Any:
    return config.get("text_config", config)


def files() -> dict[Path, str]:
    """Return what the two files should hold."""
    listed = listing()
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in listed.items())
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables(listed).items():
        before, marker, rest = page.partition(f"<!-- {name}: written by scripts/supported.py -->\n")
        _, end, after = rest.partition("<!-- end -->")
        page = f"{before}{marker}\n{table}\n{end}{after}"
    return {TARGET: "{\n" + ",\n".join(lines) + "\n}\n", PAGE: page}


def main() -> None:
    """Write the listing, and the page that shows it."""
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
