"""Randomly altered configurations, held against modules of transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from llmcalc import load_model, memory


@st.composite
def llama_like(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """Draw a configuration in which every field that changes a shape may change."""
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4))
    config: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": heads * 2 * draw(st.integers(1, 16)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([kv_heads, heads, 1])),
        "intermediate_size": draw(st.integers(1, 200)),
        "vocab_size": draw(st.integers(3, 300)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if draw(st.booleans()):
        config["head_dim"] = 2 * draw(st.integers(1, 24))
    if model_type == "llama":
        config["attention_bias"] = draw(st.booleans())
        config["mlp_bias"] = draw(st.booleans())
    elif model_type == "mistral":
        config["sliding_window"] = draw(st.none() | st.integers(1, 64))
    else:
        config["use_sliding_window"] = draw(st.booleans())
        config["sliding_window"] = draw(st.none() | st.integers(1, 64))
        config["max_window_layers"] = draw(st.integers(0, 5))
    return config


@st.composite
def gpt2_like(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 6))
    return {
        "model_type": "gpt2",
        "n_embd": heads * draw(st.integers(1, 16)),
        "n_layer": draw(st.integers(1, 4)),
        "n_head": heads,
        "n_inner": draw(st.none() | st.integers(1, 99)),
        "n_positions": draw(st.integers(1, 99)),
        "vocab_size": draw(st.integers(3, 300)),
        "tie_word_embeddings": draw(st.booleans()),
    }


def module_groups(config: dict[str, Any]) -> dict[str, int]:
    """Build the module without weights and sum its parameters by group, read from their names."""
    with torch.device("meta"):
        config_object = AutoConfig.for_model(**config)
        module = AutoModelForCausalLM.from_config(config_object)  # type: ignore[no-untyped-call]
    groups: dict[str, int] = {}
    for name, weight in module.named_parameters():
        if "embed_tokens" in name or "wte" in name or "wpe" in name:
            group = "embeddings"
        elif "lm_head" in name:
            group = "head"
        elif "attn." in name:
            group = "attention"
        elif "mlp." in name:
            group = "feed_forward"
        else:
            assert "norm" in name or "ln_" in name, name
            group = "norms"
        groups[group] = groups.get(group, 0) + weight.numel()
    return groups


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "gpt2"])
def test_any_config_counts_as_its_module_group_by_group(model_type: str) -> None:
    drawn = gpt2_like() if model_type == "gpt2" else llama_like(model_type)

    @settings(max_examples=25)
    @given(drawn)
    def check(config: dict[str, Any]) -> None:
        assert dict(memory.parameters(load_model(config)).by()) == module_groups(config)

    check()
