"""What each rank holds, against a decoder that PyTorch spreads over real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmcalc import Layout, ModelSpec, memory
from tests.sharded import measure

TOKENS = 9

#: Options of every kind: biases on both sides of a split, LayerNorm, learned positions, a tied
#: head, an odd vocabulary.
GATED: dict[str, Any] = {
    "name": "gated",
    "num_layers": 4,
    "num_query_heads": 8,
    "num_kv_heads": 4,
    "embed_dim": 32,
    "inner_dim": 48,
    "vocab_size": 40,
}
BIASED = GATED | {
    "name": "biased",
    "gated": False,
    "activation": "gelu",
    "norm": "layer",
    "positions": "learned",
    "max_positions": 16,
    "query_key_value_bias": True,
    "attention_output_bias": True,
    "feed_forward_bias": True,
    "tied_head": True,
}
FEW_KV_HEADS = GATED | {"name": "few KV heads", "num_kv_heads": 2}
ODD = GATED | {"name": "odd vocabulary", "vocab_size": 41, "head_bias": True}


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        (2, [(BIASED, 1), (ODD, 1), (BIASED, 2)]),
        pytest.param(
            4,
            [(GATED, 1), (BIASED, 1), (FEW_KV_HEADS, 1), (GATED, 2), (BIASED, 2), (GATED, 4)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_each_rank_holds_the_bytes_of_the_formula_and_all_compute_the_same_logits(
    ranks: int, cases: list[tuple[dict[str, Any], int]], tmp_path: Path
) -> None:
    asked = [{"sizes": sizes, "stages": stages, "tokens": TOKENS} for sizes, stages in cases]
    for rank, measured in enumerate(measure(asked, ranks, tmp_path)):
        for (sizes, stages), got in zip(cases, measured, strict=True):
            spec = ModelSpec.dense(**sizes)
            layout = Layout(tensor_parallel=ranks // stages, pipeline_parallel=stages)
            held = memory.weight_bytes(spec, weights="fp32", layout=layout, rank=rank)
            cache = memory.kv_cache_bytes(spec, context=TOKENS, kv="fp32", layout=layout, rank=rank)
            assert got["weights"] == held.total, held.explain()
            assert got["cache"] == cache.total, cache.explain()
            last = rank // layout.tensor_parallel == stages - 1
            assert (got["error"] is not None) == last
            assert got["error"] is None or got["error"] < 1e-5
