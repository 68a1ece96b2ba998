"""Gemma 3n and Gemma 4: inputs for every layer, layers that share another one's cache.

Gemma, Gemma 2 and Gemma 3 are rows of `llmcalc.huggingface.readers.llama.DIALECTS`.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    activation,
    assemble,
    attention,
    biases,
    each_once,
    feed_forward,
    rms_norm,
    rotary,
    window_kinds,
)
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import Beside, Block, Layer, ModelSpec
from llmcalc.spec.parallel import ParallelBlock
from llmcalc.spec.parts import Norm
from llmcalc.spec.per_layer import (
    LayerFactor,
    LowRank,
    PerLayerEmbedding,
    PerLayerInput,
    StreamProjections,
    Streams,
)
from llmcalc.spec.spans import Full, Span, Window

__all__ = ["gemma3n", "gemma4"]


def gemma3n(config: Config, name: str) -> ModelSpec:
    """Read a Gemma 3n: several hidden states, a low-rank map beside attention.

    Source: ``models/gemma3n/configuration_gemma3n.py``, ``modeling_gemma3n.py``.
    """
    norm = rms_norm(config)
    kinds = window_kinds(config, lambda index: (index + 1) % 5 != 0)
    streams = config.size("altup_num_inputs")
    width = config.size("hidden_size_per_layer_input")
    low_rank = Block(part=LowRank(rank=config.size("laurel_rank")), post_norm=norm)
    own_input = _own_input(config, width, norm)
    spans: dict[str, Span] = {FULL: Full(), SLIDING: Window(config.size("sliding_window"))}
    positions = {
        FULL: rotary(config, kind=FULL, theta=1_000_000.0),
        SLIDING: rotary(config, kind=SLIDING, theta_field="rope_local_base_freq", theta=10_000.0),
    }

    def layer(key: tuple[str, bool, int]) -> Layer:
        kind, shares, inner = key
        mixer = attention(
            config,
            span=spans[kind],
            positions=positions[kind],
            query_norm=norm,
            key_norm=None if shares else norm,
            shares_cache=shares,
            **biases(config),
        )
        plain = feed_forward(config, inner_dim=inner, activation_field="hidden_activation")
        return Layer(
            blocks=(
                Block(part=Streams(count=streams, norm=norm)),
                ParallelBlock(norm=norm, blocks=(Block(part=mixer, post_norm=norm), low_rank)),
                Block(part=plain, norm=norm, post_norm=norm),
                own_input,
            )
        )

    shared = _shared(config, kinds)
    keys = zip(kinds, shared, _inner_dims(config, len(kinds)), strict=True)
    return assemble(
        config,
        name,
        each_once(keys, layer),
        final_norm=norm,
        beside=(_per_layer_table(config, width, norm), StreamProjections(count=streams)),
    )


def _inner_dims(config: Config, layers: int) -> list[int]:
    """Return the feed-forward's width in every layer: one for all, or a list."""
    inner = config.get("intermediate_size")
    if not isinstance(inner, list | tuple):
        return [config.required_size("intermediate_size")] * layers
    if len(inner) != layers:
        raise InvalidValueError("intermediate_size", inner, f"must be {layers} sizes, or one")
    for size in inner:
        if type(size) is not int or size < 1:
            raise InvalidValueError("intermediate_size", size, "must be an integer of at least 1")
    return list(inner)


def _shared(config: Config, kinds: list[str]) -> list[bool]:
    """Return which layers read the cache of the last layer of their kind that has one."""
    sharing = config.count("num_kv_shared_layers")
    own = len(kinds) - sharing
    if sharing and set(kinds[: max(own, 0)]) != set(kinds):
        raise InvalidValueError(
            "num_kv_shared_layers", sharing, "must leave a layer of each kind its own cache"
        )
    return [index >= own for index in range(len(kinds))]


def _own_input(config: Config, width: int, norm: Norm) -> Block:
    part = PerLayerInput(width=width, activation=activation(config, "hidden_activation"))
    return Block(part=part, post_norm=norm)


def _per_layer_table(config: Config, width: int, norm: Norm) -> PerLayerEmbedding:
    return PerLayerEmbedding(
        vocab_size=config.size("vocab_size_per_layer_input"),
        layers=config.num_layers(),
        width=width,
        norm=norm,
    )


def gemma4(config: Config, name: str) -> ModelSpec:
    """Read a Gemma 4: full layers have heads of another size, and maybe keys that are values.

    Source: ``models/gemma4/configuration_gemma4.py``, ``modeling_gemma4.py``, and the same of
    ``gemma4_unified``, which has no inputs of layers and no experts.
    """
    norm = rms_norm(config)
    kinds = window_kinds(config, lambda index: (index + 1) % 6 != 0)
    kinds[-1] = FULL
    window = config.size("sliding_window")
    if config.get("use_bidirectional_attention") == "all":
        window = window // 2 + 1
    spans: dict[str, Span] = {FULL: Full(), SLIDING: Window(window)}
    positions = {
        FULL: rotary(config, kind=FULL, theta=1_000_000.0, fraction=0.25),
        SLIDING: rotary(config, kind=SLIDING, theta=10_000.0),
    }
    key_is_value = config.flag("attention_k_eq_v")
    wide = config.flag("use_double_wide_mlp")
    plain = feed_forward(config, activation_field="hidden_activation")
    experts = _gemma4_experts(config, plain)
    width = config.count("hidden_size_per_layer_input") if _has_inputs(config) else 0

    def layer(key: tuple[str, bool, tuple[int, int]]) -> Layer:
        kind, shares, (head_dim, kv_heads) = key
        mixer = attention(
            config,
            span=spans[kind],
            positions=positions[kind],
            query_norm=norm,
            key_norm=None if shares else norm,
            width=head_dim,
            num_kv_heads=kv_heads,
            value_is_key=key_is_value and kind == FULL,
            shares_cache=shares,
            **biases(config),
        )
        factor = 2 if wide and shares else 1
        inner = attrs.evolve(plain, inner_dim=factor * plain.inner_dim)
        blocks: list[Block | ParallelBlock] = [
            Block(part=mixer, norm=norm, post_norm=norm),
            _gemma4_inner(inner, experts, norm),
        ]
        if width:
            blocks.append(_own_input(config, width, norm))
        blocks.append(Block(part=LayerFactor()))
        return Layer(blocks=tuple(blocks))

    keys = zip(kinds, _shared(config, kinds), _gemma4_heads(config, kinds), strict=True)
    beside: tuple[Beside, ...] = (_per_layer_table(config, width, norm),) if width else ()
    return assemble(config, name, each_once(keys, layer), final_norm=norm, beside=beside)


def _has_inputs(config: Config) -> bool:
    """Whether the model class has inputs of layers, and the config does not make them null."""
    field = "hidden_size_per_layer_input"
    return config.model_type == "gemma4_text" and config.get(field) is not None


def _gemma4_experts(config: Config, plain: FeedForward) -> Experts | None:
    """Return the experts that stand beside the feed-forward, where there are any."""
    if config.model_type != "gemma4_text" or not config.flag("enable_moe_block"):
        return None
    return Experts(
        num_experts=config.size("num_experts"),
        experts_per_token=config.size("top_k_experts"),
        expert=attrs.evolve(plain, inner_dim=config.size("moe_intermediate_size")),
        router_scale=True,
        router_correction=True,
    )


def _gemma4_inner(plain: FeedForward, experts: Experts | None, norm: Norm) -> Block | ParallelBlock:
    """Return the feed-forward, with the experts beside it where there are any."""
    inner = Block(part=plain, norm=norm, post_norm=norm)
    if experts is None:
        return inner
    beside = Block(part=experts, norm=norm, post_norm=norm)
    return ParallelBlock(blocks=(inner, beside), post_norm=norm)


def _gemma4_heads(config: Config, kinds: list[str]) -> list[tuple[int, int]]:
    """Return the size of a head and the number of KV heads in every layer.

    Those of full layers stand in ``per_layer_config``, or in two older fields.
    """
    usual = {
        "head_dim": config.size("head_dim"),
        "num_key_value_heads": config.size("num_key_value_heads"),
    }
    by_layer = [dict(usual) for _ in kinds]
    if "per_layer_config" not in config:
        config.ignore("global_head_dim", "num_global_key_value_heads")
        wide = config.extra_size("global_head_dim") or 512
        several = config.extra_size("num_global_key_value_heads")
        for kind, sizes in zip(kinds, by_layer, strict=True):
            if kind == FULL:
                sizes["head_dim"] = wide
                if several is not None and config.flag("attention_k_eq_v"):
                    sizes["num_key_value_heads"] = several
    else:
        given = config.mapping("per_layer_config") or {}
        for key, own in given.items():
            by_layer[_layer_index(key, len(kinds))].update(_layer_sizes(own, usual))
    return [(sizes["head_dim"], sizes["num_key_value_heads"]) for sizes in by_layer]


def _layer_index(key: object, layers: int) -> int:
    text = str(key)
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) < layers):
        raise InvalidValueError("per_layer_config", key, f"must be a layer from 0 to {layers - 1}")
    return int(text)


def _layer_sizes(sizes: object, usual: Mapping[str, int]) -> dict[str, int]:
    rule = f"must give sizes of {', '.join(usual)}, which alone may differ by layer"
    if not isinstance(sizes, Mapping) or not set(sizes) <= set(usual):
        raise InvalidValueError("per_layer_config", sizes, rule)
    for size in sizes.values():
        if type(size) is not int or size < 1:
            raise InvalidValueError("per_layer_config", sizes, rule)
    return dict(sizes)
