"""Items: what the parts of a model emit. An item states facts; it computes no number.

* `Linear`: a matrix multiply with its weight and optional bias.
* `Table`: a lookup table: rows are read, not multiplied.
* `Scale`: elementwise parameters, such as a norm's weight.
* `Conv`: a short causal convolution over positions.
* `Cache`: what a request holds between steps.
* `Mix`: weightless mixing over positions: attention scores and values.
* `Scan`: a recurrence over a state of fixed size.
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
    "EagerScan",
    "Item",
    "Linear",
    "Mix",
    "Scale",
    "Scan",
    "Table",
    "Tokens",
]

#: Which tokens pass through a matrix multiply: every new one, only those that give logits, or
#: those of the latent cache: all of its tokens where they are expanded again at every step, the
#: new ones where the matrix is absorbed into queries and outputs.
Tokens: TypeAlias = Literal["all", "logits", "latent"]

#: What a cache holds. The role decides which format argument gives its elements: keys and values,
#: or a latent from which they are computed (``kv=``); an indexer's keys (``index=``); the state of
#: a recurrence, or the last inputs of a convolution (``state=``).
CacheRole: TypeAlias = Literal["kv", "latent", "index", "state", "conv"]


#: What reads a cache, by its role.
_READERS: Final = {"kv": "attention", "latent": "attention", "index": "index", "state": "scan"}


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Linear(Described):
    """A matrix multiply: `into` is contracted, `out` is produced.

    `out` has several pieces where one stored matrix produces several results, each split by
    tensor parallelism in its own way. The weight has ``sum of the pieces`` rows and ``product of
    into`` columns; a bias has one element a row. `storage` is the key under which several items
    store one weight (a tied head); `None` is a weight of its own. With `experts` there are that
    many such matrices, and each token passes through `active` of them. With `blocks` there are
    that many, each for its own share of the input, and each token passes through all of them.
    `eager_active` is how many experts transformers computes for each token, if not `active`.
    `span` is that of the latent cache, if its tokens pass.
    """

    name: str
    into: Axes
    out: tuple[Axes, ...]
    bias: bool = False
    tokens: Tokens = "all"
    storage: str | None = None
    experts: Axis | None = None
    active: int | None = None
    blocks: Axis | None = None
    eager_active: int | None = None
    span: Span = attrs.field(default=Full())


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Table(Described):
    """A lookup table of `rows` rows, each with the elements of `row`; `storage` as in `Linear`.

    `active` is the number of rows that count as active, `None` for all. Each token reads
    `looked_up` rows. A `buffer` is stored with the parameters, and is none: no gradient changes it.
    """

    name: str
    rows: Axis
    row: Axes
    storage: str | None = None
    active: int | None = None
    looked_up: int = 1
    buffer: bool = False


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Scale(Described):
    """Elementwise parameters, one for each element of `axes`; `storage` as in `Linear`.

    Of a norm, `vectors` are those of each token that it normalises one by one: the empty product is
    one, `None` is no norm. A `buffer` is stored with the parameters, and is none, as in `Table`.
    """

    name: str
    axes: Axes
    vectors: Axes | None = None
    storage: str | None = None
    buffer: bool = False


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Conv(Described):
    """A causal convolution of `channels` over `kernel` positions, each channel by itself.

    With `into`, each channel reads those of its group instead: `into` of them. Transformers pads
    both ends, unless `eager_more` says how many outputs it computes besides those of the tokens.
    """

    name: str
    channels: Axes
    kernel: int
    into: int = 1
    bias: bool = False
    eager_more: int | None = None


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Cache(Described):
    """What one request holds: `shape` elements for each slot of its `span`.

    `in_transformers` lists the shapes and spans that transformers holds instead, where that is
    something else than an engine holds; it is empty where transformers holds nothing. One that
    is not `held` is another layer's: it is read, and neither written nor held. `reader` is the
    item of the part that reads it, if not the one that reads the caches of its role: attention
    keys, values and latents, the indexer its keys, the scan a state, a convolution the cache of
    its own name.
    """

    name: str
    role: CacheRole
    shape: Axes
    span: Span
    in_transformers: tuple[tuple[Axes, Span], ...] | None = None
    held: bool = True
    reader: str | None = None

    @property
    def read_by(self) -> str:
        """The name of the item that reads it."""
        return self.reader or _READERS.get(self.role, self.name)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Mix(Described):
    """Attention's weightless work over the positions of `span`.

    `heads` queries of `query_key` elements score keys, and weigh values of `value` elements.
    `absorbed` gives these two widths where a latent is read as it is cached, `eager_span` the
    positions that transformers keeps at hand, if not those of `span`; with `eager_skips` it
    computes attended pairs alone.
    """

    name: str
    heads: Axis
    query_key: Axis
    value: Axis
    span: Span
    absorbed: tuple[Axis, Axis] | None = None
    eager_span: Span | None = None
    eager_skips: bool = False


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
class Scan(Described):
    """A recurrence: each token passes `products` times over a state of `state` elements.

    `eager` says what transformers computes instead, where that is something else.
    """

    name: str
    state: Axes
    products: int
    eager: EagerScan | None = None


Item: TypeAlias = Linear | Table | Scale | Conv | Cache | Mix | Scan
