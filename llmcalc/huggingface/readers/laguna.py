"""Laguna: gated attention, perhaps with other numbers of heads in each layer."""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import experts, mlp_kinds, shared_expert
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    assemble,
    each_once,
    feed_forward,
    layer_kinds,
    pre_norm,
    rms_norm,
    rotary,
    span_of,
)
from llmcalc.spec.attention import Attention
from llmcalc.spec.experts import Experts
from llmcalc.spec.model import Layer, ModelSpec, Part

__all__ = ["laguna"]


def laguna(config: Config, name: str) -> ModelSpec:
    """Read a Laguna: gated attention, perhaps with other numbers of heads in each layer.

    Source: ``models/laguna/configuration_laguna.py``, ``modeling_laguna.py``.
    """
    heads, layers, norm = _heads(config), config.num_layers(), rms_norm(config)
    kinds = layer_kinds(config, layers, (FULL, SLIDING)) or [FULL] * layers
    gating = config.get("gating")
    if not isinstance(gating, bool | str):
        raise InvalidValueError("gating", gating, "must be true, false or a string")
    bias = config.flag("attention_bias")
    kv_heads, width = config.required_size("num_key_value_heads"), config.size("head_dim")

    def make(plan: tuple[int, str, bool]) -> Layer:
        queries, kind, has_experts = plan
        mixer = Attention(
            query_heads=queries,
            kv_heads=kv_heads,
            head_dim=width,
            query_bias=bias,
            key_bias=bias,
            value_bias=bias,
            output_bias=bias,
            rotary=rotary(config, kind=kind, fraction=0.5 if kind == FULL else 1.0),
            span=span_of(config, kind),
            query_norm=norm,
            key_norm=norm,
            output_gate="head" if gating in (True, "per-head") else "element",
        )
        inner: Part = _routed(config) if has_experts else feed_forward(config)
        return pre_norm(norm, mixer, inner)

    plans = zip(heads, kinds, mlp_kinds(config, 1), strict=True)
    return assemble(config, name, each_once(plans, make), final_norm=norm)


def _heads(config: Config) -> list[int]:
    """Return the number of query heads in every layer: one for all, or a list."""
    layers, field = config.num_layers(), "num_attention_heads_per_layer"
    heads = config.get(field)
    if heads is None:
        return [config.required_size("num_attention_heads")] * layers
    if (
        not isinstance(heads, list | tuple)
        or len(heads) != layers
        or not all(type(number) is int for number in heads)
    ):
        raise InvalidValueError(field, heads, f"must list one integer for each of {layers}")
    return list(heads)


def _routed(config: Config) -> Experts:
    return experts(config, "num_experts", shared=shared_expert(config), router_correction=True)
