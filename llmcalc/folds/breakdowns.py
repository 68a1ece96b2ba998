"""Breakdowns of folds: the terms of their pieces for a workload, with the working.

* `FoldBreakdown`: the breakdown of a fold for a workload.
* `ArrayTerm`: its terms for arrays.
* `largest`: of several folds, the one that has most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, cast

import attrs

from llmcalc.breakdown import Breakdown, Term, UnitT, ValueT
from llmcalc.described import FrozenMapping
from llmcalc.folds.counts import Sums
from llmcalc.folds.pieces import Fold
from llmcalc.folds.workloads import Values, Workload

__all__ = ["ArrayTerm", "FoldBreakdown", "largest"]


class FoldBreakdown(Breakdown[UnitT, ValueT], Generic[UnitT, ValueT]):
    """A breakdown whose terms are a fold's pieces for a workload.

    Its total is summed from the pieces by the count that they share, and not term by term.
    """

    __slots__ = ("_made", "fold", "values", "workload")

    fold: Fold
    workload: Workload
    values: Values
    _made: tuple[Term[ValueT], ...] | None

    def __init__(self, unit: type[UnitT], title: str, fold: Fold, workload: Workload) -> None:
        keep = object.__setattr__
        keep(self, "unit", unit)
        keep(self, "title", title)
        keep(self, "fold", fold)
        keep(self, "workload", workload)
        keep(self, "values", fold.values(workload))
        keep(self, "_made", None)

    def __reduce__(self) -> tuple[Any, ...]:
        return FoldBreakdown, (self.unit, self.title, self.fold, self.workload)

    @property
    def terms(self) -> tuple[Term[ValueT], ...]:
        """The leaves, in the order of the model; they are made when they are first asked for."""
        if self._made is None:
            object.__setattr__(self, "_made", tuple(self._make()))
        return cast("tuple[Term[ValueT], ...]", self._made)

    def _make(self) -> Iterator[Term[ValueT]]:
        values = self.values
        factors = {
            count: self.workload.factors(count, value, wide=values.wide)
            for count, value in zip(self.fold.counts, values.each, strict=True)
        }
        for piece in self.fold.pieces:
            for path, found in piece.terms(factors[piece.per]):
                yield Term(path, found) if values.shape is None else ArrayTerm(path, found, values)

    @property
    def total(self) -> ValueT:
        """The sum of all terms: an `int`, or an array where an argument is one."""
        return cast("ValueT", self.of(self.fold.of()))

    def of(self, sums: Sums) -> Any:
        """Return a sum of pieces in the shape of all arguments."""
        return self.values.total(sums)

    def by(self, level: int = 0) -> Mapping[str, ValueT]:
        """Return the sums by the path's element at `level`: 0 is the group, -1 the last one."""
        paths = {piece: piece.path for piece in self.fold.pieces}
        # A piece may have several terms, which differ in their names alone: the last elements.
        if level < 0 or (level > 0 and any(level == len(path) - 1 for path in paths.values())):
            return super().by(level)
        groups = self.fold.grouped(
            lambda piece: paths[piece][level] if level < len(paths[piece]) else ""
        )
        return FrozenMapping({group: self.of(sums) for group, sums in groups.items()})


@attrs.frozen(repr=False, eq=False)
class ArrayTerm(Term[ValueT]):
    """A term of a `step` of array arguments: its value has their shape, whatever it grows with."""

    step: Values = attrs.field(repr=False)

    @property
    def value(self) -> ValueT:
        """The product of the factors, an array."""
        return cast("ValueT", self.step.whole(super().value))


def largest(
    unit: type[UnitT], title: str, folds: list[tuple[str, Fold, Workload]]
) -> FoldBreakdown[UnitT, Any]:
    """Return the breakdown of the fold with the largest total at its largest workload.

    Each of `folds` has what the title says of it, and its part of the workload.
    """
    name, fold, workload = folds[0]
    if len(folds) > 1:
        name, fold, workload = max(folds, key=lambda one: one[1].most(one[2]))
    return FoldBreakdown(unit, title + name, fold, workload)
