"""Attention with short convolutions in it, and what stands around it in models that have such.

* `RelativeAttention`: keys and values are convolved, scores have a bias by distance.
* `ConvolvedAttention`: queries and keys are convolved together, values partly delayed.
* `OutputConvolution`: a convolution of a block's result.
* `ResidualScale`: trained factors and offsets of a residual sum.
* `InputScale`: trained factors and offsets of what the first layer reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from llmcalc.boundary import flag, instance_of, size
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import Axes, Axis
from llmcalc.spec.items import Cache, Conv, Item, Linear, Mix, Scale, Scan
from llmcalc.spec.ledger import Entry
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Constant, Full, Span

__all__ = [
    "ConvolvedAttention",
    "InputScale",
    "OutputConvolution",
    "RelativeAttention",
    "ResidualScale",
]


def _convolution(name: str, channels: Axes, kernel: int) -> Iterator[Item]:
    """Emit a convolution of each channel, and the inputs that are kept for the next step.

    Transformers keeps one input more than is needed.
    """
    yield Conv(name=name, channels=channels, kernel=kernel)
    yield Cache(
        name=name,
        role="conv",
        shape=(Axis("inputs", kernel - 1), *channels),
        span=Constant(),
        in_transformers=(((Axis("inputs", kernel), *channels), Constant()),),
    )


@attrs.frozen(kw_only=True)
class RelativeAttention:
    """Grouped-query attention whose keys and values are convolved over `kernel` positions.

    Each head's score has a bias for each distance below `extent`: a mixture of `profiles` trained
    profiles, with weights that the token gives. Queries and keys are normed head by head.

    >>> from llmcalc.spec import Axis, Norm, RelativeAttention
    >>> part = RelativeAttention(
    ...     query_heads=4, kv_heads=2, head_dim=16, profiles=4, extent=32, kernel=4,
    ...     norm=Norm(kind="rms"),
    ... )
    >>> [item.name for item in part.items(Axis("embed", 64))][:4]
    ['q', 'k', 'v', 'relative']
    """

    group: ClassVar[str] = "attention"

    query_heads: int = attrs.field(validator=size)
    kv_heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    profiles: int = attrs.field(validator=size)
    extent: int = attrs.field(validator=size)
    kernel: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))
    span: Span = attrs.field(default=Full())

    @property
    def label(self) -> str:
        """What tells layers of this kind from others."""
        return "decoder" if self.span == Full() else type(self.span).__name__.lower()

    def __attrs_post_init__(self) -> None:
        _check_heads(self.query_heads, self.kv_heads)

    def check_width(self, embed_dim: int) -> None:
        """Every width will do: the result has the width of the input."""

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, convolutions, caches and mixing."""
        queries, keys = Axis("query_heads", self.query_heads), Axis("kv_heads", self.kv_heads)
        head, profiles = Axis("head_dim", self.head_dim), Axis("profiles", self.profiles)
        extent = Axis("extent", self.extent)
        yield Linear(name="q", into=(embed,), out=((queries, head),))
        yield Linear(name="k", into=(embed,), out=((keys, head),))
        yield Linear(name="v", into=(embed,), out=((keys, head),))
        yield Linear(name="relative", into=(embed,), out=((queries, profiles),))
        for name in ("k_conv", "v_conv"):
            yield from _convolution(name, (keys, head), self.kernel)
        for name in ("q_norm", "k_norm"):
            yield from self.norm.items(name, (head,))
        yield Scale(name="relative.profiles", axes=(profiles, extent))
        # No recurrence, but a product with what all heads share.
        yield Scan(name="relative.bias", state=(profiles, extent), products=self.query_heads)
        for name in ("k", "v"):
            yield Cache(name=name, role="kv", shape=(keys, head), span=self.span)
        yield Mix(name="attention", heads=queries, query_key=head, value=head, span=self.span)
        yield Linear(name="o", into=(queries, head), out=((embed,),))


@attrs.frozen(kw_only=True)
class ConvolvedAttention:
    """Attention whose queries and keys are convolved together, first by channel, then by head.

    `kernels` are those of the two convolutions. Half of the values' elements are those of the
    position before, whose projection a request keeps. Each key head has a trained temperature.

    Source: Figliolia et al., "Compressed Convolutional Attention" (2025).

    >>> from llmcalc.spec import Axis, ConvolvedAttention
    >>> part = ConvolvedAttention(query_heads=4, kv_heads=2, head_dim=16, kernels=(2, 2))
    >>> [item.name for item in part.items(Axis("embed", 64))][:6]
    ['q', 'k', 'v_now', 'v_before', 'conv.channels', 'conv.heads']
    """

    group: ClassVar[str] = "attention"

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

    def check_width(self, embed_dim: int) -> None:
        """Every width will do: the result has the width of the input."""

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, convolutions, caches and mixing."""
        queries, keys = Axis("query_heads", self.query_heads), Axis("kv_heads", self.kv_heads)
        head, half = Axis("head_dim", self.head_dim), self.kv_heads * self.head_dim // 2
        values = Axis("half_values", half)
        for name, out in (
            ("q", (queries, head)),
            ("k", (keys, head)),
            ("v_now", (values,)),
            ("v_before", (values,)),
        ):
            yield Linear(name=name, into=(embed,), out=(out,), bias=self.bias)
        both = (Axis("query_and_kv_heads", self.query_heads + self.kv_heads), head)
        first, second = self.kernels
        yield Conv(
            name="conv.channels", channels=both, kernel=first, bias=True, eager_more=second - 1
        )
        yield Conv(
            name="conv.heads",
            channels=both,
            kernel=second,
            into=self.head_dim,
            bias=True,
            eager_more=0,
        )
        yield Scale(name="temperature", axes=(keys,))
        for name in ("k", "v"):
            yield Cache(name=name, role="kv", shape=(keys, head), span=self.span)
        kept = (Axis("inputs", first + second - 2), *both)
        yield Cache(name="conv", role="conv", shape=kept, span=Constant())
        yield Cache(name="v_before", role="state", shape=(values,), span=Constant())
        yield Mix(name="attention", heads=queries, query_key=head, value=head, span=self.span)
        yield Linear(name="o", into=(queries, head), out=((embed,),), bias=self.bias)


@attrs.frozen(kw_only=True)
class OutputConvolution:
    """A convolution of the result of a block over `kernel` positions; `name` is the block's.

    >>> from llmcalc.spec import Axis, OutputConvolution
    >>> part = OutputConvolution(name="attention", kernel=4)
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['attention_conv', 'attention_conv']
    """

    group: ClassVar[str] = "other"
    label: ClassVar[str] = ""

    name: str = attrs.field(validator=instance_of(str))
    kernel: int = attrs.field(validator=size)

    def check_width(self, embed_dim: int) -> None:
        """Every width will do: the result has the width of the input."""

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the convolution and what is kept for it."""
        yield from _convolution(f"{self.name}_conv", (embed,), self.kernel)


@attrs.frozen(kw_only=True)
class ResidualScale:
    """Trained factors and offsets of both terms of a residual sum; `name` is the block's.

    >>> from llmcalc.spec import Axis, ResidualScale
    >>> [item.name for item in ResidualScale(name="attention").items(Axis("embed", 64))]
    ['attention_residual']
    """

    group: ClassVar[str] = "other"
    label: ClassVar[str] = ""

    name: str = attrs.field(validator=instance_of(str))

    def check_width(self, embed_dim: int) -> None:
        """Every width will do: the result has the width of the input."""

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the factors and offsets."""
        yield Scale(name=f"{self.name}_residual", axes=(Axis("terms", 4), embed))


@attrs.frozen
class InputScale:
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
