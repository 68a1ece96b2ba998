"""Hybrids of Mamba and attention: Bamba, Falcon-H1, Granite 4, Jamba."""

from __future__ import annotations

from collections.abc import Callable

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mamba import expanded, mamba2_part, mamba_part
from llmcalc.huggingface.readers.mixture import experts, shared_expert
from llmcalc.huggingface.reading import (
    FULL,
    LINEAR,
    assemble,
    attention,
    biases,
    each_once,
    feed_forward,
    layer_indices,
    layer_kinds,
    pre_norm,
    rms_norm,
    rotary,
)
from llmcalc.spec.model import Block, Layer, ModelSpec, Part
from llmcalc.spec.parallel import ParallelBlock
from llmcalc.spec.recurrent import Mamba2

__all__ = ["bamba", "falcon_h1", "granitemoehybrid", "jamba"]


def bamba(config: Config, name: str) -> ModelSpec:
    """Read a Bamba: attention in the listed layers (``models/bamba/modeling_bamba.py``)."""
    norm = rms_norm(config)
    full = layer_indices(config, "attn_layer_indices") or ()
    plan = [FULL if index in full else LINEAR for index in range(config.num_layers())]
    inner = feed_forward(config, bias=config.flag("mlp_bias"))

    def make(kind: str) -> Layer:
        if kind == LINEAR:
            return pre_norm(norm, _ibm_mamba2(config), inner)
        return pre_norm(
            norm, attention(config, positions=rotary(config, fraction=0.5), **biases(config)), inner
        )

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def falcon_h1(config: Config, name: str) -> ModelSpec:
    """Read a Falcon-H1: Mamba 2 and attention side by side (``modeling_falcon_h1.py``)."""
    norm = rms_norm(config)
    inner = config.optional_size("mamba_d_ssm")
    recurrent = mamba2_part(
        config,
        inner=expanded(config, "mamba_expand") if inner is None else inner,
        norm=norm if config.optional_flag("mamba_rms_norm") else None,
        bias=config.optional_flag("mamba_proj_bias"),
        output_bias=config.optional_flag("projectors_bias"),
    )
    attends = attention(config, positions=rotary(config), **biases(config))
    mixers = ParallelBlock(norm=norm, blocks=(Block(part=recurrent), Block(part=attends)))
    inner_part = feed_forward(config, bias=config.flag("mlp_bias"))
    layer = Layer(blocks=(mixers, Block(part=inner_part, norm=norm)))
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)


def granitemoehybrid(config: Config, name: str) -> ModelSpec:
    """Read a Granite 4: every layer has a shared feed-forward, and experts if there are any.

    Source: ``models/granitemoehybrid/modeling_granitemoehybrid.py``.
    """
    norm = rms_norm(config)
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (LINEAR, FULL)) or [LINEAR] * layers
    shared = shared_expert(config, "shared_intermediate_size")
    inner: Part = shared
    if config.count("num_local_experts"):
        inner = experts(config, "num_local_experts", "intermediate_size", shared=shared)

    turned = config.get("position_embedding_type") == "rope"
    positions = rotary(config) if turned else None

    def make(kind: str) -> Layer:
        if kind == LINEAR:
            return pre_norm(norm, _ibm_mamba2(config), inner)
        return pre_norm(norm, attention(config, positions=positions, **biases(config)), inner)

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def jamba(config: Config, name: str) -> ModelSpec:
    """Read a Jamba: attention and experts in every so many layers (``modeling_jamba.py``)."""
    norm = rms_norm(config)
    several = config.count("num_experts") > 1
    is_full = _every(config, "attn_layer_period", "attn_layer_offset")
    has_experts = _every(config, "expert_layer_period", "expert_layer_offset")
    plan = [
        (is_full(index), several and has_experts(index)) for index in range(config.num_layers())
    ]

    def make(kind: tuple[bool, bool]) -> Layer:
        full, sparse = kind
        inner: Part = feed_forward(config)
        if sparse:
            inner = experts(config, "num_experts", "intermediate_size")
        mixer = attention(config) if full else mamba_part(config, norm=norm)
        return pre_norm(norm, mixer, inner)

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def _ibm_mamba2(config: Config) -> Mamba2:
    bias = config.optional_flag("mamba_proj_bias")
    return mamba2_part(
        config,
        inner=expanded(config, "mamba_expand"),
        norm=rms_norm(config),
        bias=bias,
        output_bias=bias,
    )


def _every(config: Config, period: str, offset: str) -> Callable[[int], bool]:
    """Return which layers a period and an offset pick."""
    step, first = config.size(period), config.count(offset)
    if first >= step:
        raise InvalidValueError(offset, first, f"must be below {period} ({step})")
    return lambda index: index % step == first
