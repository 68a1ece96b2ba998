"""Models by name: every entry against its published total, and what names mean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from llmcalc import LlmcalcError, load_model, memory
from llmcalc.errors import MissingExtraError, UnknownNameError
from llmcalc.huggingface import catalogue
from scripts.catalogue import ELSEWHERE
from tests.checkpoints import block_scales, in_blocks
from tests.truth import rows

ENTRIES = [catalogue.find(name) for name in catalogue.names()]
MEASURED = {row["model_id"]: row for row in rows("real_models")}
#: Entries whose data row has another name.
RENAMED = {
    "google/gemma-3-4b-it": "google/gemma-3-4b-it (text_config)",
}


def _named(entry: catalogue.Entry | None) -> Any:
    assert entry is not None
    return pytest.param(entry, id=entry.name)


#: What published totals count, as the entries say it.
MODULES = "parameters, buffers and modules that predict further tokens"
COUNTED = {
    "parameters",
    "parameters and buffers",
    "parameters and modules that predict further tokens",
    "parameters and scales of blocks",
    "parameters and the tied head once more",
    MODULES,
    f"{MODULES}, and scales of blocks",
    f"{MODULES}, with copies of the embedding and the head",
    f"{MODULES}, with copies of the embedding and the head, and scales of blocks",
}


@pytest.mark.parametrize("entry", [_named(e) for e in ENTRIES if e and e.published])
def test_an_entry_has_its_published_total(entry: catalogue.Entry) -> None:
    counts = entry.published_counts
    assert counts is not None
    assert counts in COUNTED
    spec = load_model(entry.name)
    tied_head: Literal["once", "twice"] = "twice" if "tied head" in counts else "once"
    total = memory.parameters(spec, tied_head=tied_head).total
    if "buffers" in counts:
        total += memory.buffers(spec, multi_token="further tokens" in counts).total
    if "further tokens" in counts:
        total += memory.multi_token_parameters(spec, copies="copies" in counts).total
    if "scales" in counts:
        total += block_scales(spec)
    assert total == entry.published


@pytest.mark.parametrize(
    "entry", [_named(e) for e in ENTRIES if e and "scales" in (e.published_counts or "")]
)
def test_a_checkpoint_in_fp8_has_the_scales_that_its_published_total_counts(
    entry: catalogue.Entry,
) -> None:
    spec = load_model(entry.name)
    elements, scales = in_blocks(spec.ledger)
    wide = memory.parameters(spec).total - elements
    assert memory.weight_bytes(spec, weights="checkpoint").total == 2 * wide + elements + 4 * scales


def test_every_total_says_where_it_was_read_and_no_source_stands_alone() -> None:
    for entry in ENTRIES:
        assert entry is not None
        given = {entry.published is None, entry.published_source is None}
        assert given | {entry.published_counts is None} == {entry.published is None}, entry.name
        source = entry.published_source
        assert source is None or len(source) > len("a public file on GitHub: "), entry.name


@pytest.mark.parametrize(
    "entry", [_named(e) for e in ENTRIES if e and RENAMED.get(e.name, e.name) in MEASURED]
)
def test_an_entry_has_the_parameters_of_the_module(entry: catalogue.Entry) -> None:
    row = MEASURED[RENAMED.get(entry.name, entry.name)]
    spec = load_model(entry.name)
    assert memory.parameters(spec).total == row["n_params"]
    full = load_model(row["config"])
    for fold in (memory.parameters, memory.active_parameters):
        assert dict(fold(spec).by(2)) == dict(fold(full).by(2))
    assert spec.max_positions == full.max_positions
    if entry.name not in ELSEWHERE:
        assert spec.checkpoint == full.checkpoint


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_file_that_says_elsewhere_how_it_is_quantised_is_not_taken_for_a_wide_one(
    name: str,
) -> None:
    spec = load_model(name)
    with pytest.raises(LlmcalcError, match="quant_algo"):
        memory.weight_bytes(spec, weights="checkpoint")
    assert memory.weight_bytes(spec, weights="nvfp4").total > 0


def test_most_shapes_have_a_published_total() -> None:
    shapes: dict[str, bool] = {}
    for entry in ENTRIES:
        assert entry is not None
        fields = {"quantization_config", "max_position_embeddings", "sliding_window", "dtype"}
        shape = str(sorted((k, str(v)) for k, v in entry.config.items() if k not in fields))
        shapes[shape] = shapes.get(shape, False) or entry.published is not None
    assert sum(shapes.values()) >= 140
    assert sum(shapes.values()) >= 0.8 * len(shapes)


@pytest.mark.parametrize("entry", [_named(entry) for entry in ENTRIES])
def test_every_name_of_an_entry_means_it(entry: catalogue.Entry) -> None:
    short = entry.name.rpartition("/")[2]
    for name in (entry.name, *entry.aliases):
        assert catalogue.find(name) is entry
        assert catalogue.find(name.upper().replace("-", "_")) is entry
        assert catalogue.find(name.replace("-", " ")) is entry
    assert catalogue.find(short) is not None


def test_no_two_entries_share_a_spelling() -> None:
    seen: dict[str, str] = {}
    for entry in ENTRIES:
        assert entry is not None
        for name in (entry.name, *entry.aliases):
            assert seen.setdefault(catalogue._spelling(name), entry.name) == entry.name


@pytest.mark.parametrize("name", ["llama-3-8", "llama3.8b", "llama-3-80b", "", "gpt", "x/gpt2"])
def test_a_name_is_not_guessed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with pytest.raises(LlmcalcError, match=r"^source = "):
        load_model(name)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as error:
        load_model("lama-3-8b")
    assert error.value.suggestions[0] == "meta-llama/Meta-Llama-3-8B"


def test_the_models_name_is_the_hubs_unless_given() -> None:
    assert load_model("llama 3 8b").name == "meta-llama/Meta-Llama-3-8B"
    assert load_model("llama 3 8b", name="mine").name == "mine"


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalogue.find("gpt2-xl")
    assert entry is not None
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(dict(entry.config)))
    monkeypatch.chdir(tmp_path)
    assert memory.parameters(load_model("gpt2")).total == 1557611200


def test_a_file_that_is_not_there_is_said_to_be_missing() -> None:
    for source in ("nowhere/config.json", "./nowhere", Path("nowhere")):
        with pytest.raises(LlmcalcError, match="cannot be read"):
            load_model(source)


def test_another_hub_id_fetches_its_config_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = catalogue.find("gpt2")
    assert entry is not None
    (tmp_path / "config.json").write_text(json.dumps(dict(entry.config)))
    fetched: list[tuple[str, ...]] = []

    def fetch(*arguments: str) -> str:
        fetched.append(arguments)
        return str(tmp_path / "config.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    spec = load_model("someone/their-gpt2")
    assert spec.name == "someone/their-gpt2"
    assert memory.parameters(spec).total == 124439808
    assert fetched == [("someone/their-gpt2", "config.json")]


def test_offline_another_hub_id_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> str:
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with pytest.raises(LlmcalcError, match="cannot be fetched from the hub: outgoing traffic"):
        load_model("someone/their-gpt2")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("meta-llama/Llama-3-9B", "(near: meta-llama/Meta-Llama-3-8B)"),
        ("meta-llama/" + "Llama" * 30, "is not in the catalogue"),
    ],
)
def test_without_the_extra_another_hub_id_names_it_and_the_nearest_entry(
    monkeypatch: pytest.MonkeyPatch, name: str, near: str
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"llmcalc-inference\[hub\]") as caught:
        load_model(name)
    assert near in str(caught.value)
    assert len(str(caught.value)) <= 200


def test_a_name_is_read_without_torch_transformers_numpy_or_network() -> None:
    code = (
        "import sys, socket\n"
        "socket.socket = None\n"
        "from llmcalc import load_model, memory\n"
        "print(memory.parameters(load_model('deepseek-v3')).total)\n"
        "for name in ('torch', 'transformers', 'numpy', 'huggingface_hub'):\n"
        "    assert name not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "671026404352"


@pytest.mark.parametrize(
    "row", [pytest.param(r, id=r["model_type"]) for r in rows("default_configs")]
)
def test_what_is_no_decoder_is_refused_and_a_wrapper_gives_its_language_model(
    row: dict[str, Any],
) -> None:
    if row["scope"] != "out":
        load_model(row["config"])
        return
    inner = row["config"].get("text_config")
    if inner is None:
        with pytest.raises(LlmcalcError, match=r"^model_type = .*: is not known"):
            load_model(row["config"])
        return
    try:
        spec = load_model(row["config"])
    except LlmcalcError as error:
        assert "is not known" in str(error) or "model_type" in str(error)  # noqa: PT017
    else:
        assert any("text_config" in note for note in spec.notes)
