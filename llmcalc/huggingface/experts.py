"""Readers of mixtures of experts.

A reader takes a `Config` and the model's name and returns a `ModelSpec`. Each is written from the
modelling source of transformers, which it names.
"""

from __future__ import annotations

from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    assemble,
    attention,
    feed_forward,
    pre_norm,
    rms_norm,
    rotary,
)
from llmcalc.spec.experts import Experts
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.spans import Full, Window

__all__ = ["mixtral"]


def mixtral(config: Config, name: str) -> ModelSpec:
    """Read a Mixtral (``models/mixtral/modeling_mixtral.py``)."""
    window = config.optional_size("sliding_window")
    norm = rms_norm(config)
    layer = pre_norm(
        norm,
        attention(
            config,
            span=Full() if window is None else Window(window),
            positions=rotary(config),
        ),
        Experts(
            num_experts=config.size("num_local_experts"),
            experts_per_token=config.size("num_experts_per_tok"),
            expert=feed_forward(config),
        ),
    )
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)
