"""What a block can hold.

* `Part`: the base of all parts; a part emits items and computes no number.
* `Group`: where the items of a part are counted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

from llmcalc.described import Described
from llmcalc.spec.axes import Axis
from llmcalc.spec.items import Item

__all__ = ["Group", "Part"]

#: The groups of every breakdown. Engines place the items of a group alike.
Group: TypeAlias = Literal[
    "embeddings", "norms", "attention", "recurrent", "feed_forward", "experts", "other", "head"
]


class Part(Described, ABC):
    """A part of a block. `group` is where its items are counted.

    A part of your own has a `group` and `items`; what only forwards another part has all of its
    properties, and then every quantity is that of the other part.
    """

    __slots__ = ()

    group: ClassVar[Group]

    #: The label of parts that all have the same.
    usual_label: ClassVar[str] = ""

    @property
    def label(self) -> str:
        """A word for layers that have this part; empty for what most layers have."""
        return self.usual_label

    def check_width(self, embed_dim: int) -> None:
        """Refuse a width that the part's result does not have; by default it has any."""

    @abstractmethod
    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the items of the part in a model of width `embed`."""
