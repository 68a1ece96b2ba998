"""Pictures of attention, against the ridge point of a device.

* `prefill_intensity`: arithmetic intensity of prefill attention against context.
* `decode_intensity`: arithmetic intensity of decode attention against batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from llmcalc import hardware, roofline
from llmcalc.boundary import flag_argument, several, whole_number
from llmcalc.hardware import DeviceSpec
from llmcalc.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    VERMILLION,
    Look,
    draw,
    legend,
    logarithmic,
    new_axes,
    note,
    points_of,
    title,
)
from llmcalc.units import format_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from llmcalc.boundary import Int, IntArray
    from llmcalc.roofline import Algorithm

__all__ = ["decode_intensity", "prefill_intensity"]

#: The marks are hollow and of different sizes, so that lines that coincide can all be seen.
_LOOKS: Final = {
    "standard": Look(BLUE, "o", 9.0),
    "flash": Look(VERMILLION, "s", 6.5),
    "assignment": Look(GREEN, "^", 4.0),
}


def prefill_intensity(
    *,
    contexts: Sequence[Int] | IntArray,
    head_dim: Int,
    element_bytes: Int,
    algorithm: Algorithm | Sequence[Algorithm] = "standard",
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
    device: DeviceSpec | str | None = None,
    format: str = "bf16",
    ax: Axes | None = None,
) -> Axes:
    """Draw the arithmetic intensity of prefill attention, in FLOP/byte, against the context.

    At every context as many queries as keys are attended; the values are those of
    `llmcalc.roofline.attention_intensity`, whose arguments the others are. Several algorithms are
    drawn as one line each. With a `device` (a `llmcalc.DeviceSpec` or a catalogued name) its
    ridge point for `format` is drawn: work below that line is bound by memory, above it by
    compute.

    Draws on `ax`, or on a new figure, and returns the Axes. Raises `llmcalc.LlmcalcError` for
    arguments that the formula refuses, where the device has no peak for `format`, and
    (`MissingExtraError`) where matplotlib is not installed.

    >>> from llmcalc import plots
    >>> ax = plots.prefill_intensity(
    ...     contexts=[256, 512, 1024], head_dim=128, element_bytes=2,
    ...     algorithm=["standard", "flash"], device="H100-SXM-80GB",
    ... )
    >>> [round(float(y), 3) for y in ax.get_lines()[0].get_ydata()]
    [43.083, 51.7, 57.444]
    """
    points = points_of(contexts, "contexts")
    lines = [
        (
            name,
            _label(name),
            "-",
            [
                roofline.attention_intensity(
                    queries=context,
                    keys=context,
                    head_dim=head_dim,
                    element_bytes=element_bytes,
                    algorithm=name,
                    query_heads=query_heads,
                    kv_heads=kv_heads,
                    causal=causal,
                    softmax_flops=softmax_flops,
                )
                for context in points
            ],
        )
        for name in several(algorithm, "algorithm")
    ]
    ax = _intensities(points, lines, _ridge(device, format), ax)
    ax.set_xlabel("context (tokens)")
    kind = "Causal prefill" if causal else "Prefill"
    _title(
        ax,
        f"{kind} attention",
        query_heads,
        kv_heads,
        head_dim=head_dim,
        element_bytes=element_bytes,
    )
    return ax


def decode_intensity(
    *,
    batches: Sequence[Int] | IntArray,
    context: Int,
    head_dim: Int,
    element_bytes: Int,
    algorithm: Algorithm | Sequence[Algorithm] = "standard",
    shared_kv: bool | Sequence[bool] | None = None,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    softmax_flops: Int = 5,
    device: DeviceSpec | str | None = None,
    format: str = "bf16",
    ax: Axes | None = None,
) -> Axes:
    """Draw the arithmetic intensity of decode attention, in FLOP/byte, against the batch size.

    Each of the batch's requests attends `context` keys with one query. `shared_kv` says whether
    the whole batch reads one cache (a shared prefix) or each request its own; `None` is each
    algorithm's own convention, and a sequence of both draws both. The other arguments are those
    of `prefill_intensity`, and so are the ridge point, the result and the errors.

    >>> from llmcalc import plots
    >>> ax = plots.decode_intensity(
    ...     batches=[1, 8, 64], context=1024, head_dim=128, element_bytes=2,
    ...     shared_kv=[False, True], device="H100-SXM-80GB",
    ... )
    >>> [line.get_label() for line in ax.get_lines()[:2]]
    ['standard, own KV each', 'standard, one KV shared']
    """
    points = points_of(batches, "batches")
    keys = whole_number(context, "context", minimum=1)
    sharing: Sequence[bool | None] = (
        (None,) if shared_kv is None else several(shared_kv, "shared_kv")
    )
    for choice in sharing:
        if choice is not None:
            flag_argument(choice, "shared_kv")
    lines = [
        (
            name,
            _label(name, shared=name == "assignment" if shared is None else shared),
            "--" if shared and len(sharing) > 1 else "-",
            [
                roofline.attention_intensity(
                    queries=1,
                    keys=keys,
                    batch=batch,
                    head_dim=head_dim,
                    element_bytes=element_bytes,
                    algorithm=name,
                    shared_kv=shared,
                    query_heads=query_heads,
                    kv_heads=kv_heads,
                    softmax_flops=softmax_flops,
                )
                for batch in points
            ],
        )
        for name in several(algorithm, "algorithm")
        for shared in sharing
    ]
    ax = _intensities(points, lines, _ridge(device, format), ax)
    ax.set_xlabel("batch size (requests)")
    first = f"Decode attention at context {format_integer(keys)}"
    _title(ax, first, query_heads, kv_heads, head_dim=head_dim, element_bytes=element_bytes)
    return ax


#: One line: algorithm, label, line style, values.
_Line = tuple[str, str, str, list[float]]


def _intensities(
    points: list[int],
    lines: list[_Line],
    ridge: tuple[str, float] | None,
    ax: Axes | None,
) -> Axes:
    ax = new_axes(ax)
    for name, label, style, values in lines:
        draw(ax, points, values, label=label, look=_LOOKS[name], style=style)
    if ridge is not None:
        text, level = ridge
        ax.axhline(level, color=BLACK, linestyle=":", linewidth=1.5)
        left = _left_is_free(points, lines, level)
        place, offset = (0.0 if left else 1.0, level), (6 if left else -6, 3)
        note(ax, text, place, offset=offset, coordinates=ax.get_yaxis_transform())
    logarithmic(ax, points, base=2)
    legend(ax)
    ax.set_ylabel("arithmetic intensity (FLOP/byte)")
    return ax


def _left_is_free(points: list[int], lines: list[_Line], level: float) -> bool:
    """Whether the lines stay farther from a level, by ratio, in the left half than in the right."""
    middle = math.sqrt(min(points) * max(points))
    near = {True: math.inf, False: math.inf}
    for *_, values in lines:
        for point, value in zip(points, values, strict=True):
            side = point <= middle
            near[side] = min(near[side], abs(math.log(value / level)))
    return near[True] >= near[False]


def _ridge(device: DeviceSpec | str | None, format: str) -> tuple[str, float] | None:
    if device is None:
        return None
    spec = hardware.get(device)
    ridge = spec.ridge_point(format)
    return f"ridge of {spec.name}, {format}: {ridge:.3g} FLOP/byte", ridge


def _label(algorithm: str, *, shared: bool | None = None) -> str:
    if shared is None:
        return algorithm
    return f"{algorithm}, {'one KV shared' if shared else 'own KV each'}"


def _title(ax: Axes, first: str, *heads: Int, head_dim: Int, element_bytes: Int) -> None:
    query, kv = heads
    split = "" if query == 1 else f"{query} query heads, {kv} KV heads, "
    unit = "byte" if element_bytes == 1 else "bytes"
    sizes = f"{split}head_dim {head_dim}, {element_bytes} {unit} an element"
    title(ax, first, sizes)
