"""Sizes of one, of zero, and fields that a model does not use, held against transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from llmcalc import LlmcalcError, load_model
from llmcalc.huggingface.registry import HEADLESS
from tests.altered import TINY, small
from tests.modules import build, module_groups, new_config, spec_groups
from tests.oracles.test_altered_configs import saved
from tests.runs import TOKENS, cache_bytes, counted_flops, measure


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _arguments(model_type: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a small model, with changes."""
    base = small(model_type) if model_type in HEADLESS else copy.deepcopy(TINY[model_type])
    # Of transformers' own bookkeeping nothing is an argument; infinity is no JSON.
    for name in ("model_type", "transformers_version", "time_step_limit"):
        base.pop(name, None)
    return {**base, **changes}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        # PyTorch sums over an axis of one element without a matrix product.
        ("bamba", {"mamba_d_state": 1, "mamba_d_conv": 3}),
        ("granitemoehybrid", {"mamba_chunk_size": 1}),
        ("mamba2", {"state_size": 1, "chunk_size": 1}),
        # A prefill is computed in pieces, of which each has a rest that fills no chunk.
        ("xlstm", {"max_inference_chunksize": 1}),
        ("xlstm", {"max_inference_chunksize": 11}),
        # Transformers keeps all positions for a window of one.
        ("cohere2_moe", {"sliding_window": 1}),
        ("doge", {"sliding_window": 1}),
        ("llama4_text", {"attention_chunk_size": 1}),
        # The router picks two experts, whatever the config says.
        ("phimoe", {"num_experts_per_tok": 1}),
        ("phimoe", {"num_experts_per_tok": 3}),
        # Shared experts without width leave their activation and bias.
        ("deepseek_v3", {"n_shared_experts": 0, "hidden_act": "prelu"}),
        ("aria_text", {"moe_num_shared_experts": 0, "mlp_bias": True, "hidden_act": "xielu"}),
        ("qwen3_next", {"shared_expert_intermediate_size": 0}),
        ("minimax_m3_vl_text", {"shared_intermediate_size": 0}),
        ("step3p5", {"share_expert_dim": 0, "mlp_bias": True}),
        # Where they have none of their own, they have the width of dense layers.
        ("nemotron_h", {"moe_shared_expert_intermediate_size": 0}),
        # Fields that the model has, and does not use.
        ("llama", {"max_position_embeddings": 0}),
        ("qwen2_vl_text", {"max_window_layers": None}),
        ("mellum", {"sliding_window": 0, "layer_types": ["full_attention"] * 4}),
        ("cohere2_moe", {"prefix_dense_sliding_window_pattern": 0}),
        ("jamba", {"num_experts": 0}),
        ("falcon", {"num_kv_heads": 0}),
        ("zamba", {"attention_head_dim": 0, "attention_hidden_size": 0}),
        ("deepseek_ocr2_text", {"num_hidden_layers": 2}),
        ("axk1", {"num_hidden_layers": 2}),
    ],
)
def test_odd_sizes_count_hold_and_compute_what_the_module_does(
    model_type: str, changes: dict[str, Any]
) -> None:
    arguments = _arguments(model_type, changes)
    config, module = build(model_type, copy.deepcopy(arguments))
    spec = load_model(saved(config))
    assert spec_groups(spec)[0] == module_groups(module)[0]
    by_hand = load_model({**arguments, "model_type": model_type})
    assert spec_groups(by_hand) == spec_groups(spec)
    measured = measure(new_config(model_type, arguments))
    assert counted_flops(spec, TOKENS, 0) == measured.prefill_flops
    assert counted_flops(spec, 1, TOKENS) == measured.decode_flops
    assert cache_bytes(spec, TOKENS) == measured.prefill_cache
    assert cache_bytes(spec, TOKENS + 1) == measured.decode_cache


def test_a_token_picks_no_more_experts_than_there_are_beside_those_that_do_nothing() -> None:
    """Of one expert and eight that pass their input on, a router picks two."""
    changes = {"n_routed_experts": 1, "moe_topk": 2}
    config, module = build("longcat_flash", _arguments("longcat_flash", changes))
    spec = load_model(saved(config))
    assert spec_groups(spec)[0] == module_groups(module)[0]
    config.zero_expert_num = 0
    with pytest.raises(LlmcalcError, match="moe_topk = 2: must be at most num_experts"):
        load_model(saved(config))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        # An element would be turned without another one.
        ("lfm3", {"head_dim": 3}),
        ("jetmoe", {"kv_channels": 3}),
        # Norms as wide as the model stand after heads that are not.
        ("olmoe", {"hidden_size": 65}),
    ],
)
def test_what_transformers_builds_and_cannot_run_is_refused(
    model_type: str, changes: dict[str, Any]
) -> None:
    config = new_config(model_type, _arguments(model_type, changes))
    with pytest.raises(LlmcalcError, match=r"must (be even|divide)"):
        load_model(saved(config))
    with pytest.raises(RuntimeError, match="size of tensor"):
        measure(config)


@pytest.mark.parametrize("field", ["attention_head_dim", "attention_hidden_size"])
def test_a_zamba_2_takes_the_widths_of_its_attention_from_its_file(field: str) -> None:
    arguments = _arguments("zamba2", {field: 40})
    _, module = build("zamba2", dict(arguments))
    spec = load_model({**arguments, "model_type": "zamba2"})
    assert spec_groups(spec)[0] == module_groups(module)[0]
