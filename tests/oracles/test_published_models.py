"""Configurations whose counts were measured on transformers' modules or are published."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from llmcalc import huggingface, load_model, memory, roofline
from llmcalc.spec import Conv, Linear, Mix, Scan
from tests.truth import rows

SUPPORTED = set(huggingface.supported())


def _rows(name: str) -> list[Any]:
    return [
        pytest.param(row, id=row.get("model_id") or row["model_type"])
        for row in rows(name)
        if row["model_type"] in SUPPORTED
    ]


@pytest.mark.parametrize("row", _rows("real_models") + _rows("default_configs"))
def test_parameters_are_those_of_the_module(row: dict[str, Any]) -> None:
    spec = load_model(row["config"])
    assert memory.parameters(spec).total == row["n_params"]
    twice = memory.parameters(spec, tied_head="twice")
    assert twice.total == row["n_params_with_tied_head_counted"]
    assert dict(twice.by()).get("head", 0) - dict(memory.parameters(spec).by()).get("head", 0) == (
        twice.total - row["n_params"]
    )


#: Our group of each group of the measured breakdown.
GROUPS = {
    "embeddings": "embeddings",
    "lm_head": "head",
    "mixer": "attention",
    "mixer_inner_norms": "attention",
    "mlp": "feed_forward",
    "moe_routed_experts": "experts",
    "moe_router": "experts",
    "moe_shared": "experts",
    "norms": "norms",
    "other": "other",
}


#: Groups that are compared as one sum, and why: there, the recorded ones follow names and not what
#: the parameters do.
JOINED: dict[str, tuple[tuple[str, ...], str]] = {
    "afmoe": (
        ("feed_forward", "experts"),
        "the router's correction is mlp.expert_bias",
    ),
    "bitnet": (
        ("feed_forward", "norms"),
        "the feed-forward's inner norm is mlp.ffn_sub_norm",
    ),
    "axk2": (
        ("attention", "feed_forward", "norms"),
        "the gates of norms are input_layernorm.mlp and post_attention_layernorm.mlp",
    ),
    "granitemoehybrid": (
        ("feed_forward", "experts"),
        "its dense variant has no experts, but calls its feed-forward a shared one",
    ),
    "qwen4_exp_text": (
        ("attention", "feed_forward", "norms", "other"),
        "the gates of hidden states are attn_hyper_connection and mlp_hyper_connection",
    ),
    "nemotron_h": (
        ("attention", "feed_forward", "experts"),
        "every part of a layer is called mixer",
    ),
    "zamba": (
        ("attention", "norms"),
        "the norm before some recurrences is mamba_decoder.input_layernorm",
    ),
    "zamba2": (
        ("attention", "norms"),
        "the norm before some recurrences is mamba_decoder.input_layernorm",
    ),
    "inkling2_text": (
        ("attention", "feed_forward", "other"),
        "convolutions are attn_sconv and mlp_sconv, the router's factor is in mlp",
    ),
    "inkling_text": (
        ("attention", "feed_forward", "experts", "other"),
        "convolutions are attn_sconv and mlp_sconv, the router's factor is in mlp",
    ),
    "zaya": (
        ("attention", "feed_forward", "experts", "norms", "other"),
        "factors of residuals are post_attention_..., the router is mlp.gate with norms of its own",
    ),
    "deepseek_v4": (
        ("attention", "feed_forward", "other"),
        "the hyper-connections are attn_hc and ffn_hc",
    ),
    "hy_v4": (
        ("attention", "feed_forward", "other"),
        "the hyper-connections are attn_hc and ffn_hc",
    ),
    "dbrx": (
        ("attention", "norms"),
        "norm_attn_norm holds the norms of the block",
    ),
    "doge": (
        ("attention", "other"),
        "the factors of residuals are input_residual and post_attention_residual",
    ),
    "hunyuan_v1_moe": (
        ("feed_forward", "experts"),
        "the router is mlp.gate.wg",
    ),
    "jetmoe": (
        ("attention", "feed_forward", "experts"),
        "the experts of attention are self_attention.experts, the bias of the others mlp.bias",
    ),
    "longcat_flash": (
        ("attention", "norms"),
        "one of the two pairs of norms in a layer follows the attention's name",
    ),
}


def _joined(groups: dict[str, int], model_type: str) -> dict[str, int]:
    """Add up the groups that are compared as one sum; leave out the empty ones."""
    result: dict[str, int] = {}
    together, _ = JOINED.get(model_type, ((), ""))
    for group, size in groups.items():
        name = " + ".join(together) if group in together else group
        result[name] = result.get(name, 0) + size
    return {group: size for group, size in result.items() if size}


@pytest.mark.parametrize("row", _rows("real_models") + _rows("default_configs"))
def test_groups_are_those_of_the_module(row: dict[str, Any]) -> None:
    expected: dict[str, int] = {}
    for group, size in row["breakdown"].items():
        expected[GROUPS[group]] = expected.get(GROUPS[group], 0) + size
    groups = dict(memory.parameters(load_model(row["config"])).by())
    groups["attention"] = groups.get("attention", 0) + groups.pop("recurrent", 0)
    model_type = row["model_type"]
    assert _joined(groups, model_type) == _joined(expected, model_type)


@pytest.mark.parametrize(
    "row",
    [
        param
        for param in _rows("real_models") + _rows("default_configs")
        if param.values[0]["n_active_params"] is not None
    ],
)
def test_active_parameters_are_those_of_the_module(row: dict[str, Any]) -> None:
    spec = load_model(row["config"])
    assert memory.active_parameters(spec).total == row["n_active_params"]


def _is_plain(row: dict[str, Any]) -> bool:
    """Whether transformers computes what the model's definition says, and no more."""
    spec = load_model(row["config"])
    items = [entry.item for entry in spec.ledger.entries]
    return row["model_type"] != "longcat_flash" and not any(
        isinstance(item, Conv | Scan)
        or (isinstance(item, Linear) and item.in_transformers is not None)
        or (isinstance(item, Mix) and item.in_transformers is not None)
        for item in items
    )


@pytest.mark.parametrize(
    "row", [param for param in _rows("tiny_measured") if _is_plain(param.values[0])]
)
def test_flops_are_those_of_the_counter(row: dict[str, Any]) -> None:
    spec = load_model(row["config"])
    measured = row["flops"]
    prefill = roofline.flops(
        spec, batch=measured["batch"], new=measured["seq"], past=0, causal=False, logits="all"
    )
    assert prefill.total == measured["prefill_nocache"]
    if "decode1_with_cache_past24" in measured:  # openai-gpt has no cache there
        decode = roofline.flops(
            spec, batch=measured["batch"], new=1, past=measured["seq"], causal=False, logits="all"
        )
        assert decode.total == measured["decode1_with_cache_past24"]


@pytest.mark.parametrize(
    ("model_id", "bytes_per_token"),
    [
        # layers * 2 * kv heads * head dim * 2 bytes, by hand from the published shapes
        ("meta-llama/Meta-Llama-3-8B", 32 * 2 * 8 * 128 * 2),
        ("meta-llama/Meta-Llama-3-70B", 80 * 2 * 8 * 128 * 2),
        ("meta-llama/Llama-3.2-1B", 16 * 2 * 8 * 64 * 2),
        ("mistralai/Mistral-7B-v0.3", 32 * 2 * 8 * 128 * 2),
        ("Qwen/Qwen2.5-7B", 28 * 2 * 4 * 128 * 2),
        ("openai-community/gpt2", 12 * 2 * 12 * 64 * 2),
    ],
)
def test_cache_bytes_per_token_of_well_known_models(model_id: str, bytes_per_token: int) -> None:
    [row] = [row for row in rows("real_models") if row["model_id"] == model_id]
    spec = load_model(row["config"])
    assert memory.kv_cache_bytes(spec, context=1, kv="bf16").total == bytes_per_token


def test_a_config_is_read_without_torch_transformers_or_numpy() -> None:
    program = """
import sys
from llmcalc import GiB, load_model, memory
spec = load_model({"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "vocab_size": 128256})
assert memory.parameters(spec).total == 8030261248
assert memory.max_batch_size(
    spec, device_memory=80 * GiB, context=1024, weights="bf16", kv="bf16") == 520
heavy = {"torch", "transformers", "numpy", "matplotlib", "hypothesis", "safetensors", "tabulate"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
