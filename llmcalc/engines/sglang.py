"""SGLang: its rules. The numbers of its versions are in ``llmcalc/data/engines.json``."""

from __future__ import annotations

from typing import Final

from llmcalc.engines.engine import Engine, LogWords
from llmcalc.engines.placement import BESIDE_ATTENTION, Placement

_TITLE: Final = "SGLang"

ENGINES: Final = (
    Engine(
        name="sglang",
        title=_TITLE,
        placement=Placement(
            engine=_TITLE,
            vocab_multiple=64,
            last_stages=True,
            shared_groups=BESIDE_ATTENTION,
            whole_blocks=True,
        ),
        pool_rule="static",
        index_format="fp8-group128",
        log=LogWords(states_weights=True, counts_all_ranks=True, counts_slots=True),
        sources={
            "placement": (
                "sgl-project/sglang: srt/distributed/utils.py (get_pp_indices), "
                "srt/layers/vocab_parallel_embedding.py"
            ),
            "pool_rule": (
                "sgl-project/sglang: model_runner.profile_max_num_token (free after loading - "
                "free before loading x (1 - mem_fraction_static))"
            ),
            "vocab_multiple": "sgl-project/sglang: vocab_parallel_embedding",
            "index_format": "sgl-project/sglang: the sparse indexer's cache, 132 bytes a token",
            "log": "its start-up logs (tests/data/engine_logs.jsonl)",
        },
    ),
)
