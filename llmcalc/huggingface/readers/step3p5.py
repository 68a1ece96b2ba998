"""Step 3.5 and the language model of Step 3.7: windowed layers have more heads."""

from __future__ import annotations

from collections.abc import Mapping

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    assemble,
    each_once,
    layer_kinds,
    num_predicted,
    pre_norm,
    rms_norm,
    rotary,
    span_of,
)
from llmcalc.spec.attention import Attention, Rotary
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import Layer, ModelSpec

__all__ = ["step3p5"]


def step3p5(config: Config, name: str) -> ModelSpec:
    """Read a Step 3.5, or the language model of a Step 3.7: windowed layers have more heads.

    Lists of layers may go on with those that predict further tokens
    (``models/step3p7/configuration_step3p7.py``, ``modeling_step3p7.py``).
    """
    layers = config.num_layers()
    config.pass_over("mtp_layer_types", "mtp_mlp_layer_types", "hidden_act")
    further = 0 if "num_nextn_predict_layers" not in config else num_predicted(config)
    kinds = _kinds(config, "layer_types", further, (FULL, SLIDING)) or [FULL] * layers
    sparse = _kinds(config, "mlp_layer_types", further, ("dense", "sparse"))
    if sparse is None:
        listed = _experts(config, layers)
        sparse = ["sparse" if index in listed else "dense" for index in range(layers)]
    heads = {
        FULL: config.required_size("num_attention_heads"),
        SLIDING: _window_heads(config, kinds),
    }
    norm, bias = rms_norm(config), config.flag("mlp_bias")

    def make(plan: tuple[str, str]) -> Layer:
        kind, inner = plan
        mixer = _attention(config, heads[kind], kind, _rotary(config, kinds, kind))
        if inner == "dense":
            return pre_norm(norm, mixer, _plain(config.size("intermediate_size"), bias=bias))
        return pre_norm(norm, mixer, _routed(config, shared_bias=bias))

    remark = f"{further} modules that predict further tokens are not counted"
    return assemble(
        config,
        name,
        each_once(zip(kinds, sparse, strict=True), make),
        final_norm=norm,
        remarks=(remark,) if further else (),
    )


def _attention(config: Config, heads: int, kind: str, positions: Rotary) -> Attention:
    """Compose the attention of a kind of layer, with a gate for each head."""
    norm, bias = rms_norm(config), config.flag("attention_bias")
    return Attention(
        query_heads=heads,
        kv_heads=config.size("num_key_value_heads"),
        head_dim=config.size("head_dim"),
        query_bias=bias,
        key_bias=bias,
        value_bias=bias,
        output_bias=bias,
        rotary=positions,
        span=span_of(config, kind),
        query_norm=norm,
        key_norm=norm,
        output_gate="head",
    )


def _routed(config: Config, *, shared_bias: bool) -> Experts:
    return Experts(
        num_experts=config.size("n_routed_experts"),
        experts_per_token=config.size("num_experts_per_tok"),
        expert=_plain(config.size("moe_intermediate_size"), bias=False),
        shared=_plain(config.count("share_expert_dim"), bias=shared_bias),
        balanced_choices=config.size("n_routed_experts"),
    )


def _plain(width: int, *, bias: bool) -> FeedForward:
    return FeedForward(
        inner_dim=width, gated=True, activation="silu", input_bias=bias, output_bias=bias
    )


def _kinds(config: Config, field: str, further: int, allowed: tuple[str, ...]) -> list[str] | None:
    """Return the kind of every layer, of a list that may also have those of further tokens."""
    layers, given = config.num_layers(), config.get(field)
    if further and isinstance(given, list | tuple) and len(given) == layers + further:
        config = config.overridden({field: given[:layers]})
    return layer_kinds(config, layers, allowed, field)


def _experts(config: Config, layers: int) -> frozenset[int]:
    """Return the layers with experts: those of ``moe_layers_enum``, or all but the first three."""
    given = config.given("moe_layers_enum")
    if given is None:
        return frozenset(range(3, layers))
    items = given.split(",") if isinstance(given, str) else given
    if not isinstance(items, list | tuple):
        raise InvalidValueError("moe_layers_enum", given, "must list indices of layers")
    listed = [str(item).strip() for item in items]
    if not all(item.isascii() and item.isdigit() and len(item) < 9 for item in listed if item):
        raise InvalidValueError("moe_layers_enum", given, "must list indices of layers")
    return frozenset(int(item) for item in listed if item)


def _window_heads(config: Config, kinds: list[str]) -> int:
    """Return the number of query heads in layers with a window."""
    usual = config.required_size("num_attention_heads")
    heads = config.get("num_sliding_attention_heads")
    if heads is None:
        other = config.given("attention_other_setting") or {}
        if not isinstance(other, Mapping):
            raise InvalidValueError("attention_other_setting", other, "must be an object")
        heads = other.get("num_attention_heads", usual)
    config.pass_over("attention_other_setting")
    if type(heads) is not int or heads < 1:
        raise InvalidValueError("num_sliding_attention_heads", heads, "must be a positive integer")
    given = config.given("per_layer_config")
    if given is not None:
        windowed = [str(index) for index, kind in enumerate(kinds) if kind == SLIDING]
        same = {index: {"num_attention_heads": heads} for index in windowed}
        known = [same, {}] if heads == usual else [same]
        if not isinstance(given, Mapping) or {str(k): v for k, v in given.items()} not in known:
            rule = f"must give layers with a window {heads} num_attention_heads, and nothing else"
            raise InvalidValueError("per_layer_config", given, rule)
    return heads


def _rotary(config: Config, kinds: list[str], kind: str) -> Rotary:
    """Return the rotary embedding of a kind of layer; the fields may list it for every layer."""
    first = kinds.index(kind)
    own: dict[str, object] = {}
    for field, name in (
        ("rope_theta", "rope_theta"),
        ("partial_rotary_factors", "partial_rotary_factor"),
    ):
        given = config.given(field)
        if isinstance(given, list | tuple) and first < len(given):
            own[name] = given[first]
            config.pass_over(field)
    if own:
        config = config.overridden(own)
    return rotary(config, kind=kind, fraction=1.0)
