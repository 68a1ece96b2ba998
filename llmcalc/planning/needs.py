"""What layouts need for a workload in each of several formats: the rooms beside this one ask it.

* `Question`: a workload, the formats to try, and what layouts need for it.
* `Choice`: formats to try, and how wide they are.
* `Option`: a layout with formats, and what each of its stages holds.
* `Offer`: a device and what of its memory is usable; `offer` makes one of arguments.

What fits is said by `llmcalc.memory.placed.Stages`. A question keeps what its layouts have in
common: weights that are split alike are folded once, and so are caches.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from llmcalc import hardware
from llmcalc.boundary import whole_number
from llmcalc.errors import InvalidValueError, LlmcalcError
from llmcalc.folds.owners import Owner
from llmcalc.folds.pieces import Fold
from llmcalc.folds.storage import CacheFormats, Formats, caches_held, weights_held
from llmcalc.folds.workloads import Values, Workload
from llmcalc.hardware import DeviceSpec
from llmcalc.layouts import Layout, Rank, Stage
from llmcalc.memory.limits import usable_bytes
from llmcalc.memory.placed import Stages, placed
from llmcalc.planning.placements import DoesNotFit, Placement
from llmcalc.planning.possible import check, split_of
from llmcalc.spec.model import ModelSpec, check_spec

if TYPE_CHECKING:
    from llmcalc.boundary import Int
    from llmcalc.formats import Scheme

__all__ = ["Choice", "Offer", "Option", "Question", "offer"]

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
    stages: Stages
    needed: int


class Offer(NamedTuple):
    """A device, `None` where only its memory is known, and the bytes of it that are usable."""

    device: DeviceSpec | None
    usable: int


def offer(device: str | DeviceSpec | Int, share: float, reserved: Int) -> Offer:
    """Return a device, or bytes of memory, with what is usable of it."""
    found = hardware.get(device) if isinstance(device, str | DeviceSpec) else None
    size = whole_number(device, "device") if found is None else found.memory_bytes
    return Offer(found, usable_bytes(size, share=share, reserved_bytes=reserved))


class Question:
    """A workload and the formats to try: what layouts need for it, with nothing found twice.

    `refusal` says why a layout was passed over, by itself or in a format: the last one that was.
    """

    def __init__(
        self, spec: ModelSpec, context: Int, batch: Int, formats: Iterable[Formats]
    ) -> None:
        check_spec(spec)
        self.spec = spec
        self.context = whole_number(context, "context")
        self.batch = whole_number(batch, "batch")
        self.refusal: str | None = None
        self._schemes: list[Scheme] = []
        self._elements: list[CacheFormats] = []
        self.choices = [self._choice(own) for own in formats]
        self._cuts: dict[_Key, tuple[Stage, ...]] = {}
        self._weights: dict[_Key, Fold | None] = {}
        self._totals: dict[_Key, tuple[int, ...] | None] = {}
        self._caches: dict[_Key, tuple[Fold, Values]] = {}
        self._requests: dict[_Key, tuple[int, ...]] = {}

    def _choice(self, formats: Formats) -> Choice:
        alone = placed(self.spec, formats, 1, None).stages(self.context)
        return Choice(
            formats,
            _number(self._schemes, formats.scheme(self.spec.ledger)),
            _number(self._elements, formats.caches()),
            alone.weights[0],
            alone.requests[0],
        )

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
        found, batch = [], self.batch
        for layout in layouts:
            for choice in self.choices:
                weights = self._weights_on(layout, choice.weights)
                if weights is not None:
                    requests = self._requests_on(layout, choice.caches)
                    # Stages that hold the same are as tight.
                    held = dict.fromkeys(zip(weights, requests, strict=True))
                    stages = Stages(*zip(*held, strict=True), layout.data_parallel)
                    found.append(Option(layout, choice, stages, max(stages.needed(batch))))
        return found

    def placement(self, option: Option, offer: Offer) -> Placement:
        """Return an option on a device."""
        return Placement(
            spec=self.spec,
            device=offer.device,
            layout=option.layout,
            formats=option.choice.formats,
            context=self.context,
            batch=self.batch,
            usable_bytes=offer.usable,
            needed_bytes=option.needed,
            max_batch_size=option.stages.most_requests(offer.usable),
        )

    def shortfall(self, options: Sequence[Option], offers: Sequence[Offer]) -> DoesNotFit:
        """Return the option that is short of least, on the device that has most."""
        if not options:
            return DoesNotFit(closest=None, refusal=self.refusal)
        most = max(offers, key=lambda one: one.usable)
        least = min(options, key=lambda one: one.needed)
        return DoesNotFit(closest=self.placement(least, most))

    def _cut(self, layout: Layout) -> tuple[Stage, ...]:
        """Return the stages of a layout."""
        key = layout.pipeline_parallel, layout.stage_layers, layout.engine
        found = self._cuts.get(key)
        if found is None:
            found = self._cuts[key] = layout.stages(self.spec)
        return found

    def _weights_on(self, layout: Layout, number: int) -> tuple[int, ...] | None:
        """Return the weights on the first rank of each stage; `None` if that is refused."""
        split = split_of(layout), number
        key = *split, layout.pipeline_parallel, layout.stage_layers
        if key not in self._totals:
            if split not in self._weights:
                self._weights[split] = self._fold(layout, self._schemes[number])
            fold = self._weights[split]
            self._totals[key] = fold and tuple(
                [sum([size for _, size in fold.sum_on(stage)]) for stage in self._cut(layout)]
            )
        return self._totals[key]

    def _fold(self, layout: Layout, scheme: Scheme) -> Fold | None:
        try:
            return weights_held(self.spec.ledger, self._owner(layout), scheme)
        except InvalidValueError as refused:
            self.refusal = str(refused)
            return None

    def _requests_on(self, layout: Layout, number: int) -> tuple[int, ...]:
        """Return what one request holds on the first rank of each stage."""
        split = layout.tensor_parallel, layout.decode_context_parallel, layout.engine, number
        key = *split, layout.pipeline_parallel, layout.stage_layers
        if key not in self._requests:
            if split not in self._caches:
                elements = self._elements[number]
                held = caches_held(self.spec.ledger, self._owner(layout), elements)
                self._caches[split] = held, held.values(Workload.holding(1, self.context))
            fold, values = self._caches[split]
            self._requests[key] = tuple(
                [values.total(fold.sum_on(stage)) for stage in self._cut(layout)]
            )
        return self._requests[key]

    def _owner(self, layout: Layout) -> Owner:
        """Return the first ranks of all stages."""
        return Owner(Rank(layout, self._cut(layout)[0], 0, 0), pipeline=True)


def _number(known: list[T], one: T) -> int:
    """Return the place of a value among the known ones; it is added where it is a new one."""
    if one not in known:
        known.append(one)
    return known.index(one)
