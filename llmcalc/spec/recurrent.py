"""Recurrent mixers: what a request holds does not grow with its context.

* `Mamba`: a selective state space with a state for each channel (Mamba 1).
* `Mamba2`: a selective state space with heads.
* `GatedDelta`: the gated delta rule, and Kimi delta attention.
* `LinearAttention`: lightning attention: a decaying sum of key-value products.
* `GatedLinearRecurrence`: the RG-LRU of Griffin and RecurrentGemma.
* `ShortConvolution`: a gated short convolution.
* `MatrixMemory`: the mLSTM of xLSTM.
* `TimeMix`, `ChannelMix`: the two parts of an RWKV-4 layer.

Each cache is that of an engine: a convolution keeps its last kernel - 1 inputs, a recurrence its
state. Tensor parallelism splits heads and channels evenly over the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, get_args

import attrs

from llmcalc.boundary import flag, instance_of, one_of, size
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import Axes, Axis
from llmcalc.spec.feed_forward import Activation, learned_activation
from llmcalc.spec.items import Cache, Conv, EagerScan, Item, Linear, Scale, Scan
from llmcalc.spec.part import Group, Part
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Constant

__all__ = [
    "ChannelMix",
    "GatedDelta",
    "GatedLinearRecurrence",
    "LinearAttention",
    "Mamba",
    "Mamba2",
    "MatrixMemory",
    "ShortConvolution",
    "TimeMix",
]

_optional = attrs.validators.optional

#: A state space writes a token into its state and reads its result from it.
_WRITE_READ: Final = 2

#: The delta rule first reads what the state holds for a key, then writes, then reads the result.
_READ_WRITE_READ: Final = 3


def _convolution(
    name: str, channels: tuple[Axes, ...], kernel: int, bias: bool, *, spare: int = 1
) -> Iterator[Item]:
    """Emit a convolution of pieces that tensor parallelism splits apart, and the inputs kept.

    Transformers keeps `spare` inputs more than are needed.
    """
    single = len(channels) == 1
    for number, piece in enumerate(channels, 1):
        title = name if single else f"{name}.{number}"
        yield Conv(name=title, of=name, channels=piece, kernel=kernel, bias=bias)
    for number, piece in enumerate(channels, 1):
        yield Cache(
            name=name if single else f"{name}.{number}",
            role="conv",
            shape=(Axis("inputs", kernel - 1), *piece),
            span=Constant(),
            in_transformers=(((Axis("inputs", kernel - 1 + spare), *piece), Constant()),),
        )


class _Recurrent(Part):
    """A recurrent part: its parameters are counted as such."""

    __slots__ = ()

    group: ClassVar[Group] = "recurrent"


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Mamba(_Recurrent):
    """A selective state space of `channels`, each with a state of `state_dim` elements (Mamba 1).

    The time step of each channel comes through `time_step_rank` elements. `norm` normalises the
    time step's elements and those that write and read the state. With `heads` each head computes
    time step, writing and reading from its own channels alone.

    Source: Gu and Dao, "Mamba" (2023), section 3.

    >>> from llmcalc.spec import Axis, Mamba
    >>> part = Mamba(channels=128, state_dim=16, kernel=4, time_step_rank=4)
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['in', 'conv', 'conv', 'select', 'time_step', 'decay', 'skip', 'scan', 'state', 'out']
    """

    usual_label: ClassVar[str] = "mamba"

    channels: int = attrs.field(validator=size)
    state_dim: int = attrs.field(validator=size)
    kernel: int = attrs.field(validator=size)
    time_step_rank: int = attrs.field(validator=size)
    bias: bool = attrs.field(default=False, validator=flag)
    conv_bias: bool = attrs.field(default=True, validator=flag)
    norm: Norm | None = attrs.field(default=None, validator=_optional(instance_of(Norm)))
    heads: int | None = attrs.field(default=None, validator=_optional(size))
    activation: Activation = attrs.field(default="silu", validator=one_of(*get_args(Activation)))

    def __attrs_post_init__(self) -> None:
        if self.heads is not None and self.channels % self.heads:
            raise InvalidValueError("heads", self.heads, f"must divide channels ({self.channels})")

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, convolution, recurrence and caches."""
        rank, state = Axis("time_step", self.time_step_rank), Axis("state", self.state_dim)
        selected: tuple[Axes, ...] = ((rank,), (state,), (state,))
        if self.heads is None:
            blocks, own = None, (Axis("channels", self.channels),)
            channels: Axes = own
        else:
            blocks = Axis("recurrent_heads", self.heads)
            own = (Axis("head_dim", self.channels // self.heads),)
            channels = (blocks, *own)
        yield Linear(name="in", into=(embed,), out=(channels, channels), bias=self.bias)
        yield from _convolution("conv", (channels,), self.kernel, self.conv_bias)
        yield Linear(name="select", into=own, out=selected, blocks=blocks)
        if self.norm is not None:
            for name, axis in (("time_step_norm", rank), ("b_norm", state), ("c_norm", state)):
                yield from self.norm.items(name, (axis,))
        yield Linear(name="time_step", into=(rank,), out=(own,), bias=True, blocks=blocks)
        yield Scale(name="decay", axes=(*channels, state))
        yield Scale(name="skip", axes=channels)
        yield from learned_activation(self.activation)
        # transformers only reads the state by a matrix product.
        eager = EagerScan(products=1, step_products=1)
        held = (*channels, state)
        yield Scan(name="scan", state=held, products=_WRITE_READ, in_transformers=eager)
        yield Cache(name="state", role="state", shape=held, span=Constant())
        yield Linear(name="out", into=channels, out=((embed,),), bias=self.bias)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Mamba2(_Recurrent):
    """A selective state space of `heads`, each with `head_dim` x `state_dim` elements (Mamba 2).

    What writes and reads the state is shared by the heads of each of `groups`. `norm` normalises
    the gated result. `chunk` is the length of the pieces that a prefill is computed in; it
    changes what transformers computes, and no count of the model's own.

    Source: Dao and Gu, "Transformers are SSMs" (2024), section 7.

    >>> from llmcalc.spec import Axis, Mamba2, Norm
    >>> part = Mamba2(
    ...     heads=8, head_dim=16, state_dim=16, groups=2, kernel=4, norm=Norm(kind="rms"), chunk=64
    ... )
    >>> [item.name for item in part.items(Axis("embed", 64)) if "conv" not in item.name]
    ['in', 'time_step', 'decay', 'skip', 'scan', 'state', 'norm.weight', 'out']
    """

    usual_label: ClassVar[str] = "mamba2"

    heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    state_dim: int = attrs.field(validator=size)
    groups: int = attrs.field(validator=size)
    kernel: int = attrs.field(validator=size)
    chunk: int = attrs.field(validator=size)
    bias: bool = attrs.field(default=False, validator=flag)
    output_bias: bool = attrs.field(default=False, validator=flag)
    conv_bias: bool = attrs.field(default=True, validator=flag)
    norm: Norm | None = attrs.field(default=None, validator=_optional(instance_of(Norm)))
    activation: Activation = attrs.field(default="silu", validator=one_of(*get_args(Activation)))

    def __attrs_post_init__(self) -> None:
        if self.heads % self.groups:
            raise InvalidValueError("groups", self.groups, f"must divide heads ({self.heads})")

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, convolution, recurrence and caches."""
        heads, head = Axis("recurrent_heads", self.heads), Axis("head_dim", self.head_dim)
        groups, state = Axis("state_groups", self.groups), Axis("state", self.state_dim)
        inner, selected = (heads, head), (groups, state)
        yield Linear(
            name="in",
            into=(embed,),
            out=(inner, inner, selected, selected, (heads,)),
            bias=self.bias,
        )
        convolved = (inner, selected, selected)
        yield from _convolution("conv", convolved, self.kernel, self.conv_bias)
        for name in ("time_step", "decay", "skip"):
            yield Scale(name=name, axes=(heads,))
        yield from learned_activation(self.activation)
        # PyTorch sums over an axis of one element without a matrix product: of the two products
        # with positions of a chunk and the two with the state, one is over the elements of the
        # state each time, and one over the chunk.
        sums_state, sums_chunk = self.state_dim > 1, self.chunk > 1
        eager = EagerScan(
            chunk=self.chunk,
            within=self.heads * (sums_state * self.state_dim + sums_chunk * self.head_dim),
            products=sums_state + sums_chunk,
            step_products=1,
            across=True,
        )
        held = (heads, head, state)
        yield Scan(name="scan", state=held, products=_WRITE_READ, in_transformers=eager)
        yield Cache(name="state", role="state", shape=held, span=Constant())
        if self.norm is not None:
            yield from self.norm.items("norm", inner)
        yield Linear(name="out", into=inner, out=((embed,),), bias=self.output_bias)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class GatedDelta(_Recurrent):
    """The gated delta rule: `value_heads` states of `key_dim` x `value_dim` elements.

    Each of `key_heads` queries and keys serves as many value heads. `norm` normalises each head's
    result, which a gate then weighs. The state decays by one number a head, or with
    `decay_dim` by one for each of the key's elements (Kimi delta attention): that many elements
    stand between its projections, 0 for a single projection; the gate's projections are like it.

    Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks" (2024); Kimi Team, "Kimi Linear"
    (2025).

    >>> from llmcalc.spec import Axis, GatedDelta, Norm
    >>> part = GatedDelta(
    ...     key_heads=2, value_heads=4, key_dim=16, value_dim=16, kernel=4, norm=Norm(kind="rms")
    ... )
    >>> [type(item).__name__ for item in part.items(Axis("embed", 64)) if item.name == "conv.1"]
    ['Conv', 'Cache']
    """

    key_heads: int = attrs.field(validator=size)
    value_heads: int = attrs.field(validator=size)
    key_dim: int = attrs.field(validator=size)
    value_dim: int = attrs.field(validator=size)
    kernel: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))
    decay_dim: int | None = None

    @property
    def label(self) -> str:
        """What tells layers of this kind from others."""
        return "delta" if self.decay_dim is None else "kimi-delta"

    def __attrs_post_init__(self) -> None:
        if self.value_heads % self.key_heads:
            raise InvalidValueError(
                "key_heads", self.key_heads, f"must divide value_heads ({self.value_heads})"
            )

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, convolution, recurrence and caches."""
        heads = Axis("recurrent_heads", self.value_heads)
        key, value = Axis("key_dim", self.key_dim), Axis("value_dim", self.value_dim)
        keys, values = (Axis("key_heads", self.key_heads), key), (heads, value)
        held = (heads, key, value)
        # Where one projection makes the gate, engines store it with the others.
        merged = "qkvz" if self.decay_dim is None else None
        yield Linear(name="qkv", into=(embed,), out=(keys, keys, values), merged=merged)
        yield from _convolution("conv", (keys, keys, values), self.kernel, bias=False)
        yield from self._through("gate", embed, values)
        yield Linear(name="beta", into=(embed,), out=((heads,),))
        decays: Axes = (heads,) if self.decay_dim is None else (heads, key)
        yield from self._through("decay", embed, decays)
        yield Scale(name="decay.rate", of="decay", axes=(heads,))
        yield Scale(name="decay.bias", of="decay", axes=decays)
        chunk = 64  # the default of transformers' functions, which no model changes
        eager = EagerScan(
            chunk=chunk,
            within=self.value_heads * (2 * self.key_dim + self.value_dim),
            products=_READ_WRITE_READ,
            step_products=0,
        )
        yield Scan(name="scan", state=held, products=_READ_WRITE_READ, in_transformers=eager)
        yield Cache(name="state", role="state", shape=held, span=Constant())
        yield from self.norm.items("norm", (value,), (heads,))
        yield Linear(name="o", into=values, out=((embed,),))

    def _through(self, name: str, embed: Axis, result: Axes) -> Iterator[Item]:
        """Emit one projection, or two with a few elements between them."""
        if not self.decay_dim:
            merged = "qkvz" if name == "gate" and self.decay_dim is None else None
            yield Linear(name=name, into=(embed,), out=(result,), merged=merged)
            return
        between = Axis(f"{name}_rank", self.decay_dim)
        yield Linear(name=f"{name}_a", into=(embed,), out=((between,),))
        yield Linear(name=f"{name}_b", into=(between,), out=(result,))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class LinearAttention(_Recurrent):
    """Lightning attention: each head sums its key-value products, which decay at a fixed rate.

    `norm` normalises the results of all heads as one vector; a gate then weighs them. `chunk` is
    as in `Mamba2`. Transformers keeps the rates, and the decays within a chunk, in buffers.

    Source: Qin et al., "Lightning Attention-2" (2024); MiniMax, "MiniMax-01" (2025), section 2.2.

    >>> from llmcalc.spec import Axis, LinearAttention, Norm
    >>> part = LinearAttention(heads=4, head_dim=16, norm=Norm(kind="rms"), chunk=256)
    >>> [item.name for item in part.items(Axis("embed", 64))][:6]
    ['qkv', 'scan', 'state', 'norm.weight', 'gate', 'o']
    """

    usual_label: ClassVar[str] = "linear"

    heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))
    chunk: int = attrs.field(validator=size)
    activation: Activation = attrs.field(default="silu", validator=one_of(*get_args(Activation)))

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, recurrence and cache."""
        heads, head = Axis("recurrent_heads", self.heads), Axis("head_dim", self.head_dim)
        inner = (heads, head)
        held = (heads, head, Axis("value_dim", self.head_dim))
        yield Linear(name="qkv", into=(embed,), out=(inner, inner, inner))
        yield from learned_activation(self.activation)
        eager = EagerScan(
            chunk=self.chunk,
            rest="part",
            stepwise=True,
            within=2 * self.heads * self.head_dim,
            products=_WRITE_READ,
            step_products=_WRITE_READ,
        )
        yield Scan(name="scan", state=held, products=_WRITE_READ, in_transformers=eager)
        yield Cache(name="state", role="state", shape=held, span=Constant())
        yield from self.norm.items("norm", inner)
        yield Linear(name="gate", into=(embed,), out=(inner,))
        yield Linear(name="o", into=inner, out=((embed,),))
        chunk = Axis("chunk", self.chunk)
        shapes = {"rate": (), "decay.query": (chunk,), "decay.key": (chunk,)}
        for name, axes in {**shapes, "decay.diagonal": (chunk, chunk)}.items():
            yield Scale(name=name, of="decay", axes=(heads, *axes), buffer=True)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class GatedLinearRecurrence(_Recurrent):
    """The real-gated linear recurrence of Griffin: one state element for each of its channels.

    Its gates are computed by a matrix for each of `heads`, from the head's own channels;
    `activation` is that of the branch beside it.

    Source: De et al., "Griffin" (2024), section 2.4.

    >>> from llmcalc.spec import Axis, GatedLinearRecurrence
    >>> part = GatedLinearRecurrence(heads=4, head_dim=16, kernel=4)
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['y', 'x', 'conv', 'conv', 'decay', 'input_gate', 'decay_gate', 'scan', 'state', 'out']
    """

    usual_label: ClassVar[str] = "recurrence"

    heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    kernel: int = attrs.field(validator=size)
    activation: Activation = attrs.field(
        default="gelu_tanh", validator=one_of(*get_args(Activation))
    )

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, convolution, gates, recurrence and caches."""
        heads, head = Axis("recurrent_heads", self.heads), Axis("head_dim", self.head_dim)
        channels = (heads, head)
        for name in ("y", "x"):
            yield Linear(name=name, into=(embed,), out=(channels,), bias=True)
        yield from learned_activation(self.activation)
        yield from _convolution("conv", (channels,), self.kernel, bias=True, spare=0)
        yield Scale(name="decay", axes=channels)
        for name in ("input_gate", "decay_gate"):
            yield Linear(name=name, into=(head,), out=((head,),), bias=True, blocks=heads)
        eager = EagerScan(products=0, step_products=0)
        yield Scan(name="scan", state=channels, products=1, in_transformers=eager)
        yield Cache(name="state", role="state", shape=channels, span=Constant())
        yield Linear(name="out", into=channels, out=((embed,),), bias=True)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class ShortConvolution(_Recurrent):
    """A short convolution of gated inputs, whose result is gated in turn: no other state.

    Source: Liquid AI, "LFM2 Technical Report" (2025).

    >>> from llmcalc.spec import Axis, ShortConvolution
    >>> [item.name for item in ShortConvolution(kernel=3).items(Axis("embed", 64))]
    ['in', 'conv', 'conv', 'out']
    """

    usual_label: ClassVar[str] = "convolution"

    kernel: int = attrs.field(validator=size)
    bias: bool = attrs.field(default=False, validator=flag)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, convolution and cache."""
        channels = (Axis("channels", embed.size),)
        yield Linear(name="in", into=(embed,), out=(channels,) * 3, bias=self.bias)
        yield from _convolution("conv", (channels,), self.kernel, self.bias)
        yield Linear(name="out", into=channels, out=((embed,),), bias=self.bias)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class MatrixMemory(_Recurrent):
    """The mLSTM: each head sums key-value products, and the keys to normalise by, under gates.

    A request holds the matrix, the vector and one stabiliser for each head. `norm` normalises
    each head's result. `chunk` is as in `Mamba2`; a longer prefill than `piece` is computed in
    pieces of so many tokens, each of them in chunks.

    Source: Beck et al., "xLSTM" (2024), section 2.3.

    >>> from llmcalc.spec import Axis, MatrixMemory, Norm
    >>> part = MatrixMemory(heads=4, key_dim=8, value_dim=16, norm=Norm(kind="layer"), chunk=64)
    >>> [item.name for item in part.items(Axis("embed", 64)) if type(item).__name__ == "Cache"]
    ['state', 'normalizer', 'stabilizer']
    """

    usual_label: ClassVar[str] = "mlstm"

    heads: int = attrs.field(validator=size)
    key_dim: int = attrs.field(validator=size)
    value_dim: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))
    chunk: int = attrs.field(validator=size)
    piece: int | None = attrs.field(default=None, validator=_optional(size))
    bias: bool = attrs.field(default=False, validator=flag)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, gates, recurrence and caches."""
        heads = Axis("recurrent_heads", self.heads)
        key, value = Axis("key_dim", self.key_dim), Axis("value_dim", self.value_dim)
        keys, values, held = (heads, key), (heads, value), (heads, key, value)
        for name, out in (("q", keys), ("k", keys), ("v", values), ("gate", values)):
            merged = None if name == "gate" else "qkv"
            yield Linear(name=name, into=(embed,), out=(out,), bias=self.bias, merged=merged)
        for name in ("input_gate", "forget_gate"):
            yield Linear(name=name, into=(embed,), out=((heads,),), bias=True)
        eager = EagerScan(
            chunk=self.chunk,
            rest="steps",
            within=self.heads * (self.key_dim + self.value_dim),
            products=_WRITE_READ,
            step_products=_WRITE_READ,
            piece=self.piece,
        )
        yield Scan(name="scan", state=held, products=_WRITE_READ, in_transformers=eager)
        eager = EagerScan(products=1, step_products=1)
        yield Scan(name="normalize", state=keys, products=_WRITE_READ, in_transformers=eager)
        for name, axes in (("state", held), ("normalizer", keys), ("stabilizer", (heads,))):
            yield Cache(name=name, role="state", shape=axes, span=Constant())
        yield from self.norm.items("norm", values)
        yield Linear(name="out", into=values, out=((embed,),), bias=self.bias)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class TimeMix(_Recurrent):
    """RWKV-4's attention: each of `channels` keeps a decaying, weighted mean of its values.

    A request holds its numerator, denominator and largest exponent, and the last input.

    Source: Peng et al., "RWKV" (2023), section 3.1.

    >>> from llmcalc.spec import Axis, TimeMix
    >>> [item.name for item in TimeMix(channels=64).items(Axis("embed", 64))][-3:]
    ['shift', 'state', 'output']
    """

    usual_label: ClassVar[str] = "rwkv"

    channels: int = attrs.field(validator=size)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, recurrence and caches."""
        channels = Axis("channels", self.channels)
        for name in ("decay", "first"):
            yield Scale(name=name, axes=(channels,))
        for name in ("key", "value", "receptance"):
            yield Scale(name=f"mix_{name}", axes=(embed,))
            yield Linear(name=name, into=(embed,), out=((channels,),))
        held = (Axis("sums", 3), channels)
        eager = EagerScan(products=0, step_products=0)
        yield Scan(name="scan", state=(channels,), products=_WRITE_READ, in_transformers=eager)
        yield Cache(name="shift", role="state", shape=(embed,), span=Constant())
        yield Cache(name="state", role="state", shape=held, span=Constant())
        yield Linear(name="output", into=(channels,), out=((embed,),))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class ChannelMix(_Recurrent):
    """RWKV-4's feed-forward: squared ReLU, weighed by a gate; a request holds the last input.

    Source: Peng et al., "RWKV" (2023), section 3.1.

    >>> from llmcalc.spec import Axis, ChannelMix
    >>> [item.name for item in ChannelMix(inner_dim=256).items(Axis("embed", 64))][-2:]
    ['shift', 'value']
    """

    group: ClassVar[Group] = "feed_forward"

    inner_dim: int = attrs.field(validator=size)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections and cache."""
        inner = Axis("inner", self.inner_dim)
        for name, out in (("key", inner), ("receptance", embed)):
            yield Scale(name=f"mix_{name}", axes=(embed,))
            yield Linear(name=name, into=(embed,), out=((out,),))
        yield Cache(name="shift", role="state", shape=(embed,), span=Constant(), reader="key")
        yield Linear(name="value", into=(inner,), out=((embed,),))
