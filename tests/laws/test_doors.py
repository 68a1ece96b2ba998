"""What every public question has in common: whom it asks, and how its answer is shown."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import llmcalc
from llmcalc import (
    GiB,
    Layout,
    LlmcalcError,
    engines,
    hardware,
    load_model,
    memory,
    planning,
    roofline,
    serving,
)

LLAMA = load_model("llama-3-8b")
CHIP = hardware.get("A100-SXM-80GB")

#: What a question needs beside the model.
GIVEN: dict[str, Any] = {
    "activation_bytes": GiB,
    "batch": 1,
    "context": 100,
    "contexts": [1, 2],
    "counts": [1],
    "device": CHIP,
    "device_memory": 80 * GiB,
    "devices": [CHIP],
    "efficiency": roofline.Efficiency(),
    "figures": "all",
    "kv": "bf16",
    "layout": Layout(),
    "name": "none",
    "new": 1,
    "new_tokens": 2,
    "path": "none.gguf",
    "past": 10,
    "prompt": 10,
    "rank": 0,
    "tensor_parallel": 1,
    "tokens": 10,
    "value": 1,
    "visible_bytes": 80 * GiB,
    "weights": "bf16",
}

#: Callables that take a model, but are no questions about one.
NO_QUESTIONS = {
    "DecoderLayer",
    "Demand",
    "Ledger",
    "Placement",
    "Question",
    "Reconciliation",
    "Stated",
    "Sweep",
}


def _questions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Give every public function or class with a ``spec``, once."""
    seen = set()
    for info in pkgutil.walk_packages(llmcalc.__path__, "llmcalc."):
        if "__main__" in info.name or "readers" in info.name:
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            found = getattr(module, name)
            if name in NO_QUESTIONS or not callable(found) or id(found) in seen:
                continue
            seen.add(id(found))
            try:
                parameters = inspect.signature(found).parameters
            except ValueError:  # a class that is written in C
                continue
            if "spec" in parameters:
                yield f"{found.__module__}.{name}", found


QUESTIONS = dict(_questions())


def test_there_are_questions() -> None:
    assert len(QUESTIONS) > 30


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_model_is_asked_and_not_its_name(name: str) -> None:
    question = QUESTIONS[name]
    positional, keywords = [], {}
    for one in inspect.signature(question).parameters.values():
        value: Any = "llama-3-8b" if one.name == "spec" else GIVEN.get(one.name)
        if one.name != "spec" and (one.default is not one.empty or one.kind is one.VAR_KEYWORD):
            continue
        if one.kind is one.KEYWORD_ONLY:
            keywords[one.name] = value
        else:
            positional.append(value)
    if name.endswith("roofline.forecasts.forecast"):
        keywords["engine"] = "vllm"
    with pytest.raises(LlmcalcError, match=r"spec = 'llama-3-8b': .*load_model"):
        question(*positional, **keywords)


FORMATS: dict[str, Any] = {"weights": "bf16", "kv": "bf16"}
STEP: dict[str, Any] = {"batch": 1, "new": 1, "past": 1023, **FORMATS}


def test_the_answer_is_in_the_repr() -> None:
    fit = memory.fit(LLAMA, device_memory=80 * GiB, context=1024, **FORMATS)
    assert f"fits: {fit.reason.removeprefix('fits: ')}; largest batch {fit.max_batch_size}" in repr(
        fit
    )
    step = roofline.step_time(LLAMA, CHIP, **STEP)
    assert f"{step.seconds:.6g} s, at least {step.bound_seconds:.6g} s" in repr(step)
    made = roofline.generation(LLAMA, CHIP, prompt=100, new_tokens=10, **FORMATS)
    assert f"{made.tokens_per_second:.6g} tokens/s" in repr(made)
    answer = roofline.forecast(LLAMA, CHIP, engine="vllm", prompt=100, new_tokens=10, **FORMATS)
    assert f"{answer.tokens_per_second:.6g} tokens/s" in repr(answer)
    assert f"{answer.run.seconds():.6g} s" in repr(answer.run)
    budget = serving.budget(LLAMA, visible_bytes=80 * GiB, context=8192, **FORMATS)
    assert budget.reason in repr(budget)
    request = serving.allocate(LLAMA, context=1000, kv="bf16", policy="paged")
    assert f"in {request.blocks} blocks" in repr(request)
    assert "32 layers (32 decoder), width 4096, vocabulary 128256" in repr(LLAMA)


def test_reprs_are_short() -> None:
    arrays = roofline.step_time(LLAMA, CHIP, **{**STEP, "past": np.arange(100)})
    plan = planning.plan(LLAMA, context=1024, batch=10, devices=[CHIP], **FORMATS)
    log = serving.parse_log("Available KV cache memory: 58.11 GiB", engine="vllm")
    many = load_model("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4")
    answers = (
        LLAMA,
        many,
        arrays,
        plan,
        plan.best,
        log,
        engines.get("vllm"),
        memory.parameters(many),
        roofline.forecast(LLAMA, CHIP, engine="vllm", prompt=9, new_tokens=1, **FORMATS),
        roofline.generation(
            LLAMA, CHIP, prompt=np.array([9, 90]), new_tokens=2, batch=1, **FORMATS
        ),
    )
    for answer in answers:
        assert len(repr(answer)) <= 400, repr(answer)
        assert len(repr(answer).splitlines()) <= 5


def test_a_reconciliation_says_its_sentence() -> None:
    found = serving.reconcile(
        "Initializing a V1 LLM engine (v0.19.0) with config: model='meta-llama/Llama-3.1-8B'\n"
        "worker init memory snapshot: free_memory=78.68GiB, total_memory=79.19GiB\n"
        "Initial free memory: 78.68 GiB; Requested memory: 0.950000 (util), 75.23 GiB\n"
        "Model loading took 14.99 GiB memory and 4 seconds\n"
        "Available KV cache memory: 58.11 GiB\n"
        "Maximum concurrency for 8,192 tokens per request: 58.11x\n"
    )
    assert found.explanation in repr(found)
    assert len(repr(found)) <= 400
