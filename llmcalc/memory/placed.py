"""What the devices of a layout hold of a model: the one place that says what fits.

* `placed`: the weights and the caches of a model on a layout, kept with the model.
* `Placed`: these; `Placed.stages` gives what a request holds on each pipeline stage.
* `Stages`: bytes of weights and of a request on each stage, and what fits beside them.
* `fits`: whether what is needed fits in a memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

from llmcalc.boundary import is_array, larger
from llmcalc.breakdown import Breakdown
from llmcalc.folds.breakdowns import FoldBreakdown
from llmcalc.folds.owners import EVERYTHING, Owner
from llmcalc.folds.pieces import Fold
from llmcalc.folds.storage import Formats, caches_held, weights_held
from llmcalc.folds.workloads import NOTHING, Workload
from llmcalc.layouts import ONE_DEVICE, Layout, Rank, chosen, requests_of
from llmcalc.spec.kept import kept
from llmcalc.spec.model import Ledger, ModelSpec, check_spec
from llmcalc.units import Bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmcalc.boundary import Int, IntArray, Number
    from llmcalc.folds.counts import Sums

__all__ = ["Placed", "Stages", "fits", "placed"]

N_co = TypeVar("N_co", bound="Number", covariant=True)


class Stages(NamedTuple, Generic[N_co]):
    """What one device of each pipeline stage holds: weights, and one request of its replica.

    `replicas` share out a batch. Figures are bytes, integers or arrays.
    """

    weights: Sequence[int]
    requests: Sequence[N_co]
    replicas: int

    @property
    def pairs(self) -> tuple[tuple[int, N_co], ...]:
        """Weights and one request of each stage."""
        return tuple(zip(self.weights, self.requests, strict=True))

    def own(self, batch: int) -> int:
        """Return how many requests of a batch of the whole layout the devices hold."""
        return requests_of(batch, self.replicas, 0)

    def needed(self: Stages[int], batch: int) -> list[int]:
        """Return what a batch of the whole layout needs on each stage."""
        own = self.own(batch)
        return [
            held + own * request for held, request in zip(self.weights, self.requests, strict=True)
        ]

    def fits(self: Stages[int], batch: int, memory: int) -> bool:
        """Whether a batch fits on all devices."""
        return fits(max(self.needed(batch)), memory)

    @overload
    def most_requests(self: Stages[int], memory: int) -> int | None: ...
    @overload
    def most_requests(self, memory: Number) -> Number | None: ...
    def most_requests(self, memory: Number) -> Number | None:
        """Return the most requests of the whole layout that fit beside the weights.

        0 where the weights do not fit, `None` where requests hold nothing.
        """
        if is_array(memory) or any(map(is_array, self.requests)):
            return self._most_of_arrays(memory)
        most: Number | None = None
        for held, request in zip(self.weights, self.requests, strict=True):
            left = memory - held
            if left < 0:
                return 0
            if request and (most is None or left // request < most):
                most = left // request
        return None if most is None else most * self.replicas

    def _most_of_arrays(self, memory: Number) -> IntArray:
        import numpy as np

        available, *each = np.broadcast_arrays(memory, *self.requests)
        left, request = np.stack([available - held for held in self.weights]), np.stack(each)
        most = np.maximum(left, 0) // np.maximum(request, 1)
        # A stage that holds nothing of a request does not limit their number.
        sizes: IntArray = np.where(request == 0, most.max(initial=0), most).min(axis=0)
        sizes = sizes * self.replicas
        fits = (left >= 0).all(axis=0)
        sizes = np.where(fits, sizes, 0)
        unlimited = fits & (request == 0).all(axis=0)
        if unlimited.any():
            sizes = sizes.astype(np.object_)
            sizes[unlimited] = None
        return sizes


@overload
def fits(needed: int, memory: int) -> bool: ...
@overload
def fits(needed: Number, memory: Number) -> bool | NDArray[Any]: ...
def fits(needed: Number, memory: Number) -> bool | NDArray[Any]:
    """Whether what is needed is at most the memory that there is for it.

    >>> from llmcalc.memory.placed import fits
    >>> fits(80, 80), fits(81, 80)
    (True, False)
    """
    return needed <= memory


class Placed(NamedTuple):
    """A model on a layout: the first rank of each stage, and what it holds.

    `weights` and `caches` are folds of the ranks in the same place of all stages; `totals` are the
    bytes of the weights on each stage, `sums` what of the caches each stage has.
    """

    title: str
    layout: Layout
    ranks: tuple[Rank, ...]
    weights: Fold
    weights_name: str
    totals: tuple[int, ...]
    caches: Fold
    sums: tuple[Sums, ...]

    @overload
    def stages(self, context: int) -> Stages[int]: ...
    @overload
    def stages(self, context: Number) -> Stages[Number]: ...
    def stages(self, context: Number) -> Stages[Number]:
        """Return what each stage holds, with one request of a context."""
        values = self.caches.values(Workload.holding(1, context))
        requests = [values.total(sums) for sums in self.sums]
        return Stages(self.totals, requests, self.layout.data_parallel)

    def needed(self, batch: Int | IntArray, context: Int | IntArray) -> Number:
        """Return what weights and requests take on the device that needs most."""
        workload = Workload.holding(batch, context, replicas=self.layout.data_parallel)
        caches = self.caches
        values = workload.values(
            caches.counts,
            lambda bounds: max(self.totals) + sum([size * bounds[n] for n, size in caches.of()]),
        )
        needed: list[Number] = [
            held + values.total(sums) for held, sums in zip(self.totals, self.sums, strict=True)
        ]
        most, *others = needed
        for other in others:
            most = larger(most, other)
        return most

    def weights_on(self, number: int) -> Breakdown[Bytes]:
        """Return the weights on the first rank of a stage, with the working."""
        rank = self.ranks[number]
        title = f"Weights of {self.title} in {self.weights_name}{rank.title}"
        return FoldBreakdown(Bytes, title, self.weights.on(rank.stage), NOTHING)

    def request_on(self, number: int, context: int) -> Breakdown[Bytes]:
        """Return what a request holds on the first rank of a stage, with the working."""
        rank = self.ranks[number]
        title = f"KV cache per request{rank.title}"
        fold = self.caches.on(rank.stage)
        return FoldBreakdown(Bytes, title, fold, Workload.holding(1, context))


def placed(
    spec: ModelSpec, formats: Formats, tensor_parallel: Int, layout: Layout | None
) -> Placed:
    """Return what the devices of a layout hold; it is kept with the model."""
    check_spec(spec)
    return kept(spec.ledger, _placed, chosen(tensor_parallel, layout), formats)


def _placed(ledger: Ledger, layout: Layout, formats: Formats) -> Placed:
    elements, scheme = formats.caches(), formats.scheme(ledger)
    ranks = layout.first_ranks(ledger.spec)
    owner = owner_of(layout, ranks[0])
    weights = kept(ledger, weights_held, owner, scheme)
    caches = kept(ledger, caches_held, owner, elements, "ideal")
    return Placed(
        title=ledger.spec.name,
        layout=layout,
        ranks=ranks,
        weights=weights,
        weights_name=scheme.name,
        totals=tuple([total_on(weights, rank) for rank in ranks]),
        caches=caches,
        sums=tuple([caches.sum_on(rank.stage) for rank in ranks]),
    )


def owner_of(layout: Layout, rank: Rank) -> Owner:
    """Return the ranks in the same place of all stages."""
    return EVERYTHING if layout == ONE_DEVICE else Owner(rank, pipeline=True)


def total_on(weights: Fold, rank: Rank) -> int:
    """Return the bytes of the weights on the stage of a rank."""
    return sum([size for _, size in weights.sum_on(rank.stage)])
