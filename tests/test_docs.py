"""The README and the pages: their examples are run, and every exported name has its place."""

from __future__ import annotations

import ast
import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import llmcalc
from scripts import supported

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

#: What a fenced block may be. The first two are run, the rest is not code of this library.
RUN = {"pycon", "console"}
SHOWN = {"sh", "json", "toml", "{toctree}", "{eval-rst}"}

_BLOCK = re.compile(r"^```(?P<kind>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, str, int]]:
    """Give the fenced blocks of a page: what they are, their text, the line before it."""
    source = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(source):
        yield match["kind"], match["text"], source.count("\n", 0, match.start("text"))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_of_code_on_a_page_is_one_that_is_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    kinds = [kind for kind, _, _ in blocks(page)]
    assert set(kinds) <= RUN | SHOWN
    # Nothing hides in a fence that the pattern misses, or in an indented block.
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(kinds)
    assert text.count("\n>>> ") == sum(
        block.count(">>> ") for kind, block, _ in blocks(page) if kind == "pycon"
    )
    assert all(block.startswith(">>> ") for kind, block, _ in blocks(page) if kind == "pycon")
    assert all(block.startswith("$ ") for kind, block, _ in blocks(page) if kind == "console")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_a_page_says_is_printed_is_printed(page: Path) -> None:
    parser = doctest.DocTestParser()
    examples = []
    for kind, text, line in blocks(page):
        if kind == "pycon":
            for example in parser.get_examples(text):
                example.lineno += line
                examples.append(example)
    test = doctest.DocTest(examples, {}, page.name, str(page), 0, None)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_a_page_says_a_command_prints_it_prints(page: Path) -> None:
    for kind, text, line in blocks(page):
        if kind != "console":
            continue
        command, _, expected = text.removeprefix("$ ").partition("\n")
        python, *arguments = shlex.split(command)
        assert python == "python"
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"COLUMNS": "100"},
        )
        assert done.stdout + done.stderr == expected, f"{page}:{line}"


def test_every_public_module_has_a_place_in_the_reference() -> None:
    """The documentation build itself warns of any exported name that is on no page."""
    conf = ast.parse((ROOT / "docs" / "conf.py").read_text(encoding="utf-8"))
    names = {
        ast.unparse(node.targets[0]): node.value
        for node in conf.body
        if isinstance(node, ast.Assign)
    }
    internal, public = (ast.literal_eval(names[name]) for name in ("INTERNAL", "PUBLIC"))
    documented = {
        name
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for name in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))
    }
    exporting = set()
    for path in (ROOT / "llmcalc").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        # A package that imports its modules later only gathers their names.
        if "__all__" not in text or "from llmcalc.lazy import" in text:
            continue
        if not module.startswith(internal) or module in public:
            exporting.add(module)
    assert documented == exporting


def test_every_name_of_the_package_is_in_the_table_of_the_reference() -> None:
    table = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)[` ]", table))
    assert named >= set(llmcalc.__all__)


def test_the_listing_of_model_types_is_up_to_date() -> None:
    """Where it is not: ``python -m scripts.supported``."""
    for path, text in supported.files().items():
        assert path.read_text(encoding="utf-8") == text, path


def test_the_listing_has_what_it_is_asked_for() -> None:
    listed = llmcalc.huggingface.supported()
    assert len(listed) == len(list(listed)) >= 160
    assert list(listed) == sorted(listed)
    assert "llama" in listed
    assert "bert" not in listed
    assert listed.get("bert") is None
    assert [name for name, entry in listed.items() if entry.same_as] == [
        "kimi_k2",
        "minimax_m1",
        "minimax_text_01",
    ]
    for name, entry in listed.items():
        assert entry.model_type == name
        assert entry.layer_kinds
        assert entry.cache_kinds
        assert entry.checked.configs > 0
        if name != "phi3small":  # no exact total was published that could be read
            assert entry.checked.equal[0] == "parameters"
        if name in CONFIG_MAPPING:  # others are held against published totals alone
            assert "groups" in entry.checked.equal


def test_every_page_is_within_reach_of_the_index() -> None:
    reached, waiting = set(), ["index"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        page = ROOT / "docs" / f"{name}.md"
        for kind, text, _ in blocks(page):
            if kind == "{toctree}":
                entries = [line for line in text.splitlines() if line and line[0] != ":"]
                folder = Path(name).parent
                waiting += [str(folder / entry) for entry in entries]
    pages = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in PAGES[1:]}
    assert reached == pages
