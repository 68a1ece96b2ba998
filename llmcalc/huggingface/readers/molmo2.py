"""Molmo 2: its language model, with tokens that are never predicted."""

from __future__ import annotations

from typing import Final, Literal

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import assemble, attention, feed_forward, rms_norm, rotary
from llmcalc.spec.model import Block, Layer, ModelSpec
from llmcalc.spec.parts import Embedding

__all__ = ["molmo2"]

#: What a norm of queries and keys is over, by the model that it was taken from.
_NORM_AXES: Final[dict[str, Literal["head", "heads"]]] = {"qwen3": "head", "olmo": "heads"}


def molmo2(config: Config, name: str) -> ModelSpec:
    """Read the language model of a Molmo 2, some of whose tokens are never predicted.

    Source: ``models/molmo2/configuration_molmo2.py``, ``modeling_molmo2.py``.
    """
    config.pass_over("rope_scaling_layers")
    norm = rms_norm(config)
    axes = _NORM_AXES.get(config.text("qk_norm_type"))
    if axes is None:
        rule = "must be 'qwen3' or 'olmo'"
        raise InvalidValueError("qk_norm_type", config.get("qk_norm_type"), rule)
    mixer = attention(
        config,
        positions=rotary(config),
        query_key_value_bias=config.flag("attention_bias"),
        query_norm=norm,
        key_norm=norm,
        norm_axes=axes,
    )
    before, after = (None, norm) if config.flag("norm_after") else (norm, None)
    parts = (mixer, feed_forward(config))
    blocks = (Block(part=part, norm=before, post_norm=after) for part in parts)
    more = config.count("additional_vocab_size")
    return assemble(
        config,
        name,
        [Layer(blocks=tuple(blocks))] * config.num_layers(),
        final_norm=norm,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), more_rows=more or None),
        may_tie=False,
    )
