"""Type checkers infer what users rely on, and refuse what is wrong at run time, too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

#: Each line that ends in a marker must be an error of that code, no other line may be one.
MISTAKES = """\
from llmcalc import DeviceSpec, GiB, Layout, ModelSpec
from llmcalc import engines, hardware, load_model, memory, roofline
from llmcalc.breakdown import Breakdown
from llmcalc.units import Flops


def wrong(spec: ModelSpec, device: DeviceSpec) -> None:
    weights = memory.weight_bytes(spec, weights="bf16")
    memory.parameters(spec) + weights  # E: operator
    sum_of_units: Breakdown[Flops] = weights  # E: assignment
    weights.total = 3  # E: misc
    weights.terms[0].path = ()  # E: misc
    spec.embed_dim = 8  # E: misc
    device.memory_bytes = 8  # E: misc
    memory.weight_bytes(spec)  # E: call-arg
    memory.weight_bytes(spec, "bf16")  # E: call-arg
    memory.weight_bytes(spec, weights=2)  # E: arg-type
    memory.kv_cache_bytes(spec, context=1024)  # E: call-overload
    memory.kv_cache_bytes(spec, context="1024", kv="bf16")  # E: call-overload
    memory.max_context(spec, device_memory=80.0, weights="bf16", kv="bf16")  # E: call-overload
    memory.fit(spec, device_memory=GiB, context=1.0, weights="bf16", kv="bf16")  # E: arg-type
    batch = memory.max_batch_size(spec, device_memory=GiB, context=1, weights="bf16", kv="bf16")
    batch + 1  # E: operator
    limit = memory.max_context(spec, device_memory=GiB, weights="bf16", kv="bf16")
    limit.limited_by  # E: union-attr
    roofline.attention_bytes(queries=1, keys=1, head_dim=1, element_bytes=2)  # E: call-overload
    roofline.attention_bytes(  # E: call-overload
        queries=1, keys=1, head_dim=1, element_bytes=2, algorithm="fast"
    )
    roofline.flops(spec, batch=1, new=1, past=0, logits="first")  # E: call-overload
    roofline.flops(spec, batch=1.0, new=1, past=0)  # E: call-overload
    roofline.flops(spec, batch=1, new=1, past=0, layout="tp2")  # E: call-overload
    roofline.flops(spec, batch=1, new=1, past=0, mixed_with=[(1, 1, 0)])  # E: list-item
    ModelSpec.dense(name="a", num_layers=1)  # E: call-arg
    ModelSpec.dense("a", num_layers=1)  # E: call-arg
    load_model(8)  # E: arg-type
    hardware.get(8)  # E: arg-type
    engines.get(8)  # E: arg-type
    Layout(engine=8)  # E: arg-type
    hardware.get("L4").peak(8)  # E: arg-type
"""


_INTS = "numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]"
_FLOATS = "numpy.ndarray[tuple[Any, ...], numpy.dtype[numpy.floating[Any]]]"

#: Expressions, by the type that must be revealed. In them ``ints`` is an integer array; arguments
#: that do not matter here are in `_SPELLED_OUT`.
REVEALED = {
    "int": [
        "memory.parameters(spec).total",
        "memory.kv_cache_bytes(spec, context=1, kv='bf16').total",
        "roofline.flops(spec, batch=1, new=1, past=0).total",
        "roofline.attention_flops(queries=1, keys=1, head_dim=1)",
        "roofline.attention_bytes(queries=1, keys=1, head_dim=1, **how)",
        "roofline.experts_touched(num_experts=8, experts_per_token=2, tokens=3, reads='most')",
    ],
    "int | None": ["memory.max_batch_size(spec, device_memory=1, context=1, **formats)"],
    "float": [
        "roofline.attention_intensity(queries=1, keys=1, head_dim=1, **how)",
        "roofline.experts_touched(num_experts=8, experts_per_token=2, tokens=3)",
        "roofline.step_time(spec, 'L4', batch=1, new=1, past=0, **formats).ridge_point",
    ],
    "llmcalc.memory.limits.ContextLimit | None": [
        "memory.max_context(spec, device_memory=1, **formats)",
    ],
    "llmcalc.memory.fitting.Fit": ["memory.fit(spec, device_memory=1, context=1, **formats)"],
    "llmcalc.breakdown.Breakdown[llmcalc.units.Params, int]": ["memory.parameters(spec)"],
    "llmcalc.breakdown.Breakdown[llmcalc.units.Bytes, int]": [
        "memory.weight_bytes(spec, weights='bf16')",
        "memory.kv_cache_bytes(spec, context=1, kv='bf16')",
        "roofline.bytes_moved(spec, batch=1, new=1, past=0, **formats)",
    ],
    "llmcalc.breakdown.Breakdown[llmcalc.units.Flops, int]": [
        "roofline.flops(spec, batch=1, new=1, past=0)",
        "roofline.flops(spec, batch=1, new=1, past=0, tensor_parallel=2)",
        "roofline.flops(spec, batch=1, new=1, past=0, layout=layout, rank=1)",
        "roofline.flops(spec, batch=1, new=1, past=0, mixed_with=[requests])",
    ],
    f"llmcalc.breakdown.Breakdown[llmcalc.units.Bytes, {_INTS}]": [
        "memory.kv_cache_bytes(spec, context=ints, kv='bf16')",
        "memory.kv_cache_bytes(spec, context=1, batch=ints, kv='bf16')",
        "roofline.bytes_moved(spec, batch=1, new=1, past=ints, **formats)",
        "roofline.bytes_moved(spec, batch=ints, new=1, past=1, layout=layout, rank=1, **formats)",
    ],
    f"llmcalc.breakdown.Breakdown[llmcalc.units.Flops, {_INTS}]": [
        "roofline.flops(spec, batch=ints, new=1, past=0)",
        "roofline.flops(spec, batch=1, new=ints, past=0)",
        "roofline.flops(spec, batch=1, new=1, past=ints)",
        "roofline.flops(spec, batch=1, new=1, past=ints, mixed_with=(requests,))",
    ],
    _INTS: [
        "memory.max_batch_size(spec, device_memory=ints, context=1, **formats)",
        "memory.max_batch_size(spec, device_memory=1, context=ints, **formats)",
        "memory.max_context(spec, device_memory=ints, **formats)",
        "memory.max_context(spec, device_memory=1, batch=ints, **formats)",
        "roofline.attention_flops(queries=ints, keys=1, head_dim=1)",
        "roofline.attention_flops(queries=1, keys=ints, head_dim=1)",
        "roofline.attention_flops(queries=1, keys=1, head_dim=1, batch=ints)",
        "roofline.attention_bytes(queries=ints, keys=ints, head_dim=1, **how)",
        "roofline.experts_touched(num_experts=8, experts_per_token=2, tokens=ints, reads='most')",
    ],
    _FLOATS: [
        "roofline.attention_intensity(queries=1, keys=ints, head_dim=1, **how)",
        "roofline.attention_intensity(queries=1, keys=1, head_dim=1, batch=ints, **how)",
        "roofline.experts_touched(num_experts=8, experts_per_token=2, tokens=ints)",
    ],
    "llmcalc.engines.engine.Engine": ["engines.get('vllm')", "serving.profile('vllm')"],
    "llmcalc.engines.placement.Placement": ["layout.placement"],
    "tuple[llmcalc.roofline.communication.Collective, ...]": [
        "roofline.collectives(spec, batch=1, new=1, past=0, layout=layout)",
    ],
}
_REVEAL = """\
import numpy as np
from numpy.typing import NDArray

from llmcalc import Layout, ModelSpec, engines, memory, roofline, serving


def reveal(
    spec: ModelSpec, ints: NDArray[np.int64], layout: Layout, requests: roofline.Requests
) -> None:
"""
_SPELLED_OUT = {
    "**formats": "weights='bf16', kv='bf16'",
    "**how": "element_bytes=2, algorithm='flash'",
}


def mypy(*arguments: str) -> str:
    """Run mypy strict by the project's settings, and return what it prints."""
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(ROOT / ".mypy_cache" / "typing-tests"), "--no-error-summary"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode in {0, 1}, done.stderr  # 2 is a crash
    return done.stdout


def test_the_cases_are_inferred_as_they_say() -> None:
    assert not mypy(str(Path(__file__).parent / "cases.py"))


def test_every_mistake_is_an_error_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "mistakes.py"
    path.write_text(MISTAKES, encoding="utf-8")
    found: dict[int, set[str]] = {}
    for line, code in re.findall(r"^\S+?:(\d+): error: .*\[([\w-]+)\]$", mypy(str(path)), re.M):
        found.setdefault(int(line), set()).add(code)
    expected = {
        number: set(line.partition("# E: ")[2].split(","))
        for number, line in enumerate(MISTAKES.splitlines(), start=1)
        if "# E: " in line
    }
    assert found == expected


def test_scalars_and_arrays_reveal_their_own_types(tmp_path: Path) -> None:
    pairs = [(kind, call) for kind, calls in REVEALED.items() for call in calls]
    text = _REVEAL + "".join(f"    reveal_type({call})\n" for _, call in pairs)
    for short, long in _SPELLED_OUT.items():
        text = text.replace(short, long)
    path = tmp_path / "revealed.py"
    path.write_text(text, encoding="utf-8")
    revealed = re.findall(r'note: Revealed type is "(.*)"', mypy(str(path)))
    assert revealed == [kind for kind, _ in pairs]
