r"""The bytes that a whole model's step moves, as a fold over its ledger.

* `bytes_moved`: what one step reads from and writes to a device's memory, item by item.
* `moves`: that fold before the workload is known.

Conventions: every weight that a step needs is read once, an embedding table by the rows that are
looked up. Keys and values at hand are read once a request and KV head, however many queries share
them, unless they are tiled; those of new tokens are written. Activations are what each matrix
product, convolution, norm and attention reads and writes, with nothing fused but attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, overload

from llmcalc.breakdown import Breakdown, Factor
from llmcalc.folds.breakdowns import largest
from llmcalc.folds.conventions import Conventions, conventions
from llmcalc.folds.counts import ONCE, Count, ExpertReads
from llmcalc.folds.owners import Owner, owners_of
from llmcalc.folds.pieces import Draft, Fold, Piece, Shape, Stored
from llmcalc.folds.storage import CacheFormats, Formats, Slots, formats_in
from llmcalc.folds.workloads import Requests
from llmcalc.spec.axes import Axes, Axis, extent
from llmcalc.spec.items import Conv, Item, Linear, Mix, Scale, Table
from llmcalc.spec.kept import kept
from llmcalc.spec.ledger import Entry, StoredShape, is_buffer, stored_name, stored_shapes
from llmcalc.spec.model import Ledger, ModelSpec
from llmcalc.units import Bytes

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.folds.storage import LayersOf, StateFormat
    from llmcalc.formats import Format, Scheme
    from llmcalc.layouts import Layout

__all__ = ["bytes_moved", "moves"]


@overload
def bytes_moved(  # type: ignore[overload-overlap]
    spec: ModelSpec,
    *,
    batch: Int,
    new: Int,
    past: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    activations: str | Format = "bf16",
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    attention: Literal["flash", "standard"] = "flash",
    mla: Literal["expanded", "absorbed"] = "expanded",
    experts: ExpertReads = "expected",
    query_tile: Int | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
) -> Breakdown[Bytes]: ...
@overload
def bytes_moved(
    spec: ModelSpec,
    *,
    batch: Int | IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    activations: str | Format = "bf16",
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    attention: Literal["flash", "standard"] = "flash",
    mla: Literal["expanded", "absorbed"] = "expanded",
    experts: ExpertReads = "expected",
    query_tile: Int | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
) -> Breakdown[Bytes, IntArray]: ...
def bytes_moved(
    spec: ModelSpec,
    *,
    batch: Int | IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    activations: str | Format = "bf16",
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    attention: Literal["flash", "standard"] = "flash",
    mla: Literal["expanded", "absorbed"] = "expanded",
    experts: ExpertReads = "expected",
    query_tile: Int | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
) -> Breakdown[Bytes, Any]:
    r"""Return the bytes that one device moves in a step, item by item.

    `new` tokens follow `past` ones in each of `batch` requests. The groups are ``"weights"``,
    ``"cache read"``, ``"cache written"`` and ``"activations"``. `weights`, `kv`, `state` and
    `index` are formats as in `llmcalc.memory`, `activations` is the format of what flows between
    items. `experts` says how many distinct experts are read (`experts_touched`); with
    ``"expected"`` the bytes of mixtures are floats.

    Attention is ``"flash"``, whose scores never leave the chip, or ``"standard"``, which writes
    and reads them twice, those that a causal mask hides as well. The keys and values at hand are
    read once for all query heads of their group and, by default, for all queries, as if the chip
    held them. With `query_tile` they are read again for every tile of so many new tokens, as
    FlashAttention does: by each tile up to its last token, or with ``causal=False`` all of them.
    Standard attention reads them once.

    `layout`, `tensor_parallel`, `rank` and `mixed_with` are those of `llmcalc.roofline.flops`:
    the figures are those of one device, of `rank` or of the one that moves most.

    >>> from llmcalc import ModelSpec, roofline
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> step = roofline.bytes_moved(llama, batch=1, new=1, past=4095, weights="bf16", kv="bf16")
    >>> for group, size in step.by().items():
    ...     print(f"{group:<13} {size:>14,}")
    weights       15,009,857,536
    cache read       536,870,912
    cache written        131,072
    activations        7,096,832
    """
    how = conventions(
        causal=causal,
        logits=logits,
        mla=mla,
        attention=attention,
        experts=experts,
        query_tile=query_tile,
    )
    owners = owners_of(spec, tensor_parallel, layout, rank)
    formats = Formats.given(weights, kv, state, index, activations)
    folds = [
        (
            owner.title,
            moves(spec.ledger, owner, how, formats),
            owner.workload(batch, new, past, mixed_with),
        )
        for owner in owners
    ]
    return largest(Bytes, f"Bytes moved by {spec.name}", folds)


def moves(ledger: Ledger, owner: Owner, how: Conventions, formats: Formats) -> Fold:
    """Return the fold of the bytes that a device moves, before the workload is known."""
    return kept(ledger, _moves, owner, how, formats)


def _moves(ledger: Ledger, owner: Owner, how: Conventions, formats: Formats) -> Fold:
    if not owner.pipeline and owner.rank is not None:
        return moves(ledger, owner.whole, how, formats).on(owner.rank.stage)
    format = formats.element()
    element = format.row_factors(()) if format.is_plain else ((format.slot_bytes(1), "bytes"),)
    made = _Flows(owner, how, format.slot_bytes(1), element)
    pieces = [
        *_weights(ledger, owner, how, formats.scheme(ledger)),
        *_caches(ledger, owner, how, formats.caches()),
    ]
    for entry in ledger.entries:
        if _has_flows(entry.item):
            pieces += made.pieces(entry)
    return Fold(pieces)


# Weights ------------------------------------------------------------------------------------


def _kinds_of_reads(ledger: Ledger, scheme: Scheme) -> tuple[tuple[LayersOf, ...], ...]:
    return tuple(formats_in(ledger, scheme, [tensor for _, tensor in ledger.weight_reads]))


def _weights(ledger: Ledger, owner: Owner, how: Conventions, scheme: Scheme) -> Iterator[Piece]:
    """Give what is read of the weights: all of a matrix, of a table the rows looked up."""
    uniform = scheme.uniform
    kinds: Iterator[tuple[LayersOf, ...]] = iter(())
    always: tuple[LayersOf, ...] = ()
    if uniform is not None:
        always = ((uniform, None),)
    else:
        kinds = iter(kept(ledger, _kinds_of_reads, scheme))
    reads = None
    for entry in ledger.entries:
        item = entry.item
        if is_buffer(item):
            continue
        for shape in stored_shapes(item):
            for format, numbers in always or next(kinds):
                if isinstance(item, Table) and not item.looked_up:
                    continue
                if reads is None or reads.format is not format:
                    reads = _Reads(owner, how, format)
                yield reads.piece(entry, shape, numbers)


class _Reads(NamedTuple):
    """What an owner reads of weights in one `format`, under conventions."""

    owner: Owner
    how: Conventions
    format: Format

    def piece(self, entry: Entry, shape: StoredShape, numbers: tuple[int, ...] | None) -> Piece:
        """Return what is read of a tensor: all of a matrix, of a table the rows looked up."""
        item, split, count = entry.item, self.owner.split(entry), ONCE
        if isinstance(item, Linear) and item.active is not None and item.experts is not None:
            # Each of the experts that are read is read whole.
            held, rows, columns = shape.extents(split, stacked=True)
            of = (item.experts.size, item.active, held, self.how.experts)
            count = Count("touched", "experts read", of, self.owner.across_replicas(entry))
            matrices = 1
        elif isinstance(item, Table):
            matrices, count = self._looked_up(entry, item)
            rows, columns = 1, extent(shape.columns, split)
        else:
            matrices, rows, columns = shape.extents(split, stacked=False)
        return Piece(
            "weights",
            entry.operation,
            self.format.bytes(rows=rows, columns=columns, matrices=matrices),
            count,
            (1 if entry.count is None else entry.count) if numbers is None else len(numbers),
            entry.uses,
            entry,
            self,
            "bias" if shape.is_bias else "",
            numbers,
        )

    def _looked_up(self, entry: Entry, item: Table) -> tuple[int, Count]:
        """Return the rows that a count looks up: of experts those that the rank has."""
        own = self.owner.experts(entry, item.rows) if item.routed else None
        if own is None:
            return item.looked_up, self.how.new(self.owner.across_replicas(entry))
        of = (item.rows.size, item.looked_up, *own)
        return 1, Count("assigned", "rows looked up", of, self.owner.across_replicas(entry))

    def words(self, piece: Piece) -> Stored:
        """Return how a piece is printed."""
        entry = piece.entry
        item, is_bias = entry.item, piece.part == "bias"
        shape = next(one for one in stored_shapes(item) if one.is_bias == is_bias)
        rows = shape.rows
        before: tuple[Factor, ...] = ()
        if isinstance(item, Table):
            number, _ = self._looked_up(entry, item)
            rows, before = ((),), () if number == 1 else ((number, "rows a token"),)
        elif piece.per.kind == "touched":
            rows = tuple([one[1:] for one in rows])
        name = stored_name(item, is_bias=is_bias)
        title = name if piece.numbers is None else f"{name} {self.format.name}"
        path = ("weights", *entry.path, title)
        return Stored(path, self.format, rows, shape.columns, self.owner.split(entry), 0, before)


# Caches -------------------------------------------------------------------------------------


def _caches(
    ledger: Ledger, owner: Owner, how: Conventions, elements: CacheFormats
) -> Iterator[Piece]:
    """Give what is read and written of the caches."""
    read = Slots("cache read", owner.attention, elements, ("cache read",))
    written = Slots("cache written", owner.attention, elements, ("cache written",))
    for entry, cache in ledger.cache_reads:
        span = cache.span
        slots = owner.slots(how.read(cache), span)
        yield read.piece(entry, cache, cache.shape, slots, "0")
        if cache.held:
            slots = owner.slots(Count("written", span.slot_name, span), span)
            yield written.piece(entry, cache, cache.shape, slots, "0")


# Activations --------------------------------------------------------------------------------


def _has_flows(item: Item) -> bool:
    """Whether an item reads and writes what flows between items."""
    return type(item) in _FLOWING or (isinstance(item, Scale) and item.vectors is not None)


#: The items through which something flows, besides norms.
_FLOWING: Final = frozenset({Linear, Mix, Conv})


class _Flows(NamedTuple):
    """What flows between items on an owner: what each of them reads and writes.

    An element has so many `bytes`; `element` are their factors.
    """

    owner: Owner
    how: Conventions
    bytes: int
    element: tuple[Factor, ...]

    def pieces(self, entry: Entry) -> list[Piece]:
        """Return what an item reads and writes."""
        split, width = self.owner.split(entry), self.bytes
        drafts = self._drafts(entry)
        return [draft.piece(draft.size(split) * width, entry, self) for draft in drafts]

    def words(self, piece: Piece) -> Shape:
        """Return how a piece is printed."""
        entry = piece.entry
        draft = next(one for one in self._drafts(entry) if one.part == piece.part)
        path = ("activations", *entry.path, entry.item.name + draft.part)
        split = self.owner.split(entry)
        return Shape(path, draft.before, draft.sides, split, (), self.element)

    def _drafts(self, entry: Entry) -> list[Draft]:
        item, how = entry.item, self.how
        if isinstance(item, Linear):
            flows, count = self._through(entry, item)
            return [Draft("activations", "", (), (flows,), count)]
        if isinstance(item, Mix):
            return list(self._mixed(entry, item))
        everyone = self.owner.across_replicas(entry)
        if isinstance(item, Conv):
            flows = (item.channels, item.channels)
            return [Draft("activations", "", (), (flows,), how.new(everyone))]
        if isinstance(item, Scale) and item.vectors is not None:
            normed = (*item.vectors, *item.axes)
            count = how.logits(everyone) if entry.after else how.new(everyone)
            return [Draft("activations", "", (), ((normed, normed),), count)]
        return []

    def _through(self, entry: Entry, item: Linear) -> tuple[tuple[Axes, ...], Count]:
        """Return what flows into and out of a matrix, and the tokens that do."""
        everyone = self.owner.across_replicas(entry)
        flows = (item.into, *item.out)
        if item.active is None or item.experts is None:
            return flows, self.how.tokens(item, everyone)
        own = self.owner.experts(entry, item.experts)
        if own is None:
            used = Axis("experts per token", item.active)
            flows = tuple([(used, *axes) for axes in flows])
            return flows, self.how.tokens(item, everyone)
        of = (item.experts.size, item.active, *own)
        return flows, Count("assigned", "tokens in experts", of, everyone)

    def _mixed(self, entry: Entry, item: Mix) -> Iterator[Draft]:
        """Give queries, keys and values, and the scores of attention that writes them."""
        query_key, value = self.how.widths(item)
        flows = (((item.heads, query_key), (item.heads, value)),)
        if item.absorbed is not None and not self.how.absorbed:
            # The expanded keys and values, which are no cache.
            slots = self.how.attended(item.span)
            yield Draft("activations", ".expanded", (), flows, slots)
        new = self.how.new(self.owner.across_replicas(entry))
        yield Draft("activations", "", (), flows, new)
        if self.how.standard:
            count = Count("rectangle", "pairs", item.span)
            heads = (((item.heads,),),)
            yield Draft("scores", ".scores", ((4, "passes"),), heads, count)
