"""Items: what the parts of a model emit. An item states facts; it computes no number.

* `Linear`: a matrix multiply with its weight and optional bias.
* `Table`: a lookup table: rows are read, not multiplied.
* `Scale`: elementwise parameters, such as a norm's weight.
* `Conv`: a short causal convolution over positions.
* `Cache`: what a request holds between steps.
* `Mix`: weightless mixing over positions: attention scores and values.
* `Scan`: a recurrence over a state of fixed size.
* `Product`: a product without a weight of its own, and no recurrence.

What transformers computes or holds otherwise is the field `in_transformers` of an item, which
`llmcalc.folds.transformers` reads.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import attrs

from llmcalc.described import Described
from llmcalc.spec.axes import Axes, Axis
from llmcalc.spec.spans import Full, Span

__all__ = [
    "Cache",
    "CacheRole",
    "Conv",
    "EagerMix",
    "EagerScan",
    "Item",
    "Linear",
    "Mix",
    "Product",
    "Scale",
    "Scan",
    "Table",
    "Tokens",
    "Turned",
]

#: Which tokens pass through a matrix multiply: every new one, only those that give logits, or all
#: that a cache holds, where what they give is computed again at every step. Of a ``"latent"`` cache
#: the matrix expands keys and values; in the absorbed form of attention only new tokens pass.
Tokens: TypeAlias = Literal["all", "logits", "cached", "latent"]

#: What a cache holds. The role decides which format argument gives its elements: keys and values,
#: or a latent from which they are computed (``kv=``); an indexer's keys (``index=``); the state of
#: a recurrence, or the last inputs of a convolution (``state=``).
CacheRole: TypeAlias = Literal["kv", "latent", "index", "state", "conv"]


#: The operation that reads a cache, by its role.
_READERS: Final = {"kv": "attention", "latent": "attention", "index": "index", "state": "scan"}


@attrs.frozen(kw_only=True, repr=False, eq=False)
class _Item(Described):
    """What all items have.

    `name` is for people. `of` is the operation of the part that the item belongs to: what is timed
    as one, and what caches are read by. By default an item is an operation of its own.
    """

    name: str
    of: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Linear(_Item):
    """A matrix multiply: `into` is contracted, `out` is produced.

    `out` has several pieces where one stored matrix produces several results, each split by
    tensor parallelism in its own way. The weight has ``sum of the pieces`` rows and ``product of
    into`` columns; a bias has one element a row. `storage` is the key under which several items
    store one weight (a tied head); `None` is a weight of its own. With `experts` there are that
    many such matrices, and each token passes through `active` of them; where they are `routed`,
    expert parallelism gives whole ones to ranks. With `blocks` there are that many, each for its
    own share of the input, and each token passes through all of them. `span` is that of the cache
    whose tokens pass, if `tokens` says so.

    `role` is what the matrix is in its part, by which rules of formats and names in checkpoints
    find it. Engines store the matrices of a layer that have the same key in `merged` as one;
    those that are `fused` stand as one in files, too. The first matrices of a feed-forward have
    its `inner` result ``"made"``, the last one has it ``"read"``. `in_transformers` is how many
    experts transformers computes for each token, if not `active`.
    """

    into: Axes
    out: tuple[Axes, ...]
    bias: bool = False
    tokens: Tokens = "all"
    storage: str | None = None
    experts: Axis | None = None
    active: int | None = None
    routed: bool = False
    blocks: Axis | None = None
    span: Span = attrs.field(default=Full())
    role: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))
    merged: str | None = None
    fused: bool = False
    inner: Literal["made", "read"] | None = None
    in_transformers: int | None = None


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Table(_Item):
    """A lookup table of `rows` rows, each with the elements of `row`; `storage` as in `Linear`.

    `active` is the number of rows that count as active, `None` for all. Each token reads
    `looked_up` rows. Rows that are `routed` are experts, of which expert parallelism gives whole
    ones to ranks. A `buffer` is stored with the parameters, and is none: no gradient changes it.
    `role` is as in `Linear`.
    """

    rows: Axis
    row: Axes
    storage: str | None = None
    active: int | None = None
    routed: bool = False
    looked_up: int = 1
    buffer: bool = False
    role: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Scale(_Item):
    """Elementwise parameters, one for each element of `axes`; `storage` as in `Linear`.

    Of a norm, `vectors` are those of each token that it normalises one by one: the empty product is
    one, `None` is no norm. A `buffer` is stored with the parameters, and is none, as in `Table`.
    """

    axes: Axes
    vectors: Axes | None = None
    storage: str | None = None
    buffer: bool = False


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Conv(_Item):
    """A causal convolution of `channels` over `kernel` positions, each channel by itself.

    With `into`, each channel reads those of its group instead: `into` of them. Transformers pads
    both ends, unless `in_transformers` says how many outputs it computes besides those of the
    tokens.
    """

    channels: Axes
    kernel: int
    into: int = 1
    bias: bool = False
    in_transformers: int | None = None


def _reader(cache: Cache) -> str:
    return _READERS.get(cache.role, cache.name)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Cache(Described):
    """What one request holds: `shape` elements for each slot of its `span`.

    `in_transformers` lists the shapes and spans that transformers holds instead, where that is
    something else than an engine holds; it is empty where transformers holds nothing. One that
    is not `held` is another layer's: it is read, and neither written nor held. `reader` is the
    operation of the part that reads it: by default attention reads keys, values and latents, the
    indexer its keys, the scan a state, and a convolution the cache of its own name. A latent that
    is `turned` has rotated positions in it, which some layouts store in a format of their own.
    """

    name: str
    role: CacheRole
    shape: Axes
    span: Span
    in_transformers: tuple[tuple[Axes, Span], ...] | None = None
    held: bool = True
    reader: str = attrs.field(default=attrs.Factory(_reader, takes_self=True))
    turned: bool = False

    @property
    def of(self) -> str:
        """The operation that it belongs to: the one that reads it."""
        return self.reader


@attrs.frozen(repr=False, eq=False)
class Turned(Described):
    """Positions that are turned: `width` elements of each head, by angles of base `theta`.

    `scaling` names the scheme that changes the angles. Layers that turn alike share one table of
    cosines and sines.
    """

    theta: float
    scaling: str | None
    width: int


@attrs.frozen(kw_only=True, repr=False, eq=False)
class EagerMix(Described):
    """What transformers computes of a `Mix`: the positions of `span`, if not those of the model.

    Where it `skips`, it computes attended pairs alone.
    """

    span: Span | None = None
    skips: bool = False


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Mix(_Item):
    """Attention's weightless work over the positions of `span`.

    `heads` queries of `query_key` elements score keys, and weigh values of `value` elements.
    `absorbed` gives these two widths where a latent is read as it is cached, `turned` how
    positions are turned in queries and keys, if they are.
    """

    heads: Axis
    query_key: Axis
    value: Axis
    span: Span
    absorbed: tuple[Axis, Axis] | None = None
    turned: Turned | None = None
    in_transformers: EagerMix | None = None


@attrs.frozen(kw_only=True, repr=False, eq=False)
class EagerScan(Described):
    """The matrix products of a recurrence in transformers without its optional kernels.

    Several tokens are computed in chunks of `chunk` positions. Those that fill no chunk are
    ``"padded"`` to one, or they are a ``"part"`` of one, or ``"steps"`` by themselves (`rest`).
    Each token passes `products` times over the state, and meets each position of its chunk in
    `within` elements. With `across`, the state of each chunk is a sum over those of all chunks.
    A step of more than `piece` tokens is computed in pieces of so many, each with a rest.
    A single token that follows others passes `step_products` times over the state, or, where
    the scan is `stepwise`, each token that does.
    """

    products: int
    step_products: int
    chunk: int = 1
    rest: Literal["padded", "part", "steps"] = "padded"
    within: int = 0
    across: bool = False
    stepwise: bool = False
    piece: int | None = None

    @property
    def kinds(self) -> tuple[tuple[str, int | None], ...]:
        """The kinds of products: their names, and the elements of each (`None`: the state's)."""
        within = (("within", self.within),) if self.within else ()
        across = (("across", None),) if self.across else ()
        return (("state", None), *within, *across)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Scan(_Item):
    """A recurrence: each token passes `products` times over a state of `state` elements.

    `in_transformers` says what transformers computes instead, where that is something else.
    """

    state: Axes
    products: int
    in_transformers: EagerScan | None = None


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Product(_Item):
    """A product without a weight of its own: as many multiply-accumulates a token as `axes` have.

    With `experts` it is one of so many for each token's choice, `active` of them; where they are
    `routed`, ranks compute those of their own experts.
    """

    axes: Axes
    experts: Axis | None = None
    active: int | None = None
    routed: bool = False


Item: TypeAlias = Linear | Table | Scale | Conv | Cache | Mix | Scan | Product
