"""Folds: what a quantity is made of, before the workload is known.

* `Piece`: so much per count, in each of so many layers; it belongs to an operation.
* `Draft`: a piece before anything is multiplied.
* `Where`: where something stands, and so how much of it a pipeline stage has.
* `Shape`, `Stored`: how a piece is printed; a `Maker` says it.
* `Fold`: pieces, with their sums.

A piece's size is a plain integer. How it is printed, factor by factor, is found out only when
somebody asks for the working: `Piece.terms` gives the same size as a product of named factors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from llmcalc.breakdown import Factor
from llmcalc.folds.counts import Count, Sums
from llmcalc.spec.axes import Axes, Split, extent, factors
from llmcalc.spec.ledger import Entry, Place, StoredTensor

if TYPE_CHECKING:
    from llmcalc.folds.workloads import Values, Workload
    from llmcalc.formats import Format
    from llmcalc.layouts import Stage

__all__ = ["Draft", "Fold", "Kind", "Maker", "Operation", "Piece", "Shape", "Stored", "Where"]

#: What a piece is of. Products have weights or a state of their own; mixing is attention's.
Kind: TypeAlias = Literal[
    "product", "mixing", "weights", "cache held", "cache read", "cache written",
    "activations", "scores", "message",
]  # fmt: skip

#: What is timed as one: group, layer label and operation.
Operation: TypeAlias = tuple[str, ...]

#: What a piece is of: an item that computes, or what is stored.
Source: TypeAlias = Entry | StoredTensor

#: A term: its path and its factors.
Shown: TypeAlias = tuple[tuple[str, ...], tuple[Factor, ...]]


class Maker(Protocol):
    """What made a piece, and says how it is printed."""

    @abstractmethod
    def words(self, piece: Piece, /) -> Shape | Stored:
        """Return how the piece is printed."""


class Shape(NamedTuple):
    """A term at `path`: factors `before`, the `sides` of a tensor, those `beside` and `after` it.

    Before the last ones stand the factors of the count and of the layers.
    """

    path: tuple[str, ...]
    before: tuple[Factor, ...]
    sides: tuple[tuple[Axes, ...], ...]
    split: Split
    beside: tuple[Factor, ...] = ()
    after: tuple[Factor, ...] = ()

    def terms(self, count: tuple[Factor, ...], layers: tuple[Factor, ...]) -> Iterator[Shown]:
        """Give the term."""
        shape = [factor for side in self.sides for factor in factors(side, self.split)]
        yield self.path, (*self.before, *shape, *self.beside, *count, *layers, *self.after)

    def words(self, _: Piece) -> Shape:
        """Return itself."""
        return self


class Stored(NamedTuple):
    """The terms of what is stored of a tensor in a `format`, at `path`.

    The first `matrices` factors of the rows count matrices that stand one by one.
    """

    path: tuple[str, ...]
    format: Format
    rows: tuple[Axes, ...]
    columns: tuple[Axes, ...]
    split: Split
    matrices: int = 0
    before: tuple[Factor, ...] = ()

    def terms(self, count: tuple[Factor, ...], layers: tuple[Factor, ...]) -> Iterator[Shown]:
        """Give a term for what is stored of the values, and one for each thing beside them."""
        *place, name = self.path
        rows, columns = factors(self.rows, self.split), factors(self.columns, self.split)
        for suffix, shape in self.format.terms(rows, columns, matrices=self.matrices):
            yield (*place, name + suffix), (*self.before, *shape, *count, *layers)


class Where(NamedTuple):
    """Where something stands: at `places`, and where `layered` in the layers of the only one.

    `numbers` are the layers that have it, if not all of them. What is not `layered` occurs once, on
    every stage that has one of the places.
    """

    places: tuple[Place, ...]
    layered: bool
    numbers: tuple[int, ...] | None = None

    def on(self, stage: Stage) -> int:
        """Return how many of the layers that have it are on a pipeline stage."""
        if not self.layered:
            return int(stage.uses(self.places))
        place = self.places[0]
        if self.numbers is None:
            return stage.count(place)
        own = stage.numbers.get(place[1], ())
        return len(own) if own == self.numbers else len(set(own).intersection(self.numbers))


class Piece(NamedTuple):
    """So much (`each`) per count, in one of `layers`, each used so often, for an `operation`.

    `source` is the entry that it is of, or what is stored; it says where the piece stands.
    `maker` made it, as its `part` of the source. `numbers` are the layers that have it, if not all
    of that place.
    """

    kind: Kind
    operation: Operation
    each: int
    per: Count
    layers: int
    uses: int
    source: Source | None
    maker: Maker
    part: str = ""
    numbers: tuple[int, ...] | None = None

    @property
    def words(self) -> Shape | Stored:
        """How it is printed."""
        return self.maker.words(self)

    @property
    def path(self) -> tuple[str, ...]:
        """The path of its first term."""
        return self.words.path

    @property
    def where(self) -> Where:
        """Where it stands; what has no source occurs once."""
        source = self.source
        if source is None:
            return Where((), False)
        return Where(source.places, source.layered, self.numbers)

    @property
    def entry(self) -> Entry:
        """The entry that it is of, or whose item is stored."""
        source = self.source
        if source is None:
            raise TypeError("a piece of no entry")
        return source if isinstance(source, Entry) else source.entry

    @property
    def tensor(self) -> StoredTensor | None:
        """What is stored, if it is a weight that is held."""
        return None if isinstance(self.source, Entry) else self.source

    @property
    def size(self) -> int:
        """So much per count in all layers."""
        return self.each * self.uses * self.layers

    @property
    def elements(self) -> int:
        """So many elements of matrices it has per count; vectors count none."""
        words = self.words
        if not isinstance(words, Stored) or words.rows == ((),):
            return 0
        columns = extent(words.columns, words.split)
        return extent(words.rows, words.split) * columns * self.uses * self.layers

    @property
    def format(self) -> Format | None:
        """The format that it is stored in, if it is stored."""
        return self.words.format if isinstance(self.words, Stored) else None

    def on(self, stage: Stage) -> int:
        """Return how many of the layers that have it are on a pipeline stage."""
        return self.where.on(stage)

    def terms(self, count: tuple[Factor, ...], layers: Any = None) -> Iterator[Shown]:
        """Give its terms, with the factors of its count, in all its layers or in so many."""
        number = self.layers if layers is None else layers
        layered = self.source is not None and self.source.layered
        times: tuple[Factor, ...] = ((number, "layers"),) if layered else ()
        if self.uses != 1:
            times = (*times, (self.uses, "uses"))
        yield from self.words.terms(count, times)


class Draft(NamedTuple):
    """A piece of an item before anything is multiplied: its kind, its `part`, and its factors.

    They are `before` the `sides` of a tensor, or `beside` them; it grows with `per`.
    """

    kind: Kind
    part: str
    before: tuple[Factor, ...]
    sides: tuple[tuple[Axes, ...], ...]
    per: Count
    beside: tuple[Factor, ...] = ()

    def size(self, split: Split) -> int:
        """Return the product of all factors."""
        size = 1
        for factor, _ in self.before:
            size *= factor
        for side in self.sides:
            size *= extent(side, split)
        for factor, _ in self.beside:
            size *= factor
        return size

    def piece(self, each: int, entry: Entry, maker: Maker) -> Piece:
        """Return the piece of an entry that has so much of it in one layer."""
        kind, part, _, _, per, _ = self
        layers = 1 if entry.count is None else entry.count
        return Piece(kind, entry.operation, each, per, layers, entry.uses, entry, maker, part)


class Fold:
    """The pieces of a quantity; `counts` are those that they grow with.

    Sums have how much there is of each count, those that grow with past tokens last; `late` are the
    operations that have one: what is the same for all contexts is then added up once for all.
    """

    __slots__ = ("_kinds", "_numbers", "counts", "late", "operations", "pieces")

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces: tuple[Piece, ...] = tuple(pieces)
        numbers: dict[Count, int] = {}
        operations: dict[Operation, dict[int, int]] = {}
        each: list[int] = []
        per, number = None, 0
        for piece in self.pieces:
            if piece.per is not per:
                per = piece.per
                number = numbers.setdefault(per, len(numbers))
            each.append(number)
            size = piece.each * piece.layers * piece.uses
            sums = operations.get(piece.operation)
            if sums is None:
                operations[piece.operation] = {number: size}
            else:
                sums[number] = sums.get(number, 0) + size
        self.counts: tuple[Count, ...] = tuple(numbers)
        self._numbers = each
        self._kinds: dict[tuple[Kind, ...], Sums] = {}
        late = [count.is_late for count in self.counts]
        self.operations: dict[Operation, Sums] = {}
        growing: list[Operation] = []
        for key, sums in operations.items():
            ordered = self.operations[key] = _ordered(sums, late)
            if late[ordered[-1][0]]:  # the last ones grow with past tokens
                growing.append(key)
        self.late: frozenset[Operation] = frozenset(growing)

    def of(self, *kinds: Kind) -> Sums:
        """Return the sum of all pieces, or of those of some kinds."""
        found = self._kinds.get(kinds)
        if found is None:
            found = self._kinds[kinds] = self._sum(lambda piece: not kinds or piece.kind in kinds)
        return found

    def each(self) -> list[Sums]:
        """Return each piece's own sum."""
        pairs = zip(self.pieces, self._numbers, strict=True)
        return [((number, piece.size),) for piece, number in pairs]

    def _sum(self, counts: Callable[[Piece], bool]) -> Sums:
        sums: dict[int, int] = {}
        for piece, number in zip(self.pieces, self._numbers, strict=True):
            if counts(piece):
                sums[number] = sums.get(number, 0) + piece.size
        return _ordered(sums, [count.is_late for count in self.counts])

    def grouped(self, key: Callable[[Piece], Any]) -> dict[Any, Sums]:
        """Return the sums of the pieces that have the same key, in order of first appearance."""
        found: dict[Any, dict[int, int]] = {}
        for piece, number in zip(self.pieces, self._numbers, strict=True):
            sums = found.setdefault(key(piece), {})
            sums[number] = sums.get(number, 0) + piece.size
        late = [count.is_late for count in self.counts]
        return {name: _ordered(sums, late) for name, sums in found.items()}

    def on(self, stage: Stage) -> Fold:
        """Return the pieces that a pipeline stage has."""
        if stage.stages == 1:
            return self
        found = [(piece, piece.on(stage)) for piece in self.pieces]
        return Fold(piece._replace(layers=layers) for piece, layers in found if layers)

    def sum_on(self, stage: Stage) -> Sums:
        """Return the sum of the pieces that a pipeline stage has."""
        sums: dict[int, int] = {}
        for piece, number in zip(self.pieces, self._numbers, strict=True):
            size = piece.each * piece.uses * piece.on(stage)
            sums[number] = sums.get(number, 0) + size
        return tuple(sums.items())

    def values(self, workload: Workload) -> Values:
        """Return the value of each of the counts."""
        return workload.values(self.counts, self._most)

    def most(self, workload: Workload) -> Any:
        """Return a bound of the total of every element of a workload."""
        return self._most(workload.most(self.counts))

    def _most(self, values: list[Any]) -> Any:
        return sum([size * values[number] for number, size in self.of()])


def _ordered(sums: dict[int, int], late: list[bool]) -> Sums:
    """Return a sum with the counts that grow with past tokens last."""
    growing = False
    for number in sums:
        if growing and not late[number]:
            return tuple(sorted(sums.items(), key=lambda one: late[one[0]]))
        growing = late[number]
    return tuple(sums.items())
