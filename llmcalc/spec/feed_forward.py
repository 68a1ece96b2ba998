"""Feed-forward parts.

* `FeedForward`: gated (three matrices) or plain (two).
* `Routing`: what makes its matrices those of routed experts.
* `HeadTransform`: a matrix, an activation and a norm before the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, Literal, NamedTuple, TypeAlias, get_args

import attrs

from llmcalc.boundary import flag, instance_of, one_of, size_or_zero
from llmcalc.described import Described
from llmcalc.spec.axes import Axis
from llmcalc.spec.items import Item, Linear, Scale
from llmcalc.spec.ledger import Entry
from llmcalc.spec.part import Group, Part
from llmcalc.spec.parts import Norm

__all__ = ["Activation", "FeedForward", "HeadTransform"]

#: The nonlinearity. ``"gelu_tanh"`` is GELU's tanh approximation. Only two have parameters:
#: ``"xielu"`` two and ``"prelu"`` one, each for the whole part; ``"xielu"`` also has two constants.
Activation: TypeAlias = Literal[
    "relu", "silu", "gelu", "gelu_tanh", "relu2", "relu6", "quick_gelu", "laplace", "leaky_relu",
    "linear", "mish", "prelu", "sigmoid", "softplus_sqrt", "tanh", "hardswish", "xielu",
]  # fmt: skip

_ACTIVATION_PARAMETERS: Final = {"xielu": 2, "prelu": 1}
_ACTIVATION_CONSTANTS: Final = {"xielu": 2}


def learned_activation(activation: Activation, of: str | None = None) -> Iterator[Item]:
    """Emit the parameters of an activation that has any, and the constants stored with them."""
    begin = "" if of is None else f"{of}."
    for name, numbers, buffer in (
        ("activation", _ACTIVATION_PARAMETERS, False),
        ("activation.constants", _ACTIVATION_CONSTANTS, True),
    ):
        number = numbers.get(activation)
        if number is not None:
            axes = (Axis("activation", number),)
            yield Scale(name=begin + name, of=of or "activation", axes=axes, buffer=buffer)


class Routing(NamedTuple):
    """Routed experts: how many there are, how many a token uses, and as transformers has it."""

    experts: Axis
    active: int
    in_transformers: int | None = None


@attrs.frozen(kw_only=True, repr=False, eq=False)
class FeedForward(Part):
    """``down(activation(gate(x)) * up(x))`` when gated, ``down(activation(up(x)))`` when plain.

    `input_bias` is the bias of gate and up, `output_bias` that of down; `inner_norm` normalises
    what goes into down, `factor` is one trained factor of the result. A width of zero, such as that
    of shared experts that are none, leaves what does not depend on it.

    >>> from llmcalc.spec import Axis, FeedForward
    >>> part = FeedForward(inner_dim=128, gated=True, activation="silu")
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['gate', 'up', 'down']
    """

    group: ClassVar[Group] = "feed_forward"

    inner_dim: int = attrs.field(validator=size_or_zero)
    gated: bool = attrs.field(validator=flag)
    activation: Activation = attrs.field(validator=one_of(*get_args(Activation)))
    input_bias: bool = attrs.field(default=False, validator=flag)
    output_bias: bool = attrs.field(default=False, validator=flag)
    inner_norm: Norm | None = attrs.field(
        default=None, validator=attrs.validators.optional(instance_of(Norm))
    )
    factor: bool = attrs.field(default=False, validator=flag)

    def items(self, embed: Axis, *, routing: Routing | None = None) -> Iterator[Item]:
        """Emit the projections, and what is learned between them; with `routing`, of experts."""
        yield from self.linears(embed, routing=routing)
        yield from self._learned(embed)

    def shared_items(self, embed: Axis) -> Iterator[Item]:
        """Emit the same beside routed experts, as one operation."""
        yield from self.linears(embed, of="shared")
        yield from self._learned(embed, of="shared")

    def linears(
        self, embed: Axis, *, of: str | None = None, routing: Routing | None = None
    ) -> Iterator[Linear]:
        """Emit the projections alone; all of one operation if that is named."""
        if not self.inner_dim:
            return
        inner, begin = Axis("inner", self.inner_dim), "" if of is None else f"{of}."
        experts, active, eager = (None, None, None) if routing is None else routing
        for name in ("gate", "up", "down") if self.gated else ("up", "down"):
            last = name == "down"
            yield Linear(
                name=begin + name,
                of=of or name,
                into=(inner,) if last else (embed,),
                out=((embed,),) if last else ((inner,),),
                bias=self.output_bias if last else self.input_bias,
                experts=experts,
                active=active,
                routed=routing is not None,
                merged=None if last else f"{begin}gate_up",
                inner="read" if last else "made",
                in_transformers=eager,
            )

    def _learned(self, embed: Axis, *, of: str | None = None) -> Iterator[Item]:
        """Emit what is learned beside the projections."""
        begin = "" if of is None else f"{of}."
        if self.output_bias and not self.inner_dim:
            yield Scale(name=f"{begin}down.bias", of=of or "down", axes=(embed,))
        if self.factor:
            yield Scale(name=f"{begin}factor", of=of or "factor", axes=(Axis("factor", 1),))
        yield from learned_activation(self.activation, of)
        if self.inner_norm is not None and self.inner_dim:
            inner = (Axis("inner", self.inner_dim),)
            yield from self.inner_norm.items(f"{begin}inner_norm", inner, of=of)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class HeadTransform(Described):
    """What stands before the head: a square matrix, an activation and a norm.

    >>> from llmcalc.spec import Axis, HeadTransform, Norm
    >>> part = HeadTransform(activation="gelu", norm=Norm(kind="layer", bias=False))
    >>> [entry.name[2] for entry in part.entries(Axis("embed", 64))]
    ['transform', 'transform_norm.weight']
    """

    activation: Activation = attrs.field(validator=one_of(*get_args(Activation)))
    norm: Norm = attrs.field(validator=instance_of(Norm))
    bias: bool = attrs.field(default=False, validator=flag)

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the matrix, what is learned after it, and the norm."""
        matrix = Linear(
            name="transform", into=(embed,), out=((embed,),), bias=self.bias, tokens="logits"
        )
        for item in (matrix, *learned_activation(self.activation)):
            yield Entry(("head", ""), None, item, after=True)
        for item in self.norm.items("transform_norm", (embed,)):
            yield Entry(("norms", ""), None, item, after=True)
