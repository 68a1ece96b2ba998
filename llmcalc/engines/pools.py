r"""Pools: how an engine comes to the memory that it keeps for requests.

* `PoolRule`: what every rule answers.
* `OfVisible`: a share of the visible memory, less all that is used beside the pool.
* `OfFree`: a share of the memory that is free before the weights load, less the weights.
* `OfRest`: a share of what everything else leaves.
* `Cells`: no pool: a given number of cells.
* `Used`: what a device holds beside the pool.

With the share :math:`s`, and on one device the visible memory :math:`m`, the weights :math:`w`,
the peak of intermediate results :math:`a`, what is outside the framework :math:`o` and the graphs
:math:`g`, all in bytes:

.. math:: \text{of visible, cells: } m s - w - a - o - g, \qquad
          \text{of free: } m s - w - o, \qquad
          \text{of the rest: } (m - w - a - o - g) s
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Final, Literal, NamedTuple, TypeAlias

import attrs

from llmcalc.described import Described
from llmcalc.units import Bytes, format_quantity

__all__ = ["Cells", "OfFree", "OfRest", "OfVisible", "PoolName", "PoolRule", "Used"]

#: The rules by the names that `Engine` takes.
PoolName: TypeAlias = Literal["total", "static", "free", "cells"]

#: How requests take their caches of the memory; `llmcalc.serving.allocate` says what that means.
Policy: TypeAlias = Literal["paged", "contiguous"]


class Used(NamedTuple):
    """What a device holds beside the cache pool, in bytes."""

    weight_bytes: int
    activation_bytes: int = 0
    non_torch_bytes: int = 0
    graph_bytes: int = 0


#: What working calls the terms of `Used`.
_WORDS: Final = {
    "weight_bytes": "weights",
    "activation_bytes": "activation peak",
    "non_torch_bytes": "non-torch",
    "graph_bytes": "graphs",
}


@attrs.frozen(repr=False, eq=False)
class PoolRule(Described, ABC):
    """How a cache pool comes about. A rule of your own says the same things as the four here.

    `name`
        What the rule is called.
    `share_of`
        What the share is one of: the ``"visible"`` memory, what is ``"free"`` of it before the
        weights load, or the ``"rest"`` when everything else is in.
    `subtracted`
        The terms of `Used` that the pool depends on; the others are parts of what is left.
    `asked`
        The terms beside the weights that must be known of the engine, or be given: it measures
        them when it starts, by running a step. The others are subtracted where they are given.
    `policy`
        How requests take their caches of the pool.
    `reserves_cells`
        Whether what the policy ``"contiguous"`` reserves is cells in whole blocks; `cells` says how
        many.
    `holds_rotary_tables`
        Whether tables of rotary positions are loaded with the weights, and not computed when they
        are needed.
    `loads_as_allocated`
        Whether it is known how weights lie in memory once they are loaded: with copies for other
        forms of a product, in the layouts of kernels, and rounded up by the allocator. Otherwise
        they are counted as they are stored.
    """

    name: ClassVar[str]
    share_of: ClassVar[Literal["visible", "free", "rest"]] = "visible"
    subtracted: ClassVar[tuple[str, ...]] = Used._fields
    asked: ClassVar[tuple[str, ...]] = ()
    policy: ClassVar[Policy] = "paged"
    reserves_cells: ClassVar[bool] = False
    holds_rotary_tables: ClassVar[bool] = False
    loads_as_allocated: ClassVar[bool] = False

    def requested_bytes(self, visible_bytes: int, share: float) -> int:
        """Return what the engine may use of the visible memory: its share, in whole bytes."""
        return int(visible_bytes * share)

    @abstractmethod
    def pool_bytes(self, visible_bytes: int, share: float, used: Used) -> int:
        """Return the cache pool in bytes; it is negative where the rest does not fit."""

    @staticmethod
    def cells(
        context: int, *, block_tokens: int, step_tokens: int, window: int | None = None
    ) -> int:
        """Return how many cells a layer reserves for a context, with a window if it has one.

        It counts where the rule says `reserves_cells`.

        >>> from llmcalc.engines import Cells
        >>> Cells.cells(5000, block_tokens=256, step_tokens=512)
        5120
        >>> Cells.cells(5000, block_tokens=256, step_tokens=512, window=1000)
        1536
        """
        held = context if window is None else min(context, window + step_tokens)
        return -(-held // block_tokens) * block_tokens

    def working(self, visible_bytes: int, share: float, used: Used) -> list[tuple[str, str]]:
        """Return the pool's working, from memory to the pool: what each line is, and its bytes."""
        first = f"visible x {share:g}", self.requested_bytes(visible_bytes, share)
        pool = "cache pool", self.pool_bytes(visible_bytes, share, used)
        lines = [first, *self._subtractions(used), pool]
        return [(words, format_quantity(value, Bytes)) for words, value in lines]

    def _subtractions(self, used: Used) -> list[tuple[str, int]]:
        return [(_WORDS[name], -value) for name, value in self._terms(used)]

    def _left(self, memory_bytes: int, used: Used) -> int:
        return memory_bytes - sum([value for _, value in self._terms(used)])

    def _terms(self, used: Used) -> list[tuple[str, int]]:
        return [(name, value) for name, value in used._asdict().items() if name in self.subtracted]


class OfVisible(PoolRule):
    """A share of the visible memory, less everything that is used beside the pool (``"total"``).

    The engine runs a step when it starts, and keeps what that leaves.

    >>> from llmcalc import GiB
    >>> from llmcalc.engines import OfVisible, Used
    >>> OfVisible().pool_bytes(80 * GiB, 0.9, Used(15 * GiB, 2 * GiB, GiB)) // GiB
    54
    """

    name: ClassVar[str] = "total"
    asked: ClassVar[tuple[str, ...]] = ("activation_bytes", "non_torch_bytes")
    holds_rotary_tables: ClassVar[bool] = True
    loads_as_allocated: ClassVar[bool] = True

    def pool_bytes(self, visible_bytes: int, share: float, used: Used) -> int:
        """Return the share of the visible memory, less all terms."""
        return self._left(self.requested_bytes(visible_bytes, share), used)


class OfFree(PoolRule):
    """A share of the memory that is free before the weights load, less these (``"static"``).

    Intermediate results and graphs must fit into what the share leaves.

    >>> from llmcalc import GiB
    >>> from llmcalc.engines import OfFree, Used
    >>> OfFree().pool_bytes(80 * GiB, 0.9, Used(15 * GiB, 2 * GiB)) // GiB
    57
    """

    name: ClassVar[str] = "static"
    share_of: ClassVar[Literal["visible", "free", "rest"]] = "free"
    subtracted: ClassVar[tuple[str, ...]] = ("weight_bytes", "non_torch_bytes")
    holds_rotary_tables: ClassVar[bool] = True

    def pool_bytes(self, visible_bytes: int, share: float, used: Used) -> int:
        """Return the share of the free memory, less the weights and what is given outside."""
        return self._left(self.requested_bytes(visible_bytes, share), used)


class OfRest(PoolRule):
    """A share of the memory that is free when everything else is in (``"free"``).

    >>> from llmcalc import GiB
    >>> from llmcalc.engines import OfRest, Used
    >>> OfRest().pool_bytes(80 * GiB, 0.9, Used(15 * GiB, 5 * GiB)) // GiB
    54
    """

    name: ClassVar[str] = "free"
    share_of: ClassVar[Literal["visible", "free", "rest"]] = "rest"

    def requested_bytes(self, visible_bytes: int, share: float) -> int:
        """Return all of the visible memory: the share is one of what the rest leaves."""
        del share
        return visible_bytes

    def pool_bytes(self, visible_bytes: int, share: float, used: Used) -> int:
        """Return the share of what all terms leave."""
        left = self._left(visible_bytes, used)
        return int(left * share) if left > 0 else left

    def working(self, visible_bytes: int, share: float, used: Used) -> list[tuple[str, str]]:
        """Return the pool's working: the share comes last."""
        _, *terms, pool = super().working(visible_bytes, share, used)
        first = "visible", format_quantity(visible_bytes, Bytes)
        return [first, *terms, ("of what is left", f"x {share:g}"), pool]


class Cells(PoolRule):
    """No pool: a number of cells, reserved in one piece for the longest context (``"cells"``).

    What a device has left bounds how many there can be. Cells come in whole blocks; a windowed
    layer has some for its window and one step.
    """

    name: ClassVar[str] = "cells"
    policy: ClassVar[Policy] = "contiguous"
    reserves_cells: ClassVar[bool] = True

    def pool_bytes(self, visible_bytes: int, share: float, used: Used) -> int:
        """Return what the share of the visible memory leaves for cells."""
        return self._left(self.requested_bytes(visible_bytes, share), used)


#: The rules by their names.
POOLS: Final[dict[str, PoolRule]] = {
    rule.name: rule for rule in (OfVisible(), OfFree(), OfRest(), Cells())
}
