"""RecurrentGemma: a repeated pattern of recurrences and attention with a window."""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    activation,
    assemble,
    attention,
    each_once,
    feed_forward,
    pre_norm,
    rms_norm,
    rotary,
)
from llmcalc.spec.model import Layer, ModelSpec, Part
from llmcalc.spec.recurrent import GatedLinearRecurrence
from llmcalc.spec.spans import Window

__all__ = ["recurrent_gemma"]


def recurrent_gemma(config: Config, name: str) -> ModelSpec:
    """Read a RecurrentGemma: a repeated pattern of recurrences and attention with a window.

    Source: ``models/recurrent_gemma/modeling_recurrent_gemma.py``.
    """
    config.ignore("final_w_init_variance_scale")
    norm = rms_norm(config)
    layers = config.num_layers()
    embed, heads = config.required_size("hidden_size"), config.required_size("num_attention_heads")
    pattern = config.get("block_types")
    known = ("recurrent", "attention")
    if (
        not isinstance(pattern, list | tuple)
        or not pattern
        or not set(map(str, pattern)) <= {*known}
    ):
        raise InvalidValueError("block_types", pattern, f"must list {' and '.join(known)} blocks")
    plan = [pattern[index % len(pattern)] for index in range(layers)]
    inner = config.required_size("intermediate_size") // 2
    width = config.optional_size("lru_width") or embed
    if width % heads:
        raise InvalidValueError(
            "lru_width", width, f"must be a multiple of num_attention_heads ({heads})"
        )
    dense = feed_forward(config, inner_dim=inner, bias=True, activation_field="hidden_activation")

    def make(kind: str) -> Layer:
        part: Part
        if kind == "recurrent":
            part = GatedLinearRecurrence(
                heads=heads,
                head_dim=width // heads,
                kernel=config.size("conv1d_width"),
                activation=activation(config, "hidden_activation"),
            )
        else:
            part = attention(
                config,
                span=Window(config.size("attention_window_size")),
                positions=rotary(config, fraction=0.5),
                query_key_value_bias=config.flag("attention_bias"),
                output_bias=True,
            )
        return pre_norm(norm, part, dense)

    return assemble(config, name, each_once(plan, make), final_norm=norm, max_positions=None)
