"""Pictures of sweeps: times and rates of many steps.

* `step_times`: the time of steps against batch, context or tokens.
* `throughput`: tokens per second against them.
* `frontier`: throughput against interactivity.

Each is drawn from the table that `llmcalc.roofline.sweep` or `llmcalc.roofline.frontier` gives.
Rows that differ in device, layout, formats or workload are lines of their own; the legend says in
what they differ, the title what they have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from llmcalc.boundary import choice
from llmcalc.errors import InvalidValueError
from llmcalc.plots.style import (
    BLACK,
    MOST_MARKS,
    Look,
    draw,
    legend,
    logarithmic,
    look,
    new_axes,
    note,
    plain_ticks,
    time_unit,
    title,
)
from llmcalc.roofline.sweeps import LABELS, TIMES, Sweep, Time
from llmcalc.units import format_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["frontier", "step_times", "throughput"]

#: What steps are drawn against.
Against: TypeAlias = Literal["batch", "context", "new", "past"]

#: Whose tokens are counted.
Per: TypeAlias = Literal["all", "device", "user"]

_AXES: Final[Mapping[str, str]] = {
    "batch": "batch (requests)",
    "context": "context (tokens)",
    "new": "new tokens of a request",
    "past": "past tokens of a request",
}

_RATES: Final[Mapping[str, tuple[str, str]]] = {
    "all": ("tokens_per_second", "tokens/s"),
    "device": ("tokens_per_second_per_device", "tokens/s per device"),
    "user": ("tokens_per_second_per_user", "tokens/s per user"),
}

#: More lines than this cannot be told apart.
_MOST_LINES: Final = 16

#: The line of what does not fit.
_DOTTED: Final = (0, (1.0, 2.0))

#: The size of a digit of a small text, how far texts stay from other points, and how far a text is
#: from its own.
_DIGIT, _RADIUS, _OFFSET = (5.6, 9.0), 7.0, 5.0

#: On which side of its point a text may be, the best one first.
_SIDES: Final = ((1, 1), (0, 1), (0, -1), (-1, -1))


class _Series(NamedTuple):
    """Rows that are one line: what they have in common, and their places in the table."""

    names: tuple[Any, ...]
    rows: list[int]


def _series(table: Sweep, keys: tuple[str, ...], field: str) -> list[_Series]:
    """Return the rows by what they have in common in some columns, in the order of the table."""
    found: dict[tuple[Any, ...], list[int]] = {}
    values = zip(*(table[key].tolist() for key in keys), strict=True)
    for number, names in enumerate(values):
        found.setdefault(names, []).append(number)
    if len(found) > _MOST_LINES:
        rule = f"would be {len(found)} lines, more than {_MOST_LINES}: select rows with `where`"
        raise InvalidValueError(field, table, rule)
    return [_Series(names, rows) for names, rows in found.items()]


def _words(keys: tuple[str, ...], names: tuple[Any, ...], chosen: Iterator[str] | set[str]) -> str:
    """Say what the chosen columns are."""
    words = []
    for key, name in zip(keys, names, strict=True):
        if key in chosen:
            text = format_integer(name) if isinstance(name, int) else name
            words.append(text if key in {"device", "layout"} else f"{key} {text}")
    return ", ".join(words)


def _checked(table: object) -> Sweep:
    if not isinstance(table, Sweep):
        raise InvalidValueError("table", table, "must be a table of llmcalc.roofline.sweep")
    if not len(table):
        reasons = [row["reason"] for row in table.refused]
        raise InvalidValueError("table", table, "; ".join(("must have rows", *reasons[:1])))
    return table


def _draw_lines(ax: Axes, table: Sweep, against: str, values: list[float], first: str) -> None:
    """Draw values of the table against one of its columns."""
    others = {"batch": ("new", "past"), "new": ("batch", "past"), "past": ("batch", "new")}
    if against == "context":
        # What follows one another is either a longer past or a longer prompt.
        against_past = len(set(table["past"].tolist())) > 1
        keys: tuple[str, ...] = (*LABELS, *others["past" if against_past else "new"])
    else:
        keys = (*LABELS, *others[against])
    series = _series(table, keys, "table")
    differ = {key for at, key in enumerate(keys) if len({one.names[at] for one in series}) > 1}
    points, fits = table[against].tolist(), table["fits"].tolist()
    for number, one in enumerate(series):
        own = look(number)
        if len(one.rows) > MOST_MARKS:
            own = own._replace(mark="")
        # A rate of 0 has no place on a logarithmic axis.
        rows = [row for row in sorted(one.rows, key=points.__getitem__) if values[row] > 0]
        inside = [row for row in rows if fits[row]]
        outside = [row for row in rows if not fits[row]]
        before = [row for row in inside if outside and points[row] < points[outside[0]]]
        label = _words(keys, one.names, differ) or table.model
        # A dotted line goes on from the last point that fits.
        for part, style, text in (
            (inside, own.style, label),
            (before[-1:] + outside, _DOTTED, ""),
        ):
            x, y = ([column[row] for row in part] for column in (points, values))
            draw(ax, x, y, label=text, look=own._replace(style=style))
    logarithmic(ax, points, base=2)
    if not all(fits):
        ax.plot([], [], color=BLACK, linestyle=_DOTTED, label="does not fit into memory")
    legend(ax, wanted=len(series) > 1 or not all(fits))
    ax.set_xlabel(_AXES[against])
    title(ax, f"{first}, {table.model}", _words(keys, series[0].names, {*keys} - differ))


def step_times(
    table: Sweep, *, against: Against, time: Time = "seconds", ax: Axes | None = None
) -> Axes:
    """Draw the times of the steps of a sweep against their batch, context, new or past tokens.

    `time` is ``"seconds"`` or ``"bound_seconds"``, as the columns are called. What does not fit
    into memory is dotted. Draws on `ax`, or on a new figure, and returns the Axes. Raises
    `llmcalc.LlmcalcError` for a table without rows or of too many lines, and
    (`MissingExtraError`) where matplotlib is not installed.

    >>> import numpy as np
    >>> from llmcalc import load_model, plots, roofline
    >>> table = roofline.sweep(
    ...     load_model("llama-3-8b"), devices=["H100-SXM-80GB", "A100-SXM-80GB"],
    ...     weights="bf16", kv="bf16", batch=2 ** np.arange(8), new=1, past=4095,
    ... )
    >>> ax = plots.step_times(table, against="batch")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('batch (requests)', 'time of a step (ms)')
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['H100-SXM-80GB', 'A100-SXM-80GB']
    """
    table = _checked(table)
    choice(against, "against", _AXES)
    seconds = table[choice(time, "time", TIMES)]
    factor, symbol = time_unit(float(seconds.max()))
    kind = "time" if time == "seconds" else "least time"
    ax = new_axes(ax)
    values = (factor * seconds).tolist()
    _draw_lines(ax, table, against, values, f"{kind.capitalize()} of a step")
    ax.set_ylabel(f"{kind} of a step ({symbol})")
    return ax


def throughput(table: Sweep, *, against: Against, per: Per = "all", ax: Axes | None = None) -> Axes:
    """Draw the tokens per second of a sweep against batch, context, new or past tokens.

    `per` counts the tokens of ``"all"`` requests, of these by ``"device"``, or those of one
    ``"user"``. The rest is as in `step_times`.

    >>> import numpy as np
    >>> from llmcalc import load_model, plots, roofline
    >>> table = roofline.sweep(
    ...     load_model("llama-3-8b"), devices="H100-SXM-80GB", tensor_parallel=[1, 2],
    ...     weights="bf16", kv="bf16", batch=2 ** np.arange(8), new=1, past=4095,
    ... )
    >>> plots.throughput(table, against="batch", per="device").get_ylabel()
    'tokens/s per device'
    """
    table = _checked(table)
    choice(against, "against", _AXES)
    name, ylabel = _RATES[choice(per, "per", _RATES)]
    ax = new_axes(ax)
    _draw_lines(ax, table, against, table[name].tolist(), "Throughput")
    ax.set_ylabel(ylabel)
    return ax


def frontier(table: Sweep, *, ax: Axes | None = None) -> Axes:
    """Draw throughput against interactivity, in tokens per second per device and per user.

    `table` is what `llmcalc.roofline.frontier` gives, or any other sweep. The points of each
    device, layout and format have a look of their own; a line joins the points that no other one
    beats. Texts are batches, where there is room. Draws on `ax`, or on a new figure, and returns
    the Axes. Raises `llmcalc.LlmcalcError` as `step_times` does.

    >>> from llmcalc import load_model, plots, roofline
    >>> table = roofline.frontier(
    ...     load_model("llama-3-8b"), devices="H100-SXM-80GB", tensor_parallel=[1, 2, 4, 8],
    ...     weights="bf16", kv="bf16", context=4096,
    ... )
    >>> ax = plots.frontier(table)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('tokens/s per user', 'tokens/s per device')
    """
    table = _checked(table)
    ax = new_axes(ax)
    (user, xlabel), (device, ylabel) = _RATES["user"], _RATES["device"]
    x, y, batch = (table[name].tolist() for name in (user, device, "batch"))
    keys = (*LABELS, "new", "context")
    series = _series(table, keys, "table")
    differ = {key for at, key in enumerate(keys) if len({one.names[at] for one in series}) > 1}
    best = table.pareto(user, device)
    ax.plot(best[user], best[device], color=BLACK, linewidth=0.8, zorder=1)
    for number, one in enumerate(series):
        own = look(number)
        draw(
            ax,
            [x[row] for row in one.rows],
            [y[row] for row in one.rows],
            label=_words(keys, one.names, differ) or table.model,
            look=Look(own.colour, own.mark, style="none"),
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(x=0.08, y=0.12)
    for axis in (ax.xaxis, ax.yaxis):
        plain_ticks(axis)
    for row, offset in _with_room(ax, x, y, list(map(str, batch))):
        note(ax, str(batch[row]), (x[row], y[row]), offset=offset, bbox=None)
    legend(ax, wanted=len(series) > 1)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    common = _words(keys, series[0].names, {*keys} - differ)
    title(ax, f"Throughput and interactivity, {table.model}", f"{common}; texts: batch")
    return ax


def _with_room(
    ax: Axes, x: list[float], y: list[float], texts: list[str]
) -> Iterator[tuple[int, tuple[float, float]]]:
    """Give the points that a text has room at, with how far it is from them."""
    figure = ax.get_figure(root=True)
    scale = 72 / (figure.dpi if figure is not None else 72)
    points = [scale * ax.transData.transform(place) for place in zip(x, y, strict=True)]
    boxes = [(a - _RADIUS, b - _RADIUS, a + _RADIUS, b + _RADIUS) for a, b in points]
    for row in sorted(range(len(x)), key=x.__getitem__):
        (x_point, y_point), width = points[row], len(texts[row]) * _DIGIT[0]
        for right, up in _SIDES:
            left = x_point + right * _OFFSET + (right - 1) * width / 2
            low = y_point + up * _OFFSET + (up - 1) * _DIGIT[1] / 2
            box = left, low, left + width, low + _DIGIT[1]
            if not any(_overlap(box, other) for n, other in enumerate(boxes) if n != row):
                boxes.append(box)
                yield row, (right * _OFFSET, up * _OFFSET)
                break


_Box: TypeAlias = tuple[float, float, float, float]


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
