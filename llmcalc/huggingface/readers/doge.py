"""Doge: attention that keeps so many positions, and perhaps experts of one vector each."""

from __future__ import annotations

from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    assemble,
    attention,
    biases,
    feed_forward,
    head_norms,
    rms_norm,
    rotary,
    window_span,
)
from llmcalc.spec.model import Block, Layer, ModelSpec, Part
from llmcalc.spec.retrieved import MaskedAttention, RetrievedExperts
from llmcalc.spec.spans import Full, TopK

__all__ = ["doge"]


def doge(config: Config, name: str) -> ModelSpec:
    """Read a Doge: attention that keeps so many positions, maybe experts of one vector each.

    Source: ``models/doge/configuration_doge.py``, ``modeling_doge.py``.
    """
    norm = rms_norm(config)
    window = window_span(config)
    bias = config.flag("attention_bias")
    mixer = MaskedAttention(
        attention=attention(
            config,
            span=TopK(config.size("keep_window_size")) if window == Full() else window,
            positions=rotary(config),
            **head_norms(config),
            **biases(config),
        ),
        bias=bias,
    )
    shared = feed_forward(config, bias=config.flag("mlp_bias"))
    inner: Part = shared
    if config.flag("is_moe"):
        inner = RetrievedExperts(
            num_experts=config.size("num_experts"),
            experts_per_token=config.size("num_experts_per_tok"),
            shared=shared,
        )
    layer = Layer(blocks=tuple(Block(part=part, norm=norm, scaled=True) for part in (mixer, inner)))
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)
