"""How long importing, a first answer and further answers take: ``python tests/benchmarks/...``.

Fresh processes are run in turn, so that whatever else the machine does falls on all of them
alike. Each is timed twice: the statement by itself, inside the process, and the whole process,
with the interpreter's start and end. `import attrs` is the measure, because every description is
an attrs class. Nothing here passes or fails; the targets are printed beside the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

SIZES: Final = (
    "name='m', num_layers=32, num_query_heads=32, num_kv_heads=8, "
    "embed_dim=4096, inner_dim=14336, vocab_size=128256"
)
CONFIG: Final = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}

#: Name, statement, and how many times `import attrs` it may take.
PROCESSES: Final[tuple[tuple[str, str, float | None], ...]] = (
    ("import attrs", "import attrs", None),
    ("import llmcalc", "import llmcalc", 1.5),
    (
        "import, ModelSpec.dense, max_batch_size",
        (
            "from llmcalc import GiB, ModelSpec, memory\n"
            f"spec = ModelSpec.dense({SIZES})\n"
            "memory.max_batch_size("
            "spec, device_memory=80 * GiB, context=1024, weights='bf16', kv='bf16')"
        ),
        2.0,
    ),
    (
        "import, load_model, parameters",
        f"from llmcalc import load_model, memory\nmemory.parameters(load_model({CONFIG!r})).total",
        2.0,
    ),
)

#: One question may take this many microseconds.
QUESTION_TARGET: Final = 60


def seconds(statement: str, bytecode: Path) -> tuple[float, float]:
    """Time a statement in a fresh process: by itself, and the whole process."""
    code = (
        "from time import perf_counter\n"
        "start = perf_counter()\n"
        f"{statement}\n"
        "print(perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    # Installed packages have bytecode; so must a checkout, wherever Python may not write it.
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout), time.perf_counter() - start


def processes(runs: int, bytecode: Path) -> dict[str, tuple[float, float]]:
    """Return the median seconds of each statement and of its process, all of them run in turn."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in PROCESSES}
    for run in range(runs + 1):
        for name, statement, _ in PROCESSES:
            taken = seconds(statement, bytecode)
            if run:  # the first run of each fills the disk's cache and writes bytecode
                times[name].append(taken)
    return {
        name: (
            statistics.median(inside for inside, _ in values),
            statistics.median(whole for _, whole in values),
        )
        for name, values in times.items()
    }


def questions(count: int) -> dict[str, float]:
    """Return the median seconds of a question on a built spec, its arguments new every time."""
    from llmcalc import GiB, ModelSpec, memory

    spec = ModelSpec.dense(
        name="m",
        num_layers=32,
        num_query_heads=32,
        num_kv_heads=8,
        embed_dim=4096,
        inner_dim=14336,
        vocab_size=128256,
    )

    def fit(number: int) -> object:
        answer = memory.fit(
            spec,
            device_memory=80 * GiB + number,
            context=1024 + number,
            batch=1 + number,
            weights="bf16",
            kv="bf16",
        )
        return answer.fits, answer.max_batch_size

    def max_batch_size(number: int) -> object:
        return memory.max_batch_size(
            spec,
            device_memory=80 * GiB + number,
            context=1024 + number,
            weights="bf16",
            kv="bf16",
            tensor_parallel=1 << number % 4,
        )

    asked: dict[str, Callable[[int], object]] = {
        "fit, fits and max_batch_size": fit,
        "max_batch_size, 1 to 8 devices": max_batch_size,
    }
    times: dict[str, list[float]] = {name: [] for name in asked}
    for number in range(count):
        for name, ask in asked.items():
            start = time.perf_counter()
            ask(number)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=31, help="fresh processes of each kind")
    parser.add_argument("--questions", type=int, default=5000, help="questions of each kind")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as bytecode:
        fresh = processes(arguments.runs, Path(bytecode))
    asked = questions(arguments.questions)
    if arguments.json:
        print(json.dumps({"processes": fresh, "questions": asked}))
        return
    inside, whole = fresh["import attrs"]
    heading = f"fresh process, median of {arguments.runs}"
    print(f"{heading:42} {'ms':>8} {'ratio':>7} {'whole ms':>9} {'ratio':>7}  target")
    for name, _, target in PROCESSES:
        limit = "" if target is None else f"<= {target}"
        mine, process = fresh[name]
        print(
            f"{name:42} {mine * 1e3:8.2f} {mine / inside:7.2f} "
            f"{process * 1e3:9.2f} {process / whole:7.2f}  {limit}"
        )
    heading = f"question, median of {arguments.questions}"
    print(f"\n{heading:42} {'us':>8} {'':25}  target")
    for name, taken in asked.items():
        print(f"{name:42} {taken * 1e6:8.1f} {'':25}  <= {QUESTION_TARGET}")


if __name__ == "__main__":
    main()
