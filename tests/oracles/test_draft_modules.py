"""Modules that predict further tokens, as published checkpoints and transformers have them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from llmcalc import LlmcalcError, ModelSpec, load_model, memory
from llmcalc.spec import MultiToken, Norm
from tests.checkpoints import block_scales, with_all_modules
from tests.truth import rows


def _published(model_id: str) -> dict[str, Any]:
    [row] = [row for row in rows("real_models") if row["model_id"] == model_id]
    return row


#: Published totals of the elements in a checkpoint that has modules for further tokens, and
#: whether it has copies of the embedding and the head for them.
PUBLISHED = {
    "deepseek-ai/DeepSeek-V4-Flash": False,
    "deepseek-ai/DeepSeek-V4-Pro": False,
    "zai-org/GLM-4.5": True,
    "zai-org/GLM-4.5-Air": True,
}


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_checkpoints_have_the_published_elements(model_id: str) -> None:
    row = _published(model_id)
    spec = load_model(row["config"])
    total = with_all_modules(spec, copies=PUBLISHED[model_id])
    assert total == row["published_check"]["published"]


def test_a_config_of_qwen3_next_does_not_state_the_module_in_its_checkpoint() -> None:
    row = _published("Qwen/Qwen3-Next-80B-A3B-Instruct")
    assert load_model(row["config"]).multi_token == ()
    spec = load_model({**row["config"], "num_nextn_predict_layers": 1})
    assert with_all_modules(spec, copies=False) == row["published_check"]["published"]
    assert spec == load_model({**row["config"], "mtp_num_hidden_layers": 1})


@pytest.mark.parametrize("model_id", ["deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1"])
def test_the_checkpoint_of_deepseek_v3_has_the_scales_of_blocks_too(model_id: str) -> None:
    row = _published(model_id)
    spec = load_model(row["config"])
    total = with_all_modules(spec, copies=True) + block_scales(spec)
    assert total == row["published_check"]["published"]


@pytest.mark.parametrize(
    "row",
    [row for row in rows("real_models") if "published_without_mtp" in row["published_check"]],
    ids=lambda row: row["model_id"],
)
def test_without_the_modules_the_published_elements_are_parameters_and_buffers(
    row: dict[str, Any],
) -> None:
    spec = load_model(row["config"])
    total = (memory.parameters(spec) + memory.buffers(spec)).total
    assert total == row["published_check"]["published_without_mtp"]


@pytest.mark.parametrize(
    "row",
    [
        row
        for row in rows("real_models")
        if "mtp_params" in row["published_check"].get("detail", {})
    ],
    ids=lambda row: row["model_id"],
)
def test_modules_have_the_recorded_parameters(row: dict[str, Any]) -> None:
    config = dict(row["config"])
    if row["model_type"] == "qwen3_next":
        config["num_nextn_predict_layers"] = 1
    spec = load_model(config)
    copies = row["model_type"] != "qwen3_next"
    offsets = memory.buffers(spec, multi_token=True).total - memory.buffers(spec).total
    modules = memory.multi_token_parameters(spec, copies=copies).total + offsets
    assert modules == row["published_check"]["detail"]["mtp_params"]


#: Fields that give each model type modules which transformers can build, in a small model.
BUILT: dict[str, list[dict[str, Any]]] = {
    "deepseek_v3": [{"num_mtp_layers": 1}, {"num_mtp_layers": 3, "q_lora_rank": None}],
    "glm4_moe": [{"num_mtp_layers": 1}, {"num_mtp_layers": 2, "use_qk_norm": True}],
    "mellum": [
        {"num_mtp_layers": 1},
        {
            "num_mtp_layers": 1,
            "mtp_layer_types": ["full_attention"],
            "mtp_mlp_layer_types": ["dense"],
        },
    ],
    "inkling_text": [
        {"num_mtp_layers": 1},
        {"num_mtp_layers": 3, "mtp_local_layer_ids": [0, 2]},
        {"num_mtp_layers": 2, "mtp_local_layer_ids": [0, 1], "chain_hidden_post_norm": True},
    ],
}


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [(model_type, fields) for model_type, several in BUILT.items() for fields in several],
)
def test_modules_are_those_that_transformers_builds(
    model_type: str, fields: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM
    from transformers.modeling_layers import MtpModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    classes: Any = CONFIG_MAPPING
    config = classes[model_type](num_hidden_layers=2, **fields)
    with torch.device("meta"):
        build: Any = AutoModelForCausalLM.from_config
        model = build(config)
        modules = MtpModel(model, config.num_mtp_layers)
    shared = ("embed_tokens.", "shared_head.")
    total = sum(
        weight.numel() for name, weight in modules.named_parameters() if not name.startswith(shared)
    )
    spec = load_model(config.to_dict())
    assert memory.multi_token_parameters(spec).total == total


def test_modules_change_no_other_count() -> None:
    row = _published("deepseek-ai/DeepSeek-V3")
    with_it, without = (
        load_model({**row["config"], "num_nextn_predict_layers": count}) for count in (1, 0)
    )
    assert with_it.multi_token
    assert not without.multi_token
    assert memory.multi_token_parameters(without).total == 0
    assert memory.multi_token_parameters(without, copies=True).total == 0
    for fold in (
        memory.parameters,
        memory.active_parameters,
        memory.layer_parameters,
        memory.buffers,
    ):
        assert fold(with_it) == fold(without)


def test_every_module_adds_the_same() -> None:
    row = _published("zai-org/GLM-4.5-Air")
    one, three = (
        load_model({**row["config"], "num_nextn_predict_layers": count}) for count in (1, 3)
    )
    for copies in (False, True):
        single = memory.multi_token_parameters(one, copies=copies).total
        assert memory.multi_token_parameters(three, copies=copies).total == 3 * single


def test_modules_that_are_not_counted_are_noted() -> None:
    [row] = [row for row in rows("default_configs") if row["model_type"] == "kimi_linear"]
    [note] = load_model({**row["config"], "num_nextn_predict_layers": 1}).notes
    assert note == (
        "modules that predict further tokens are not counted (num_nextn_predict_layers: 1)"
    )
    assert not load_model({**row["config"], "num_nextn_predict_layers": 0}).notes


@pytest.mark.parametrize("count", [-1, 1.0, True, "1", 10**9])
def test_a_wrong_number_of_modules_is_refused(count: object) -> None:
    row = _published("deepseek-ai/DeepSeek-V3")
    with pytest.raises(LlmcalcError, match="num_nextn_predict_layers"):
        load_model({**row["config"], "num_nextn_predict_layers": count})


def test_what_surrounds_the_layers_is_counted_by_hand() -> None:
    row = _published("deepseek-ai/DeepSeek-V3")
    spec = load_model(row["config"])
    width = spec.embed_dim
    layer = memory.layer_parameters(spec).by(1)["latent-experts"]
    assert memory.multi_token_parameters(spec).total == layer + 2 * width**2 + 3 * width


def _default(model_type: str) -> dict[str, Any]:
    [row] = [row for row in rows("default_configs") if row["model_type"] == model_type]
    config: dict[str, Any] = row["config"]
    return config


#: The fields that state modules, the labels of the layers in them, and how many norms and joins
#: there are: what vLLM's modules of the same names hold.
BY_HAND: dict[str, tuple[dict[str, Any], list[str], int, int]] = {
    # ernie_mtp.py: dense, and no norm of the result
    "ernie4_5_moe": ({"num_nextn_predict_layers": 1}, ["decoder"], 2, 1),
    # exaone_moe_mtp.py: dense layers, joined once
    "exaone_moe": ({"num_nextn_predict_layers": 2}, ["window", "window"], 3, 1),
    # hy_v3_mtp.py
    "hy_v3": ({"num_nextn_predict_layers": 2}, ["decoder-experts", "decoder-experts"], 6, 2),
    # nemotron_h_mtp.py: each module has several layers
    "nemotron_h": ({"num_nextn_predict_layers": 1}, ["decoder", "experts"], 3, 1),
    # qwen3_5_mtp.py
    "qwen3_5_text": ({"mtp_num_hidden_layers": 1}, ["decoder"], 3, 1),
    "qwen3_5_moe_text": (
        {"mtp_num_hidden_layers": 2},
        ["decoder-experts", "decoder-experts"],
        3,
        1,
    ),
}


@pytest.mark.parametrize("model_type", BY_HAND)
def test_modules_are_layers_of_the_model_with_joins_and_norms(model_type: str) -> None:
    fields, labels, norms, joins = BY_HAND[model_type]
    spec = load_model({**_default(model_type), **fields})
    one = memory.layer_parameters(spec).by(1)
    width = spec.embed_dim
    layers = sum(one[label] for label in labels)
    expected = layers + joins * 2 * width**2 + norms * width
    assert memory.multi_token_parameters(spec).total == expected


def test_the_kinds_of_a_nemotrons_modules_may_be_a_pattern() -> None:
    config = {**_default("nemotron_h"), "num_nextn_predict_layers": 1}
    usual = load_model(config)
    assert usual == load_model({**config, "mtp_layers_block_type": None})
    assert usual == load_model({**config, "mtp_hybrid_override_pattern": "*E"})
    one = memory.layer_parameters(usual).by(1)["decoder"]
    more = load_model({**config, "mtp_hybrid_override_pattern": "**E"})
    added = memory.multi_token_parameters(more).total - memory.multi_token_parameters(usual).total
    assert added == one
    for pattern in ("", "*X"):
        with pytest.raises(LlmcalcError, match="mtp_hybrid_override_pattern"):
            load_model({**config, "mtp_hybrid_override_pattern": pattern})
    with pytest.raises(LlmcalcError, match="mtp_layers_block_type"):
        load_model({**config, "mtp_layers_block_type": ["nothing"]})


def test_a_multimodal_inkling_states_its_modules_in_an_object_of_their_own() -> None:
    inner = _default("inkling_text")
    fields = ("num_mtp_layers", "chain_hidden_post_norm", "mtp_local_layer_ids")
    absent = {key: value for key, value in inner.items() if key not in fields}
    modules = {"num_nextn_predict_layers": 2, "local_layer_ids": [1]}
    wrapper = {"model_type": "inkling_mm_model", "mtp_config": modules}
    whole = load_model({**wrapper, "text_config": absent})
    alone = load_model({**absent, "num_mtp_layers": 2, "mtp_local_layer_ids": [1]})
    assert whole.multi_token
    assert whole.multi_token == alone.multi_token
    # what the text model says itself comes first
    own = {**absent, "num_mtp_layers": None}
    assert not load_model({**wrapper, "text_config": own}).multi_token


@pytest.mark.parametrize(
    ("model_type", "fields", "named"),
    [
        ("mellum", {"num_nextn_predict_layers": 2}, "num_nextn_predict_layers"),
        ("mellum", {"num_nextn_predict_layers": 1, "mtp_layer_types": ["x"]}, "mtp_layer_types"),
        ("inkling_text", {"num_mtp_layers": 1, "mtp_local_layer_ids": 1}, "mtp_local_layer_ids"),
        ("inkling_text", {"mtp_config": 1}, "mtp_config"),
        ("deepseek_v4", {"mlp_layer_types": "moe"}, "mlp_layer_types"),
        ("deepseek_v4", {"mlp_layer_types": ["moe"]}, "mlp_layer_types"),
        ("deepseek_v4", {"mlp_layer_types": ["dense"] * 100}, "mlp_layer_types"),
    ],
)
def test_what_contradicts_is_refused(model_type: str, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(LlmcalcError, match=named):
        load_model({**_default(model_type), **fields})


def test_the_layers_of_a_deepseek_v4_that_look_experts_up_may_be_listed_or_counted() -> None:
    config = {
        key: value for key, value in _default("deepseek_v4").items() if "mlp_layer" not in key
    }
    layers = config["num_hidden_layers"]
    kinds = ["hash_moe"] * 2 + ["moe"] * (layers - 2)
    counted = load_model({**config, "num_hash_layers": 2})
    listed = load_model({**config, "mlp_layer_types": kinds})
    assert memory.buffers(counted).total == memory.buffers(listed).total
    table, offsets = (
        config["vocab_size"] * config["num_experts_per_tok"],
        config["n_routed_experts"],
    )
    assert memory.buffers(counted).total == 2 * table + (layers - 2) * offsets


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_flags_are_true_or_false(wrong: Any) -> None:
    spec = load_model("deepseek-v3")
    with pytest.raises(LlmcalcError, match="copies"):
        memory.multi_token_parameters(spec, copies=wrong)
    with pytest.raises(LlmcalcError, match="multi_token"):
        memory.buffers(spec, multi_token=wrong)


def test_a_decoder_that_does_not_have_the_modules_refuses_them() -> None:
    pytest.importorskip("torch")
    from llmcalc.models.tiny_decoder import TinyDecoder

    plain = ModelSpec.assignment_decoder(
        vocab_size=10, d_model=8, d_ff=16, num_layers=1, max_seq_len=16
    )
    module = MultiToken(count=1, layers=(plain.layers[0].layer,), norm=Norm(kind="layer"))
    spec = attrs.evolve(plain, multi_token=(module,))
    assert memory.parameters(spec).total == memory.parameters(plain).total
    with pytest.raises(LlmcalcError, match="multi_token"):
        TinyDecoder(spec)
