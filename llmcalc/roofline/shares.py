"""What one device computes of a step: its share of every item.

* `Share`: the share of one rank of a layout, of a whole pipeline of ranks, or everything.
* `shares_of`: the shares that the arguments of a call ask for.
* `check_spec`: a refusal of what is no model.
* `item_key`: the item that a term belongs to.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from llmcalc.breakdown import Factor
from llmcalc.errors import InvalidValueError
from llmcalc.layouts import Layout, Rank
from llmcalc.memory import chosen_ranks
from llmcalc.roofline.counts import Count, Requests, Workload
from llmcalc.spec.axes import WHOLE, Axis, Split, share
from llmcalc.spec.items import Linear
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.spans import Constant, Span

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray

__all__ = ["Share", "check_spec", "item_key", "shares_of"]


class Share:
    """What a `rank` computes of a model, or without one everything.

    With `pipeline` it is what the ranks in the same place of all stages compute, one after another.
    """

    __slots__ = ("key", "pipeline", "rank")

    def __init__(self, rank: Rank | None = None, *, pipeline: bool = False) -> None:
        self.rank = rank
        self.pipeline = pipeline or rank is None or rank.stage.stages == 1
        #: What tells programs of this share from those of others.
        self.key: Hashable = None
        if rank is not None:
            stage = None if self.pipeline else rank.stage.number
            self.key = (rank.layout, stage, rank.replica, rank.tensor_rank)

    def workload(
        self,
        batch: Int | IntArray,
        new: Int | IntArray,
        past: Int | IntArray,
        mixed_with: Sequence[Requests] = (),
    ) -> Workload:
        """Return what the share has of a step, whose requests replicas share out."""
        rank = self.rank
        if rank is None:
            return Workload(batch, new, past, mixed_with)
        replicas = rank.layout.data_parallel
        return Workload(batch, new, past, mixed_with, replicas=replicas, replica=rank.replica)

    @property
    def title(self) -> str:
        """What titles say of the share."""
        if self.rank is None:
            return ""
        layout = self.rank.layout
        if self.pipeline and layout.pipeline_parallel > 1:
            return f" on a pipeline of {layout.pipeline_parallel} devices ({layout})"
        return self.rank.title

    def split(self, entry: Entry) -> Split:
        """Return how the axes of an item are split."""
        rank = self.rank
        return WHOLE if rank is None else rank.part(entry.path[0], routed=is_routed(entry))

    @property
    def attention(self) -> Split:
        """Return how attention and its caches are split."""
        return WHOLE if self.rank is None else self.rank.attention

    def joint(self, entry: Entry) -> bool:
        """Whether the item is computed for the requests of all replicas."""
        rank = self.rank
        return rank is not None and rank.is_joint(entry.path[0], routed=is_routed(entry))

    def times(self, entry: Entry) -> tuple[Factor, ...] | None:
        """Return the factors that count the layers and their uses; `None` where it has none."""
        if self.rank is None or self.pipeline:
            return entry.times
        count = self.rank.stage.count(entry.place)
        if not count:
            return None
        return ((count, "layers"), *entry.times[1:]) if entry.times else ()

    def dealt(self, entry: Entry, experts: Axis) -> tuple[int, int] | None:
        """Return how many experts stand before the share's own and how many it has.

        `None` where experts are not dealt out: each has a part of all of them.
        """
        split = self.split(entry)
        if not split.whole_experts:
            return None
        own = [share(experts.size, split.ranks, rank) for rank in range(split.rank + 1)]
        return sum(own[:-1]), own[-1]

    def dealt_slots(self, count: Count, span: Span) -> Count:
        """Return the share of a request's slots, which ranks with the same heads may deal out."""
        degree = 1 if self.rank is None else self.rank.layout.decode_context_parallel
        if self.rank is None or degree == 1 or isinstance(span, Constant):
            return count
        of = (count, degree, self.rank.tensor_rank % degree)
        return Count("dealt", f"{count.name} / {degree}", of)


def is_routed(entry: Entry) -> bool:
    """Whether the item is one of several experts, which expert parallelism deals out."""
    item = entry.item
    return isinstance(item, Linear) and item.experts is not None and entry.path[0] != "attention"


def shares_of(
    spec: ModelSpec,
    tensor_parallel: Int,
    layout: Layout | None,
    rank: Int | None = None,
    *,
    pipeline: bool = False,
) -> tuple[Share, ...]:
    """Return the share that is asked for, or those of which one has most: one for each stage."""
    check_spec(spec)
    if layout is None and rank is None and type(tensor_parallel) is int and tensor_parallel == 1:
        return (EVERYTHING,)
    ranks = chosen_ranks(spec, tensor_parallel, layout, rank)
    if pipeline:
        return (Share(ranks[0], pipeline=True),)
    return tuple(map(Share, ranks))


def check_spec(spec: object) -> None:
    """Refuse what is no model."""
    if not isinstance(spec, ModelSpec):
        raise InvalidValueError("spec", spec, "must be a ModelSpec, as load_model returns it")


def item_key(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path of the item that a term belongs to: its name without what is behind it."""
    *place, name = path
    return (*place, name.partition(".")[0])


#: All of a model, on one device.
EVERYTHING = Share()
