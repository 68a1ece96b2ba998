"""Hunyuan 4: gated latent attention with sinks, indexers, hyper-connections."""

from __future__ import annotations

from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.deepseek import latent_attention, routed_experts, sparse_indexer
from llmcalc.huggingface.readers.hyper_connections import hyper_layer
from llmcalc.huggingface.readers.mixture import always_silu, mixture, mlp_kinds
from llmcalc.huggingface.reading import layer_kinds
from llmcalc.spec.hyper import HyperHead
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.spans import TopK

__all__ = ["hy_v4"]


def hy_v4(config: Config, name: str) -> ModelSpec:
    """Read a Hunyuan 4: gated latent attention with sinks, indexers, hyper-connections.

    Every fourth layer has an indexer, whose choice those after it use, too
    (``models/hy_v4/configuration_hy_v4.py``, ``modeling_hy_v4.py``).
    """
    config.required_size("q_lora_rank")
    layers, streams = config.num_layers(), config.size("hc_mult")
    kinds = layer_kinds(config, layers, ("full", "shared"), "indexer_types")
    if kinds is None:
        kinds = ["full" if i == 0 or (i - 1) % 4 == 0 else "shared" for i in range(layers)]
    indexer, span = sparse_indexer(config), TopK(config.size("index_topk"))

    return mixture(
        config,
        name,
        lambda: always_silu(routed_experts(config)),
        sparse=mlp_kinds(config, 1),
        kinds=kinds,
        mixer=lambda kind: latent_attention(
            config,
            span=span,
            indexer=indexer if kind == "full" else None,
            sinks=True,
            output_gate="element",
        ),
        layer=lambda norm, mixer, inner: hyper_layer(norm, mixer, inner, streams, combines=False),
        beside=(HyperHead(streams=streams),),
    )
