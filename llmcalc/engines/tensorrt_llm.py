"""TensorRT-LLM: its rules. The numbers of its versions are in ``llmcalc/data/engines.json``."""

from __future__ import annotations

from typing import Final

from llmcalc.engines.engine import Engine

_TITLE: Final = "TensorRT-LLM"

ENGINES: Final = (
    Engine(
        name="tensorrt-llm",
        title=_TITLE,
        pool_rule="free",
        calibration=_TITLE,
        sources={
            "pool_rule": "NVIDIA/TensorRT-LLM: KvCacheConfig.free_gpu_memory_fraction",
            "calibration": "data/efficiencies.json",
        },
    ),
)
