"""Questions about models, each with its numbers alone: what the laws of the house ask.

* `QUESTIONS`: every public question, by a name; each takes a description.
* `asked`: the answers of a description to all questions, as plain values.
* `known`: the same of a model of the samples, found once.
* `answer`, `told`: the answer to one question.
* `plain`: an answer as numbers: words are left out of it.
* `model`: a model of the samples `MODELS` and `ALL_MODELS`, read anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from itertools import product
from typing import Any, Final

import numpy as np

from llmcalc import (
    Breakdown,
    GiB,
    Layout,
    LlmcalcError,
    ModelSpec,
    engines,
    formats,
    load_model,
    memory,
    planning,
    roofline,
    serving,
)
from llmcalc.huggingface import catalogue
from llmcalc.roofline import Efficiency, efficiencies
from tests.truth import rows

#: A question: what a description is asked.
Question = Callable[..., Any]

_ROWS: Final = {
    row["model_type"]: row["config"]
    for row in rows("default_configs")
    if row["scope"] in {"in-first", "in-second"}
}

#: Default configurations of transformers, by model type; and Doge with its experts.
CONFIGS: Final[dict[str, Any]] = {**_ROWS, "doge with experts": {**_ROWS["doge"], "is_moe": True}}

#: One model of every family.
MODELS: Final = (
    "meta-llama/Llama-3.1-8B",
    "openai-community/gpt2",
    "microsoft/Phi-3-mini-4k-instruct",
    "microsoft/phi-2",
    "google/gemma-2-9b",
    "openai/gpt-oss-20b",
    "mistralai/Mixtral-8x7B-v0.1",
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V3.2-Exp",
    "deepseek-ai/DeepSeek-V4-Flash",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4",
    "tiiuae/Falcon-H1-0.5B-Base",
    "google/recurrentgemma-2b",
    "doge with experts",
    "gemma3n_text",
    "hrm_text",
    "jetmoe",
    "llama4_text",
    "qwen4_exp_text",
    "xlstm",
    "zamba2",
)

ALL_MODELS: Final = (*catalogue.names(), *CONFIGS)


def model(name: str) -> ModelSpec:
    """Return a model of the catalogue or of `CONFIGS`: another object each time."""
    return load_model(CONFIGS.get(name, name))


# Answers as numbers -------------------------------------------------------------------------


def plain(answer: Any) -> Any:
    """Return an answer as numbers, in the order in which it has them.

    What is left out are words: titles, paths and names of factors, and the names of groups below
    the first level. Texts that are answers themselves stay.
    """
    found = answer
    if isinstance(answer, Breakdown):
        sums = {group: plain(value) for group, value in answer.by().items()}
        found = plain(answer.total), sums, [plain(term.value) for term in answer.terms]
    elif isinstance(answer, np.ndarray):
        found = answer.dtype.kind, answer.tolist()
    elif isinstance(answer, np.generic):
        found = answer.item()
    elif isinstance(answer, Mapping):
        found = [plain(value) for value in answer.values()]
    elif isinstance(answer, tuple(_READ)):
        fields = next(fields for kind, fields in _READ.items() if isinstance(answer, kind))
        found = [plain(getattr(answer, field)) for field in fields]
    elif isinstance(answer, Iterable) and not isinstance(answer, str):
        found = [plain(one) for one in answer]
    return found


#: What is read of answers that are no numbers themselves.
_READ: Final[dict[type, tuple[str, ...]]] = {
    memory.Fit: (
        "fits", "needed_bytes", "requests", "left_bytes", "short_bytes", "max_batch_size", "rank",
        "stages", "weight_bytes", "cache_bytes",
    ),
    memory.ContextLimit: ("real", "limited_by"),
    roofline.Collective: ("kind", "ranks", "count", "message_bytes", "sent_bytes"),
    roofline.ItemTime: ("flops", "bytes", "compute_seconds", "memory_seconds", "bound"),
    roofline.StepTime: (
        "peak_flops", "flops", "bytes", "items", "seconds", "compute_seconds", "memory_seconds",
        "memory_bytes", "bound_seconds", "bound", "intensity", "communication_seconds",
        "link_bytes_per_second", "collectives",
    ),
    roofline.Run: ("prefill", "decode", "prefill_times", "decode_times", "pipeline_gain"),
    roofline.Forecast: (
        "first_token_seconds", "token_seconds", "seconds", "bound_seconds", "tokens_per_second",
    ),
    roofline.Generation: ("first_token_seconds", "token_seconds", "seconds", "tokens_per_second"),
    roofline.Fit: ("efficiency", "relative_errors"),
    Efficiency: ("compute", "bandwidth", "kernel_seconds", "cache_bandwidth", "step_seconds"),
    serving.CacheGroup: (
        "layers", "layers_per_group", "count", "block_tokens", "page_bytes", "blocks", "sort",
    ),
    serving.Allocation: ("bytes", "request_bytes", "block_bytes", "blocks", "groups", "shards"),
    serving.Budget: (
        "weights", "activation", "allocation", "pool_bytes", "blocks", "tokens", "concurrency",
        "fits", "short_bytes",
    ),
    planning.Placement: (
        "layout", "weights", "kv", "usable_bytes", "needed_bytes", "max_batch_size", "fits",
    ),
    planning.DoesNotFit: ("closest", "short_bytes"),
    Layout: (
        "tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel",
        "decode_context_parallel", "data_parallel_attention",
    ),
}  # fmt: skip


def answer(question: Question, spec: ModelSpec) -> Any:
    """Return what a description answers; a refusal is an answer, without its words."""
    return told(partial(question, spec))


def told(ask: Callable[[], Any]) -> Any:
    """Return what is answered; a refusal is an answer, without its words."""
    try:
        return plain(ask())
    except LlmcalcError as refused:
        return "refused", type(refused).__name__, getattr(refused, "field", None)


@cache
def known(name: str) -> dict[str, Any]:
    """Return what a model of the samples answers to all questions."""
    return asked(model(name))


def asked(spec: ModelSpec, questions: Mapping[str, Question] | None = None) -> dict[str, Any]:
    """Return the answers of a description to all questions, by their names."""
    return {
        name: answer(question, spec)
        for name, question in (QUESTIONS if questions is None else questions).items()
    }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of the questions that are answered differently."""
    return [name for name in one if one[name] != other[name]]


# Arguments ----------------------------------------------------------------------------------

#: Formats of weights: plain ones, schemes of formats, mixes, and what the config states.
WEIGHTS: Final = (
    "bf16", "fp8-block128", "awq-int4-g128", "Q4_K_M", "IQ2_XS", "MXFP4_MOE", "mxfp4", "checkpoint",
)  # fmt: skip

LAYOUTS: Final = {
    "tp2": Layout(tensor_parallel=2),
    "tp4 pp2": Layout(tensor_parallel=4, pipeline_parallel=2),
    "tp2 dp2 ep": Layout(tensor_parallel=2, data_parallel=2, expert_parallel=True),
    "tp2 ep": Layout(tensor_parallel=2, expert_parallel=True),
    "dp-attention": Layout(
        tensor_parallel=2, data_parallel=2, data_parallel_attention=True, engine="sglang"
    ),
    "tp16 dcp2": Layout(tensor_parallel=16, decode_context_parallel=2),
    "vllm pp3": Layout(pipeline_parallel=3, engine="vllm"),
}

#: Steps: a decode step, a prefill, and a chunk, at whose end windows and choices are reached.
STEPS: Final[dict[str, dict[str, Any]]] = {
    "decode": {"batch": 3, "new": 1, "past": 5000},
    "prefill": {"batch": 2, "new": 700, "past": 0},
    "chunk": {"batch": 1, "new": 2048, "past": 4096},
}

#: The same as arrays.
MANY: Final[dict[str, Any]] = {
    "batch": np.array([[1], [4]]), "new": np.array([1, 96]), "past": np.array([3000, 0]),
}  # fmt: skip

#: The forms of latent attention.
MLA: Final = ("expanded", "absorbed")

H100: Final = "H100-SXM-80GB"

#: An efficiency whose every parameter has an effect.
OWN: Final = Efficiency(
    compute=0.7, product_seconds=4e-6, bandwidth=0.8, kernel_seconds=5e-6, attention_compute=0.4,
    attention_tile=8.0, cache_bandwidth=0.6, activation_passes=0.7, score_passes=0.5,
    expansion_bytes=4.0, step_seconds=1e-4, link=0.6, collective_seconds=1e-5, sharpness=4.0,
    overlap=0.3,
)  # fmt: skip

_WIDE: Final[dict[str, Any]] = {"weights": "bf16", "kv": "bf16"}


@cache
def _calibrated() -> Efficiency:
    return efficiencies.get("llama.cpp", "RTX-3090").efficiency


# Questions ----------------------------------------------------------------------------------


def _of_parameters() -> dict[str, Question]:
    return {
        "parameters": memory.parameters,
        "parameters, head twice": partial(memory.parameters, tied_head="twice"),
        "layer parameters": memory.layer_parameters,
        "active parameters": memory.active_parameters,
        "buffers": partial(memory.buffers, multi_token=True),
        "multi-token parameters": memory.multi_token_parameters,
        "multi-token copies": partial(memory.multi_token_parameters, copies=True),
    }


def _of_memory() -> dict[str, Question]:
    found: dict[str, Question] = {
        f"weights {name}": partial(memory.weight_bytes, weights=name) for name in WEIGHTS
    }
    for name, where in LAYOUTS.items():
        for weights in ("bf16", "Q4_K_M", "checkpoint"):
            found[f"weights {weights} on {name}"] = partial(
                memory.weight_bytes, weights=weights, layout=where
            )
        found[f"weights of the last rank on {name}"] = partial(
            memory.weight_bytes, weights="mxfp4", layout=where, rank=where.devices - 1
        )
        found[f"cache on {name}"] = partial(
            memory.kv_cache_bytes, context=9000, batch=5, kv="bf16", layout=where
        )
        found[f"fit on {name}"] = partial(
            memory.fit, device_memory=80 * GiB, context=9000, batch=8, layout=where, **_WIDE
        )
        found[f"largest batch on {name}"] = partial(
            memory.max_batch_size, device_memory=80 * GiB, context=9000, layout=where, **_WIDE
        )
    for policy in ("ideal", "transformers"):
        found[f"cache, {policy}"] = partial(
            memory.kv_cache_bytes, context=np.array([7, 5000]), kv="fp8", policy=policy,
            state={"state": "bf16", "conv": "fp16"}, index="fp8-group128",
        )  # fmt: skip
    found["cache, packed"] = partial(memory.kv_cache_bytes, context=5000, kv="fp8-ds-mla")
    found["fit"] = partial(memory.fit, device_memory=80 * GiB, context=9000, batch=8, **_WIDE)
    found["needed"] = partial(
        memory.needed_bytes, context=np.array([1, 9000]), batch=np.array([[1], [7]]), **_WIDE
    )
    found["largest batches"] = partial(
        memory.max_batch_size, device_memory=640 * GiB, context=np.array([1, 9000]), **_WIDE
    )
    found["longest context"] = partial(
        memory.max_context, device_memory=640 * GiB, batch=64, weights="fp8", kv="bf16"
    )
    return found


def _of_steps() -> dict[str, Question]:
    found: dict[str, Question] = {}
    for (name, step), causal, mla in product(
        STEPS.items(), (True, False), ("expanded", "absorbed")
    ):
        how: dict[str, Any] = {"causal": causal, "mla": mla, **step}
        words = f"{name}, {'causal' if causal else 'square'}, {mla}"
        found[f"FLOPs of a {words}"] = partial(roofline.flops, **how)
        found[f"bytes of a {words}"] = partial(
            roofline.bytes_moved, query_tile=128, index="fp8-group128", **how, **_WIDE
        )
    for name, step in STEPS.items():
        found[f"FLOPs of a {name} in transformers"] = partial(
            roofline.flops, convention="transformers", logits="all", **step
        )
        found[f"bytes of a {name}, standard"] = partial(
            roofline.bytes_moved, attention="standard", experts="most", weights="fp8-block128",
            kv="fp8", **step,
        )  # fmt: skip
        for where, layout in LAYOUTS.items():
            found[f"FLOPs of a {name} on {where}"] = partial(roofline.flops, layout=layout, **step)
            found[f"bytes of a {name} on {where}"] = partial(
                roofline.bytes_moved, layout=layout, experts="fewest", **step, **_WIDE
            )
            found[f"exchanges of a {name} on {where}"] = partial(
                roofline.collectives, layout=layout, **step
            )
    more = (roofline.Requests(batch=2, new=64, past=100),)
    found["FLOPs of many"] = partial(roofline.flops, mixed_with=more, **MANY)
    found["bytes of many"] = partial(
        roofline.bytes_moved, mixed_with=more, weights="Q4_K_M", kv="fp16", **MANY
    )
    return found


def _of_times() -> dict[str, Question]:
    found: dict[str, Question] = {}
    timed: dict[str, dict[str, Any]] = {
        "a decode": {**STEPS["decode"], **_WIDE},
        "a chunk": {**STEPS["chunk"], "weights": "fp8-block128", "kv": "fp8", "query_tile": 64},
        "many": {**MANY, "weights": "awq-int4-g128", "kv": "fp16", "attention": "standard"},
        "a mix": {**STEPS["prefill"], "weights": "Q4_K_M", "kv": "fp16"},
        "a checkpoint": {**STEPS["decode"], "weights": "checkpoint", "kv": "bf16"},
        "few tokens in packed experts": {
            "batch": 2,
            "new": 20,
            "past": 0,
            "weights": "awq-int4-g128",
            "kv": "fp16",
            "layout": LAYOUTS["tp2 dp2 ep"],
        },
        "two ranks": {**MANY, **_WIDE, "layout": LAYOUTS["tp2"]},
        "experts": {**STEPS["decode"], **_WIDE, "layout": LAYOUTS["tp2 dp2 ep"]},
    }
    for name, how in timed.items():
        found[f"time of {name}"] = partial(roofline.step_time, device=H100, **how)
        found[f"own parts of {name}"] = partial(_parts, lambda: OWN, how)
        found[f"fitted parts of {name}"] = partial(_parts, _calibrated, how)
    found["fitted"] = fitted
    found["run"] = partial(
        roofline.run, device=H100, prompt=300, new_tokens=5, batch=4, chunk=128,
        micro_batch_tokens=600, layout=LAYOUTS["vllm pp3"], **_WIDE,
    )  # fmt: skip
    found["generation"] = partial(
        roofline.generation, device=H100, prompt=300, new_tokens=4, batch=np.array([1, 8]), **_WIDE
    )
    found["forecast"] = partial(
        roofline.forecast, device="RTX-3090", engine="llama.cpp", prompt=300, new_tokens=4,
        weights="Q4_K_M", kv="fp16",
    )  # fmt: skip
    return found


def _parts(efficiency: Callable[[], Efficiency], how: Mapping[str, Any], spec: ModelSpec) -> Any:
    return efficiency().parts(roofline.step_time(spec, H100, **how))


def fitted(spec: ModelSpec) -> Any:
    """Return an efficiency that is fitted to two steps of a model."""
    steps = [
        roofline.step_time(spec, "L4", batch=1, new=1, past=past, weights="bf16", kv="bf16")
        for past in (128, 8000)
    ]
    return roofline.fit(
        [roofline.Measurement(run=step, seconds=1.3 * step.seconds) for step in steps]
    )


def of_serving() -> dict[str, Question]:
    """Return the questions that an engine's own rules answer."""
    found: dict[str, Question] = {}
    for engine, weights in product(
        ("vllm-0.19", "sglang-0.5", "llama.cpp"), ("bf16", "mxfp4", "Q4_K_M", "checkpoint")
    ):
        found[f"{weights} loaded by {engine}"] = partial(
            serving.loaded_weights, weights=weights, engine=engine
        )
    for weights, where in product(("bf16", "checkpoint"), ("tp2", "tp4 pp2", "tp2 dp2 ep")):
        found[f"{weights} loaded on {where}"] = partial(
            serving.loaded_weights, weights=weights, layout=LAYOUTS[where]
        )
        found[f"activations in {weights} on {where}"] = partial(
            serving.activation_peak, weights=weights, context=8192, layout=LAYOUTS[where]
        )
    for engine in ("vllm-0.19", "vllm-0.6", "sglang-0.5"):
        found[f"paged by {engine}"] = partial(
            serving.allocate, context=9001, kv="bf16", engine=engine, state_blocks=2
        )
    reserved: dict[str, Any] = {"context": 9001, "kv": "bf16", "engine": "llama.cpp"}
    found["allocation, ideal"] = partial(serving.allocate, policy="ideal", **reserved)
    found["allocation, contiguous"] = partial(
        serving.allocate, policy="contiguous", max_context=16384, **reserved
    )
    for where in ("tp4 pp2", "tp16 dcp2"):
        found[f"paged on {where}"] = partial(
            serving.allocate, context=9001, kv="bf16", layout=LAYOUTS[where]
        )
    budgets: dict[str, dict[str, Any]] = {
        "vllm-0.19": {"device": H100}, "sglang-0.5": {"device": H100, "share": 0.8},
        "llama.cpp": {"visible_bytes": 96 * GiB},
    }  # fmt: skip
    for engine, how in budgets.items():
        asked_for = {*engines.get(engine).pool.asked} - {"activation_bytes"}
        given: dict[str, Any] = dict.fromkeys(sorted(asked_for), GiB)
        found[f"budget of {engine}"] = partial(
            serving.budget, context=4096, engine=engine, **how, **_WIDE, **given
        )
    found["budget of stages"] = partial(
        serving.budget, context=4096, device=H100, layout=LAYOUTS["tp4 pp2"], non_torch_bytes=GiB,
        weights="checkpoint", kv="fp8",
    )  # fmt: skip
    return found


def _of_plans() -> dict[str, Question]:
    common: dict[str, Any] = {"context": 8192, "batch": 3}
    return {
        "plan": lambda spec: [
            *planning.plan(
                spec, devices=[H100, "L4"], counts=[1, 4, 8], weights=["bf16", "Q4_K_M"], **common
            )
        ],
        "fewest devices": partial(planning.fewest_devices, device=H100, **common, **_WIDE),
        "fewest of an engine": partial(
            planning.fewest_devices, device="L4", engine="vllm", max_devices=16, **common, **_WIDE
        ),
        "smallest degree": partial(
            planning.smallest_tensor_parallel, device=H100, **common, **_WIDE
        ),
        "widest format": partial(planning.widest_format, device=H100, kv="fp8", **common),
        "layouts": lambda spec: [*planning.possible_layouts(spec, 8)],
    }


def _of_formats() -> dict[str, Question]:
    def schemes(name: str, spec: ModelSpec) -> Any:
        scheme = formats.scheme(name, spec)
        return [
            [(format.name, layers) for format, layers in scheme.formats_of(tensor)]
            for tensor in spec.ledger.tensors
        ]

    return {f"scheme {name}": partial(schemes, name) for name in WEIGHTS}


QUESTIONS: Final[dict[str, Question]] = {
    **_of_parameters(),
    **_of_formats(),
    **_of_memory(),
    **_of_steps(),
    **_of_times(),
    **of_serving(),
    **_of_plans(),
}
