"""Whether a batch of requests fits on the devices of a layout, with the working.

* `fit`: whether a batch of requests fits, with what is left or missing, and the working.
* `Fit`: its answer.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs

from llmcalc.boundary import whole_number
from llmcalc.breakdown import Breakdown
from llmcalc.described import Described
from llmcalc.folds.storage import Formats
from llmcalc.layouts import ONE_DEVICE, Layout
from llmcalc.memory.placed import Placed, Stages, fits, placed
from llmcalc.spec.model import ModelSpec
from llmcalc.units import Bytes, format_integer, format_quantity

if TYPE_CHECKING:
    from llmcalc.boundary import Int
    from llmcalc.folds.storage import StateFormat
    from llmcalc.formats import Format, Scheme

__all__ = ["Fit", "fit"]


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Fit(Described):
    """Whether a batch fits on one device, and the working. ``bool(fit)`` is ``fit.fits``.

    All figures are bytes on the device that is the tightest: number `rank` of the layout.
    `cache_bytes` is of one request; the device holds that of `requests` of the batch.
    """

    device_memory: int
    cache_bytes: Breakdown[Bytes]
    batch: int
    context: int
    layout: Layout = ONE_DEVICE
    rank: int = 0
    #: Weights and one request's cache on the first rank of each stage, where there are several.
    stages: tuple[tuple[int, int], ...] = attrs.field(default=(), repr=False)
    _placed: Placed = attrs.field(alias="placed", repr=False, eq=False)
    _stages_held: Stages[int] = attrs.field(alias="stages_held", repr=False, eq=False)
    #: The number of the tightest stage.
    _stage: int = attrs.field(alias="stage", repr=False, eq=False)

    def _values(self) -> tuple[Any, ...]:
        return (*super()._values(), self.weight_bytes)

    def __bool__(self) -> bool:
        return self.fits

    def __repr__(self) -> str:
        most = self.max_batch_size
        limit = "memory limits no batch" if most is None else f"largest batch {most}"
        return f"<Fit of {self.batch} x {self.context} tokens: {self.reason}; {limit}>"

    @cached_property
    def weight_bytes(self) -> Breakdown[Bytes]:
        """The weights on the device."""
        return self._placed.weights_on(self._stage)

    @property
    def needed_bytes(self) -> int:
        """What the weights and the whole batch need."""
        return self._stages_held.needed(self.batch)[self._stage]

    @property
    def requests(self) -> int:
        """How many requests of the batch the tightest device holds."""
        return self._stages_held.own(self.batch)

    @property
    def fits(self) -> bool:
        """Whether what is needed is at most the device's memory."""
        return self._stages_held.fits(self.batch, self.device_memory)

    @property
    def left_bytes(self) -> int:
        """What is left when the batch is in, or 0."""
        return max(0, self.device_memory - self.needed_bytes)

    @property
    def short_bytes(self) -> int:
        """What is missing for the batch to fit, or 0."""
        return max(0, self.needed_bytes - self.device_memory)

    @property
    def max_batch_size(self) -> int | None:
        """The most such requests that fit on all devices; `None` where they hold nothing."""
        return self._stages_held.most_requests(self.device_memory)

    @property
    def _weights(self) -> int:
        return self._placed.totals[self._stage]

    @property
    def _request(self) -> int:
        return self._stages_held.requests[self._stage]

    @property
    def reason(self) -> str:
        """One sentence: what fits or what does not, and by how much."""
        memory = format_quantity(self.device_memory, Bytes)
        if self.fits:
            return f"fits: {format_quantity(self.left_bytes, Bytes)} of {memory} are left"
        alone = not fits(self._weights, self.device_memory)
        what = "the weights alone need" if alone else "weights and cache need"
        needed = self._weights if alone else self.needed_bytes
        return (
            f"does not fit: {what} {format_quantity(needed, Bytes)}, the device has {memory}; "
            f"short by {format_quantity(needed - self.device_memory, Bytes)}"
        )

    def explain(self) -> str:
        """Return the working: weights, cache of one request, and the division."""
        left = self.device_memory - self._weights
        most = self.max_batch_size
        if not fits(self._weights, self.device_memory):
            batch = "max batch size = 0: the weights do not fit"
        elif most is None:
            batch = "max batch size: not limited by memory (requests hold nothing)"
        elif self.layout.devices > self.layout.tensor_parallel:
            replicas = self.layout.data_parallel
            batch = f"max batch size of all {self.layout.devices} devices = {most}"
            if replicas > 1:
                batch += f": {most // replicas} for each of {replicas} replicas"
        else:
            batch = (
                f"max batch size = floor({format_integer(left)} B left / "
                f"{format_integer(self._request)} B per request) "
                f"= {self.max_batch_size}"
            )
        return "\n".join(
            (self.weight_bytes.explain(), self.cache_bytes.explain(), batch, self.reason)
        )


def fit(
    spec: ModelSpec,
    *,
    device_memory: Int,
    context: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> Fit:
    """Return whether `batch` requests of `context` tokens fit on all devices, with the working.

    `device_memory` is in bytes, per device; `batch` is that of the whole layout. A batch that does
    not fit is an answer, not an error: `Fit.reason` says what is missing and `Fit.short_bytes`
    how much.

    >>> from llmcalc import GiB, ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> answer = memory.fit(
    ...     llama, device_memory=80 * GiB, context=1024, batch=8, weights="bf16", kv="bf16"
    ... )
    >>> answer.fits, answer.max_batch_size
    (True, 520)
    >>> memory.fit(
    ...     llama, device_memory=8 * GiB, context=1024, weights="bf16", kv="bf16"
    ... ).short_bytes
    7604805632
    """
    formats = Formats.given(weights, kv, state, index)
    held = placed(spec, formats, tensor_parallel, layout)
    tokens, number = whole_number(context, "context"), whole_number(batch, "batch")
    stages, tightest = held.stages(tokens), 0
    if len(held.ranks) > 1:
        needed = stages.needed(number)
        tightest = needed.index(max(needed))
    return Fit(
        device_memory=whole_number(device_memory, "device_memory"),
        cache_bytes=held.request_on(tightest, tokens),
        batch=number,
        context=tokens,
        layout=held.layout,
        rank=held.ranks[tightest].number,
        stages=stages.pairs if len(held.ranks) > 1 else (),
        placed=held,
        stages_held=stages,
        stage=tightest,
    )
