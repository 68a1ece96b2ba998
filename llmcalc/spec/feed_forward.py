"""Feed-forward parts.

* `FeedForward`: gated (three matrices) or plain (two).
* `HeadTransform`: a matrix, an activation and a norm before the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, Literal, TypeAlias, get_args

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


def learned_activation(activation: Activation) -> Iterator[Item]:
    """Emit the parameters of an activation that has any, and the constants stored with them."""
    learned = _ACTIVATION_PARAMETERS.get(activation)
    if learned is not None:
        yield Scale(name="activation", axes=(Axis("activation", learned),))
    constants = _ACTIVATION_CONSTANTS.get(activation)
    if constants is not None:
        axes = (Axis("activation", constants),)
        yield Scale(name="activation.constants", of="activation", axes=axes, buffer=True)


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

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the projections, and what is learned between them."""
        yield from self.linears(embed)
        if self.output_bias and not self.inner_dim:
            yield Scale(name="down.bias", of="down", axes=(embed,))
        if self.factor:
            yield Scale(name="factor", axes=(Axis("factor", 1),))
        yield from learned_activation(self.activation)
        if self.inner_norm is not None and self.inner_dim:
            yield from self.inner_norm.items("inner_norm", (Axis("inner", self.inner_dim),))

    def linears(self, embed: Axis) -> Iterator[Linear]:
        """Emit the projections alone."""
        if not self.inner_dim:
            return
        inner = Axis("inner", self.inner_dim)
        for name in ("gate", "up") if self.gated else ("up",):
            yield Linear(
                name=name, into=(embed,), out=((inner,),), bias=self.input_bias, merged="gate_up"
            )
        yield Linear(name="down", into=(inner,), out=((embed,),), bias=self.output_bias)


def shared_items(part: FeedForward, embed: Axis) -> Iterator[Item]:
    """Emit a feed-forward that stands beside routed experts; it is one operation."""
    for item in part.items(embed):
        name = f"shared.{item.name}"
        if isinstance(item, Linear):
            merged = None if item.merged is None else f"shared.{item.merged}"
            yield attrs.evolve(item, name=name, of="shared", role=name, merged=merged)
        elif isinstance(item, Scale):
            yield attrs.evolve(item, name=name, of="shared")


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
