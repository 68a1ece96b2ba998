"""The tables that the course assignment prints, and the exact counts beside them."""

from __future__ import annotations

import pytest

from llmcalc import GiB, ModelSpec, memory, roofline

SIZES = {
    "name": "llama-3-8b",
    "num_layers": 32,
    "num_query_heads": 32,
    "num_kv_heads": 8,
    "embed_dim": 4096,
    "inner_dim": 14336,
    "vocab_size": 128256,
}
ASSIGNMENT = ModelSpec.assignment(**SIZES)  # type: ignore[arg-type]  # mixed keyword values
EXACT = ModelSpec.dense(**SIZES)  # type: ignore[arg-type]


def test_the_assignments_parameters_are_reproduced_to_the_digit() -> None:
    assert memory.parameters(ASSIGNMENT).total == 5_614_665_728
    weights = memory.weight_bytes(ASSIGNMENT, weights="bf16").total
    assert f"{weights / GiB:.3f}" == "10.458"


@pytest.mark.parametrize(
    ("context", "cache_gib", "batch", "exact_batch"),
    [(1024, 0.125, 556, 520), (2048, 0.25, 278, 260), (4096, 0.5, 139, 130)],
)
def test_cache_and_batch_by_context(
    context: int, cache_gib: float, batch: int, exact_batch: int
) -> None:
    for spec, expected in ((ASSIGNMENT, batch), (EXACT, exact_batch)):
        cache = memory.kv_cache_bytes(spec, context=context, kv="bf16").total
        assert cache == cache_gib * GiB
        answer = memory.fit(
            spec, device_memory=80 * GiB, context=context, weights="bf16", kv="bf16"
        )
        assert answer.max_batch_size == expected


@pytest.mark.parametrize(
    ("degree", "weights_gib", "cache_gib", "batch"),
    [(2, "5.229", "0.062", 1196), (4, "2.615", "0.031", 2476), (8, "1.307", "0.016", 5036)],
)
def test_the_assignments_tensor_parallel_table_is_reproduced(
    degree: int, weights_gib: str, cache_gib: str, batch: int
) -> None:
    weights = memory.weight_bytes(ASSIGNMENT, weights="bf16", tensor_parallel=degree).total
    cache = memory.kv_cache_bytes(ASSIGNMENT, context=1024, kv="bf16", tensor_parallel=degree).total
    assert f"{weights / GiB:.3f}" == weights_gib
    assert f"{cache / GiB:.3f}" == cache_gib
    assert (
        memory.max_batch_size(
            ASSIGNMENT,
            device_memory=80 * GiB,
            context=1024,
            weights="bf16",
            kv="bf16",
            tensor_parallel=degree,
        )
        == batch
    )


@pytest.mark.parametrize(
    ("algorithm", "prefill", "decode"),
    [("assignment", "71.310", "0.998"), ("standard", "57.444", "0.993")],
)
def test_attention_intensity_at_1024_by_128(
    algorithm: roofline.Algorithm, prefill: str, decode: str
) -> None:
    for queries, expected in ((1024, prefill), (1, decode)):
        intensity = roofline.attention_intensity(
            queries=queries, keys=1024, head_dim=128, element_bytes=2, algorithm=algorithm
        )
        assert f"{intensity:.3f}" == expected


def test_the_assignments_batched_decode_shares_one_cache_and_both_readings_are_offered() -> None:
    # (2N + 1) d + 3 N B elements shared, B ((2N + 1) d + 3 N) apart, at N = 1024, d = 128, B = 8.
    shared, apart = (
        roofline.attention_bytes(
            queries=1,
            keys=1024,
            head_dim=128,
            element_bytes=2,
            algorithm="assignment",
            batch=8,
            shared_kv=shared_kv,
        )
        for shared_kv in (None, False)
    )
    assert shared == 2 * (2049 * 128 + 3 * 1024 * 8)
    assert apart == 8 * 2 * (2049 * 128 + 3 * 1024)


def test_decode_wins_where_one_token_is_both_prefill_and_decode() -> None:
    assert (
        roofline.attention_bytes(
            queries=1, keys=1, head_dim=128, element_bytes=1, algorithm="assignment"
        )
        == 3 * 128 + 3
    )


def test_the_whole_models_flops_are_the_hand_worked_sum() -> None:
    # 4096 tokens, full square, all logits: per layer 2 * 4096 * (4096 * 4096 * 2 + 4096 * 1024 * 2
    # + 3 * 4096 * 14336) + 4 * 32 * 128 * 4096**2, 32 layers, and a head of 2 * 4096 * 4096 *
    # 128256.
    total = roofline.flops(EXACT, batch=1, new=4096, past=0, causal=False, logits="all").total
    assert total == 70_274_254_897_152
