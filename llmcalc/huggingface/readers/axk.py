"""A.X K1 and K2: latent attention, with norms of their own about the experts."""

from __future__ import annotations

import attrs

from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.deepseek import latent_attention, routed_experts, sparse_indexer
from llmcalc.huggingface.readers.mixture import every_nth, mixture
from llmcalc.huggingface.reading import rms_norm
from llmcalc.spec.experts import Experts
from llmcalc.spec.model import Block, Layer, ModelSpec, Part
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import TopK

__all__ = ["axk1", "axk2"]


def axk1(config: Config, name: str) -> ModelSpec:
    """Read an A.X K1, where a norm follows the experts (``models/axk1/modeling_axk1.py``)."""
    config.required_size("q_lora_rank")

    def layer(norm: Norm, mixer: Part, inner: Part) -> Layer:
        after = norm if isinstance(inner, Experts) else None
        return Layer(
            blocks=(Block(part=mixer, norm=norm), Block(part=inner, norm=norm, post_norm=after))
        )

    return mixture(
        config,
        name,
        lambda: routed_experts(config),
        sparse=every_nth(config),
        mixer=lambda _: latent_attention(config),
        layer=layer,
    )


def axk2(config: Config, name: str) -> ModelSpec:
    """Read an A.X K2: an indexer, gated norms but before dense layers, gated attention.

    Source: ``models/axk2/configuration_axk2.py``, ``modeling_axk2.py``.
    """
    config.required_size("q_lora_rank")
    gated = attrs.evolve(rms_norm(config), gate_rank=config.size("gated_norm_rank"))

    def layer(norm: Norm, mixer: Part, inner: Part) -> Layer:
        before = gated if isinstance(inner, Experts) else norm
        return Layer(blocks=(Block(part=mixer, norm=gated), Block(part=inner, norm=before)))

    return mixture(
        config,
        name,
        lambda: routed_experts(config),
        sparse=every_nth(config),
        mixer=lambda _: latent_attention(
            config,
            span=TopK(config.size("index_topk")),
            indexer=sparse_indexer(config),
            output_gate="latent",
        ),
        layer=layer,
    )
