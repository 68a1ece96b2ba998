"""llama.cpp: its rules. Its numbers are in ``llmcalc/data/engines.json``."""

from __future__ import annotations

from typing import Final

from llmcalc.engines.engine import Conventions, Engine, LogWords

_TITLE: Final = "llama.cpp"

#: llama.cpp (May 2024) expands quantised weights and multiplies them with cuBLAS in fp16, which it
#: also accumulates in (``ggml-cuda.cu``, ``CUBLAS_COMPUTE_16F``), keeps activations in float32,
#: does not fuse attention without ``-fa``, and reads prompts in micro-batches of 512 tokens. Of
#: these it keeps four copies of what stages hand on (``GGML_SCHED_MAX_COPIES``). One host launches
#: for all devices, each of which queues some 1024 kernels: a layer is 14 elementwise kernels, three
#: for each of 7 products (inputs to fp16, product, outputs to fp32), a fourth where weights are
#: expanded, and four for each of two products of attention, 43 in all. Of 45, which are taken, 20
#: layers with expanded weights launch more than a queue holds and 20 others do not, as rows of four
#: devices show.
_CONVENTIONS: Final = Conventions(
    attention="standard",
    activations="fp32",
    chunk=512,
    in_flight=4,
    queue=1024,
    layer_launches=45,
    compute=("fp16_fp16acc", "fp16", "fp32"),
)

ENGINES: Final = (
    Engine(
        name="llama.cpp",
        title=_TITLE,
        pool_rule="cells",
        calibration=_TITLE,
        conventions=_CONVENTIONS,
        log=LogWords(counts_slots=True),
        sources={
            "pool_rule": "ggml-org/llama.cpp: llama-kv-cache.cpp reserves n_ctx cells",
            "calibration": "data/efficiencies.json",
            "conventions": "ggml-org/llama.cpp, May 2024: ggml-cuda.cu, ggml-backend.c, llama.cpp",
            "log": "its start-up logs (tests/data/engine_logs.jsonl)",
        },
    ),
)
