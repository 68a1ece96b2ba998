"""Attention: multi-head, grouped-query and multi-query, with its options.

* `Attention`: the projections, the cache and the mixing of one attention part.
* `Rotary`: rotary position embedding, which has no parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from llmcalc.boundary import flag, instance_of, size
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import Axis
from llmcalc.spec.items import Cache, Item, Linear, Mix
from llmcalc.spec.spans import Full, Span, Window

__all__ = ["Attention", "Rotary"]


@attrs.frozen(kw_only=True)
class Rotary:
    """Rotary position embedding over the whole head.

    `theta` is the base of the frequencies; `scaling` names a scheme that changes them
    (``"llama3"``, ``"yarn"`` ...), `None` for none. Neither changes any count.
    """

    theta: float = 10000.0
    scaling: str | None = None


@attrs.frozen(kw_only=True)
class Attention:
    """Softmax attention of `query_heads` queries over `kv_heads` keys and values.

    `query_heads` == `kv_heads` is multi-head, `kv_heads` == 1 multi-query, between them
    grouped-query attention. `head_dim` need not be the width divided by the heads. Scores are
    scaled by 1 / sqrt(head_dim). Without `output`, the heads' results are the part's result.

    >>> from llmcalc.spec import Attention, Axis
    >>> part = Attention(query_heads=4, kv_heads=2, head_dim=16)
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['q', 'k', 'v', 'k', 'v', 'attention', 'o']
    """

    group: ClassVar[str] = "attention"

    query_heads: int = attrs.field(validator=size)
    kv_heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    query_bias: bool = attrs.field(default=False, validator=flag)
    key_bias: bool = attrs.field(default=False, validator=flag)
    value_bias: bool = attrs.field(default=False, validator=flag)
    output: bool = attrs.field(default=True, validator=flag)
    output_bias: bool = attrs.field(default=False, validator=flag)
    rotary: Rotary | None = attrs.field(
        default=None, validator=attrs.validators.optional(instance_of(Rotary))
    )
    span: Span = attrs.field(default=Full(), validator=instance_of(Full, Window))

    def __attrs_post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            raise InvalidValueError(
                "kv_heads", self.kv_heads, f"must divide query_heads ({self.query_heads})"
            )
        if self.rotary is not None and self.head_dim % 2:
            raise InvalidValueError("head_dim", self.head_dim, "must be even for rotary positions")
        if self.output_bias and not self.output:
            raise InvalidValueError("output_bias", True, "needs an output projection (output)")

    def check_width(self, embed_dim: int) -> None:
        """Refuse a width that the part's result does not have."""
        result = self.query_heads * self.head_dim
        if not self.output and result != embed_dim:
            raise InvalidValueError(
                "embed_dim",
                embed_dim,
                f"must be query_heads x head_dim ({result}) without an output projection",
            )

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, caches and mixing."""
        queries = Axis("query_heads", self.query_heads)
        keys = Axis("kv_heads", self.kv_heads)
        head = Axis("head_dim", self.head_dim)
        for name, heads, bias in (
            ("q", queries, self.query_bias),
            ("k", keys, self.key_bias),
            ("v", keys, self.value_bias),
        ):
            yield Linear(name=name, into=(embed,), out=((heads, head),), bias=bias)
        for name in ("k", "v"):
            yield Cache(name=name, role="kv", shape=(keys, head), span=self.span)
        yield Mix(name="attention", heads=queries, query_key=head, value=head, span=self.span)
        if self.output:
            yield Linear(name="o", into=(queries, head), out=((embed,),), bias=self.output_bias)
