"""Bounds and forecasts against published measurements of engines and kernels."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmcalc
from llmcalc import load_model
from llmcalc.roofline import Efficiency, efficiencies, forecast
from llmcalc.roofline.fitting import Group, Measurement, fit_groups
from scripts import fit_efficiencies, measured_rows
from scripts.measured_rows import EXCEPTIONS, RULES, Reading

TABLE = json.loads(
    (Path(llmcalc.__file__).parent / "data" / "efficiencies.json").read_text(encoding="utf-8")
)

#: What forecasts must reach for models that were left out of the fit: the median and the 90th
#: percentile of the absolute relative error.
LIMITS = (0.15, 0.35)


@cache
def rows() -> tuple[dict[str, Any], ...]:
    return tuple(measured_rows.rows(fit_efficiencies.ROWS))


@cache
def readings() -> tuple[Reading, ...]:
    found = (measured_rows.read(row) for row in rows())
    return tuple(one for one in found if isinstance(one, Reading))


def relative_error(one: Reading, efficiency: Efficiency) -> float:
    return one.measurement.forecast_seconds(efficiency) / one.measurement.seconds - 1


def test_the_bound_is_never_more_than_a_trusted_measurement() -> None:
    bounded: Counter[str] = Counter()
    for row in rows():
        found = measured_rows.read(row, for_bound=True)
        if isinstance(found, Reading):
            least, seconds = found.measurement.bound_seconds, found.measurement.seconds
            bounded[found.kind] += 1
        else:
            at_any_batch = measured_rows.saturated(row)
            if isinstance(at_any_batch, str):
                continue
            least, seconds = at_any_batch
            bounded["full load"] += 1
        # The exceptions are none that hide a bound which is right.
        assert (least <= seconds) == (row["id"] not in EXCEPTIONS), row
    assert bounded.total() > 850
    assert min(bounded.values()) > 40


def test_the_bound_is_never_more_than_a_kernel_took() -> None:
    faster = []
    for row in measured_rows.rows(fit_efficiencies.KERNELS):
        found = measured_rows.kernel(row)
        if found is not None and found[1].bound_seconds > found[1].seconds:
            faster.append(row)
    # An H200's switch can sum what eight ranks send, so that each sends it once: 2 % faster than
    # any exchange without its help could be.
    assert [(row["op"], row["system"], row["num_gpus"]) for row in faster] == [
        ("custom_all_reduce", "h200_sxm", 8)
    ]


def test_every_row_is_used_or_left_out_by_a_rule() -> None:
    outcomes = [measured_rows.read(row) for row in rows()]
    left_out = Counter(one for one in outcomes if isinstance(one, str))
    assert left_out.keys() <= RULES.keys()
    assert left_out.total() + len(readings()) == len(rows()) == 1433
    assert len(readings()) > 650
    assert {row["id"] for row in rows() if row.get("suspect")}.isdisjoint(
        one.row["id"] for one in readings()
    )


def test_rows_of_the_second_table_of_96_heads_are_of_another_model() -> None:
    # Both tables have the same workloads under one model's name, and one takes twice as long.
    times: dict[Any, list[float]] = {}
    for row in rows():
        if row["model"] == "GPT-175B":
            key = row["engine"], row["batch"], row["input_len"]
            times.setdefault(key, []).append(row["value"])
    assert len(times) == 26
    for slower, faster in times.values():
        assert 1.7 < slower / faster < 2.05
    models = Counter(one.model for one in readings() if one.row["model"] == "GPT-175B")
    assert models == {"GPT-175B": 26, "GPT-89B": 26}


@pytest.mark.parametrize("engine", efficiencies.engines())
def test_calibrations_have_the_errors_that_they_state(engine: str) -> None:
    for device in efficiencies.devices(engine):
        calibration = efficiencies.get(
            engine, measured_rows._half(llmcalc.hardware.get("MI250X"))
            if device == "MI250X-die" else device
        )  # fmt: skip
        mine = [one for one in readings() if one.group[:2] == (engine, device)]
        errors = np.abs([relative_error(one, calibration.efficiency) for one in mine])
        assert len(mine) == calibration.measurements
        assert np.median(errors) == pytest.approx(calibration.median_error, abs=2e-3)
        assert np.quantile(errors, 0.9) == pytest.approx(calibration.p90_error, abs=4e-3)


def test_forecasts_are_never_below_the_bound_of_what_was_measured() -> None:
    for one in readings():
        calibration = efficiencies.get(str(one.group.engine))
        forecasted = one.measurement.forecast_seconds(calibration.efficiency)
        assert forecasted >= one.measurement.bound_seconds * (1 - 1e-9)


@pytest.mark.parametrize("kind", fit_efficiencies.KINDS)
def test_forecasts_of_models_that_were_left_out_are_within_the_limits(kind: str) -> None:
    found = TABLE["validation"]["model left out"][kind]
    assert found["rows"] >= 25
    assert found["median"] <= LIMITS[0]
    assert found["p90"] <= LIMITS[1]
    # The page says the same; the table has four digits, which the page rounds again.
    page = fit_efficiencies.PAGE.read_text(encoding="utf-8")
    [line] = [line for line in page.splitlines() if line.startswith(f"| {kind} |")]
    number, median, p90 = map(float, line.split("|")[5:8])
    assert number == found["rows"]
    assert median == pytest.approx(100 * found["median"], abs=0.051)
    assert p90 == pytest.approx(100 * found["p90"], abs=0.051)


def test_a_model_that_is_left_out_here_is_forecast_within_the_limits() -> None:
    # llama.cpp alone, whose rows are of two models: the larger one from the smaller.
    mine = [one for one in readings() if one.group.engine == "llama.cpp"]
    left_out = np.array(["70B" in one.model for one in mine])
    fits = fit_groups([(one.group, one.measurement) for one in mine])
    without = fits.without(np.flatnonzero(left_out))
    errors = np.abs(without.relative_errors)
    # What was left out has left no trace: a fit that never saw it forecasts the same.
    unseen = fit_groups(
        [(one.group, one.measurement) for one, left in zip(mine, left_out, strict=True) if not left]
    )
    for one, left, error in zip(mine, left_out, without.relative_errors, strict=True):
        if left:
            expected = relative_error(one, unseen.efficiency(one.group))
            assert error == pytest.approx(expected, abs=0.01)
    decode = np.array([one.kind == "single-stream decode" for one in mine])
    alone = np.array([one.measurement.run.stages == 1 for one in mine])  # type: ignore[union-attr]
    for chosen in (decode, ~decode & alone):
        some = errors[left_out & chosen]
        assert len(some) >= 8
        assert np.median(some) <= LIMITS[0]
        assert np.quantile(some, 0.9) <= LIMITS[1]


def test_a_forecast_by_name_is_close_to_what_was_published() -> None:
    # XiongjieDai/GPU-Benchmarks-on-LLM-Inference, 2024-05: Llama-3-8B in Q4_K_M on one RTX 3090
    # reads 1024 tokens at 3865.4 a second, and generates the next 1024 at about 110.
    answer = forecast(
        load_model("llama-3-8b"),
        "RTX-3090",
        engine="llama.cpp",
        prompt=1024,
        new_tokens=1024,
        weights="Q4_K_M",
        kv="fp16",
    )
    assert 1024 / answer.first_token_seconds == pytest.approx(3865, rel=0.15)
    assert answer.tokens_per_second_per_user == pytest.approx(108, rel=0.1)


def test_the_largest_shares_of_a_decode_step_are_those_of_kernels_alone() -> None:
    # A matrix product of one token in bf16 on an H100 reaches 0.69 to 0.8 of the bandwidth
    # (aiconfigurator, 6144 x 4096 and 10240 x 8192), most of the rest being fixed costs.
    for engine in efficiencies.engines():
        found = efficiencies.get(engine).efficiency
        assert 0.5 < found.bandwidth < 0.95
        assert 1e-6 < found.kernel_seconds < 3e-5


def close(new: Any, old: Any, path: str = "") -> None:
    """Assert that two tables are the same but for what another machine rounds otherwise."""
    if isinstance(new, dict):
        assert new.keys() == old.keys(), path
        for key, value in new.items():
            close(value, old[key], f"{path}/{key}")
    elif isinstance(new, float):
        assert new == pytest.approx(old, rel=0.03, abs=3e-3), path
    else:
        assert new == old, path


@pytest.mark.slow
def test_the_script_makes_the_table_and_the_page() -> None:
    made = fit_efficiencies.results()
    close(json.loads(json.dumps(fit_efficiencies.table(made))), TABLE)
    new = fit_efficiencies.page(made).splitlines()
    old = fit_efficiencies.PAGE.read_text(encoding="utf-8").splitlines()
    words = [[word for word in line.split() if not word[0].isdigit()] for line in new]
    assert words == [[word for word in line.split() if not word[0].isdigit()] for line in old]


def test_measurements_of_groups_of_no_engine_are_anchors_only() -> None:
    # Kernels take part in the fits, and are no engine.
    assert not {"kernels", "all-reduce in one kernel"} & set(efficiencies.engines())
    group, measurement = next(
        kernel
        for row in measured_rows.rows(fit_efficiencies.KERNELS)
        if (kernel := measured_rows.kernel(row)) is not None
    )
    assert isinstance(group, Group)
    assert isinstance(measurement, Measurement)
