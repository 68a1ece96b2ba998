"""The readers: what each family of ``config.json`` files means, as compositions of parts.

A reader takes a `Config` and the model's name and returns a `ModelSpec`. Each is written from the
modelling source of transformers, which it names.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from llmcalc.errors import InvalidValueError, UnknownNameError
from llmcalc.huggingface.config import Config
from llmcalc.spec.attention import Attention, Rotary
from llmcalc.spec.feed_forward import Activation, FeedForward
from llmcalc.spec.model import Block, Layer, LayerRun, ModelSpec
from llmcalc.spec.parts import Embedding, Head, Norm
from llmcalc.spec.spans import Full, Span, Window

__all__ = ["gpt2", "llama", "mistral", "qwen2"]

_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def llama(config: Config, name: str) -> ModelSpec:
    """Read a Llama (transformers, ``models/llama/modeling_llama.py``)."""
    bias = config.flag("attention_bias")
    return gated_decoder(
        config,
        name,
        spans=[Full()] * config.num_layers(),
        query_key_value_bias=bias,
        output_bias=bias,
        feed_forward_bias=config.flag("mlp_bias"),
    )


def mistral(config: Config, name: str) -> ModelSpec:
    """Read a Mistral: every layer has the window, null for none (``modeling_mistral.py``)."""
    window = config.optional_size("sliding_window")
    span = Full() if window is None else Window(window)
    return gated_decoder(config, name, spans=[span] * config.num_layers())


def qwen2(config: Config, name: str) -> ModelSpec:
    """Read a Qwen2, which has biases on queries, keys and values.

    Its window is off unless ``use_sliding_window``, and then only from layer
    ``max_window_layers`` on (``models/qwen2/configuration_qwen2.py``, ``modeling_qwen2.py``).
    """
    layers = config.num_layers()
    window = config.optional_size("sliding_window") if config.flag("use_sliding_window") else None
    first = config.get("max_window_layers")
    if type(first) is not int:
        raise InvalidValueError("max_window_layers", first, "must be an integer")
    kinds = layer_kinds(config, layers, ("full_attention", "sliding_attention"))
    if kinds is None:
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    spans: list[Span] = [
        Window(window) if kind == "sliding_attention" and window is not None else Full()
        for kind in kinds
    ]
    return gated_decoder(config, name, spans=spans, query_key_value_bias=True)


def gpt2(config: Config, name: str) -> ModelSpec:
    """Read a GPT-2 (``models/gpt2/modeling_gpt2.py``)."""
    if config.flag("add_cross_attention"):
        raise InvalidValueError("add_cross_attention", True, "must be false in a decoder")
    embed = config.required_size("hidden_size")
    heads = config.required_size("num_attention_heads")
    inner = config.optional_size("n_inner")
    positions = config.required_size("max_position_embeddings")
    norm = Norm(kind="layer", eps=config.number("layer_norm_epsilon"))
    attention = Attention(
        query_heads=heads,
        kv_heads=heads,
        head_dim=head_dim(embed, heads),
        query_bias=True,
        key_bias=True,
        value_bias=True,
        output_bias=True,
    )
    feed_forward = FeedForward(
        inner_dim=4 * embed if inner is None else inner,
        gated=False,
        activation=activation(config, "activation_function"),
        input_bias=True,
        output_bias=True,
    )
    layer = Layer(blocks=(Block(part=attention, norm=norm), Block(part=feed_forward, norm=norm)))
    return ModelSpec(
        name=name,
        embed_dim=embed,
        embedding=Embedding(
            vocab_size=config.required_size("vocab_size"), learned_positions=positions
        ),
        layers=(LayerRun(count=config.num_layers(), label="decoder", layer=layer),),
        final_norm=norm,
        head=Head(tied=config.flag("tie_word_embeddings")),
        max_positions=positions,
        checkpoint=config.checkpoint_format(),
        notes=notes(config),
    )


def gated_decoder(
    config: Config,
    name: str,
    *,
    spans: list[Span],
    query_key_value_bias: bool = False,
    output_bias: bool = False,
    feed_forward_bias: bool = False,
) -> ModelSpec:
    """Compose the Llama-like decoder that many types are: RMSNorm, rotary, gated, pre-norm."""
    embed = config.required_size("hidden_size")
    heads = config.required_size("num_attention_heads")
    width = config.extra_size("head_dim")
    kv_heads = config.optional_size("num_key_value_heads")
    norm = Norm(kind="rms", eps=config.number("rms_norm_eps"))
    feed_forward = FeedForward(
        inner_dim=config.required_size("intermediate_size"),
        gated=True,
        activation=activation(config, "hidden_act"),
        input_bias=feed_forward_bias,
        output_bias=feed_forward_bias,
    )
    positions = rotary(config)

    def layer(span: Span) -> Layer:
        attention = Attention(
            query_heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=head_dim(embed, heads) if width is None else width,
            query_bias=query_key_value_bias,
            key_bias=query_key_value_bias,
            value_bias=query_key_value_bias,
            output_bias=output_bias,
            rotary=positions,
            span=span,
        )
        return Layer(blocks=(Block(part=attention, norm=norm), Block(part=feed_forward, norm=norm)))

    return ModelSpec(
        name=name,
        embed_dim=embed,
        embedding=Embedding(vocab_size=config.required_size("vocab_size")),
        layers=tuple(
            LayerRun(
                count=len(list(run)),
                label="window" if isinstance(span, Window) else "decoder",
                layer=layer(span),
            )
            for span, run in groupby(spans)
        ),
        final_norm=norm,
        head=Head(tied=config.flag("tie_word_embeddings")),
        max_positions=config.optional_size("max_position_embeddings"),
        checkpoint=config.checkpoint_format(),
        notes=notes(config),
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
