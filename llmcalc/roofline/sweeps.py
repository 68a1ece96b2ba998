r"""Steps of many kinds at once, as tables: devices, layouts, formats and workloads.

* `sweep`: the cost and the time of a step for every device, layout and format, over arrays of
  batches, new and past tokens.
* `frontier`: throughput against interactivity: the points that no other one beats.
* `Sweep`: the table that both give, with what was refused.

Times are bounds, as those of `llmcalc.roofline.step_time`. With :math:`b` requests, :math:`n` new
tokens in each, a step of :math:`t` seconds and :math:`d` devices

.. math:: \text{tokens per second} = \frac{b\,n}{t}, \qquad
          \text{per device} = \frac{b\,n}{t\,d}, \qquad \text{per user} = \frac{n}{t}

With pipeline stages one batch at a time is in flight, so that all but one stage wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import attrs

from llmcalc import formats, hardware, memory
from llmcalc.boundary import (
    broadcast_arrays,
    choice,
    integer_type,
    is_wide,
    larger,
    largest_element,
    several,
    whole_number,
)
from llmcalc.errors import InvalidValueError, LlmcalcError
from llmcalc.hardware import NUMBER_FORMATS, DeviceSpec
from llmcalc.layouts import ONE_DEVICE, Layout
from llmcalc.memory.placed import fits
from llmcalc.roofline.generations import decoding
from llmcalc.roofline.times import step_time
from llmcalc.spec.model import ModelSpec
from llmcalc.tables import Column, Table, column, labels
from llmcalc.units import Bytes, Flops, Seconds, TokensPerSecond

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.formats import Format, Scheme

__all__ = ["Sweep", "frontier", "sweep"]

#: Which of a step's times rates are of.
Time: TypeAlias = Literal["seconds", "bound_seconds"]

TIMES: Final = ("seconds", "bound_seconds")

#: What tells the combinations of a sweep apart.
LABELS: Final = ("device", "layout", "weights", "kv")

_RATE: Final = TokensPerSecond.symbol

#: The columns of numbers, with their units. ``"bound"`` is a text.
UNITS: Final[Mapping[str, str]] = {
    "devices": "",
    "batch": "requests",
    "new": "tokens",
    "past": "tokens",
    "context": "tokens",
    "flops": Flops.symbol,
    "bytes": Bytes.symbol,
    "seconds": Seconds.symbol,
    "communication_seconds": Seconds.symbol,
    "bound_seconds": Seconds.symbol,
    "bound": "",
    "tokens_per_second": _RATE,
    "tokens_per_second_per_device": _RATE,
    "tokens_per_second_per_user": _RATE,
    "needed_bytes": Bytes.symbol,
    "fits": "",
}


@attrs.frozen(eq=False, repr=False)
class Sweep(Table):
    """A table of steps, a row for each.

    Texts: `device`, `layout`, `weights`, `kv`, and `bound`, what sets ``bound_seconds``
    (``"compute"`` or ``"memory"``). `devices` is the number of devices of the layout; `batch`
    counts its requests, in each of which `new` tokens follow `past` ones, so that each holds
    `context` tokens after the step. `flops` and `bytes` are those of one device, `seconds`,
    ``communication_seconds`` and ``bound_seconds`` those of `llmcalc.roofline.StepTime`.
    ``needed_bytes`` is what weights and requests take on the device that needs most; the row
    `fits` where that is not more than there is.

    `refused` is a table of the combinations that have no rows, with the `reason` for each: the
    model does not allow the layout, the device has no peak for the format, or no known link.
    `model` is the name of the model.
    """

    model: str = ""
    refused: Table = attrs.field(factory=lambda: Table(()))

    def _remarks(self) -> Iterable[str]:
        yield from self.notes
        for row in self.refused:
            yield f"refused: {', '.join(row[name] for name in LABELS)}: {row['reason']}"


class _Combination(NamedTuple):
    """One device, layout and formats."""

    device: DeviceSpec
    layout: Layout
    weights: str | Format | Scheme
    kv: str | Format

    @property
    def texts(self) -> tuple[str, ...]:
        """What the table's labels say."""
        weights, kv = formats.name_of(self.weights), formats.name_of(self.kv)
        return self.device.name, str(self.layout), weights, kv


class _Sweeper:
    """What all combinations of a sweep have in common: the model and the conventions."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        time: str,
        share: float,
        reserved_bytes: Int,
        options: dict[str, Any],
    ) -> None:
        self.spec, self.time, self.options = spec, choice(time, "time", TIMES), options
        self.share, self.reserved_bytes = share, reserved_bytes
        self.caches: dict[str, Any] = {
            name: options[name] for name in ("state", "index") if name in options
        }
        if "mixed_with" in options:
            rule = "is not for sweeps, whose steps have requests of one kind: see step_time"
            raise InvalidValueError("mixed_with", options["mixed_with"], rule)
        if options.get("compute") is not None:
            choice(options["compute"], "compute", NUMBER_FORMATS)
        #: Arguments whose values the caller chose, whatever the combination.
        self.given = {"batch", "new", "past", "share", "reserved_bytes", *options}
        self.found: list[tuple[_Combination, dict[str, Any]]] = []
        self.refusals: list[tuple[_Combination, str]] = []

    def combinations(
        self,
        devices: Any,
        layouts: Any,
        tensor_parallel: Any,
        weights: Any,
        kv: Any,
    ) -> Iterator[_Combination]:
        """Give every device with every layout and format, all of them checked by themselves."""
        chips = [hardware.get(one, "devices") for one in several(devices, "devices")]
        degrees = several(tensor_parallel, "tensor_parallel")
        if layouts is None:
            layouts = [
                Layout(tensor_parallel=whole_number(degree, "tensor_parallel", minimum=1))
                for degree in degrees
            ]
        elif degrees != (1,):
            rule = "must not be given beside layouts, which have their own"
            raise InvalidValueError("tensor_parallel", tensor_parallel, rule)
        places = several(layouts, "layouts")
        for layout in places:
            if not isinstance(layout, Layout):
                raise InvalidValueError("layouts", layout, "must be Layouts")
        storages, keys = several(weights, "weights"), several(kv, "kv")
        for storage in storages:
            formats.scheme(storage, self.spec)
        for key in keys:
            formats.get(key, "kv")
        return map(_Combination._make, product(chips, places, storages, keys))

    def usable(self, device: DeviceSpec) -> int:
        """Return what of a device's memory there is for weights and requests."""
        return memory.usable_bytes(
            device.memory_bytes, share=self.share, reserved_bytes=self.reserved_bytes
        )

    def add(self, one: _Combination, workload: Callable[[_Combination], _Workload]) -> None:
        """Add the rows of a combination, or the reason why it has none."""
        try:
            self.found.append((one, self._columns(one, workload(one))))
        except LlmcalcError as refusal:
            if getattr(refusal, "field", None) in self.given:
                raise  # that is wrong with any device
            self.refusals.append((one, str(refusal)))

    def most(self, one: _Combination, context: int) -> int | None:
        """Return the most requests that fit; raise what is short where none does."""
        common: dict[str, Any] = {
            "device_memory": self.usable(one.device),
            "context": context,
            "weights": one.weights,
            "kv": one.kv,
            "layout": one.layout,
            **self.caches,
        }
        fit = memory.fit(self.spec, **common)
        if fit.max_batch_size == 0:
            raise LlmcalcError(f"no request of {context} tokens: {fit.reason}")
        return fit.max_batch_size

    def _columns(self, one: _Combination, workload: _Workload) -> dict[str, Any]:
        """Return the columns of numbers of a combination."""
        batch, new, past = workload
        formats_of: dict[str, Any] = {"weights": one.weights, "kv": one.kv}
        layout = None if one.layout == ONE_DEVICE else one.layout
        step = step_time(
            self.spec,
            one.device,
            batch=batch,
            new=new,
            past=past,
            layout=layout,
            **formats_of,
            **self.options,
        )
        context = past + new
        needed = memory.needed_bytes(
            self.spec, context=context, batch=batch, layout=layout, **formats_of, **self.caches
        )
        compute, moved = step.compute_seconds, step.memory_seconds
        bound = larger(compute, moved)
        time = step.seconds if self.time == "seconds" else bound
        tokens = new.astype("float64")
        per_second = batch.astype("float64") * tokens / time
        return {
            "devices": _like(batch, one.layout.devices),
            "batch": batch,
            "new": new,
            "past": past,
            "context": context,
            "flops": step.flops.total,
            "bytes": step.bytes.total,
            "seconds": step.seconds,
            "communication_seconds": step.communication_seconds,
            "bound_seconds": bound,
            "bound": compute > moved,
            "tokens_per_second": per_second,
            "tokens_per_second_per_device": per_second / one.layout.devices,
            "tokens_per_second_per_user": tokens / time,
            "needed_bytes": needed,
            "fits": fits(needed, self.usable(one.device)),
        }

    def table(self, notes: Iterable[str] = ()) -> Sweep:
        """Return the table of what was added."""
        import numpy as np

        sizes = [len(columns["batch"]) for _, columns in self.found]
        places = np.repeat(np.arange(len(sizes)), sizes)
        texts = [one.texts for one, _ in self.found]
        columns = [
            labels(name, [own[number] for own in texts], places)
            for number, name in enumerate(LABELS)
        ]
        for name, unit in UNITS.items():
            values = [own[name] for _, own in self.found]
            joined = np.concatenate(values) if values else np.zeros(0)
            if name == "bound":
                columns.append(Column(name, joined.astype("int8"), texts=("memory", "compute")))
            else:
                columns.append(column(name, joined, unit))
        beyond = 0
        if self.spec.max_positions is not None:
            [context] = [one.values for one in columns if one.name == "context"]
            beyond = int((context > self.spec.max_positions).sum())
        if beyond:
            own = f"{self.spec.name} was made for {self.spec.max_positions} positions"
            notes = (*notes, f"{own}, and {beyond} rows have longer contexts")
        refused = [(*one.texts, reason) for one, reason in self.refusals]
        return Sweep(
            tuple(columns),
            tuple(notes),
            model=self.spec.name,
            refused=Table(
                tuple(
                    labels(name, [row[number] for row in refused])
                    for number, name in enumerate((*LABELS, "reason"))
                )
            ),
        )


def _like(array: IntArray, value: int) -> IntArray:
    import numpy as np

    return np.full(array.shape, value, dtype=np.int64)


class _Workload(NamedTuple):
    """Requests, and the new and the past tokens of each: rows of integers of equal length."""

    batch: IntArray
    new: IntArray
    past: IntArray


def _workload(*, batch: object, new: object, past: object) -> _Workload:
    """Return a workload in 64 bits, or in Python integers where contexts could need more."""
    arrays = broadcast_arrays(batch=batch, new=new, past=past).values()
    made_of = integer_type(wide=is_wide(sum(map(largest_element, arrays))))
    return _Workload(*(array.astype(made_of).ravel() for array in arrays))


def sweep(
    spec: ModelSpec,
    *,
    devices: str | DeviceSpec | Iterable[str | DeviceSpec],
    layouts: Layout | Iterable[Layout] | None = None,
    tensor_parallel: Int | Iterable[Int] = 1,
    weights: str | Format | Scheme | Iterable[str | Format | Scheme],
    kv: str | Format | Iterable[str | Format],
    batch: Int | IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    time: Time = "seconds",
    share: float = 1.0,
    reserved_bytes: Int = 0,
    **options: Any,
) -> Sweep:
    """Return the cost and the time of steps as a table, a row for each.

    Every one of the `devices` is combined with every layout and every format of `weights` and
    `kv`; `batch`, `new` and `past` are integers or integer arrays, which broadcast together.
    ``tensor_parallel=[1, 2]`` is short for the layouts of these degrees. `options` are further
    arguments of `llmcalc.roofline.step_time`.

    Rates are of the `time` that is named: ``"seconds"``, the sum over the items with what devices
    exchange, or ``"bound_seconds"``, the floor without it. Of each device's memory a `share` is
    taken, less `reserved_bytes`; what does not fit has its row all the same, with `fits` false.

    Combinations that are refused have no rows: they are in `Sweep.refused` with the reason, and
    below the table where it is printed. What no combination could make right, such as an unknown
    device or a negative batch, raises `llmcalc.LlmcalcError`.

    >>> import numpy as np
    >>> from llmcalc import load_model, roofline
    >>> table = roofline.sweep(
    ...     load_model("llama-3-8b"), devices=["H100-SXM-80GB", "A100-SXM-80GB"],
    ...     tensor_parallel=[1, 3], weights="bf16", kv="bf16",
    ...     batch=np.array([1, 32]), new=1, past=4095,
    ... )
    >>> print(table.select("device", "layout", "batch", "bound_seconds", "fits").to_markdown())
    | device | layout | batch (requests) | bound_seconds (s) | fits |
    | --- | --- | ---: | ---: | ---: |
    | H100-SXM-80GB | one device | 1 | 0.004641 | yes |
    | H100-SXM-80GB | one device | 32 | 0.00961 | yes |
    | A100-SXM-80GB | one device | 1 | 0.007625 | yes |
    | A100-SXM-80GB | one device | 32 | 0.01579 | yes |
    <BLANKLINE>
    refused: H100-SXM-80GB, tp3, bf16, bf16: tensor_parallel = 3: must divide query_heads (32)
    <BLANKLINE>
    refused: A100-SXM-80GB, tp3, bf16, bf16: tensor_parallel = 3: must divide query_heads (32)
    """
    sweeper = _Sweeper(spec, time=time, share=share, reserved_bytes=reserved_bytes, options=options)
    workload = _workload(batch=batch, new=new, past=past)
    for one in sweeper.combinations(devices, layouts, tensor_parallel, weights, kv):
        sweeper.add(one, lambda _: workload)
    return sweeper.table()


def frontier(
    spec: ModelSpec,
    *,
    devices: str | DeviceSpec | Iterable[str | DeviceSpec],
    layouts: Layout | Iterable[Layout] | None = None,
    tensor_parallel: Int | Iterable[Int] = 1,
    weights: str | Format | Scheme | Iterable[str | Format | Scheme],
    kv: str | Format | Iterable[str | Format],
    context: Int,
    batch: Int | IntArray | None = None,
    time: Time = "seconds",
    share: float = 1.0,
    reserved_bytes: Int = 0,
    **options: Any,
) -> Sweep:
    """Return the decode steps with the best throughput for their interactivity.

    Throughput is ``tokens_per_second_per_device``, interactivity ``tokens_per_second_per_user``.
    Of all combinations and batches that fit into memory these are the points that no other one
    beats: none has as much of both and more of one. The order is that of interactivity.

    Each request holds `context` tokens after the step. `batch` are the numbers of requests to try,
    of the whole layout; by default the powers of two up to the most that fit, and these. The other
    arguments are those of `sweep`; unless `mla` is one of them, latent attention is absorbed. A
    combination in which no batch fits is in `Sweep.refused`.

    >>> import numpy as np
    >>> from llmcalc import load_model, roofline
    >>> table = roofline.frontier(
    ...     load_model("llama-3-8b"), devices="H100-SXM-80GB", tensor_parallel=[1, 2, 4],
    ...     weights="bf16", kv="bf16", context=4096, batch=np.array([1, 8, 32, 128]),
    ... )
    >>> for row in table:
    ...     per_user, per_device = (row[f"tokens_per_second_per_{of}"] for of in ("user", "device"))
    ...     print(f"{row['layout']:<10} {row['batch']:3} {per_user:4.0f} {per_device:5.0f}")
    one device 128   40  5065
    tp2        128   78  4969
    tp4        128  150  4788
    tp2         32  204  3265
    tp4         32  398  3186
    tp4          8  681  1362
    tp4          1  859   215
    >>> table.notes
    ('7 of 12 points: the others are beaten by one of these',)
    """
    import numpy as np

    sweeper = _Sweeper(
        spec,
        time=time,
        share=share,
        reserved_bytes=reserved_bytes,
        options=decoding(options),
    )
    tokens = whole_number(context, "context", minimum=1)
    tried = None if batch is None else _workload(batch=batch, new=1, past=tokens - 1)
    if tried is not None and not tried.batch.all():
        raise InvalidValueError("batch", 0, "must be at least 1")

    def fitting(one: _Combination) -> _Workload:
        most = sweeper.most(one, tokens)
        if tried is None:
            if most is None:
                rule = "must be given: memory limits no batch of requests that hold nothing"
                raise InvalidValueError("batch", None, rule)
            sizes = [2**power for power in range(most.bit_length())]
            return _workload(batch=np.unique([*sizes, most]), new=1, past=tokens - 1)
        if most is None:
            return tried
        chosen = _Workload._make(array[tried.batch <= most] for array in tried)
        if not len(chosen.batch):
            raise LlmcalcError(f"no batch of those tried: at most {most} requests fit")
        return chosen

    for one in sweeper.combinations(devices, layouts, tensor_parallel, weights, kv):
        sweeper.add(one, fitting)
    points = sweeper.table()
    best = points.pareto("tokens_per_second_per_user", "tokens_per_second_per_device")
    note = f"{len(best)} of {len(points)} points: the others are beaten by one of these"
    return attrs.evolve(best, notes=(note, *best.notes))
