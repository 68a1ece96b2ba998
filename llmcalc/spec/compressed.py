"""Attention to a window and to compressed positions before it.

* `CompressedAttention`: queries and one key-value vector from latents, grouped output.
* `Compressor`: what makes one vector of several positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from llmcalc.boundary import flag, instance_of, size
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import Axis
from llmcalc.spec.items import Cache, Item, Linear, Mix, Scale
from llmcalc.spec.part import Group, Part
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Chunk, Compressed, Constant, Remainder, Window

__all__ = ["CompressedAttention", "Compressor"]

_optional = attrs.validators.optional


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Compressor(Described):
    """Makes one vector of every `ratio` positions: their sum, with weights for each element.

    With `overlaps`, positions count in the next vector as well, with a second half of their
    projections. The vectors are kept, and the projections of positions that are not complete.
    """

    ratio: int = attrs.field(validator=size)
    overlaps: bool = attrs.field(validator=flag)
    norm: Norm = attrs.field(validator=instance_of(Norm))

    def items(self, name: str, embed: Axis, head: Axis) -> Iterator[Item]:
        """Emit the projections, and what is kept besides the vectors."""
        ratio = Axis("ratio", self.ratio)
        halves = (Axis("halves", 2), head) if self.overlaps else (head,)
        both = Axis("value_and_weight", 2)
        yield Linear(name=f"{name}_kv", into=(embed,), out=(halves,))
        yield Linear(name=f"{name}_gate", into=(embed,), out=(halves,))
        yield Scale(name=f"{name}_position", axes=(ratio, *halves))
        yield from self.norm.items(f"{name}_norm", (head,))
        shape = (both, *halves)
        yield Cache(
            name=f"{name}_open",
            role="state",
            shape=shape,
            span=Chunk(self.ratio),
            in_transformers=((shape, Remainder(self.ratio)),),
            reader=f"{name}_kv",
        )
        if self.overlaps:
            yield Cache(
                name=f"{name}_overlap",
                role="state",
                shape=(both, ratio, head),
                span=Constant(),
                reader=f"{name}_kv",
            )


@attrs.frozen(kw_only=True, repr=False, eq=False)
class CompressedAttention(Part):
    """Attention to the last `window` positions, and to compressed ones where there is a compressor.

    All query heads share one vector a position, which is key and value. Queries come from a
    latent; the results of `output_groups` groups of heads are each brought to `output_rank`
    elements, and these to the width. An indexer of `index_heads` heads of `index_dim` has a
    compressor of its own, and picks `index_top` compressed positions.

    Source: DeepSeek-AI, "DeepSeek-V4" (2026), section 2.3.

    >>> from llmcalc.spec import Axis, CompressedAttention, Norm
    >>> part = CompressedAttention(
    ...     query_heads=4, head_dim=16, query_latent_dim=32, window=8, output_groups=2,
    ...     output_rank=8, norm=Norm(kind="rms"),
    ... )
    >>> [item.name for item in part.items(Axis("embed", 64)) if "norm" not in item.name]
    ['q_a', 'q_b', 'kv', 'sinks', 'kv', 'attention', 'o_a', 'o_b']
    """

    group: ClassVar[Group] = "attention"

    query_heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    query_latent_dim: int = attrs.field(validator=size)
    window: int = attrs.field(validator=size)
    output_groups: int = attrs.field(validator=size)
    output_rank: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))
    compressor: Compressor | None = attrs.field(
        default=None, validator=_optional(instance_of(Compressor))
    )
    index_heads: int | None = attrs.field(default=None, validator=_optional(size))
    index_dim: int | None = attrs.field(default=None, validator=_optional(size))
    index_top: int | None = attrs.field(default=None, validator=_optional(size))

    @property
    def label(self) -> str:
        """What tells layers of this kind from others."""
        if self.compressor is None:
            return "window"
        return "compressed" if self.index_top is None else "compressed sparse"

    def __attrs_post_init__(self) -> None:
        if self.query_heads * self.head_dim % self.output_groups:
            raise InvalidValueError(
                "output_groups",
                self.output_groups,
                f"must divide query_heads ({self.query_heads}) * head_dim ({self.head_dim})",
            )
        index = (self.index_heads, self.index_dim, self.index_top)
        if any(index) and (self.compressor is None or not all(index)):
            raise InvalidValueError(
                "index_top",
                self.index_top,
                "needs index_heads, index_dim and what compresses (compressor)",
            )

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, caches and mixing."""
        heads, head = Axis("query_heads", self.query_heads), Axis("head_dim", self.head_dim)
        latent = Axis("query_latent", self.query_latent_dim)
        yield Linear(name="q_a", into=(embed,), out=((latent,),))
        yield from self.norm.items("q_a_norm", (latent,))
        yield Linear(name="q_b", into=(latent,), out=((heads, head),))
        yield Linear(name="kv", into=(embed,), out=((head,),))
        yield from self.norm.items("kv_norm", (head,))
        yield Scale(name="sinks", axes=(heads,))
        window = Window(self.window)
        twice = None
        if self.compressor is None and self.window > 1:  # as a key and as a value
            twice = (((Axis("key_and_value", 2), head), Window(self.window - 1)),)
        yield Cache(name="kv", role="kv", shape=(head,), span=window, in_transformers=twice)
        yield Mix(name="attention", heads=heads, query_key=head, value=head, span=window)
        if self.compressor is not None:
            ratio = self.compressor.ratio
            yield from self.compressor.items("compressor", embed, head)
            span = Compressed(ratio, self.index_top)
            yield Cache(name="compressed", role="kv", shape=(head,), span=span, reader="compressed")
            yield from self._index(self.compressor, embed, latent)
            yield Mix(name="compressed", heads=heads, query_key=head, value=head, span=span)
        groups, rank = Axis("output_groups", self.output_groups), Axis("rank", self.output_rank)
        share = Axis("group", self.query_heads * self.head_dim // self.output_groups)
        yield Linear(name="o_a", into=(share,), out=((rank,),), blocks=groups)
        yield Linear(name="o_b", into=(groups, rank), out=((embed,),))

    def _index(self, compressor: Compressor, embed: Axis, latent: Axis) -> Iterator[Item]:
        if self.index_heads is None or self.index_dim is None:
            return
        heads, head = Axis("index_heads", self.index_heads), Axis("index_dim", self.index_dim)
        span = Compressed(compressor.ratio)
        yield from compressor.items("index", embed, head)
        yield Linear(name="index_q", into=(latent,), out=((heads, head),))
        yield Linear(name="index_weights", into=(embed,), out=((heads,),))
        yield Cache(name="index", role="index", shape=(head,), span=span)
        score = Axis("index_score", 0)
        yield Mix(name="index", heads=heads, query_key=head, value=score, span=span)
