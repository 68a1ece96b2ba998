"""Figures of a start-up log: what is printed, and what must hold between printed figures.

* `Figure`: one printed figure, its text, its rank and how far it is rounded.
* `Identity`: what must hold between figures, and whether it does.
"""

from __future__ import annotations

import attrs

from llmcalc.described import Described
from llmcalc.units import GiB, MiB

__all__ = ["Figure", "Identity"]


@attrs.frozen(repr=False, eq=False)
class Figure(Described):
    """One printed figure: bytes, or a count; `within` is half a unit of its last printed digit.

    `rank` is what the log calls the process, such as ``TP0``; empty where it does not say.
    """

    name: str
    value: int | float
    text: str
    rank: str = ""
    within: float = 0.0


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Identity(Described):
    """What must hold between printed figures: `left` and `right` must agree to within `within`."""

    name: str
    rank: str
    left: float
    right: float
    within: float

    @property
    def holds(self) -> bool:
        """Whether both sides agree to within what rounding explains."""
        return abs(self.left - self.right) <= self.within

    def __str__(self) -> str:
        sides = [
            f"{side / GiB:.2f} GiB" if abs(side) >= MiB else f"{side:,.2f}".replace(",", " ")
            for side in (self.left, self.right)
        ]
        where = f" ({self.rank})" if self.rank else ""
        return f"{self.name}{where}: {sides[0]} {'=' if self.holds else '!='} {sides[1]}"
