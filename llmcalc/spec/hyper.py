"""Hyper-connections: several hidden states side by side, mixed around every block.

* `HyperConnection`: what mixes them into the input of a block, and its result into them.
* `HyperHead`: what makes one hidden state of them at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from llmcalc.boundary import flag, instance_of, size
from llmcalc.spec.axes import Axis
from llmcalc.spec.items import Item, Linear, Scale, Scan
from llmcalc.spec.ledger import Entry

__all__ = ["HyperConnection", "HyperHead"]


@attrs.frozen(kw_only=True)
class HyperConnection:
    """The weights with which a block reads `streams` hidden states and adds its result to them.

    The weights of a token come from all of its hidden states. With `combines` there are weights
    among the hidden states, too. `name` is that of the block.

    Source: Xie et al., "mHC: Manifold-Constrained Hyper-Connections" (2025).

    >>> from llmcalc.spec import Axis, HyperConnection
    >>> part = HyperConnection(name="attention", streams=4, combines=False)
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['attention_streams', 'attention_streams.base', 'attention_streams.scale']
    """

    group: ClassVar[str] = "other"
    label: ClassVar[str] = ""

    name: str = attrs.field(validator=instance_of(str))
    streams: int = attrs.field(validator=size)
    combines: bool = attrs.field(validator=flag)

    def check_width(self, embed_dim: int) -> None:
        """Every width will do: the result has the width of the input."""

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the projection to the weights, and what is done with them."""
        streams, name = Axis("streams", self.streams), f"{self.name}_streams"
        number = self.streams * (2 + self.streams if self.combines else 2)
        weights = Axis("stream_weights", number)
        yield Linear(name=name, into=(streams, embed), out=((weights,),))
        yield Scale(name=f"{name}.base", axes=(weights,))
        yield Scale(name=f"{name}.scale", axes=(Axis("kinds", 3 if self.combines else 2),))
        if self.combines:
            # No recurrence, but products without a weight of their own all the same.
            yield Scan(name=f"{name}.mix", state=(embed,), products=self.streams**2)


@attrs.frozen(kw_only=True)
class HyperHead:
    """The weights that make one hidden state of `streams` after the last layer.

    >>> from llmcalc.spec import Axis, HyperHead
    >>> [entry.name[2] for entry in HyperHead(streams=4).entries(Axis("embed", 64))]
    ['head_streams', 'head_streams.base', 'head_streams.scale']
    """

    streams: int = attrs.field(validator=size)

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the projection to the weights."""
        streams, weights = Axis("streams", self.streams), Axis("stream_weights", self.streams)
        items = (
            Linear(name="head_streams", into=(streams, embed), out=((weights,),)),
            Scale(name="head_streams.base", axes=(weights,)),
            Scale(name="head_streams.scale", axes=(Axis("kinds", 1),)),
        )
        for item in items:
            yield Entry(("other", ""), None, item)
