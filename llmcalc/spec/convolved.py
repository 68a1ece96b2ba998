"""Attention with short convolutions in it, and what stands around it in models that have such.

* `RelativeAttention`: keys and values are convolved, scores have a bias by distance.
* `ConvolvedAttention`: queries and keys are convolved together, values partly delayed.
* `OutputConvolution`: a convolution of a block's result.
* `ResidualScale`: trained factors and offsets of a residual sum.
* `SeparateNorms`: norms of the inputs of keys and values.
* `StreamQueries`: attention over the results of earlier layers.
* `InputScale`: trained factors and offsets of what the first layer reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from llmcalc.boundary import flag, instance_of, size
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import Axes, Axis
from llmcalc.spec.items import Cache, Conv, Item, Linear, Mix, Product, Scale
from llmcalc.spec.ledger import Entry
from llmcalc.spec.part import Group, Part
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Constant, Full, Span

__all__ = [
    "ConvolvedAttention",
    "InputScale",
    "OutputConvolution",
    "RelativeAttention",
    "ResidualScale",
    "SeparateNorms",
    "StreamQueries",
]


def _convolution(name: str, channels: Axes, kernel: int, *, trained: bool = True) -> Iterator[Item]:
    """Emit a convolution of each channel, if trained, and the inputs kept for the next step.

    Transformers keeps one input more than is needed.
    """
    if trained:
        yield Conv(name=name, channels=channels, kernel=kernel)
    yield Cache(
        name=name,
        role="conv",
        shape=(Axis("inputs", kernel - 1), *channels),
        span=Constant(),
        in_transformers=(((Axis("inputs", kernel), *channels), Constant()),),
    )


@attrs.frozen(kw_only=True, repr=False, eq=False)
class RelativeAttention(Part):
    """Grouped-query attention whose keys and values are convolved over `kernel` positions.

    Each head's score has a bias for each distance below `extent`: a mixture of `profiles` trained
    profiles, with weights that the token gives. Queries and keys are normed head by head; without
    `norm` their lengths are clipped, with trained factors for the queries and the weights.

    Options: a gate for each element of the result (`gated`), a sink score for each head that the
    token gives (`token_sinks`), and convolutions with weights that the token gives, for each key
    head, besides the trained ones (`dynamic`).

    >>> from llmcalc.spec import Axis, Norm, RelativeAttention
    >>> part = RelativeAttention(
    ...     query_heads=4, kv_heads=2, head_dim=16, profiles=4, extent=32, kernel=4,
    ...     norm=Norm(kind="rms"),
    ... )
    >>> [item.name for item in part.items(Axis("embed", 64))][:4]
    ['q', 'k', 'v', 'relative']
    """

    group: ClassVar[Group] = "attention"

    query_heads: int = attrs.field(validator=size)
    kv_heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    profiles: int = attrs.field(validator=size)
    extent: int = attrs.field(validator=size)
    kernel: int = attrs.field(validator=size)
    norm: Norm | None = attrs.field(validator=attrs.validators.optional(instance_of(Norm)))
    span: Span = attrs.field(default=Full())
    gated: bool = attrs.field(default=False, validator=flag)
    token_sinks: bool = attrs.field(default=False, validator=flag)
    dynamic: bool = attrs.field(default=False, validator=flag)

    @property
    def label(self) -> str:
        """What tells layers of this kind from others."""
        return "decoder" if self.span == Full() else type(self.span).__name__.lower()

    def __attrs_post_init__(self) -> None:
        _check_heads(self.query_heads, self.kv_heads)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, convolutions, caches and mixing."""
        queries, keys = Axis("query_heads", self.query_heads), Axis("kv_heads", self.kv_heads)
        head, profiles = Axis("head_dim", self.head_dim), Axis("profiles", self.profiles)
        extent = Axis("extent", self.extent)
        for name, heads in (("q", queries), ("k", keys), ("v", keys)):
            yield Linear(name=name, into=(embed,), out=((heads, head),), merged="qkv")
        yield Linear(name="relative", into=(embed,), out=((queries, profiles),))
        for name in ("k_conv", "v_conv"):
            yield from _convolution(name, (keys, head), self.kernel, trained=not self.dynamic)
            if self.dynamic:
                kernel = Axis("kernel", self.kernel)
                yield Scale(name=f"{name}.static", of=name, axes=(kernel, keys, head))
                dynamic = ((keys, kernel),)
                yield Linear(name=f"{name}.dynamic", of=name, into=(embed,), out=dynamic)
        if self.norm is not None:
            for name, heads in (("q_norm", queries), ("k_norm", keys)):
                yield from self.norm.items(name, (head,), (heads,))
        else:
            yield Scale(name="q_clip", axes=(queries, head))
            yield Scale(name="relative.clip", of="relative", axes=(queries, profiles))
        if self.token_sinks:
            yield Linear(name="sinks", into=(embed,), out=((queries,),))
        yield Scale(name="relative.profiles", of="relative", axes=(profiles, extent))
        yield Product(name="relative.bias", of="relative", axes=(queries, profiles, extent))
        for name in ("k", "v"):
            yield Cache(name=name, role="kv", shape=(keys, head), span=self.span)
        yield Mix(name="attention", heads=queries, query_key=head, value=head, span=self.span)
        if self.gated:
            yield Linear(name="gate", into=(embed,), out=((queries, head),))
        yield Linear(name="o", into=(queries, head), out=((embed,),))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class ConvolvedAttention(Part):
    """Attention whose queries and keys are convolved together, first by channel, then by head.

    `kernels` are those of the two convolutions. Half of the values' elements are those of the
    position before, whose projection a request keeps. Each key head has a trained temperature.

    Source: Figliolia et al., "Compressed Convolutional Attention" (2025).

    >>> from llmcalc.spec import Axis, ConvolvedAttention
    >>> part = ConvolvedAttention(query_heads=4, kv_heads=2, head_dim=16, kernels=(2, 2))
    >>> [item.name for item in part.items(Axis("embed", 64))][:6]
    ['q', 'k', 'v_now', 'v_before', 'conv.channels', 'conv.heads']
    """

    group: ClassVar[Group] = "attention"

    query_heads: int = attrs.field(validator=size)
    kv_heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    kernels: tuple[int, int]
    bias: bool = attrs.field(default=False, validator=flag)
    span: Span = attrs.field(default=Full())

    @property
    def label(self) -> str:
        """What tells layers of this kind from others."""
        return "decoder" if self.span == Full() else type(self.span).__name__.lower()

    def __attrs_post_init__(self) -> None:
        _check_heads(self.query_heads, self.kv_heads)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, convolutions, caches and mixing."""
        queries, keys = Axis("query_heads", self.query_heads), Axis("kv_heads", self.kv_heads)
        head, half = Axis("head_dim", self.head_dim), self.kv_heads * self.head_dim // 2
        values = Axis("half_values", half)
        for name, out, merged in (
            ("q", (queries, head), "qk"),
            ("k", (keys, head), "qk"),
            ("v_now", (values,), None),
            ("v_before", (values,), None),
        ):
            yield Linear(name=name, into=(embed,), out=(out,), bias=self.bias, merged=merged)
        both = (Axis("query_and_kv_heads", self.query_heads + self.kv_heads), head)
        first, second = self.kernels
        yield Conv(
            name="conv.channels",
            of="conv",
            channels=both,
            kernel=first,
            bias=True,
            in_transformers=second - 1,
        )
        yield Conv(
            name="conv.heads",
            of="conv",
            channels=both,
            kernel=second,
            into=self.head_dim,
            bias=True,
            in_transformers=0,
        )
        yield Scale(name="temperature", axes=(keys,))
        for name in ("k", "v"):
            yield Cache(name=name, role="kv", shape=(keys, head), span=self.span)
        kept = (Axis("inputs", first + second - 2), *both)
        yield Cache(name="conv", role="conv", shape=kept, span=Constant())
        yield Cache(
            name="v_before", role="state", shape=(values,), span=Constant(), reader="v_before"
        )
        yield Mix(name="attention", heads=queries, query_key=head, value=head, span=self.span)
        yield Linear(name="o", into=(queries, head), out=((embed,),), bias=self.bias)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class OutputConvolution(Part):
    """A convolution of the result of a block over `kernel` positions; `name` is the block's.

    >>> from llmcalc.spec import Axis, OutputConvolution
    >>> part = OutputConvolution(name="attention", kernel=4)
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['attention_conv', 'attention_conv']
    """

    group: ClassVar[Group] = "other"

    name: str = attrs.field(validator=instance_of(str))
    kernel: int = attrs.field(validator=size)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the convolution and what is kept for it."""
        yield from _convolution(f"{self.name}_conv", (embed,), self.kernel)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class ResidualScale(Part):
    """Trained factors and offsets of both terms of a residual sum; `name` is the block's.

    >>> from llmcalc.spec import Axis, ResidualScale
    >>> [item.name for item in ResidualScale(name="attention").items(Axis("embed", 64))]
    ['attention_residual']
    """

    group: ClassVar[Group] = "other"

    name: str = attrs.field(validator=instance_of(str))

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the factors and offsets."""
        yield Scale(name=f"{self.name}_residual", axes=(Axis("terms", 4), embed))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class StreamQueries(Part):
    """Attention over the results of earlier blocks of layers, which gives what a part reads.

    There are `count` trained queries, one for each input of the part, whose name is `name`; keys
    and values are the results themselves.

    >>> from llmcalc.spec import Axis, StreamQueries
    >>> [item.name for item in StreamQueries(name="attention", count=1).items(Axis("embed", 64))]
    ['attention_queries']
    """

    group: ClassVar[Group] = "other"

    name: str = attrs.field(validator=instance_of(str))
    count: int = attrs.field(validator=size)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the queries."""
        yield Scale(name=f"{self.name}_queries", axes=(Axis("queries", self.count), embed))

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the queries of what stands beside the layers."""
        for item in self.items(embed):
            yield Entry(("other", ""), None, item, after=True)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class SeparateNorms(Part):
    """Norms of the inputs of keys and values, which the input of queries does not share.

    >>> from llmcalc.spec import Axis, Norm, SeparateNorms
    >>> part = SeparateNorms(norm=Norm(kind="rms"))
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['k_input.weight', 'v_input.weight']
    """

    group: ClassVar[Group] = "norms"

    norm: Norm = attrs.field(validator=instance_of(Norm))

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the norms."""
        for name in ("k_input", "v_input"):
            yield from self.norm.items(name, (embed,))


@attrs.frozen(repr=False, eq=False)
class InputScale(Described):
    """Trained factors and offsets of the embedded token.

    >>> from llmcalc.spec import Axis, InputScale
    >>> [entry.name[2] for entry in InputScale().entries(Axis("embed", 64))]
    ['input']
    """

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the factors and offsets."""
        yield Entry(("other", ""), None, Scale(name="input", axes=(Axis("terms", 2), embed)))


def _check_heads(query_heads: int, kv_heads: int) -> None:
    if query_heads % kv_heads:
        raise InvalidValueError("kv_heads", kv_heads, f"must divide query_heads ({query_heads})")
