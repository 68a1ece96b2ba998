"""Caches of transformers 5, as its modules allocate them."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest

from llmcalc import huggingface, load_model, memory
from llmcalc.spec import Chunk, Window
from tests.truth import rows

SUPPORTED = set(huggingface.supported())

#: Types of which transformers holds nothing in a cache of its own, and why.
WITHOUT_CACHE = {
    "openai-gpt": "has no cache: it computes everything again for every token",
    "recurrent_gemma": "keeps states in its modules: these are equal, the keys were not measured",
    "dbrx": "no cache at full size: its module does not run on the meta device",
}

#: Elements of 8 bytes among the measured tensors that count positions.
BOOKKEEPING = {"xlstm": 1}


def _rows(name: str) -> list[Any]:
    return [
        pytest.param(row, id=row.get("model_id") or row["model_type"])
        for row in rows(name)
        if row["model_type"] in SUPPORTED
    ]


@pytest.mark.parametrize("row", _rows("tiny_measured"))
@pytest.mark.parametrize("measured", ["cache_after_prefill", "cache_after_decode1"])
def test_caches_hold_the_bytes_of_the_tensors(row: dict[str, Any], measured: str) -> None:
    if row[measured] is None or row["model_type"] == "recurrent_gemma":
        assert row["model_type"] in WITHOUT_CACHE
        return
    context = row["seq"] + (measured == "cache_after_decode1")
    held = memory.kv_cache_bytes(
        load_model(row["config"]),
        context=context,
        batch=row["batch"],
        kv="fp32",
        state="fp32",
        policy="transformers",
    )
    assert held.total + 8 * BOOKKEEPING.get(row["model_type"], 0) == row[measured]["bytes_total"]


def test_recurrent_gemma_holds_the_bytes_of_its_states() -> None:
    [row] = [row for row in rows("tiny_measured") if row["model_type"] == "recurrent_gemma"]
    held = memory.kv_cache_bytes(
        load_model(row["config"]), context=24, batch=2, kv="fp32", policy="transformers"
    )
    assert held["recurrent"].total == row["cache_after_prefill"]["bytes_total"]


@pytest.mark.parametrize("row", _rows("real_models"))
def test_caches_of_real_models_hold_the_elements_of_the_tensors(row: dict[str, Any]) -> None:
    measured = row["transformers_cache_meta"]
    if measured is None:
        assert row["model_type"] in WITHOUT_CACHE
        return
    held = memory.kv_cache_bytes(
        load_model(row["config"]),
        context=measured["seq"],
        kv="fp8",
        state="fp8",
        policy="transformers",
    )
    counted = BOOKKEEPING.get(row["model_type"], 0)
    assert held.total + counted == measured["elements_total"]


@pytest.mark.parametrize("row", _rows("real_models"))
def test_a_window_holds_one_slot_less_in_transformers(row: dict[str, Any]) -> None:
    spec = load_model(row["config"])
    if any(cache.in_transformers is not None for _, cache in spec.ledger.caches):
        return
    ideal = memory.kv_cache_bytes(spec, context=2**30, kv="fp8").total
    theirs = memory.kv_cache_bytes(spec, context=2**30, kv="fp8", policy="transformers").total
    slot = sum(
        prod(axis.size for axis in cache.shape) * (entry.count or 1)
        for entry, cache in spec.ledger.caches
        if isinstance(cache.span, Window | Chunk)
    )
    assert ideal - theirs == slot
