"""Nemotron-H: every layer is one part, by a list or a pattern of letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import MOST_LAYERS, Config
from llmcalc.huggingface.readers.mamba import mamba2_part
from llmcalc.huggingface.reading import (
    FULL,
    LINEAR,
    assemble,
    attention,
    each_once,
    feed_forward,
    layer_kinds,
    num_predicted,
    pre_norm,
    rms_norm,
)
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import Layer, ModelSpec, Part
from llmcalc.spec.multi_token import MultiToken
from llmcalc.spec.parts import Norm
from llmcalc.spec.recurrent import Mamba2

__all__ = ["nemotron_h"]

#: The kinds of layers, by the letters of patterns.
_LETTERS: Final = {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}


def nemotron_h(config: Config, name: str) -> ModelSpec:
    """Read a Nemotron-H: every layer is one part, by a list or a pattern of letters.

    Source: ``models/nemotron_h/configuration_h.py``, ``modeling_h.py``.
    """
    for old, field in (
        ("mamba_n_groups", "n_groups"),
        ("mamba_d_conv", "conv_kernel"),
        ("mamba_expand", "expand"),
        ("mamba_conv_bias", "use_conv_bias"),
        ("mamba_chunk_size", "chunk_size"),
    ):
        config.prefer(old, field)
    config.ignore("norm_eps", "num_hidden_layers", "partial_rotary_factor", "rope_theta")
    norm = rms_norm(config, "layer_norm_epsilon")

    def make(kind: str) -> Layer:
        return pre_norm(norm, _part(config, kind, norm))

    layers = each_once(_plan(config), make)
    modules: tuple[MultiToken, ...] = ()
    if count := num_predicted(config):
        further = each_once(_further(config), make)
        modules = (MultiToken(count=count, layers=tuple(further), norm=norm),)
    return assemble(config, name, layers, final_norm=norm, may_tie=False, multi_token=modules)


def _part(config: Config, kind: str, norm: Norm) -> Part:
    """Compose the one part of a kind of layer."""
    if kind == LINEAR:
        return _mamba(config, norm)
    if kind == FULL:
        return attention(config)
    if kind == "mlp":
        inner = config.required_size("intermediate_size")
        return _plain(config, inner, bias=config.flag("mlp_bias"))
    return _routed(config)


def _mamba(config: Config, norm: Norm) -> Mamba2:
    bias = config.flag("use_bias")
    return mamba2_part(
        config,
        inner=config.size("mamba_num_heads") * config.size("mamba_head_dim"),
        heads="mamba_num_heads",
        head_dim="mamba_head_dim",
        state_dim="ssm_state_size",
        groups="n_groups",
        kernel="conv_kernel",
        chunk="chunk_size",
        conv_bias=config.flag("use_conv_bias"),
        act="mamba_hidden_act",
        norm=norm,
        bias=bias,
        output_bias=bias,
    )


def _routed(config: Config) -> Experts:
    """Compose the experts; a shared one without a width is as wide as a dense layer."""
    bias = config.flag("mlp_bias")
    shared = config.required_count("moe_shared_expert_intermediate_size")
    return Experts(
        num_experts=config.size("n_routed_experts"),
        balanced_choices=config.size("n_routed_experts"),
        experts_per_token=config.size("num_experts_per_tok"),
        expert=_plain(config, config.required_size("moe_intermediate_size")),
        shared=_plain(config, shared or config.required_size("intermediate_size"), bias=bias),
        latent_dim=config.optional_size("moe_latent_size"),
        latent_bias=bias,
    )


def _plain(config: Config, width: int, *, bias: bool = False) -> FeedForward:
    return feed_forward(
        config, inner_dim=width, gated=False, bias=bias, activation_field="mlp_hidden_act"
    )


def _plan(config: Config) -> list[str]:
    """Return the kind of every layer; ``num_hidden_layers`` is ignored where a list is given."""
    kinds = config.get("layers_block_type")
    if kinds is None and "hybrid_override_pattern" in config:
        return _pattern(config, "hybrid_override_pattern")
    if kinds is None:
        return list(_LETTERS.values())
    return _list(config, "layers_block_type")


def _further(config: Config) -> list[str]:
    """Return the kinds of the layers of each module that predicts a further token."""
    usual = [FULL, "moe"]
    given = config.get("mtp_layers_block_type")
    kinds = usual if given is None else _list(config, "mtp_layers_block_type")
    if kinds == usual and "mtp_hybrid_override_pattern" in config:
        return _pattern(config, "mtp_hybrid_override_pattern")
    return kinds


def _pattern(config: Config, field: str) -> list[str]:
    pattern = config.get(field)
    if (
        not isinstance(pattern, str | list | tuple)
        or not pattern
        or not all(isinstance(letter, str) and letter in _LETTERS for letter in pattern)
    ):
        raise InvalidValueError(field, pattern, f"must be made of {', '.join(_LETTERS)}")
    _check_layers(field, pattern)
    return [_LETTERS[letter] for letter in pattern]


def _list(config: Config, field: str) -> list[str]:
    kinds = config.get(field)
    if not isinstance(kinds, list | tuple) or not kinds:
        raise InvalidValueError(field, kinds, "must list the kind of every layer")
    _check_layers(field, kinds)
    return layer_kinds(config, len(kinds), tuple(_LETTERS.values()), field) or []


def _check_layers(field: str, plan: Sequence[object]) -> None:
    if len(plan) > MOST_LAYERS:
        raise InvalidValueError(field, f"{len(plan)} layers", f"must be at most {MOST_LAYERS}")
