"""Pictures of what the library computes (extra ``plot``).

Attention, against the ridge point of a device:

* `prefill_intensity`: arithmetic intensity of prefill attention against context.
* `decode_intensity`: arithmetic intensity of decode attention against batch size.

Measurements:

* `latency`: generation time with and without cache against prompt length.
* `LatencyRow`: what `latency` reads of a measurement.

Each function draws on the Axes it is given, or on one of a new figure, and returns it:
``ax.figure.savefig("plot.png")`` writes it to a file. Nothing is shown, and pyplot, which keeps
figures alive, is not used; matplotlib is imported when a picture is first drawn. Colours are
those of Okabe and Ito, "Color universal design" (2008), and lines differ in their marks as well,
so that they are told apart without colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Protocol

from llmcalc import hardware, roofline
from llmcalc.boundary import flag_argument, is_array, several, whole_number
from llmcalc.errors import InvalidValueError, MissingExtraError
from llmcalc.hardware import DeviceSpec
from llmcalc.units import format_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from llmcalc.boundary import Int, IntArray
    from llmcalc.roofline import Algorithm

__all__ = ["LatencyRow", "decode_intensity", "latency", "prefill_intensity"]

#: Colour, mark and its size, of the colours that stand out on white. The marks are hollow and of
#: different sizes, so that lines that coincide can all be seen.
_STYLES: Final = {
    "standard": ("#0072B2", "o", 9.0),
    "flash": ("#D55E00", "s", 6.5),
    "assignment": ("#009E73", "^", 4.0),
}
_RIDGE_COLOUR: Final = "#000000"
_UNCACHED: Final = ("#D55E00", "s", 6.0)
_CACHED: Final = ("#0072B2", "o", 6.0)

#: Beyond this many points marks hide the line.
_MOST_MARKS: Final = 24


class LatencyRow(Protocol):
    """What `latency` reads: the times of generating after a prompt of `prompt_length` tokens."""

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""

    @property
    def uncached_seconds(self) -> float:
        """Median time without a cache."""

    @property
    def cached_seconds(self) -> float:
        """Median time with a cache."""


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
    points = _points(contexts, "contexts")
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
    title = f"{kind} attention"
    _title(ax, title, query_heads, kv_heads, head_dim=head_dim, element_bytes=element_bytes)
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
    points = _points(batches, "batches")
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
    title = f"Decode attention at context {format_integer(keys)}"
    _title(ax, title, query_heads, kv_heads, head_dim=head_dim, element_bytes=element_bytes)
    return ax


def latency(rows: Iterable[LatencyRow], *, ax: Axes | None = None) -> Axes:
    """Draw the time of one generation, in seconds, with and without cache, against the prompt.

    `rows` are measurements, one a prompt length; each point is marked with how many times
    faster the cached generation was. Draws on `ax`, or on a new figure, and returns the Axes.
    Raises `llmcalc.LlmcalcError` without rows or for a time that is not a positive number, and
    (`MissingExtraError`) where matplotlib is not installed.

    >>> from types import SimpleNamespace as Row
    >>> from llmcalc import plots
    >>> ax = plots.latency([
    ...     Row(prompt_length=10, uncached_seconds=0.06, cached_seconds=0.02),
    ...     Row(prompt_length=1000, uncached_seconds=1.5, cached_seconds=0.05),
    ... ])
    >>> [text.get_text() for text in ax.texts]
    ['3x', '30x']
    """
    rows = list(rows)
    _points([row.prompt_length for row in rows], "prompt_length")
    rows.sort(key=lambda row: row.prompt_length)
    prompts = [row.prompt_length for row in rows]
    uncached = [_seconds(row.uncached_seconds, "uncached_seconds") for row in rows]
    cached = [_seconds(row.cached_seconds, "cached_seconds") for row in rows]
    ax = _new_axes(ax)
    _draw(ax, prompts, uncached, label="without cache", look=_UNCACHED)
    _draw(ax, prompts, cached, label="with cache", look=_CACHED)
    for prompt, slow, fast in zip(prompts, uncached, cached, strict=True):
        ax.annotate(
            f"{slow / fast:.2g}x" if slow < 100 * fast else f"{slow / fast:.0f}x",
            (prompt, max(slow, fast)),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize="small",
        )
    _scale(ax, prompts, base=10)
    ax.set_xlabel("prompt length (tokens)")
    ax.set_ylabel("median time (s)")
    ax.set_title(
        "Generation with and without cache\nlabels: speed-up by the cache", fontsize="medium"
    )
    return ax


#: One line: algorithm, label, line style, values.
_Line = tuple[str, str, str, list[float]]


def _intensities(
    points: list[int],
    lines: list[_Line],
    ridge: tuple[str, float] | None,
    ax: Axes | None,
) -> Axes:
    ax = _new_axes(ax)
    for name, label, style, values in lines:
        _draw(ax, points, values, label=label, look=_STYLES[name], style=style)
    if ridge is not None:
        text, level = ridge
        ax.axhline(level, color=_RIDGE_COLOUR, linestyle=":", linewidth=1.5)
        left = _left_is_free(points, lines, level)
        ax.annotate(
            text,
            (0.0 if left else 1.0, level),
            xycoords=ax.get_yaxis_transform(),
            xytext=(6 if left else -6, 3),
            textcoords="offset points",
            ha="left" if left else "right",
            va="bottom",
            fontsize="small",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )
    _scale(ax, points, base=2)
    ax.set_ylabel("arithmetic intensity (FLOP/byte)")
    return ax


def _draw(
    ax: Axes,
    points: list[int],
    values: list[float],
    *,
    label: str,
    look: tuple[str, str, float],
    style: str = "-",
) -> None:
    colour, mark, size = look
    ax.plot(
        points,
        values,
        color=colour,
        linestyle=style,
        marker=mark if len(points) <= _MOST_MARKS else "",
        markersize=size,
        markerfacecolor="none",
        label=label,
    )


def _left_is_free(points: list[int], lines: list[_Line], level: float) -> bool:
    """Whether the lines stay farther from a level, by ratio, in the left half than in the right."""
    middle = math.sqrt(min(points) * max(points))
    near = {True: math.inf, False: math.inf}
    for *_, values in lines:
        for point, value in zip(points, values, strict=True):
            side = point <= middle
            near[side] = min(near[side], abs(math.log(value / level)))
    return near[True] >= near[False]


def _scale(ax: Axes, points: Sequence[int], *, base: int) -> None:
    """Set logarithmic axes with plain numbers at the ticks, and a legend that hides nothing."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_xscale("log", base=base)
    ax.set_yscale("log")
    ax.margins(x=0.06, y=0.14)
    plain = FuncFormatter(
        lambda value, _: format_integer(int(value)) if value >= 1000 else f"{value:.6g}"
    )
    ticks = sorted(set(points))
    if len(ticks) <= 8 and all(b >= 1.4 * a for a, b in pairwise(ticks)):
        ax.set_xticks(ticks)
    else:
        ax.xaxis.set_major_locator(LogLocator(base=base, numticks=9))
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(
        LogLocator(base=10, subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,), numticks=20)
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(plain)
    ax.grid(visible=True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False, fontsize="small"
    )


def _new_axes(ax: Axes | None) -> Axes:
    try:
        import_module("matplotlib")
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise MissingExtraError("llmcalc.plots", "matplotlib", "plot") from None
    # Outside of the guard: an installation that is broken is not called missing.
    from matplotlib.axes import Axes as MatplotlibAxes
    from matplotlib.figure import Figure

    if ax is None:
        axes: Axes = Figure(figsize=(7.0, 4.6), layout="constrained").subplots()
        return axes
    if not isinstance(ax, MatplotlibAxes):
        raise InvalidValueError("ax", ax, "must be a matplotlib Axes or None")
    return ax


def _points(values: Any, field: str) -> list[int]:
    listed = values.ndim == 1 if is_array(values) else isinstance(values, Sequence)
    if not listed or isinstance(values, str):
        raise InvalidValueError(field, values, "must be a sequence of integers")
    points = [whole_number(value, field, minimum=1) for value in values]
    if not points:
        raise InvalidValueError(field, points, "must hold at least one integer")
    return points


def _seconds(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValueError(field, value, "must be a number of seconds")
    if not 0 < value < math.inf:
        raise InvalidValueError(field, value, "must be a positive number of seconds")
    return float(value)


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


def _title(ax: Axes, title: str, *heads: Int, head_dim: Int, element_bytes: Int) -> None:
    query, kv = heads
    split = "" if query == 1 else f"{query} query heads, {kv} KV heads, "
    unit = "byte" if element_bytes == 1 else "bytes"
    sizes = f"{split}head_dim {head_dim}, {element_bytes} {unit} an element"
    ax.set_title(f"{title}\n{sizes}", fontsize="medium")
