"""Llama-Nemotron, whose layers were searched for: some lack a part, or have less of it."""

from __future__ import annotations

from collections.abc import Mapping

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    assemble,
    each_once,
    feed_forward,
    head_dim,
    rms_norm,
    rotary,
)
from llmcalc.spec.attention import Attention
from llmcalc.spec.model import Block, Layer, ModelSpec, Part

__all__ = ["nemotron_nas"]


def nemotron_nas(config: Config, name: str) -> ModelSpec:
    """Read a Llama-Nemotron, whose layers were searched for: some lack a part or have less of it.

    Source: ``modeling_decilm.py`` in nvidia/Llama-3_3-Nemotron-Super-49B-v1.
    """
    config.pass_over("num_key_value_heads", "intermediate_size")
    layers, norm = config.num_layers(), rms_norm(config)
    embed, heads = config.required_size("hidden_size"), config.required_size("num_attention_heads")
    width = head_dim(embed, heads)
    bias, inner_bias = config.flag("attention_bias"), config.flag("mlp_bias")
    blocks = config.given("block_configs")
    if not isinstance(blocks, list | tuple) or len(blocks) != layers:
        raise InvalidValueError("block_configs", blocks, f"must describe all {layers} layers")

    def make(plan: tuple[int | None, int | None]) -> Layer:
        kv_heads, inner = plan
        parts: list[Part] = []
        if kv_heads is not None:
            parts.append(
                Attention(
                    query_heads=heads,
                    kv_heads=kv_heads,
                    head_dim=width,
                    query_bias=bias,
                    key_bias=bias,
                    value_bias=bias,
                    output_bias=bias,
                    rotary=rotary(config),
                )
            )
        if inner is not None:
            parts.append(feed_forward(config, inner_dim=inner, bias=inner_bias))
        return Layer(blocks=tuple(Block(part=part, norm=norm) for part in parts))

    plans = [(_kv_heads(block, heads), _inner(block, embed)) for block in blocks]
    return assemble(config, name, each_once(plans, make), final_norm=norm)


def _part(block: object, part: str) -> Mapping[str, object] | None:
    """Return what a layer says of one of its parts, `None` where it has none."""
    said = block.get(part) if isinstance(block, Mapping) else None
    if not isinstance(said, Mapping):
        raise InvalidValueError("block_configs", block, f"must have an object for {part}")
    if said.get("no_op"):
        return None
    for option in ("replace_with_linear", "sparsify", "window_length", "num_sink_tokens"):
        if said.get(option):
            raise InvalidValueError("block_configs", said, f"must have no {option}")
    return said


def _kv_heads(block: object, heads: int) -> int | None:
    said = _part(block, "attention")
    if said is None:
        return None
    group = said.get("n_heads_in_group")
    if type(group) is not int or group < 1 or heads % group:
        rule = f"must be a divisor of num_attention_heads ({heads})"
        raise InvalidValueError("block_configs: n_heads_in_group", group, rule)
    return heads // group


def _inner(block: object, embed: int) -> int | None:
    """Return the width of a feed-forward: two thirds of a multiple, rounded up to 256."""
    said = _part(block, "ffn")
    if said is None:
        return None
    factor = said.get("ffn_mult")
    if (type(factor) is not int and type(factor) is not float) or not 0 < factor <= 1000:
        raise InvalidValueError("block_configs: ffn_mult", factor, "must be a positive number")
    return -(-int(2 * factor * embed / 3) // 256) * 256
