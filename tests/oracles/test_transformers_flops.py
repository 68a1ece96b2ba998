"""FLOPs that PyTorch's counter counts when transformers' own modules run."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest

from llmcalc import ModelSpec, huggingface, load_model, roofline
from llmcalc.spec import Linear
from tests.truth import rows

SUPPORTED = set(huggingface.supported())

#: Types of which the counter's figure depends on what the router picks, and why.
BY_ROUTER = {"longcat_flash": "experts that pass their input on are not computed"}

#: Types whose decode step was not measured, and why.
WITHOUT_DECODE = {
    "openai-gpt": "has no cache, and so no decode step",
    "recurrent_gemma": "its modules cannot decode with the cache that was measured",
}

#: Types of which the counter counts more, and what.
COUNTED_MORE = {
    "rwkv": "with two sequences, a decode step is computed for each pair of them",
    "zaya": "a prefill also projects a token of zeros, for the values before the first token",
}

PREFILL, DECODE = "prefill_nocache", "decode1_with_cache_past24"


def _rows(*, by_router: bool = False) -> list[Any]:
    return [
        pytest.param(row, id=row["model_type"])
        for row in rows("tiny_measured")
        if row["model_type"] in SUPPORTED and (row["model_type"] in BY_ROUTER) == by_router
    ]


def _total(row: dict[str, Any], step: str) -> int:
    batch, seq = row["flops"]["batch"], row["flops"]["seq"]
    new, past = (seq, 0) if step == PREFILL else (1, seq)
    spec = load_model(row["config"])
    flops = roofline.flops(
        spec, batch=batch, new=new, past=past, logits="all", convention="transformers"
    )
    total: int = flops.total
    return total


@pytest.mark.parametrize("row", _rows())
def test_a_prefill_costs_what_the_counter_counts(row: dict[str, Any]) -> None:
    zeros = projected_zeros(load_model(row["config"]), row["flops"]["batch"])
    assert _total(row, PREFILL) + zeros == row["flops"][PREFILL]


def projected_zeros(spec: ModelSpec, batch: int) -> int:
    """Return the FLOPs of a ZAYA's token of zeros before the first token of a prefill."""
    values = [entry.item for entry in spec.ledger.entries if entry.name[2:] == ("v_before",)]
    if not values:
        return 0
    assert isinstance(values[0], Linear)
    width = values[0].out[0][0].size * spec.embed_dim
    return 2 * width * spec.num_layers * batch


@pytest.mark.parametrize("row", _rows())
def test_a_decode_step_costs_what_the_counter_counts(row: dict[str, Any]) -> None:
    if row["flops"].get(DECODE) is None:
        assert row["model_type"] in WITHOUT_DECODE
        return
    times = 2 if row["model_type"] == "rwkv" else 1
    assert times * _total(row, DECODE) == row["flops"][DECODE]


@pytest.mark.parametrize("row", _rows(by_router=True))
@pytest.mark.parametrize("step", [PREFILL, DECODE])
def test_experts_that_pass_their_input_on_cost_nothing(row: dict[str, Any], step: str) -> None:
    spec, measured = load_model(row["config"]), row["flops"]
    tokens = measured["batch"] * (measured["seq"] if step == PREFILL else 1)
    one, layers = _expert_of_one_layer(spec)
    fewer, rest = divmod(_total(row, step) - measured[step], one)
    assert rest == 0
    assert 0 <= fewer <= tokens * row["config"]["moe_topk"] * layers


def _expert_of_one_layer(spec: ModelSpec) -> tuple[int, int]:
    """Return the FLOPs of one token in one routed expert, and the layers that have experts."""
    found = [
        (2 * prod(axis.size for axis in (*entry.item.into, *entry.item.out[0])), entry.count or 1)
        for entry in spec.ledger.entries
        if isinstance(entry.item, Linear) and entry.item.experts is not None
    ]
    return sum(flops for flops, _ in found), found[0][1]


@pytest.mark.parametrize("row", _rows()[::4])
def test_arrays_give_what_single_calls_give(row: dict[str, Any]) -> None:
    spec = load_model(row["config"])
    new, past = np.array([0, 1, 1, 3, 65]), np.array([[0], [1], [70]])
    table = roofline.flops(spec, batch=2, new=new, past=past, convention="transformers").total
    for i, before in enumerate(past.ravel()):
        for j, tokens in enumerate(new):
            single = roofline.flops(
                spec, batch=2, new=int(tokens), past=int(before), convention="transformers"
            )
            assert table[i, j] == single.total
