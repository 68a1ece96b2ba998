"""Bounds of a step against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from llmcalc import load_model, roofline

WIDE: dict[str, Any] = {"weights": "bf16", "kv": "bf16"}

#: Llama-3-8B in bf16 at a context of 4096. H100 SXM: 989 TFLOP/s, 3.35 TB/s; A100 SXM 80 GB: 312
#: TFLOP/s, 2.039 TB/s. A prefill: 61.58 TFLOP with causal pairs and one head, 70.27 in full. A
#: decode step: 15.01 GB of weights and 0.537 GB of cache a request.
STEPS = [
    ("H100-SXM-80GB", 1, 4096, 0, {}, 62.3),
    ("H100-SXM-80GB", 1, 4096, 0, {"causal": False, "logits": "all"}, 71.1),
    ("H100-SXM-80GB", 32, 4096, 0, {}, 1992),
    ("H100-SXM-80GB", 32, 4096, 0, {"causal": False, "logits": "all"}, 2274),
    ("H100-SXM-80GB", 1, 1, 4095, {}, 4.64),
    ("H100-SXM-80GB", 32, 1, 4095, {}, 9.61),
    ("A100-SXM-80GB", 1, 4096, 0, {}, 197.4),
    ("A100-SXM-80GB", 32, 4096, 0, {}, 6315),
    ("A100-SXM-80GB", 1, 1, 4095, {}, 7.63),
    ("A100-SXM-80GB", 32, 1, 4095, {}, 15.8),
]


@pytest.mark.parametrize(("device", "batch", "new", "past", "options", "milliseconds"), STEPS)
def test_llama_3_8b_takes_at_least(
    device: str, batch: int, new: int, past: int, options: Any, milliseconds: float
) -> None:
    time = roofline.step_time(
        load_model("llama-3-8b"), device, batch=batch, new=new, past=past, **WIDE, **options
    )
    assert 1e3 * time.bound_seconds == pytest.approx(milliseconds, rel=0.002)


def test_the_flops_of_mixtral_are_those_worked_out_by_hand() -> None:
    # A token in a layer: 4096 x (4096 + 2 x 1024) + 4096 x 4096 for attention's projections,
    # 4096 x 8 for the router, 2 experts x 3 x 4096 x 14336; 32 layers; 4096 x 32000 for the head.
    projections = 4096 * (4096 + 2 * 1024) + 4096 * 4096
    layer = projections + 4096 * 8 + 2 * 3 * 4096 * 14336
    # Attention at position 100 (101 keys): 32 heads x (128 + 128) x 101.
    by_hand = 2 * (32 * (layer + 32 * 256 * 101) + 4096 * 32000)
    step = roofline.flops(load_model("mixtral-8x7b"), batch=1, new=1, past=100)
    assert step.total == by_hand == 25_550_127_104


def test_the_flops_of_deepseek_v3_are_those_worked_out_by_hand() -> None:
    # Queries: 7168 x 1536, 1536 x 128 heads x 192; latent: 7168 x 576; output: 128 x 128 x 7168.
    # Absorbed, keys and values of a token: 512 x 128 heads x (128 + 128).
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 128 * 128 * 7168
    attention += 512 * 128 * 256
    # 128 heads read 101 latents of 512 + 64 for scores and 512 for values.
    mixing = 128 * (576 + 512) * 101
    # 3 dense layers of 18432; 58 of a router, one shared and eight routed experts of 2048.
    dense = 3 * 7168 * 18432
    mixture = 7168 * 256 + 9 * 3 * 7168 * 2048
    by_hand = 2 * (61 * (attention + mixing) + 3 * dense + 58 * mixture + 7168 * 129280)
    step = roofline.flops(load_model("deepseek-v3"), batch=1, new=1, past=100, mla="absorbed")
    assert step.total == by_hand


def test_the_flops_of_gemma_2_are_those_worked_out_by_hand() -> None:
    # Width 3584, 16 query and 8 KV heads of 256, inner 14336, 42 layers, every other one with a
    # window of 4096; at position 9999 it attends 4096 keys, the others 10 000.
    projections = 3584 * 256 * (16 + 2 * 8) + 16 * 256 * 3584
    layer = projections + 3 * 3584 * 14336
    mixing = 16 * 512 * (21 * 4096 + 21 * 10_000)
    by_hand = 2 * (42 * layer + mixing + 3584 * 256_000)
    step = roofline.flops(load_model("gemma-2-9b"), batch=1, new=1, past=9999)
    assert step.total == by_hand
