r"""Fits an `Efficiency` to measured times.

* `Measurement`: a run that was timed.
* `fit`: an efficiency from a few measurements, starting from what is known of engines.
* `Fit`: its answer, with the residuals.
* `fit_groups`: many groups of measurements at once, each of an engine on a device.
* `Group`, `GroupFits`: such a group; the fits of all, and of levels that have no measurement.
* `PARAMETERS`: the parameters that are fitted, with what is thought of them before any measurement.

A fit minimises the errors of the logarithm of the time. Errors are taken to follow Student's
t-distribution with four degrees of freedom, so that single bad measurements count little. Shares
are fitted as their log-odds and costs as their logarithms, which keeps both in their ranges.

Few measurements don't determine so many parameters. So each parameter of a group is a sum,

.. math:: z = \mu + g + e_\text{engine} + f_\text{engine, family} + d_\text{device}
              + c_\text{engine, device}

whose terms are normally distributed about 0 with the standard deviations that `PARAMETERS`
states. A group that was measured little stays close to its engine and its device elsewhere
(shrinkage), and a group that was not measured at all gets its most likely value from them. The
most likely values of all are found together (Gauss-Newton with damping; the normal matrix of a
group's own measurements, and the precision of the sums above as the prior).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import attrs

from llmcalc.boundary import choice
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.roofline.efficiencies import GENERAL, Calibration, get
from llmcalc.roofline.efficiency import Efficiency, Work, part_seconds
from llmcalc.roofline.forecasts import Run
from llmcalc.roofline.times import StepTime

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    from llmcalc.roofline.efficiency import Indices

    Array: TypeAlias = NDArray[floating[Any]]

__all__ = ["PARAMETERS", "Fit", "Group", "GroupFits", "Measurement", "fit", "fit_groups"]


class Parameter(NamedTuple):
    """What is fitted: a share (its log-odds) or a cost (its logarithm).

    `typical` is its value before any measurement, the rest are standard deviations of the terms
    of its log-odds or logarithm.
    """

    name: str
    is_share: bool
    typical: float
    general: float
    engine: float
    family: float
    device: float
    cell: float


#: What is thought of each parameter beforehand. The typical values are round figures of kernels
#: (a matrix product reaches some 70 % of the peak, takes some 5 µs to fill and drain, and so on);
#: the spreads say by how much engines and devices are thought to differ.
PARAMETERS: Final = (
    Parameter("compute", True, 0.7, 0.7, 0.6, 0.3, 0.3, 0.3),
    Parameter("product_seconds", False, 5e-6, 1.0, 0.7, 0.2, 0.3, 0.2),
    Parameter("bandwidth", True, 0.85, 0.5, 0.3, 0.3, 0.3, 0.3),
    Parameter("kernel_seconds", False, 6e-6, 1.0, 0.8, 0.2, 0.3, 0.2),
    Parameter("attention_compute", True, 0.5, 1.0, 0.7, 0.2, 0.3, 0.2),
    Parameter("attention_tile", False, 8.0, 1.0, 1.0, 0.3, 0.3, 0.3),
    Parameter("cache_bandwidth", True, 0.77, 0.5, 0.5, 0.2, 0.3, 0.3),
    Parameter("activation_passes", False, 1.0, 0.7, 0.7, 0.2, 0.2, 0.2),
    Parameter("score_passes", False, 1.0, 0.7, 0.7, 0.2, 0.2, 0.2),
    Parameter("expansion_bytes", False, 4.0, 0.5, 0.5, 0.1, 0.2, 0.1),
    Parameter("step_seconds", False, 2e-4, 1.0, 1.0, 0.3, 0.3, 0.3),
    Parameter("link", True, 0.7, 1.0, 0.6, 0.2, 0.4, 0.2),
    Parameter("collective_seconds", False, 1.5e-5, 1.0, 0.5, 0.2, 0.3, 0.2),
    Parameter("stage_overlap", True, 0.9, 0.7, 0.5, 0.1, 0.1, 0.2),
)

#: What is not fitted: how compute and memory time of one item combine, and that items don't
#: overlap.
STRUCTURE: Final = {"sharpness": 4.0, "overlap": 0.0}

_FREEDOM: Final = 4.0
_MOST_STEPS: Final = 60


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Measurement(Described):
    """A measured time of a run, of one step, or of a kernel.

    `of` says what took `seconds`: the ``"prefill"``, the mean ``"token"`` after it, or ``"all"``.
    `noise` is the relative standard deviation that the measurement is thought to have.
    """

    run: Run | StepTime | Work
    seconds: float
    of: Literal["prefill", "token", "all"] = "all"
    noise: float = 0.1

    def __attrs_post_init__(self) -> None:
        _positive("seconds", self.seconds)
        _positive("noise", self.noise)
        choice(self.of, "of", ("prefill", "token", "all"))
        if not isinstance(self.run, Run | StepTime | Work):
            raise InvalidValueError("run", self.run, "must be a Run, a StepTime or a Work")
        if isinstance(self.run, Run) and not self.works:
            raise InvalidValueError("of", self.of, "is nothing that the run has")

    @property
    def bound_seconds(self) -> float:
        """The least time that was possible."""
        return self._seconds(None)

    def forecast_seconds(self, efficiency: Efficiency) -> float:
        """Return the time under an efficiency."""
        return self._seconds(efficiency)

    def _seconds(self, efficiency: Efficiency | None) -> float:
        one = self.run
        if isinstance(one, StepTime):
            if efficiency is None:
                return float(one.bound_seconds)
            return float(efficiency.seconds(one))
        if isinstance(one, Work):
            parts = part_seconds(Efficiency() if efficiency is None else efficiency, one)
            return float(sum(parts.values()))
        if self.of == "prefill":
            return one.prefill_seconds(efficiency)
        if self.of == "token":
            return float(one.token_seconds(efficiency).mean())
        return one.seconds(efficiency)

    @property
    def works(self) -> list[tuple[Work, float, float]]:
        """The work of its steps, how often each counts, and the gain of its pipeline stages."""
        one = self.run
        if isinstance(one, StepTime | Work):
            work = Work.of(one) if isinstance(one, StepTime) else one
            return [(work, 1.0, 0.0)]
        found: list[tuple[Work, float, float]] = []
        if one.prefill is not None and self.of != "token":
            found.append((Work.of(one.prefill), one.prefill_times, one.pipeline_gain))
        if one.decode is not None and self.of != "prefill":
            points = len(one.token_seconds())
            often = 1 / points if self.of == "token" else one.decode_times
            found.append((Work.of(one.decode), often, 0.0))
        return found


def _positive(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise InvalidValueError(field, value, "must be a positive number")


class Group(NamedTuple):
    """Whose efficiency it is: of an engine, on a device of a family. `None` is none of them.

    `expands` says whether the engine brings packed weights to 16 bits before a large product;
    without, `expansion_bytes` is 0 and not fitted.
    """

    engine: str | None
    device: str | None = None
    family: str | None = None
    expands: bool = False


class _Data:
    """The steps of many measurements, flat, and which group each belongs to."""

    work: Work
    #: The measurement of each step, how often it is in it, and what of it a pipeline gains.
    row: Indices
    often: Array
    gains: Array
    #: The group, the logarithm of the seconds and the noise of each measurement.
    group: Indices
    logs: Array
    noise: Array

    def __init__(
        self, measurements: Sequence[Measurement], group: Sequence[int], expands: Sequence[bool]
    ) -> None:
        import numpy as np

        works: list[Work] = []
        rows: list[int] = []
        often: list[float] = []
        gains: list[float] = []
        for row, one in enumerate(measurements):
            for work, times, gain in one.works:
                if not expands[row]:
                    work = work.without_expansion()  # noqa: PLW2901
                works.append(work)
                rows += [row] * work.points
                often += [times] * work.points
                gains += [gain] * work.points
        self.work = Work.joined(works)
        self.row = np.array(rows)
        self.often = np.array(often)
        self.gains = np.array(gains)
        self.group = np.array(group)
        self.logs = np.log([one.seconds for one in measurements])
        self.noise = np.array([one.noise for one in measurements])

    def log_seconds(self, values: Array) -> Array:
        """Return the logarithm of each time, under the parameters (groups, parameters)."""
        import numpy as np

        e = _Parameters(_values(values), self.group[self.row])
        parts = part_seconds(e, self.work)
        seconds = sum(parts.values()) * self.often * (1 - e.stage_overlap * self.gains)
        return np.log(np.bincount(self.row, seconds, minlength=len(self.logs)))

    def gradient(self, values: Array, base: Array) -> Array:
        """Return the derivatives of the logarithms by the parameters of their own group."""
        import numpy as np

        found = np.empty((len(self.logs), values.shape[1]))
        for number in range(values.shape[1]):
            moved = values.copy()
            moved[:, number] += 1e-5
            found[:, number] = (self.log_seconds(moved) - base) / 1e-5
        return found


class _Parameters:
    """The parameters of an `Efficiency` as arrays: those of a group for every element."""

    sharpness = STRUCTURE["sharpness"]
    overlap = STRUCTURE["overlap"]

    def __init__(self, values: Mapping[str, Array], group: Indices) -> None:
        self._values = values
        self._group = group

    def at(self, points: Indices) -> _Parameters:
        """Return those of some of the elements."""
        return _Parameters(self._values, self._group[points])

    def __getattr__(self, name: str) -> Any:
        return self._values[name][self._group]


def _values(z: Array) -> dict[str, Array]:
    """Return the parameters by name, of log-odds and logarithms (groups, parameters)."""
    import numpy as np

    found = {}
    for number, one in enumerate(PARAMETERS):
        column = z[:, number]
        found[one.name] = 1 / (1 + np.exp(-column)) if one.is_share else np.exp(column)
    return found


def _odds(efficiency: Efficiency) -> Array:
    """Return log-odds and logarithms of an efficiency, (parameters,)."""
    import numpy as np

    found = []
    for one in PARAMETERS:
        value = getattr(efficiency, one.name)
        if one.is_share:
            value = min(max(value, 1e-6), 1 - 1e-6)
            found.append(math.log(value / (1 - value)))
        else:
            found.append(math.log(min(max(value, 1e-12), 1e12)))
    return np.array(found)


def _efficiency(z: Array, *, expands: bool) -> Efficiency:
    values = {name: float(value[0]) for name, value in _values(z[None]).items()}
    if not expands:
        values["expansion_bytes"] = 0.0
    return Efficiency(**values, **STRUCTURE)


def _solve(
    data: _Data,
    start: Array,
    mean: Array,
    precision: Array,
    used: Indices,
) -> Array:
    """Return the most likely parameters of all groups, (groups, parameters).

    `precision` is the prior's, (parameters, groups, groups): parameters are independent of each
    other beforehand. `used` says which measurements count.
    """
    import numpy as np

    groups, number = start.shape
    rows = [np.flatnonzero(used & (data.group == one)) for one in range(groups)]
    index = np.arange(groups) * number

    def objective(z: Array) -> tuple[float, Array, Array]:
        base = data.log_seconds(z)
        errors = (data.logs - base) / data.noise
        off = z - mean
        prior = np.einsum("ak,kab,bk->", off, precision, off)
        likely = (_FREEDOM + 1) * np.log1p(errors[used] ** 2 / _FREEDOM).sum()
        return float(likely + prior), base, errors

    z, damping = start.copy(), 1e-3
    least, base, errors = objective(z)
    for _ in range(_MOST_STEPS):
        slopes = data.gradient(z, base) / data.noise[:, None]
        weights = (_FREEDOM + 1) / (_FREEDOM + errors**2)
        normal = np.zeros((groups * number, groups * number))
        for k in range(number):
            normal[np.ix_(index + k, index + k)] = precision[k]
        pull = -np.einsum("kab,bk->ak", precision, z - mean).reshape(-1)
        for one, mine in enumerate(rows):
            if len(mine):
                block = slice(index[one], index[one] + number)
                weighted = slopes[mine] * weights[mine, None]
                normal[block, block] += weighted.T @ slopes[mine]
                pull[block] += weighted.T @ errors[mine]
        diagonal = np.diag(normal).copy()
        while True:
            step = np.linalg.solve(normal + np.diag(damping * diagonal), pull)
            moved = z + np.clip(step, -1, 1).reshape(z.shape)
            found, moved_base, moved_errors = objective(moved)
            if found <= least or damping > 1e9:
                break
            damping *= 5
        gained = least - found
        if gained < 0:
            break
        z, least, base, errors = moved, found, moved_base, moved_errors
        damping = max(damping / 5, 1e-5)
        # A small gain alone may only say that the damping is large.
        if gained < 1e-5 * abs(least) and np.abs(step).max() < 0.02:
            break
    return z


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Fit(Described):
    """An efficiency that was fitted, and by how much it misses each measurement.

    `relative_errors` are forecast / measurement - 1, in the order of the measurements.
    """

    efficiency: Efficiency
    relative_errors: tuple[float, ...]

    @property
    def median_error(self) -> float:
        """The median of the absolute relative errors."""
        import numpy as np

        return float(np.median(np.abs(self.relative_errors)))


def fit(
    measurements: Sequence[Measurement],
    *,
    prior: Efficiency | Calibration | None = None,
    spread: float = 1.0,
) -> Fit:
    """Return the efficiency that explains a few measurements, starting from what is known.

    `prior` is where the fit starts from and what it falls back to for what the measurements don't
    show: by default the mean of all calibrated engines; that of the same engine is better where
    it is known. `spread` scales how far the fit may go from it: 1 is how much engines on devices
    differ, 0.3 stays close. Raises `llmcalc.LlmcalcError` without a measurement.

    >>> from llmcalc import load_model, roofline
    >>> llama = load_model("llama-3-8b")
    >>> def decode(context, seconds):
    ...     step = roofline.step_time(
    ...         llama, "L4", batch=1, new=1, past=context, weights="bf16", kv="bf16"
    ...     )
    ...     return roofline.Measurement(run=step, seconds=seconds, noise=0.02)
    >>> mine = roofline.fit([decode(128, 0.0615), decode(8000, 0.0662)])
    >>> mine.median_error < 0.01, 0.8 < mine.efficiency.bandwidth < 0.95
    (True, True)
    """
    import numpy as np

    given = tuple(measurements)
    if not given or not all(isinstance(one, Measurement) for one in given):
        raise InvalidValueError("measurements", measurements, "must be at least one Measurement")
    _positive("spread", spread)
    known = get(GENERAL) if prior is None else prior
    if isinstance(known, Calibration):
        known = known.efficiency
    if not isinstance(known, Efficiency):
        raise InvalidValueError("prior", prior, "must be an Efficiency or a Calibration")
    mean = _odds(known)[None]
    spreads = np.array([math.hypot(*one[4:]) * spread for one in PARAMETERS])
    expands = known.expansion_bytes > 0
    data = _Data(given, [0] * len(given), [expands] * len(given))
    found = _solve(data, mean, mean, (1 / spreads**2)[:, None, None], np.ones(len(given), bool))
    errors = np.exp(data.log_seconds(found) - data.logs) - 1
    return Fit(
        efficiency=_efficiency(found[0], expands=expands), relative_errors=tuple(map(float, errors))
    )


class GroupFits:
    """The fits of several groups of measurements, made together; see `fit_groups`."""

    def __init__(
        self, groups: Sequence[Group], data: _Data, z: Array | None, used: Indices
    ) -> None:
        import numpy as np

        self._groups = tuple(groups)
        self._data = data
        number = len(self._groups)
        covariance = self._covariance(self._groups)
        self._mean = np.tile(_typical(), (number, 1))
        self._precision = np.linalg.inv(covariance)
        self._precision = (self._precision + self._precision.transpose(0, 2, 1)) / 2
        start = self._mean if z is None else z
        self._z = _solve(data, start, self._mean, self._precision, used)

    def without(self, measurements: Indices) -> GroupFits:
        """Return the fits that leave out the measurements of these numbers."""
        import numpy as np

        used = np.ones(len(self._data.logs), bool)
        used[measurements] = False
        return GroupFits(self._groups, self._data, self._z, used)

    @cached_property
    def relative_errors(self) -> Array:
        """Forecast / measurement - 1 of every measurement, used or not."""
        import numpy as np

        return np.asarray(np.exp(self._data.log_seconds(self._z) - self._data.logs) - 1)

    def efficiency(self, group: Group) -> Efficiency:
        """Return the most likely efficiency of a group, measured or not."""
        import numpy as np

        if group in self._groups:
            return _efficiency(self._z[self._groups.index(group)], expands=group.expands)
        shared = self._covariance((group,), self._groups)[:, 0]
        weights = np.einsum("ka,kab->kb", shared, self._precision)
        z = _typical() + np.einsum("kb,bk->k", weights, self._z - self._mean)
        return _efficiency(z, expands=group.expands)

    @staticmethod
    def _covariance(these: Sequence[Group], those: Sequence[Group] | None = None) -> Array:
        """Return how parameters of groups vary together, (parameters, these, those)."""
        import numpy as np

        others = these if those is None else those

        def same(pick: Callable[[Group], Hashable]) -> Array:
            return np.array(
                [[pick(a) is not None and pick(a) == pick(b) for b in others] for a in these],
                float,
            )

        def both(a: str | None, b: str | None) -> Hashable:
            return None if a is None or b is None else (a, b)

        engine, device = same(lambda one: one.engine), same(lambda one: one.device)
        family = same(lambda one: both(one.engine, one.family))
        cell = same(lambda one: both(one.engine, one.device))
        return np.stack(
            [
                one.general**2
                + one.engine**2 * engine
                + one.family**2 * family
                + one.device**2 * device
                + one.cell**2 * cell
                for one in PARAMETERS
            ]
        )


def _typical() -> Array:
    return _odds(Efficiency(**{one.name: one.typical for one in PARAMETERS}))


def fit_groups(measurements: Sequence[tuple[Group, Measurement]]) -> GroupFits:
    """Return the fits of all groups of measurements, made together.

    This is what ``scripts/fit_efficiencies.py`` makes the calibrations with.
    """
    import numpy as np

    if not measurements:
        raise InvalidValueError("measurements", measurements, "must not be empty")
    groups = tuple(dict.fromkeys(group for group, _ in measurements))
    numbers = {group: number for number, group in enumerate(groups)}
    data = _Data(
        [one for _, one in measurements],
        [numbers[group] for group, _ in measurements],
        [group.expands for group, _ in measurements],
    )
    return GroupFits(groups, data, None, np.ones(len(measurements), bool))
