"""Type checkers infer what users rely on, and refuse what is wrong at run time, too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CASES = Path(__file__).parent / "cases.py"

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
    read = roofline.attention_bytes
    read(queries=1, keys=1, head_dim=1, element_bytes=2, algorithm="fast")  # E: call-overload
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
    roofline.step_times(spec)  # E: attr-defined
    memory.fit(spec, device_memory=GiB, context=1, weights="bf16", kv="bf16").fit  # E: attr-defined
"""


#: Expressions, by the type that checkers must infer. In them ``ints`` is an integer array;
#: arguments that do not matter here are in `_SPELLED_OUT`.
INFERRED = {
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
    "memory.ContextLimit | None": [
        "memory.max_context(spec, device_memory=1, **formats)",
    ],
    "memory.Fit": ["memory.fit(spec, device_memory=1, context=1, **formats)"],
    "Breakdown[Params]": ["memory.parameters(spec)"],
    "Breakdown[Bytes]": [
        "memory.weight_bytes(spec, weights='bf16')",
        "memory.kv_cache_bytes(spec, context=1, kv='bf16')",
        "roofline.bytes_moved(spec, batch=1, new=1, past=0, **formats)",
    ],
    "Breakdown[Flops]": [
        "roofline.flops(spec, batch=1, new=1, past=0)",
        "roofline.flops(spec, batch=1, new=1, past=0, tensor_parallel=2)",
        "roofline.flops(spec, batch=1, new=1, past=0, layout=layout, rank=1)",
        "roofline.flops(spec, batch=1, new=1, past=0, mixed_with=[requests])",
    ],
    "Breakdown[Bytes, NDArray[Any]]": [
        "memory.kv_cache_bytes(spec, context=ints, kv='bf16')",
        "memory.kv_cache_bytes(spec, context=1, batch=ints, kv='bf16')",
        "roofline.bytes_moved(spec, batch=1, new=1, past=ints, **formats)",
        "roofline.bytes_moved(spec, batch=ints, new=1, past=1, layout=layout, rank=1, **formats)",
    ],
    "Breakdown[Flops, NDArray[Any]]": [
        "roofline.flops(spec, batch=ints, new=1, past=0)",
        "roofline.flops(spec, batch=1, new=ints, past=0)",
        "roofline.flops(spec, batch=1, new=1, past=ints)",
        "roofline.flops(spec, batch=1, new=1, past=ints, mixed_with=(requests,))",
    ],
    "NDArray[Any]": [
        "memory.max_batch_size(spec, device_memory=ints, context=1, **formats)",
        "memory.max_batch_size(spec, device_memory=1, context=ints, **formats)",
        "memory.max_context(spec, device_memory=ints, **formats)",
        "memory.max_context(spec, device_memory=1, batch=ints, **formats)",
        "roofline.attention_flops(queries=ints, keys=1, head_dim=1)",
        "roofline.attention_flops(queries=1, keys=ints, head_dim=1)",
        "roofline.attention_flops(queries=1, keys=1, head_dim=1, batch=ints)",
        "roofline.attention_bytes(queries=ints, keys=ints, head_dim=1, **how)",
        "roofline.experts_touched(num_experts=8, experts_per_token=2, tokens=ints, reads='most')",
        "roofline.experts_touched(num_experts=8, experts_per_token=2, tokens=ints)",
    ],
    "NDArray[np.floating[Any]]": [
        "roofline.attention_intensity(queries=1, keys=ints, head_dim=1, **how)",
        "roofline.attention_intensity(queries=1, keys=1, head_dim=1, batch=ints, **how)",
    ],
    "engines.Engine": ["engines.get('vllm')", "serving.profile('vllm')"],
    "engines.Placement": ["layout.placement"],
    "tuple[roofline.Collective, ...]": [
        "roofline.collectives(spec, batch=1, new=1, past=0, layout=layout)",
    ],
}
_INFER = """\
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from llmcalc import Breakdown, Layout, ModelSpec, engines, memory, roofline, serving
from llmcalc.units import Bytes, Flops, Params


def infer(
    spec: ModelSpec, ints: NDArray[np.int64], layout: Layout, requests: roofline.Requests
) -> None:
"""
_SPELLED_OUT = {
    "**formats": "weights='bf16', kv='bf16'",
    "**how": "element_bytes=2, algorithm='flash'",
}


def inferred() -> str:
    """Return a module that asserts the type of every expression, a line for each."""
    text = _INFER + "".join(
        f"    assert_type({call}, {kind})\n" for kind, calls in INFERRED.items() for call in calls
    )
    for short, long in _SPELLED_OUT.items():
        text = text.replace(short, long)
    return text


def mistakes() -> dict[int, set[str]]:
    """Return the codes of the errors of `MISTAKES`, by their lines."""
    return {
        number: set(line.partition("# E: ")[2].split(","))
        for number, line in enumerate(MISTAKES.splitlines(), start=1)
        if "# E: " in line
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


def pyright(folder: Path) -> dict[str, dict[int, str]]:
    """Run pyright, strict, on the modules of a folder; return its messages by file and line."""
    settings = {
        "include": ["*.py"],
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": True,
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pyright", "--outputjson", "--project", str(folder)),
            *("--pythonpath", sys.executable),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode in {0, 1}, done.stderr  # more is a crash
    found: dict[str, dict[int, str]] = {}
    for one in json.loads(done.stdout)["generalDiagnostics"]:
        lines = found.setdefault(Path(one["file"]).name, {})
        lines[one["range"]["start"]["line"] + 1] = one["message"]
    return found


def test_the_cases_are_inferred_as_they_say() -> None:
    assert not mypy(str(CASES))


def test_every_mistake_is_an_error_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "mistakes.py"
    path.write_text(MISTAKES, encoding="utf-8")
    found: dict[int, set[str]] = {}
    for line, code in re.findall(r"^\S+?:(\d+): error: .*\[([\w-]+)\]$", mypy(str(path)), re.M):
        found.setdefault(int(line), set()).add(code)
    assert found == mistakes()


def test_scalars_and_arrays_have_their_own_types(tmp_path: Path) -> None:
    path = tmp_path / "inferred.py"
    path.write_text(inferred(), encoding="utf-8")
    assert not mypy(str(path))


def test_pyright_agrees_on_every_case_type_and_mistake(tmp_path: Path) -> None:
    # One run for all of them: starting takes longer than checking.
    modules = {
        "cases.py": CASES.read_text(encoding="utf-8"),
        "inferred.py": inferred(),
        "mistakes.py": MISTAKES,
    }
    for name, text in modules.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = pyright(tmp_path)
    wrong = found.pop("mistakes.py")
    assert found == {}
    assert {line: wrong.get(line, "no error") for line in wrong.keys() ^ mistakes().keys()} == {}
