"""Laws of copies: what was copied, pickled or made once more equals what it was made from."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from typing import Any, Final

import numpy as np
import pytest

from llmcalc import (
    Breakdown,
    GiB,
    Layout,
    ModelSpec,
    files,
    formats,
    hardware,
    huggingface,
    load_model,
    memory,
    planning,
    roofline,
    serving,
    spec,
)
from llmcalc.huggingface import catalogue
from llmcalc.roofline import efficiencies, fitting
from llmcalc.tables import Table, column, labels
from llmcalc.units import Seconds
from tests.truth import rows

#: How anything is copied.
COPIES: Final[dict[str, Callable[[Any], Any]]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),  # noqa: S301  # our own bytes
}

WIDE: Final[dict[str, Any]] = {"weights": "bf16", "kv": "bf16"}
BATCHES: Final = np.array([1, 8, 64])
H100: Final = "H100-SXM-80GB"

LOG: Final = """
INFO worker.py:267] the current vLLM instance can use total_gpu_memory (79.15GiB)
 x gpu_memory_utilization (0.70) = 55.40GiB
INFO worker.py:267] model weights take 8.63GiB; non_torch_memory takes 0.09GiB;
 PyTorch activation peak memory takes 1.16GiB;
 the rest of the memory reserved for KV Cache is 45.21GiB.
"""

CONFIGS: Final = {
    row["model_type"]: row["config"]
    for row in rows("default_configs")
    if row["scope"] in {"in-first", "in-second"}
}


def llama() -> ModelSpec:
    return load_model("llama-3-8b")


def step(**workload: Any) -> roofline.StepTime:
    layout = Layout(tensor_parallel=2)
    return roofline.step_time(llama(), H100, new=1, layout=layout, **WIDE, **workload)


def sweep() -> roofline.Sweep:
    return roofline.sweep(
        llama(), devices=[H100, "L4"], tensor_parallel=[1, 2, 3],
        batch=BATCHES, new=1, past=4095, **WIDE,
    )  # fmt: skip


def run() -> roofline.Run:
    return roofline.run(llama(), H100, prompt=512, new_tokens=9, **WIDE)


def measurement() -> roofline.Measurement:
    return roofline.Measurement(run=run(), of="all", seconds=0.25)


def table() -> Table:
    return Table(
        (
            labels("device", ["L4", "A10", "L4"]),
            column("exact", [1, 2**80, None]),
            column("rate", [1.5, float("nan"), float("inf")], "tokens/s"),
            column("fits", [True, False, True]),
        ),
        notes=("measured",),
    )


#: A way to make each kind of result; another one is one line.
RESULTS: Final[dict[str, Callable[[], object]]] = {
    # What models are.
    "spec": llama,
    "hand-made spec": lambda: ModelSpec.assignment_decoder(
        vocab_size=100, d_model=64, d_ff=128, num_layers=2, max_seq_len=64
    ),
    "quantised spec": lambda: load_model("gpt-oss-120b"),
    "entries": lambda: llama().ledger.entries,
    "tensors": lambda: llama().ledger.tensors,
    "spans": lambda: (spec.Full(), spec.Window(8), spec.Chunk(8), spec.Constant()),
    "catalogue": lambda: tuple(map(catalogue.find, catalogue.names())),
    "supported": huggingface.supported,
    "supported types": lambda: tuple(huggingface.supported().values()),
    # Formats, devices and layouts.
    "formats": lambda: tuple(map(formats.get, formats.names())),
    "schemes": lambda: tuple(
        formats.scheme(name, llama()) for name in formats.scheme_names() if name != "checkpoint"
    ),
    "stated scheme": lambda: formats.scheme("checkpoint", load_model("gpt-oss-120b")),
    "devices": lambda: tuple(map(hardware.get, hardware.names())),
    "layout": lambda: Layout(tensor_parallel=2, pipeline_parallel=2, engine="vllm"),
    "stages": lambda: Layout(pipeline_parallel=2).stages(llama()),
    "rank": lambda: Layout(tensor_parallel=2, pipeline_parallel=2).rank(3, llama()),
    "ranks": lambda: Layout(tensor_parallel=2, pipeline_parallel=3).first_ranks(llama()),
    "layouts": lambda: tuple(planning.possible_layouts(llama(), 8)),
    "own scheme": lambda: formats.Coverage(
        name="own", wide=formats.get("bf16"), layers={"decoder": range(32)},
        rules=(formats.Rule(format=formats.get("int8"), targets=("re:.*layers\\.[01]\\.",)),),
    ),
    # Memory.
    "parameters": lambda: memory.parameters(llama()),
    "groups": lambda: memory.parameters(llama()).by(),
    "groups of steps": lambda: roofline.flops(llama(), batch=BATCHES, new=1, past=7).by(),
    "weights": lambda: memory.weight_bytes(llama(), weights="bf16", tensor_parallel=2),
    "cache": lambda: memory.kv_cache_bytes(llama(), context=1024, batch=1, kv="bf16"),
    "caches": lambda: memory.kv_cache_bytes(llama(), context=BATCHES, batch=1, kv="bf16"),
    "huge caches": lambda: memory.kv_cache_bytes(
        llama(), context=2**40 * BATCHES, batch=2**20, kv="bf16"
    ),
    "seconds": lambda: Breakdown(Seconds, "waited", ()),
    "fit": lambda: memory.fit(llama(), device_memory=80 * GiB, context=4096, **WIDE),
    "longest context": lambda: memory.max_context(llama(), device_memory=80 * GiB, **WIDE),
    "placement": lambda: planning.fewest_devices(
        llama(), device=H100, context=4096, batch=8, **WIDE
    ),
    "plan": lambda: planning.plan(
        llama(), devices=[H100, "L4"], context=4096, batch=8, weights=["bf16", "Q4_K_M"]
    ),
    "what does not fit": lambda: planning.fewest_devices(
        llama(), device="L4", context=8192, batch=999, max_devices=2, **WIDE
    ),
    "plan of nothing": lambda: planning.plan(llama(), devices="L4", counts=1, context=10**6),
    # Steps.
    "FLOPs": lambda: roofline.flops(llama(), batch=1, new=1, past=1023),
    "FLOPs of many": lambda: roofline.flops(llama(), batch=BATCHES, new=1, past=1023),
    "bytes of many": lambda: roofline.bytes_moved(
        llama(), batch=BATCHES, new=1, past=1023, **WIDE
    ),
    "exchanges": lambda: roofline.collectives(
        llama(), batch=BATCHES, new=1, past=7, layout=Layout(tensor_parallel=2)
    ),
    "requests": lambda: roofline.Requests(batch=BATCHES, new=1, past=0),
    "step": lambda: step(batch=1, past=1023),
    "steps": lambda: step(batch=BATCHES, past=1023),
    "times of items": lambda: step(batch=BATCHES, past=1023).items,
    "generation": lambda: roofline.generation(
        llama(), H100, prompt=64, new_tokens=8, batch=BATCHES, **WIDE
    ),
    "sweep": sweep,
    "frontier": lambda: roofline.frontier(llama(), devices=[H100, "L4"], context=4096, **WIDE),
    # Forecasts.
    "run": run,
    "forecast": lambda: roofline.forecast(
        llama(), "RTX-6000-Ada", engine="llama.cpp", prompt=64, new_tokens=8,
        weights="Q4_K_M", kv="fp16",
    ),
    "calibration": lambda: efficiencies.get("llama.cpp", "RTX-3090"),
    "measurement": measurement,
    "fitted": lambda: fitting.fit([measurement()]),
    # Serving.
    "profiles": lambda: tuple(map(serving.profile, serving.profiles())),
    "allocation": lambda: serving.policies(
        llama(), context=1000, kv="bf16", max_context=8192
    ),
    "loaded weights": lambda: serving.loaded_weights(llama(), weights="bf16"),
    "activation peak": lambda: serving.activation_peak(llama()),
    "kernels of an engine": lambda: serving.profile("vllm-0.19").mxfp4_kernels,
    "budget": lambda: serving.budget(llama(), context=8192, device=H100, **WIDE),
    "log": lambda: serving.parse_log(LOG),
    "reconciliation": lambda: serving.reconcile(LOG, model=llama()),
    # Tables and files.
    "table": table,
    "column": lambda: table().columns[1],
    "rows": lambda: tuple(table().take(slice(1)).rows()),
    "tensor of a file": lambda: files.FileTensor(
        name="a", shape=(2, 3), dtype="BF16", bytes=12, file="x.safetensors"
    ),
    "comparison": lambda: files.Comparison(name="a", file={"head": 2}, described={"head": 3}),
}  # fmt: skip


def hash_of(one: object) -> int | None:
    """Return the hash, `None` where there is none."""
    try:
        return hash(one)
    except TypeError:
        return None


def assert_alike(again: object, made: object) -> None:
    assert type(again) is type(made)
    assert again == made
    assert hash_of(again) == hash_of(made)


@pytest.mark.parametrize("name", RESULTS)
def test_two_answers_to_one_question_are_equal(name: str) -> None:
    assert_alike(RESULTS[name](), RESULTS[name]())


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", RESULTS)
def test_a_copy_of_a_result_equals_it(name: str, how: str) -> None:
    made = RESULTS[name]()
    assert_alike(COPIES[how](made), made)


def test_results_of_different_questions_differ() -> None:
    made = {name: make() for name, make in RESULTS.items()}
    equal = [(one, other) for one, other in combinations(made, 2) if made[one] == made[other]]
    assert equal == []


def answers() -> dict[str, object]:
    return {name: make() for name, make in RESULTS.items()}


def test_what_another_process_answers_equals_the_answer_of_this_one() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        made = pool.submit(answers).result()
    for name, again in made.items():
        assert_alike(again, RESULTS[name]())


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_config_gives_one_description_whoever_reads_it_and_however_it_is_copied(
    model_type: str,
) -> None:
    made = load_model(CONFIGS[model_type])
    for again in (load_model(CONFIGS[model_type]), *(make(made) for make in COPIES.values())):
        assert_alike(again, made)
        assert again.ledger.entries == made.ledger.entries
        assert again.multi_token_ledger.entries == made.multi_token_ledger.entries


def test_a_copy_of_a_used_description_equals_one_that_was_never_asked() -> None:
    used = llama()
    memory.parameters(used)
    roofline.flops(used, batch=1, new=1, past=0)
    formats.scheme("Q4_K_M", used)
    for make in COPIES.values():
        assert_alike(make(used), llama())
