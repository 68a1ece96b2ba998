"""What a ledger has: every item of a model with how often it occurs, and what is stored of it.

* `Entry`: one item, `count` times.
* `StoredTensor`: one weight as it is stored, `count` times.
* `ResidualStep`: the entries of a residual step.
* `StoredShape`, `stored_shapes`, `stored_name`: what an item stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import attrs

from llmcalc.breakdown import Factor
from llmcalc.described import Described
from llmcalc.spec.axes import WHOLE, Axes, Axis, Split, extent, factors
from llmcalc.spec.items import Conv, Item, Linear, Product, Scale, Table
from llmcalc.spec.part import Group

__all__ = [
    "ONE_ROW",
    "Entry",
    "Place",
    "ResidualStep",
    "StoredShape",
    "StoredTensor",
    "distinct",
    "is_buffer",
    "stored_name",
    "stored_shapes",
]

#: Where something stands in the order of computation: before the layers, in those of a label, or
#: after them. Pipeline parallelism places it by that.
Place: TypeAlias = tuple[Literal["before", "layers", "after"], str]


@attrs.frozen(repr=False, eq=False)
class Entry(Described):
    """An item at its place: `path` is (group, layer label), `count` the layers that have it.

    `count` is `None` for what stands outside the layers and occurs once: before them, or with
    `after` after them. A step goes `uses` times through each of the layers.
    """

    path: tuple[Group, str]
    count: int | None
    item: Item
    uses: int = 1
    after: bool = False
    #: The path of the operation that the item belongs to: what is timed as one.
    operation: tuple[str, ...] = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        group, label = self.path
        object.__setattr__(self, "operation", (group, label, self.item.of))

    @property
    def group(self) -> Group:
        """Where the item is counted."""
        return self.path[0]

    @property
    def routed(self) -> bool:
        """Whether the item is one of several experts, of which ranks may hold whole ones."""
        return isinstance(self.item, Linear | Table | Product) and self.item.routed

    @property
    def label(self) -> str:
        """The kind of layers that have it; empty outside of them."""
        return self.path[1]

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
    def places(self) -> tuple[Place, ...]:
        """Where it stands, as one of several places."""
        return (self.place,)

    @property
    def layered(self) -> bool:
        """Whether it stands in layers."""
        return self.count is not None

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
    `entry` has the item that it is a weight of, or the bias of. A weight that several items store
    as one is `shared`: stored once, at the places that use it.
    """

    entry: Entry
    rows: tuple[Axes, ...]
    columns: tuple[Axes, ...]
    is_bias: bool = False
    shared: tuple[Place, ...] | None = None
    #: What `extents` gives of the whole, once it was asked for.
    _whole: tuple[int, int, int] | None = attrs.field(
        default=None, init=False, eq=False, repr=False
    )

    @property
    def group(self) -> str:
        """Where its parameters are counted."""
        return self.entry.path[0]

    @property
    def label(self) -> str:
        """The kind of layers that store it."""
        return self.entry.path[1]

    @property
    def item(self) -> Item:
        """What it is a weight of, or the bias of."""
        return self.entry.item

    @property
    def path(self) -> tuple[str, ...]:
        """The group, the label of layers and the name."""
        return (*self.entry.path, stored_name(self.item, is_bias=self.is_bias))

    @property
    def operation(self) -> tuple[str, ...]:
        """The path of the operation that its item belongs to."""
        return self.entry.operation

    @property
    def layers(self) -> int:
        """How many layers store it; 1 where it is stored once."""
        return 1 if self.shared is not None or self.entry.count is None else self.entry.count

    @property
    def times(self) -> tuple[Factor, ...]:
        """The factor that counts the layers that store it, none where it is stored once."""
        return () if self.shared is not None else self.entry.layers

    @property
    def places(self) -> tuple[Place, ...]:
        """Where it is used: in several places, where several items share the weight."""
        return self.entry.places if self.shared is None else self.shared

    @property
    def active(self) -> int | None:
        """How many experts of its rows a token reads, if they are those of experts."""
        item = self.item
        return item.active if isinstance(item, Linear | Table) else None

    @property
    def is_matrix(self) -> bool:
        """Whether it is the matrix of a linear layer: no vector, bias, table or convolution."""
        return isinstance(self.item, Linear) and not self.is_bias and self.rows != ONE_ROW

    @property
    def role(self) -> str | None:
        """What the matrix or table is in its part; `None` for vectors and convolutions."""
        return self.item.role if isinstance(self.item, Linear | Table) else None

    @property
    def routed(self) -> bool:
        """Whether it is a weight of several experts, of which ranks may hold whole ones."""
        return self.entry.routed

    @property
    def stacked(self) -> int:
        """How many factors of the rows count matrices that stand one by one: those of experts."""
        return int(self.active is not None and len(self.rows) == 1)

    @property
    def row_factors(self) -> tuple[Factor, ...]:
        """The factors of the whole tensor's rows."""
        return factors(self.rows)

    @property
    def column_factors(self) -> tuple[Factor, ...]:
        """The factors of the whole tensor's columns."""
        return factors(self.columns)

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

    @property
    def layered(self) -> bool:
        """Whether layers store it, each its own."""
        return self.shared is None and self.entry.count is not None

    @property
    def elements(self) -> int:
        """How many elements it has in one layer."""
        matrices, rows, columns = self.extents(WHOLE)
        return matrices * rows * columns

    def extents(self, split: Split) -> tuple[int, int, int]:
        """Return how many matrices one rank holds, and the rows and columns of each."""
        if split is not WHOLE:
            return self._measure(split)
        whole = self._whole
        if whole is None:
            whole = self._measure(WHOLE)
            object.__setattr__(self, "_whole", whole)
        return whole

    def _measure(self, split: Split) -> tuple[int, int, int]:
        return StoredShape(self.rows, self.columns).extents(split, stacked=bool(self.stacked))


#: The rows of a vector: one piece, the empty product.
ONE_ROW: tuple[Axes, ...] = ((),)


class ResidualStep(NamedTuple):
    """The entries of one residual step of a kind of layer.

    Where it `adds_up`, the results of its parts are added before anything else reads them.
    """

    entries: tuple[Entry, ...]
    adds_up: bool


class StoredShape(NamedTuple):
    """The `rows` and the `columns` of what an item stores: of its weight, or of its bias."""

    rows: tuple[Axes, ...]
    columns: tuple[Axes, ...]
    is_bias: bool = False

    def extents(self, split: Split, *, stacked: bool) -> tuple[int, int, int]:
        """Return how many matrices a rank holds, and the rows and columns of each.

        Where matrices are `stacked`, the first axis of the rows counts them.
        """
        rows, columns = self.rows, extent(self.columns, split)
        if not stacked:
            return 1, extent(rows, split), columns
        held = extent((rows[0][:1],), split)
        return held, extent(tuple([piece[1:] for piece in rows]), split), columns


def stored_shapes(item: Item) -> tuple[StoredShape, ...]:
    """Return the shapes of what an item stores."""
    if isinstance(item, Linear):
        several, rows = item.experts or item.blocks, item.out
        if several is not None:
            rows = tuple([(several, *piece) for piece in rows])
        weight = StoredShape(rows, (item.into,))
        if not item.bias:
            return (weight,)
        rows = ONE_ROW if several is None else ((several,),)
        return weight, StoredShape(rows, item.out, True)
    if isinstance(item, Scale):
        return (StoredShape(ONE_ROW, (item.axes,)),)
    if isinstance(item, Table):
        return (StoredShape(((item.rows,),), (item.row,)),)
    if isinstance(item, Conv):
        inputs = () if item.into == 1 else (Axis("channels per group", item.into),)
        weight = StoredShape((item.channels,), ((*inputs, Axis("kernel", item.kernel)),))
        return (weight, StoredShape(ONE_ROW, (item.channels,), True)) if item.bias else (weight,)
    return ()


def is_buffer(item: Item) -> bool:
    """Whether an item is stored with the parameters, and is none."""
    return isinstance(item, Scale | Table) and item.buffer


def stored_name(item: Item, *, is_bias: bool) -> str:
    """Return the name of what an item stores."""
    if isinstance(item, Linear | Conv):
        return f"{item.name}.bias" if is_bias else f"{item.name}.weight"
    return item.name


def distinct(stored: Iterable[tuple[Entry, StoredTensor]]) -> Iterator[StoredTensor]:
    """Give each stored weight once, with all the places that use it."""
    pairs = tuple(stored)
    users: dict[tuple[str, bool], dict[Place, None]] = {}
    for entry, tensor in pairs:
        key = _shared_key(tensor)
        if key is not None:
            users.setdefault(key, {})[entry.place] = None
    for _, tensor in pairs:
        key = _shared_key(tensor)
        if key is None:
            yield tensor
        elif key in users:
            # Stored once, however many layers use it.
            yield attrs.evolve(tensor, shared=tuple(users.pop(key)))


def _shared_key(tensor: StoredTensor) -> tuple[str, bool] | None:
    """Return the key under which several items store the weight, if they do."""
    item = tensor.item
    if not isinstance(item, Linear | Table | Scale) or item.storage is None:
        return None
    # A tied head stores no weight of its own, but it may have a bias.
    return item.storage, tensor.is_bias
