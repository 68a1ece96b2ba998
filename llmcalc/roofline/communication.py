r"""What the ranks of a layout exchange in a step, derived from how axes are split.

* `collectives`: the exchanges of a step.
* `Collective`: one kind of exchange: its message, and what each rank sends of it.

A matrix product that contracts a split axis leaves a partial sum on every rank, and so does a
lookup in a table whose rows are split, and a mixture whose experts are dealt out: the sum over the
ranks is one all-reduce. Parts of a layer that read the same input and are added share it. A split
vocabulary leaves a piece of the logits on every rank, and attention without an output projection
its own heads; these are gathered. A norm of all heads as one vector needs the sum of squares over
the ranks: one number a token. Experts that are dealt out over replicas get
their tokens, and send the results back, in two all-to-alls: a token goes to a rank once, however
many of its experts are there, and to as many ranks as there can be. Ranks of
data-parallel attention gather the tokens of all replicas for what they compute together, and
scatter its sum. Ranks that deal out the slots of a request gather each other's queries and scatter
the sum of the results. A pipeline stage sends its result to the next one.

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

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, cast

import attrs

from llmcalc import formats
from llmcalc.boundary import choice
from llmcalc.breakdown import Factor
from llmcalc.described import DescribedArrays
from llmcalc.memory import stored
from llmcalc.roofline.counts import TOKENS, Count, Workload
from llmcalc.roofline.programs import Piece, Program, keep
from llmcalc.roofline.shares import Share, is_routed, shares_of
from llmcalc.spec.axes import Axes, Axis, factors, is_split
from llmcalc.spec.items import Cache, Linear, Mix, Scale, Table
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import ModelSpec, Residual
from llmcalc.spec.parallel import ParallelBlock
from llmcalc.spec.spans import Constant

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.formats import Format
    from llmcalc.layouts import Layout
    from llmcalc.roofline.counts import Requests

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


class _Exchange(NamedTuple):
    """A collective but for the workload: `pieces` of axes for each of `tokens`, `times` a step."""

    kind: Kind
    path: tuple[str, ...]
    ranks: int
    pieces: tuple[Axes, ...]
    tokens: Count
    times: tuple[Factor, ...]


def exchanges(
    spec: ModelSpec,
    share: Share,
    activations: str | Format,
    *,
    everything: bool,
    absorbed: bool,
) -> Program:
    """Return the exchanges of a share, before the workload is known: messages in bytes.

    The first two names of a piece's path are the kind and how many ranks take part; its factors
    `times` say how often. With `everything` all logits are computed, with `absorbed` latent
    attention reads latents as they are cached.
    """
    own = activations if type(activations) is str else id(activations)
    key = ("exchanges", share.key, own, everything, absorbed)
    found = spec.ledger.programs.get(key)
    if found is None:
        element = stored((), formats.get(activations, "activations"))
        found = keep(
            spec.ledger,
            key,
            [
                Piece((kind, str(ranks), *path), path, (*factors(axes), *element), tokens, times)
                for kind, path, ranks, axes, tokens, times in _Exchanges(
                    spec, share, everything=everything, absorbed=absorbed
                ).all()
                if ranks > 1
            ],
            activations,
        )
    return found


class _Exchanges:
    """The exchanges of one share."""

    def __init__(self, spec: ModelSpec, share: Share, *, everything: bool, absorbed: bool) -> None:
        self.spec, self.share = spec, share
        self.everything, self.absorbed = everything, absorbed

    def all(self) -> Iterator[_Exchange]:
        """Give all of them, in the order of the step."""
        rank = self.share.rank
        if rank is None:
            return
        outside = [entry for entry in self.spec.ledger.entries if entry.count is None]
        for entry in outside:
            if not entry.after:
                yield from self._outside(entry)
        for block, entries in self.spec.residuals():
            yield from self._block(block, tuple(entries))
        for entry in outside:
            if entry.after:
                yield from self._outside(entry)
        stages = rank.layout.pipeline_parallel
        sends = stages - 1 if self.share.pipeline else int(rank.stage.number < stages - 1)
        if sends:
            hidden = ((Axis("embed", self.spec.embed_dim),),)
            yield _Exchange(
                "send", ("pipeline", "", "hidden"), 2, hidden, TOKENS, ((sends, "stages"),)
            )

    def _outside(self, entry: Entry) -> Iterator[_Exchange]:
        """Give what follows on an item outside the layers."""
        item, times = entry.item, self.share.times(entry)
        ranks = self.share.split(entry).ranks
        if times is None:
            return
        if isinstance(item, Table) and item.looked_up and is_split(item.rows):
            yield _Exchange("all-reduce", entry.name, ranks, (item.row,), TOKENS, times)
        elif isinstance(item, Linear):
            tokens = self._tokens(item)
            if any(map(is_split, item.into)):
                yield _Exchange("all-reduce", entry.name, ranks, item.out, tokens, times)
            elif any(axis.name == "vocab" for axes in item.out for axis in axes):
                yield _Exchange("all-gather", entry.name, ranks, item.out, tokens, times)

    def _tokens(self, item: Linear) -> Count:
        if item.tokens == "latent" and not self.absorbed:
            return Count("present", "tokens", item.span)
        last = item.tokens == "logits" and not self.everything
        return TOKENS._replace(kind="logits") if last else TOKENS

    def _block(self, block: Residual, entries: tuple[Entry, ...]) -> Iterator[_Exchange]:
        """Give the exchanges of one residual step, each sum once."""
        summed: dict[object, None] = {}
        routed_before = False
        gathers = any(self.share.joint(e) and not is_routed(e) for e in entries)
        norms = [entry for entry in entries if _spans_ranks(entry)]
        normed: set[str] = set()
        for entry in entries:
            item, times = entry.item, self.share.times(entry)
            if times is None:
                continue
            if entry in norms and entry.path[0] not in normed:
                normed.add(entry.path[0])
                sums = Axis("norms", sum(one.path == entry.path for one in norms))
                tokens = TOKENS._replace(joint=self.share.joint(entry))
                ranks = self.share.split(entry).ranks
                yield _Exchange("all-reduce", entry.name, ranks, ((sums,),), tokens, times)
            if isinstance(item, Mix):
                yield from self._mix(entry, item, entries, times)
            if not isinstance(item, Linear):
                continue
            split = self.share.split(entry)
            if is_routed(entry) and self.share.joint(entry) and not routed_before:
                routed_before = True
                if not gathers:
                    yield from self._routed(entry, item, times)
            if self.share.joint(entry) or not any(map(is_split, item.into)):
                continue
            tokens = self._tokens(item)
            key = (item.out, tokens, "" if _adds_up(block) else entry.path[0])
            if key not in summed:
                summed[key] = None
                yield _Exchange("all-reduce", entry.name, split.ranks, item.out, tokens, times)
        for entry in entries if not summed else ():
            item, times = entry.item, self.share.times(entry)
            if isinstance(item, Mix) and is_split(item.heads) and times is not None:
                # Without a projection back to the width, heads stay where they are computed.
                axes = (item.heads, item.value)
                ranks = self.share.split(entry).ranks
                yield _Exchange("all-gather", entry.name, ranks, (axes,), TOKENS, times)
        if gathers:
            yield from self._together(next(e for e in entries if self.share.joint(e)))

    def _together(self, entry: Entry) -> Iterator[_Exchange]:
        """Give what ranks exchange that compute the tokens of all replicas together."""
        times = self.share.times(entry)
        if times is None:
            return
        ranks = self.share.split(entry).ranks
        path = (*entry.path, "hidden")
        hidden = ((Axis("embed", self.spec.embed_dim),),)
        tokens = TOKENS._replace(joint=True)
        for kind in _GATHER_SCATTER:
            yield _Exchange(kind, path, ranks, hidden, tokens, times)

    def _routed(self, entry: Entry, item: Linear, times: tuple[Factor, ...]) -> Iterator[_Exchange]:
        """Give what brings tokens to the experts of all replicas, and the results back."""
        rank, split = self.share.rank, self.share.split(entry)
        if rank is None:
            return
        if not split.whole_experts:
            yield from self._together(entry)
            return
        path = (*entry.path, "experts")
        used = (Axis("ranks per token", min(item.active or 1, split.ranks)), *item.into)
        tokens, ranks = TOKENS, rank.layout.tensor_parallel
        if ranks > 1:  # which hold the same tokens
            of = (TOKENS, ranks, rank.tensor_rank)
            tokens = Count("dealt", f"tokens / {ranks}", of)
        twice = (*times, (2, "ways"))
        yield _Exchange("all-to-all", path, split.ranks, (used,), tokens, twice)
        yield _Exchange("all-gather", path, ranks, (item.into,), TOKENS, times)

    def _mix(
        self, entry: Entry, item: Mix, entries: Iterable[Entry], times: tuple[Factor, ...]
    ) -> Iterator[_Exchange]:
        """Give what ranks exchange that deal out the slots of each request."""
        rank = self.share.rank
        degree = 1 if rank is None else rank.layout.decode_context_parallel
        dealt = any(
            isinstance(other.item, Cache)
            and other.item.read_by == item.name
            and not isinstance(other.item.span, Constant)
            for other in entries
        )
        if rank is None or degree == 1 or not dealt:
            return
        heads = Axis(item.heads.name, item.heads.size * degree // rank.layout.tensor_parallel)
        widths = (item.query_key, item.value)
        if self.absorbed and item.absorbed is not None:
            widths = item.absorbed
        for kind, width in zip(_GATHER_SCATTER, widths, strict=True):
            yield _Exchange(kind, entry.name, degree, ((heads, width),), TOKENS, times)


def _spans_ranks(entry: Entry) -> bool:
    """Whether something that is split over ranks is normalised as one vector.

    What recurrences compute is left to each rank: engines normalise it by groups of heads.
    """
    item = entry.item
    if not isinstance(item, Scale) or item.vectors != () or entry.path[0] == "recurrent":
        return False
    return any(map(is_split, item.axes))


_GATHER_SCATTER: Final[tuple[Kind, Kind]] = ("all-gather", "reduce-scatter")


def _adds_up(block: Residual) -> bool:
    """Whether the parts of a residual step are added before anything else reads their results."""
    return isinstance(block, ParallelBlock) and not any(
        inner.post_norm or inner.sum_norm for inner in block.blocks
    )


def of_step(program: Program, workload: Workload) -> tuple[Collective, ...]:
    """Return the exchanges of a step."""
    values = program.values(workload)
    numbers = {count: number for number, count in enumerate(program.counts)}
    return tuple(
        Collective(
            kind=cast("Kind", kind),
            path=tuple(path),
            ranks=int(ranks),
            count=_size(times),
            message_bytes=values.total(((numbers[count], _size(axes)),)),
        )
        for (kind, ranks, *path), _, axes, count, times in program.pieces
    )


def _size(factors: Iterable[Factor]) -> int:
    return prod([factor for factor, _ in factors])


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
    choice(logits, "logits", ("last", "all"))
    choice(mla, "mla", ("expanded", "absorbed"))
    [share] = shares_of(spec, tensor_parallel, layout, pipeline=True)
    program = exchanges(
        spec, share, activations, everything=logits == "all", absorbed=mla == "absorbed"
    )
    return of_step(program, share.workload(batch, new, past, mixed_with))
