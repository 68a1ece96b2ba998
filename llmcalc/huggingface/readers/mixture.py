"""What readers of mixtures of experts share.

* `mixture`: a model whose layers have experts, or a dense feed-forward, by a plan.
* `experts`: the mixture of experts of the usual fields.
* `shared_expert`: the expert that all tokens share.
* `further`: the modules that predict further tokens, of the usual fields.
* `dense_first`, `mlp_kinds`, `every_nth`: plans of the layers that have experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias, TypedDict, Unpack

import attrs

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    FULL,
    assemble,
    each_once,
    feed_forward,
    layer_kinds,
    num_predicted,
    pre_norm,
    predicted,
    rms_norm,
)
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import Beside, Layer, ModelSpec, Part
from llmcalc.spec.multi_token import MultiToken
from llmcalc.spec.parts import Embedding, Norm

__all__ = [
    "Make",
    "always_silu",
    "dense_first",
    "every_nth",
    "experts",
    "further",
    "mixture",
    "mlp_kinds",
    "shared_expert",
]


class ExpertsOptions(TypedDict, total=False):
    """Options of `Experts` that `experts` passes on."""

    shared: FeedForward | None
    shared_gate: bool
    router_bias: bool
    router_correction: bool
    router_factor: bool
    more_choices: int | None
    no_op_experts: int | None
    balanced_choices: int
    token_rows: int
    active_in_transformers: int


def experts(
    config: Config,
    number: str,
    inner: str = "moe_intermediate_size",
    *,
    top_k: str = "num_experts_per_tok",
    shared_count: str | None = None,
    shared_bias: bool = False,
    bias: bool = False,
    balanced: bool = False,
    **options: Unpack[ExpertsOptions],
) -> Experts:
    """Compose a mixture of experts; `number`, `inner`, `top_k`, `shared_count` are fields.

    Shared experts that a field counts are one feed-forward of all their widths. In a `balanced`
    mixture each expert's score has an offset in a buffer (``e_score_correction_bias``).
    """
    width = config.required_size(inner)
    expert = feed_forward(config, inner_dim=width, bias=bias)
    if shared_count is not None:
        shared_width = width * config.count(shared_count)
        options["shared"] = feed_forward(config, inner_dim=shared_width, bias=shared_bias)
    if balanced:
        idle = options.get("no_op_experts") or 0
        options.setdefault("balanced_choices", config.required_size(number) + idle)
    return Experts(
        num_experts=config.required_size(number),
        experts_per_token=config.required_size(top_k),
        expert=expert,
        **options,
    )


def always_silu(part: Experts) -> Experts:
    """Return the experts with the activation that the model uses whatever ``hidden_act`` says."""
    return attrs.evolve(part, expert=attrs.evolve(part.expert, activation="silu"))


def shared_expert(config: Config, field: str = "shared_expert_intermediate_size") -> FeedForward:
    """Compose the expert that all tokens share, whose width may be zero."""
    return feed_forward(config, inner_dim=config.required_count(field))


#: What composes the layer of a kind of attention, with experts or without.
Make: TypeAlias = Callable[[tuple[str, bool]], Layer]

#: What composes a layer of a norm and its two parts, such as `pre_norm`.
Compose: TypeAlias = Callable[[Norm, Part, Part], Layer]


class ModelOptions(TypedDict, total=False):
    """Options of `assemble` that `mixture` passes on."""

    embedding: Embedding
    head_bias: bool
    may_tie: bool
    beside: tuple[Beside, ...]
    multi_token: tuple[MultiToken, ...]
    remarks: tuple[str, ...]


def further(config: Config, kind: str = FULL) -> Callable[[Make], tuple[MultiToken, ...]]:
    """Return what makes DeepSeek's modules for further tokens: one layer with experts each."""

    def make_modules(make: Make) -> tuple[MultiToken, ...]:
        count = num_predicted(config)
        return predicted([make((kind, True))] * count, rms_norm(config)) if count else ()

    return make_modules


def mixture(
    config: Config,
    name: str,
    routed: Callable[[], Experts],
    *,
    sparse: Iterable[bool] | None = None,
    dense: Callable[[], Part] | None = None,
    kinds: Iterable[str] | None = None,
    mixer: Callable[[str], Part],
    norm: Norm | None = None,
    layer: Compose = pre_norm,
    predicts: Callable[[Make], tuple[MultiToken, ...]] | None = None,
    **options: Unpack[ModelOptions],
) -> ModelSpec:
    """Compose a model whose layers differ in two ways, each pair composed once.

    `kinds` are the kinds of attention layers, which `mixer` makes; `sparse` says which layers
    have experts, which `routed` makes, instead of what `dense` makes: by default all. `layer`
    composes a layer of a norm and two parts; `predicts` makes the modules that predict
    further tokens, with what composes a layer of either kind.
    """
    norm = norm or rms_norm(config)
    layers = config.num_layers()
    make_dense: Callable[[], Part] = dense or (lambda: feed_forward(config))

    def make(pair: tuple[str, bool]) -> Layer:
        kind, has_experts = pair
        return layer(norm, mixer(kind), routed() if has_experts else make_dense())

    plan = zip(kinds or [FULL] * layers, sparse or [True] * layers, strict=True)
    if predicts is not None:
        options["multi_token"] = predicts(make)
    return assemble(config, name, each_once(plan, make), final_norm=norm, **options)


def dense_first(config: Config, field: str = "first_k_dense_replace") -> list[bool]:
    """Return which layers have experts: all but the first few, counted by the field."""
    first = config.count(field)
    return [index >= first for index in range(config.num_layers())]


def mlp_kinds(config: Config, first_dense: int | str, *, longer: bool = False) -> list[bool]:
    """Return which layers have experts, from ``mlp_layer_types``; null is all but the first few.

    `first_dense` is how many these are, or the field that says so; `longer` is that of
    `layer_kinds`.
    """
    layers = config.num_layers()
    kinds = layer_kinds(config, layers, ("dense", "sparse"), "mlp_layer_types", longer=longer)
    if kinds is not None:
        return [kind == "sparse" for kind in kinds]
    first = config.count(first_dense) if isinstance(first_dense, str) else first_dense
    return [index >= first for index in range(layers)]


def every_nth(config: Config) -> list[bool]:
    """Return which layers have experts: every n-th from a first one on, unless listed."""
    first = config.integer("first_k_dense_replace", 1)
    every = config.integer("moe_layer_freq", 1)
    if every < 1:
        raise InvalidValueError("moe_layer_freq", every, "must be at least 1")
    from_first = mlp_kinds(config, max(first, 0), longer=True)
    if config.get("mlp_layer_types") is not None:
        return from_first
    return [sparse and index % every == 0 for index, sparse in enumerate(from_first)]
