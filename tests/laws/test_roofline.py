"""What must hold for FLOPs, bytes and intensity of any attention call and any dense model."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import LlmcalcError, ModelSpec, roofline
from llmcalc.strategies import dense_specs
from tests.laws.test_memory import tiny, windowed

TOKENS = st.integers(1, 2000)
ALGORITHMS = st.sampled_from(["standard", "flash"])


@given(dense_specs(), st.integers(1, 5), st.integers(0, 60), st.integers(1, 40), st.data())
def test_a_prefill_costs_what_its_chunks_and_its_decode_steps_cost(
    spec: ModelSpec, batch: int, past: int, new: int, data: st.DataObject
) -> None:
    def cost(new: int, past: int) -> int:
        return roofline.flops(spec, batch=batch, new=new, past=past, logits="all").total

    whole = cost(new, past)
    assert whole == sum(cost(1, past + i) for i in range(new))
    cut = data.draw(st.integers(0, new))
    assert whole == cost(cut, past) + cost(new - cut, past + cut)


@given(st.integers(1, 30), st.integers(0, 60), st.integers(1, 60))
def test_windowed_pairs_are_those_counted_one_by_one(window: int, past: int, new: int) -> None:
    spec = windowed(window)
    scores = roofline.flops(spec, batch=1, new=new, past=past).by(2)["attention.scores"]
    pairs = sum(min(window, position + 1) for position in range(past, past + new))
    assert scores == 2 * 4 * 16 * pairs * 2
    full = roofline.flops(spec, batch=1, new=new, past=past, causal=False).by(2)
    assert full["attention.scores"] == 2 * 4 * 16 * new * (min(past, window - 1) + new) * 2


@given(dense_specs(), st.integers(1, 9), TOKENS, st.integers(0, 2000))
def test_flops_are_linear_in_the_batch_and_bounded_by_the_full_square(
    spec: ModelSpec, batch: int, new: int, past: int
) -> None:
    def cost(batch: int, *, causal: bool = True, logits: Literal["last", "all"] = "all") -> int:
        return roofline.flops(
            spec, batch=batch, new=new, past=past, causal=causal, logits=logits
        ).total

    assert cost(batch) == batch * cost(1)
    assert cost(1) <= cost(1, causal=False)
    assert (cost(1) == cost(1, causal=False)) == (new == 1)
    head = 2 * spec.embed_dim * spec.embedding.vocab_size
    assert cost(1) - cost(1, logits="last") == (new - 1) * head


@given(
    dense_specs(),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=3),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=3),
    st.booleans(),
)
def test_array_calls_give_the_integers_of_scalar_calls(
    spec: ModelSpec, pasts: list[int], news: list[int], causal: bool
) -> None:
    got = roofline.flops(
        spec, batch=3, new=np.array(news)[:, None], past=np.array(pasts), causal=causal
    ).total
    assert got.tolist() == [
        [roofline.flops(spec, batch=3, new=n, past=p, causal=causal).total for p in pasts]
        for n in news
    ]


@given(TOKENS, st.integers(0, 2000), st.integers(1, 256), st.integers(1, 8), st.integers(0, 9))
def test_attention_flops_agree_with_the_fold(
    queries: int, past: int, head_dim: int, heads: int, batch: int
) -> None:
    spec = tiny(num_query_heads=heads, num_kv_heads=heads, head_dim=head_dim, positions="none")
    for causal in (False, True):
        parts = roofline.flops(spec, batch=batch, new=queries, past=past, causal=causal).by(2)
        assert parts["attention.scores"] + parts["attention.values"] == (
            spec.num_layers
            * roofline.attention_flops(
                queries=queries,
                keys=past + queries,
                head_dim=head_dim,
                batch=batch,
                query_heads=heads,
                causal=causal,
                softmax_flops=0,
            )
        )


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 16))
def test_attention_flops_are_those_of_a_count_score_by_score(
    queries: int, past: int, head_dim: int
) -> None:
    keys = past + queries
    causal_scores = sum(1 for q in range(queries) for k in range(keys) if k <= past + q)
    for causal, scores in ((False, queries * keys), (True, causal_scores)):
        multiply_adds = scores * head_dim * 2
        assert (
            roofline.attention_flops(
                queries=queries, keys=keys, head_dim=head_dim, causal=causal, softmax_flops=7
            )
            == 2 * multiply_adds + 7 * scores
        )


@given(TOKENS, TOKENS, st.integers(1, 256), st.integers(1, 8), st.integers(1, 8), ALGORITHMS)
def test_bytes_are_those_of_each_pass_over_memory(
    queries: int, keys: int, head_dim: int, element: int, batch: int, algorithm: Any
) -> None:
    q = o = queries * head_dim
    k = v = keys * head_dim
    s = p = queries * keys
    passes = q + k + s + s + p + p + v + o if algorithm == "standard" else q + k + v + o
    assert (
        roofline.attention_bytes(
            queries=queries,
            keys=keys,
            head_dim=head_dim,
            element_bytes=element,
            algorithm=algorithm,
            batch=batch,
        )
        == batch * element * passes
    )


@given(TOKENS, TOKENS, st.integers(1, 256), st.integers(1, 8), ALGORITHMS)
def test_the_heads_of_a_group_share_keys_and_values_as_a_shared_batch_does(
    queries: int, keys: int, head_dim: int, group: int, algorithm: Any
) -> None:
    common: dict[str, Any] = {
        "queries": queries,
        "keys": keys,
        "head_dim": head_dim,
        "element_bytes": 2,
        "algorithm": algorithm,
    }
    shared = roofline.attention_bytes(**common, batch=group, shared_kv=True)
    assert shared == roofline.attention_bytes(**common, query_heads=group, kv_heads=1)
    apart = roofline.attention_bytes(**common, batch=group)
    assert apart - shared == (group - 1) * 2 * keys * head_dim * 2
    assert apart == roofline.attention_bytes(**common, query_heads=group, kv_heads=group)


@given(TOKENS, TOKENS, st.integers(1, 256), st.integers(1, 64), ALGORITHMS)
def test_flash_never_moves_more_and_intensity_does_not_depend_on_an_independent_batch(
    queries: int, keys: int, head_dim: int, batch: int, algorithm: Any
) -> None:
    common: dict[str, Any] = {
        "queries": queries,
        "keys": keys,
        "head_dim": head_dim,
        "element_bytes": 2,
    }
    standard, flash = (
        roofline.attention_bytes(**common, algorithm=a) for a in ("standard", "flash")
    )
    assert flash < standard
    one = roofline.attention_intensity(**common, algorithm=algorithm)
    assert roofline.attention_intensity(**common, algorithm=algorithm, batch=batch) == one
    shared = roofline.attention_intensity(
        **common, algorithm=algorithm, batch=batch, shared_kv=True
    )
    assert shared >= one


@given(
    st.lists(st.integers(1, 2**33), min_size=1, max_size=3),
    st.lists(st.integers(1, 2**20), min_size=1, max_size=3),
    st.sampled_from(["standard", "flash"]),
)
def test_attention_arrays_give_the_numbers_of_scalar_calls(
    keys: list[int], batches: list[int], algorithm: Any
) -> None:
    common: dict[str, Any] = {"head_dim": 128, "element_bytes": 2, "algorithm": algorithm}
    got = roofline.attention_intensity(
        queries=np.array(keys), keys=np.array(keys), batch=np.array(batches)[:, None], **common
    )
    moved = roofline.attention_bytes(
        queries=np.array(keys), keys=np.array(keys), batch=np.array(batches)[:, None], **common
    )
    for i, b in enumerate(batches):
        for j, n in enumerate(keys):
            assert moved[i, j] == roofline.attention_bytes(queries=n, keys=n, batch=b, **common)
            one = roofline.attention_intensity(queries=n, keys=n, batch=b, **common)
            assert abs(got[i, j] - one) <= 2 * np.spacing(one)


def test_assignment_arrays_choose_decode_or_prefill_for_each_element() -> None:
    queries, keys = np.array([1, 7, 1]), np.array([1, 7, 9])
    got = roofline.attention_bytes(
        queries=queries, keys=keys, head_dim=4, element_bytes=1, algorithm="assignment"
    )
    assert got.tolist() == [3 * 4 + 3, 5 * 7 * 4 + 3 * 49, 19 * 4 + 27]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "flush"}, "did you mean 'flash'"),
        ({"algorithm": 3}, "algorithm = 3"),
        ({"algorithm": "assignment", "queries": 3}, "queries = 3"),
        ({"algorithm": "assignment", "query_heads": 4}, "query_heads = 4"),
        ({"algorithm": "assignment", "causal": True}, "causal = True"),
        ({"causal": True, "queries": 9}, "queries = 9: must be at most keys"),
        ({"causal": 1}, "causal = 1: must be True or False"),
        ({"query_heads": 3, "kv_heads": 2}, "kv_heads = 2: must divide query_heads"),
        ({"shared_kv": "yes"}, "shared_kv = 'yes'"),
        ({"keys": 2.0}, "keys = 2.0"),
        ({"keys": "two", "causal": True}, "keys = 'two'"),
        ({"queries": True}, "queries = True"),
        ({"head_dim": 0}, "head_dim = 0"),
        ({"element_bytes": -2}, "element_bytes = -2"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "queries": 8,
        "keys": 8,
        "head_dim": 4,
        "element_bytes": 2,
        "algorithm": "standard",
    }
    with pytest.raises(LlmcalcError, match=message.replace("(", r"\(")):
        roofline.attention_intensity(**(arguments | changes))


def test_an_intensity_of_nothing_is_refused() -> None:
    with pytest.raises(LlmcalcError, match="an intensity needs bytes"):
        roofline.attention_intensity(
            queries=0, keys=0, head_dim=4, element_bytes=2, algorithm="flash"
        )
    with pytest.raises(LlmcalcError, match="logits = 'first'"):
        roofline.flops(tiny(), batch=1, new=1, past=0, logits="first")  # type: ignore[call-overload]
