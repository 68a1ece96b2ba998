"""Parts of Doge: attention that drops positions by their values, and experts of one vector each.

* `MaskedAttention`: attention over the positions that a learned function of values keeps.
* `RetrievedExperts`: experts of one input and one output vector, found by a product of keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import ClassVar

import attrs

from llmcalc.boundary import flag, instance_of, size
from llmcalc.errors import InvalidValueError
from llmcalc.spec.attention import Attention
from llmcalc.spec.axes import Axis
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.items import Item, Linear, Product, Scale, Table
from llmcalc.spec.part import Group, Part

__all__ = ["MaskedAttention", "RetrievedExperts"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class MaskedAttention(Part):
    """Attention whose values say, for each KV head, how much their position is to be attended.

    The span of `attention` says how many positions stay. At every step the values of all of them
    are read.

    >>> from llmcalc.spec import Attention, Axis, MaskedAttention, TopK
    >>> part = MaskedAttention(
    ...     attention=Attention(query_heads=4, kv_heads=2, head_dim=16, span=TopK(2048))
    ... )
    >>> [item.name for item in part.items(Axis("embed", 64))][-2:]
    ['mask', 'mask_rate']
    """

    group: ClassVar[Group] = "attention"
    usual_label: ClassVar[str] = "masked"

    attention: Attention = attrs.field(validator=instance_of(Attention))
    bias: bool = attrs.field(default=False, validator=flag)

    def check_width(self, embed_dim: int) -> None:
        """Refuse a width that the attention's result does not have."""
        self.attention.check_width(embed_dim)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the attention, and the mask from its values."""
        yield from self.attention.items(embed)
        heads = Axis("kv_heads", self.attention.kv_heads)
        value = Axis("head_dim", self.attention.value_dim or self.attention.head_dim)
        masks = Axis("masks", self.attention.kv_heads)
        yield Linear(
            name="mask",
            into=(heads, value),
            out=((masks,),),
            bias=self.bias,
            tokens="cached",
            span=self.attention.span,
        )
        yield Scale(name="mask_rate", axes=(masks,))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class RetrievedExperts(Part):
    """A feed-forward for all tokens, and `num_experts` of one input and one output vector.

    A router scores two halves of an expert's index, so that it has twice the root of the experts'
    number of results; a token uses `experts_per_token` of the experts.

    Source: He, "Mixture of A Million Experts" (2024), section 2.2.

    >>> from llmcalc.spec import Axis, FeedForward, RetrievedExperts
    >>> part = RetrievedExperts(
    ...     num_experts=64, experts_per_token=4,
    ...     shared=FeedForward(inner_dim=128, gated=True, activation="silu"),
    ... )
    >>> [item.name for item in part.items(Axis("embed", 64))][3:]
    ['router', 'expert_in', 'expert_out', 'experts']
    """

    group: ClassVar[Group] = "experts"
    usual_label: ClassVar[str] = "experts"

    num_experts: int = attrs.field(validator=size)
    experts_per_token: int = attrs.field(validator=size)
    shared: FeedForward = attrs.field(validator=instance_of(FeedForward))

    def __attrs_post_init__(self) -> None:
        if self.experts_per_token > self.num_experts:
            raise InvalidValueError(
                "experts_per_token",
                self.experts_per_token,
                f"must be at most num_experts ({self.num_experts})",
            )

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit what all tokens use, the router, and the experts' vectors with their products."""
        yield from self.shared.shared_items(embed)
        keys = Axis("keys", isqrt(self.num_experts))
        yield Linear(name="router", into=(embed,), out=((Axis("halves", 2), keys),))
        experts, active = Axis("experts", self.num_experts), self.experts_per_token
        for name in ("expert_in", "expert_out"):
            yield Table(
                name=name, rows=experts, row=(embed,), active=active, looked_up=active, routed=True
            )
        # Looked up first, the vectors are then multiplied, once into and once out of the expert.
        ways = Axis("ways", 2)
        yield Product(
            name="experts", axes=(ways, embed), experts=experts, active=active, routed=True
        )
