r"""The least time of a step on a device, and what bounds it.

* `step_time`: the time of one step.
* `StepTime`: its answer, with the bound of the whole step and the items.
* `ItemTime`: one item of it.

A device computes at most at its peak rate, and moves at most its bandwidth. So an item takes at
least the longer of the two times, and a step at least the sum over its items if nothing of one
overlaps with another, and at least the longer of the two sums if everything does. No device
reaches these: they are bounds, not forecasts.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import attrs

from llmcalc import formats, hardware
from llmcalc.boundary import is_array, larger
from llmcalc.breakdown import Breakdown
from llmcalc.described import Described
from llmcalc.hardware import DeviceSpec
from llmcalc.roofline.products import flops
from llmcalc.roofline.counts import ExpertReads
from llmcalc.roofline.traffic import bytes_moved
from llmcalc.spec.model import ModelSpec
from llmcalc.units import Bytes, Flops

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.formats import Format, Scheme

__all__ = ["ItemTime", "StepTime", "step_time"]

#: What bounds a time.
Bound: TypeAlias = Literal["compute", "memory"]


class ItemTime(NamedTuple):
    """The least time of one item in all layers that have it; seconds are floats or arrays."""

    path: tuple[str, ...]
    flops: Any
    bytes: Any
    compute_seconds: Any
    memory_seconds: Any

    @property
    def seconds(self) -> Any:
        """The longer of the two times."""
        return larger(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> Bound:
        """What takes the longer time; arrays have no single answer."""
        return "compute" if self.compute_seconds > self.memory_seconds else "memory"


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class StepTime(Described):
    """The least time of a step on `device`, from its `flops` and `bytes`.

    Matrix products run at `peak_flops` per second. With array arguments every figure is an array.
    """

    device: DeviceSpec
    peak_flops: int
    flops: Breakdown[Flops, Any]
    bytes: Breakdown[Bytes, Any]

    @cached_property
    def items(self) -> tuple[ItemTime, ...]:
        """The items of the step, in the order of the model."""
        work: dict[tuple[str, ...], Any] = {}
        moved: dict[tuple[str, ...], Any] = {}
        for product in self.flops.terms:
            key = _item(product.path)
            work[key] = work[key] + product.value if key in work else product.value
        for flow in self.bytes.terms:
            key = _item(flow.path[1:])
            moved[key] = moved[key] + flow.value if key in moved else flow.value
        bandwidth = self.device.bandwidth_bytes_per_second
        return tuple(
            ItemTime(
                key,
                work.get(key, 0),
                moved.get(key, 0),
                work.get(key, 0) / self.peak_flops,
                moved.get(key, 0) / bandwidth,
            )
            for key in {**moved, **work}
        )

    @cached_property
    def seconds(self) -> Any:
        """Each item's longer time, summed."""
        return sum(item.seconds for item in self.items)

    @property
    def compute_seconds(self) -> Any:
        """The time of all matrix products at the peak rate."""
        return self.flops.total / self.peak_flops

    @cached_property
    def memory_seconds(self) -> Any:
        """The time of all weight and cache bytes at full bandwidth; activations excluded."""
        moved = sum(t.value for t in self.bytes.terms if t.path[0] != "activations")
        return moved / self.device.bandwidth_bytes_per_second

    @property
    def bound_seconds(self) -> Any:
        """The floor: the longer of `compute_seconds` and `memory_seconds`."""
        return larger(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> Bound:
        """What the floor is set by; arrays have no single answer."""
        return "compute" if self.compute_seconds > self.memory_seconds else "memory"

    @property
    def intensity(self) -> Any:
        """FLOPs per byte moved."""
        return self.flops.total / self.bytes.total

    def explain(self) -> str:
        """Return the items by their time, with the totals."""
        if is_array(self.seconds):
            rows = "arrays: see `items`, `seconds` and `bound_seconds`"
            return (
                f"{self.flops.title.replace('FLOPs of', 'Step of')} on {self.device.name}: {rows}"
            )
        lines = [f"{self.flops.title.replace('FLOPs of', 'Step of')} on {self.device.name}"]
        items = sorted(self.items, key=lambda item: -item.seconds)
        names = [".".join(filter(None, item.path)) for item in items]
        width = max(map(len, names), default=0)
        lines += [
            f"  {name:<{width}}  {1e3 * item.seconds:9.4f} ms  {item.bound}"
            for name, item in zip(names, items, strict=True)
        ]
        lines.append(f"  sum of the items {1e3 * self.seconds:.4f} ms")
        lines.append(
            f"  bound of the step {1e3 * self.bound_seconds:.4f} ms ({self.bound}; compute "
            f"{1e3 * self.compute_seconds:.4f} ms, memory {1e3 * self.memory_seconds:.4f} ms)"
        )
        return "\n".join(lines)


def _item(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path of the item that a term belongs to: its name without what is behind it."""
    *place, name = path
    head = name.partition(".")[0]
    # Keys, values and latents are read by the attention of their layer.
    return (*place, head)


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
    state: str | Format = "fp32",
    index: str | Format | None = None,
    activations: str | Format = "bf16",
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    attention: Literal["flash", "standard"] = "flash",
    mla: Literal["expanded", "absorbed"] = "expanded",
    experts: ExpertReads = "expected",
) -> StepTime:
    """Return the least time of one step of a model on one device.

    The step is `flops`' and `bytes_moved`'s, whose arguments these are. Matrix products run at the
    device's dense peak in `compute`, by default in the format of the weights where the device has
    a peak for it, and otherwise in that of the activations. Raises `llmcalc.LlmcalcError` where
    the device has no peak for that either.

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
    number = compute
    if number is None:
        wide = formats.get(activations, "activations").name
        number = weights if isinstance(weights, str) and weights in chip.peak_flops else wide
    workload: dict[str, Any] = {"batch": batch, "new": new, "past": past}
    work = cast("Any", flops)(spec, **workload, causal=causal, logits=logits, mla=mla)
    moved = cast("Any", bytes_moved)(
        spec,
        **workload,
        weights=weights,
        kv=kv,
        state=state,
        index=index,
        activations=activations,
        causal=causal,
        logits=logits,
        attention=attention,
        mla=mla,
        experts=experts,
    )
    return StepTime(device=chip, peak_flops=chip.peak(number), flops=work, bytes=moved)
