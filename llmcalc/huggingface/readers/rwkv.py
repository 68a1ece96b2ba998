"""RWKV-4."""

from __future__ import annotations

from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import assemble, pre_norm
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.parts import Embedding, Norm
from llmcalc.spec.recurrent import ChannelMix, TimeMix

__all__ = ["rwkv"]


def rwkv(config: Config, name: str) -> ModelSpec:
    """Read an RWKV-4, which normalises its embeddings (``models/rwkv/modeling_rwkv.py``)."""
    norm = Norm(kind="layer", eps=config.number("layer_norm_epsilon"))
    width = config.required_size("hidden_size")
    channels = config.optional_size("attention_hidden_size") or width
    inner = config.optional_size("intermediate_size") or 4 * width
    layer = pre_norm(norm, TimeMix(channels=channels), ChannelMix(inner_dim=inner))
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=norm,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), norm=norm),
        max_positions=None,
    )
