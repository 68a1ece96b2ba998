"""How long step costs take, one by one and in sweeps: ``python tests/benchmarks/bench_steps.py``.

A sweep is timed in turn with the bare NumPy arithmetic of the same terms, written out by hand for
Llama-3-8B. Nothing here passes or fails; the targets are printed beside the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from llmcalc import ModelSpec, hardware, load_model, roofline

DEVICE = hardware.get("H100-SXM-80GB")

#: Microseconds that one step cost with its times may take.
STEP_TARGETS = {"llama-3-8b": 100, "deepseek-v3": 300}

#: Seconds that a sweep of a million points may take, and how many times the bare arithmetic.
SWEEP_TARGET, RATIO_TARGET = 0.5, 5

POINTS = 10**6


def median(ask: Callable[[int], object], count: int) -> float:
    """Return the median seconds of a question, its arguments new every time."""
    times = []
    for number in range(count):
        start = time.perf_counter()
        ask(number)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def step(spec: ModelSpec) -> Callable[[int], object]:
    def ask(number: int) -> object:
        answer = roofline.step_time(
            spec,
            DEVICE,
            batch=1 + number % 64,
            new=1,
            past=1000 + number,
            weights="bf16",
            kv="bf16",
        )
        return answer.seconds, answer.bound_seconds, answer.flops.total, answer.bytes.total

    return ask


def sweep(spec: ModelSpec, batch: Any, past: Any) -> Any:
    return roofline.step_time(
        spec, DEVICE, batch=batch, new=1, past=past, weights="bf16", kv="bf16"
    ).seconds


def bare(batch: Any, past: Any) -> Any:
    """Return a decode step's time of Llama-3-8B in bf16, item by item."""
    peak, bandwidth = float(DEVICE.peak("bf16")), float(DEVICE.bandwidth_bytes_per_second)
    width, kv_width, inner, vocab, layers = 4096, 1024, 14336, 128256, 32
    norm = 2 * width
    # FLOPs a token, FLOPs a key, bytes of weights, bytes a token, bytes a key: each in all layers.
    items = [
        (0, 0, 0, norm, 0),
        *[(0, 0, layers * norm, 2 * layers * norm, 0)] * 2,
        *[
            (2 * width * out, 0, 2 * width * out, 2 * (width + out), 0)
            for out in (width, kv_width, kv_width, width, inner, inner, inner)
        ],
        (0, 2 * 2 * width, 0, 2 * 2 * kv_width + 2 * norm, 2 * 2 * kv_width),
        (0, 0, norm, 2 * norm, 0),
        (2 * width * vocab, 0, 2 * width * vocab, 2 * (width + vocab), 0),
    ]
    context = past + 1
    keys = batch * context
    seconds: Any = 0.0
    for number, (per_token, per_key, weights, token_bytes, key_bytes) in enumerate(items):
        times = layers if 3 <= number <= 10 else 1
        flops = batch * (times * per_token)
        moved = batch * (times * token_bytes) + times * weights
        if per_key:
            flops = flops + keys * (times * per_key)
            moved = moved + keys * (times * key_bytes)
        seconds = seconds + np.maximum(flops / peak, moved / bandwidth)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    for name, target in STEP_TARGETS.items():
        ask = step(load_model(name))
        ask(0)
        report[f"{name}, microseconds a step (target {target})"] = 1e6 * median(ask, 500)

    spec = load_model("llama-3-8b")
    generator = np.random.default_rng(0)
    batch, past = generator.integers(1, 256, POINTS), generator.integers(0, 10**5, POINTS)
    assert np.allclose(sweep(spec, batch[:99], past[:99]), bare(batch[:99], past[:99]), rtol=1e-12)
    grid = np.arange(1, 1001)[:, None], np.arange(1, 1001)
    ours, by_hand, gridded = [], [], []
    for _ in range(arguments.repeats):
        ours.append(median(lambda _: sweep(spec, batch, past), 1))
        by_hand.append(median(lambda _: bare(batch, past), 1))
        gridded.append(median(lambda _: sweep(spec, *grid), 1))
    ratios = [a / b for a, b in zip(ours, by_hand, strict=True)]
    report[f"sweep of 10**6 points, s (target {SWEEP_TARGET})"] = statistics.median(ours)
    report["the bare arithmetic, s"] = statistics.median(by_hand)
    report[f"ratio (target {RATIO_TARGET})"] = statistics.median(ratios)
    report["sweep of a grid of 10**3 x 10**3, s"] = statistics.median(gridded)
    if arguments.json:
        print(json.dumps(report))
    else:
        for title, figure in report.items():
            print(f"{title:<50} {figure:10.4g}")


if __name__ == "__main__":
    main()
