"""Breakdowns: the working shown is the number."""

from __future__ import annotations

import copy
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmcalc import Breakdown, LlmcalcError, ModelSpec, memory, roofline
from llmcalc.breakdown import Term
from llmcalc.strategies import dense_specs
from llmcalc.units import Bytes, Params
from tests.laws.test_memory import tiny


def test_terms_that_are_made_when_asked_for_are_made_once() -> None:
    calls = []

    def make() -> list[Term[int]]:
        calls.append(1)
        return [Term(("cache", "k"), ((2, "heads"), (3, "bytes")))]

    deferred, made = Breakdown(Bytes, "Cache", make), Breakdown(Bytes, "Cache", make())
    assert not calls[1:]
    assert deferred.total == made.total == 6
    assert deferred.total == 6
    assert deferred == made
    assert deferred.explain() == made.explain()
    assert pickle.loads(pickle.dumps(deferred)) == made  # noqa: S301  # its own
    assert len(calls) == 2


def recomputed(explained: str) -> list[tuple[int, int]]:
    """Read a printed working back: (product of the printed factors, printed value) a line."""
    lines = []
    for line in explained.splitlines()[1:-1]:
        working, _, value = line.rpartition(" = ")
        factors = re.findall(r"(?:^  \S+ +| x )(\d+) ", working)
        lines.append((math.prod(map(int, factors)), int(re.sub(r"\D", "", value))))
    return lines


@given(dense_specs(), st.integers(1, 10**6), st.sampled_from(["bf16", "fp8", "int4"]))
def test_the_printed_factors_multiply_to_the_printed_values(
    spec: ModelSpec, context: int, kv: str
) -> None:
    for breakdown in (
        memory.parameters(spec),
        memory.weight_bytes(spec, weights=kv),
        memory.kv_cache_bytes(spec, context=context, batch=3, kv=kv),
        roofline.flops(spec, batch=3, new=context, past=7),
    ):
        lines = recomputed(breakdown.explain())
        assert len(lines) == len(breakdown.terms)
        assert all(product == value for product, value in lines)
        assert sum(value for _, value in lines) == breakdown.total


def test_the_cache_of_a_request_is_explained_as_a_reader_would_write_it() -> None:
    spec = ModelSpec.dense(
        name="llama-3-8b",
        num_layers=32,
        num_query_heads=32,
        num_kv_heads=8,
        embed_dim=4096,
        inner_dim=14336,
        vocab_size=128256,
    )
    cache = memory.kv_cache_bytes(spec, context=1024, batch=1, kv="bf16")
    assert cache.explain().splitlines() == [
        "KV cache per request",
        "  k  8 kv_heads x 128 head_dim x 1024 tokens x 32 layers x 2 bytes = 67 108 864 B",
        "  v  8 kv_heads x 128 head_dim x 1024 tokens x 32 layers x 2 bytes = 67 108 864 B",
        "  total 134 217 728 B (0.125 GiB)",
    ]
    assert "| k | 8 kv_heads x 128 head_dim" in cache.to_markdown()
    assert "<td>8 kv_heads x 128 head_dim" in cache.to_html()


def test_breakdowns_of_one_unit_add_and_of_two_units_do_not() -> None:
    spec = tiny()
    weights = memory.weight_bytes(spec, weights="bf16")
    cache = memory.kv_cache_bytes(spec, context=8, kv="bf16")
    assert (weights + cache).total == weights.total + cache.total
    with pytest.raises(LlmcalcError, match=r"Parameters of tiny \(Params\)"):
        memory.parameters(spec) + weights  # type: ignore[operator]
    with pytest.raises(TypeError):
        weights + 3  # type: ignore[operator]


def test_groups_are_parts_of_the_whole_and_unknown_ones_are_refused() -> None:
    counted = memory.parameters(tiny())
    assert counted["attention"].total == counted.by()["attention"]
    assert set(counted.by(2)) >= {"q.weight", "token"}
    with pytest.raises(LlmcalcError, match="group = 'attentoin'"):
        counted["attentoin"]


def test_array_breakdowns_compare_and_explain() -> None:
    spec = tiny()

    def cache(*contexts: int) -> Breakdown[Bytes, NDArray[Any]]:
        return memory.kv_cache_bytes(spec, context=np.array(contexts), kv="bf16")

    assert cache(1, 2) == cache(1, 2)
    assert cache(1, 2) != cache(1, 3)
    assert cache(1, 2) != cache(1, 2, 3)
    assert cache(1, 2) != memory.kv_cache_bytes(spec, context=1, kv="bf16")
    assert "1 ... 2 [shape 2] tokens" in cache(1, 2).explain()
    assert "total 256 ... 512 [shape 2] B" in cache(1, 2).explain()
    assert (cache(1, 2) + cache(3, 4)).total.tolist() == [1024, 1536]


def test_breakdowns_are_values() -> None:
    counted = memory.parameters(tiny())
    assert copy.deepcopy(counted) == pickle.loads(pickle.dumps(counted)) == counted  # noqa: S301
    with pytest.raises(AttributeError):
        counted.title = "other"
    with pytest.raises(TypeError):
        hash(counted)
    assert counted != memory.weight_bytes(tiny(), weights="int8")
    assert Breakdown[Bytes] is not None
    empty: Breakdown[Params] = Breakdown(Params, "nothing", ())
    assert empty.total == 0
    assert empty.explain() == "nothing\n  total 0 parameters"


def test_leaves_with_one_name_are_told_apart_by_their_path() -> None:
    terms = [Term((group, "", "k"), ((n, "bytes"),)) for n, group in enumerate("ab", 1)]
    both: Breakdown[Bytes] = Breakdown(Bytes, "both", terms)
    assert both.explain().splitlines()[1:3] == ["  a.k  1 bytes = 1 B", "  b.k  2 bytes = 2 B"]


@pytest.mark.parametrize("weights", ["int8", "fp8-block128", "gptq-int4-g32"])
@pytest.mark.parametrize("level", range(-5, 5))
def test_sums_by_a_level_are_those_of_the_terms(level: int, weights: str) -> None:
    made = memory.weight_bytes(tiny(), weights=weights)
    plain: Breakdown[Bytes] = Breakdown(Bytes, made.title, made.terms)
    assert dict(made.by(level)) == dict(plain.by(level))
    assert sum(made.by(level).values()) == made.total
