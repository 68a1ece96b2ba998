"""Llama 4: its language model, with chunked attention in most layers."""

from __future__ import annotations

from typing import Final

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import experts
from llmcalc.huggingface.reading import (
    FULL,
    assemble,
    attention,
    biases,
    each_once,
    feed_forward,
    layer_indices,
    layer_kinds,
    pre_norm,
    rms_norm,
    rotary,
)
from llmcalc.spec.experts import Experts
from llmcalc.spec.model import Layer, ModelSpec, Part
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Chunk, Full

__all__ = ["llama4_text"]

_CHUNKED: Final = "chunked_attention"


def llama4_text(config: Config, name: str) -> ModelSpec:
    """Read a Llama 4: chunked attention in most layers, a shared expert beside the routed ones.

    Source: ``models/llama4/configuration_llama4.py``, ``modeling_llama4.py``.
    """
    layers = config.num_layers()
    turned = _turned(config)
    kinds = layer_kinds(config, layers, (_CHUNKED, FULL))
    if kinds is None:
        kinds = [_CHUNKED if has_positions else FULL for has_positions in turned]
    sparse = layer_indices(config, "moe_layers")
    if sparse is None:
        step = config.size("interleave_moe_layer_step")
        sparse = frozenset(range(step - 1, layers, step))
    chunk = config.optional_size("attention_chunk_size")
    norm, positions = rms_norm(config), rotary(config)
    # The norm of queries and keys has no weights.
    plain = Norm(kind="rms", elementwise=False) if config.flag("use_qk_norm") else None

    def make(plan: tuple[str, bool, bool]) -> Layer:
        kind, has_positions, has_experts = plan
        mixer = attention(
            config,
            span=Chunk(chunk) if kind != FULL and chunk is not None else Full(),
            positions=positions if has_positions else None,
            query_norm=plain if has_positions else None,
            key_norm=plain if has_positions else None,
            **biases(config),
        )
        inner: Part = (
            _routed(config) if has_experts else feed_forward(config, "intermediate_size_mlp")
        )
        return pre_norm(norm, mixer, inner)

    plans = [(kinds[index], turned[index], index in sparse) for index in range(layers)]
    return assemble(config, name, each_once(plans, make), final_norm=norm)


def _turned(config: Config) -> list[bool]:
    """Return which layers have rotary positions: those of a list, or all but every n-th."""
    layers = config.num_layers()
    turned = config.get("no_rope_layers")
    if not turned:
        every = config.size("no_rope_layer_interval")
        return [(index + 1) % every != 0 for index in range(layers)]
    if not isinstance(turned, list | tuple) or len(turned) != layers:
        raise InvalidValueError("no_rope_layers", turned, f"must list 0 or 1 for {layers} layers")
    return [bool(flag) for flag in turned]


def _routed(config: Config) -> Experts:
    """Compose the experts; transformers computes all of them for every token."""
    return experts(
        config,
        "num_local_experts",
        "intermediate_size",
        shared=feed_forward(config),
        active_in_transformers=config.required_size("num_local_experts"),
    )
