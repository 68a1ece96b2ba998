"""How long fits, budgets and plans take: ``python tests/benchmarks/bench_planning.py``.

Nothing here passes or fails; the targets are printed beside the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

from llmcalc import GiB, Layout, ModelSpec, hardware, load_model, memory, planning, serving

#: A fit of a layout may take this many microseconds, a plan this many seconds.
FIT_TARGET = 200
PLAN_TARGET = 1.0

LAYOUTS = (
    Layout(),
    Layout(tensor_parallel=8),
    Layout(tensor_parallel=8, pipeline_parallel=2),
    Layout(tensor_parallel=8, pipeline_parallel=8),
    Layout(data_parallel=8, data_parallel_attention=True, expert_parallel=True),
)
#: Models, the format of their weights and a layout, for budgets with an engine's profile.
BUDGETS = (
    ("Llama-3.1-8B", "bf16", Layout()),
    ("Llama-3.1-8B", "Q4_K_M", Layout()),
    ("Llama-3.1-70B", "bf16", Layout(tensor_parallel=8)),
    ("DeepSeek-V3", "checkpoint", Layout(tensor_parallel=8)),
    ("DeepSeek-V3", "checkpoint", Layout(tensor_parallel=8, pipeline_parallel=2)),
    ("DeepSeek-V3", "checkpoint", Layout(tensor_parallel=8, pipeline_parallel=8)),
    ("gpt-oss-120b", "checkpoint", Layout(tensor_parallel=2)),
    ("Qwen3-Next-80B-A3B-Instruct", "bf16", Layout(tensor_parallel=4)),
    ("gemma-3-27b-it", "bf16", Layout(tensor_parallel=2)),
)
FORMATS = (
    ("plain", ("fp32", "bf16", "fp16", "fp8", "int8", "int4")),
    ("quantised", ("bf16", "fp8", "fp8-block128", "awq-int4-g128", "nvfp4", "mxfp4")),
)


def median(ask: Callable[[int], object], count: int) -> float:
    """Return the median seconds of a question, its arguments new every time."""
    times = []
    for number in range(count):
        start = time.perf_counter()
        ask(number)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fit(spec: ModelSpec, layout: Layout, weights: str) -> Callable[[int], object]:
    def ask(number: int) -> object:
        answer = memory.fit(
            spec,
            device_memory=80 * GiB + number,
            context=8192 + number,
            batch=16,
            weights=weights,
            kv="bf16",
            layout=layout,
        )
        return answer.fits, answer.max_batch_size

    return ask


def budget(spec: ModelSpec, layout: Layout, weights: str) -> Callable[[int], object]:
    def ask(number: int) -> object:
        answer = serving.budget(
            spec,
            visible_bytes=140 * GiB + number,
            context=8192 + number,
            weights=weights,
            kv="bf16",
            engine="vllm-0.19",
            layout=layout,
        )
        return answer.fits, answer.pool_bytes, answer.concurrency, answer.tokens

    return ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=1000, help="fits of each kind")
    parser.add_argument("--plans", type=int, default=5, help="plans of each kind")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    deepseek, llama = load_model("DeepSeek-V3"), load_model("Llama-3.1-70B")
    fits = {
        f"{spec.name}, {layout}, {weights}": median(fit(spec, layout, weights), arguments.fits)
        for spec, weights in ((llama, "bf16"), (deepseek, "bf16"), (deepseek, "checkpoint"))
        for layout in LAYOUTS
        if spec is deepseek or not layout.expert_parallel
    }
    budgets = {}
    for name, weights, layout in BUDGETS:
        spec = load_model(name)
        asked = budget(spec, layout, weights)
        budgets[f"{spec.name}, {layout}, {weights}"] = median(asked, arguments.fits)
    names = hardware.names()[:60]
    plans = {}
    for title, formats in FORMATS:

        def ask(number: int, formats: tuple[str, ...] = formats) -> object:
            return planning.plan(
                deepseek, context=8192 + number, batch=16, devices=names, weights=formats
            )

        plans[f"6 {title} formats"] = median(ask, arguments.plans)
    if arguments.json:
        print(json.dumps({"fits": fits, "budgets": budgets, "plans": plans}))
        return
    for name, taken in fits.items():
        print(f"{name:70} {taken * 1e6:8.1f} us  <= {FIT_TARGET}")
    for name, taken in budgets.items():
        print(f"vllm-0.19, {name:59} {taken * 1e6:8.1f} us  <= {FIT_TARGET}")
    for name, taken in plans.items():
        print(f"plan, 60 devices, all layouts, {name:40} {taken:7.3f} s   <= {PLAN_TARGET}")


if __name__ == "__main__":
    main()
