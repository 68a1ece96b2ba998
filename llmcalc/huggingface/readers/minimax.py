"""MiniMax-01 and M1: lightning attention in every other layer."""

from __future__ import annotations

import attrs

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import experts
from llmcalc.huggingface.reading import (
    FULL,
    LINEAR,
    activation,
    assemble,
    attention,
    each_once,
    head_dim,
    layer_kinds,
    pre_norm,
    rms_norm,
    rotary,
    window_span,
)
from llmcalc.spec.model import Layer, ModelSpec
from llmcalc.spec.recurrent import LinearAttention
from llmcalc.spec.spans import Full

__all__ = ["minimax"]


def minimax(config: Config, name: str) -> ModelSpec:
    """Read a MiniMax-01: lightning attention in every other layer (``modeling_minimax.py``)."""
    norm = rms_norm(config)
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (LINEAR, FULL)) or _attention_types(config, layers)
    if plan is None:
        plan = [LINEAR if index % 2 else FULL for index in range(layers)]
    config.pass_over("postnorm", "rotary_dim", "shared_moe_mode")
    shared = config.given("shared_intermediate_size")
    if shared not in (None, 0, [0]):
        raise InvalidValueError("shared_intermediate_size", shared, "must be 0: no shared expert")
    inner = experts(config, "num_local_experts", "intermediate_size")
    heads, width = config.required_size("num_attention_heads"), config.optional_size("head_dim")
    linear = LinearAttention(
        heads=heads,
        head_dim=width or head_dim(config.required_size("hidden_size"), heads, rounded=True),
        norm=norm,
        chunk=config.size("block_size"),
        activation=activation(config, "hidden_act"),
    )

    def make(kind: str) -> Layer:
        if kind == LINEAR:
            return pre_norm(norm, linear, inner)
        full = attention(config, span=window_span(config), positions=rotary(config))
        # The cache of transformers keeps what the window hides.
        full = attrs.evolve(full, transformers_cache=(full.kv_heads, Full()))
        return pre_norm(norm, full, inner)

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def _attention_types(config: Config, layers: int) -> list[str] | None:
    """Return the kind of every layer as the models' own configs list it: 1 for full attention."""
    given = config.given("attn_type_list")
    if given is None:
        return None
    if not isinstance(given, list | tuple) or len(given) != layers:
        raise InvalidValueError("attn_type_list", given, f"must list 0 or 1 for {layers} layers")
    if any(type(kind) is not int or kind not in {0, 1} for kind in given):
        raise InvalidValueError("attn_type_list", given, "must list 0 or 1")
    return [FULL if kind else LINEAR for kind in given]
