r"""The least time of a step on a device, and what bounds it.

* `step_time`: the time of one step.
* `StepTime`: its answer, with the bound of the whole step, the items and what ranks exchange.
* `ItemTime`: one item of it.

A device computes at most at its peak rate, and moves at most its bandwidth. So an item takes at
least the longer of the two times, and a step at least the sum over its items if nothing of one
overlaps with another, and at least the longer of the two sums if everything does. What ranks
exchange takes the time that a rank's own link needs for what it sends, without help from the
network. No device reaches these: they are bounds, not forecasts. What the bounds rest on stands on
the page [Conventions](../explanation/conventions.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, cast

import attrs

from llmcalc import formats, hardware
from llmcalc.boundary import choice, is_array, larger, positive_number, positive_numbers
from llmcalc.breakdown import Breakdown
from llmcalc.described import DescribedArrays
from llmcalc.errors import InvalidValueError
from llmcalc.folds.breakdowns import FoldBreakdown
from llmcalc.folds.conventions import conventions
from llmcalc.folds.counts import ExpertReads, Sums
from llmcalc.folds.owners import owners_of
from llmcalc.folds.pieces import Operation
from llmcalc.folds.storage import Formats
from llmcalc.folds.workloads import Requests, Values, Workload, broadcast, evaluate
from llmcalc.hardware import NUMBER_FORMATS, DeviceSpec
from llmcalc.roofline.communication import Collective, Exchanges, exchanges, of_step
from llmcalc.roofline.products import products
from llmcalc.roofline.traffic import moves
from llmcalc.spec.kept import kept
from llmcalc.spec.ledger import ONE_ROW
from llmcalc.spec.model import Ledger, ModelSpec
from llmcalc.units import Bytes, Flops, Seconds, format_quantity

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.folds.storage import StateFormat
    from llmcalc.formats import Format, Scheme
    from llmcalc.layouts import Layout

__all__ = ["ItemTime", "StepTime", "step_time"]

#: What steps of at most so many requests and tokens do and move has a float for its time.
_LARGEST: Final = 2**128 - 1

#: What the FLOPs and the bytes of items are the sums of.
Items: TypeAlias = list[tuple[Sums, Sums]]


@attrs.frozen(repr=False, eq=False)
class ItemTime(DescribedArrays):
    """The least time of one item in all layers that have it; seconds are floats or arrays."""

    path: Operation
    flops: Any
    bytes: Any
    compute_seconds: Any
    memory_seconds: Any

    @property
    def seconds(self) -> Any:
        """The longer of the two times."""
        return larger(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> Any:
        """What takes longer, ``"compute"`` or ``"memory"``; an array for array arguments."""
        return _bound(self.compute_seconds, self.memory_seconds)

    @property
    def intensity(self) -> Any:
        """FLOPs per byte moved; infinite where nothing is."""
        return _ratio(self.flops, self.bytes)


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class StepTime(DescribedArrays):
    """The least time of a step on `device`, from its `flops` and `bytes`.

    Matrix products run at `peak_flops` per second. With array arguments every figure is an array.
    Under a layout the figures are those of the device that has most to do; with pipeline stages,
    of one device of each stage, since a batch passes one after another. `collectives` are what a
    rank exchanges with others, over a `link` of so many bytes per second and direction (`None`
    without others), each after `collective_latency_seconds`.
    """

    device: DeviceSpec
    peak_flops: int
    flops: Breakdown[Flops, Any]
    bytes: Breakdown[Bytes, Any]
    link: str | None = None
    link_bytes_per_second: float | None = None
    collective_latency_seconds: float = 0.0
    collectives: tuple[Collective, ...] = ()

    def __repr__(self) -> str:
        seconds = format_quantity(self.seconds, Seconds)
        bound = format_quantity(self.bound_seconds, Seconds)
        return f"<StepTime on {self.device.name}: {seconds}, at least {bound}>"

    @property
    def work(self) -> FoldBreakdown[Flops, Any]:
        """The FLOPs, with the fold that they are of."""
        return cast("FoldBreakdown[Flops, Any]", self.flops)

    @property
    def moved(self) -> FoldBreakdown[Bytes, Any]:
        """The bytes, with the fold that they are of."""
        return cast("FoldBreakdown[Bytes, Any]", self.bytes)

    @cached_property
    def items(self) -> tuple[ItemTime, ...]:
        """The items of the step, in the order of the model."""
        work, moved = self.work.values.total, self.moved.values.total
        found = ((key, work(flops), moved(size)) for key, flops, size in self._sums())
        return tuple(ItemTime(*one, *self._times(*one[1:])) for one in found)

    def _sums(self) -> Iterator[tuple[Operation, Sums, Sums]]:
        """Give what the FLOPs and the bytes of each item are the sums of."""
        done, read = self.work.fold.operations, self.moved.fold.operations
        for key, sums in read.items():
            yield key, done.get(key, ()), sums
        for key, sums in done.items():
            if key not in read:
                yield key, sums, ()

    def _times(self, flops: Any, moved: Any) -> tuple[Any, Any]:
        return (
            _per_second(flops, self.peak_flops),
            _per_second(moved, self.device.bandwidth_bytes_per_second),
        )

    @cached_property
    def items_seconds(self) -> Any:
        """Each item's longer time, summed."""
        work, moved = self.work, self.moved
        # What is the same for all contexts is summed apart: it has fewer different values.
        late_items = work.fold.late | moved.fold.late
        if self._shape is None:
            return self._add(late_items, work.values, moved.values)
        early: Items = []
        late: Items = []
        for key, flops, size in self._sums():
            (late if key in late_items else early).append((flops, size))
        return evaluate(
            (work.values, moved.values),
            lambda work, moved: self._add_arrays(early, work, moved),
            lambda begin, work, moved: begin + self._add_arrays(late, work, moved),
        )

    def _add(self, late_items: frozenset[Operation], work: Values, moved: Values) -> float:
        peak, bandwidth = float(self.peak_flops), float(self.device.bandwidth_bytes_per_second)
        early = late = 0.0
        for key, flops, size in self._sums():
            compute, memory = float(work.sum(flops)) / peak, float(moved.sum(size)) / bandwidth
            seconds = compute if compute > memory else memory
            if key in late_items:
                late += seconds
            else:
                early += seconds
        return early + late

    def _add_arrays(self, items: Items, work: Values, moved: Values) -> Any:
        found: dict[tuple[Sums, Sums], Any] = {}
        total: Any = 0.0
        for one in items:
            if one not in found:
                found[one] = larger(*self._times(work.sum(one[0]), moved.sum(one[1])))
            total = total + found[one]
        return total

    @cached_property
    def communication_seconds(self) -> Any:
        """The least time of what the ranks exchange, one exchange after another; 0 for one."""
        if self.link_bytes_per_second is None:
            return self._whole(0.0)
        sent = sum(one.sent_bytes for one in self.collectives)
        number = sum(one.count for one in self.collectives)
        link = _per_second(sent, self.link_bytes_per_second)
        return self._whole(link + number * self.collective_latency_seconds)

    @cached_property
    def seconds(self) -> Any:
        """Each item's longer time, summed, and the time of what is exchanged."""
        if not self.collectives:
            return self.items_seconds
        return self.items_seconds + self.communication_seconds

    @property
    def compute_seconds(self) -> Any:
        """The time of all matrix products at the peak rate."""
        return _per_second(self.flops.total, self.peak_flops)

    @cached_property
    def memory_bytes(self) -> Any:
        """The bytes of weights and caches, which any step has to move; activations excluded."""
        return self.moved.of(self._memory)

    @property
    def _memory(self) -> Sums:
        """The sum of all bytes but those of activations."""
        return self.moved.fold.of("weights", "cache read", "cache written")

    @property
    def memory_seconds(self) -> Any:
        """The time of all weight and cache bytes at full bandwidth; activations excluded."""
        return _per_second(self.memory_bytes, self.device.bandwidth_bytes_per_second)

    @property
    def bound_seconds(self) -> Any:
        """The floor: the longer of `compute_seconds` and `memory_seconds`."""
        if self._shape is None:
            return larger(self.compute_seconds, self.memory_seconds)
        work, moved = self.work.values, self.moved.values
        early, late = work.halves(self.work.fold.of())
        first, rest = moved.halves(self._memory)

        def begin(work: Values, moved: Values) -> tuple[Any, Any]:
            return work.sum(early) if early else None, moved.sum(first) if first else None

        def finish(begun: tuple[Any, Any], work: Values, moved: Values) -> Any:
            return larger(*self._times(work.sum(late, begun[0]), moved.sum(rest, begun[1])))

        return evaluate((work, moved), begin, finish)

    @property
    def bound(self) -> Any:
        """What sets the floor, ``"compute"`` or ``"memory"``; an array for array arguments."""
        return _bound(self.compute_seconds, self.memory_seconds)

    @property
    def intensity(self) -> Any:
        """FLOPs per byte moved. Below `ridge_point` memory binds, above it compute."""
        return _ratio(self.flops.total, self.bytes.total)

    @property
    def ridge_point(self) -> float:
        """The intensity at which compute and memory bind alike, in FLOPs per byte."""
        return self.peak_flops / self.device.bandwidth_bytes_per_second

    def model_flops_utilization(self, measured_seconds: Any) -> Any:
        """Return the share of the peak rate that a measured time amounts to (MFU).

        >>> from llmcalc import load_model, roofline
        >>> step = roofline.step_time(
        ...     load_model("llama-3-8b"), "H100-SXM-80GB", batch=1, new=4096, past=0,
        ...     weights="bf16", kv="bf16",
        ... )
        >>> round(step.model_flops_utilization(0.1), 3)
        0.623
        """
        return self.compute_seconds / positive_numbers(measured_seconds, "measured_seconds")

    def bandwidth_utilization(self, measured_seconds: Any) -> Any:
        """Return the share of the bandwidth that weights and caches take in a measured time (MBU).

        >>> from llmcalc import load_model, roofline
        >>> step = roofline.step_time(
        ...     load_model("llama-3-8b"), "H100-SXM-80GB", batch=1, new=1, past=4095,
        ...     weights="bf16", kv="bf16",
        ... )
        >>> round(step.bandwidth_utilization(0.006), 3)
        0.773
        """
        return self.memory_seconds / positive_numbers(measured_seconds, "measured_seconds")

    def explain(self) -> str:
        """Return the items by their time, with the totals."""
        title = f"{self.flops.title.replace('FLOPs of', 'Step of')} on {self.device.name}"
        if is_array(self.seconds):
            return f"{title}: arrays: see `items`, `seconds` and `bound_seconds`"
        rows = [(_name(item.path), item.seconds, item.bound) for item in self.items]
        for one in self.collectives:
            alone = attrs.evolve(self, collectives=(one,))
            row = f"{one.kind} after {_name(one.path)}", alone.communication_seconds, "link"
            rows.append(row)
        rows.sort(key=lambda row: -row[1])
        width = max((len(name) for name, _, _ in rows), default=0)
        lines = [title]
        lines += [f"  {name:<{width}}  {1e3 * time:9.4f} ms  {bound}" for name, time, bound in rows]
        lines.append(f"  sum {1e3 * self.seconds:.4f} ms")
        lines.append(
            f"  bound of the step {1e3 * self.bound_seconds:.4f} ms ({self.bound}; compute "
            f"{1e3 * self.compute_seconds:.4f} ms, memory {1e3 * self.memory_seconds:.4f} ms)"
        )
        return "\n".join(lines)

    @property
    def _shape(self) -> tuple[int, ...] | None:
        return self.work.values.shape

    def _whole(self, value: Any) -> Any:
        """Return a figure in the shape of all arguments."""
        return broadcast(value, self._shape)


def _per_second(amount: Any, rate: float) -> Any:
    """Return an amount divided by a rate, in floats, so that arrays give what integers give."""
    if is_array(amount):
        # Dividing integers makes them floats first, each as `float` does.
        return (amount.astype("float64") if amount.dtype.kind == "O" else amount) / float(rate)
    return float(amount) / float(rate)


def _ratio(flops: Any, moved: Any) -> Any:
    if is_array(flops) or is_array(moved):
        import numpy as np

        work, sizes = (np.asarray(value, dtype=np.float64) for value in (flops, moved))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(sizes == 0, np.inf, work / sizes)
    return flops / moved if moved else float("inf")


def _bound(compute: Any, memory: Any) -> Any:
    if is_array(compute) or is_array(memory):
        import numpy as np

        return np.where(compute > memory, "compute", "memory")
    return "compute" if compute > memory else "memory"


def _name(path: Operation) -> str:
    return ".".join(filter(None, path))


def step_time(
    spec: ModelSpec,
    device: str | DeviceSpec,
    *,
    batch: Int | IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    compute: str | None = None,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    activations: str | Format = "bf16",
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    attention: Literal["flash", "standard"] = "flash",
    mla: Literal["expanded", "absorbed"] = "expanded",
    experts: ExpertReads = "expected",
    query_tile: Int | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    mixed_with: Sequence[Requests] = (),
    link_bytes_per_second: float | None = None,
    collective_latency_seconds: float = 0.0,
) -> StepTime:
    """Return the least time of one step of a model on a device, or on several under a layout.

    The step is `flops`' and `bytes_moved`'s, whose arguments these are. Matrix products run at the
    device's dense peak in `compute`: by default in the number format that engines multiply most of
    the weights in (`llmcalc.formats.Format.number_format`) where the device has a peak for it, and
    otherwise in that of the activations. Raises `llmcalc.LlmcalcError` where the device has no
    peak for that either.

    Under a layout the devices exchange what `llmcalc.roofline.collectives` says, over the device's
    link to others of its kind, or if it has none over that to its host (`StepTime.link` says
    which), or at `link_bytes_per_second` in each direction. Each exchange takes
    `collective_latency_seconds` besides. Raises `llmcalc.LlmcalcError` where no link is known.

    >>> from llmcalc import ModelSpec, roofline
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> step = roofline.step_time(
    ...     llama, "H100-SXM-80GB", batch=1, new=1, past=4095, weights="bf16", kv="bf16"
    ... )
    >>> round(1e3 * step.bound_seconds, 2), step.bound
    (4.64, 'memory')
    >>> prefill = roofline.step_time(
    ...     llama, "H100-SXM-80GB", batch=1, new=4096, past=0, weights="bf16", kv="bf16"
    ... )
    >>> round(1e3 * prefill.bound_seconds, 1), prefill.bound
    (62.3, 'compute')
    """
    chip = hardware.get(device)
    [owner] = owners_of(spec, tensor_parallel, layout, pipeline=True)
    ledger, given = spec.ledger, Formats.given(weights, kv, state, index, activations)
    if compute is None:
        number = _number_format(ledger, chip, given)
    else:
        number = choice(compute, "compute", NUMBER_FORMATS)
    peak = chip.peak(number)
    rate = link_bytes_per_second
    rate = None if rate is None else positive_number(rate, "link_bytes_per_second")
    latency = positive_number(collective_latency_seconds, "collective_latency_seconds", zero=True)
    how = conventions(
        causal=causal,
        logits=logits,
        mla=mla,
        attention=attention,
        experts=experts,
        query_tile=query_tile,
    )
    workload = owner.workload(batch, new, past, mixed_with)
    workload.check_at_most(_LARGEST)
    work = products(ledger, owner, how)
    moved = moves(ledger, owner, how, given)
    link = _NO_LINK
    if owner.rank is not None:
        link = _link(chip, exchanges(ledger, owner, how, activations), workload, rate)
    return StepTime(
        device=chip,
        peak_flops=peak,
        flops=FoldBreakdown(Flops, f"FLOPs of {spec.name}{owner.title}", work, workload),
        bytes=FoldBreakdown(Bytes, f"Bytes moved by {spec.name}{owner.title}", moved, workload),
        link=link.name,
        link_bytes_per_second=link.bytes_per_second,
        collective_latency_seconds=latency if link.collectives else 0.0,
        collectives=link.collectives,
    )


def _number_format(ledger: Ledger, device: DeviceSpec, given: Formats) -> str:
    """Return the number format that most of the weights are multiplied in."""
    number = kept(ledger, _main_format, given.weights).number_format
    if number is not None and number in device.peak_flops:
        return number
    activations = given.element()
    if activations.number_format is None:
        rule = f"must be given: values in {activations.name} are multiplied in no number format"
        raise InvalidValueError("compute", None, rule)
    return activations.number_format


def _main_format(ledger: Ledger, weights: str | Format | Scheme) -> Format:
    """Return the format that most elements of the matrices in layers have."""
    scheme = formats.scheme(weights, ledger.spec)
    if scheme.uniform is not None:
        return scheme.uniform
    elements: dict[Format, int] = {}
    for tensor in ledger.tensors:
        if tensor.rows == ONE_ROW or not tensor.times:
            continue
        for format, layers in scheme.formats_of(tensor, ledger.numbers_of(tensor)):
            elements[format] = elements.get(format, 0) + layers * tensor.elements
    most = max(elements, key=elements.__getitem__, default=None)
    return most or formats.get("bf16")


class _Link(NamedTuple):
    """What a step exchanges, and over which link."""

    name: str | None
    bytes_per_second: float | None
    collectives: tuple[Collective, ...]


_NO_LINK: Final = _Link(None, None, ())


def _link(
    device: DeviceSpec, exchanged: Exchanges, workload: Workload, bytes_per_second: float | None
) -> _Link:
    found = of_step(exchanged, workload)
    if not found:
        return _NO_LINK
    name, rate = "given", bytes_per_second
    if rate is None and device.link_bytes_per_second_per_direction is not None:
        name, rate = device.link or "link", device.link_bytes_per_second_per_direction
    elif rate is None and device.host_link_bytes_per_second_per_direction is not None:
        name, rate = device.host_link or "host", device.host_link_bytes_per_second_per_direction
    if rate is None:
        rule = f"must be given: {device.name} has no figure for a link"
        raise InvalidValueError("link_bytes_per_second", None, rule)
    return _Link(name, float(rate), found)
