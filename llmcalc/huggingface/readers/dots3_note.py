"""Dots 3 Note: its language model, whose windowed layers have sizes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.deepseek import latent_attention, sparse_indexer
from llmcalc.huggingface.readers.mixture import every_nth, experts
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    assemble,
    each_once,
    feed_forward,
    layer_kinds,
    pre_norm,
    rms_norm,
)
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import Layer, ModelSpec
from llmcalc.spec.spans import Full, Span, TopK, Window

__all__ = ["dots3_note_text"]

_INDEXED: Final = "indexed_attention"

#: The fields that a layer may have of its own, with those of windowed layers.
_SIZES: Final = {
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "kv_lora_rank": 1024,
    "qk_nope_head_dim": 192,
    "v_head_dim": 128,
}

#: Fields of one layer, and their values.
_Sizes: TypeAlias = tuple[tuple[str, int], ...]


def dots3_note_text(config: Config, name: str) -> ModelSpec:
    """Read the language model of a Dots 3 Note: windowed layers have sizes of their own.

    These are in ``per_layer_config``, or in fields that begin with ``swa_``
    (``models/dots3_note/configuration_dots3_note.py``, ``modeling_dots3_note.py``).
    """
    kinds = _kinds(config)
    window = config.optional_size("sliding_window")
    if window is None:
        window = config.integer("sliding_window_size", 512)
    spans: dict[str, Span] = {
        FULL: Full(),
        SLIDING: Window(window),
        _INDEXED: TopK(config.size("index_topk")),
    }
    norm, own, shared = rms_norm(config), _own_fields(config, kinds), _shared(config)

    def make(plan: tuple[str, bool, _Sizes]) -> Layer:
        kind, has_experts, fields = plan
        sizes = config.overridden(dict(fields))
        sizes.required_size("q_lora_rank")
        mixer = latent_attention(
            sizes,
            span=spans[kind],
            indexer=sparse_indexer(config) if kind == _INDEXED else None,
            rope_norm=norm,
            output_gate="head",
        )
        routed = experts(config, "n_routed_experts", shared=shared, balanced=True)
        return pre_norm(norm, mixer, routed if has_experts else feed_forward(config))

    plans = zip(kinds, _sparse(config), own, strict=True)
    return assemble(config, name, each_once(plans, make), final_norm=norm)


def _kinds(config: Config) -> list[str]:
    """Return the kind of every layer; an older flag says of all full ones whether they index."""
    layers = config.num_layers()
    indexed: object = True if "per_layer_config" not in config else None
    if "use_dsa" in config:
        indexed = config.get("use_dsa")
    windows = config.get("use_sliding_window") if "use_sliding_window" in config else True
    kinds = layer_kinds(config, layers, (FULL, SLIDING, _INDEXED))
    full = _INDEXED if indexed is None or indexed else FULL
    if kinds is None:
        return [SLIDING if windows and i > 1 and i % 4 != 1 else full for i in range(layers)]
    if indexed is None:
        return kinds
    return [kind if kind == SLIDING else full for kind in kinds]


def _own_fields(config: Config, kinds: list[str]) -> list[_Sizes]:
    """Return the fields that each layer has of its own, and their values."""
    if "per_layer_config" not in config:
        sizes = {name: config.integer(f"swa_{name}", size) for name, size in _SIZES.items()}
        width = config.integer("swa_head_dim", 256) - sizes["qk_nope_head_dim"]
        sizes["qk_rope_head_dim"] = config.integer("swa_qk_rope_head_dim", width)
        return [tuple(sizes.items()) if kind == SLIDING else () for kind in kinds]
    own: dict[int, _Sizes] = {}
    for index, fields in (config.mapping("per_layer_config") or {}).items():
        if not str(index).isdecimal() or not isinstance(fields, Mapping):
            raise InvalidValueError(
                "per_layer_config", {index: fields}, "must give an object for indices of layers"
            )
        read = [key for key in (*_SIZES, "qk_rope_head_dim") if key in fields]
        if not all(type(fields[key]) is int for key in read):
            raise InvalidValueError("per_layer_config", fields, "must give integers")
        own[int(index)] = tuple((key, fields[key]) for key in read)
    return [own.get(index, ()) for index in range(len(kinds))]


def _shared(config: Config) -> FeedForward:
    """Compose the shared experts, which have a width of their own."""
    width = config.extra_size("moe_shared_expert_intermediate_size")
    if width is None:
        width = config.count("shared_experts_intermediate_size")
    return feed_forward(config, inner_dim=width * config.size("n_shared_experts"))


def _sparse(config: Config) -> list[bool]:
    """Return which layers have experts; ``moe_layer_freq`` may list them."""
    listed = config.given("moe_layer_freq")
    if config.get("mlp_layer_types") is not None or not isinstance(listed, list | tuple):
        return every_nth(config)
    layers, first = config.num_layers(), config.integer("first_k_dense_replace", 1)
    if len(listed) < layers:
        raise InvalidValueError("moe_layer_freq", listed, f"must list 0 or 1 for {layers} layers")
    return [index >= first and bool(listed[index]) for index in range(layers)]
