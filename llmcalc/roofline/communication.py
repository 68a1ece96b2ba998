r"""What the ranks of a layout exchange in a step, derived from how axes are split.

* `collectives`: the exchanges of a step.
* `Collective`: one kind of exchange: its message, and what each rank sends of it.

A matrix product that contracts a split axis leaves a partial sum on every rank, and so does a
lookup in a table whose rows are split, and a mixture whose experts are distributed: the sum over
the ranks is one all-reduce. Parts of a layer that read the same input and are added share it. A
split vocabulary leaves a piece of the logits on every rank, and attention without an output
projection its own heads; these are gathered. A norm of all heads as one vector needs the sum of
squares over the ranks: one number a token. Experts that are distributed over replicas get their
tokens, and send the results back, in two all-to-alls: a token goes to a rank once, however many of
its experts are there, and to as many ranks as there can be. Ranks of data-parallel attention gather
the tokens of all replicas for what they compute together, and scatter its sum. Ranks that share the
slots of a request gather each other's queries and scatter the sum of the results. A pipeline stage
sends its result to the next one.

With `n` ranks and a message of `m` bytes each rank sends, in a ring and in all other algorithms
that are optimal without help from the network,

.. math:: \text{all-reduce } 2 m \tfrac{n - 1}{n}, \qquad
          \text{gather, scatter, all-to-all } m \tfrac{n - 1}{n}, \qquad \text{send } m

The message is the whole tensor that is summed, gathered or scattered; of an all-to-all it is what
one rank has to send, its own share included.

Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms" (2009); Thakur et al.,
"Optimization of collective communication operations in MPICH" (2005).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import attrs

from llmcalc import formats
from llmcalc.described import DescribedArrays
from llmcalc.folds.conventions import Conventions, conventions
from llmcalc.folds.counts import TOKENS, Count
from llmcalc.folds.owners import Owner, owners_of
from llmcalc.folds.pieces import Fold, Piece, Shape
from llmcalc.folds.workloads import Workload
from llmcalc.spec.axes import WHOLE, Axes, Axis, extent, is_split
from llmcalc.spec.items import Cache, Linear, Mix, Product, Scale, Table
from llmcalc.spec.kept import kept
from llmcalc.spec.ledger import Entry, ResidualStep
from llmcalc.spec.model import Ledger, ModelSpec

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.folds.workloads import Requests
    from llmcalc.formats import Format
    from llmcalc.layouts import Layout, Rank

__all__ = ["Collective", "collectives"]

#: What the ranks do together.
Kind: TypeAlias = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"]

#: How often a message goes out whole, but for the share that stays.
_ROUNDS: Final = {
    "all-reduce": 2,
    "all-gather": 1,
    "reduce-scatter": 1,
    "all-to-all": 1,
}


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Collective(DescribedArrays):
    """An exchange between `ranks` at `path`, `count` times in a step.

    `message_bytes` is the size of one: an integer, or an array for array arguments.
    """

    kind: Kind
    path: tuple[str, ...]
    ranks: int
    count: int
    message_bytes: Any

    @property
    def sent_bytes(self) -> Any:
        """What each rank sends in all of them, in bytes: a float."""
        if self.kind == "send":
            return self.count * self.message_bytes * 1.0
        return (
            self.count * self.message_bytes * (_ROUNDS[self.kind] * (self.ranks - 1) / self.ranks)
        )


class Exchange(NamedTuple):
    """A collective but for the workload: `ranks`, and how often in a step.

    Its message is `flows` for each of `tokens`. `path` is that of what it follows on.
    """

    kind: Kind
    path: tuple[str, ...]
    ranks: int
    flows: tuple[Axes, ...]
    tokens: Count
    times: int


def exchanges(
    ledger: Ledger, owner: Owner, how: Conventions, activations: str | Format
) -> Exchanges:
    """Return the exchanges of a device or a pipeline, before the workload is known."""
    how = Conventions(all_logits=how.all_logits, absorbed=how.absorbed)
    return kept(ledger, _exchanges, owner, how, activations)


class Exchanges(NamedTuple):
    """The exchanges of a step in their order, and their messages as a fold, in bytes."""

    all: tuple[Exchange, ...]
    messages: Fold


def _exchanges(
    ledger: Ledger, owner: Owner, how: Conventions, activations: str | Format
) -> Exchanges:
    rank = owner.rank
    found: list[Exchange] = []
    if rank is not None:
        found = [one for one in _Step(ledger, owner, rank, how).all() if one.ranks > 1]
    element = formats.get(activations, "activations").slot_bytes(1)
    messages = [
        Piece(
            "message",
            one.path,
            extent(one.flows) * element,
            one.tokens,
            1,
            1,
            None,
            Shape(one.path, (), (one.flows,), WHOLE, (), ((element, "bytes"),)),
        )
        for one in found
    ]
    return Exchanges(tuple(found), Fold(messages))


class _Step:
    """The exchanges of one owner's step."""

    def __init__(self, ledger: Ledger, owner: Owner, rank: Rank, how: Conventions) -> None:
        self.ledger, self.owner, self.rank, self.how = ledger, owner, rank, how

    def all(self) -> Iterator[Exchange]:
        """Give all of them, in the order of the step."""
        outside = [entry for entry in self.ledger.entries if entry.count is None]
        for entry in outside:
            if not entry.after:
                yield from self._outside(entry)
        for step in self.ledger.steps:
            yield from self._residual(step)
        for entry in outside:
            if entry.after:
                yield from self._outside(entry)
        stages = self.rank.layout.pipeline_parallel
        own = self.rank.stage.number
        sends = stages - 1 if self.owner.pipeline else int(own < stages - 1)
        if sends:
            path = ("pipeline", "", "hidden")
            yield Exchange("send", path, 2, (self._hidden,), TOKENS, sends)

    @property
    def _hidden(self) -> Axes:
        return (Axis("embed", self.ledger.spec.embed_dim),)

    def _times(self, entry: Entry) -> int:
        """Return how often a step passes an item on this owner."""
        if self.owner.pipeline:
            return entry.uses * (1 if entry.count is None else entry.count)
        return entry.uses * self.rank.stage.count(entry.place)

    def _after(self, kind: Kind, entry: Entry, flows: tuple[Axes, ...], tokens: Count) -> Exchange:
        """Return an exchange that follows on an item, between the ranks that split it."""
        ranks = self.owner.split(entry).ranks
        return Exchange(kind, entry.name, ranks, flows, tokens, self._times(entry))

    def _outside(self, entry: Entry) -> Iterator[Exchange]:
        """Give what follows on an item outside the layers."""
        item = entry.item
        if not self._times(entry):
            return
        if isinstance(item, Table) and item.looked_up and is_split(item.rows):
            yield self._after("all-reduce", entry, (item.row,), TOKENS)
        elif isinstance(item, Linear):
            tokens = self.how.tokens(item)
            if self._cut(entry, item.into):
                yield self._after("all-reduce", entry, item.out, tokens)
            elif any(axis.name == "vocab" for axes in item.out for axis in axes):
                yield self._after("all-gather", entry, item.out, tokens)

    def _residual(self, step: ResidualStep) -> Iterator[Exchange]:
        """Give the exchanges of one residual step, each sum once."""
        entries = [entry for entry in step.entries if self._times(entry)]
        everyone = [entry for entry in entries if self.owner.across_replicas(entry)]
        gathers = not all(entry.routed for entry in everyone)
        yield from self._layered(step, entries, gathers=gathers)
        if gathers:
            yield from self._together(everyone[0])

    def _layered(
        self, step: ResidualStep, entries: list[Entry], *, gathers: bool
    ) -> Iterator[Exchange]:
        summed: set[object] = set()
        norms = [entry for entry in entries if self._spans_ranks(entry)]
        normed: set[str] = set()
        routed_before = False
        for entry in entries:
            item, everyone = entry.item, self.owner.across_replicas(entry)
            if entry in norms and entry.group not in normed:
                normed.add(entry.group)
                sums = Axis("norms", sum(one.path == entry.path for one in norms))
                yield self._after("all-reduce", entry, ((sums,),), self.how.new(everyone))
            if isinstance(item, Mix):
                yield from self._mix(entry, item, entries)
            if entry.routed and _is_read(item) and everyone and not routed_before:
                routed_before = True
                if not gathers:
                    yield from self._routed(entry)
            partial = self._partial(entry)
            if partial is not None and not everyone:
                key = (*partial, "" if step.adds_up else entry.group)
                if key not in summed:
                    summed.add(key)
                    yield self._after("all-reduce", entry, *partial)
        for entry in entries if not summed else ():
            item = entry.item
            if isinstance(item, Mix) and is_split(item.heads):
                # Without a projection back to the width, heads stay where they are computed.
                heads = ((item.heads, item.value),)
                yield self._after("all-gather", entry, heads, TOKENS)

    def _partial(self, entry: Entry) -> tuple[tuple[Axes, ...], Count] | None:
        """Return what an item leaves a partial sum of on every rank, and the tokens."""
        item = entry.item
        if isinstance(item, Linear) and self._cut(entry, item.into):
            return item.out, self.how.tokens(item)
        if isinstance(item, Product) and self.owner.split(entry).whole_experts:
            return (self._hidden,), TOKENS
        return None

    def _cut(self, entry: Entry, axes: Axes) -> bool:
        """Whether a rank has only a part of what the axes of an item span.

        Of whole experts it has all axes, and a part of the sum over experts.
        """
        split = self.owner.split(entry)
        if split.whole_experts:
            return any(map(is_split, axes))
        return extent((axes,), split) < extent((axes,))

    def _spans_ranks(self, entry: Entry) -> bool:
        """Whether something that is split over ranks is normalised as one vector.

        What recurrences compute is left to each rank: engines normalise it by groups of heads.
        """
        item = entry.item
        if not isinstance(item, Scale) or item.vectors != () or entry.group == "recurrent":
            return False
        return self._cut(entry, item.axes)

    def _together(self, entry: Entry) -> Iterator[Exchange]:
        """Give what ranks exchange that compute the tokens of all replicas together."""
        path = (*entry.path, "hidden")
        tokens = self.how.new(all_replicas=True)
        for kind in _GATHER_SCATTER:
            yield self._after(kind, entry, (self._hidden,), tokens)._replace(path=path)

    def _routed(self, entry: Entry) -> Iterator[Exchange]:
        """Give what brings tokens to the experts of all replicas, and the results back."""
        split, item = self.owner.split(entry), entry.item
        if not split.whole_experts:
            yield from self._together(entry)
            return
        path = (*entry.path, "experts")
        hidden = item.into if isinstance(item, Linear) else self._hidden
        active = item.active if isinstance(item, Linear | Table | Product) else None
        used = (Axis("ranks per token", min(active or 1, split.ranks)), *hidden)
        tokens, ranks = TOKENS, self.rank.layout.tensor_parallel
        if ranks > 1:  # which hold the same tokens
            of = (ranks, self.rank.tensor_rank)
            tokens = Count("dealt", f"tokens / {ranks}", of)
        times = self._times(entry)
        yield Exchange("all-to-all", path, split.ranks, (used,), tokens, 2 * times)
        yield Exchange("all-gather", path, ranks, (hidden,), TOKENS, times)

    def _mix(self, entry: Entry, item: Mix, entries: list[Entry]) -> Iterator[Exchange]:
        """Give what ranks exchange that share out the slots of each request."""
        layout = self.rank.layout
        degree = layout.decode_context_parallel
        shared = any(
            isinstance(other.item, Cache)
            and other.operation == entry.operation
            and not other.item.span.is_state
            for other in entries
        )
        if degree == 1 or not shared:
            return
        heads = Axis(item.heads.name, item.heads.size * degree // layout.tensor_parallel)
        for kind, width in zip(_GATHER_SCATTER, self.how.widths(item), strict=True):
            found = self._after(kind, entry, ((heads, width),), TOKENS)
            yield found._replace(ranks=degree)


def _is_read(item: object) -> bool:
    """Whether a routed item is one that a step reads."""
    return not isinstance(item, Table) or item.looked_up > 0


_GATHER_SCATTER: Final[tuple[Kind, Kind]] = ("all-gather", "reduce-scatter")


def of_step(found: Exchanges, workload: Workload) -> tuple[Collective, ...]:
    """Return the exchanges of a step."""
    if not found.all:
        return ()
    values = found.messages.values(workload)
    return tuple(
        Collective(
            kind=one.kind,
            path=one.path,
            ranks=one.ranks,
            count=one.times,
            message_bytes=values.total(sums),
        )
        for one, sums in zip(found.all, found.messages.each(), strict=True)
    )


def collectives(
    spec: ModelSpec,
    *,
    batch: Int | IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    activations: str | Format = "bf16",
    logits: Literal["last", "all"] = "last",
    mla: Literal["expanded", "absorbed"] = "expanded",
    mixed_with: Sequence[Requests] = (),
) -> tuple[Collective, ...]:
    """Return what the devices of a layout exchange in a step, in the order of the step.

    The step and the layout are those of `llmcalc.roofline.flops`; `activations` is the format of
    what is exchanged. The answer is that of the first device of each pipeline stage. There is
    nothing to exchange on one device.

    >>> from llmcalc import load_model, roofline
    >>> llama = load_model("llama-3-8b")
    >>> for one in roofline.collectives(llama, batch=8, new=1, past=1023, tensor_parallel=2):
    ...     print(one.kind, one.path[-1], one.count, one.message_bytes)
    all-reduce token 1 65536
    all-reduce o 32 65536
    all-reduce down 32 65536
    all-gather output 1 2052096
    """
    how = conventions(logits=logits, mla=mla)
    [owner] = owners_of(spec, tensor_parallel, layout, pipeline=True)
    fold = exchanges(spec.ledger, owner, how, activations)
    return of_step(fold, owner.workload(batch, new, past, mixed_with))
