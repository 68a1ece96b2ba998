"""Pictures of memory.

* `memory_stack`: weights, cache and what is free against context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from llmcalc import formats, hardware, memory
from llmcalc.boundary import whole_number
from llmcalc.errors import InvalidValueError
from llmcalc.hardware import DeviceSpec
from llmcalc.plots.style import (
    BLACK,
    BLUE,
    ORANGE,
    legend,
    new_axes,
    note,
    plain_numbers,
    points_of,
    title,
)
from llmcalc.units import GiB, format_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from llmcalc.boundary import Int, IntArray
    from llmcalc.folds.storage import StateFormat
    from llmcalc.formats import Format, Scheme
    from llmcalc.layouts import Layout
    from llmcalc.spec.model import ModelSpec

__all__ = ["memory_stack"]

#: How far above the capacity the axis may go.
_MOST: Final = 1.5


def memory_stack(
    spec: ModelSpec,
    *,
    device: str | DeviceSpec,
    contexts: Sequence[Int] | IntArray,
    batch: Int = 1,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    share: float = 1.0,
    reserved_bytes: Int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the memory of a device in GiB, weights, cache and what is free, against the context.

    `batch` requests have that context each; of a layout it is the device that needs most. The
    line is what can be used of the device: a `share` of its memory, less `reserved_bytes`. Where
    more is needed, the cache goes above it. The longest context that fits is marked where it is
    within the picture. The other arguments are those of `llmcalc.memory.fit`.

    Draws on `ax`, or on a new figure, and returns the Axes. Raises `llmcalc.LlmcalcError` for
    what `llmcalc.memory.fit` refuses and for less than two contexts, and (`MissingExtraError`)
    where matplotlib is not installed.

    >>> from llmcalc import load_model, plots
    >>> ax = plots.memory_stack(
    ...     load_model("llama-3-8b"), device="H100-SXM-80GB", contexts=[1, 4096, 8192], batch=32,
    ...     weights="bf16", kv="bf16",
    ... )
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('context (tokens)', 'memory of a device (GiB)')
    """
    chip = hardware.get(device)
    points = sorted(set(points_of(contexts, "contexts")))
    if len(points) < 2:
        raise InvalidValueError("contexts", points, "must hold at least two different contexts")
    requests = whole_number(batch, "batch", minimum=1)
    usable = memory.usable_bytes(chip.memory_bytes, share=share, reserved_bytes=reserved_bytes)
    fits = [
        memory.fit(
            spec,
            device_memory=usable,
            context=context,
            batch=requests,
            weights=weights,
            kv=kv,
            state=state,
            index=index,
            tensor_parallel=tensor_parallel,
            layout=layout,
        )
        for context in points
    ]
    longest = memory.max_context(
        spec,
        device_memory=usable,
        batch=requests,
        weights=weights,
        kv=kv,
        state=state,
        index=index,
        tensor_parallel=tensor_parallel,
        layout=layout,
    )
    ax = new_axes(ax)
    _stack(ax, points, fits, chip.memory_bytes)
    ax.set_xlim(points[0], points[-1])
    needed = max(fit.needed_bytes for fit in fits)
    top = max(1.08 * chip.memory_bytes, min(1.03 * needed, _MOST * usable))
    ax.set_ylim(0, top / GiB)
    if longest is not None and points[0] < longest < points[-1]:
        _mark(ax, longest, (longest - points[0]) / (points[-1] - points[0]))
    plain_numbers(ax.xaxis)
    ax.set_xlabel("context (tokens)")
    ax.set_ylabel("memory of a device (GiB)")
    legend(ax)
    requested = f"{format_integer(requests)} request{'s' if requests > 1 else ''}"
    where = chip.name if fits[0].layout.devices == 1 else f"{chip.name}, {fits[0].layout}"
    title(
        ax,
        f"{spec.name}, {requested} on {where}",
        f"weights {formats.name_of(weights)}, kv {formats.name_of(kv)}",
    )
    return ax


def _stack(ax: Axes, points: list[int], fits: list[memory.Fit], whole: int) -> None:
    """Draw the layers, from the bottom, and the lines of what there is."""
    usable = fits[0].device_memory
    held = [fit.weight_bytes.total / GiB for fit in fits]
    needed = [fit.needed_bytes / GiB for fit in fits]
    nothing, all_of_it = [0.0] * len(points), [usable / GiB] * len(points)
    layers = (
        (nothing, held, "weights", BLUE, ""),
        (held, needed, "cache", ORANGE, "///"),
        (nothing, all_of_it, "free", "#eeeeee", ""),
    )
    for number, (low, high, label, colour, hatch) in enumerate(layers):
        ax.fill_between(
            points,
            low,
            high,
            label=label,
            facecolor=colour,
            edgecolor="white",
            hatch=hatch,
            lw=0,
            zorder=1.0 if number < 2 else 0.9,  # what is free is what nothing else covers
        )
    ax.axhline(
        usable / GiB, color=BLACK, linewidth=1.5, label=f"can be used: {usable / GiB:.4g} GiB"
    )
    if usable < whole:
        own = f"all memory: {whole / GiB:.4g} GiB"
        ax.axhline(whole / GiB, color=BLACK, linestyle="--", linewidth=1.0, label=own)


def _mark(ax: Axes, longest: memory.ContextLimit, place: float) -> None:
    """Mark the longest context, and say what limits it, at the side with more room."""
    what = "tokens fit" if longest.limited_by == "memory" else "positions"
    ax.axvline(longest, color=BLACK, linestyle=":", linewidth=1.2)
    note(
        ax,
        f"{format_integer(longest)} {what}",
        (longest, 0.0),
        offset=(5 if place < 0.5 else -5, 5),
        coordinates=ax.get_xaxis_transform(),
    )
