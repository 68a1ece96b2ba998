"""What readers share: the usual fields of a ``config.json``, and the usual composition of parts.

* `attention`: grouped-query attention of the usual fields, with options.
* `feed_forward`: a feed-forward of the usual fields.
* `pre_norm`: a layer of residual blocks, each after a norm.
* `assemble`: the model, from its layers.
* `layer_kinds`, `rotary`, `activation`, `head_dim`, `notes`: single facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmcalc.errors import InvalidValueError, UnknownNameError
from llmcalc.huggingface.config import Config
from llmcalc.spec.attention import Attention, Rotary
from llmcalc.spec.feed_forward import Activation, FeedForward
from llmcalc.spec.model import Block, Layer, ModelSpec, Part, runs
from llmcalc.spec.parts import Embedding, Head, Norm
from llmcalc.spec.spans import Full, Span

__all__ = [
    "activation",
    "assemble",
    "attention",
    "feed_forward",
    "head_dim",
    "layer_kinds",
    "notes",
    "pre_norm",
    "rms_norm",
    "rotary",
]

_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def attention(
    config: Config,
    *,
    span: Span = Full(),  # noqa: B008  # frozen
    positions: Rotary | None = None,
    query_key_value_bias: bool = False,
    output_bias: bool = False,
    query_norm: Norm | None = None,
    key_norm: Norm | None = None,
    **options: Any,
) -> Attention:
    """Compose attention from the usual fields; `options` are further ones of `Attention`.

    A missing or null ``num_key_value_heads`` is one KV head a query head, and a missing or null
    ``head_dim`` the width divided by the heads.
    """
    embed = config.required_size("hidden_size")
    heads = config.required_size("num_attention_heads")
    width = config.extra_size("head_dim")
    kv_heads = config.optional_size("num_key_value_heads")
    return Attention(
        query_heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim(embed, heads) if width is None else width,
        query_bias=query_key_value_bias,
        key_bias=query_key_value_bias,
        value_bias=query_key_value_bias,
        output_bias=output_bias,
        rotary=positions,
        span=span,
        query_norm=query_norm,
        key_norm=key_norm,
        **options,
    )


def feed_forward(
    config: Config,
    inner: str = "intermediate_size",
    *,
    gated: bool = True,
    bias: bool = False,
    activation_field: str = "hidden_act",
    inner_dim: int | None = None,
) -> FeedForward:
    """Compose a feed-forward whose width is in the field `inner`, unless `inner_dim` gives it."""
    return FeedForward(
        inner_dim=config.required_size(inner) if inner_dim is None else inner_dim,
        gated=gated,
        activation=activation(config, activation_field),
        input_bias=bias,
        output_bias=bias,
    )


def rms_norm(config: Config, field: str = "rms_norm_eps") -> Norm:
    """Return an RMSNorm with the epsilon of the field."""
    return Norm(kind="rms", eps=config.number(field))


def pre_norm(norm: Norm, *parts: Part) -> Layer:
    """Return a layer of residual blocks ``x + part(norm(x))``."""
    return Layer(blocks=tuple(Block(part=part, norm=norm) for part in parts))


def assemble(
    config: Config,
    name: str,
    layers: Iterable[Layer],
    *,
    final_norm: Norm | None,
    embedding: Embedding | None = None,
    head_bias: bool = False,
    max_positions: str | None = "max_position_embeddings",
    remarks: tuple[str, ...] = (),
) -> ModelSpec:
    """Return the model whose vocabulary, head and position limit are in the usual fields.

    `max_positions` names the field of the position limit, `None` where there is none.
    """
    return ModelSpec(
        name=name,
        embed_dim=config.required_size("hidden_size"),
        embedding=embedding or Embedding(vocab_size=config.required_size("vocab_size")),
        layers=runs(layers),
        final_norm=final_norm,
        head=Head(tied=config.flag("tie_word_embeddings"), bias=head_bias),
        max_positions=None if max_positions is None else config.optional_size(max_positions),
        checkpoint=config.checkpoint_format(),
        notes=(*remarks, *notes(config)),
    )


def head_dim(embed: int, heads: int) -> int:
    """Return the width of a head where the config leaves it to be derived."""
    if embed % heads:
        raise InvalidValueError(
            "num_attention_heads", heads, f"must divide hidden_size ({embed}) without a head_dim"
        )
    return embed // heads


def activation(config: Config, field: str) -> Activation:
    """Return the nonlinearity that a field names."""
    name = config.text(field)
    known = _ACTIVATIONS.get(name)
    if known is None:
        raise UnknownNameError(field, name, _ACTIVATIONS)
    return known


def layer_kinds(config: Config, layers: int, allowed: tuple[str, ...]) -> list[str] | None:
    """Return the kind of every layer from ``layer_types``, `None` where it is null."""
    kinds: Any = config.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list | tuple) or len(kinds) != layers:
        raise InvalidValueError("layer_types", kinds, f"must list the kind of all {layers} layers")
    for kind in kinds:
        if kind not in allowed:
            raise InvalidValueError("layer_types", kind, f"must be one of {', '.join(allowed)}")
    return list(kinds)


def rotary(config: Config) -> Rotary:
    """Return the rotary embedding, which is written in one of three ways."""
    parameters = config.mapping("rope_parameters") or {}
    scaling = (config.mapping("rope_scaling") if "rope_scaling" in config else None) or {}
    theta = config.number("rope_theta") if "rope_theta" in config else None
    if theta is None:
        theta = parameters.get("rope_theta", 10000.0)
        if type(theta) not in {int, float} or not 0 < theta < float("inf"):
            raise InvalidValueError("rope_theta", theta, "must be a positive number")
    kind = next(
        (
            source[key]
            for source in (scaling, parameters)
            for key in ("rope_type", "type")
            if key in source
        ),
        "default",
    )
    if not isinstance(kind, str):
        raise InvalidValueError("rope_type", kind, "must be a string")
    return Rotary(theta=float(theta), scaling=None if kind == "default" else kind)


def notes(config: Config) -> tuple[str, ...]:
    """Return what a user should know of the reading."""
    unread = config.unread()
    return (f"fields that were not read: {', '.join(unread)}",) if unread else ()
