"""The package as a whole: its public face, its imports, its distribution and its set-up."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import metadata, version
from importlib.resources import files
from pathlib import Path

import pytest

import llmcalc

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "llmcalc").rglob("*.py"))

#: Who may import whom: a module imports from lower layers only, never from its own or a higher
#: one. `models` stands beside the folds: it imports specifications, and nothing of the folds.
LAYERS = (
    {"errors", "lazy"},
    {"boundary", "units"},
    {"described"},
    {"breakdown", "engines", "hardware", "headers", "tables"},
    {"spec"},
    {"formats", "layouts"},
    {"folds", "huggingface", "models"},
    {"memory", "strategies"},
    {"files", "roofline"},
    {"planning", "plots", "serving"},
    {"__main__"},
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Give the modules of this package that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("llmcalc"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            source = node.module or ""
            if source.partition(".")[0] != "llmcalc":
                continue
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in MODULES else source


MODULES = {module_name(path): path for path in SOURCES}

#: Packages that only gather the names of their modules, and import one when it is asked for.
GATHERING = {
    name
    for name, path in MODULES.items()
    if path.name == "__init__.py" and "llmcalc.lazy" in imports(path)
}


def test_the_version_is_the_distributions() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", version("llmcalc-inference"))
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{version("llmcalc-inference")}"' in pyproject


def test_the_distribution_needs_attrs_and_numpy_and_nothing_else() -> None:
    needed = metadata("llmcalc-inference").get_all("Requires-Dist") or []
    runtime = {re.split(r"[<>=]", line)[0] for line in needed if "extra ==" not in line}
    assert runtime == {"attrs", "numpy"}


def test_every_public_name_exists() -> None:
    for name in llmcalc.__all__:
        assert getattr(llmcalc, name) is not None
    assert set(llmcalc.__all__) <= set(dir(llmcalc))
    assert len(set(llmcalc.__all__)) == len(llmcalc.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = llmcalc.no_such_name  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"llmcalc", "llmcalc.__main__"}))
def test_every_exported_name_of_a_module_exists_and_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for exported in getattr(module, "__all__", ()):
        value = getattr(module, exported)
        if callable(value) and getattr(value, "__module__", "").startswith("llmcalc"):
            assert value.__doc__, f"{name}.{exported} has no docstring"


def test_every_module_is_found_by_the_import_system() -> None:
    found = {info.name for info in pkgutil.walk_packages(llmcalc.__path__, "llmcalc.")}
    assert found | {"llmcalc"} == set(MODULES)


def run_python(code: str) -> str:
    """Run code in a fresh interpreter, and give what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


HEAVY = ("torch", "matplotlib", "hypothesis", "transformers", "numpy", "tabulate", "safetensors")


@pytest.mark.parametrize(
    "code",
    [
        "import llmcalc",
        "from llmcalc import *",
        "import llmcalc; llmcalc.hardware.get('H100-SXM-80GB')",
        (
            "from llmcalc import GiB, ModelSpec, memory, roofline;"
            "spec = ModelSpec.dense(name='a', num_layers=1, num_query_heads=1, num_kv_heads=1,"
            " embed_dim=8, inner_dim=8, vocab_size=8);"
            "memory.max_batch_size(spec, device_memory=GiB, context=8, weights='bf16', kv='bf16');"
            "roofline.flops(spec, batch=1, new=1, past=1)"
        ),
        (
            "from llmcalc import load_model, memory;"
            "memory.parameters(load_model({'model_type': 'llama', 'hidden_size': 8,"
            " 'num_hidden_layers': 1, 'num_attention_heads': 1, 'num_key_value_heads': 1,"
            " 'intermediate_size': 8, 'vocab_size': 8}))"
        ),
    ],
    ids=["import", "star", "hardware", "spec", "config"],
)
def test_scalar_answers_import_nothing_heavy(code: str) -> None:
    loaded = json.loads(run_python(f"{code}\nimport sys, json; print(json.dumps([*sys.modules]))"))
    assert not {module.partition(".")[0] for module in loaded} & set(HEAVY)


def test_importing_the_package_imports_nothing_but_what_imports_its_modules_later() -> None:
    code = "import sys, llmcalc; print(*(n for n in sys.modules if n.startswith('llmcalc.')))"
    assert run_python(code).split() == ["llmcalc.lazy"]


def test_a_missing_torch_is_an_error_that_names_the_extra() -> None:
    code = """
import sys
from importlib.machinery import PathFinder

class WithoutTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, *rest)

sys.meta_path[:] = [f for f in sys.meta_path if f is not PathFinder] + [WithoutTorch]
from llmcalc.errors import MissingExtraError
try:
    import llmcalc.models.tiny_decoder
except MissingExtraError as error:
    print(error.extra)
"""
    assert run_python(code).strip() == "torch"


def layer(module: str) -> int:
    part = module.split(".")[1]
    for number, names in enumerate(LAYERS):
        if part in names:
            return number
    raise AssertionError(f"{module}: {part} is in none of the layers of this test; add it to one")


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"llmcalc"}))
def test_imports_run_one_way(name: str) -> None:
    """The package's own `__init__` names everything, lazily, and is left out."""
    package = name.split(".")[1]
    for imported in imports(MODULES[name]):
        assert imported != "llmcalc", f"{name} imports a name of the package: import its module"
        if imported.split(".")[1] != package:
            assert layer(imported) < layer(name), f"{name} must not import {imported}"


def test_imports_have_no_cycles() -> None:
    # A package that gathers the names of its modules is no part of the graph.
    waiting = {
        name: {other for other in imports(path) if other not in GATHERING and other != name}
        for name, path in MODULES.items()
        if name not in GATHERING
    }
    while waiting:
        free = {name for name, needed in waiting.items() if not needed & waiting.keys()}
        assert free, f"in or behind a cycle: {sorted(waiting)}"
        waiting = {name: needed for name, needed in waiting.items() if name not in free}


def imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_torch_is_imported_by_models_only_and_by_the_commands_that_run_them() -> None:
    for name, path in MODULES.items():
        if name.startswith("llmcalc.models"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name == "llmcalc.__main__":  # inside its functions, when a model is asked for
            tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
        assert "torch" not in {other.partition(".")[0] for other in imported_names(tree)}, name


def test_the_package_is_marked_as_typed() -> None:
    assert files("llmcalc").joinpath("py.typed").is_file()


def test_the_readme_has_two_set_up_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^```sh\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len(commands) == 2
    main, test = (command.removesuffix("\n") for command in commands)
    assert "\n" not in main + test
    assert main.endswith("&& python -m llmcalc fit")
    assert test.endswith("&& pytest")


def test_nothing_tells_to_install_the_other_project_of_this_name() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "pyproject.toml", *SOURCES]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"pip install\s+[\"']?llmcalc(?!-inference)\b", text), page
