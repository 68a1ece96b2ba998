r"""Cache allocation: what requests take of an engine's pool, under the policies that engines have.

* `allocate`: what one request takes under a policy.
* `policies`: the same under every policy.
* `Allocation`: bytes and blocks of a request; tokens, blocks and requests of a pool.
* `CacheGroup`: layers that share a block table.

The policies:

``ideal``
    What the mathematics needs: a slot for each token that a layer still reads.
``contiguous``
    The longest context is reserved for every request, as static batches do, and llama.cpp in
    whole blocks of 256 cells, of a windowed layer for the window and one step.
``paged``
    Blocks of tokens, as vLLM allocates them. A request's last block is not full. A windowed layer
    holds the window and the tokens of one step (of two, where the engine schedules a step while
    another one runs), in whole blocks and one more, because a window need not begin where a block
    does. Where layers of several kinds share a pool, all blocks have one size, and every kind is
    cut into groups of as many layers, the last one filled up. A pipeline has the groups of the
    whole model on every stage:

    .. math:: \text{paged} = \text{ideal} + \text{last-block waste} + \text{window slack}
              + \text{group padding}

Source: vLLM, ``vllm/v1/kv_cache_interface.py`` and ``vllm/v1/core/kv_cache_utils.py``
(``SlidingWindowSpec.max_memory_usage_bytes``, ``unify_kv_cache_spec_page_size``,
``_get_kv_cache_groups_uniform_page_size``, ``get_max_concurrency_for_kv_cache_config``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import attrs

from llmcalc.boundary import choice, whole_number
from llmcalc.breakdown import Breakdown, Term
from llmcalc.described import Described
from llmcalc.engines.engine import Engine
from llmcalc.engines.pools import PoolRule
from llmcalc.engines.registry import DEFAULT, with_pool
from llmcalc.errors import InvalidValueError
from llmcalc.folds.breakdowns import FoldBreakdown
from llmcalc.folds.owners import Owner
from llmcalc.folds.pieces import Piece
from llmcalc.folds.storage import CacheFormats, Formats, caches_held
from llmcalc.folds.workloads import Workload
from llmcalc.layouts import Layout, Rank, chosen
from llmcalc.spec.axes import portion
from llmcalc.spec.items import Cache
from llmcalc.spec.kept import kept
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import Ledger, ModelSpec, check_spec
from llmcalc.spec.spans import Chunk, Compressed, Constant, Remainder, Span, Window
from llmcalc.units import Bytes, format_integer, format_quantity

if TYPE_CHECKING:
    from llmcalc.folds.storage import StateFormat
    from llmcalc.formats import Format

__all__ = ["Allocation", "CacheGroup", "Policy", "allocate", "policies"]

#: The names of the policies.
Policy: TypeAlias = Literal["ideal", "contiguous", "paged"]

POLICIES: Final = ("ideal", "contiguous", "paged")

#: How a kind of layer holds tokens: all, a window of them, a chunk, one slot for several, a state.
CacheSort: TypeAlias = Literal["full", "window", "chunk", "compressed", "state"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class CacheGroup(Described):
    """Layers of one kind that share a block table; there are `count` such groups.

    Each group has a block for every `block_tokens` tokens (`None`: one a request), of
    `page_bytes` a layer. `layers` of the kind's layers are real; the groups have room for
    ``count x layers_per_group``. `sort` is how the layers hold tokens: ``"full"``, ``"window"``,
    ``"chunk"``, ``"compressed"`` or ``"state"``.
    """

    label: str
    layers: int
    layers_per_group: int
    count: int
    block_tokens: int | None
    page_bytes: int
    blocks: int
    sort: CacheSort


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Allocation(Described):
    """What one request of `context` tokens takes under a policy, and what a pool then holds.

    `bytes` is the working. Under ``paged``, `block_bytes` is what one block takes of the pool,
    `blocks` how many a request needs, and `groups` how layers are grouped; under the others a
    pool has no blocks (`None`). Each of `shards` ranks holds its share of the slots.
    """

    policy: str
    context: int
    bytes: Breakdown[Bytes]
    block_bytes: int | None = None
    blocks: int | None = None
    groups: tuple[CacheGroup, ...] = ()
    tokens_of_blocks: bool = True
    shards: int = 1

    def __repr__(self) -> str:
        needs = format_quantity(self.request_bytes, Bytes)
        blocks = "" if self.blocks is None else f" in {self.blocks} blocks"
        return f"<Allocation of {self.context} tokens under {self.policy}: {needs}{blocks}>"

    @property
    def request_bytes(self) -> int:
        """What a request takes, in bytes: that of its blocks, where it has some."""
        if self.block_bytes is None or self.blocks is None:
            return self.bytes.total
        return self.blocks * self.block_bytes

    def pool_blocks(self, pool_bytes: int) -> int | None:
        """Return the blocks of a pool; `None` where there are none, or nothing is held."""
        pool = _pool(pool_bytes)
        return pool // self.block_bytes if self.block_bytes else None

    def concurrency(self, pool_bytes: int) -> float | None:
        """Return how many such requests the pool holds, as a fraction, as engines print it.

        `None` where requests hold nothing.
        """
        pool = _pool(pool_bytes)
        if self.block_bytes and self.blocks:
            return pool // self.block_bytes / self.blocks
        return pool / self.request_bytes if self.request_bytes else None

    def requests(self, pool_bytes: int) -> int | None:
        """Return how many whole requests the pool holds; `None` where they hold nothing."""
        pool = _pool(pool_bytes)
        if self.block_bytes and self.blocks:
            return pool // self.block_bytes // self.blocks
        return pool // self.request_bytes if self.request_bytes else None

    def tokens(self, pool_bytes: int) -> int | None:
        """Return the tokens that the pool holds, as the engine's version counts them.

        Blocks of one group x their tokens, or, from vLLM 0.21 on, the requests of this context
        that fit x the context, which differs where layers keep windows. `None` where nothing is
        held.
        """
        pool = _pool(pool_bytes)
        sizes = [group.block_tokens for group in self.groups if group.block_tokens is not None]
        if self.block_bytes and self.tokens_of_blocks and sizes:
            tables = sum(group.count for group in self.groups)
            return pool // self.block_bytes // tables * min(sizes) * self.shards
        if self.block_bytes and self.blocks:
            return pool // self.block_bytes * self.context // self.blocks
        return pool * self.context // self.request_bytes if self.request_bytes else None

    def explain(self) -> str:
        """Return the working: the bytes of a request, its blocks and their groups."""
        lines = [self.bytes.explain()]
        for group in self.groups:
            a_block = "a request" if group.block_tokens is None else f"{group.block_tokens} tokens"
            lines.append(
                f"{group.label}: {group.layers} layers in {group.count} x "
                f"{group.layers_per_group}, a block for {a_block}, "
                f"{format_integer(group.page_bytes)} B a layer: "
                f"{format_integer(group.blocks)} blocks a request and group"
            )
        if self.block_bytes and self.blocks:
            lines.append(
                f"{format_integer(self.blocks)} blocks x {format_integer(self.block_bytes)} B "
                f"= {format_quantity(self.request_bytes, Bytes)} a request"
            )
        return "\n".join(lines)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class _Kind(Described):
    """Layers that hold tokens in the same way: `slot_bytes` for each slot of one layer.

    A rank has `layers` of them, the model `all_layers`.
    """

    label: str
    sort: CacheSort
    size: int
    slot_bytes: int
    layers: int
    all_layers: int
    latent: bool = False

    @property
    def alike(self) -> tuple[CacheSort, int]:
        """What decides whether layers can share a block table."""
        return self.sort, self.size


def allocate(
    spec: ModelSpec,
    *,
    context: int,
    kv: str | Format,
    policy: Policy = "paged",
    engine: str | Engine = DEFAULT,
    block_tokens: int | None = None,
    batched_tokens: int | None = None,
    max_context: int | None = None,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    state_blocks: int = 1,
    tensor_parallel: int = 1,
    layout: Layout | None = None,
    rank: int | None = None,
) -> Allocation:
    """Return what a request of `context` tokens takes on a device under `policy`.

    `engine` is an `llmcalc.engines.Engine` or its name. It gives the size of a block, the tokens of
    a step (`batched_tokens`: a windowed layer holds them beside its window) and whether layers of
    several kinds are grouped; ``contiguous`` reads it where an engine reserves cells, ``ideal``
    does not. `state_blocks` is how many copies of a recurrent state a request has: 2 where prefix
    caching also keeps the one at the last block's end (vLLM's ``mamba_cache_mode="align"``).
    `max_context` is what ``contiguous`` reserves, by default `context`. The other arguments are
    those of `llmcalc.memory.kv_cache_bytes`; without a `rank`, a layout's figures are those of the
    rank that holds most.

    >>> from llmcalc import GiB, load_model, serving
    >>> gemma = load_model("google/gemma-2-9b")
    >>> request = serving.allocate(gemma, context=8192, kv="bf16")
    >>> request.blocks, round(request.concurrency(54 * GiB), 2)
    (1025, 20.55)
    >>> dict(request.bytes.by())
    {'ideal': 2113929216, 'last-block waste': 0, 'window slack': 707395584}
    """
    check_spec(spec)
    choice(policy, "policy", POLICIES)
    tokens, known = whole_number(context, "context"), with_pool(engine)
    takes = Takes(policy, known.pool.reserves_cells)
    takes.check(block_tokens, batched_tokens, max_context, state_blocks)
    block = whole_number(
        known.block_tokens if block_tokens is None else block_tokens, "block_tokens", minimum=1
    )
    step = whole_number(
        known.batched_tokens if batched_tokens is None else batched_tokens,
        "batched_tokens",
        minimum=1,
    )
    formats = Formats.given("bf16", kv, state, index)
    held = held_caches(spec, formats, chosen(tensor_parallel, layout), rank)
    if policy == "paged":
        copies = whole_number(state_blocks, "state_blocks", minimum=1)
        return held.paged(
            tokens, known, block_tokens=block, batched_tokens=step, state_blocks=copies
        )
    reserved = tokens
    if max_context is not None:
        reserved = whole_number(max_context, "max_context")
        if reserved < tokens:
            raise InvalidValueError("max_context", reserved, f"must reach context ({tokens})")
    number = held.most(reserved)
    ideal = held.needed(tokens, number)
    leaves = _ideal(ideal)
    if policy == "contiguous":
        whole = held.reserved(reserved, number, _cells(known.pool, reserved, block, step))
        leaves += [
            Term(("reserved", *path), ((size - part.value, "bytes"),))
            for (path, size), part in zip(whole, ideal.terms, strict=True)
        ]
    title = f"Cache of a request, {policy}"
    return Allocation(policy=policy, context=tokens, bytes=Breakdown(Bytes, title, leaves))


class Takes(NamedTuple):
    """Which arguments have an effect under a policy, in an engine that reserves cells or not."""

    policy: Policy
    cells: bool

    @property
    def blocks(self) -> bool:
        """Whether requests take whole blocks, and windows a step's tokens."""
        return self.policy == "paged" or (self.policy == "contiguous" and self.cells)

    def check(
        self,
        block_tokens: int | None,
        batched_tokens: int | None,
        max_context: int | None,
        state_blocks: int,
    ) -> None:
        """Refuse an argument that has no effect."""
        paged, contiguous = self.policy == "paged", self.policy == "contiguous"
        for field, value, usual, has_effect in (
            ("block_tokens", block_tokens, None, self.blocks),
            ("batched_tokens", batched_tokens, None, self.blocks),
            ("max_context", max_context, None, contiguous),
            ("state_blocks", state_blocks, 1, paged),
        ):
            if value != usual and not has_effect:
                rule = f"has no effect under the policy {self.policy}"
                raise InvalidValueError(field, value, rule)


def policies(
    spec: ModelSpec,
    *,
    context: int,
    kv: str | Format,
    engine: str | Engine = DEFAULT,
    block_tokens: int | None = None,
    batched_tokens: int | None = None,
    max_context: int | None = None,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    state_blocks: int = 1,
    tensor_parallel: int = 1,
    layout: Layout | None = None,
    rank: int | None = None,
) -> dict[str, Allocation]:
    """Return what a request takes under each policy, by the policy's name; see `allocate`.

    >>> from llmcalc import GiB, load_model, serving
    >>> llama = load_model("meta-llama/Llama-3.1-8B")
    >>> for name, request in serving.policies(
    ...     llama, context=1000, kv="bf16", max_context=8192
    ... ).items():
    ...     print(name, request.request_bytes, request.requests(40 * GiB))
    ideal 131072000 327
    contiguous 1073741824 40
    paged 132120576 325
    """
    known, found = with_pool(engine), {}
    for name in POLICIES:
        takes = Takes(name, known.pool.reserves_cells)
        found[name] = allocate(
            spec,
            context=context,
            kv=kv,
            policy=name,
            engine=known,
            block_tokens=block_tokens if takes.blocks else None,
            batched_tokens=batched_tokens if takes.blocks else None,
            max_context=max_context if name == "contiguous" else None,
            state=state,
            index=index,
            state_blocks=state_blocks if name == "paged" else 1,
            tensor_parallel=tensor_parallel,
            layout=layout,
            rank=rank,
        )
    return found


def _pool(pool_bytes: int) -> int:
    return whole_number(pool_bytes, "pool_bytes")


def _ideal(held: Breakdown[Bytes]) -> list[Term[int]]:
    return [Term(("ideal", *term.path), term.factors) for term in held.terms]


class Held:
    """What the ranks of a layout hold of requests' caches, before their length is known.

    `kinds` are the kinds of layers on each of `ranks`; of several ranks the one counts that holds
    most. `alike` gives, for each rank, the first one with the same kinds.
    """

    __slots__ = ("_caches", "_fold", "alike", "kinds", "ranks")

    def __init__(self, ledger: Ledger, ranks: tuple[Rank, ...], elements: CacheFormats) -> None:
        owner = Owner(ranks[0], pipeline=True)
        self.ranks: tuple[Rank, ...] = ranks
        self._fold = caches_held(ledger, owner, elements)
        self._caches = tuple(cache for _, cache in ledger.caches)
        pieces = tuple(zip(ledger.caches, self._fold.pieces, strict=True))
        self.kinds: tuple[list[_Kind], ...] = tuple(_kinds(pieces, rank) for rank in ranks)
        self.alike: tuple[int, ...] = tuple(map(self.kinds.index, self.kinds))

    def paged(
        self,
        context: int,
        engine: Engine,
        *,
        block_tokens: int,
        batched_tokens: int,
        state_blocks: int,
    ) -> Allocation:
        """Return what a request takes in blocks."""
        number = self.most(context)
        rank, kinds = self.ranks[number], self.kinds[number]
        layout, flights = rank.layout, engine.batches_in_flight
        if flights > 1 and layout.pipeline_parallel > 1:
            flights = layout.pipeline_parallel
        ranks = layout.decode_context_parallel
        plan = _Plan(
            context=context,
            ranks=ranks,
            rank=rank.slot_rank,
            block_tokens=block_tokens,
            held_tokens=batched_tokens * flights,
            state_blocks=state_blocks,
            engine=engine,
        )
        placed = plan.lay_out(kinds)

        def leaves() -> list[Term[int]]:
            return [*_ideal(self.needed(context, number)), *placed.wasted()]

        return Allocation(
            policy="paged",
            context=context,
            bytes=Breakdown(Bytes, "Cache of a request, paged", leaves),
            block_bytes=placed.block_bytes,
            blocks=placed.blocks,
            groups=placed.groups,
            tokens_of_blocks=engine.tokens_of_blocks,
            shards=ranks,
        )

    def needed(self, context: int, number: int) -> Breakdown[Bytes]:
        """Return what a request holds on one of the ranks."""
        rank = self.ranks[number]
        fold = self._fold.on(rank.stage)
        return FoldBreakdown(Bytes, "KV cache per request", fold, Workload.holding(1, context))

    def reserved(
        self, context: int, number: int, cells: Callable[[Span], int | None]
    ) -> Iterator[tuple[tuple[str, ...], int]]:
        """Give what is reserved of each cache on one of the ranks, in bytes.

        `cells` says how many slots of a span that are, `None` for as many as a request holds.
        """
        rank = self.ranks[number]
        for cache, piece in zip(self._caches, self._fold.pieces, strict=True):
            layers, slots = piece.on(rank.stage), cells(cache.span)
            slots = int(cache.span.slots(context)) if slots is None else slots
            if layers:
                ranks = rank.slot_ranks(cache.span)  # one where every rank has all of them
                own = slots if ranks == 1 else portion(slots, ranks, rank.slot_rank)
                yield piece.path, piece.each * piece.uses * layers * own

    def most(self, context: int) -> int:
        """Return which of the ranks holds most."""
        if len(self.ranks) == 1:
            return 0
        values = self._fold.values(Workload.holding(1, context))
        totals = [values.sum(self._fold.sum_on(rank.stage)) for rank in self.ranks]
        return totals.index(max(totals))


def _cells(rule: PoolRule, context: int, block: int, step: int) -> Callable[[Span], int | None]:
    """Return how many cells are reserved: whole blocks, and of a window a step's beside it.

    It is `None` for as many as a request holds, as under any rule but that of cells.

    Source: llama.cpp, ``src/llama-context.cpp`` (``n_ctx``) and ``src/llama-kv-cache-iswa.cpp``.
    """
    if not rule.reserves_cells:
        return lambda _: None

    def cells(span: Span) -> int | None:
        window = span.limit
        if window is None and _sort(span)[0] != "full":
            return None
        return rule.cells(context, block_tokens=block, step_tokens=step, window=window)

    return cells


def held_caches(spec: ModelSpec, formats: Formats, layout: Layout, rank: int | None) -> Held:
    """Return what ranks hold, which is the same for all requests."""
    number = None if rank is None else whole_number(rank, "rank")
    return kept(spec.ledger, _held, layout, number, formats)


def _held(ledger: Ledger, layout: Layout, number: int | None, formats: Formats) -> Held:
    elements = formats.caches()
    spec = ledger.spec
    ranks = layout.first_ranks(spec) if number is None else (layout.rank(number, spec),)
    return Held(ledger, ranks, elements)


def _kinds(pieces: tuple[tuple[tuple[Entry, Cache], Piece], ...], rank: Rank) -> list[_Kind]:
    """Give the kinds of layers of a model in the order in which they appear, as a rank has them.

    It may have no layers of a kind that other stages of a pipeline have.
    """
    found: dict[tuple[str, str, str, CacheSort, int], tuple[int, int, int]] = {}
    latents = {
        (*entry.path, *_sort(cache.span)) for (entry, cache), _ in pieces if cache.role == "latent"
    }
    for (entry, cache), piece in pieces:
        everywhere, layers = piece.uses * piece.layers, piece.uses * piece.on(rank.stage)
        sort, size = _sort(cache.span)
        one = piece.each * (cache.span.size - 1 if isinstance(cache.span, Remainder) else 1)
        purpose = "index" if cache.role == "index" else "state" if sort == "state" else "kv"
        key = (*entry.path, purpose, sort, size)
        bytes_so_far = found[key][0] if key in found else 0
        found[key] = bytes_so_far + one, layers, everywhere
    merged: dict[tuple[CacheSort, int, int], _Kind] = {}
    for (group, part, _, sort, size), (slot_bytes, layers, everywhere) in found.items():
        alike = merged.get((sort, size, slot_bytes))
        merged[sort, size, slot_bytes] = _Kind(
            label=_name(sort, size) if alike is None else alike.label,
            sort=sort,
            size=size,
            slot_bytes=slot_bytes,
            layers=layers + (0 if alike is None else alike.layers),
            all_layers=everywhere + (0 if alike is None else alike.all_layers),
            latent=(group, part, sort, size) in latents,
        )
    return [kind for kind in merged.values() if kind.slot_bytes and kind.all_layers]


def _sort(span: Span) -> tuple[CacheSort, int]:
    """Return how a span's slots are held, and its window, chunk or ratio."""
    match span:
        case Window():
            return "window", span.size
        case Chunk():
            return "chunk", span.size
        case Compressed():
            return "compressed", span.ratio
        case Constant() | Remainder():
            return "state", 0
        case _:
            return "full", 0


def _name(sort: CacheSort, size: int) -> str:
    return sort if sort in {"full", "state"} else f"{sort} {size}"


class _Placed(NamedTuple):
    """What a block takes, the blocks of a request, the groups, and what makes what is wasted."""

    block_bytes: int | None
    blocks: int | None
    groups: tuple[CacheGroup, ...]
    wasted: Callable[[], list[Term[int]]]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class _Plan(Described):
    """How an engine lays out the kinds of layers for requests of `context` tokens.

    A windowed layer holds `held_tokens` beside its window. Where several ranks share out the slots,
    all take as many blocks as the first one needs; the rank is number `rank` of them.
    """

    context: int
    ranks: int
    rank: int
    block_tokens: int
    held_tokens: int
    state_blocks: int
    engine: Engine

    def _own(self, slots: int) -> int:
        """Return how many of the slots that ranks share out are the rank's own."""
        return portion(slots, self.ranks, self.rank)

    def lay_out(self, kinds: list[_Kind]) -> _Placed:
        """Return the blocks of a request, and how they are made up."""
        if not any(kind.layers for kind in kinds):
            return _Placed(None, None, (), list)
        if len({kind.alike for kind in kinds}) == 1:
            return self._uniform(kinds)
        states = any(kind.sort == "state" for kind in kinds)
        if self.engine.cache_groups == "none" and not states:
            return self._uniform(kinds)
        blocks = self._blocks(kinds)
        pages = [self._page(kind, tokens) for kind, tokens in zip(kinds, blocks, strict=True)]
        page = max(pages)
        for number, kind in enumerate(kinds):
            if kind.sort != "state" and page % pages[number] == 0:
                blocks[number] *= page // pages[number]
            elif not states and not self.engine.pads_pages:
                return self._uniform(kinds)
        return self._grouped(kinds, blocks, page)

    def _blocks(self, kinds: list[_Kind]) -> list[int]:
        """Return the tokens of each kind's block.

        Where there are states, an attention block is so large that its page reaches a state's.
        """
        tokens = self.block_tokens
        states = [kind.slot_bytes for kind in kinds if kind.sort == "state"]
        slots = [kind.slot_bytes for kind in kinds if kind.sort not in {"state", "compressed"}]
        if states and slots:
            latent = any(kind.latent for kind in kinds)
            step = self.engine.latent_block_step if latent else self.engine.state_block_step
            tokens = max(tokens, step * -(-max(states) // (step * min(slots))))
        ratios = [kind.size if kind.sort == "compressed" else 1 for kind in kinds]
        return [-(-tokens // ratio) * ratio for ratio in ratios]

    @staticmethod
    def _page(kind: _Kind, tokens: int) -> int:
        if kind.sort == "state":
            return kind.slot_bytes
        if kind.sort == "compressed":
            return tokens // kind.size * kind.slot_bytes
        return tokens * kind.slot_bytes

    def _held(self, kind: _Kind, tokens: int, *, whole: bool) -> tuple[int, int, int]:
        """Return the slots that are needed, those that are held, and the blocks for them.

        With `whole`, a window is not dropped: all layers share one block table.
        """
        if kind.sort == "state":
            return 1, self.state_blocks, self.state_blocks
        context = -(-self.context // self.ranks)
        if kind.sort == "compressed":
            needed = self._own(self.context // kind.size)
            return needed, needed, -(-context // tokens)
        if kind.sort == "full":
            needed = self._own(self.context)
            return needed, needed, -(-context // tokens)
        needed, held = self._own(min(kind.size, self.context)), context
        if kind.sort == "window" and not whole:
            held = min(kind.size - 1 + self.held_tokens, context)
        elif kind.sort == "chunk" and not whole:
            held = min(kind.size + self.held_tokens, context)
        blocks = -(-held // tokens)
        if kind.sort == "window" and not whole and context:
            blocks += 1
        return needed, held, blocks

    def _wasted(self, kind: _Kind, tokens: int, *, whole: bool) -> list[Term[int]]:
        """Return what the blocks of one kind hold beyond what is needed."""
        if not kind.layers:
            return []
        if kind.sort == "state":
            more = self.state_blocks - 1
            copies = ((more, "copies"), (kind.layers, "layers"), (kind.slot_bytes, "bytes"))
            return [Term(("window slack", kind.label), copies)] if more else []
        needed, held, blocks = self._held(kind, tokens, whole=whole)
        size = tokens // kind.size if kind.sort == "compressed" else tokens
        filled = blocks if kind.sort == "full" else -(-held // size)
        layers = (kind.layers, "layers"), (kind.slot_bytes, "bytes")
        wasted = [
            Term(
                ("last-block waste", kind.label),
                ((filled * size - held, "tokens"), *layers),
            )
        ]
        slack = held - needed + (blocks - filled) * size
        if kind.sort in {"window", "chunk"} or slack:
            wasted.append(Term(("window slack", kind.label), ((slack, "tokens"), *layers)))
        return wasted

    def _uniform(self, kinds: list[_Kind]) -> _Placed:
        """Lay out layers that all share one block table."""
        tokens = max(self._blocks(kinds))
        whole = len({kind.alike for kind in kinds}) > 1
        block_bytes = sum(kind.layers * self._page(kind, tokens) for kind in kinds)
        _, _, blocks = self._held(kinds[0], tokens, whole=whole)
        for kind in kinds:
            blocks = max(blocks, self._held(kind, tokens, whole=whole)[2])
        groups = tuple(
            CacheGroup(
                label=kind.label,
                layers=kind.layers,
                layers_per_group=kind.layers,
                count=int(not number),  # one block table for all
                block_tokens=None if kind.sort == "state" else tokens,
                page_bytes=self._page(kind, tokens),
                blocks=blocks,
                sort=kind.sort,
            )
            for number, kind in enumerate(kinds)
        )

        def wasted() -> list[Term[int]]:
            return [term for kind in kinds for term in self._wasted(kind, tokens, whole=whole)]

        return _Placed(block_bytes, blocks, groups, wasted)

    def _grouped(self, kinds: list[_Kind], blocks: list[int], page: int) -> _Placed:
        """Lay out groups of as many layers each, whose blocks all have one size."""
        fewest = min(kind.all_layers for kind in kinds)
        most = max(kind.all_layers for kind in kinds)
        # Where the kinds are nearly as many, padding the smaller one wastes less than cutting
        # the larger one.
        evened = 100 * most < (100 + self.engine.evened_groups_percent) * fewest
        counts = [-(-kind.all_layers // (most if evened else fewest)) for kind in kinds]
        # The groups are those of the whole model; each stage has every so many layers of a kind.
        size = max(-(-kind.layers // count) for kind, count in zip(kinds, counts, strict=True))
        groups = []
        for kind, tokens, count in zip(kinds, blocks, counts, strict=True):
            _, _, needed = self._held(kind, tokens, whole=False)
            groups.append(
                CacheGroup(
                    label=kind.label,
                    layers=kind.layers,
                    layers_per_group=size,
                    count=count,
                    block_tokens=None if kind.sort == "state" else tokens,
                    page_bytes=page,
                    blocks=needed,
                    sort=kind.sort,
                )
            )

        def wasted() -> list[Term[int]]:
            found: list[Term[int]] = []
            padding: list[Term[int]] = []
            for kind, tokens, group in zip(kinds, blocks, groups, strict=True):
                found += self._wasted(kind, tokens, whole=False)
                empty = group.count * size * page - kind.layers * self._page(kind, tokens)
                if empty:
                    factors = (group.blocks, "blocks"), (empty, "bytes")
                    padding.append(Term(("group padding", kind.label), factors))
            return found + padding

        total = sum([group.count * group.blocks for group in groups])
        return _Placed(size * page, total, tuple(groups), wasted)
