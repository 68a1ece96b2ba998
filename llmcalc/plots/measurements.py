"""Pictures of measurements.

* `latency`: generation time with and without cache against prompt length.
* `LatencyRow`: what `latency` reads of a measurement.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

from llmcalc.errors import InvalidValueError
from llmcalc.plots.style import (
    BLUE,
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LatencyRow", "latency"]

_UNCACHED: Final = Look(VERMILLION, "s", 6.0)
_CACHED: Final = Look(BLUE, "o", 6.0)


class LatencyRow(Protocol):
    """What `latency` reads: the times of generating after a prompt of `prompt_length` tokens."""

    @property
    @abstractmethod
    def prompt_length(self) -> int:
        """Tokens of the prompt."""

    @property
    @abstractmethod
    def uncached_seconds(self) -> float:
        """Median time without a cache."""

    @property
    @abstractmethod
    def cached_seconds(self) -> float:
        """Median time with a cache."""


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
    points_of([row.prompt_length for row in rows], "prompt_length")
    rows.sort(key=lambda row: row.prompt_length)
    prompts = [row.prompt_length for row in rows]
    uncached = [_seconds(row.uncached_seconds, "uncached_seconds") for row in rows]
    cached = [_seconds(row.cached_seconds, "cached_seconds") for row in rows]
    ax = new_axes(ax)
    draw(ax, prompts, uncached, label="without cache", look=_UNCACHED)
    draw(ax, prompts, cached, label="with cache", look=_CACHED)
    for prompt, slow, fast in zip(prompts, uncached, cached, strict=True):
        text = f"{slow / fast:.2g}x" if slow < 100 * fast else f"{slow / fast:.0f}x"
        note(ax, text, (prompt, max(slow, fast)), offset=(0, 6))
    logarithmic(ax, prompts, base=10)
    legend(ax)
    ax.set_xlabel("prompt length (tokens)")
    ax.set_ylabel("median time (s)")
    title(ax, "Generation with and without cache", "labels: speed-up by the cache")
    return ax


def _seconds(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValueError(field, value, "must be a number of seconds")
    if not 0 < value < math.inf:
        raise InvalidValueError(field, value, "must be a positive number of seconds")
    return float(value)
