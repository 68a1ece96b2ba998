"""Mixtures of experts.

* `Experts`: a router and its experts, of which each token uses a few, with what all tokens use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from llmcalc.boundary import flag, instance_of, size
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import Axis
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.items import Item, Linear, Scale

__all__ = ["Experts"]


@attrs.frozen(kw_only=True)
class Experts:
    """A mixture of experts: each token passes through `experts_per_token` of `num_experts`.

    `shared` is a feed-forward that every token passes through as well, weighed by a learned gate
    with `shared_gate`. `router_correction` is a trained offset of each expert's score.

    >>> from llmcalc.spec import Axis, Experts, FeedForward
    >>> part = Experts(
    ...     num_experts=8, experts_per_token=2,
    ...     expert=FeedForward(inner_dim=128, gated=True, activation="silu"),
    ... )
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['router', 'gate', 'up', 'down']
    """

    group: ClassVar[str] = "experts"
    label: ClassVar[str] = "experts"

    num_experts: int = attrs.field(validator=size)
    experts_per_token: int = attrs.field(validator=size)
    expert: FeedForward = attrs.field(validator=instance_of(FeedForward))
    shared: FeedForward | None = attrs.field(
        default=None, validator=attrs.validators.optional(instance_of(FeedForward))
    )
    shared_gate: bool = attrs.field(default=False, validator=flag)
    router_bias: bool = attrs.field(default=False, validator=flag)
    router_correction: bool = attrs.field(default=False, validator=flag)

    def __attrs_post_init__(self) -> None:
        if self.experts_per_token > self.num_experts:
            raise InvalidValueError(
                "experts_per_token",
                self.experts_per_token,
                f"must be at most num_experts ({self.num_experts})",
            )
        if self.shared_gate and self.shared is None:
            raise InvalidValueError("shared_gate", True, "needs a shared expert (shared)")

    def check_width(self, embed_dim: int) -> None:
        """Every width will do: the result has the width of the input."""

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the router, the experts and what is shared."""
        experts = Axis("experts", self.num_experts)
        yield Linear(name="router", into=(embed,), out=((experts,),), bias=self.router_bias)
        if self.router_correction:
            yield Scale(name="router_correction", axes=(experts,))
        for item in self.expert.linears(embed):
            yield attrs.evolve(item, experts=experts, active=self.experts_per_token)
        if self.shared is not None:
            for item in self.shared.linears(embed):
                yield attrs.evolve(item, name=f"shared.{item.name}")
        if self.shared_gate:
            yield Linear(name="shared.weigh", into=(embed,), out=((),))
