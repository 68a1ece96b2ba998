"""Reading configs: what is wrong is refused by name, and nothing else ever comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import LlmcalcError, ModelSpec, huggingface, load_model, memory
from llmcalc.huggingface import readers
from llmcalc.huggingface.registry import READERS
from llmcalc.spec import Window
from tests.truth import rows

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 112,
    "vocab_size": 160,
}
DEFAULTS = {row["model_type"]: row["config"] for row in rows("default_configs")}


def test_an_unknown_architecture_is_named_with_what_is_known() -> None:
    with pytest.raises(LlmcalcError, match=r"'llamma'.*did you mean 'llama'.*\.supported\(\)$"):
        load_model(LLAMA | {"model_type": "llamma"})
    with pytest.raises(LlmcalcError, match="model_type: is missing"):
        load_model({"hidden_size": 64})


@pytest.mark.parametrize("field", [name for name in LLAMA if name != "num_key_value_heads"])
def test_a_missing_field_is_named(field: str) -> None:
    config = {name: value for name, value in LLAMA.items() if name != field}
    with pytest.raises(LlmcalcError, match=f"{field}: is missing"):
        load_model(config)


@pytest.mark.parametrize("value", [0, -1, 2.0, "64", True, [64], {}, 2**70, float("nan")])
@pytest.mark.parametrize("field", [name for name in LLAMA if name != "model_type"])
def test_a_size_of_the_wrong_kind_is_named(field: str, value: object) -> None:
    with pytest.raises(LlmcalcError, match=field):
        load_model(LLAMA | {field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads = 5"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide"),
        ({"hidden_act": "sulu"}, "hidden_act = 'sulu'.*did you mean 'silu'"),
        ({"attention_bias": "no"}, "attention_bias = 'no'"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings = None"),
        ({"torch_dtype": "bfloat61"}, "torch_dtype"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_scaling": 3}, "rope_scaling"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ],
)
def test_contradictions_and_nonsense_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LlmcalcError, match=message):
        load_model(LLAMA | changes)


def test_a_null_field_is_not_an_absent_field() -> None:
    default = load_model(LLAMA | {"model_type": "mistral"})
    off = load_model(LLAMA | {"model_type": "mistral", "sliding_window": None})
    spans = [spec.ledger.caches[0][1].span for spec in (default, off)]
    assert spans[0] == Window(4096)
    assert spans[1].most_slots is None


def test_two_spellings_of_one_field_must_agree() -> None:
    gpt2 = {name: DEFAULTS["gpt2"][name] for name in ("model_type", "n_layer", "n_head")}
    gpt2 |= {"vocab_size": 50257, "n_positions": 1024, "hidden_size": 768}
    assert memory.parameters(load_model(gpt2)).total == 124_439_808
    with pytest.raises(LlmcalcError, match="hidden_size = 768: contradicts n_embd"):
        load_model(gpt2 | {"n_embd": 512})


def test_qwen2s_window_needs_its_switch_and_starts_at_its_layer() -> None:
    config = LLAMA | {"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1}
    [run] = load_model(config).layers
    assert (run.count, run.label) == (2, "decoder")
    runs = load_model(config | {"use_sliding_window": True}).layers
    assert [(run.count, run.label) for run in runs] == [(1, "decoder"), (1, "window")]
    kinds = ["sliding_attention", "full_attention"]
    runs = load_model(config | {"use_sliding_window": True, "layer_types": kinds}).layers
    assert [(run.count, run.label) for run in runs] == [(1, "window"), (1, "decoder")]
    with pytest.raises(LlmcalcError, match="layer_types"):
        load_model(config | {"layer_types": kinds[:1]})


def test_fields_that_are_not_known_are_said(tmp_path: Path) -> None:
    spec = load_model(LLAMA | {"initializer_range": 0.1, "my_own_field": 1})
    assert spec.notes == ("fields that were not read: my_own_field",)


def test_a_path_a_folder_and_a_mapping_are_read_alike(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps(LLAMA | {"torch_dtype": "bfloat16"}), encoding="utf-8")
    by_file, by_folder = load_model(file), load_model(str(folder))
    assert by_file == by_folder
    assert by_file.name == "my-model"
    assert load_model(LLAMA, name="mine").name == "mine"
    assert memory.weight_bytes(by_file, weights="checkpoint") == memory.weight_bytes(
        by_file, weights="bf16"
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": ' * 100_000, "\udcff", '{"model_type": ' + "9" * 5000 + "}"]
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LlmcalcError, match=r"source|model_type"):
        load_model(file)


@pytest.mark.parametrize("source", [3, None, ["config.json"], b"\0", "no\0where", "/no/where"])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(LlmcalcError, match="source"):
        load_model(source)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["silu", "full_attention", "sliding_attention", "bfloat16"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(DEFAULTS.keys() & huggingface.supported().keys())), st.data())
def test_a_spoilt_config_gives_a_spec_or_an_error_of_the_library(
    model_type: str, data: st.DataObject
) -> None:
    config = dict(DEFAULTS[model_type])
    fields = st.sampled_from(sorted(config)) | st.text(max_size=8)
    for field in data.draw(st.lists(fields, max_size=4)):
        config[field] = data.draw(JSON)
    for field in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=2)):
        config.pop(field, None)
    try:
        spec = load_model(config)
    except LlmcalcError:
        return
    assert isinstance(spec, ModelSpec)
    assert memory.parameters(spec).total > 0


def _default(model_type: str, **changes: Any) -> dict[str, Any]:
    return {**DEFAULTS[model_type], **changes}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_default("mixtral", num_experts_per_tok=9), "num_experts_per_tok = 9: must be at most"),
        (_default("ernie4_5_moe", moe_intermediate_size=2**48), "moe_intermediate_size = 2814"),
        (_default("llama", head_dim=None, num_attention_heads=8192, num_key_value_heads=8192),
         "num_attention_heads = 8192"),
        (_default("inkling_text", num_key_value_heads=7), "num_key_value_heads = 7: must divide"),
        (_default("bamba", mamba_n_groups=3), "mamba_n_groups = 3: must divide"),
        (_default("longcat_flash", num_layers=28, num_hidden_layers=28), "num_hidden_layers = 28"),
        (_default("laguna", num_attention_heads_per_layer=[[48]] * 40),
         "num_attention_heads_per_layer"),
        (_default("minimax", shared_intermediate_size=64), "shared_intermediate_size = 64"),
        (_default("minimax", layer_types=None, attn_type_list=[0, 2]), "attn_type_list"),
    ],
)  # fmt: skip
def test_what_parts_refuse_is_said_in_the_words_of_the_config(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(LlmcalcError, match=message):
        load_model(config)


@pytest.mark.parametrize(
    ("model_type", "fields", "same"),
    [
        # Its class has rotary parameters only once a file gives them.
        ("cohere2_moe", {"rope_theta": 5e4}, ("rope_parameters",)),
        # The hub's file names an activation that transformers replaces.
        ("minimax_m3_vl_text", {"hidden_act": "swigluoai"}, ()),
        ("nemotron_h", {"hybrid_override_pattern": list("ME*-")}, ("layers_block_type",)),
        ("minimax", {"attn_type_list": [1, 0] * 16}, ("layer_types",)),
    ],
)
def test_a_file_in_other_words_gives_the_same_model(
    model_type: str, fields: dict[str, Any], same: tuple[str, ...]
) -> None:
    config = _default(model_type)
    other = {key: value for key, value in config.items() if key not in same} | fields
    assert memory.parameters(load_model(other)) == memory.parameters(load_model(config))


#: What readers share, and which readers have parts that others build on.
SHARED = {"mixture", "hyper_connections", "deepseek", "mamba", "qwen3_next"}


def test_every_file_of_readers_is_one_that_the_registry_names_or_is_shared() -> None:
    files = {path.stem for path in Path(readers.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {reader.partition(".")[0] for reader in READERS.values()} | SHARED


@pytest.mark.parametrize(
    ("model_type", "imported"),
    [
        ("llama", {"llama"}),
        ("gpt2", {"classic"}),
        ("mixtral", {"mixtral", "mixture"}),
        ("deepseek_v3", {"deepseek", "mixture"}),
        ("mamba2", {"mamba"}),
        ("zamba2", {"zamba", "mamba"}),
        ("qwen3_next", {"qwen3_next", "mixture"}),
    ],
)
def test_a_model_imports_the_reader_of_its_type_and_no_other(
    model_type: str, imported: set[str]
) -> None:
    code = f"""
import json, sys
from llmcalc import load_model
load_model(json.loads({json.dumps(DEFAULTS[model_type])!r}))
prefix = "llmcalc.huggingface.readers."
print(*(name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == imported
