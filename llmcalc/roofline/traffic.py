r"""The bytes that a whole model's step moves, as a fold over its ledger.

* `bytes_moved`: what one step reads from and writes to a device's memory, item by item.
* `moves`: that fold before the workload is known, under the conventions of a `Traffic`.
* `conventions_of`: the conventions that the arguments of a call state.

Conventions: every weight that a step needs is read once, an embedding table by the rows that are
looked up. Keys and values at hand are read once a request and KV head, however many queries share
them, unless they are tiled; those of new tokens are written. Activations are what each matrix
product, convolution, norm and attention reads and writes, with nothing fused but attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, overload

import attrs

from llmcalc import formats
from llmcalc.boundary import choice, flag_argument, tile_size
from llmcalc.breakdown import Breakdown, Factor
from llmcalc.memory import cache_format, cache_formats, stored
from llmcalc.roofline.counts import EXPERT_READS, ONCE, TOKENS, Count, ExpertReads, Requests
from llmcalc.roofline.programs import Largest, Piece, Program, keep
from llmcalc.roofline.shares import Share, item_key, shares_of
from llmcalc.spec.axes import Axes, Axis, factors
from llmcalc.spec.items import Conv, Linear, Mix, Scale, Table
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.spans import Chunk, Full, Span, Window
from llmcalc.units import Bytes

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.formats import Format, Scheme
    from llmcalc.layouts import Layout
    from llmcalc.memory import StateFormat

__all__ = ["bytes_moved"]


@overload
def bytes_moved(
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
    batch: IntArray,
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
@overload
def bytes_moved(
    spec: ModelSpec,
    *,
    batch: Int,
    new: IntArray,
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
@overload
def bytes_moved(
    spec: ModelSpec,
    *,
    batch: Int,
    new: Int,
    past: IntArray,
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
    flag_argument(causal, "causal")
    conventions = conventions_of(
        weights=weights,
        kv=kv,
        state=state,
        index=index,
        activations=activations,
        causal=causal,
        logits=logits,
        attention=attention,
        mla=mla,
        experts=experts,
        query_tile=query_tile,
    )
    found = Largest()
    for share in shares_of(spec, tensor_parallel, layout, rank):
        found.add(share, moves(spec, share, conventions))
    return found.breakdown(
        Bytes,
        f"Bytes moved by {spec.name}",
        lambda share: share.workload(batch, new, past, mixed_with),
    )


class Traffic(NamedTuple):
    """The conventions of `bytes_moved`; with `everything` all logits are computed."""

    weights: str | Format | Scheme
    kv: str | Format
    state: StateFormat
    indexer: str | Format | None
    activations: str | Format
    causal: bool
    everything: bool
    standard: bool
    absorbed: bool
    experts: ExpertReads
    tile: int | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells programs of these conventions from others; no two objects share an id."""
        return tuple([v if v is None or type(v) in _SIMPLE else _identity(v) for v in self])

    def attended(self, span: Span) -> Count:
        """Return the slots that are read: the keys of attention again by every tile."""
        # What a mask would hide is read without one; what nobody picked is not.
        everything = not self.causal and isinstance(span, Full | Window | Chunk)
        if self.tile is None or self.standard:
            return Count("present" if everything else "fetched", span.slot_name, span)
        kind = "tile rectangle" if everything else "tiled"
        return Count(kind, f"{span.slot_name}, by tiles of {self.tile}", (span, self.tile))

    def latents(self, span: Span, joint: bool = False) -> Count:
        """Return the tokens of a latent cache that pass through a matrix."""
        return TOKENS if self.absorbed else Count("present", "tokens", span, joint)


#: What is told apart by its value; other conventions are objects.
_SIMPLE: Final = (str, int, bool)


def _identity(value: Any) -> tuple[Any, ...]:
    """Return what tells an object from others: its id, or that of all that a mapping holds."""
    if isinstance(value, Mapping):
        return tuple([(key, _identity(held)) for key, held in value.items()])
    return ("is", value) if type(value) in _SIMPLE else ("id", id(value))


def conventions_of(
    *,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat,
    index: str | Format | None,
    activations: str | Format,
    causal: bool,
    logits: str,
    attention: str,
    mla: str,
    experts: ExpertReads,
    query_tile: Int | None,
) -> Traffic:
    """Return the arguments of `bytes_moved`, checked."""
    choice(logits, "logits", ("last", "all"))
    choice(attention, "attention", ("flash", "standard"))
    choice(mla, "mla", ("expanded", "absorbed"))
    choice(experts, "experts", EXPERT_READS)
    return Traffic(
        weights=weights,
        kv=kv,
        state=dict(state) if isinstance(state, Mapping) else state,
        indexer=index,
        activations=activations,
        causal=causal,
        everything=logits == "all",
        standard=attention == "standard",
        absorbed=mla == "absorbed",
        experts=experts,
        tile=tile_size(query_tile, "query_tile"),
    )


def moves(spec: ModelSpec, share: Share, conventions: Traffic) -> Program:
    """Return the fold of the bytes that a share moves, before the workload is known."""
    key = ("moves", share.key, *conventions.key)
    found = spec.ledger.programs.get(key)
    if found is None:
        fold = _Fold(spec, share, conventions)
        pieces = [*fold.weights(), *fold.caches(), *fold.activations()]
        found = keep(spec.ledger, key, pieces, conventions)
    return found


class _Fold:
    """The pieces of the bytes that a share moves."""

    def __init__(self, spec: ModelSpec, share: Share, conventions: Traffic) -> None:
        self._spec, self._share, self._conventions = spec, share, conventions
        self._scheme = formats.scheme(conventions.weights, spec)
        self._caches = cache_formats(conventions.kv, conventions.state, conventions.indexer)
        self._element = stored((), formats.get(conventions.activations, "activations"))

    def weights(self) -> Iterator[Piece]:
        """Give what is read of the weights: all of a matrix, of a table the rows looked up."""
        for entry, tensor in self._spec.ledger.weight_reads:
            item, share = entry.item, self._share
            times = share.times(entry)
            if times is None:
                continue
            rows, columns = tensor.share(share.split(entry))
            count = ONCE
            lookups: tuple[Factor, ...] = ()
            if isinstance(item, Table):
                if not item.looked_up:
                    continue
                rows, count = (), TOKENS
                lookups = () if item.looked_up == 1 else ((item.looked_up, "rows a token"),)
            elif isinstance(item, Linear) and item.active is not None and item.experts is not None:
                own = [size for size, name in rows if name == "experts"]
                rows = tuple(factor for factor in rows if factor[1] != "experts")
                of = (item.experts.size, item.active, *own, self._conventions.experts)
                count = Count("touched", "experts read", of, share.joint(entry))
            numbers = None
            if share.rank is not None and not share.pipeline:
                numbers = share.rank.stage.numbers_of(tensor)
            length = len(tensor.times)
            one_matrix = attrs.evolve(tensor, active=None) if count.kind == "touched" else tensor
            for path, held in self._scheme.stored(one_matrix, rows, columns, numbers):
                shape, layers = (held[:-length], held[-length:]) if length else (held, ())
                yield Piece(("weights", *path), entry_key(entry), (*lookups, *shape), count, layers)

    def caches(self) -> Iterator[Piece]:
        """Give what is read and written of the caches."""
        conventions, share = self._conventions, self._share
        for entry, cache in self._spec.ledger.cache_reads:
            times = share.times(entry)
            if times is None:
                continue
            *outer, inner = cache.shape
            split = share.attention
            held = stored(factors(((inner,),), split), cache_format(self._caches, cache))
            shape = (*factors((tuple(outer),), split), *held)
            item = (*entry.path, cache.read_by)
            span = cache.span
            # Where latents are expanded, a matrix product reads them, and attention its result.
            # A recurrence, a convolution and what compresses keys read their states once.
            expanded = cache.role == "latent" and not conventions.absorbed
            whole = expanded or cache.role in {"state", "conv"}
            read = Count("fetched", span.slot_name, span) if whole else conventions.attended(span)
            yield Piece(
                ("cache read", *entry.name), item, shape, share.dealt_slots(read, span), times
            )
            if cache.held:
                written = Count("written", span.slot_name, span)
                count = share.dealt_slots(written, span)
                yield Piece(("cache written", *entry.name), item, shape, count, times)

    def activations(self) -> Iterator[Piece]:
        """Give what each item reads and writes of what flows between them."""
        for entry in self._spec.ledger.entries:
            times = self._share.times(entry)
            if times is None:
                continue
            split = self._share.split(entry)
            for name, pieces, count in self._flows(entry):
                path = ("activations", *entry.path, name)
                shape = factors(pieces, split)
                yield Piece(path, entry_key(entry), shape, count, (*times, *self._element))
            item = entry.item
            if self._conventions.standard and isinstance(item, Mix):
                heads = factors(((item.heads,),), split)
                yield Piece(
                    ("activations", *entry.path, f"{item.name}.scores"),
                    entry_key(entry),
                    ((4, "passes"), *heads),
                    Count("rectangle", "pairs", item.span),
                    (*times, *self._element),
                )

    def _flows(self, entry: Entry) -> Iterator[tuple[str, tuple[Axes, ...], Count]]:
        """Give the name, the axes read and written, and the tokens of an item's activations."""
        item, conventions, share = entry.item, self._conventions, self._share
        tokens = TOKENS._replace(joint=share.joint(entry))
        last = tokens if conventions.everything else tokens._replace(kind="logits")
        if isinstance(item, Linear):
            pieces = (item.into, *item.out)
            if item.tokens == "latent":
                tokens = conventions.latents(item.span, tokens.joint)
            elif item.tokens == "logits":
                tokens = last
            if item.active is not None and item.experts is not None:
                dealt = share.dealt(entry, item.experts)
                if dealt is None:
                    used = Axis("experts per token", item.active)
                    pieces = tuple((used, *piece) for piece in pieces)
                else:
                    of = (item.experts.size, item.active, *dealt)
                    tokens = Count("assigned", "tokens in experts", of, tokens.joint)
            yield item.name, pieces, tokens
        elif isinstance(item, Mix):
            query_key, value = item.query_key, item.value
            if item.absorbed is not None:
                if conventions.absorbed:
                    query_key, value = item.absorbed
                else:  # the expanded keys and values, which are no cache
                    pieces = ((item.heads, query_key), (item.heads, value))
                    yield f"{item.name}.expanded", pieces, conventions.attended(item.span)
            yield item.name, ((item.heads, query_key), (item.heads, value)), tokens
        elif isinstance(item, Conv):
            yield item.name, (item.channels, item.channels), tokens
        elif isinstance(item, Scale) and item.vectors is not None:
            normed = (*item.vectors, *item.axes)
            yield item.name, (normed, normed), last if entry.after else tokens


def entry_key(entry: Entry) -> tuple[str, ...]:
    """Return the item that an entry belongs to."""
    return item_key(entry.name)
