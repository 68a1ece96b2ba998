"""Inkling and Inkling 2: their language models, with convolutions and biases by distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import Make, always_silu, experts, mixture, mlp_kinds
from llmcalc.huggingface.reading import (
    assemble,
    each_once,
    feed_forward,
    layer_indices,
    layer_kinds,
    num_predicted,
    predicted,
    rms_norm,
)
from llmcalc.spec.convolved import (
    OutputConvolution,
    RelativeAttention,
    SeparateNorms,
    StreamQueries,
)
from llmcalc.spec.model import Block, Layer, ModelSpec, Part
from llmcalc.spec.multi_token import MultiToken
from llmcalc.spec.parts import Embedding, Norm
from llmcalc.spec.spans import Full, Window

__all__ = ["inkling2_text", "inkling_text"]

_FULL: Final = "hybrid"
_WINDOWED: Final = "hybrid_sliding"


def inkling_text(config: Config, name: str) -> ModelSpec:
    """Read the language model of an Inkling: convolutions, biases by distance, no rotary.

    Windowed layers have heads of their own (``models/inkling/configuration_inkling.py``,
    ``modeling_inkling.py``).
    """
    config = _with_further_fields(config)
    config.pass_over("number_of_conv_states")
    kernel, norm = config.size("conv_kernel_size"), rms_norm(config)
    inner, expert_inner = "intermediate_size", "moe_intermediate_size"
    if config.given("dense_intermediate_size") is not None:
        inner, expert_inner = "dense_intermediate_size", "intermediate_size"

    def layer(norm: Norm, mixer: Part, inner: Part) -> Layer:
        parts = ((mixer, "attention"), (inner, "feed_forward"))
        blocks = [
            (Block(part=part, norm=norm), Block(part=OutputConvolution(name=name, kernel=kernel)))
            for part, name in parts
        ]
        return Layer(blocks=tuple(block for pair in blocks for block in pair))

    return mixture(
        config,
        name,
        lambda: experts(
            config,
            "n_routed_experts",
            expert_inner,
            shared_count="n_shared_experts",
            more_choices=config.count("n_shared_experts") or None,
            router_factor=True,
            balanced=True,
        ),
        dense=lambda: attrs.evolve(feed_forward(config, inner), factor=True),
        sparse=mlp_kinds(config, config.integer("dense_mlp_idx", 0)),
        kinds=_kinds(config, "local_layer_ids"),
        predicts=lambda make: _further(config, make),
        mixer=lambda kind: _attention(config, kind, norm=norm),
        layer=layer,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), norm=norm),
        may_tie=False,
    )


def _kinds(config: Config, windows: str | None = None) -> list[str]:
    """Return the kind of every layer: that in the list, else windowed but for every sixth.

    An Inkling may list the layers with `windows` in a field instead.
    """
    layers = config.num_layers()
    kinds = layer_kinds(config, layers, (_FULL, _WINDOWED))
    if kinds is not None:
        return kinds
    windowed = None if windows is None else layer_indices(config, windows)
    if windowed is None:
        windowed = frozenset(index for index in range(layers) if (index + 1) % 6)
    return [_WINDOWED if index in windowed else _FULL for index in range(layers)]


def _attention(
    config: Config,
    kind: str,
    *,
    norm: Norm | None = None,
    gated: bool = False,
    token_sinks: bool = False,
    dynamic: bool = False,
) -> RelativeAttention:
    """Compose the attention of an Inkling, whose windowed layers have fields of their own."""
    windowed = kind == _WINDOWED
    own = "swa_" if windowed else ""
    window = config.size("sliding_window_size")
    return RelativeAttention(
        query_heads=config.size(f"{own}num_attention_heads"),
        kv_heads=config.size(f"{own}num_key_value_heads"),
        head_dim=config.size(f"{own}head_dim"),
        profiles=config.size("d_rel"),
        extent=window if windowed else config.size("rel_extent"),
        kernel=config.size("conv_kernel_size"),
        norm=norm,
        span=Window(window) if windowed else Full(),
        gated=gated,
        token_sinks=token_sinks,
        dynamic=dynamic,
    )


def _with_further_fields(config: Config) -> Config:
    """Return the configuration with the fields that a whole model keeps in ``mtp_config``."""
    given = config.given("mtp_config")
    if given is None:
        return config
    if not isinstance(given, Mapping):
        raise InvalidValueError("mtp_config", given, "must be an object or null")
    fields = {
        "num_nextn_predict_layers": "num_mtp_layers",
        "chain_hidden_post_norm": "chain_hidden_post_norm",
        "local_layer_ids": "mtp_local_layer_ids",
    }
    more = {own: given[field] for field, own in fields.items() if field in given}
    config = config.overridden({own: more[own] for own in more if own not in config})
    config.pass_over("mtp_config")
    return config


def _further(config: Config, make: Make) -> tuple[MultiToken, ...]:
    """Compose the modules that predict further tokens: dense, with one last norm or none."""
    count = num_predicted(config, "num_mtp_layers")
    local = config.get("mtp_local_layer_ids")
    if local is not None and not isinstance(local, list | tuple):
        raise InvalidValueError("mtp_local_layer_ids", local, "must list indices of layers")
    kinds = [_WINDOWED if index in (local or ()) else _FULL for index in range(count)]
    chained = config.flag("chain_hidden_post_norm")
    layers = each_once(kinds, lambda kind: make((kind, False)))
    modules = predicted(layers, rms_norm(config), last_norm="none")
    if not modules or not chained:
        return modules
    return (attrs.evolve(modules[0], last_norm="one"), *modules[1:])


def inkling2_text(config: Config, name: str) -> ModelSpec:
    """Read the language model of an Inkling 2: its layers read blocks of earlier ones.

    Full layers have inputs of their own for queries, keys and values
    (``models/inkling2/configuration_inkling2.py``, ``modeling_inkling2.py``).
    """
    config.pass_over("number_of_conv_states")
    kernel, norm = config.size("conv_kernel_size"), rms_norm(config)
    routed = always_silu(experts(config, "n_routed_experts", balanced=True))

    def make(plan: tuple[str, bool]) -> Layer:
        kind, is_first = plan
        full = kind == _FULL
        mixer = _attention(config, kind, gated=True, token_sinks=True, dynamic=full)
        blocks = []
        if not is_first:
            blocks.append(Block(part=StreamQueries(name="attention", count=3 if full else 1)))
        if full:
            blocks.append(Block(part=SeparateNorms(norm=norm)))
        blocks += [
            Block(part=mixer, norm=norm),
            Block(part=OutputConvolution(name="attention", kernel=kernel)),
            Block(part=StreamQueries(name="feed_forward", count=1)),
            Block(part=routed, norm=norm),
            Block(part=OutputConvolution(name="feed_forward", kernel=kernel)),
        ]
        return Layer(blocks=tuple(blocks))

    return assemble(
        config,
        name,
        each_once([(kind, index == 0) for index, kind in enumerate(_kinds(config))], make),
        final_norm=norm,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), norm=norm),
        may_tie=False,
        beside=(StreamQueries(name="head", count=1),),
    )
