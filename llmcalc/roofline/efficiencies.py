"""Efficiencies of engines on devices, calibrated on published measurements.

* `get`: the calibration of an engine on a device.
* `Calibration`: an efficiency, what it was fitted on and how well it fits.
* `engines`, `devices`: what is calibrated.
* `conventions`: how an engine computes a step, as arguments of `llmcalc.roofline.run`.

`get` takes the calibration of the engine on that device. Only if asked to (`at_least`), it takes
a coarser one where there is none, in this order, and `Calibration.level` says which:

1. ``"device"``: the engine on this very device;
2. ``"kernels"``: the engine in general, with what kernels alone reach on this device;
3. ``"family"``: the engine on devices of the same family;
4. ``"engine"``: the engine in general;
5. ``"general"``: the mean of all engines, which must be asked for by that name.

They are fitted together: what is known of the engine and of the device elsewhere is where a fit
of few measurements starts from. ``scripts/fit_efficiencies.py`` makes the figures, and the page
[Forecasts](../reference/forecasts.md), which holds each fit's residuals and how well forecasts do
for models and devices that were left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, Literal, TypeAlias, cast

import attrs

from llmcalc import hardware
from llmcalc.boundary import choice
from llmcalc.described import Described
from llmcalc.engines.engine import Engine
from llmcalc.engines.registry import with_calibration
from llmcalc.errors import (
    LONGEST_MESSAGE,
    InvalidValueError,
    UnknownNameError,
    fitting,
    nearest,
)
from llmcalc.hardware import DeviceSpec
from llmcalc.roofline.efficiency import Efficiency

__all__ = ["Calibration", "Fallback", "Level", "conventions", "devices", "engines", "get"]

#: How close a calibration is to what was asked for, closest first.
Level: TypeAlias = Literal["device", "kernels", "family", "engine", "general", "own"]

#: How far `get` may go from what was asked for.
Fallback: TypeAlias = Literal["device", "kernels", "family", "engine"]

#: The levels of the catalogue, in the order in which they are tried.
_ORDER: Final = ("device", "kernels", "family", "engine")

#: The name of the calibration of no engine.
GENERAL: Final = "general"


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Calibration(Described):
    """An efficiency, and what it rests on.

    `level` says how close it is to what was asked for. `median_error` and `p90_error` are the
    median and the 90th percentile of the absolute relative error over so many `measurements`: for
    a device those of the fit itself, for coarser levels those of devices or engines that were
    left out of it. They are `None` where there is nothing to compare with.
    """

    efficiency: Efficiency
    level: Level
    engine: str | None = None
    device: str | None = None
    measurements: int = 0
    median_error: float | None = None
    p90_error: float | None = None

    @classmethod
    def own(cls, efficiency: Efficiency) -> Calibration:
        """Return an efficiency of a user's own as a calibration."""
        return cls(efficiency=efficiency, level="own")


@cache
def _table() -> dict[str, Any]:
    import json
    from pathlib import Path

    file = Path(__file__).parent.parent / "data" / "efficiencies.json"
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return table


def engines() -> tuple[str, ...]:
    """Return the calibrated engines, as people write their names; `get` takes them in any case.

    >>> from llmcalc.roofline import efficiencies
    >>> "llama.cpp" in efficiencies.engines()
    True
    """
    return tuple(_table()["engines"])


def devices(engine: str | Engine) -> tuple[str, ...]:
    """Return the devices that an engine is calibrated on.

    >>> from llmcalc.roofline import efficiencies
    >>> "RTX-3090" in efficiencies.devices("llama.cpp")
    True
    """
    return tuple(_engine(engine)[1]["devices"])


def conventions(engine: str | Engine, device: str | DeviceSpec) -> dict[str, Any]:
    """Return how an engine computes a step on a device, as arguments of `llmcalc.roofline.run`.

    >>> from llmcalc.roofline import efficiencies
    >>> efficiencies.conventions("exllama", "RTX-4090")
    {'attention': 'standard', 'compute': 'fp16_fp16acc'}
    """
    return with_calibration(engine).conventions.options(hardware.get(device).peak_flops)


def get(
    engine: str | Engine, device: str | DeviceSpec | None = None, *, at_least: Fallback = "device"
) -> Calibration:
    """Return the calibration of an engine on a device.

    An engine is one of `llmcalc.engines`; it is calibrated as a whole, whatever its version.
    Without a device the calibration is that of the engine in general; ``"general"`` is the mean of
    all engines, and takes no device. Raises `llmcalc.LlmcalcError`, with what is known, for an
    engine that is not calibrated, and for a device that it is not calibrated on, unless `at_least`
    names a coarser level to fall back to.

    >>> from llmcalc.roofline import efficiencies
    >>> efficiencies.get("llama.cpp", "RTX-3090").level
    'device'
    >>> efficiencies.get("llama.cpp", "RTX-4090", at_least="engine").level
    'family'
    >>> efficiencies.get("llama.cpp", "RTX-4090")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    llmcalc.errors.InvalidValueError: device = 'RTX-4090': llama.cpp is not calibrated on it...
    """
    choice(at_least, "at_least", _ORDER)
    if engine == GENERAL:
        if device is not None:
            raise InvalidValueError("device", device, "the general calibration is of no device")
        return _calibration(_table()[GENERAL], "general", None, None)
    try:
        name, found = _engine(engine)
    except UnknownNameError as error:
        listing = f"{error.listed_by}, with {GENERAL!r}"
        known = (*error.known, GENERAL)
        raise UnknownNameError("engine", error.value, known, listed_by=listing) from None
    if device is None:
        return _calibration(found, "engine", name, None)
    chip = hardware.get(device)
    candidates = {
        "device": found["devices"].get(chip.name),
        "kernels": found["kernels"].get(chip.name),
        "family": found["families"].get(_family(chip.name)),
        "engine": found,
    }
    for level in _ORDER[: _ORDER.index(at_least) + 1]:
        if candidates[level] is not None:
            return _calibration(candidates[level], level, name, chip.name)
    possible = next(level for level in _ORDER if candidates[level] is not None)
    rules = [
        f"{name} is not calibrated on it{others}; at_least={possible!r} takes a coarser fit"
        for others in _others(name, chip.name, tuple(found["devices"]))
    ]
    rule = fitting(rules, LONGEST_MESSAGE - len(f"device = {chip.name!r}: "))
    raise InvalidValueError("device", chip.name, rule)


def _others(engine: str, device: str, known: tuple[str, ...]) -> Iterator[str]:
    """Give what may be said of the devices that an engine is calibrated on, the most first."""
    yield f", only on {', '.join(known)}" if known else ""
    listing = f"all {len(known)} are in {__name__}.devices({engine!r})"
    for name in nearest(device.casefold(), {name.casefold(): name for name in known})[:1]:
        yield f", but on {name!r}; {listing}"
    yield f"; {listing}"


def _engine(engine: str | Engine) -> tuple[str, dict[str, Any]]:
    """Return the name and the calibrations of an engine."""
    name = str(with_calibration(engine).calibration)
    table: dict[str, dict[str, Any]] = _table()["engines"]
    if name not in table:  # of an engine of a user's own
        raise UnknownNameError("calibration", name, table, listed_by=f"{__name__}.engines()")
    return name, table[name]


def _family(device: str) -> str | None:
    families: Mapping[str, list[str]] = _table()["families"]
    return next((name for name, members in families.items() if device in members), None)


def _calibration(
    row: Mapping[str, Any], level: str, engine: str | None, device: str | None
) -> Calibration:
    return Calibration(
        efficiency=Efficiency(**_table()["structure"], **row["efficiency"]),
        level=cast("Level", level),
        engine=engine,
        device=device,
        measurements=row["measurements"],
        median_error=row["median_error"],
        p90_error=row["p90_error"],
    )
