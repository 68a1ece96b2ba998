"""OLMo Hybrid: the gated delta rule, and attention with its norms after the parts."""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    FULL,
    LINEAR,
    assemble,
    attention,
    biases,
    each_once,
    feed_forward,
    layer_kinds,
    pre_norm,
    rms_norm,
)
from llmcalc.spec.model import Block, Layer, ModelSpec
from llmcalc.spec.recurrent import GatedDelta

__all__ = ["olmo_hybrid"]


def olmo_hybrid(config: Config, name: str) -> ModelSpec:
    """Read an OLMo Hybrid, whose attention layers have their norms after the parts.

    Source: ``models/olmo_hybrid/configuration_olmo_hybrid.py``, ``modeling_olmo_hybrid.py``.
    """
    norm = rms_norm(config)
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (LINEAR, FULL))
    if plan is None:
        plan = [FULL if index % 4 == 3 else LINEAR for index in range(layers)]
        if FULL not in plan:
            plan[-1] = FULL
    if len(set(plan)) == 1:
        raise InvalidValueError("layer_types", plan[0], "must not be the kind of every layer")
    embed, heads = config.required_size("hidden_size"), config.required_size("num_attention_heads")
    key_heads = config.optional_size("linear_num_key_heads") or heads
    key = config.optional_size("linear_key_head_dim") or 3 * embed // (4 * key_heads)
    inner = feed_forward(config)

    def make(kind: str) -> Layer:
        if kind == LINEAR:
            part = GatedDelta(
                key_heads=key_heads,
                value_heads=config.optional_size("linear_num_value_heads") or heads,
                key_dim=key,
                value_dim=config.optional_size("linear_value_head_dim") or 2 * key,
                kernel=config.size("linear_conv_kernel_dim"),
                norm=norm,
            )
            return pre_norm(norm, part, inner)
        mixer = attention(
            config, **biases(config), query_norm=norm, key_norm=norm, norm_axes="heads"
        )
        return Layer(blocks=tuple(Block(part=part, post_norm=norm) for part in (mixer, inner)))

    return assemble(config, name, each_once(plan, make), final_norm=norm)
