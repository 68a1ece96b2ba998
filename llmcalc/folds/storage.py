"""Formats of weights and of caches, and their bytes as pieces.

* `Formats`: the formats that the arguments of a call name, as one value.
* `CacheFormats`: the format of every cache role; `cache_formats` makes them of arguments.
* `formats_in`: the formats that each stored tensor of a model has, and in which layers.
* `weights_held`: the weights that a device holds, as a fold; `weights_by_place`: its sums alone.
* `caches_held`: the caches that requests hold on a device, as a fold.
* `slot_bytes`: the bytes of one slot of a cache, and how they are printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, cast

import attrs

from llmcalc import formats
from llmcalc.breakdown import Factor
from llmcalc.described import Described, FrozenMapping
from llmcalc.errors import InvalidValueError
from llmcalc.folds import transformers
from llmcalc.folds.counts import ONCE, Count
from llmcalc.folds.owners import Owner
from llmcalc.folds.pieces import Fold, Piece, Shape, Stored, Where
from llmcalc.spec.axes import WHOLE, Axes, Split, extent
from llmcalc.spec.items import Cache
from llmcalc.spec.kept import kept
from llmcalc.spec.ledger import Entry, StoredTensor
from llmcalc.spec.model import Ledger
from llmcalc.spec.spans import Span

if TYPE_CHECKING:
    from llmcalc.formats import Format, Scheme

    #: The format of recurrent states: one, or one for each of the roles "state" and "conv".
    StateFormat: TypeAlias = str | Format | Mapping[str, str | Format]

__all__ = [
    "CacheFormats",
    "Formats",
    "Policy",
    "Slots",
    "Weights",
    "cache_formats",
    "caches_held",
    "formats_in",
    "slot_bytes",
    "stored_path",
    "weights_by_place",
    "weights_held",
]


class Formats(NamedTuple):
    """The formats that the arguments of a call name: of weights, of caches, of what flows.

    Without a name a format or a scheme is given itself; `state` may be one for each of two roles.
    """

    weights: str | Format | Scheme
    kv: str | Format
    state: str | Format | FrozenMapping[str, str | Format] = "fp32"
    indexer: str | Format | None = None
    activations: str | Format = "bf16"

    @classmethod
    def given(
        cls,
        weights: str | Format | Scheme,
        kv: str | Format,
        state: StateFormat,
        index: str | Format | None,
        activations: str | Format = "bf16",
    ) -> Formats:
        """Return the arguments as one value."""
        own = FrozenMapping(state) if isinstance(state, Mapping) else state
        return cls(weights, kv, own, index, activations)

    def scheme(self, ledger: Ledger) -> Scheme:
        """Return the format of each tensor of a model."""
        return formats.scheme(self.weights, ledger.spec)

    def caches(self) -> CacheFormats:
        """Return the format of every cache role."""
        return cache_formats(self.kv, self.state, self.indexer)

    def element(self) -> Format:
        """Return the format of what flows between items."""
        return formats.get(self.activations, "activations")


#: Whose rules say what is held: those of a serving engine, or of transformers' caches.
Policy: TypeAlias = Literal["ideal", "transformers"]


@attrs.frozen(repr=False, eq=False)
class CacheFormats(Described):
    """The format of every cache role, and of the part of latents that is turned.

    `kv` is `None` where keys and values have none: the layout is one of latents, named `layout`.
    """

    kv: Format | None
    latent: Format
    turned: Format
    index: Format
    state: Format
    conv: Format
    layout: str | None = None

    def of(self, cache: Cache) -> Format:
        """Return the format that a cache is in."""
        if cache.role == "latent":
            return self.turned if cache.turned else self.latent
        found: Format | None = getattr(self, cache.role)
        if found is None:
            rule = f"is a layout of latents, and {cache.name} is a cache of keys or values"
            raise InvalidValueError("kv", self.layout, rule)
        return found


def cache_formats(kv: str | Format, state: StateFormat, index: str | Format | None) -> CacheFormats:
    """Return the format of every cache role, as the arguments of a call say."""
    if isinstance(state, Mapping):
        if set(state) != {"state", "conv"}:
            raise InvalidValueError(
                "state", dict(state), "must be a format, or have one for each of state, conv"
            )
        recurrent, inputs = (formats.get(state[role], "state") for role in ("state", "conv"))
    else:
        recurrent = inputs = formats.get(state, "state")
    keys = None if index is None else formats.get(index, "index")
    packed = _PACKED.get(kv) if type(kv) is str else None
    if packed is not None:
        latent, turned, own = map(formats.get, packed)
        return CacheFormats(None, latent, turned, keys or own, recurrent, inputs, str(kv))
    form = formats.get(kv, "kv")
    return CacheFormats(form, form, form, keys or form, recurrent, inputs)


#: Layouts of latents and index keys that are no one format: of latents, of what is turned in them,
#: of index keys. fp8-ds-mla: 512 values in fp8 with four float32 scales, the rotated part in
#: bfloat16, and index keys with a scale for 128. Sources: vLLM, ``kv_cache_interface.py``
#: (`MLAAttentionSpec`: 656 bytes a token) and `DeepseekV32IndexerCache` (132 bytes); SGLang,
#: ``memory_pool.py``, `NSATokenToKVPool`.
_PACKED: Final[Mapping[str, tuple[str, str, str]]] = {
    "fp8-ds-mla": ("fp8-group128", "bf16", "fp8-group128"),
}


# Weights ------------------------------------------------------------------------------------

#: A format of a tensor and the numbers of the layers that have it; `None` for all that have it.
LayersOf: TypeAlias = tuple["Format", tuple[int, ...] | None]


def formats_in(
    ledger: Ledger, scheme: Scheme, tensors: Iterable[StoredTensor]
) -> Iterator[tuple[LayersOf, ...]]:
    """Give the formats that each of the tensors has, and in which layers."""
    uniform = scheme.uniform
    for tensor in tensors:
        if uniform is not None:
            yield ((uniform, None),)
            continue
        kinds = scheme.formats_of(tensor, ledger.numbers_of(tensor))
        if len(kinds) == 1 or not tensor.times:
            yield ((kinds[0][0], None),)
            continue
        layers: dict[Format, list[int]] = {}
        for number in ledger.layer_numbers[tensor.label]:
            layers.setdefault(scheme.format_of(tensor, number), []).append(number)
        yield tuple([(format, tuple(numbers)) for format, numbers in layers.items()])


def _kinds_of_tensors(ledger: Ledger, scheme: Scheme) -> tuple[tuple[LayersOf, ...], ...]:
    return tuple(formats_in(ledger, scheme, ledger.tensors))


def weights_held(ledger: Ledger, owner: Owner, scheme: Scheme) -> Fold:
    """Return the weights that a device holds, or those of a pipeline: bytes, once.

    Raises `llmcalc.LlmcalcError`, as engines do, where a rank's part would cut through blocks that
    have one scale.
    """
    return Fold(_weights_held(ledger, owner, kept(ledger, _kinds_of_tensors, scheme)))


class Weights(NamedTuple):
    """Weights in one `format` on an owner."""

    owner: Owner
    format: Format

    def words(self, piece: Piece) -> Stored:
        """Return how a piece is printed."""
        tensor = cast("StoredTensor", piece.source)
        split = WHOLE if self.owner.rank is None else self.owner.rank.split(tensor)
        path = stored_path(tensor, self.format, titled=piece.numbers is not None)
        return Stored(path, self.format, tensor.rows, tensor.columns, split, tensor.stacked)


def stored_path(tensor: StoredTensor, format: Format, *, titled: bool) -> tuple[str, ...]:
    """Return the path of a tensor, `titled` with its format where layers differ in it."""
    *place, name = tensor.path
    return (*place, f"{name} {format.name}" if titled else name)


def _weights_held(
    ledger: Ledger, owner: Owner, kinds: tuple[tuple[LayersOf, ...], ...]
) -> Iterator[Piece]:
    for tensor, format, numbers, each in _parts(ledger, owner, kinds):
        layers = tensor.layers if numbers is None else len(numbers)
        made = Weights(owner, format)
        operation = tensor.operation
        yield Piece("weights", operation, each, ONCE, layers, 1, tensor, made, "", numbers)


def weights_by_place(ledger: Ledger, owner: Owner, scheme: Scheme) -> dict[Where, int]:
    """Return what `weights_held` sums to: bytes in one layer, by where the weights stand.

    It takes a fraction of the time, for whoever asks of many owners how much they hold.
    """
    sums: dict[Where, int] = {}
    kinds = kept(ledger, _kinds_of_tensors, scheme)
    places = kept(ledger, _places_of_tensors, scheme)
    for where, (_, _, _, each) in zip(places, _parts(ledger, owner, kinds), strict=True):
        sums[where] = sums.get(where, 0) + each
    return sums


def _places_of_tensors(ledger: Ledger, scheme: Scheme) -> tuple[Where, ...]:
    pairs = zip(ledger.tensors, kept(ledger, _kinds_of_tensors, scheme), strict=True)
    return tuple(
        [Where(one.places, one.layered, numbers) for one, own in pairs for _, numbers in own]
    )


def _parts(
    ledger: Ledger, owner: Owner, kinds: tuple[tuple[LayersOf, ...], ...]
) -> Iterator[tuple[StoredTensor, Format, tuple[int, ...] | None, int]]:
    """Give every tensor in each of its formats, with the layers in that and the bytes in one."""
    rank = owner.rank
    checks = rank is not None and rank.layout.placement.whole_blocks
    for tensor, own in zip(ledger.tensors, kinds, strict=True):
        split = WHOLE if rank is None else rank.split(tensor)
        matrices, rows, columns = tensor.extents(split)
        for format, numbers in own:
            if checks and not format.is_plain:
                _check_blocks(tensor, format, rows, columns, owner)
            each = format.bytes(rows=rows, columns=columns, matrices=matrices)
            yield tensor, format, numbers, each


def _check_blocks(
    tensor: StoredTensor, format: Format, rows: int, columns: int, owner: Owner
) -> None:
    """Refuse a part that cuts through the blocks that have one scale."""
    _, height, width = tensor.extents(WHOLE)
    for whole, held, name in ((height, rows, "rows"), (width, columns, "columns")):
        if held == whole or owner.rank is None:
            continue
        for extra in format.extras:
            block = extra.rows if name == "rows" else extra.columns
            if block is not None and held % block:
                rule = (
                    f"must leave whole blocks of {block} {name}: a rank would hold {held} of "
                    f"{tensor.path[-1]} in {format.name}, which {owner.rank.layout.engine} refuses"
                )
                ranks = owner.rank.split(tensor).ranks
                raise InvalidValueError("tensor_parallel", ranks, rule)


# Caches -------------------------------------------------------------------------------------


def slot_bytes(shape: Axes, split: Split, format: Format) -> tuple[int, tuple[Factor, ...]]:
    """Return the bytes of one slot of a cache, and the factors behind those of the outer axes.

    The last factor is bytes. Blocks run along the innermost axis.
    """
    *outer, inner = shape
    many, own = extent((tuple(outer),), split), extent(((inner,),), split)
    if format.is_plain:
        factors = format.row_factors(((own, inner.name),))
    else:
        factors = ((format.slot_bytes(own), "bytes"),)
    return many * prod([size for size, _ in factors]), factors


class Slots(NamedTuple):
    """What is held, read or written of caches: so many bytes for each slot that counts.

    `split` is how attention is split; `place` stands before the paths, `policy` says whose shapes
    they are.
    """

    kind: Literal["cache held", "cache read", "cache written"]
    split: Split
    elements: CacheFormats
    place: tuple[str, ...] = ()
    policy: Policy = "ideal"

    def shapes(self, cache: Cache) -> Iterator[tuple[Axes, Span, str]]:
        """Give the shapes of a slot, their spans, and what a slot is called."""
        if self.policy == "transformers":
            yield from transformers.held(cache)
        else:
            yield cache.shape, cache.span, cache.span.slot_name

    def piece(self, entry: Entry, cache: Cache, shape: Axes, slots: Count, part: str) -> Piece:
        """Return the piece of one shape."""
        each, _ = slot_bytes(shape, self.split, self.elements.of(cache))
        layers = 1 if entry.count is None else entry.count
        return Piece(self.kind, entry.operation, each, slots, layers, entry.uses, entry, self, part)

    def words(self, piece: Piece) -> Shape:
        """Return how a piece is printed: of what is held the bytes come last."""
        entry = piece.entry
        cache = cast("Cache", entry.item)
        shape = tuple(self.shapes(cache))[int(piece.part)][0]
        _, inner = slot_bytes(shape, self.split, self.elements.of(cache))
        last = 1 if self.kind == "cache held" else 0
        beside, after = inner[: len(inner) - last], inner[len(inner) - last :]
        outer = ((tuple(shape[:-1]),),)
        return Shape((*self.place, *entry.name), (), outer, self.split, beside, after)


def caches_held(
    ledger: Ledger, owner: Owner, elements: CacheFormats, policy: Policy = "ideal"
) -> Fold:
    """Return what requests hold on a device, or on those of a pipeline: bytes by slots."""
    made = Slots("cache held", owner.attention, elements, (), policy)
    pieces = []
    for entry, cache in ledger.caches:
        for number, (shape, span, name) in enumerate(made.shapes(cache)):
            slots = owner.slots(Count("slots", name, span), cache.span)
            pieces.append(made.piece(entry, cache, shape, slots, str(number)))
    return Fold(pieces)
