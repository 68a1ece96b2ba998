"""Folds over a ledger that were begun before the workload is known, so that a step takes less time.

* `Piece`: one term of a fold but for the workload: its factors, and the count that it grows with.
* `Program`: the pieces of a fold, with their sums.
* `StepBreakdown`: a program's breakdown for a workload.
* `Largest`: the breakdown of one of several programs.
* `keep`: keep a program with its model's ledger. Nothing is kept that depends on a workload.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias, cast

from llmcalc.breakdown import Breakdown, Factor, Term, UnitT, ValueT
from llmcalc.roofline.counts import Count, Workload, broadcast
from llmcalc.spec.ledger import Ledger

if TYPE_CHECKING:
    from llmcalc.roofline.shares import Share

__all__ = ["ItemKey", "Largest", "Piece", "Program", "StepBreakdown", "Sums", "keep", "weigh"]

#: An item of a step: group, layer label and name.
ItemKey: TypeAlias = tuple[str, ...]

#: A sum of pieces: how much of each count, by its number.
Sums: TypeAlias = tuple[tuple[int, int], ...]


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
    their path, and of those of the same item.
    """

    __slots__ = ("conventions", "counts", "groups", "items", "pieces", "total")

    def __init__(self, pieces: Iterable[Piece], conventions: object = None) -> None:
        self.conventions = conventions
        self.pieces = tuple(pieces)
        numbers: dict[Count, int] = {}
        total: dict[int, int] = {}
        groups: dict[str, dict[int, int]] = {}
        items: dict[ItemKey, dict[int, int]] = {}
        for path, item, shape, count, times in self.pieces:
            number = numbers.setdefault(count, len(numbers))
            size = prod([factor for factor, _ in (*shape, *times)])
            for sums in (total, groups.setdefault(path[0], {}), items.setdefault(item, {})):
                sums[number] = sums.get(number, 0) + size
        self.counts = tuple(numbers)
        self.total: Sums = tuple(total.items())
        self.groups = {group: tuple(sums.items()) for group, sums in groups.items()}
        self.items = {item: tuple(sums.items()) for item, sums in items.items()}

    def values(self, workload: Workload) -> list[Any]:
        """Return the value of each of the counts."""
        return workload.values(self.counts, self._sum)

    def most(self, workload: Workload) -> Any:
        """Return a bound of the total of every element of a workload."""
        return self._sum(workload.most(self.counts))

    def _sum(self, values: list[Any]) -> Any:
        return weigh(self.total, values)


def weigh(sums: Sums, values: list[Any]) -> Any:
    """Return a sum of pieces, from the values of the counts."""
    total: Any = 0
    for number, size in sums:
        total = total + size * values[number]
    return total


class StepBreakdown(Breakdown[UnitT, ValueT], Generic[UnitT, ValueT]):
    """A breakdown whose terms are a program's pieces for a workload.

    Its total is summed from the pieces by the count that they share, and not term by term.
    """

    __slots__ = ("_made", "program", "values", "workload")

    program: Program
    workload: Workload
    values: list[Any]
    _made: tuple[Term[ValueT], ...] | None

    def __init__(self, unit: type[UnitT], title: str, program: Program, workload: Workload) -> None:
        keep = object.__setattr__
        keep(self, "unit", unit)
        keep(self, "title", title)
        keep(self, "program", program)
        keep(self, "workload", workload)
        keep(self, "values", program.values(workload))
        keep(self, "_made", None)

    @property
    def terms(self) -> tuple[Term[ValueT], ...]:
        """The leaves, in the order of the model; they are made when they are first asked for."""
        if self._made is None:
            object.__setattr__(self, "_made", tuple(self._make()))
        return cast("tuple[Term[ValueT], ...]", self._made)

    def _make(self) -> Iterator[Term[ValueT]]:
        factors = {
            count: self.workload.factors(count, value)
            for count, value in zip(self.program.counts, self.values, strict=True)
        }
        for path, _, shape, count, times in self.program.pieces:
            yield Term(path, (*shape, *factors[count], *times))

    @property
    def total(self) -> ValueT:
        """The sum of all terms: an `int`, or an array where an argument is one."""
        total, shape = weigh(self.program.total, self.values), self.workload.shape
        return cast("ValueT", total if shape is None else broadcast(total, shape))


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


#: So many programs are kept for a model, the latest ones.
_MOST_PROGRAMS: Final = 64


def keep(
    ledger: Ledger, key: Hashable, pieces: Iterable[Piece], conventions: object = None
) -> Program:
    """Return the program of these pieces, kept with the ledger under a key that states all of it.

    `conventions` hold the objects whose identity is part of the key, and live as long.
    """
    programs = ledger.programs
    if len(programs) >= _MOST_PROGRAMS:
        del programs[next(iter(programs))]
    program = programs[key] = Program(pieces, conventions)
    return program
