"""Mixtures of experts.

* `RouterNetwork`: a router of several matrices.
* `Experts`: a router and its experts, of which each token uses a few, with what all tokens use.
* `AttentionExperts`: attention whose query and output projections are experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from llmcalc.boundary import flag, instance_of, size
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import Axis
from llmcalc.spec.feed_forward import FeedForward, Routing
from llmcalc.spec.items import Cache, Item, Linear, Mix, Scale, Table
from llmcalc.spec.part import Group, Part
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Full, Span

__all__ = ["AttentionExperts", "Experts", "RouterNetwork"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class RouterNetwork(Described):
    """A router of several matrices of `width`: down, two with biases, and one to the choices.

    With `carries` it adds the inner state of the router of the layer before, by trained factors.
    """

    width: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))
    carries: bool = attrs.field(validator=flag)

    def items(self, embed: Axis, choices: Axis) -> Iterator[Item]:
        """Emit the matrices, the factors and the norm."""
        width = Axis("router", self.width)
        yield Linear(name="router.down", of="router", into=(embed,), out=((width,),), bias=True)
        if self.carries:
            yield Scale(name="router.carried", of="router", axes=(width,))
        yield from self.norm.items("router.norm", (width,), of="router")
        for name in ("router.1", "router.2"):
            yield Linear(name=name, of="router", into=(width,), out=((width,),), bias=True)
        yield Linear(name="router", into=(width,), out=((choices,),))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Experts(Part):
    """A mixture of experts: each token passes through `experts_per_token` of `num_experts`.

    `shared` is a feed-forward that every token passes through as well, weighed by a learned gate
    with `shared_gate`. `router_correction` is a trained offset of each expert's score.
    `output_bias` is one of the sum of the experts' results, `router_scale` a trained scale of
    what the router reads.
    `more_choices` are further results of the router, for shared experts or for none of the
    routed ones; `router_factor` is one factor of them all; a `router_network` stands for the
    matrix of the router.
    `no_op_experts` are further ones that the router may pick and that pass their input on, so
    that `experts_per_token` is the most that a token meets of the others. Transformers stores
    gate and up matrices for them, which nothing reads.
    `balanced_choices` are those of the router whose scores have an offset that training sets by
    the experts' load, and by no gradient: a buffer. With `token_rows` the experts of each token
    are listed instead, in a buffer with a row for each of so many tokens.
    With `latent_dim` the routed experts work on that many elements, to and from which two
    matrices bring all tokens. `active_in_transformers` is how many experts transformers computes
    for each token, where it is not `experts_per_token`.

    >>> from llmcalc.spec import Axis, Experts, FeedForward
    >>> part = Experts(
    ...     num_experts=8, experts_per_token=2,
    ...     expert=FeedForward(inner_dim=128, gated=True, activation="silu"),
    ... )
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['router', 'gate', 'up', 'down']
    """

    group: ClassVar[Group] = "experts"
    usual_label: ClassVar[str] = "experts"

    num_experts: int = attrs.field(validator=size)
    experts_per_token: int = attrs.field(validator=size)
    expert: FeedForward = attrs.field(validator=instance_of(FeedForward))
    shared: FeedForward | None = attrs.field(
        default=None, validator=attrs.validators.optional(instance_of(FeedForward))
    )
    shared_gate: bool = attrs.field(default=False, validator=flag)
    router_bias: bool = attrs.field(default=False, validator=flag)
    router_correction: bool = attrs.field(default=False, validator=flag)
    balanced_choices: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(size)
    )
    token_rows: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))
    no_op_experts: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))
    more_choices: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))
    router_factor: bool = attrs.field(default=False, validator=flag)
    router_network: RouterNetwork | None = attrs.field(default=None)
    output_bias: bool = attrs.field(default=False, validator=flag)
    router_scale: bool = attrs.field(default=False, validator=flag)
    latent_dim: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))
    latent_bias: bool = attrs.field(default=False, validator=flag)
    active_in_transformers: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(size)
    )

    def __attrs_post_init__(self) -> None:
        _check_choice(self.experts_per_token, self.num_experts + (self.no_op_experts or 0))
        if not self.expert.inner_dim:
            raise InvalidValueError("expert", self.expert, "must have an inner_dim of at least 1")
        if self.shared_gate and self.shared is None:
            raise InvalidValueError("shared_gate", True, "needs a shared expert (shared)")

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the router, the experts and what is shared."""
        yield from self._router(embed)
        yield from self._routed(embed)
        if self.no_op_experts is not None:
            yield from self._unread(embed, self.no_op_experts)
        if self.shared is not None:
            yield from self.shared.shared_items(embed)
        if self.shared_gate:
            yield Linear(name="shared.weigh", of="shared", into=(embed,), out=((),))
        if self.output_bias:
            yield Scale(name="bias", axes=(embed,))

    def _routed(self, embed: Axis) -> Iterator[Item]:
        """Emit the routed experts, and what brings tokens to their width and back."""
        experts, width = Axis("experts", self.num_experts), embed
        if self.latent_dim is not None:
            width = Axis("expert_latent", self.latent_dim)
            yield Linear(name="to_latent", into=(embed,), out=((width,),), bias=self.latent_bias)
            yield Linear(name="from_latent", into=(width,), out=((embed,),), bias=self.latent_bias)
        active = min(self.experts_per_token, self.num_experts)
        routing = Routing(experts, active, self.active_in_transformers)
        yield from self.expert.items(width, routing=routing)

    def _router(self, embed: Axis) -> Iterator[Item]:
        """Emit the router, with what is learned besides it."""
        more = (self.no_op_experts or 0) + (self.more_choices or 0)
        choices = Axis("experts", self.num_experts + more)
        if self.router_network is None:
            yield Linear(name="router", into=(embed,), out=((choices,),), bias=self.router_bias)
        else:
            yield from self.router_network.items(embed, choices)
        if self.router_factor:
            yield Scale(name="router_factor", axes=(Axis("factor", 1),))
        if self.router_scale:
            yield Scale(name="router_scale", axes=(embed,))
        if self.router_correction:
            yield Scale(name="router_correction", axes=(choices,))
        if self.balanced_choices is not None:
            balanced = Axis("experts", self.balanced_choices)
            yield Scale(name="router_balance", axes=(balanced,), buffer=True)
        if self.token_rows is not None:
            rows, chosen = Axis("vocab", self.token_rows), Axis("chosen", self.experts_per_token)
            yield Table(name="token_experts", rows=rows, row=(chosen,), buffer=True)

    def _unread(self, embed: Axis, number: int) -> Iterator[Item]:
        """Emit the matrices of the no-op experts, of which as large a share counts as active."""
        rows = Axis("experts", number)
        active = min(number, -(-number * self.experts_per_token // self.num_experts))
        for item in self.expert.linears(embed):
            if item.inner == "made":
                row = (*item.out[0], *item.into)
                name = f"no_op.{item.name}"
                yield Table(name=name, rows=rows, row=row, active=active, looked_up=0, routed=True)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class AttentionExperts(Part):
    """A mixture of attention: each expert has its own queries and output projection.

    A token passes through `experts_per_token` of `num_experts`, each with `kv_heads` query heads
    over the keys and values that all experts share. The result has a bias.

    Source: Zhang et al., "Mixture of Attention Heads" (2022), section 3.

    >>> from llmcalc.spec import AttentionExperts, Axis
    >>> part = AttentionExperts(num_experts=8, experts_per_token=2, kv_heads=4, head_dim=16)
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['router', 'q', 'k', 'v', 'k', 'v', 'attention', 'o', 'bias']
    """

    group: ClassVar[Group] = "attention"
    usual_label: ClassVar[str] = "attention experts"

    num_experts: int = attrs.field(validator=size)
    experts_per_token: int = attrs.field(validator=size)
    kv_heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    span: Span = attrs.field(default=Full())

    def __attrs_post_init__(self) -> None:
        _check_choice(self.experts_per_token, self.num_experts)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the router, projections, caches and mixing."""
        experts, active = Axis("experts", self.num_experts), self.experts_per_token
        heads, head = Axis("kv_heads", self.kv_heads), Axis("head_dim", self.head_dim)
        yield Linear(name="router", into=(embed,), out=((experts,),))
        out, merged = ((heads, head),), "qkv"
        yield Linear(
            name="q", into=(embed,), out=out, experts=experts, active=active, merged=merged
        )
        for name in ("k", "v"):
            yield Linear(name=name, into=(embed,), out=out, merged=merged)
        for name in ("k", "v"):
            yield Cache(name=name, role="kv", shape=(heads, head), span=self.span)
        queries = Axis("query_heads", self.kv_heads * active)
        yield Mix(name="attention", heads=queries, query_key=head, value=head, span=self.span)
        yield Linear(name="o", into=(heads, head), out=((embed,),), experts=experts, active=active)
        yield Scale(name="bias", axes=(embed,))


def _check_choice(experts_per_token: int, num_experts: int) -> None:
    if experts_per_token > num_experts:
        raise InvalidValueError(
            "experts_per_token", experts_per_token, f"must be at most num_experts ({num_experts})"
        )
