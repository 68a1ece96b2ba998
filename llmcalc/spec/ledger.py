"""The ledger: every item of a model with how often it occurs. Every quantity is a fold over it.

* `Entry`: one item, `count` times.
* `StoredTensor`: one weight as it is stored, `count` times.
* `Ledger`: the entries, and the views of them that folds loop over.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

import attrs

from llmcalc.breakdown import Factor
from llmcalc.described import Described
from llmcalc.spec.axes import WHOLE, Axes, Axis, Split, extent, factors, is_divided
from llmcalc.spec.items import Cache, Conv, Item, Linear, Scale, Table

__all__ = ["Entry", "Ledger", "Place", "StoredTensor"]

#: Where something stands in the order of computation: before the layers, in those of a label, or
#: after them. Pipeline parallelism places it by that.
Place: TypeAlias = tuple[Literal["before", "layers", "after"], str]


@attrs.frozen(repr=False, eq=False)
class Entry(Described):
    """An item at its place: `path` is (group, layer label), `count` the layers that have it.

    `count` is `None` for what stands outside the layers and occurs once: before them, or with
    `after` after them. A step goes `uses` times through each of the layers.
    """

    path: tuple[str, str]
    count: int | None
    item: Item
    uses: int = 1
    after: bool = False

    @property
    def place(self) -> Place:
        """Where the item stands."""
        if self.count is not None:
            return "layers", self.path[1]
        return "after" if self.after else "before", ""

    @property
    def name(self) -> tuple[str, ...]:
        """The path of the item itself."""
        return (*self.path, self.item.name)

    @property
    def times(self) -> tuple[Factor, ...]:
        """The factors that count the layers and their uses; none outside them."""
        return self.layers if self.uses == 1 else (*self.layers, (self.uses, "uses"))

    @property
    def layers(self) -> tuple[Factor, ...]:
        """The factor that counts the layers; none outside them."""
        return () if self.count is None else ((self.count, "layers"),)


@attrs.frozen(repr=False, eq=False)
class StoredTensor(Described):
    """A weight as it is stored, a matrix: `rows` and `columns` are each a sum of pieces.

    A piece is a product of axes. A matrix multiply contracts its columns; a vector is one row.
    Where the rows are those of several experts, each token reads those of `active` experts.
    `places` says where it is used: in several places, where several items share the weight.
    `row_factors` and `column_factors` are the whole tensor's, which most folds need every time.
    """

    path: tuple[str, ...]
    rows: tuple[Axes, ...]
    columns: tuple[Axes, ...]
    times: tuple[Factor, ...]
    active: int | None = None
    places: tuple[Place, ...] = ()
    row_factors: tuple[Factor, ...] = attrs.field(init=False, eq=False, repr=False)
    column_factors: tuple[Factor, ...] = attrs.field(init=False, eq=False, repr=False)
    #: How many factors of the rows count matrices that stand one by one: those of experts.
    stacked: int = attrs.field(init=False, eq=False, repr=False)
    #: Whether it is a weight of several experts, which expert parallelism deals out.
    routed: bool = attrs.field(init=False, eq=False, repr=False)
    #: What placements ask for again and again, once one has: whether ranks may hold less of the
    #: rows and of the columns, and what `extents` gives of the whole.
    _placed: tuple[tuple[bool, bool], tuple[int, int, int]] | None = attrs.field(
        default=None, init=False, eq=False, repr=False
    )

    def __attrs_post_init__(self) -> None:
        keep = object.__setattr__
        keep(self, "row_factors", factors(self.rows))
        keep(self, "column_factors", factors(self.columns))
        keep(self, "stacked", int(self.active is not None and len(self.rows) == 1))
        keep(self, "routed", self.active is not None and self.path[0] != "attention")

    @property
    def _whole(self) -> tuple[tuple[bool, bool], tuple[int, int, int]]:
        if self._placed is None:
            divided = is_divided(self.rows), is_divided(self.columns)
            object.__setattr__(self, "_placed", (divided, self._measure(WHOLE)))
        return cast("tuple[tuple[bool, bool], tuple[int, int, int]]", self._placed)

    @property
    def active_factors(self) -> tuple[Factor, ...]:
        """The factors of the rows that one token reads."""
        if self.active is None:
            return self.row_factors
        used = Axis("experts per token", self.active)
        pieces = tuple(
            tuple(used if axis.name == "experts" else axis for axis in piece) for piece in self.rows
        )
        return factors(pieces)

    def share(self, split: Split) -> tuple[tuple[Factor, ...], tuple[Factor, ...]]:
        """Return the factors of the rows and of the columns that one rank holds."""
        if split is WHOLE:
            return self.row_factors, self.column_factors
        (rows, columns), _ = self._whole
        return (
            factors(self.rows, split) if rows else self.row_factors,
            factors(self.columns, split) if columns else self.column_factors,
        )

    def extents(self, split: Split) -> tuple[int, int, int]:
        """Return how many matrices one rank holds, and the rows and columns of each."""
        divided, whole = self._whole
        if split is WHOLE or divided == (False, False):
            return whole
        return self._measure(split)

    def _measure(self, split: Split) -> tuple[int, int, int]:
        if self.stacked:
            experts, *rest = self.rows[0]
            return (
                extent(((experts,),), split),
                extent((tuple(rest),), split),
                extent(self.columns, split),
            )
        return 1, extent(self.rows, split), extent(self.columns, split)


#: The rows of a vector: one piece, the empty product.
ONE_ROW: tuple[Axes, ...] = ((),)


#: So much is kept for a model.
_MOST_KEPT: Final = 256

T = TypeVar("T")


class Ledger:
    """The entries of one model; `tensors` are its distinct stored weights.

    `buffers` are stored with them and are no parameters. `caches` are the caches that a request
    holds; `cache_reads` also those that a layer reads and another one holds. `schemes` keeps what
    `llmcalc.formats.scheme` found out about the modules, `programs` what folds prepare before a
    workload is known (`keep`).

    >>> from llmcalc import ModelSpec
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
    ...     embed_dim=64, inner_dim=128, vocab_size=100,
    ... )
    >>> for entry in spec.ledger.entries[:3]:
    ...     print(entry.name, entry.count)
    ('embeddings', '', 'token') None
    ('norms', 'decoder', 'attention_norm.weight') 2
    ('attention', 'decoder', 'q') 2
    """

    __slots__ = (
        "_weight_reads",
        "buffers",
        "cache_reads",
        "caches",
        "entries",
        "programs",
        "schemes",
        "tensors",
    )

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)
        self.tensors = tuple(_distinct_tensors(tuple(_stored_as(self.entries, buffer=False))))
        self.buffers = tuple(_distinct_tensors(tuple(_stored_as(self.entries, buffer=True))))
        caches = [(e, e.item) for e in self.entries if isinstance(e.item, Cache)]
        self.caches = tuple((entry, cache) for entry, cache in caches if cache.held)
        self.cache_reads = tuple(caches)
        self._weight_reads: tuple[tuple[Entry, StoredTensor], ...] | None = None
        self.schemes: dict[str, Any] = {}
        self.programs: dict[Any, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Ledger, (self.entries,)

    def keep(self, key: Hashable, found: T) -> T:
        """Return what was found out about the model, kept under a key that states all of it.

        Nothing is kept that depends on a workload, and only the latest of it.
        """
        kept = self.programs
        for oldest in list(kept)[: max(0, len(kept) + 1 - _MOST_KEPT)]:
            kept.pop(oldest, None)  # which another thread may have dropped
        kept[key] = found
        return found

    @property
    def weight_reads(self) -> tuple[tuple[Entry, StoredTensor], ...]:
        """Every weight that a step reads, each use of it apart."""
        if self._weight_reads is None:
            self._weight_reads = tuple(
                (entry, _stored(entry, shape, entry.times, (entry.place,)))
                for entry in _stored_as(self.entries, buffer=False)
                for shape in _shapes(entry.item)
            )
        return self._weight_reads


def _stored_as(entries: Iterable[Entry], *, buffer: bool) -> Iterator[Entry]:
    """Give the entries of the parameters, or those of the buffers."""
    for entry in entries:
        item = entry.item
        if (isinstance(item, Scale | Table) and item.buffer) == buffer:
            yield entry


def _distinct_tensors(entries: tuple[Entry, ...]) -> Iterator[StoredTensor]:
    seen: set[tuple[str, bool]] = set()
    users: dict[tuple[str, bool], dict[Place, None]] = {}
    for entry in entries:
        item = entry.item
        if isinstance(item, Linear | Table | Scale) and item.storage is not None:
            for suffix, _, _ in _shapes(item):
                users.setdefault((item.storage, suffix == ".bias"), {})[entry.place] = None
    for entry in entries:
        item = entry.item
        for shape in _shapes(item):
            times = entry.layers
            places: tuple[Place, ...] = (entry.place,)
            if isinstance(item, Linear | Table | Scale) and item.storage is not None:
                # A tied head stores no weight of its own, but it may have a bias.
                key = item.storage, shape[0] == ".bias"
                if key in seen:
                    continue
                seen.add(key)
                places = tuple(users[key])
                times = ()  # stored once, however many layers use it
            yield _stored(entry, shape, times, places)


def _stored(
    entry: Entry, shape: _Shape, times: tuple[Factor, ...], places: tuple[Place, ...]
) -> StoredTensor:
    item = entry.item
    suffix, rows, columns = shape
    active = item.active if isinstance(item, Linear | Table) else None
    return StoredTensor((*entry.path, item.name + suffix), rows, columns, times, active, places)


#: The suffix of a stored tensor's name, its rows and its columns.
_Shape: TypeAlias = tuple[str, tuple[Axes, ...], tuple[Axes, ...]]


def _shapes(item: Item) -> Iterator[_Shape]:
    """Give the stored tensors of an item: suffix of the name, rows, columns."""
    if isinstance(item, Linear):
        several = item.experts or item.blocks
        if several is None:
            yield ".weight", item.out, (item.into,)
        else:
            rows = tuple((several, *piece) for piece in item.out)
            yield ".weight", rows, (item.into,)
        if item.bias:
            yield ".bias", ONE_ROW if several is None else ((several,),), item.out
    elif isinstance(item, Table):
        yield "", ((item.rows,),), (item.row,)
    elif isinstance(item, Scale):
        yield "", ONE_ROW, (item.axes,)
    elif isinstance(item, Conv):
        inputs = () if item.into == 1 else (Axis("channels per group", item.into),)
        yield ".weight", (item.channels,), ((*inputs, Axis("kernel", item.kernel)),)
        if item.bias:
            yield ".bias", ONE_ROW, (item.channels,)
