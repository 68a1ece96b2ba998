"""vLLM: the rules of its versions. Their numbers are in ``llmcalc/data/engines.json``."""

from __future__ import annotations

from typing import Final

from llmcalc.engines.engine import Engine, LogWords
from llmcalc.engines.placement import Placement

_TITLE: Final = "vLLM"

#: What all versions have in common.
ENGINES: Final = (
    Engine(
        name="vllm",
        title=_TITLE,
        placement=Placement(
            engine=_TITLE,
            vocab_multiple=64,
            replicas_share_experts=True,
            splits_windows=False,
            divides_query_groups=True,
            whole_blocks=True,
        ),
        pool_rule="total",
        index_format="fp8-group128",
        state_format="model",
        calibration=_TITLE,
        log=LogWords(
            states_weights=True,
            words={
                "activation_bytes": "torch peak memory increase",
                "non_torch_bytes": "non-torch forward increase memory",
                "graph_bytes": "Estimated CUDA graph memory",
            },
        ),
        sources={
            "placement": (
                "vllm-project/vllm: distributed/utils.py (get_pp_indices), "
                "layers/vocab_parallel_embedding.py (DEFAULT_VOCAB_PADDING_SIZE), "
                "layers/fused_moe/config.py (flatten_tp_across_dp), config/vllm.py"
            ),
            "pool_rule": "vllm-project/vllm: gpu_worker.determine_available_memory",
            "vocab_multiple": (
                "vllm-project/vllm: vocab_parallel_embedding.DEFAULT_VOCAB_PADDING_SIZE"
            ),
            "index_format": "vllm-project/vllm: the sparse indexer's cache, 132 bytes a token",
            "state_format": (
                "vllm-project/vllm: layers/mamba/mamba_utils.py, mamba_ssm_cache_dtype = auto"
            ),
            "calibration": "data/efficiencies.json",
            "log": "its start-up logs (tests/data/engine_logs.jsonl)",
        },
    ),
)
