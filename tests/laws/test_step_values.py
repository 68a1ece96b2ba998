"""Laws of what the figures of a step are: shapes, kinds of numbers, copies, equality, threads."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import attrs
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmcalc import Layout, LlmcalcError, ModelSpec, formats, load_model, roofline
from llmcalc.boundary import at_most
from llmcalc.folds.storage import Formats
from llmcalc.roofline import Requests
from llmcalc.spec import Block, Chunk, Compressed, Full, Remainder, TopK, Window
from llmcalc.spec.kept import kept
from tests.laws.test_layouts import model

WIDE: dict[str, Any] = {"weights": "bf16", "kv": "bf16"}

FIGURES = (
    "seconds",
    "items_seconds",
    "communication_seconds",
    "bound_seconds",
    "compute_seconds",
    "memory_seconds",
    "memory_bytes",
    "intensity",
    "bound",
)


def step_of(name: str, **options: Any) -> roofline.StepTime:
    arguments = {"batch": 2, "new": 1, "past": 10, **WIDE} | options
    return roofline.step_time(model(name), "H100-SXM-80GB", **arguments)


ARRAYS: dict[str, Any] = {
    "batch": np.array([[[1, 2]], [[3, 4]], [[5, 6]]]),
    "past": np.array([[0], [7], [9], [4000]]),
}


@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b", "deepseek-v3"])
@pytest.mark.parametrize("arguments", [ARRAYS, {"past": np.zeros((3, 0, 2), int)}], ids=str)
@pytest.mark.parametrize("ranks", [1, 4])
def test_every_figure_has_the_shape_of_all_arguments(
    name: str, arguments: dict[str, Any], ranks: int
) -> None:
    step = step_of(name, **arguments, tensor_parallel=ranks)
    shape = np.broadcast_shapes(*(array.shape for array in arguments.values()))
    for figure in FIGURES:
        assert np.shape(getattr(step, figure)) == shape, figure
    for breakdown in (step.flops, step.bytes):
        assert breakdown.total.shape == shape
        assert {value.shape for value in breakdown.by().values()} == {shape}
        assert {value.shape for value in breakdown.by(2).values()} == {shape}
        assert {term.value.shape for term in breakdown.terms} == {shape}
        for group in breakdown.by():
            assert breakdown[group].total.shape == shape
    for item in step.items:
        for figure in ("flops", "bytes", "seconds", "bound", "intensity", "memory_seconds"):
            assert np.shape(getattr(item, figure)) == shape, figure
    for one in step.collectives:
        assert one.message_bytes.shape == one.sent_bytes.shape == shape


@pytest.mark.parametrize("two", [2, np.int8(2), np.array(2), np.array(2, dtype=object)], ids=repr)
def test_figures_of_integers_are_plain_numbers(two: Any) -> None:
    step = step_of("mixtral-8x7b", batch=two, past=two, tensor_parallel=2)
    assert step == step_of("mixtral-8x7b", batch=2, past=2, tensor_parallel=2)
    figures = [getattr(step, name) for name in FIGURES]
    figures += [step.flops.total, step.bytes.total, *step.bytes.by().values()]
    figures += [value for item in step.items for value in (item.flops, item.bytes, item.seconds)]
    figures += [one.sent_bytes for one in step.collectives]
    assert {type(figure) for figure in figures} == {int, float, str}
    answer = roofline.generation(
        model("gpt2"), "L4", prompt=two, batch=two, new_tokens=two, tensor_parallel=1, **WIDE
    )
    assert type(answer.seconds) is type(answer.tokens_per_second) is float
    assert answer.devices == 1


@pytest.mark.parametrize("options", [{}, ARRAYS], ids=["integers", "arrays"])
def test_steps_and_generations_can_be_copied_and_compared(options: dict[str, Any]) -> None:
    step = step_of("mixtral-8x7b", **options, tensor_parallel=2)
    twin = step_of("mixtral-8x7b", **options, tensor_parallel=2)
    answer = roofline.generation(
        model("mixtral-8x7b"), "L4", prompt=np.array([5, 6]), new_tokens=3, **WIDE
    )
    assert step == twin
    assert step != step_of("mixtral-8x7b", **(options | {"new": 2}), tensor_parallel=2)
    assert step.items == twin.items
    assert step.collectives == twin.collectives
    copies: list[Any] = [
        copy.copy(step),
        copy.deepcopy(step),
        pickle.loads(pickle.dumps(step)),  # noqa: S301  # our own bytes
    ]
    for other in copies:
        assert other == step
        assert other.items == step.items
        assert np.array_equal(other.seconds, step.seconds)
        assert other.flops.by().keys() == step.flops.by().keys()
        assert repr(other) == repr(step)
    again = pickle.loads(pickle.dumps(answer))  # noqa: S301  # our own bytes
    assert again == answer == copy.deepcopy(answer)
    assert again.token_seconds.tolist() == answer.token_seconds.tolist()


def test_requests_of_arrays_are_equal_when_all_their_elements_are() -> None:
    one, same = (Requests(batch=np.array([1, 2]), new=1, past=0) for _ in range(2))
    assert one == same
    assert one != Requests(batch=np.array([1, 3]), new=1, past=0)
    assert Requests(batch=np.array([1]), new=1, past=0) != Requests(batch=1, new=1, past=0)


SPANS = st.integers(0, 48).flatmap(
    lambda power: st.sampled_from(
        [
            Full(),
            Window(2**power),
            Chunk(2**power),
            TopK(2**power),
            Compressed(2, 2**power),
            Compressed(2**power),
            Remainder(2**power),
        ]
    )
)
AMOUNTS = st.integers(0, 3) | st.integers(0, 62).map(lambda power: 2**power)


def small(span: Any) -> ModelSpec:
    """Return a model of next to no weights, so that its spans are what is large."""
    spec = ModelSpec.dense(
        name="small",
        num_layers=1,
        num_query_heads=1,
        num_kv_heads=1,
        head_dim=1,
        embed_dim=1,
        inner_dim=1,
        vocab_size=1,
        positions="none",
    )
    [run] = spec.layers
    attention, feed_forward = cast("tuple[Block, Block]", run.layer.blocks)
    part: Any = attention.parts[0]
    blocks = attrs.evolve(attention, part=attrs.evolve(part, span=span)), feed_forward
    return attrs.evolve(
        spec, layers=(attrs.evolve(run, layer=attrs.evolve(run.layer, blocks=blocks)),)
    )


@given(
    SPANS,
    st.tuples(AMOUNTS, AMOUNTS),
    st.tuples(AMOUNTS, AMOUNTS),
    st.tuples(AMOUNTS, AMOUNTS),
    st.sampled_from([None, 1, 3, 2**20, 2**48]),
    st.booleans(),
)
@example(TopK(2**40), (1, 1), (2**30 - 1, 0), (2**49 + 1, 0), None, False)
@example(Compressed(2, 2**47), (1, 1), (2**21 - 1, 0), (2, 0), 3, True)
@example(Chunk(2**40), (1, 1), (0, 2), (1, 1), 1, True)
@example(Remainder(2**30), (2**39, 1), (2, 2), (2**55 - 1, 2**55), 1, True)
@example(Window(3), (1, 1), (2, 2**40), (0, 0), 2**48, False)
def test_no_span_and_no_tile_overflows_silently(
    span: Any,
    batches: tuple[int, int],
    news: tuple[int, int],
    pasts: tuple[int, int],
    tile: int | None,
    causal: bool,
) -> None:
    spec = small(span)
    batch, new, past = (np.array(two) for two in (batches, news, pasts))
    flops = roofline.flops(spec, batch=batch, new=new, past=past, causal=causal)
    options: dict[str, Any] = {**WIDE, "causal": causal, "query_tile": tile}
    moved = roofline.bytes_moved(spec, batch=batch, new=new, past=past, **options)
    for place, (b, n, p) in enumerate(zip(batches, news, pasts, strict=True)):
        assert (
            flops.total[place] == roofline.flops(spec, batch=b, new=n, past=p, causal=causal).total
        )
        one = roofline.bytes_moved(spec, batch=b, new=n, past=p, **options)
        assert moved.total[place] == one.total
        assert [term.value[place] for term in moved.terms] == [term.value for term in one.terms]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60))
def test_a_limited_product_is_the_smaller_of_both(limit: int, number: int, each: int) -> None:
    assert at_most(limit, number, each) == min(limit, number * each)
    assert at_most(np.array([limit]), number, each) == [min(limit, number * each)]


@pytest.mark.parametrize("kind", ["uint8", "int8", "int32", "uint64", "object"])
def test_experts_of_short_integers_are_those_of_long_ones(kind: str) -> None:
    tokens = np.array([0, 1, 100, 127])
    for reads in ("fewest", "expected", "most"):
        sizes: dict[str, Any] = {"num_experts": 256, "experts_per_token": 8, "reads": reads}
        found = roofline.experts_touched(**sizes, tokens=tokens.astype(kind))
        assert found.tolist() == [
            roofline.experts_touched(**sizes, tokens=number) for number in tokens.tolist()
        ]


def test_the_expectation_of_one_token_is_to_the_bit_what_it_must_be() -> None:
    for experts in range(1, 300):
        for used in {1, experts // 3 or 1, experts}:
            sizes: dict[str, Any] = {"num_experts": experts, "experts_per_token": used}
            assert roofline.experts_touched(**sizes, tokens=1) == used
            assert roofline.experts_touched(**sizes, tokens=10**400) <= experts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_experts", 0),
        ("num_experts", 2.0),
        ("experts_per_token", 9),
        ("experts_per_token", True),
        ("held", 9),
        ("held", "3"),
        ("tokens", -1),
        ("tokens", np.array([1.5])),
        ("reads", "all"),
    ],
)
def test_experts_that_cannot_be_are_refused(field: str, value: Any) -> None:
    arguments: dict[str, Any] = {"num_experts": 8, "experts_per_token": 2, "tokens": 3}
    with pytest.raises(LlmcalcError, match=f"^{field} = "):
        roofline.experts_touched(**arguments | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("compute", ""),
        ("compute", []),
        ("compute", np.array([1, 2])),
        ("state", {1: "fp32", "conv": "fp32"}),
        ("state", {"state": [], "conv": "fp32"}),
        ("kv", {"k": ["bf16"]}),
        ("index", {1: 2, "a": 3}),
        ("activations", ["bf16"]),
        ("mixed_with", ""),
        ("mixed_with", np.array([1, 2])),
        ("mixed_with", [3]),
        ("query_tile", 0),
        ("query_tile", 2**48 + 1),
        ("layout", "tp2"),
        ("tensor_parallel", 2.0),
        ("link_bytes_per_second", 0),
        ("link_bytes_per_second", float("nan")),
        ("link_bytes_per_second", "fast"),
        ("collective_latency_seconds", -1e-6),
        ("collective_latency_seconds", 10**400),
    ],
)
def test_a_bad_argument_of_a_step_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(LlmcalcError, match=f"^{field} = "):
        step_of("mixtral-8x7b", **{field: value})


def test_requests_that_are_mixed_in_are_named_by_their_place() -> None:
    good = Requests(batch=1, new=1, past=1)
    with pytest.raises(LlmcalcError, match=r"^mixed_with\[1\]\.past = -1: "):
        step_of("gpt2", mixed_with=[good, Requests(batch=1, new=1, past=-1)])
    uneven = Requests(batch=np.array([1, 2]), new=1, past=1)
    with pytest.raises(LlmcalcError, match=r"mixed_with\[0\]\.batch.*: shapes must broadcast"):
        step_of("gpt2", past=np.array([1, 2, 3]), mixed_with=[uneven])


def test_what_is_no_model_is_refused() -> None:
    spec: Any = "llama-3-8b"
    for ask in (
        lambda: roofline.flops(spec, batch=1, new=1, past=0),
        lambda: roofline.bytes_moved(spec, batch=1, new=1, past=0, **WIDE),
        lambda: roofline.step_time(spec, "L4", batch=1, new=1, past=0, **WIDE),
        lambda: roofline.generation(spec, "L4", prompt=1, new_tokens=1, **WIDE),
        lambda: roofline.collectives(spec, batch=1, new=1, past=0),
    ):
        with pytest.raises(LlmcalcError, match=r"^spec = 'llama-3-8b': must be a ModelSpec"):
            ask()


def test_measured_times_may_be_any_kind_of_positive_number() -> None:
    step = step_of("gpt2")
    share = step.bandwidth_utilization(2.0)
    for value in (2, np.float32(2), np.int64(2)):
        assert step.bandwidth_utilization(value) == share
    for kind in ("float32", "int8", "uint64"):
        assert step.bandwidth_utilization(np.array([2, 4], dtype=kind)).tolist() == [
            share,
            share / 2,
        ]
    bad: list[Any] = [0, -1, True, "1", None, [1.0], float("nan"), float("inf")]
    bad += [np.array([1, 0]), np.array([1, np.nan]), np.array(["a"]), np.array([True])]
    for value in bad:
        with pytest.raises(LlmcalcError, match=r"^measured_seconds = "):
            step.model_flops_utilization(value)


def test_generations_of_short_integers_are_those_of_long_ones() -> None:
    spec = model("mamba-130m-hf")
    common: dict[str, Any] = {"new_tokens": 300, **WIDE}
    prompt, batch = np.array([3, 100]), np.array([[100], [2]])
    whole = roofline.generation(spec, "L4", prompt=prompt, batch=batch, **common)
    short = roofline.generation(
        spec, "L4", prompt=prompt.astype("int8"), batch=batch.astype("int8"), **common
    )
    assert short == whole
    assert short.tokens_per_second.tolist() == whole.tokens_per_second.tolist()
    for far in (2**63, np.array([2**63 - 1], dtype=object)):
        answer = roofline.generation(spec, "L4", prompt=far, **common)
        assert np.isfinite(answer.tokens_per_second).all()


def test_generations_have_requests_of_one_kind() -> None:
    with pytest.raises(LlmcalcError, match=r"^mixed_with = "):
        roofline.generation(
            model("gpt2"),
            "L4",
            prompt=1,
            new_tokens=1,
            **WIDE,
            mixed_with=[Requests(batch=1, new=1, past=1)],
        )


def test_formats_of_one_name_are_told_apart_and_none_is_kept_for_long() -> None:
    spec = load_model("mixtral-8x7b")
    step: dict[str, Any] = {"batch": 2, "new": 3, "past": 7}
    for number in range(300):
        width = 1 + number % 4
        own = attrs.evolve(formats.get("bf16"), block_bytes=width, block_parts=())
        moved = roofline.bytes_moved(spec, **step, weights="bf16", kv=own)
        assert moved["cache written"].total == 2 * 3 * 2 * 8 * 128 * 32 * width
        [first, *_] = roofline.collectives(spec, **step, tensor_parallel=2, activations=own)
        assert first.message_bytes == 2 * 3 * 4096 * width
    for _ in range(100):
        scheme = formats.scheme("awq-int4-g128", load_model("mixtral-8x7b"))
        roofline.step_time(spec, "L4", **step, weights=scheme, kv="bf16")
    assert len(spec.ledger.kept) <= 256


def test_threads_that_share_a_model_get_what_one_gets() -> None:
    cases: list[dict[str, Any]] = [
        {"layout": layout, "weights": weights, "kv": kv, "causal": causal, "experts": experts}
        for layout in (None, Layout(tensor_parallel=2), Layout(pipeline_parallel=2))
        for weights in ("bf16", "fp8", "awq-int4-g128")
        for kv in ("bf16", "fp8")
        for causal in (True, False)
        for experts in ("fewest", "most")
    ]

    def ask(spec: ModelSpec, case: dict[str, Any]) -> tuple[Any, ...]:
        step = roofline.step_time(spec, "H100-SXM-80GB", batch=3, new=2, past=9, **case)
        return step.seconds, step.flops.total, dict(step.bytes.by())

    alone = load_model("mixtral-8x7b")
    expected = [ask(alone, case) for case in cases]
    shared, interval = load_model("mixtral-8x7b"), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda case: ask(shared, case), cases * 5))
    finally:
        sys.setswitchinterval(interval)
    assert found == expected * 5


MANY = 40_000  # more than what is computed at a time


@pytest.mark.parametrize("name", ["llama-3-8b", "gemma-2-9b", "deepseek-v3", "mixtral-8x7b"])
@pytest.mark.parametrize(
    "form", ["scattered", "all differ", "wide batches", "grid", "few rows", "one array"]
)
def test_many_steps_have_the_figures_of_each_alone(name: str, form: str) -> None:
    random = np.random.default_rng(1)
    past = random.integers(0, 10**5, MANY)
    forms: dict[str, dict[str, Any]] = {
        "scattered": {"batch": random.integers(0, 256, MANY, dtype=np.uint8), "past": past},
        "all differ": {
            "batch": random.integers(1, 99, MANY),
            "new": random.integers(0, 99, MANY),
            "past": past,
        },
        "wide batches": {"batch": random.integers(1, 10**6, MANY), "past": past},
        "grid": {"batch": np.arange(1, 201)[:, None], "past": np.arange(200)},
        "few rows": {"batch": np.array([[1], [64]]), "past": past},
        "one array": {"past": past},
    }
    arguments = forms[form]
    ranks = 4 if name == "mixtral-8x7b" else 1
    many = step_of(name, **arguments, tensor_parallel=ranks)
    shape = np.broadcast_shapes(*(np.shape(value) for value in arguments.values()))
    assert many.seconds.shape == many.flops.total.shape == many.bytes.total.shape == shape
    full = {field: np.broadcast_to(value, shape) for field, value in arguments.items()}
    for place in random.integers(0, shape, (40, len(shape))):
        at = tuple(place)
        one = {field: int(array[at]) for field, array in full.items()}
        alone = step_of(name, **one, tensor_parallel=ranks)
        assert many.seconds[at] == pytest.approx(alone.seconds, rel=1e-15, abs=0)
        assert many.bound_seconds[at] == pytest.approx(alone.bound_seconds, rel=1e-15, abs=0)
        assert int(many.flops.total[at]) == alone.flops.total
        assert many.bytes.total[at] == alone.bytes.total


@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v3", "state-spaces/mamba-130m-hf"])
@pytest.mark.parametrize("points", [40, 40_000])
def test_figures_of_many_steps_may_be_changed_in_place(name: str, points: int) -> None:
    options: dict[str, Any] = {"batch": 3, "new": 1, "past": np.arange(points)}
    step = roofline.step_time(
        load_model(name), "H100-SXM-80GB", weights="bf16", kv="bf16", **options
    )
    figures = [step.bound_seconds, step.seconds, step.memory_bytes]
    for breakdown in (step.flops, step.bytes):
        figures += [breakdown.total, *breakdown.by().values()]
    for item in step.items:
        figures += [item.flops, item.bytes]
    for figure in figures:
        before = figure[1:].copy()
        figure[0] += 1
        assert (figure[1:] == before).all()


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint64", "object"])
def test_a_result_keeps_what_it_was_asked_when_the_array_changes(dtype: str) -> None:
    spec = model("Llama-3.1-8B")
    past = np.array([10, 20], dtype=dtype)
    asked: dict[str, Any] = {"batch": 1, "new": 1, "weights": "bf16", "kv": "bf16"}
    moved = roofline.bytes_moved(spec, past=past, **asked)
    step = roofline.step_time(spec, "H100-SXM-80GB", past=past, **asked)
    mixed = roofline.flops(
        spec, batch=1, new=1, past=5, mixed_with=[Requests(batch=1, new=1, past=past)]
    )
    past[:] = 200
    each = [roofline.bytes_moved(spec, past=own, **asked).by() for own in (10, 20)]
    assert {group: value.tolist() for group, value in moved.by().items()} == {
        group: [one[group] for one in each] for group in each[0]
    }
    times = [
        roofline.step_time(spec, "H100-SXM-80GB", past=own, **asked).seconds for own in (10, 20)
    ]
    assert step.seconds == pytest.approx(times)
    assert len(set(np.asarray(mixed.total).tolist())) == 2
    with_array = roofline.bytes_moved(spec, past=np.array([10, 20]), **asked)
    with_array.total[:] = 0
    assert with_array.total.all()


@pytest.mark.parametrize("field", ["batch", "new", "past", "mixed_with[0].past"])
def test_a_step_too_large_for_a_float_is_refused_by_name(field: str) -> None:
    sizes: dict[str, Any] = {"batch": 1, "new": 1, "past": 1}
    mixed = {**sizes, "past": 10**320} if "mixed" in field else sizes
    first = sizes if "mixed" in field else {**sizes, field: 10**320}
    with pytest.raises(LlmcalcError) as refused:
        roofline.step_time(
            model("Llama-3.1-8B"), "H100-SXM-80GB", **first, weights="bf16", kv="bf16",
            mixed_with=[Requests(**mixed)],
        )  # fmt: skip
    assert str(refused.value).startswith(f"{field} = ")
    largest = roofline.step_time(
        model("Llama-3.1-8B"), "H100-SXM-80GB", batch=2**127, new=2**127, past=2**127,
        weights="bf16", kv="bf16",
    )  # fmt: skip
    assert 0 < largest.seconds < float("inf")


@pytest.mark.parametrize(
    "state",
    [("a", "b"), {1: "fp32", "state": "fp32"}, {"state": "fp32"}, (("state", "fp32"),)],
)
def test_a_state_that_is_no_format_is_refused_by_name(state: Any) -> None:
    with pytest.raises(LlmcalcError, match=r"^state = "):
        roofline.bytes_moved(
            model("Llama-3.1-8B"), batch=1, new=1, past=1, weights="bf16", kv="bf16", state=state
        )


def test_formats_of_states_are_the_same_in_any_order() -> None:
    first = Formats.given("bf16", "bf16", {"state": "fp32", "conv": "bf16"}, None)
    second = Formats.given("bf16", "bf16", {"conv": "bf16", "state": "fp32"}, None)
    assert first == second
    assert hash(first) == hash(second)


def test_a_ledger_is_of_use_without_its_model_and_both_are_collected() -> None:
    ledger = ModelSpec.assignment_decoder(
        vocab_size=100, d_model=8, d_ff=16, num_layers=2, max_seq_len=32
    ).ledger
    gc.collect()
    assert ledger.spec.num_layers == 2
    assert dict(ledger.layer_numbers) == {"decoder": (0, 1)}
    gone = weakref.ref(ledger.spec)
    del ledger
    gc.collect()
    assert gone() is None


def test_what_is_kept_takes_no_arguments_by_name() -> None:
    def make(ledger: object, number: int = 1) -> list[int]:
        return [number]

    ledger = model("Llama-3.1-8B").ledger
    with pytest.raises(TypeError, match="number"):
        kept(ledger, make, number=2)  # type: ignore[call-arg]
