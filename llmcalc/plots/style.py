"""What the pictures have in common: colours, marks, axes, ticks and legends.

* `new_axes`: the Axes to draw on.
* `Look`, `look`: colours and marks that are told apart; `draw`: a line in one of them.
* `logarithmic`, `plain_ticks`: logarithmic axes with plain numbers at the ticks;
  `plain_numbers`: plain numbers on any axis.
* `legend`, `title`, `note`: texts that hide nothing.
* `points_of`: a sequence of integers, checked.
* `time_unit`: the unit to print seconds in.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from llmcalc.boundary import is_array, whole_number
from llmcalc.errors import InvalidValueError, MissingExtraError
from llmcalc.units import format_integer

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "MOST_MARKS",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "LineStyle",
    "Look",
    "draw",
    "legend",
    "logarithmic",
    "look",
    "new_axes",
    "note",
    "plain_numbers",
    "plain_ticks",
    "points_of",
    "time_unit",
    "title",
]

#: The colours of Okabe and Ito that stand out on white.
BLUE: Final = "#0072B2"
VERMILLION: Final = "#D55E00"
GREEN: Final = "#009E73"
PURPLE: Final = "#CC79A7"
ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
BLACK: Final = "#000000"

_COLOURS: Final = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)

#: One more than the colours, so that pairs repeat after 56.
_MARKS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")

_STYLES: Final = ("-", "--", "-.", ":")

#: Beyond this many points marks hide the line.
MOST_MARKS: Final = 24


#: A line style by its sign, or an offset and the lengths of dashes and gaps.
LineStyle: TypeAlias = str | tuple[float, tuple[float, ...]]


class Look(NamedTuple):
    """How a line looks: its colour, its mark with its size, its line style."""

    colour: str
    mark: str
    size: float = 6.0
    style: LineStyle = "-"


def look(number: int) -> Look:
    """Return the look of one of several lines, by its number."""
    rounds = number // len(_COLOURS)
    return Look(
        _COLOURS[number % len(_COLOURS)],
        _MARKS[number % len(_MARKS)],
        style=_STYLES[rounds % len(_STYLES)],
    )


def new_axes(ax: Axes | None) -> Axes:
    """Return the given Axes, or those of a new figure; matplotlib is imported here."""
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


def draw(
    ax: Axes,
    points: Sequence[float],
    values: Sequence[float],
    *,
    label: str,
    look: Look,
    style: LineStyle | None = None,
) -> None:
    """Draw a line with hollow marks, which do not hide each other; many points have none."""
    ax.plot(
        points,
        values,
        color=look.colour,
        linestyle=look.style if style is None else style,
        marker=look.mark if len(points) <= MOST_MARKS else "",
        markersize=look.size,
        markerfacecolor="none",
        label=label,
    )


def logarithmic(ax: Axes, points: Sequence[float], *, base: int) -> None:
    """Set logarithmic axes with plain numbers at the ticks.

    `points` are the values along the x axis, which has ticks at powers of `base`, or at the points
    themselves where these are few and far apart. Where one of them is 0, it is linear.
    """
    ax.set_yscale("log")
    ax.margins(x=0.06, y=0.14)
    plain_ticks(ax.yaxis)
    ticks = sorted(set(points))
    if min(points) <= 0:
        plain_numbers(ax.xaxis)
        return
    ax.set_xscale("log", base=base)
    if len(ticks) <= 8 and all(b >= 1.4 * a for a, b in pairwise(ticks)):
        ax.set_xticks(ticks)
        plain_ticks(ax.xaxis, locate=False)
    else:
        plain_ticks(ax.xaxis, base=base)


def plain_ticks(axis: Axis, *, base: int = 10, locate: bool = True) -> None:
    """Put plain numbers at the ticks of a logarithmic axis: at powers of `base`, or between too.

    Without `locate` the ticks stay where they are.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    if locate:
        low, high = axis.get_view_interval()
        between = base == 10 and high < 200 * low
        axis.set_major_locator(
            LogLocator(
                base=base,
                subs=(1.0, 2.0, 5.0) if between else (1.0,),
                numticks=20 if base == 10 else 9,
            )
        )
    axis.set_minor_locator(NullLocator())
    plain_numbers(axis)
    axis.axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axis.axes.set_axisbelow(True)


def plain_numbers(axis: Axis) -> None:
    """Print the numbers at the ticks of an axis in full, in groups of three digits."""
    from matplotlib.ticker import FuncFormatter

    def plain(value: float, _: object) -> str:
        return format_integer(int(value)) if value >= 1000 else f"{value:.6g}"

    axis.set_major_formatter(FuncFormatter(plain))


def legend(ax: Axes, handles: Sequence[Artist] | None = None, *, wanted: bool = True) -> None:
    """Put the legend below the axes, or none where a single line needs no name."""
    if not wanted:
        return
    if handles is None:
        handles = ax.get_legend_handles_labels()[0]
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=3 if longest <= 30 else 2 if longest <= 48 else 1,
        frameon=False,
        fontsize="small",
    )


def title(ax: Axes, first: str, second: str = "") -> None:
    """Set the title, with a second line."""
    ax.set_title(f"{first}\n{second}" if second else first, fontsize="medium")


def note(
    ax: Axes,
    text: str,
    place: tuple[float, float],
    *,
    offset: tuple[float, float],
    coordinates: Any = "data",
    **options: Any,
) -> None:
    """Write a small text so many points from a place, on a ground that lets lines shine through."""
    right, up = offset
    ax.annotate(
        text,
        place,
        xycoords=coordinates,
        xytext=offset,
        textcoords="offset points",
        **{
            "ha": "left" if right > 0 else "right" if right < 0 else "center",
            "va": "bottom" if up > 0 else "top" if up < 0 else "center",
            "fontsize": "small",
            "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            **options,
        },
    )


def points_of(values: Any, field: str) -> list[int]:
    """Return a sequence of integers of at least 1, checked; it must not be empty."""
    listed = values.ndim == 1 if is_array(values) else isinstance(values, Sequence)
    if not listed or isinstance(values, str):
        raise InvalidValueError(field, values, "must be a sequence of integers")
    points = [whole_number(value, field, minimum=1) for value in values]
    if not points:
        raise InvalidValueError(field, points, "must hold at least one integer")
    return points


def time_unit(seconds: float) -> tuple[float, str]:
    """Return how many there are in a second, and the symbol, of the unit for times up to these."""
    for factor, symbol in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return factor, symbol
    return 1e9, "ns"
