"""What readers share: the usual fields of a ``config.json``, and the usual composition of parts.

* `attention`: grouped-query attention of the usual fields, with options.
* `feed_forward`: a feed-forward of the usual fields.
* `biases`, `head_norms`: options of attention that many models have.
* `pre_norm`, `sandwich`: a layer of residual blocks, each after a norm, or between two.
* `assemble`: the model, from its layers.
* `each_once`: the layers of a model with several kinds, each kind composed once.
* `layer_kinds`, `layer_indices`, `window_kinds`, `window_span`, `span_of`: the plan of the layers.
* `num_predicted`, `predicted`: modules that predict further tokens.
* `rotary`, `activation`, `head_dim`, `rms_norm`, `notes`: single facts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import groupby
from typing import Final, Literal, TypedDict, TypeVar, Unpack

from llmcalc.errors import InvalidValueError, UnknownNameError, shown
from llmcalc.huggingface.config import LARGEST_NUMBER, MOST_LAYERS, Config
from llmcalc.spec.attention import Attention, Indexer, Rotary
from llmcalc.spec.feed_forward import Activation, FeedForward
from llmcalc.spec.model import Beside, Block, Layer, ModelSpec, Part, runs
from llmcalc.spec.multi_token import MultiToken
from llmcalc.spec.parts import Embedding, Head, Norm
from llmcalc.spec.spans import Full, Span, Window

__all__ = [
    "AttentionOptions",
    "FULL",
    "LINEAR",
    "SLIDING",
    "activation",
    "assemble",
    "attention",
    "biases",
    "each_once",
    "feed_forward",
    "head_dim",
    "head_norms",
    "layer_indices",
    "layer_kinds",
    "notes",
    "num_predicted",
    "pre_norm",
    "predicted",
    "rms_norm",
    "rotary",
    "sandwich",
    "span_of",
    "window_kinds",
    "window_span",
]

#: The kinds of layers in ``layer_types`` that many models have.
FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"
LINEAR: Final = "linear_attention"

#: Older names of kinds, which transformers reads as the newer ones.
_LEGACY_KINDS: Final = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}

#: The fields that say how many modules predict further tokens.
_NUM_PREDICTED: Final = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "num_mtp_modules",
    "mtp_num_hidden_layers",
    "mtp_num_layers",
)

K = TypeVar("K", bound=Hashable)

_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_10": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "hardswish": "hardswish",
    "laplace": "laplace",
    "leaky_relu": "leaky_relu",
    "linear": "linear",
    "mish": "mish",
    "prelu": "prelu",
    "quick_gelu": "quick_gelu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "sqrtsoftplus": "softplus_sqrt",
    "tanh": "tanh",
    "xielu": "xielu",
}


#: The models whose files, those of llama.cpp too, have queries, keys and values as one matrix.
#: Source: llama.cpp, ``gguf-py/gguf/tensor_mapping.py`` (``ATTN_QKV``).
FUSED: Final = frozenset(
    (
        *("bloom", "chatglm", "dbrx", "falcon", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox"),
        *("mpt", "persimmon", "phi3", "qwen"),
    )
)


class AttentionOptions(TypedDict, total=False):
    """Options of `Attention` that `attention` passes on."""

    span: Span
    value_dim: int
    output_bias: bool
    query_norm: Norm | None
    key_norm: Norm | None
    norm_axes: Literal["head", "heads"]
    sinks: bool
    output_gate: Literal["element", "head"] | None
    gate_bias: bool
    head_gate_bias: bool
    output_norm: Norm | None
    value_is_key: bool
    shares_cache: bool
    indexer: Indexer | None
    differential: bool
    alibi: bool


def attention(
    config: Config,
    *,
    positions: Rotary | None = None,
    query_key_value_bias: bool = False,
    width: int | None = None,
    num_kv_heads: int | None = None,
    **options: Unpack[AttentionOptions],
) -> Attention:
    """Compose attention from the usual fields.

    A missing or null ``num_key_value_heads`` is one KV head a query head, and a missing or null
    ``head_dim`` the width divided by the heads, rounded down. `width` and `num_kv_heads` stand for
    these fields where the model does not read them.
    """
    embed = config.required_size("hidden_size")
    heads = config.required_size("num_attention_heads")
    if width is None:
        width = config.extra_size("head_dim")
    kv_heads = config.optional_size("num_key_value_heads") if num_kv_heads is None else num_kv_heads
    if kv_heads is not None and heads % kv_heads:
        raise InvalidValueError(
            "num_key_value_heads", kv_heads, f"must divide num_attention_heads ({heads})"
        )
    return Attention(
        query_heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim(embed, heads, rounded=True) if width is None else width,
        query_bias=query_key_value_bias,
        key_bias=query_key_value_bias,
        value_bias=query_key_value_bias,
        rotary=positions,
        fused=config.model_type in FUSED,
        **options,
    )


class HeadNorms(TypedDict):
    """The options of attention that give queries and keys a norm."""

    query_norm: Norm
    key_norm: Norm


class Biases(TypedDict):
    """The options of attention that give its four projections a bias."""

    query_key_value_bias: bool
    output_bias: bool


def biases(config: Config) -> Biases:
    """Return the options of attention whose four projections have a bias by one flag."""
    bias = config.flag("attention_bias")
    return {"query_key_value_bias": bias, "output_bias": bias}


def head_norms(config: Config) -> HeadNorms:
    """Return the options of attention with a norm of each query and key."""
    norm = rms_norm(config)
    return {"query_norm": norm, "key_norm": norm}


def feed_forward(
    config: Config,
    inner: str = "intermediate_size",
    *,
    gated: bool = True,
    bias: bool = False,
    activation_field: str = "hidden_act",
    inner_dim: int | None = None,
    inner_norm: Norm | None = None,
) -> FeedForward:
    """Compose a feed-forward whose width is in the field `inner`, unless `inner_dim` gives it."""
    return FeedForward(
        inner_dim=config.required_size(inner) if inner_dim is None else inner_dim,
        gated=gated,
        activation=activation(config, activation_field),
        input_bias=bias,
        output_bias=bias,
        inner_norm=inner_norm,
    )


def rms_norm(config: Config, field: str = "rms_norm_eps") -> Norm:
    """Return an RMSNorm with the epsilon of the field."""
    return Norm(kind="rms", eps=config.number(field))


def pre_norm(norm: Norm, *parts: Part) -> Layer:
    """Return a layer of residual blocks ``x + part(norm(x))``."""
    return Layer(blocks=tuple(Block(part=part, norm=norm) for part in parts))


def sandwich(norm: Norm, *parts: Part) -> Layer:
    """Return a layer of blocks with a norm before and after each part."""
    return Layer(blocks=tuple(Block(part=part, norm=norm, post_norm=norm) for part in parts))


def assemble(
    config: Config,
    name: str,
    layers: Iterable[Layer],
    *,
    final_norm: Norm | None,
    embedding: Embedding | None = None,
    head_bias: bool = False,
    head_width: int | None = None,
    max_positions: str | None = "max_position_embeddings",
    may_tie: bool = True,
    beside: tuple[Beside, ...] = (),
    multi_token: tuple[MultiToken, ...] = (),
    remarks: tuple[str, ...] = (),
) -> ModelSpec:
    """Return the model whose vocabulary, head and position limit are in the usual fields.

    `max_positions` names the field of the position limit, `None` where there is none. A model
    that may not tie its head to the token table does not, whatever its config says. A limit of
    zero is none.
    """
    return ModelSpec(
        name=name,
        embed_dim=config.required_size("hidden_size"),
        embedding=embedding or Embedding(vocab_size=config.required_size("vocab_size")),
        layers=runs(layers),
        final_norm=final_norm,
        head=Head(
            tied=may_tie and config.flag("tie_word_embeddings"), bias=head_bias, width=head_width
        ),
        max_positions=None if max_positions is None else config.limit(max_positions),
        beside=beside,
        multi_token=multi_token,
        checkpoint=config.checkpoint_format(),
        notes=(*remarks, *notes(config)),
    )


def num_predicted(config: Config, field: str = "num_nextn_predict_layers") -> int:
    """Return how many modules predict further tokens: none where nothing says so, or null."""
    if not config.knows(field) or config.get(field) is None:
        return 0
    count = config.count(field)
    if count > MOST_LAYERS:
        raise InvalidValueError(field, count, f"must be at most {MOST_LAYERS}")
    return count


def predicted(
    layers: Iterable[Layer],
    norm: Norm,
    *,
    last_norm: Literal["each", "one", "none"] = "each",
    beside: tuple[Beside, ...] = (),
) -> tuple[MultiToken, ...]:
    """Return modules that predict further tokens, of one layer each."""
    modules = (
        MultiToken(
            count=sum(1 for _ in equal),
            layers=(layer,),
            norm=norm,
            last_norm=last_norm,
            beside=beside,
        )
        for layer, equal in groupby(layers)
    )
    return tuple(modules)


def head_dim(embed: int, heads: int, *, rounded: bool = False) -> int:
    """Return the width of a head where the config leaves it to be derived, perhaps rounded down."""
    if rounded and heads > embed:
        rule = f"must be at most hidden_size ({embed}) without a head_dim"
        raise InvalidValueError("num_attention_heads", heads, rule)
    if embed % heads and not rounded:
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


def layer_kinds(
    config: Config,
    layers: int,
    allowed: tuple[str, ...],
    field: str = "layer_types",
    *,
    longer: bool = False,
) -> list[str] | None:
    """Return the kind of every layer from the field, `None` where it is null.

    The list may be `longer` than the model where transformers does not check its length.
    """
    given = config.get(field)
    if given is None:
        return None
    if longer and isinstance(given, list | tuple):
        given = given[:layers]
    if not isinstance(given, list | tuple) or len(given) != layers:
        raise InvalidValueError(field, given, f"must list the kind of all {layers} layers")
    kinds = [_LEGACY_KINDS.get(kind, kind) if isinstance(kind, str) else kind for kind in given]
    for kind in kinds:
        if kind not in allowed:
            raise InvalidValueError(field, kind, f"must be one of {', '.join(allowed)}")
    return kinds


def layer_indices(config: Config, field: str) -> frozenset[int] | None:
    """Return the layers that a field lists, `None` where it is null."""
    given = config.get(field)
    if given is None:
        return None
    if not isinstance(given, list | tuple) or any(type(index) is not int for index in given):
        raise InvalidValueError(field, given, "must list indices of layers, or be null")
    return frozenset(given)


def window_span(config: Config) -> Span:
    """Return the span of a model whose layers all have the window, null for none."""
    window = config.optional_size("sliding_window")
    return Full() if window is None else Window(window)


def span_of(config: Config, kind: str) -> Span:
    """Return the span of a kind of layer; a null window is none, and is read where it is used."""
    return window_span(config) if kind == SLIDING else Full()


def window_kinds(config: Config, is_window: Callable[[int], bool]) -> list[str]:
    """Return the kind of every layer: that in ``layer_types``, else what its index says."""
    layers = config.num_layers()
    kinds = layer_kinds(config, layers, (FULL, SLIDING))
    if kinds is None:
        kinds = [SLIDING if is_window(index) else FULL for index in range(layers)]
    return kinds


def each_once(kinds: Iterable[K], make: Callable[[K], Layer]) -> list[Layer]:
    """Return the layer of every kind in the list; each kind is composed once."""
    kinds = list(kinds)
    layers = {kind: make(kind) for kind in dict.fromkeys(kinds)}
    return [layers[kind] for kind in kinds]


def rotary(
    config: Config,
    *,
    kind: str | None = None,
    theta_field: str = "rope_theta",
    theta: float | None = None,
    fraction_field: str = "partial_rotary_factor",
    fraction: float | None = None,
) -> Rotary:
    """Return the rotary embedding, which is written in one of three ways.

    `kind` is the kind of layer where each kind has its own parameters. `theta` is the class
    default where it is not that of the field; `fraction` that of the head's turned part, `None`
    where the model always turns the whole head.
    """
    known = config.knows("rope_parameters")  # not of every class
    parameters = (config.mapping("rope_parameters") if known else None) or {}
    scaling = (config.mapping("rope_scaling") if "rope_scaling" in config else None) or {}
    own = parameters.get(kind) if kind is not None else None
    if isinstance(own, Mapping):
        parameters = own
    if theta_field in config:
        base = config.number(theta_field)
    else:
        usual: object = theta
        if theta is None:
            usual = config.get("rope_theta") if config.knows("rope_theta") else 10000.0
        base = _positive("rope_theta", parameters.get("rope_theta", usual))
    turned = 1.0
    if fraction is not None:
        if fraction_field in config:
            fraction = config.number(fraction_field)
        turned = _positive(
            "partial_rotary_factor", parameters.get("partial_rotary_factor", fraction)
        )
    scheme = next(
        (
            source[key]
            for source in (scaling, parameters)
            for key in ("rope_type", "type")
            if key in source
        ),
        "default",
    )
    if not isinstance(scheme, str):
        raise InvalidValueError("rope_type", scheme, "must be a string")
    return Rotary(
        theta=base, scaling=None if scheme == "default" else scheme, fraction=min(turned, 1.0)
    )


def _positive(field: str, value: object) -> float:
    if not isinstance(value, int | float) or value is True or not 0 < value < LARGEST_NUMBER:
        raise InvalidValueError(field, value, "must be a positive number")
    return float(value)


def notes(config: Config) -> tuple[str, ...]:
    """Return what a user should know of the reading."""
    left = [
        f"modules that predict further tokens are not counted ({field}: {shown(config.get(field))})"
        for field in _NUM_PREDICTED
        if field in config and not config.was_read(field) and config.get(field)
    ]
    config.pass_over(*_NUM_PREDICTED)
    unread = config.unread()
    if "per_layer_config" in unread and (layers := config.get("per_layer_config")):
        raise InvalidValueError(
            "per_layer_config", layers, f"must be empty: layers of a {config.model_type} are alike"
        )
    return (*left, f"fields that were not read: {', '.join(unread)}") if unread else tuple(left)
