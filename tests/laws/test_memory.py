"""What must hold for the memory of any dense model."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmcalc import GiB, LlmcalcError, ModelSpec, formats, load_model, memory
from llmcalc.spec import Attention, Block, Window
from llmcalc.spec.axes import is_split
from llmcalc.strategies import dense_specs

CONTEXTS = st.integers(1, 2**20)
FORMATS = st.sampled_from(["fp32", "bf16", "fp8"])


def tp_degrees(spec: ModelSpec) -> list[int]:
    """Return the degrees from 1 to 16 that the spec's heads and widths allow."""
    degrees = []
    for degree in range(1, 17):
        try:
            memory.weight_bytes(spec, weights="bf16", tensor_parallel=degree)
        except LlmcalcError:
            continue
        degrees.append(degree)
    return degrees


@given(dense_specs(), CONTEXTS, FORMATS, FORMATS, st.integers(0, 2**44))
def test_doubling_the_context_exactly_halves_the_batch(
    spec: ModelSpec, context: int, weights: str, kv: str, device_memory: int
) -> None:
    batch, halved = (
        memory.max_batch_size(spec, device_memory=device_memory, context=c, weights=weights, kv=kv)
        for c in (context, 2 * context)
    )
    assert batch is not None
    assert halved == batch // 2


@given(dense_specs(), CONTEXTS, FORMATS, FORMATS, st.integers(0, 2**44), st.data())
def test_a_largest_batch_is_the_largest(
    spec: ModelSpec, context: int, weights: str, kv: str, device_memory: int, data: st.DataObject
) -> None:
    degree = data.draw(st.sampled_from(tp_degrees(spec)))

    def fits(batch: int) -> bool:
        return memory.fit(
            spec,
            device_memory=device_memory,
            context=context,
            batch=batch,
            weights=weights,
            kv=kv,
            tensor_parallel=degree,
        ).fits

    batch = memory.max_batch_size(
        spec,
        device_memory=device_memory,
        context=context,
        weights=weights,
        kv=kv,
        tensor_parallel=degree,
    )
    assert batch is not None
    assert batch == 0 or fits(batch)
    assert not fits(batch + 1)


@given(dense_specs(), st.integers(1, 1000), FORMATS, st.integers(0, 2**40))
def test_a_longest_context_is_the_longest(
    spec: ModelSpec, batch: int, kv: str, device_memory: int
) -> None:
    limit = memory.max_context(
        spec, device_memory=device_memory, batch=batch, weights="bf16", kv=kv
    )
    assert limit is not None

    def fits(context: int) -> bool:
        return memory.fit(
            spec, device_memory=device_memory, context=context, batch=batch, weights="bf16", kv=kv
        ).fits

    assert limit == 0 or fits(limit)
    if limit.limited_by == "memory":
        assert not fits(limit + 1)
        assert spec.max_positions is None or limit < spec.max_positions
    else:
        assert limit == spec.max_positions


def test_a_longest_context_is_none_where_nothing_binds() -> None:
    spec = windowed(64)
    assert memory.max_context(spec, device_memory=GiB, weights="bf16", kv="bf16") is None
    needed = memory.kv_cache_bytes(spec, context=64, kv="bf16").total
    weights = memory.weight_bytes(spec, weights="bf16").total
    tight = memory.max_context(spec, device_memory=weights + needed - 1, weights="bf16", kv="bf16")
    assert (tight, tight and tight.limited_by) == (63, "memory")


@given(dense_specs(), CONTEXTS, st.integers(1, 10**6), st.integers(1, 100))
def test_the_cache_is_linear_in_context_and_batch_and_element_size(
    spec: ModelSpec, context: int, batch: int, factor: int
) -> None:
    def total(context: int, batch: int, kv: str = "fp8") -> int:
        return memory.kv_cache_bytes(spec, context=context, batch=batch, kv=kv).total

    once = total(context, batch)
    assert total(factor * context, batch) == factor * once
    assert total(context, factor * batch) == factor * once
    assert total(context, batch, "bf16") == 2 * once
    assert total(context, batch, "fp32") == 4 * once


@given(st.integers(1, 50), st.integers(1, 7), CONTEXTS)
def test_the_cache_is_linear_in_layers(layers: int, factor: int, context: int) -> None:
    once, more = (
        memory.kv_cache_bytes(tiny(num_layers=n), context=context, kv="bf16").total
        for n in (layers, factor * layers)
    )
    assert more == factor * once


@given(
    st.integers(1, 64),
    st.sampled_from([(1, 1), (4, 1), (4, 2), (8, 8)]),
    st.integers(1, 256),
    st.integers(1, 64),
    st.integers(0, 2**20),
    st.integers(0, 512),
)
def test_fold_and_textbook_formula_agree(
    layers: int, heads: tuple[int, int], head_dim: int, element: int, context: int, batch: int
) -> None:
    spec = tiny(
        num_layers=layers,
        num_query_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        positions="none",
    )
    own = formats.Format(name="own", block_elements=1, block_bytes=element)
    assert memory.kv_cache_bytes(
        spec, context=context, batch=batch, kv=own
    ).total == memory.gqa_kv_bytes(
        num_layers=layers,
        num_kv_heads=heads[1],
        head_dim=head_dim,
        context=context,
        batch=batch,
        element_bytes=element,
    )


@given(dense_specs(), CONTEXTS, st.integers(0, 2**40), st.integers(0, 2**40))
def test_more_memory_never_holds_less(
    spec: ModelSpec, context: int, device_memory: int, more: int
) -> None:
    smaller, larger = (
        memory.max_batch_size(spec, device_memory=m, context=context, weights="bf16", kv="bf16")
        for m in (device_memory, device_memory + more)
    )
    assert smaller is not None
    assert larger is not None
    assert smaller <= larger


@given(dense_specs(), st.sampled_from(["fp32", "bf16", "int8"]), st.data())
def test_the_ranks_sum_to_the_whole_plus_what_is_replicated(
    spec: ModelSpec, weights: str, data: st.DataObject
) -> None:
    degree = data.draw(st.sampled_from(tp_degrees(spec)))
    ranks = [
        memory.weight_bytes(spec, weights=weights, tensor_parallel=degree, rank=rank)
        for rank in range(degree)
    ]
    replicated = 0
    for tensor, term in zip(
        spec.ledger.tensors, memory.weight_bytes(spec, weights=weights).terms, strict=True
    ):
        axes = [axis for piece in (*tensor.rows, *tensor.columns) for axis in piece]
        split = [axis for axis in axes if is_split(axis)]
        # KV heads that are fewer than the ranks live on degree / heads ranks each.
        copies = (
            degree
            if not split
            else max([degree // axis.size for axis in split if axis.name == "kv_heads"], default=1)
        )
        replicated += (max(copies, 1) - 1) * term.value
    assert (
        sum(r.total for r in ranks) == memory.weight_bytes(spec, weights=weights).total + replicated
    )
    assert max(r.total for r in ranks) == ranks[0].total


@given(dense_specs(), CONTEXTS, st.data())
def test_the_ranks_caches_sum_to_the_whole_where_the_degree_divides_the_kv_heads(
    spec: ModelSpec, context: int, data: st.DataObject
) -> None:
    degree = data.draw(st.sampled_from(tp_degrees(spec)))
    [heads] = {cache.shape[0].size for _, cache in spec.ledger.caches}
    whole = memory.kv_cache_bytes(spec, context=context, kv="bf16").total
    rank = memory.kv_cache_bytes(spec, context=context, kv="bf16", tensor_parallel=degree).total
    assert degree * rank == whole * (1 if heads % degree == 0 else degree // heads)


@given(dense_specs())
def test_parameters_sum_by_group_and_by_term(spec: ModelSpec) -> None:
    counted = memory.parameters(spec)
    assert counted.total == sum(counted.by().values()) == sum(t.value for t in counted.terms)
    assert memory.weight_bytes(spec, weights="int8").total == counted.total


@given(
    dense_specs(),
    st.lists(st.integers(0, 2**62), min_size=1, max_size=4),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=4),
)
@example(
    tiny_spec := ModelSpec.assignment_decoder(
        vocab_size=10, d_model=4, d_ff=4, num_layers=1, max_seq_len=8
    ),
    [2**62, 1],
    [2**40, 0],
)
def test_array_calls_give_the_integers_of_scalar_calls(
    spec: ModelSpec, contexts: list[int], batches: list[int]
) -> None:
    got = memory.kv_cache_bytes(
        spec, context=np.array(contexts), batch=np.array(batches)[:, None], kv="bf16"
    ).total
    assert got.shape == (len(batches), len(contexts))
    expected = [
        [memory.kv_cache_bytes(spec, context=c, batch=b, kv="bf16").total for c in contexts]
        for b in batches
    ]
    assert got.tolist() == expected
    assert got.dtype == (np.int64 if np.max(expected) < 2**62 else np.object_) or (
        got.dtype == np.object_
    )


@given(
    dense_specs(),
    st.lists(st.integers(0, 2**50), min_size=1, max_size=3),
    st.lists(st.integers(0, 2**20), min_size=1, max_size=3),
)
def test_array_calls_of_inverse_questions_give_the_answers_of_scalar_calls(
    spec: ModelSpec, memories: list[int], numbers: list[int]
) -> None:
    common: dict[str, Any] = {"weights": "bf16", "kv": "fp8"}
    batches = memory.max_batch_size(
        spec, device_memory=np.array(memories)[:, None], context=np.array(numbers), **common
    )
    contexts = memory.max_context(
        spec, device_memory=np.array(memories)[:, None], batch=np.array(numbers), **common
    )
    for i, m in enumerate(memories):
        for j, n in enumerate(numbers):
            assert batches[i, j] == memory.max_batch_size(
                spec, device_memory=m, context=n, **common
            )
            assert contexts[i, j] == memory.max_context(spec, device_memory=m, batch=n, **common)


def test_small_array_calls_stay_in_int64() -> None:
    total = memory.kv_cache_bytes(tiny(), context=np.array([1, 2]), kv="bf16").total
    assert total.dtype == np.int64


def test_unsigned_and_scalar_numpy_integers_are_accepted() -> None:
    spec = tiny()
    expected = memory.kv_cache_bytes(spec, context=7, kv="bf16").total
    assert memory.kv_cache_bytes(spec, context=np.int32(7), kv="bf16").total == expected
    big = memory.kv_cache_bytes(spec, context=np.array([2**64 - 1], dtype=np.uint64), kv="bf16")
    assert big.total.tolist() == [expected // 7 * (2**64 - 1)]


@pytest.mark.parametrize(
    "value", [1.0, True, -1, "8", None, np.array([True]), np.array([1.5]), np.array([-1]), [1]]
)
def test_what_is_no_count_is_refused_by_name(value: Any) -> None:
    with pytest.raises(LlmcalcError, match="context"):
        memory.kv_cache_bytes(tiny(), context=value, kv="bf16")


def test_arrays_that_do_not_broadcast_are_refused() -> None:
    with pytest.raises(LlmcalcError, match="broadcast"):
        memory.kv_cache_bytes(tiny(), context=np.ones(2, int), batch=np.ones(3, int), kv="bf16")


@given(dense_specs(), st.integers(0, 2**36), CONTEXTS, st.integers(0, 1000))
def test_a_fit_says_what_is_left_or_what_is_short_and_never_less_than_nothing(
    spec: ModelSpec, device_memory: int, context: int, batch: int
) -> None:
    answer = memory.fit(
        spec,
        device_memory=device_memory,
        context=context,
        batch=batch,
        weights="bf16",
        kv="bf16",
    )
    assert answer.left_bytes - answer.short_bytes == device_memory - answer.needed_bytes
    assert min(answer.left_bytes, answer.short_bytes) == 0
    assert answer.fits == (answer.short_bytes == 0) == bool(answer)
    assert answer.reason.startswith("fits" if answer.fits else "does not fit")
    assert answer.reason in answer.explain()
    largest = answer.max_batch_size
    assert largest is not None
    assert not answer.fits or largest >= batch


@given(st.integers(1, 64), st.integers(0, 500))
def test_a_window_holds_no_more_than_itself(window: int, context: int) -> None:
    held = memory.kv_cache_bytes(windowed(window), context=context, kv="bf16").total
    assert held == memory.kv_cache_bytes(tiny(), context=min(window, context), kv="bf16").total


def test_a_degree_that_does_not_divide_is_refused_with_the_rule() -> None:
    with pytest.raises(LlmcalcError, match=r"tensor_parallel = 3: must divide query_heads \(4\)"):
        memory.weight_bytes(tiny(), weights="bf16", tensor_parallel=3)


def test_unknown_formats_are_refused_with_suggestions() -> None:
    with pytest.raises(LlmcalcError, match="did you mean 'bf16'"):
        memory.weight_bytes(tiny(), weights="bf61")
    with pytest.raises(LlmcalcError, match="does not state the format of its checkpoint"):
        memory.weight_bytes(tiny(), weights="checkpoint")


def tiny(**changes: Any) -> ModelSpec:
    sizes: dict[str, Any] = {
        "name": "tiny",
        "num_layers": 2,
        "num_query_heads": 4,
        "num_kv_heads": 2,
        "embed_dim": 64,
        "inner_dim": 128,
        "vocab_size": 100,
    }
    return ModelSpec.dense(**(sizes | changes))


def windowed(window: int) -> ModelSpec:
    spec = tiny()
    [run] = spec.layers
    attention, feed_forward = run.layer.blocks
    assert isinstance(attention, Block)
    assert isinstance(attention.part, Attention)
    part = attrs.evolve(attention.part, span=Window(window))
    layer = attrs.evolve(run.layer, blocks=(attrs.evolve(attention, part=part), feed_forward))
    return attrs.evolve(spec, layers=(attrs.evolve(run, layer=layer),))


@pytest.mark.parametrize("wrong", [None, True, [], "thrice", np.array(["once", "twice"])])
def test_a_tied_head_counts_once_or_twice(wrong: Any) -> None:
    spec = load_model("Qwen3-0.6B")
    with pytest.raises(LlmcalcError, match=r"^tied_head = "):
        memory.parameters(spec, tied_head=wrong)
    twice = memory.parameters(spec, tied_head="twice").total
    table = spec.embedding.vocab_size * spec.embed_dim
    assert twice - memory.parameters(spec).total == table == 151936 * 1024
