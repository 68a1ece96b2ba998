"""MiniMax M3: its language model, with an indexer of blocks in some layers."""

from __future__ import annotations

from typing import Final

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import always_silu, experts, mixture, mlp_kinds
from llmcalc.huggingface.reading import FULL, attention, head_norms, layer_kinds, rms_norm, rotary
from llmcalc.spec.attention import Attention, Indexer
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.spans import TopK

__all__ = ["minimax_m3_vl_text"]

_SPARSE: Final = "minimax_m3_sparse"


def minimax_m3_vl_text(config: Config, name: str) -> ModelSpec:
    """Read the language model of a MiniMax M3: some layers have an indexer of blocks.

    A query attends the blocks that its indexer picks, counted here as whole
    (``models/minimax_m3_vl/configuration_minimax_m3_vl.py``, ``modeling_minimax_m3_vl.py``).
    """
    # Its own name of the activation is not one of transformers', which takes silu whatever it is.
    config = config.overridden({"hidden_act": "silu"})
    layers = config.num_layers()
    nested = (
        config.section("sparse_attention_config") if "sparse_attention_config" in config else None
    )
    kinds = layer_kinds(config, layers, (_SPARSE, FULL))
    if kinds is None and nested is not None and "sparse_attention_freq" in nested:
        chosen = _flags(nested, "sparse_attention_freq", layers)
        kinds = [_SPARSE if sparse else FULL for sparse in chosen]
    sparse = mlp_kinds(config, 0)
    if config.get("mlp_layer_types") is None and config.given("moe_layer_freq") is not None:
        sparse = _flags(config, "moe_layer_freq", layers)
    return mixture(
        config,
        name,
        lambda: _routed(config),
        sparse=sparse,
        dense=lambda: _plain(config.size("dense_intermediate_size")),
        kinds=kinds,
        mixer=lambda kind: _mixer(config, nested, kind),
    )


def _mixer(config: Config, nested: Config | None, kind: str) -> Attention:
    """Compose the attention of a kind of layer; the sizes of its indexer may be in an object."""
    positions = rotary(config, fraction=1.0)
    if kind == FULL:
        return attention(config, positions=positions, **head_norms(config))

    def size(field: str, original: str) -> int:
        if nested is not None and original in nested:
            return nested.size(original)
        return config.size(field)

    norm = rms_norm(config)
    indexer = Indexer(
        heads=size("index_n_heads", "sparse_num_index_heads"),
        head_dim=size("index_head_dim", "sparse_index_dim"),
        key_norm=norm,
        query_norm=norm,
        weighted=False,
    )
    block = size("index_block_size", "sparse_block_size")
    span = TopK(block * size("index_topk_blocks", "sparse_topk_blocks"))
    return attention(config, positions=positions, indexer=indexer, span=span, **head_norms(config))


def _routed(config: Config) -> Experts:
    shared = _plain(config.count("shared_intermediate_size"))
    return always_silu(
        experts(config, "num_local_experts", "intermediate_size", balanced=True, shared=shared)
    )


def _plain(width: int) -> FeedForward:
    return FeedForward(inner_dim=width, gated=True, activation="silu")


def _flags(config: Config, field: str, layers: int) -> list[bool]:
    """Return one flag a layer, of a list of zeros and ones."""
    flags = config.get(field)
    if not isinstance(flags, list | tuple) or len(flags) != layers:
        raise InvalidValueError(field, flags, f"must list 0 or 1 for each of {layers} layers")
    return [bool(one) for one in flags]
