"""What a device has of every item: its work.

* `Owner`: one rank of a layout, a whole pipeline of ranks, or one device with everything.
* `owners_of`: those that the arguments of a call ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcalc.folds.counts import Count
from llmcalc.folds.workloads import Requests, Workload
from llmcalc.layouts import Layout, Rank, chosen
from llmcalc.spec.axes import WHOLE, Axis, Split, portion
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import ModelSpec, check_spec
from llmcalc.spec.spans import Span

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray

__all__ = ["EVERYTHING", "Owner", "owners_of", "ranks_of"]


class Owner:
    """What a `rank` has of a model, or without one everything.

    With `pipeline` it is what the ranks in the same place of all stages have, one after another.
    """

    __slots__ = ("_key", "pipeline", "rank")

    def __init__(self, rank: Rank | None = None, *, pipeline: bool = False) -> None:
        self.rank: Rank | None = rank
        self.pipeline: bool = pipeline or rank is None or rank.stage.stages == 1
        self._key: tuple[object, ...] = ()
        if rank is not None:
            stage = None if self.pipeline else rank.stage.number
            self._key = rank.layout, stage, rank.replica, rank.tensor_rank

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Owner) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def whole(self) -> Owner:
        """The same place in all stages."""
        return self if self.pipeline else Owner(self.rank, pipeline=True)

    def workload(
        self,
        batch: Int | IntArray,
        new: Int | IntArray,
        past: Int | IntArray,
        mixed_with: Sequence[Requests] = (),
    ) -> Workload:
        """Return what it has of a step, whose requests replicas share out."""
        rank = self.rank
        if rank is None:
            return Workload(batch, new, past, mixed_with)
        replicas = rank.layout.data_parallel
        return Workload(batch, new, past, mixed_with, replicas=replicas, replica=rank.replica)

    @property
    def title(self) -> str:
        """What titles say of it."""
        if self.rank is None:
            return ""
        layout = self.rank.layout
        if self.pipeline and layout.pipeline_parallel > 1:
            return f" on a pipeline of {layout.pipeline_parallel} devices ({layout})"
        return self.rank.title

    def split(self, entry: Entry) -> Split:
        """Return how the axes of an item are split."""
        rank = self.rank
        return WHOLE if rank is None else rank.part(entry.group, routed=entry.routed)

    @property
    def attention(self) -> Split:
        """Return how attention and its caches are split."""
        return WHOLE if self.rank is None else self.rank.attention

    def across_replicas(self, entry: Entry) -> bool:
        """Whether the item is computed for the requests of all replicas."""
        rank = self.rank
        return rank is not None and rank.across_replicas(entry.group, routed=entry.routed)

    def experts(self, entry: Entry, experts: Axis) -> tuple[int, int] | None:
        """Return how many experts stand before those of its own and how many it has.

        `None` where ranks hold no whole experts: each has a part of all of them.
        """
        split = self.split(entry)
        if not split.whole_experts:
            return None
        own = [portion(experts.size, split.ranks, rank) for rank in range(split.rank + 1)]
        return sum(own[:-1]), own[-1]

    def slots(self, count: Count, span: Span) -> Count:
        """Return its slots of a request, which ranks with the same heads may share out."""
        ranks = 1 if self.rank is None else self.rank.slot_ranks(span)
        if self.rank is None or ranks == 1:
            return count
        return Count("sharded", f"{count.name} / {ranks}", (count, ranks, self.rank.slot_rank))


#: All of a model, on one device.
EVERYTHING = Owner()


def ranks_of(
    spec: ModelSpec, tensor_parallel: Int, layout: Layout | None, rank: Int | None = None
) -> tuple[Rank, ...]:
    """Return the rank asked for, or else those of which one holds most: one for each stage."""
    check_spec(spec)
    place = chosen(tensor_parallel, layout)
    return place.first_ranks(spec) if rank is None else (place.rank(rank, spec),)


def owners_of(
    spec: ModelSpec,
    tensor_parallel: Int,
    layout: Layout | None,
    rank: Int | None = None,
    *,
    pipeline: bool = False,
) -> tuple[Owner, ...]:
    """Return the owner that is asked for, or those of which one has most: one for each stage."""
    check_spec(spec)
    if layout is None and rank is None and type(tensor_parallel) is int and tensor_parallel == 1:
        return (EVERYTHING,)
    ranks = ranks_of(spec, tensor_parallel, layout, rank)
    if pipeline:
        return (Owner(ranks[0], pipeline=True),)
    return tuple(map(Owner, ranks))
