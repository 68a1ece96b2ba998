"""Llama 3.2 Vision: its language model, some of whose layers attend images."""

from __future__ import annotations

from typing import Final

import attrs

from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    assemble,
    attention,
    each_once,
    feed_forward,
    head_dim,
    layer_indices,
    pre_norm,
    rms_norm,
    rotary,
)
from llmcalc.spec.crossed import CrossAttention
from llmcalc.spec.model import Layer, ModelSpec
from llmcalc.spec.parts import Embedding

__all__ = ["mllama"]

#: The layers that attend images where the config lists none.
_CROSSED: Final = frozenset((3, 8, 13, 18, 23, 28, 33, 38))


def mllama(config: Config, name: str) -> ModelSpec:
    """Read the language model of a Llama 3.2 Vision: some layers attend images, and nothing else.

    A request of text alone skips these. Eight tokens are looked up and never predicted
    (``models/mllama/configuration_mllama.py``, ``modeling_mllama.py``).
    """
    norm, inner, layers = rms_norm(config), feed_forward(config), config.num_layers()
    embed, heads = config.required_size("hidden_size"), config.required_size("num_attention_heads")
    width = head_dim(embed, heads, rounded=True)
    listed = layer_indices(config, "cross_attention_layers")
    crossed = _CROSSED if listed is None else listed
    mixer = attention(config, width=width, positions=rotary(config))
    images = CrossAttention(query_heads=heads, kv_heads=mixer.kv_heads, head_dim=width, norm=norm)

    def layer(is_crossed: bool) -> Layer:
        if not is_crossed:
            return pre_norm(norm, mixer, inner)
        return attrs.evolve(pre_norm(norm, images, inner), uses=0)

    return assemble(
        config,
        name,
        each_once([index in crossed for index in range(layers)], layer),
        final_norm=norm,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), more_rows=8),
        may_tie=False,
        remarks=("layers that attend images store weights, and a request of text skips them",),
    )
