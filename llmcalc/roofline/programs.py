"""Folds over a ledger that were begun before the workload is known, so that a step takes less time.

* `Piece`: one term of a fold but for the workload: its factors, and the count that it grows with;
  it belongs to an item, by its `ItemKey`.
* `Program`: the pieces of a fold, with their sums.
* `StepBreakdown`: a program's breakdown for a workload; `ArrayTerm`: its terms for arrays.
* `Largest`: the breakdown of one of several programs.
* `keep`: keep a program with its model's ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, cast

import attrs

from llmcalc.breakdown import Breakdown, Factor, Term, UnitT, ValueT
from llmcalc.described import FrozenMapping
from llmcalc.roofline.counts import Count, Sums, Values, Workload
from llmcalc.spec.ledger import Ledger

if TYPE_CHECKING:
    from llmcalc.roofline.shares import Share

__all__ = [
    "ArrayTerm",
    "ItemKey",
    "Largest",
    "Piece",
    "Program",
    "StepBreakdown",
    "keep",
]

#: An item of a step: group, layer label and name.
ItemKey: TypeAlias = tuple[str, ...]


class Piece(NamedTuple):
    """A term at `path` but for the workload, so much `per` count; it belongs to an `item`.

    The factors `shape` stand before those of the count, the factors `times` behind them.
    """

    path: tuple[str, ...]
    item: ItemKey
    shape: tuple[Factor, ...]
    per: Count
    times: tuple[Factor, ...] = ()


class Program:
    """The pieces of a fold; `counts` are those that they grow with.

    `total`, `groups` and `items` are the sums of all pieces, of those with the same first name in
    their path, and of those of the same item; `sizes` has how much of which count each piece is.
    Sums have the counts that grow with past tokens last, and `late_items` are the items that have
    one: what is the same for all contexts is then added up in arrays that have none of them.
    """

    __slots__ = (
        "conventions",
        "counts",
        "groups",
        "items",
        "late_items",
        "pieces",
        "sizes",
        "total",
    )

    def __init__(self, pieces: Iterable[Piece], conventions: object = None) -> None:
        self.conventions = conventions
        self.pieces = tuple(pieces)
        numbers: dict[Count, int] = {}
        total: dict[int, int] = {}
        groups: dict[str, dict[int, int]] = {}
        items: dict[ItemKey, dict[int, int]] = {}
        sizes: list[tuple[int, int]] = []
        for path, item, shape, count, times in self.pieces:
            number = numbers.setdefault(count, len(numbers))
            size = prod([factor for factor, _ in (*shape, *times)])
            sizes.append((number, size))
            for sums in (total, groups.setdefault(path[0], {}), items.setdefault(item, {})):
                sums[number] = sums.get(number, 0) + size
        self.counts = tuple(numbers)
        self.sizes: Sums = tuple(sizes)
        self.total = self._ordered(total)
        self.groups = {group: self._ordered(sums) for group, sums in groups.items()}
        self.items = {item: self._ordered(sums) for item, sums in items.items()}
        self.late_items = frozenset(
            item for item, sums in items.items() if any(self.counts[n].is_late for n in sums)
        )

    def _ordered(self, sums: Mapping[int, int]) -> Sums:
        return tuple(sorted(sums.items(), key=lambda one: self.counts[one[0]].is_late))

    def but(self, group: str) -> Sums:
        """Return the sum of all pieces but those of a group."""
        sums: dict[int, int] = {}
        for name, own in self.groups.items():
            for number, size in own if name != group else ():
                sums[number] = sums.get(number, 0) + size
        return self._ordered(sums)

    def values(self, workload: Workload) -> Values:
        """Return the value of each of the counts."""
        return workload.values(self.counts, self._sum)

    def most(self, workload: Workload) -> Any:
        """Return a bound of the total of every element of a workload."""
        return self._sum(workload.most(self.counts))

    def _sum(self, values: list[Any]) -> Any:
        return sum([size * values[number] for number, size in self.total])


class StepBreakdown(Breakdown[UnitT, ValueT], Generic[UnitT, ValueT]):
    """A breakdown whose terms are a program's pieces for a workload.

    Its total is summed from the pieces by the count that they share, and not term by term.
    """

    __slots__ = ("_made", "program", "values", "workload")

    program: Program
    workload: Workload
    values: Values
    _made: tuple[Term[ValueT], ...] | None

    def __init__(self, unit: type[UnitT], title: str, program: Program, workload: Workload) -> None:
        keep = object.__setattr__
        keep(self, "unit", unit)
        keep(self, "title", title)
        keep(self, "program", program)
        keep(self, "workload", workload)
        keep(self, "values", program.values(workload))
        keep(self, "_made", None)

    def __reduce__(self) -> tuple[Any, ...]:
        return StepBreakdown, (self.unit, self.title, self.program, self.workload)

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
            for count, value in zip(self.program.counts, values.each, strict=True)
        }
        for path, _, own, count, times in self.program.pieces:
            found = (*own, *factors[count], *times)
            yield Term(path, found) if values.shape is None else ArrayTerm(path, found, values)

    @property
    def total(self) -> ValueT:
        """The sum of all terms: an `int`, or an array where an argument is one."""
        return cast("ValueT", self.of(self.program.total))

    def of(self, sums: Sums) -> Any:
        """Return a sum of pieces in the shape of all arguments."""
        return self.values.total(sums)

    def regroup(self, key: Callable[[tuple[str, ...]], str]) -> Mapping[str, ValueT]:
        """Return the sums of the terms by ``key(path)``, in the order of first appearance."""
        groups: dict[str, dict[int, int]] = {}
        for piece, (number, size) in zip(self.program.pieces, self.program.sizes, strict=True):
            sums = groups.setdefault(key(piece.path), {})
            sums[number] = sums.get(number, 0) + size
        return FrozenMapping(
            {group: self.of(tuple(sums.items())) for group, sums in groups.items()}
        )


@attrs.frozen(repr=False, eq=False)
class ArrayTerm(Term[ValueT]):
    """A term of a `step` of array arguments: its value has their shape, whatever it grows with."""

    step: Values = attrs.field(repr=False)

    @property
    def value(self) -> ValueT:
        """The product of the factors, an array."""
        return cast("ValueT", self.step.whole(super().value))


class Largest:
    """One of several programs: that with the largest total at the largest workload."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: list[tuple[Share, Program]] = []

    def add(self, share: Share, program: Program) -> None:
        """Add a program with the share that it is of."""
        self._found.append((share, program))

    def breakdown(
        self, unit: type[UnitT], title: str, workload: Callable[[Share], Workload]
    ) -> Breakdown[UnitT, Any]:
        """Return the breakdown of the largest one; a share of a workload is that of its replica."""
        share, program = self._found[0]
        if len(self._found) > 1:
            share, program = max(self._found, key=lambda one: one[1].most(workload(one[0])))
        return StepBreakdown(unit, f"{title}{share.title}", program, workload(share))


def keep(
    ledger: Ledger, key: Hashable, pieces: Iterable[Piece], conventions: object = None
) -> Program:
    """Return the program of these pieces, kept with the ledger under a key that states all of it.

    `conventions` hold the objects whose identity is part of the key, and live as long.
    """
    return ledger.keep(key, Program(pieces, conventions))
