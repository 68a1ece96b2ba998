"""Other calculators, asked the same questions: ``python tests/benchmarks/bench_peers.py``.

The question: how long does a decode step, or a prefill, of Llama-3-8B in bf16 take on one H100 or
A100 (80 GB)? Each peer answers it for one batch and context after another; this library answers
for a million in one sweep, of scattered batches and contexts and of a grid of them, in the same
process, between the peers. Nothing here passes or fails.

The peers are in no extra of this library. They need an environment of their own::

    python -m venv peers && . peers/bin/activate
    pip install attrs numpy aiconfigurator==0.12.0 genz-llm==0.0.16
    pip install servcalc==0.1.0 vramcalc fire huggingface-hub transformers
    pip install --no-deps llm-analysis==0.2.2    # it pins versions that nothing else agrees with
    PYTHONPATH=. python tests/benchmarks/bench_peers.py

A peer that is not installed is left out, and named. What else was looked at and cannot be asked:
hf-mem and gguf-parser know memory and files, no times; iaexplore-llm-profiler knows none of these
devices; infercap 0.2.1 needs Python 3.12; LLM-Viewer and Vidur are not on PyPI.

Peers answer for other things: `aiconfigurator` interpolates kernels measured with an engine (vLLM
here), `servcalc` multiplies with an engine's efficiency (its middle figure is taken), `genz-llm`
and `llm-analysis` bound each operator, as this library's `seconds` do. llm-analysis has no gated
feed-forward and wants its width to be a multiple of the model's: it is asked about an ungated one
with a width of 20480, which has 5 % fewer weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from llmcalc import ModelSpec, hardware, load_model, roofline

#: Seconds of a step, from the batch, the context and whether it is the prefill.
Ask = Callable[[int, int, bool], float]

CONTEXT = 4096
POINTS = 10**6

#: A point of a sweep may take this part of what a peer takes.
TARGET = 1000

DEVICES = {"H100": "H100-SXM-80GB", "A100": "A100-SXM-80GB"}

#: Llama-3-8B, as its config has it.
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 131072,
}


def aiconfigurator(device: str) -> Ask:
    """Ask its engine with everything loaded, which its own searches do."""
    sdk = "aiconfigurator.sdk"
    system = {"H100": "h100_sxm", "A100": "a100_sxm"}[device]
    database = import_module(f"{sdk}.perf_database")
    newest = database.get_latest_database_version(system, "vllm")
    config = import_module(f"{sdk}.config")
    model = import_module(f"{sdk}.models").get_model(
        "meta-llama/Meta-Llama-3.1-8B",
        import_module(f"{sdk}.config_builders").build_model_config(1, 1, 1, 1, 1),
        "vllm",
    )
    session = import_module(f"{sdk}.inference_session").InferenceSession(
        model,
        database.get_database_view(system, "vllm", newest),
        import_module(f"{sdk}.backends.factory").get_backend("vllm"),
    )

    def ask(batch: int, context: int, prefill: bool) -> float:
        run = config.RuntimeConfig(batch_size=batch, isl=context if prefill else context - 1, osl=2)
        mode = "static_ctx" if prefill else "static_gen"
        return float(session.run_static_latency_only(run, mode)) / 1e3

    return ask


def aiconfigurator_estimate(device: str) -> Ask:
    """Ask by the function that its documentation names."""
    api = import_module("aiconfigurator.cli.api")

    def ask(batch: int, context: int, prefill: bool) -> float:
        answer = api.cli_estimate(
            "meta-llama/Meta-Llama-3.1-8B",
            {"H100": "h100_sxm", "A100": "a100_sxm"}[device],
            mode="static_ctx" if prefill else "static_gen",
            backend_name="vllm",
            isl=context if prefill else context - 1,
            osl=2,
            batch_size=batch,
        )
        return float(answer.ttft if prefill else answer.tpot) / 1e3

    return ask


def genz(device: str) -> Ask:
    inference = import_module("GenZ.LLM_inference")
    system = {"H100": "H100_GPU", "A100": "A100_80GB_GPU"}[device]

    def ask(batch: int, context: int, prefill: bool) -> float:
        common: dict[str, Any] = {
            "model": "llama3_8b",
            "batch_size": batch,
            "input_tokens": context,
            "system_name": system,
            "bits": "bf16",
        }
        if prefill:
            return float(inference.prefill_moddeling(**common)["Latency"]) / 1e3
        return float(inference.decode_moddeling(**common, output_tokens=0, Bb=1)["Latency"]) / 1e3

    return ask


def llm_analysis(device: str) -> Ask:
    config = import_module("llm_analysis.config")
    analysis = import_module("llm_analysis.analysis")
    analysis.logger.setLevel(logging.CRITICAL)
    model = config.ModelConfig(
        name="ungated",
        num_layers=32,
        n_head=32,
        hidden_dim=4096,
        vocab_size=128256,
        num_key_value_heads=8,
        ffn_embed_dim=20480,
    )
    asked = analysis.LLMAnalysis(
        model,
        config.get_gpu_config_by_name({"H100": "h100-sxm-80gb", "A100": "a100-sxm-80gb"}[device]),
        config.get_dtype_config_by_name("w16a16e16"),
        config.ParallelismConfig(),
        flops_efficiency=1.0,
        hbm_memory_efficiency=1.0,
    )

    def ask(batch: int, context: int, prefill: bool) -> float:
        answer = asked.inference(
            batch_size_per_gpu=batch,
            seq_len=context if prefill else context - 1,
            num_tokens_to_generate=1,
        )
        return float(answer["prefill_latency" if prefill else "decode_latency"])

    return ask


def servcalc(device: str) -> Ask:
    package = import_module("servcalc")
    arch = import_module("vramcalc.loaders").load_arch(CONFIG)
    profile = import_module("servcalc.profiles").hf(kv_realloc=False)
    gpu = {"H100": "H100 80GB", "A100": "A100 80GB"}[device]

    def ask(batch: int, context: int, prefill: bool) -> float:
        workload = package.Workload(context if prefill else context - 1, 2, (batch,))
        [point] = package.estimate(arch, gpu, workload=workload, profile=profile).points
        return float((point.ttft_ms if prefill else point.itl_ms).mid) / 1e3

    return ask


class Peer(NamedTuple):
    """A way to ask a distribution."""

    distribution: str
    how: str
    make: Callable[[str], Ask]


PEERS = (
    Peer("aiconfigurator", "cli_estimate", aiconfigurator_estimate),
    Peer("aiconfigurator", "loaded session", aiconfigurator),
    Peer("genz-llm", "decode_moddeling", genz),
    Peer("llm-analysis", "LLMAnalysis.inference", llm_analysis),
    Peer("servcalc", "estimate", servcalc),
)


def per_ask(ask: Ask, prefill: bool, seconds: float) -> float:
    """Return the median seconds of an answer, its arguments new every time."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 2000):
        start = time.perf_counter()
        ask(1 + len(times) % 16, 1000 + len(times), prefill)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def sweeps(spec: ModelSpec, device: str) -> dict[str, Callable[[], Any]]:
    """Return sweeps of a million decode steps: scattered ones, and a grid of a thousand squared."""
    chip = hardware.get(DEVICES[device])
    side = round(POINTS**0.5)
    some = np.random.default_rng(0)
    scattered = some.integers(1, 257, POINTS), some.integers(0, 100_000, POINTS)
    grid = np.arange(1, side + 1)[:, None], 100 * np.arange(side)

    def steps(batch: Any, past: Any) -> Any:
        common: dict[str, Any] = {"batch": batch, "new": 1, "past": past}
        return roofline.step_time(spec, chip, weights="bf16", kv="bf16", **common)

    def table(batch: Any, past: Any) -> Any:
        common: dict[str, Any] = {"batch": batch, "new": 1, "past": past}
        return roofline.sweep(spec, devices=chip, weights="bf16", kv="bf16", **common)

    return {
        "bound_seconds, scattered": lambda: steps(*scattered).bound_seconds,
        "seconds, scattered": lambda: steps(*scattered).seconds,
        "seconds, grid": lambda: steps(*grid).seconds,
        "a table of 20 columns, grid": lambda: table(*grid),
    }


def per_point(sweep: Callable[[], Any]) -> float:
    start = time.perf_counter()
    sweep()
    return (time.perf_counter() - start) / POINTS


def questions() -> Iterator[tuple[int, int, bool]]:
    yield from ((batch, CONTEXT, False) for batch in (1, 8, 32, 64))
    yield from ((batch, CONTEXT, True) for batch in (1, 8))


def answers(spec: ModelSpec, device: str, asks: dict[str, Ask]) -> list[dict[str, Any]]:
    """Return every answer beside this library's."""
    rows = []
    for batch, context, prefill in questions():
        step = roofline.step_time(
            spec,
            DEVICES[device],
            batch=batch,
            new=context if prefill else 1,
            past=0 if prefill else context - 1,
            weights="bf16",
            kv="bf16",
        )
        row = {
            "step": "prefill" if prefill else "decode",
            "batch": batch,
            "bound_seconds": step.bound_seconds,
            "seconds": step.seconds,
        }
        rows.append(row | {name: ask(batch, context, prefill) for name, ask in asks.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=DEVICES, default="H100")
    parser.add_argument("--seconds", type=float, default=3.0, help="for the timing of each peer")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers'
    logging.disable(logging.CRITICAL)
    spec = load_model("llama-3-8b")
    asks: dict[str, Ask] = {}
    missing = []
    for peer in PEERS:
        try:
            name = f"{peer.distribution} {version(peer.distribution)}, {peer.how}"
        except PackageNotFoundError:
            missing.append(peer.distribution)
        else:
            asks[name] = peer.make(arguments.device)
            asks[name](2, 900, False)
    own = sweeps(spec, arguments.device)
    ours: dict[str, list[float]] = {name: [] for name in own}
    theirs: dict[str, dict[str, float]] = {}
    for name, ask in asks.items():
        for kind, sweep in own.items():
            ours[kind] += [per_point(sweep) for _ in range(3)]
        theirs[name] = {
            step: per_ask(ask, step == "prefill", arguments.seconds / 2)
            for step in ("decode", "prefill")
        }
    points = {kind: statistics.median(times) for kind, times in ours.items() if times}
    report: dict[str, Any] = {
        "device": DEVICES[arguments.device],
        "seconds of a point in a sweep": points,
        "seconds of an answer": theirs,
        "answers": answers(spec, arguments.device, asks),
        "not installed": sorted(set(missing)),
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    print(f"Llama-3-8B, bf16, one {report['device']}")
    for kind, seconds in points.items():
        print(f"  a point of a sweep of 10**6, {kind}: {1e9 * seconds:.0f} ns")
    for name, times in theirs.items():
        ratios = ", ".join(f"{times['decode'] / seconds:,.0f}" for seconds in points.values())
        print(
            f"  {name:<40} decode {1e6 * times['decode']:12.0f} us, prefill"
            f" {1e6 * times['prefill']:12.0f} us; decode / ours: {ratios} (target {TARGET})"
        )
    for row in report["answers"]:
        texts = [
            f"{name.partition(' ')[0] if name in asks else name} {1e3 * value:.2f}"
            for name, value in row.items()
            if isinstance(value, float)
        ]
        print(f"  {row['step']} of {row['batch']} at {CONTEXT}, ms: {', '.join(texts)}")
    if missing:
        print(f"  not installed: {', '.join(report['not installed'])}")


if __name__ == "__main__":
    main()
