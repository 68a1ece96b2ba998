"""LFM2 and LFM3: short convolutions, and attention in some layers."""

from __future__ import annotations

from typing import Final

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import dense_first
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    assemble,
    attention,
    biases,
    each_once,
    layer_indices,
    layer_kinds,
    pre_norm,
    rms_norm,
    rotary,
    span_of,
)
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import Block, Layer, ModelSpec, Part
from llmcalc.spec.recurrent import ShortConvolution

__all__ = ["lfm2", "lfm2_moe", "lfm3"]

_CONV: Final = "conv"


def lfm2(config: Config, name: str) -> ModelSpec:
    """Read an LFM2: short convolutions, and attention in some layers.

    Source: ``models/lfm2/configuration_lfm2.py``, ``modeling_lfm2.py``.
    """
    config.prefer("block_ff_dim", "intermediate_size")
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (_CONV, FULL))
    if plan is None:
        full = layer_indices(config, "full_attn_idxs")
        plan = [FULL if full is None or index in full else _CONV for index in range(layers)]
    inner = config.required_size("intermediate_size")
    if config.flag("block_auto_adjust_ff_dim"):
        inner = 2 * inner // 3
        if config.get("block_ffn_dim_multiplier") is not None:
            multiple = config.size("block_multiple_of")
            inner = int(config.number("block_ffn_dim_multiplier") * inner)
            inner = -(-inner // multiple) * multiple
    return _lfm2(config, name, plan, [False] * layers, inner)


def lfm2_moe(config: Config, name: str) -> ModelSpec:
    """Read an LFM2 with experts in all but the first layers (``modeling_lfm2_moe.py``)."""
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (_CONV, FULL))
    if plan is None:
        raise InvalidValueError("layer_types", None, "must list the kind of every layer")
    sparse = dense_first(config, "num_dense_layers")
    return _lfm2(config, name, plan, sparse, config.required_size("intermediate_size"))


def _lfm2(
    config: Config, name: str, kinds: list[str], sparse: list[bool], inner_dim: int
) -> ModelSpec:
    config.prefer("tie_embedding", "tie_word_embeddings")
    norm = rms_norm(config, "norm_eps")

    def make(kind: tuple[str, bool]) -> Layer:
        mixer, has_experts = kind
        part: Part
        if mixer == _CONV:
            part = ShortConvolution(
                kernel=config.size("conv_L_cache"), bias=config.flag("conv_bias")
            )
        else:
            part = attention(config, positions=rotary(config), query_norm=norm, key_norm=norm)
        inner: Part = FeedForward(inner_dim=inner_dim, gated=True, activation="silu")
        if has_experts:
            width = config.required_size("moe_intermediate_size")
            number = config.required_size("num_experts")
            inner = Experts(
                num_experts=number,
                balanced_choices=number if config.flag("use_expert_bias") else None,
                experts_per_token=config.required_size("num_experts_per_tok"),
                expert=FeedForward(inner_dim=width, gated=True, activation="silu"),
            )
        return pre_norm(norm, part, inner)

    plan = zip(kinds, sparse, strict=True)
    return assemble(config, name, each_once(plan, make), final_norm=norm)


def lfm3(config: Config, name: str) -> ModelSpec:
    """Read an LFM3: short convolutions, and gated attention, with or without a window.

    Source: ``models/lfm3/configuration_lfm3.py``, ``modeling_lfm3.py``.
    """
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (_CONV, FULL, SLIDING))
    if plan is None:
        every = {0: SLIDING, 2: FULL}
        plan = [every.get(index % 4, _CONV) if index else _CONV for index in range(layers)]
    norm = rms_norm(config, "norm_eps")
    post_norm = norm if config.flag("use_sandwich_norm") else None
    positions = {
        FULL: rotary(config, kind=FULL, theta=1_000_000.0, fraction=0.5),
        SLIDING: rotary(config, kind=SLIDING, theta=10_000.0, fraction=1.0),
    }
    inner = FeedForward(
        inner_dim=config.required_size("intermediate_size"), gated=True, activation="silu"
    )

    def make(kind: str) -> Layer:
        part: Part
        if kind == _CONV:
            part = ShortConvolution(
                kernel=config.size("conv_L_cache"), bias=config.flag("conv_bias")
            )
        else:
            part = attention(
                config,
                span=span_of(config, kind),
                positions=positions[kind],
                query_norm=norm,
                key_norm=norm,
                output_gate="head" if config.flag("use_attention_gate") else None,
                **biases(config),
            )
        return Layer(
            blocks=tuple(Block(part=p, norm=norm, post_norm=post_norm) for p in (part, inner))
        )

    return assemble(config, name, each_once(plan, make), final_norm=norm)
