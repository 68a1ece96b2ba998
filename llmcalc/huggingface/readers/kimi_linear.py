"""Kimi Linear and Ling 3: Kimi delta attention, and latent attention."""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import experts, mlp_kinds
from llmcalc.huggingface.reading import (
    FULL,
    LINEAR,
    assemble,
    each_once,
    feed_forward,
    layer_indices,
    layer_kinds,
    pre_norm,
    rms_norm,
    rotary,
)
from llmcalc.spec.attention import LatentAttention, Rotary
from llmcalc.spec.model import Layer, ModelSpec, Part
from llmcalc.spec.recurrent import GatedDelta

__all__ = ["bailing_hybrid", "kimi_linear"]


def kimi_linear(config: Config, name: str) -> ModelSpec:
    """Read a Kimi Linear: Kimi delta attention, and latent attention without positions.

    A sub-dictionary ``linear_attn_config`` goes before the flat fields.
    Source: ``models/kimi_linear/configuration_kimi_linear.py``, ``modeling_kimi_linear.py``.
    """
    config.ignore("head_dim", "qk_head_dim")
    layers = config.num_layers()
    config.unfold(
        "linear_attn_config",
        {
            "head_dim": "linear_head_dim",
            "num_heads": "linear_num_heads",
            "short_conv_kernel_size": "linear_conv_kernel_dim",
            "full_attn_layers": "full_attn_layers",
            "kda_layers": "kda_layers",
        },
    )
    kinds = layer_kinds(config, layers, (LINEAR, FULL))
    if kinds is None and "full_attn_layers" in config and "kda_layers" in config:
        kinds = _kimi_plan(config, layers)
    if kinds is None:
        kinds = [FULL if index and index % 4 == 0 else LINEAR for index in range(layers)]
    first = "first_k_dense_replace" if "first_k_dense_replace" in config else 1
    return _kimi(
        config,
        name,
        list(zip(kinds, mlp_kinds(config, first), strict=True)),
        _kimi_delta(
            config,
            heads=config.size("linear_num_heads"),
            head=(head := config.size("linear_head_dim")),
            kernel=config.size("linear_conv_kernel_dim"),
            decay_dim=head,
        ),
        _latent(config, query_latent_dim=config.optional_size("q_lora_rank")),
    )


def _kimi_plan(config: Config, layers: int) -> list[str]:
    """Return the kind of every layer from two lists of its numbers, which begin with 1."""
    full = layer_indices(config, "full_attn_layers") or ()
    linear = layer_indices(config, "kda_layers") or ()
    if sorted((*full, *linear)) != list(range(1, layers + 1)):
        rule = f"must give each of the layers 1 to {layers}, together with full_attn_layers, once"
        raise InvalidValueError("kda_layers", linear, rule)
    return [FULL if number in full else LINEAR for number in range(1, layers + 1)]


def bailing_hybrid(config: Config, name: str) -> ModelSpec:
    """Read a Ling 3: Kimi delta attention, and latent attention with a gate for each head.

    A saved config gives ``head_dim`` another meaning, and ``linear_head_dim`` what it was.
    Source: ``models/bailing_hybrid/configuration_bailing_hybrid.py``,
    ``modeling_bailing_hybrid.py``.
    """
    config.ignore("qk_head_dim")
    layers = config.num_layers()
    kinds = layer_kinds(config, layers, (LINEAR, FULL))
    if kinds is None:
        size = config.size("layer_group_size")
        kinds = [FULL if (index + 1) % size == 0 else LINEAR for index in range(layers)]
    fields = (
        ("linear_num_heads", "num_attention_heads"),
        ("linear_head_dim", "head_dim"),
        ("linear_conv_kernel_dim", "short_conv_kernel_size"),
    )
    heads, head, kernel = (config.extra_size(own) or config.size(other) for own, other in fields)
    return _kimi(
        config,
        name,
        list(zip(kinds, mlp_kinds(config, "first_k_dense_replace"), strict=True)),
        _kimi_delta(config, heads=heads, head=head, kernel=kernel, decay_dim=0),
        _latent(config, positions=rotary(config), output_gate=True),
    )


def _kimi(
    config: Config,
    name: str,
    plan: list[tuple[str, bool]],
    delta: GatedDelta,
    latent: LatentAttention,
) -> ModelSpec:
    norm = rms_norm(config)

    def make(kind: tuple[str, bool]) -> Layer:
        mixer, has_experts = kind
        inner: Part = feed_forward(config)
        if has_experts:
            inner = experts(
                config,
                "num_experts",
                top_k="num_experts_per_token",
                shared_count="num_shared_experts",
                balanced=True,
            )
        return pre_norm(norm, delta if mixer == LINEAR else latent, inner)

    return assemble(
        config,
        name,
        each_once(plan, make),
        final_norm=norm,
        max_positions="model_max_length",
        may_tie=False,
    )


def _kimi_delta(
    config: Config, *, heads: int, head: int, kernel: int, decay_dim: int
) -> GatedDelta:
    return GatedDelta(
        key_heads=heads,
        value_heads=heads,
        key_dim=head,
        value_dim=head,
        kernel=kernel,
        norm=rms_norm(config),
        decay_dim=decay_dim,
    )


def _latent(
    config: Config,
    *,
    query_latent_dim: int | None = None,
    positions: Rotary | None = None,
    output_gate: bool = False,
) -> LatentAttention:
    return LatentAttention(
        query_heads=config.required_size("num_attention_heads"),
        nope_dim=config.size("qk_nope_head_dim"),
        rope_dim=config.size("qk_rope_head_dim"),
        value_dim=config.size("v_head_dim"),
        latent_dim=config.size("kv_lora_rank"),
        query_latent_dim=query_latent_dim,
        norm=rms_norm(config),
        bias=config.flag("attention_bias"),
        rotary=positions,
        output_gate="head" if output_gate else None,
    )
