"""Language models inside larger models: where they stand, and what transformers takes them for."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForMultimodalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmcalc import LlmcalcError, ModelSpec, load_model, memory, roofline
from llmcalc.huggingface.registry import HEADLESS, READERS
from llmcalc.huggingface.wrappers import FLAT, LANGUAGE_MODELS, SECTIONS
from tests.altered import small
from tests.modules import build, module_groups, spec_groups

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 112,
    "vocab_size": 160,
}
QWEN_VL: dict[str, Any] = {
    **LLAMA,
    "model_type": "qwen2_5_vl",
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "vision_config": {"hidden_size": 32},
}


@pytest.mark.parametrize("wrapper", LANGUAGE_MODELS)
def test_a_section_without_a_type_has_the_one_that_transformers_takes(wrapper: str) -> None:
    config = CONFIG_MAPPING[wrapper]()
    assert config.text_config.model_type == LANGUAGE_MODELS[wrapper]
    assert LANGUAGE_MODELS[wrapper] in READERS
    assert wrapper not in READERS


def test_every_language_model_without_a_head_is_one_of_a_larger_model() -> None:
    assert set(LANGUAGE_MODELS.values()) >= HEADLESS
    assert set(FLAT.values()) <= READERS.keys()
    assert not FLAT.keys() & READERS.keys()


@pytest.mark.parametrize("model_type", sorted(HEADLESS))
def test_a_language_model_counts_as_its_module_and_a_head(model_type: str) -> None:
    arguments = small(model_type)
    _, module = build(model_type, dict(arguments))
    spec = load_model({**arguments, "model_type": model_type})
    assert spec_groups(spec) == module_groups(module)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_language_model_is_found_in_each_section(section: str) -> None:
    spec = load_model({"model_type": "anything", section: LLAMA})
    assert memory.parameters(spec) == memory.parameters(load_model(LLAMA, name="anything"))
    assert spec.notes[0] == f"only {section} was read: the other parts of anything are left out"


def test_it_is_found_in_a_part_of_a_part() -> None:
    thinker = {"model_type": "a_thinker", "text_config": LLAMA, "torch_dtype": "bfloat16"}
    spec = load_model({"model_type": "omni", "thinker_config": thinker})
    assert "thinker_config.text_config" in spec.notes[0]
    assert spec.checkpoint == "bf16"
    deep: dict[str, Any] = LLAMA
    for _ in range(4):
        deep = {"model_type": "omni", "text_config": deep}
    with pytest.raises(LlmcalcError, match=r"text_config\.model_type = 'omni': is not known"):
        load_model(deep)


def test_older_files_state_its_fields_beside_those_of_other_parts() -> None:
    spec = load_model(QWEN_VL)
    nested = {key: QWEN_VL[key] for key in LLAMA if key != "model_type"}
    whole = {"model_type": "qwen2_5_vl", "tie_word_embeddings": True, "text_config": nested}
    assert memory.parameters(spec) == memory.parameters(load_model(whole))
    assert spec.notes[0].startswith("only the language model was read")
    without = {key: value for key, value in QWEN_VL.items() if key != "intermediate_size"}
    with pytest.raises(LlmcalcError, match="intermediate_size: is missing"):
        load_model(without)


@pytest.mark.parametrize("inside", [True, False, None])
@pytest.mark.parametrize("outside", [True, False])
def test_the_larger_model_ties_a_head_that_only_it_has(outside: bool, inside: bool | None) -> None:
    text: dict[str, Any] = {**LLAMA, "model_type": "qwen3_vl_text"}
    if inside is not None:
        text["tie_word_embeddings"] = inside
    whole = {"model_type": "qwen3_vl", "tie_word_embeddings": outside, "text_config": text}
    assert load_model(whole).head.tied is outside


@pytest.mark.parametrize("inside", [True, False])
def test_of_an_unknown_larger_model_the_section_says_whether_the_head_is_tied(inside: bool) -> None:
    text = {**LLAMA, "tie_word_embeddings": inside}
    whole = {"model_type": "mine", "tie_word_embeddings": not inside, "llm_config": text}
    assert load_model(whole).head.tied is inside
    thinker = {"model_type": "qwen2_5_omni_thinker", "tie_word_embeddings": inside}
    omni = {"model_type": "qwen2_5_omni", "tie_word_embeddings": not inside}
    nested = {**omni, "thinker_config": {**thinker, "text_config": {**LLAMA}}}
    assert load_model(nested).head.tied is inside


def test_a_head_of_its_own_is_tied_by_its_own_section() -> None:
    text = {**LLAMA, "tie_word_embeddings": True}
    whole = {"model_type": "llava", "tie_word_embeddings": False, "text_config": text}
    assert load_model(whole).head.tied


@pytest.mark.parametrize("section", [True, False])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "wrapper", ["mistral3", "llava", "gemma3", "qwen2_vl", "glm4v", "blip-2", "qwen2_audio"]
)
def test_a_head_is_tied_where_the_module_of_the_larger_model_ties_it(
    wrapper: str, whole: bool, section: bool
) -> None:
    config = CONFIG_MAPPING[wrapper]()
    written = json.loads(config.to_json_string(use_diff=False))
    written["tie_word_embeddings"] = whole
    written["text_config"]["tie_word_embeddings"] = section
    arguments = {name: value for name, value in written.items() if name != "model_type"}
    with torch.device("meta"):
        module = AutoModelForMultimodalLM.from_config(  # type: ignore[no-untyped-call]
            CONFIG_MAPPING[wrapper](**arguments)
        )
    head, table = module.get_output_embeddings(), module.get_input_embeddings()
    assert load_model(written).head.tied is (head.weight is table.weight)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mine", "text_config": {}}, r"text_config\.model_type: is missing"),
        ({"model_type": "mine", "text_config": {"model_type": 3}}, r"text_config\.model_type = 3"),
        ({"model_type": "mine", "text_config": {1: 2}}, "text_config = 1: must have strings"),
        ({"model_type": "mine", "text_config": 3}, "model_type = 'mine': is not known"),
        ({"model_type": "qwen2_5_vl"}, "model_type = 'qwen2_5_vl': is not known"),
        (
            {"model_type": "clip", "text_config": {"model_type": "clip_text_model"}},
            r"text_config\.model_type = 'clip_text_model': is not known",
        ),
    ],
)
def test_what_is_no_language_model_is_said_by_its_path(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(LlmcalcError, match=message):
        load_model(config)


def test_a_step_3_5_is_read_as_its_own_file_states_it() -> None:
    """Its lists go on with the modules for further tokens, and are strings or of every layer."""
    layers = ["full_attention", "sliding_attention"] * 2
    own = {
        "model_type": "step3p5",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_attention_groups": 2,
        "head_dim": 16,
        "vocab_size": 160,
        "intermediate_size": 96,
        "moe_num_experts": 8,
        "moe_top_k": 2,
        "moe_intermediate_size": 32,
        "share_expert_dim": 40,
        "sliding_window": 8,
        "layer_types": layers,
        "attention_other_setting": {"num_attention_heads": 6},
        "moe_layers_enum": "1, 2",
        "num_nextn_predict_layers": 1,
        "rope_theta": [5e6, 1e4, 5e6, 1e4],
    }
    arguments = {key: value for key, value in own.items() if key != "model_type"}
    config, module = build("step3p5", arguments)
    assert spec_groups(load_model(own)) == module_groups(module)
    assert config.mlp_layer_types == ["dense", "sparse", "sparse"]
    with pytest.raises(LlmcalcError, match="moe_layers_enum"):
        load_model({**own, "moe_layers_enum": "1, x"})
    with pytest.raises(LlmcalcError, match="per_layer_config"):
        load_model({**own, "per_layer_config": {"1": {"head_dim": 4}}})


def test_a_deepseek_v2_without_latent_attention_is_that_of_deepseek_ocr() -> None:
    text = {
        "model_type": "deepseek_v2", "first_k_dense_replace": 1, "hidden_size": 1280,
        "intermediate_size": 6848, "kv_lora_rank": None, "max_position_embeddings": 8192,
        "moe_intermediate_size": 896, "n_routed_experts": 64, "n_shared_experts": 2,
        "num_attention_heads": 10, "num_experts_per_tok": 6, "num_hidden_layers": 12,
        "num_key_value_heads": 10, "q_lora_rank": None, "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0, "use_mla": False, "v_head_dim": 0, "vocab_size": 129280,
    }  # fmt: skip
    spec = load_model({"model_type": "deepseek_vl_v2", "language_config": text})
    # The language model of transformers' UnlimitedOcrForConditionalGeneration, of these sizes.
    assert memory.parameters(spec).total == 2934734080


def test_a_request_of_text_skips_layers_that_attend_images() -> None:
    config = {**small("mllama_text_model"), "model_type": "mllama_text_model"}
    spec = load_model(config)
    plain = load_model({**config, "cross_attention_layers": [], "num_hidden_layers": 2})
    assert spec.num_layers == 4
    for model in (spec, plain):
        assert model.ledger.caches
    assert _folds(spec) == _folds(plain)
    assert memory.parameters(spec).total > memory.parameters(plain).total


def _folds(spec: ModelSpec) -> tuple[int, ...]:
    """Return what a step computes and moves, and what a request holds."""
    step: dict[str, Any] = {"batch": 2, "new": 3, "past": 5}
    return (
        memory.kv_cache_bytes(spec, context=9, kv="bf16").total,
        roofline.flops(spec, **step).total,
        roofline.bytes_moved(spec, weights="bf16", kv="bf16", **step).total,
    )
