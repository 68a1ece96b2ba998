"""Fits the calibrated efficiencies, and writes what they are and how well they forecast.

    python -m scripts.fit_efficiencies [--check]

It reads ``tests/data/perf_rows.jsonl`` and ``tests/data/kernel_rows.jsonl``, and writes
``llmcalc/data/efficiencies.json`` and ``docs/reference/forecasts.md``. With ``--check`` it writes
nothing, and fails where what it made differs from what is there. It takes about two minutes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from llmcalc.roofline.efficiency import Efficiency
from llmcalc.roofline.fitting import PARAMETERS, STRUCTURE, Group, Measurement, fit_groups
from scripts import measured_rows
from scripts.measured_rows import ENGINES, EXCEPTIONS, FAMILIES, RULES, Reading

__all__ = ["KERNELS", "KINDS", "PAGE", "ROWS", "Results", "Study", "page", "results", "table"]

ROOT: Final = Path(__file__).resolve().parent.parent
ROWS: Final = ROOT / "tests" / "data" / "perf_rows.jsonl"
KERNELS: Final = ROOT / "tests" / "data" / "kernel_rows.jsonl"
TABLE: Final = ROOT / "llmcalc" / "data" / "efficiencies.json"
PAGE: Final = ROOT / "docs" / "reference" / "forecasts.md"

#: The kinds of rows, in the order of the tables.
KINDS: Final = ("single-stream decode", "batched decode", "prefill", "tensor-parallel")


class Errors(NamedTuple):
    """The absolute relative errors of so many forecasts."""

    rows: int
    median: float
    p90: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> Errors:
        sizes = np.abs(np.asarray(errors, float))
        return cls(len(sizes), float(np.median(sizes)), float(np.quantile(sizes, 0.9)))

    def row(self) -> dict[str, Any]:
        return {"rows": self.rows, "median": _digits(self.median), "p90": _digits(self.p90)}

    def cells(self) -> str:
        return f"{self.rows} | {100 * self.median:.1f} | {100 * self.p90:.1f}"


class Study:
    """The fits of all rows, and the errors for what is left out of them."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], kernels: Iterable[Any]) -> None:
        self.left_out: dict[str, int] = dict.fromkeys(RULES, 0)
        self.readings: list[Reading] = []
        self.rows = 0
        for row in rows:
            self.rows += 1
            found = measured_rows.read(row)
            if isinstance(found, str):
                self.left_out[found] += 1
            else:
                self.readings.append(found)
        self.kernels = [found for found in map(measured_rows.kernel, kernels) if found]
        measurements: list[tuple[Group, Measurement]] = [
            (one.group, one.measurement) for one in self.readings
        ]
        self.fits = fit_groups(measurements + self.kernels)
        self.errors = self.fits.relative_errors[: len(self.readings)]

    def folds(self, key: Callable[[Reading], Hashable]) -> dict[Any, np.ndarray]:
        """Return the numbers of the readings by a key; `None` is no fold."""
        found: dict[Hashable, list[int]] = {}
        for number, one in enumerate(self.readings):
            if key(one) is not None:
                found.setdefault(key(one), []).append(number)
        return {name: np.array(numbers) for name, numbers in found.items()}

    def left_out_errors(self, key: Callable[[Reading], Hashable]) -> np.ndarray:
        """Return the errors of readings whose fold was left out; NaN for those in none."""
        errors = np.full(len(self.readings), np.nan)
        for numbers in self.folds(key).values():
            errors[numbers] = self.fits.without(numbers).relative_errors[numbers]
        return errors

    def by_model(self, one: Reading) -> Hashable:
        """Return the fold of a model within its engine on its device, where there are several."""
        return (one.group, one.model) if len(self.models[one.group]) > 1 else None

    @cached_property
    def models(self) -> dict[Group, set[str]]:
        """The models of each group."""
        found: dict[Group, set[str]] = {}
        for one in self.readings:
            found.setdefault(one.group, set()).add(one.model)
        return found

    def summary(self, errors: np.ndarray, key: Callable[[Reading], Hashable]) -> dict[Any, Errors]:
        """Return the errors by a key, of the readings that have one."""
        found: dict[Hashable, list[float]] = {}
        for one, error in zip(self.readings, errors, strict=True):
            if not np.isnan(error) and key(one) is not None:
                found.setdefault(key(one), []).append(error)
        return {name: Errors.of(some) for name, some in found.items()}


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _values(efficiency: Efficiency) -> dict[str, float]:
    return {one.name: _digits(getattr(efficiency, one.name)) for one in PARAMETERS}


def _level(efficiency: Efficiency, errors: Errors | None) -> dict[str, Any]:
    return {
        "efficiency": _values(efficiency),
        "measurements": errors.rows if errors else 0,
        "median_error": _digits(errors.median) if errors else None,
        "p90_error": _digits(errors.p90) if errors else None,
    }


class Results(NamedTuple):
    """The study's errors: of the fits, and for models, devices and engines that were left out."""

    study: Study
    model: np.ndarray
    device: np.ndarray
    engine: np.ndarray


def results() -> Results:
    """Return the study of the rows in ``tests/data``."""
    study = Study(measured_rows.rows(ROWS), measured_rows.rows(KERNELS))
    return Results(
        study,
        study.left_out_errors(study.by_model),
        study.left_out_errors(lambda one: one.group.device),
        study.left_out_errors(lambda one: one.group.engine),
    )


def table(made: Results) -> dict[str, Any]:
    """Return the content of ``efficiencies.json``."""
    study, fits = made.study, made.study.fits
    groups = sorted({one.group for one in study.readings}, key=lambda group: group[:2])
    within = study.summary(study.errors, lambda one: one.group)
    of_family = study.summary(made.device, lambda one: (one.group.engine, one.group.family))
    of_engine = study.summary(made.device, lambda one: one.group.engine)
    general = study.summary(made.engine, lambda _: "all")["all"]
    with_kernels = sorted({group.device for group, _ in study.kernels if group.device})

    def engine(name: str) -> dict[str, Any]:
        mine = [group for group in groups if group.engine == name]
        expands = ENGINES[name].expands
        families = sorted({group.family for group in mine if group.family})
        others = [device for device in with_kernels if device not in {g.device for g in mine}]
        return {
            **_level(fits.efficiency(Group(name, expands=expands)), of_engine[name]),
            "devices": {
                str(group.device): _level(fits.efficiency(group), within[group]) for group in mine
            },
            "kernels": {
                device: _level(
                    fits.efficiency(Group(name, device, measured_rows.family(device), expands)),
                    None,
                )
                for device in others
            },
            "families": {
                family: _level(
                    fits.efficiency(Group(name, None, family, expands)), of_family[name, family]
                )
                for family in families
            },
        }

    def validation(errors: np.ndarray) -> dict[str, Any]:
        found = study.summary(errors, lambda one: one.kind)
        return {kind: found[kind].row() for kind in KINDS if kind in found}

    return {
        "structure": STRUCTURE,
        "families": FAMILIES,
        "general": _level(fits.efficiency(Group(None)), general),
        "engines": {name: engine(name) for name in sorted({g.engine for g in groups})},
        "validation": {
            "rows": len(study.readings),
            "fit": validation(study.errors),
            "model left out": validation(made.model),
            "device left out": validation(made.device),
        },
    }


def page(made: Results) -> str:
    """Return the content of ``forecasts.md``."""
    study = made.study
    fit, model, device = (
        study.summary(errors, lambda one: one.kind)
        for errors in (study.errors, made.model, made.device)
    )
    split = [one.measurement.run.stages > 1 and one.kind == "prefill" for one in study.readings]
    kinds = [
        f"| {kind} | {fit[kind].cells()} | {model[kind].cells()} | {device[kind].cells()} |"
        for kind in KINDS
    ]
    for name, chosen in (("one device", False), ("split by layers", True)):
        cells = []
        for errors in (study.errors, made.model, made.device):
            some = [
                error
                for one, error, is_split in zip(study.readings, errors, split, strict=True)
                if one.kind == "prefill" and is_split == chosen and not np.isnan(error)
            ]
            cells.append(Errors.of(some).cells())
        kinds.append(f"| … prefill, {name} | {' | '.join(cells)} |")
    rules = [f"| {number} | {RULES[name]} |" for name, number in study.left_out.items() if number]
    exceptions = [f"- `{name}`: {cause}." for name, cause in EXCEPTIONS.items()]
    several = study.models
    groups = sorted({one.group for one in study.readings}, key=lambda group: group[:2])
    within = study.summary(study.errors, lambda one: (one.group, one.kind))
    left = study.summary(made.model, lambda one: (one.group, one.kind))
    away = study.summary(made.device, lambda one: (one.group, one.kind))

    def cells(found: Mapping[Any, Errors], key: Any) -> str:
        one = found.get(key)
        return f"{100 * one.median:.1f} | {100 * one.p90:.1f}" if one else "- | -"

    fits = [
        f"| {group.engine} | {group.device} | {kind} | {within[group, kind].rows} "
        f"| {len(several[group])} | {cells(within, (group, kind))} "
        f"| {cells(left, (group, kind))} | {cells(away, (group, kind))} |"
        for group in groups
        for kind in KINDS
        if (group, kind) in within
    ]
    heads = [f"`{one.name}`" for one in PARAMETERS]
    values = [
        f"| {group.engine} | {group.device or 'in general'} | "
        + " | ".join(f"{getattr(study.fits.efficiency(group), one.name):.3g}" for one in PARAMETERS)
        + " |"
        for group in (
            *(
                Group(name, expands=ENGINES[name].expands)
                for name in sorted({str(g.engine) for g in groups})
            ),
            *groups,
        )
    ]
    general = study.fits.efficiency(Group(None))
    values.insert(
        0,
        "| general | - | "
        + " | ".join(f"{getattr(general, one.name):.3g}" for one in PARAMETERS)
        + " |",
    )
    priors = [
        f"| `{one.name}` | {one.typical:g} | {one.general:g} | {one.engine:g} | {one.family:g} "
        f"| {one.device:g} | {one.cell:g} |"
        for one in PARAMETERS
    ]
    least = [
        bound
        for row in measured_rows.rows(ROWS)
        if (bound := _share_of_bound(row)) is not None and row["id"] not in EXCEPTIONS
    ]
    sources = sorted({_repository(one.row["source"]) for one in study.readings})
    return TEMPLATE.format(
        rows=study.rows,
        used=len(study.readings),
        checked=len(least) + len(EXCEPTIONS),
        tightest=max(least),
        kernels=len(study.kernels),
        rules="\n".join(rules),
        exceptions="\n".join(exceptions),
        kinds="\n".join(kinds),
        fits="\n".join(fits),
        heads=" | ".join(heads),
        rule="|".join(["---:"] * len(heads)),
        values="\n".join(values),
        priors="\n".join(priors),
        sources="\n".join(f"- {source}" for source in sources),
        engines=Errors.of(made.engine).cells(),
    )


def _share_of_bound(row: Mapping[str, Any]) -> float | None:
    """Return the bound as a share of what a row shows; `None` where there is no bound for it."""
    found = measured_rows.read(row, for_bound=True)
    if isinstance(found, Reading):
        return found.measurement.bound_seconds / found.measurement.seconds
    at_any_batch = measured_rows.saturated(row)
    return None if isinstance(at_any_batch, str) else at_any_batch[0] / at_any_batch[1]


def _repository(source: str) -> str:
    return source.split(maxsplit=1)[0].removeprefix("github:").removeprefix("https://github.com/")


TEMPLATE: Final = """# Forecasts

<!-- This page is made by scripts/fit_efficiencies.py; change it there. -->

A bound says what no engine can beat. A forecast says what an engine most likely takes: the step's
bound, missed by shares of the device's rates and by fixed costs that were fitted to measurements.

```{{eval-rst}}
.. automodule:: llmcalc.roofline.efficiency
.. automodule:: llmcalc.roofline.efficiencies
.. automodule:: llmcalc.roofline.forecasts
.. automodule:: llmcalc.roofline.fitting
```

## What it was measured on

{rows} rows that engines and people published, of which {used} are used; and {kernels} measured
kernels (matrix products, attention, all-reduces) on seven devices from NVIDIA's aiconfigurator,
which anchor what kernels alone reach. Both are in `tests/data`, each row with its source. Those
that are used are from

{sources}

Rows were left out by rules that look at what a row and its source state, and at its bound; never
at what a forecast says of it. 26 rows of FasterTransformer's guide carry the name of GPT-175B,
where the guide prints them in its table of GPT-89B: they are read as what the guide says.

| rows | left out because |
| ---: | --- |
{rules}

## The bound

For {checked} rows there is a bound: those that are used; those of other engines and of devices that
are not fully stated, against the fastest device that fits; and those of engines at full load, whose
batch is not stated, against the bound at any batch. The bound is more than what
was measured for none of them but these:

{exceptions}

The next one comes within {tightest:.3f} of what was measured.

## How well forecasts do

Absolute relative errors in per cent, their median and their 90th percentile, by the kind of row: of
the fits themselves; for models that were left out of the fit, each within its engine on its device
where that has several models; and for devices that were left out altogether, whose forecast then
rests on the engine elsewhere, on devices of the family and on kernels.

| kind | rows | fit | 90 % | rows | model left out | 90 % | rows | device left out | 90 % |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{kinds}

The form of the model and the spreads of its parameters were chosen with the errors for models that
were left out in view, and so was one number of llama.cpp, that a layer launches 45 kernels: with 43
the rows of 70B models on four devices fall on the other side of the queue. On rows that nobody here
has seen, expect somewhat more than these errors.

For an engine that was left out altogether, the general calibration misses by (rows, median, 90 %):
{engines}.

What forecasts do not know: which power limit a device runs at (one RTX 6000 Ada alone reads a
prompt 30 % slower than one of four that take turns); how well the host feeds several devices that
split a model by layers (the 1024 kernels that each queues are about what 20 layers launch, so that
a few more or less decide); what the first call in a process loads and chooses (the prompts of
AutoAWQ's rows are such); reordered columns of GPTQ; hosts that launch kernels late. A device of a
kind that was never measured, and an engine on its first device, are guesses: look at the last
columns.

Nor do they know how often a kernel reads a cache. Most of these engines are of 2023 and 2024, and
where query heads share a head of keys and values, their kernels read it again for each of them. A
longer context costs AutoAWQ 1.3 times what the bandwidth allows for its cache where no head is
shared, and 6 to 7 times where 7 or 8 heads share one; llama.cpp without flash attention 1.6 to 6
times where 4 do, and 3 to 15 times where 8 do; vLLM and TGI on the MI300X 18 and 17 times where 16
do. `cache_bandwidth` is one number for all of that, fitted to the models of these rows: for long
contexts forecasts are too low where more heads share one, and too high where fewer do, and for
kernels that read a head once.

## The fits

Errors in per cent: median and 90th percentile of the fit, with the model left out (none where
there is one model only: then the pooled fit, without the device, is all there is), and with the
device left out.

| engine | device | kind | rows | models | fit | 90 % | no model | 90 % | no device | 90 % |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{fits}

## The parameters

| engine | device | {heads} |
| --- | --- | {rule} |
{values}

Beforehand, parameters are thought to be about `typical`, with these standard deviations of their
log-odds (shares) or logarithms (costs) between engines and devices in general, engines, families of
devices within an engine, devices, and devices within an engine:

| parameter | typical | general | engine | family | device | engine on device |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{priors}
"""


def _json(content: Mapping[str, Any]) -> str:
    """Return a table as JSON with one line for each efficiency."""

    def lines(value: Any, depth: int) -> str:
        plain = not isinstance(value, dict) or not any(
            isinstance(one, dict) for one in value.values()
        )
        if plain or ("efficiency" in value and "devices" not in value):
            return json.dumps(value)
        pad = " " * (depth + 1)
        inner = ",\n".join(
            f"{pad}{json.dumps(key)}: {lines(one, depth + 1)}" for key, one in value.items()
        )
        return f"{{\n{inner}\n{' ' * depth}}}"

    return lines(content, 0) + "\n"


def main(arguments: Sequence[str]) -> int:
    made = results()
    outputs = {TABLE: _json(table(made)), PAGE: page(made)}
    if "--check" in arguments:
        stale = [file for file, text in outputs.items() if file.read_text("utf-8") != text]
        for file in stale:
            print(f"{file.relative_to(ROOT)} is not what this script makes", file=sys.stderr)  # noqa: T201
        return bool(stale)
    for file, text in outputs.items():
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
