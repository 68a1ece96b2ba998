"""Pictures of one step: where its items are on the roofline, and how long they take.

* `roofline`: what a device reaches at most against arithmetic intensity, and where the kinds of
  items of a step are.
* `time_breakdown`: the time of each item or kind of item, of computing and of moving bytes.

Items are of a kind by their group in the model. Attention and recurrent layers have two kinds:
their matrices, and what reads the cache or the state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, cast

import attrs

from llmcalc.boundary import choice, is_array
from llmcalc.errors import InvalidValueError
from llmcalc.folds.pieces import Operation
from llmcalc.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Look,
    legend,
    new_axes,
    note,
    plain_ticks,
    time_unit,
    title,
)
from llmcalc.roofline.times import StepTime

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["roofline", "time_breakdown"]

#: What the bars of a breakdown stand for.
By: TypeAlias = Literal["kind", "item"]

#: The kinds of items that have matrix products.
_LOOKS: Final[Mapping[str, Look]] = {
    "attention, matrices": Look(BLUE, "o"),
    "attention, cache": Look(VERMILLION, "s"),
    "feed-forward": Look(GREEN, "^"),
    "experts": Look(PURPLE, "D"),
    "recurrent, matrices": Look(ORANGE, "v"),
    "recurrent, state": Look(SKY, "P"),
    "head": Look(BLACK, "X"),
}

#: All other kinds, of which few have any.
_OTHER: Final = Look(ORANGE, "h")

#: Two steps are told apart by marks that are full or hollow.
_MOST_STEPS: Final = 2

#: So many bars are drawn; the shortest ones are put together.
_MOST_BARS: Final = 14

_TERA: Final = 1e12


class _Part(NamedTuple):
    """Some of the items of a step."""

    name: str
    flops: Any
    bytes: Any
    compute_seconds: float
    memory_seconds: float
    seconds: float

    def __add__(self, other: _Part) -> _Part:  # type: ignore[override]
        return _Part(self.name, *(a + b for a, b in zip(self[1:], other[1:], strict=True)))


def _parts(step: StepTime, by: str) -> dict[str, _Part]:
    """Return the items of a step, or their sums by kind."""
    pieces = step.moved.fold.pieces
    cached = {piece.operation for piece in pieces if piece.kind == "cache read"}
    parts: dict[str, _Part] = {}
    for item in step.items:
        name = _kind(item.path, cached) if by == "kind" else ".".join(filter(None, item.path))
        part = _Part(
            name,
            item.flops,
            item.bytes,
            item.compute_seconds,
            item.memory_seconds,
            item.seconds,
        )
        parts[name] = parts[name] + part if name in parts else part
    return parts


def _kind(operation: Operation, cached: set[Operation]) -> str:
    """Return the kind of an operation: its group, and of some groups what it reads."""
    group, reads = operation[0], operation in cached
    if group == "attention":
        return "attention, cache" if reads else "attention, matrices"
    if group == "recurrent":
        return "recurrent, state" if reads else "recurrent, matrices"
    return group.replace("_", "-")


def _one(step: object, field: str) -> StepTime:
    if not isinstance(step, StepTime):
        raise InvalidValueError(field, step, "must be what llmcalc.roofline.step_time returns")
    if is_array(step.seconds):
        raise InvalidValueError(field, step.seconds.shape, "must be one step, not an array of them")
    return step


def _name(step: StepTime) -> str:
    return step.flops.title.removeprefix("FLOPs of ")


def roofline(steps: StepTime | Mapping[str, StepTime], *, ax: Axes | None = None) -> Axes:
    """Draw the roofline of a device, and where the kinds of items of a step are below it.

    The line is the rate of matrix products, in TFLOP/s, that the device reaches at most with an
    arithmetic intensity, in FLOP per byte of its memory; left of the ridge point memory binds,
    right of it compute. A mark is the FLOPs of one kind of item by the bytes that it moves, and by
    its time; it is below the line where some of its items are bound by memory and others by
    compute. Its area is its share of the time of all items. Kinds without matrix products have no
    intensity and no mark. The star is the whole step, what devices exchange apart.

    `steps` is a `llmcalc.roofline.StepTime`, or two of them by the names that the legend calls
    them, the second one with hollow marks. Draws on `ax`, or on a new figure, and returns the
    Axes. Raises `llmcalc.LlmcalcError` for steps of array arguments, and (`MissingExtraError`)
    where matplotlib is not installed.

    >>> from llmcalc import load_model, plots, roofline
    >>> llama, device = load_model("llama-3-8b"), "H100-SXM-80GB"
    >>> formats = {"weights": "bf16", "kv": "bf16"}
    >>> ax = plots.roofline({
    ...     "decode": roofline.step_time(llama, device, batch=32, new=1, past=4095, **formats),
    ...     "prefill": roofline.step_time(llama, device, batch=1, new=4096, past=0, **formats),
    ... })
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('arithmetic intensity (FLOP/byte)', 'matrix products (TFLOP/s)')
    """
    named: Any = {"": steps} if isinstance(steps, StepTime) else steps
    if not isinstance(named, Mapping) or not 1 <= len(named) <= _MOST_STEPS:
        raise InvalidValueError("steps", steps, "must be a step, or a mapping of one or two")
    for step in named.values():
        _one(step, "steps")
    ax = new_axes(ax)
    points: list[tuple[float, float]] = []
    kinds: dict[str, Look] = {}
    for number, step in enumerate(named.values()):
        parts = [part for part in _parts(step, "kind").values() if part.flops]
        # The smaller marks lie on the larger ones.
        for part in sorted(parts, key=lambda part: -part.seconds):
            kinds[part.name] = _LOOKS.get(part.name, _OTHER)
            points.append((part.flops / part.bytes, part.flops / part.seconds / _TERA))
            area = 30 + 400 * part.seconds / step.items_seconds
            _mark(ax, points[-1], kinds[part.name], area, hollow=number > 0)
        points.append((step.intensity, step.flops.total / step.items_seconds / _TERA))
        _mark(ax, points[-1], Look(BLACK, "*"), 90.0, hollow=number > 0)
    roofs = {(s.device.name, s.peak_flops): s for s in named.values()}
    low, high = _ends(points, roofs.values())
    lines = []
    for number, step in enumerate(roofs.values()):
        lines.append(_roof(ax, step, low, high, "-" if number == 0 else "--"))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, high)
    bottom = min(*(y for _, y in points), *(low * _bandwidth(s) for s in roofs.values()))
    ax.set_ylim(bottom / 1.5, max(s.peak_flops for s in roofs.values()) / _TERA * 2.5)
    for axis in (ax.xaxis, ax.yaxis):
        plain_ticks(axis)
    ridges = [step.ridge_point for step in roofs.values()]
    for step in roofs.values():
        # Of two ridges the lower one has its text at the left, away from the other.
        _ridge(ax, step, left=step.ridge_point < max(ridges))
    ax.set_xlabel("arithmetic intensity (FLOP/byte)")
    ax.set_ylabel("matrix products (TFLOP/s)")
    names = dict.fromkeys(_name(step) for step in named.values())
    title(ax, " and ".join(names), "area: share of the time of the items; star: the whole step")
    legend(ax, [*_handles(kinds, list(named)), *lines])
    return ax


def _bandwidth(step: StepTime) -> float:
    return step.device.bandwidth_bytes_per_second / _TERA


def _ends(points: list[tuple[float, float]], roofs: Iterable[StepTime]) -> tuple[float, float]:
    """Return the ends of the axis of intensities."""
    values = [x for x, _ in points] + [step.ridge_point for step in roofs]
    return min(values) / 4, max(values) * 8


def _mark(ax: Axes, place: tuple[float, float], look: Look, area: float, *, hollow: bool) -> None:
    ax.scatter(
        [place[0]],
        [place[1]],
        s=area,
        marker=look.mark,
        facecolors="none" if hollow else look.colour,
        edgecolors=look.colour if hollow else "white",
        linewidths=1.4 if hollow else 0.6,
        alpha=None if hollow else 0.85,
        zorder=3,
    )


def _roof(ax: Axes, step: StepTime, low: float, high: float, style: str) -> Any:
    """Draw the line of a device, and return it."""
    peak, ridge = step.peak_flops / _TERA, step.ridge_point
    rate = step.device.bandwidth_bytes_per_second
    label = f"{step.device.name}: {peak:.4g} TFLOP/s, {rate / _TERA:.3g} TB/s"
    [line] = ax.plot(
        [low, ridge, high],
        [low * _bandwidth(step), peak, peak],
        color=BLACK,
        linestyle=style,
        linewidth=1.5,
        label=label,
        zorder=2,
    )
    return line


def _ridge(ax: Axes, step: StepTime, *, left: bool) -> None:
    """Mark the ridge point, and say where it is, above the axis."""
    ax.plot(
        [step.ridge_point] * 2,
        [ax.get_ylim()[0], step.peak_flops / _TERA],
        color=BLACK,
        linestyle=":",
        linewidth=1.0,
        zorder=1,
    )
    text = f"ridge {step.ridge_point:.3g} FLOP/byte"
    place, offset = (step.ridge_point, 0.0), (-4 if left else 4, 4)
    note(ax, text, place, offset=offset, coordinates=ax.get_xaxis_transform())


def _handles(kinds: Mapping[str, Look], names: list[str]) -> list[Any]:
    """Return what the legend shows: the kinds in the order of all kinds, then the steps."""
    from matplotlib.lines import Line2D

    def handle(label: str, look: Look, *, hollow: bool = False) -> Any:
        return Line2D(
            [],
            [],
            linestyle="none",
            marker=look.mark,
            color=look.colour,
            markerfacecolor="none" if hollow else look.colour,
            label=label,
        )

    order = [*_LOOKS, *kinds]
    handles = [handle(name, kinds[name]) for name in sorted(kinds, key=order.index)]
    if len(names) > 1:
        star = Look(BLACK, "*", 9.0)
        handles += [handle(name, star, hollow=n > 0) for n, name in enumerate(names)]
    return handles


def time_breakdown(step: StepTime, *, by: By = "kind", ax: Axes | None = None) -> Axes:
    """Draw how long the kinds of items of a step take at least, or ``by="item"`` each item.

    Each has a bar for computing at the peak rate and one for moving its bytes at full bandwidth;
    the longer one counts, and is printed with its share of the step's `seconds`. Of a kind the
    bars are sums over its items, and what is printed sums each item's longer time. What devices
    exchange has bars of its own. The largest are on top; beyond 14 bars the smallest ones are put
    together.

    Draws on `ax`, or on a new figure, and returns the Axes. Raises `llmcalc.LlmcalcError` for a
    step of array arguments, and (`MissingExtraError`) where matplotlib is not installed.

    >>> from llmcalc import load_model, plots, roofline
    >>> step = roofline.step_time(
    ...     load_model("llama-3-8b"), "H100-SXM-80GB", batch=32, new=1, past=4095,
    ...     weights="bf16", kv="bf16",
    ... )
    >>> ax = plots.time_breakdown(step)
    >>> [label.get_text() for label in ax.get_yticklabels()][:2]
    ['attention, cache', 'feed-forward']
    """
    one = _one(step, "step")
    choice(by, "by", ("kind", "item"))
    ax = new_axes(ax)
    parts = sorted(_parts(one, by).values(), key=lambda part: -part.seconds)
    exchanged = _exchanged(one)
    rows = _together(parts, _MOST_BARS - len(exchanged))
    bars: list[tuple[Any, ...]] = [
        (p.name, p.compute_seconds, p.memory_seconds, None, p.seconds) for p in rows
    ]
    bars += [(name, None, None, seconds, seconds) for name, seconds in exchanged.items()]
    bars.sort(key=lambda bar: -bar[-1])
    factor, symbol = time_unit(max(bar[-1] for bar in bars))
    styles = (
        (1, "computing", BLUE, ""),
        (2, "moving bytes", ORANGE, "///"),
        (3, "exchanging", GREEN, "..."),
    )
    for at, label, colour, hatch in styles:
        own = [(row, bar[at]) for row, bar in enumerate(bars) if bar[at] is not None]
        if own:
            offset = {1: -0.2, 2: 0.2, 3: 0.0}[at]
            ax.barh(
                [row + offset for row, _ in own],
                [factor * cast("float", seconds) for _, seconds in own],
                height=0.38,
                color=colour,
                edgecolor="white",
                linewidth=0.0,
                hatch=hatch,
                label=label,
            )
    longest = factor * max(max(filter(None, bar[1:])) for bar in bars)
    for row, bar in enumerate(bars):
        end = factor * max(filter(None, bar[1:]), default=0.0)
        note(ax, _share(bar[-1], one.seconds), (end, row), offset=(4, 0), bbox=None)
    ax.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.set_xlim(0, 1.35 * longest)
    ax.grid(visible=True, axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_xlabel(f"time ({symbol})")
    scale, unit = time_unit(one.seconds)
    title(
        ax,
        f"{_name(one)} on {one.device.name}",
        f"sum {scale * one.seconds:.4g} {unit}; bound of the step "
        f"{scale * one.bound_seconds:.4g} {unit} ({one.bound})",
    )
    legend(ax)
    return ax


def _share(seconds: float, whole: float) -> str:
    factor, symbol = time_unit(seconds)
    share = 100 * seconds / whole
    return f"{factor * seconds:.3g} {symbol}, {f'{share:.2g}' if share >= 0.1 else '< 0.1'} %"


def _exchanged(step: StepTime) -> dict[str, float]:
    """Return the time of what devices exchange, by its kind."""
    kinds = dict.fromkeys(one.kind for one in step.collectives)
    return {
        kind: attrs.evolve(
            step, collectives=tuple(one for one in step.collectives if one.kind == kind)
        ).communication_seconds
        for kind in kinds
    }


def _together(parts: list[_Part], most: int) -> list[_Part]:
    """Return the parts, the last ones together where there are more than so many."""
    if len(parts) <= most:
        return parts
    rest = parts[most - 1 :]
    total = rest[0]
    for part in rest[1:]:
        total = total + part
    return [*parts[: most - 1], total._replace(name=f"{len(rest)} others")]
