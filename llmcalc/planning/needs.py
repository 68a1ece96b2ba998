"""What layouts need for a workload in each of several formats: the rooms beside this one ask it.

* `Demand`: a model, and the requests that are to be served.
* `Question`: a demand, the formats to try, and what layouts need for it.
* `Choice`: formats to try, and how wide they are.
* `Option`: a layout with formats, and what each of its stages holds.
* `Offer`: a device and what of its memory is usable; `offer` makes one of arguments.

What fits is said by `llmcalc.memory.placed`. A question keeps what its layouts have in
common: weights that are split alike are folded once, and so are caches.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from llmcalc import hardware
from llmcalc.boundary import whole_number
from llmcalc.errors import InvalidValueError, LlmcalcError
from llmcalc.folds.owners import Owner
from llmcalc.folds.pieces import Fold, Where
from llmcalc.folds.storage import CacheFormats, Formats, caches_held, weights_by_place
from llmcalc.folds.workloads import Values, Workload
from llmcalc.hardware import DeviceSpec
from llmcalc.layouts import ONE_DEVICE, Layout, Rank, Stage
from llmcalc.memory.limits import usable_bytes
from llmcalc.memory.placed import Stages, fits
from llmcalc.planning.placements import DoesNotFit, Placement
from llmcalc.planning.possible import check, split_of
from llmcalc.spec.model import ModelSpec, check_spec

if TYPE_CHECKING:
    from llmcalc.boundary import Int
    from llmcalc.formats import Scheme

__all__ = ["Choice", "Demand", "Offer", "Option", "Question", "offer"]

T = TypeVar("T")

#: What of a layout, and which of the formats, something depends on.
_Key: TypeAlias = tuple[Hashable, ...]


class Choice(NamedTuple):
    """Formats to try; choices with the same number of `weights` or of `caches` have the same.

    The whole model takes `weight_bytes` in them, and a whole request `request_bytes`: what makes
    one format wider than another.
    """

    formats: Formats
    weights: int
    caches: int
    weight_bytes: int
    request_bytes: int


class Option(NamedTuple):
    """A layout with formats: what its stages hold, and what the tightest device needs."""

    layout: Layout
    choice: Choice
    stages: Stages[int]
    needed: int

    def fits(self, one: Offer) -> bool:
        """Whether it fits what is offered."""
        return fits(self.needed, one.usable)


class Offer(NamedTuple):
    """A device, `None` where only its memory is known, and the bytes of it that are usable."""

    device: DeviceSpec | None
    usable: int


def offer(device: str | DeviceSpec | Int, share: float, reserved: Int) -> Offer:
    """Return a device, or bytes of memory, with what is usable of it."""
    found = hardware.get(device) if isinstance(device, str | DeviceSpec) else None
    size = whole_number(device, "device") if found is None else found.memory_bytes
    return Offer(found, usable_bytes(size, share=share, reserved_bytes=reserved))


class Demand(NamedTuple):
    """A model, and `batch` requests of `context` tokens that are to be served."""

    spec: ModelSpec
    context: int
    batch: int

    def placement(self, option: Option, one: Offer) -> Placement:
        """Return an option on a device."""
        return Placement(
            spec=self.spec,
            device=one.device,
            layout=option.layout,
            formats=option.choice.formats,
            context=self.context,
            batch=self.batch,
            usable_bytes=one.usable,
            needed_bytes=option.needed,
            max_batch_size=option.stages.most_requests(one.usable),
        )


class Question:
    """A demand and the formats to try: what layouts need for it, with nothing found twice.

    `refusal` says why a layout was passed over, by itself or in a format: the last one that was.
    """

    def __init__(
        self, spec: ModelSpec, context: Int, batch: Int, formats: Iterable[Formats]
    ) -> None:
        check_spec(spec)
        self.spec = spec
        numbers = whole_number(context, "context"), whole_number(batch, "batch")
        self.demand: Demand = Demand(spec, *numbers)
        self.refusal: str | None = None
        self._schemes: list[Scheme] = []
        self._elements: list[CacheFormats] = []
        self._cuts: dict[_Key, tuple[Stage, ...]] = {}
        self._splits: dict[_Key, list[dict[Where, int] | None]] = {}
        self._weights: dict[_Key, list[tuple[int, ...] | None]] = {}
        self._caches: dict[_Key, list[tuple[Fold, Values]]] = {}
        self._requests: dict[_Key, list[tuple[int, ...]]] = {}
        numbered = [
            (
                own,
                _number(self._schemes, own.scheme(spec.ledger)),
                _number(self._elements, own.caches()),
            )
            for own in formats
        ]
        weights, requests = self._weights_on(ONE_DEVICE), self._requests_on(ONE_DEVICE)
        self.choices: list[Choice] = [
            Choice(own, scheme, elements, sum(weights[scheme] or ()), sum(requests[elements]))
            for own, scheme, elements in numbered
        ]

    def allowed(self, layouts: Iterable[Layout]) -> Iterator[Layout]:
        """Give those of some layouts that the model allows."""
        for layout in layouts:
            try:
                check(self.spec, layout)
                self._cut(layout)
            except LlmcalcError as refused:
                self.refusal = str(refused)
            else:
                yield layout

    def options(self, layouts: Iterable[Layout]) -> list[Option]:
        """Return what layouts need in each of the formats, unless they are refused in them.

        The model allows all of the layouts.
        """
        found, batch = [], self.demand.batch
        for layout in layouts:
            weights, requests = self._weights_on(layout), self._requests_on(layout)
            for choice in self.choices:
                held = weights[choice.weights]
                if held is not None:
                    # Stages that hold the same are as tight.
                    pairs = dict.fromkeys(zip(held, requests[choice.caches], strict=True))
                    stages = Stages(*_columns(pairs), layout.data_parallel)
                    found.append(Option(layout, choice, stages, max(stages.needed(batch))))
        return found

    def shortfall(self, options: Sequence[Option], offers: Sequence[Offer]) -> DoesNotFit:
        """Return the option that is short of least, on the device that has most."""
        if not options:
            return DoesNotFit(closest=None, refusal=self.refusal)
        most = max(offers, key=lambda one: one.usable)
        least = min(options, key=lambda one: one.needed)
        return DoesNotFit(closest=self.demand.placement(least, most))

    def _cut(self, layout: Layout) -> tuple[Stage, ...]:
        """Return the stages of a layout."""
        key = layout.pipeline_parallel, layout.stage_layers, layout.engine
        found = self._cuts.get(key)
        if found is None:
            found = self._cuts[key] = layout.stages(self.spec)
        return found

    def _weights_on(self, layout: Layout) -> list[tuple[int, ...] | None]:
        """Return the weights on each stage in each of the formats; `None` if that is refused."""
        split = split_of(layout)
        key = *split, layout.pipeline_parallel, layout.stage_layers
        found = self._weights.get(key)
        if found is None:
            if split not in self._splits:
                self._splits[split] = [self._by_place(layout, one) for one in self._schemes]
            cut = self._cut(layout)
            found = self._weights[key] = [
                None if held is None else tuple([_on(stage, held) for stage in cut])
                for held in self._splits[split]
            ]
        return found

    def _by_place(self, layout: Layout, scheme: Scheme) -> dict[Where, int] | None:
        """Return the weights in one layer of each place; `None` if that is refused."""
        try:
            return weights_by_place(self.spec.ledger, self._owner(layout), scheme)
        except InvalidValueError as refused:
            self.refusal = str(refused)
            return None

    def _requests_on(self, layout: Layout) -> list[tuple[int, ...]]:
        """Return what one request holds on each stage in each of the formats."""
        split = layout.tensor_parallel, layout.decode_context_parallel, layout.engine
        key = *split, layout.pipeline_parallel, layout.stage_layers
        found = self._requests.get(key)
        if found is None:
            if split not in self._caches:
                owner, one = self._owner(layout), Workload.holding(1, self.demand.context)
                folds = [caches_held(self.spec.ledger, owner, own) for own in self._elements]
                self._caches[split] = [(fold, fold.values(one)) for fold in folds]
            cut = self._cut(layout)
            found = self._requests[key] = [
                tuple([values.total(fold.sum_on(stage)) for stage in cut])
                for fold, values in self._caches[split]
            ]
        return found

    def _owner(self, layout: Layout) -> Owner:
        """Return the first ranks of all stages."""
        return Owner(Rank(layout, self._cut(layout)[0], 0, 0), pipeline=True)


def _on(stage: Stage, held: dict[Where, int]) -> int:
    """Return what a stage has of what stands in layers and beside them."""
    return sum([where.on(stage) * each for where, each in held.items()])


def _columns(pairs: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the first of each pair, and the second."""
    first, second = zip(*pairs, strict=True)
    return first, second


def _number(known: list[T], one: T) -> int:
    """Return the place of a value among the known ones; it is added where it is a new one."""
    if one not in known:
        known.append(one)
    return known.index(one)
