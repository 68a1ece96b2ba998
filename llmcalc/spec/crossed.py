"""Attention to what another part of a model has computed.

* `CrossAttention`: keys and values of an image's states, beside self-attention layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from llmcalc.boundary import instance_of, size
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import Axis
from llmcalc.spec.items import Item, Linear, Scale
from llmcalc.spec.part import Group, Part
from llmcalc.spec.parts import Norm

__all__ = ["CrossAttention"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class CrossAttention(Part):
    """The attention of a layer whose keys and values are made of an encoder's states.

    Queries and keys are normed, and two factors weigh what the layer adds. A request of text alone
    skips such layers: they stand in a `llmcalc.spec.Layer` with no ``uses``, which stores its
    weights, computes nothing and holds no cache.

    >>> from llmcalc.spec import Axis, CrossAttention, Norm
    >>> part = CrossAttention(query_heads=4, kv_heads=2, head_dim=16, norm=Norm(kind="rms"))
    >>> [item.name for item in part.items(Axis("embed", 64))][:4]
    ['q', 'k', 'v', 'o']
    """

    group: ClassVar[Group] = "attention"
    usual_label: ClassVar[str] = "crossed"

    query_heads: int = attrs.field(validator=size)
    kv_heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))

    def __attrs_post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            rule = f"must divide query_heads ({self.query_heads})"
            raise InvalidValueError("kv_heads", self.kv_heads, rule)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, norms and factors."""
        queries, keys = Axis("query_heads", self.query_heads), Axis("kv_heads", self.kv_heads)
        head = Axis("head_dim", self.head_dim)
        for name, heads in (("q", queries), ("k", keys), ("v", keys)):
            yield Linear(name=name, into=(embed,), out=((heads, head),), merged="qkv")
        yield Linear(name="o", into=(queries, head), out=((embed,),))
        for name in ("q_norm", "k_norm"):
            yield from self.norm.items(name, (head,))
        for name in ("attention_factor", "feed_forward_factor"):
            yield Scale(name=name, axes=(Axis("factor", 1),))
