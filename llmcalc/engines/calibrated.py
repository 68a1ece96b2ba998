"""Engines of which only forecasts are known: how they compute a step, as it was measured."""

from __future__ import annotations

from typing import Final

from llmcalc.engines.engine import Conventions, Engine

_ACCUMULATED_IN_HALF: Final = ("fp16_fp16acc", "fp16", "fp32")


def _engine(title: str, source: str, conventions: Conventions | None = None) -> Engine:
    """Return an engine that is calibrated under its own title."""
    return Engine(
        name=title.casefold(),
        title=title,
        calibration=title,
        conventions=Conventions() if conventions is None else conventions,
        sources={"calibration": "data/efficiencies.json", "conventions": source},
    )


ENGINES: Final = (
    # The attention of the prompt is not fused in the next two.
    _engine(
        "FasterTransformer",
        "NVIDIA/FasterTransformer: utils/nccl_utils.cc (getLocalBatchSize)",
        Conventions(attention="standard", micro_batch_tokens=1024, compute=("fp16",)),
    ),
    _engine(
        "Megatron",
        "NVIDIA/FasterTransformer: the Megatron rows of its benchmarks",
        Conventions(attention="standard", compute=("fp16",)),
    ),
    # It keeps int8 weights as storage only.
    _engine("gpt-fast", "pytorch-labs/gpt-fast: model.py", Conventions(compute=("bf16",))),
    # It expands weights to fp16 and multiplies with cublasHgemm.
    _engine(
        "exllama",
        "turboderp/exllama: exllama_ext",
        Conventions(attention="standard", compute=_ACCUMULATED_IN_HALF),
    ),
    _engine(
        "exllamav2", "turboderp/exllamav2: exllamav2_ext", Conventions(compute=_ACCUMULATED_IN_HALF)
    ),
    # 0.1.6, which its rows are of, multiplies packed weights as they are, however many tokens
    # there are, and its prompts are first calls in a process.
    _engine(
        "AutoAWQ",
        "casper-hansen/AutoAWQ 0.1.6: awq/modules/linear/gemm.py, examples/benchmark.py",
        Conventions(attention="standard", compute=("fp16",)),
    ),
    _engine("lmdeploy", "InternLM/lmdeploy: its published measurements"),
    _engine("TGI", "huggingface/text-generation-inference: its published measurements"),
)
