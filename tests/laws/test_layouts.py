"""What must hold for any layout: what its ranks hold, what it replicates, what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import cache
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from llmcalc import GiB, Layout, LlmcalcError, ModelSpec, load_model, memory
from llmcalc.layouts import ENGINES, Rank
from llmcalc.spec.axes import is_split
from llmcalc.spec.ledger import StoredTensor
from llmcalc.strategies import dense_specs
from tests.truth import rows

#: Grouped queries, tied and untied heads, latents, routed and shared experts, windows, recurrent
#: layers, weights that layers share, an odd vocabulary.
MODELS = (
    "Llama-3.1-8B",
    "gpt2",
    "DeepSeek-V3",
    "DeepSeek-V2-Lite",
    "Mixtral-8x7B-v0.1",
    "gpt-oss-20b",
    "Qwen3-Next-80B-A3B-Instruct",
    "gemma-3-12b-it",
    "granite-4.0-h-small",
    "jamba",
    "zamba2",
)


@cache
def model(name: str) -> ModelSpec:
    """Return a catalogued model, or a model type with its class defaults."""
    for row in rows("default_configs"):
        if row["model_type"] == name and name != "gpt2":
            return load_model(row["config"], name=name)
    return load_model(name)


@st.composite
def layouts(draw: st.DrawFn, engines: bool = True) -> Layout:
    """Draw a layout of at most 64 devices."""
    tensor, stages, data = (draw(st.sampled_from([1, 1, 2, 3, 4, 8])) for _ in range(3))
    assume(tensor * stages * data <= 64)
    return Layout(
        tensor_parallel=tensor,
        pipeline_parallel=stages,
        data_parallel=data,
        expert_parallel=draw(st.booleans()),
        decode_context_parallel=draw(st.sampled_from([n for n in (1, 2, 4) if tensor % n == 0])),
        data_parallel_attention=data > 1 and draw(st.booleans()),
        engine=draw(st.sampled_from(list(ENGINES))) if engines else None,
    )


@st.composite
def placed(draw: st.DrawFn, engines: bool = True) -> tuple[ModelSpec, Layout]:
    """Draw a model and a layout that it allows."""
    names = st.sampled_from(MODELS).map(model)
    spec = draw(st.one_of(names, dense_specs()))
    layout = draw(layouts(engines))
    try:
        memory.weight_bytes(spec, weights="bf16", layout=layout)
        memory.kv_cache_bytes(spec, context=1, kv="bf16", layout=layout)
    except LlmcalcError:
        assume(False)
    return spec, layout


#: Plain formats, scales for channels, blocks and groups, zero points, a mix.
WEIGHTS = st.sampled_from(
    ["bf16", "int4", "fp8-channel", "fp8-block128", "awq-int4-g128", "nf4", "nvfp4", "Q4_K_M"]
)


def allowed(spec: ModelSpec, layout: Layout, weights: str) -> bool:
    """Whether the layout's engine takes weights of this format, if it names one."""
    try:
        memory.weight_bytes(spec, weights=weights, layout=layout)
    except LlmcalcError:
        return False
    return True


def copies(tensor: StoredTensor, spec: ModelSpec, layout: Layout) -> int:
    """Count, from the layout's meaning alone, how many ranks hold each element of a weight."""
    tensor_ranks, replicas = layout.tensor_parallel, layout.data_parallel
    stages = layout.pipeline_parallel
    if tensor.times or stages == 1:
        used = 1
    else:
        firsts = [0]
        for stage in layout.stages(spec):
            firsts.append(firsts[-1] + stage.layers)
        labels = [run.label for run in spec.layers for _ in range(run.count)]
        used = 0
        for number, (start, end) in enumerate(pairwise(firsts)):
            here = {("layers", label) for label in labels[start:end]}
            here |= {("before", "")} if number == 0 else set()
            here |= {("after", "")} if number == stages - 1 else set()
            used += bool(here & set(tensor.places))
    joint: dict[object, Collection[str]]
    joint = {None: {"feed_forward", "experts"}, "sglang": {"feed_forward", "experts"}, "vllm": ()}
    if tensor.routed and layout.expert_parallel:
        return used
    if layout.data_parallel_attention and (tensor.routed or tensor.path[0] in joint[layout.engine]):
        tensor_ranks, replicas = tensor_ranks * replicas, 1
    axes = [axis for piece in (*tensor.rows, *tensor.columns) for axis in piece]
    split = [axis for axis in axes if is_split(axis)]
    if not split:
        return used * replicas * tensor_ranks
    few = {"kv_heads", "state_groups"}
    shared = [max(1, tensor_ranks // axis.size) for axis in split if axis.name in few]
    return used * replicas * max(shared, default=1)


@given(placed(engines=False))
def test_the_ranks_weights_sum_to_the_whole_and_its_copies_item_by_item(
    case: tuple[ModelSpec, Layout],
) -> None:
    spec, layout = case
    whole = {term.path: term.value for term in memory.weight_bytes(spec, weights="bf16").terms}
    total: Counter[tuple[str, ...]] = Counter()
    for rank in range(layout.devices):
        held = memory.weight_bytes(spec, weights="bf16", layout=layout, rank=rank)
        total.update({term.path: term.value for term in held.terms})
    for tensor in spec.ledger.tensors:
        pieces = [*tensor.rows, *tensor.columns]
        if max(len(tensor.rows), len(tensor.columns)) > 1 and layout.tensor_parallel > 1:
            # Pieces of one matrix may be split differently; each of them is covered elsewhere.
            kinds = {tuple(is_split(axis) for axis in piece) for piece in pieces}
            if len(kinds) > 1 or any(
                a.name in {"kv_heads", "state_groups"} for p in pieces for a in p
            ):
                assert total[tensor.path] >= whole[tensor.path]
                continue
        assert total[tensor.path] == whole[tensor.path] * copies(tensor, spec, layout), tensor.path


@given(placed(engines=False), st.one_of(WEIGHTS, st.sampled_from(["IQ2_M", "IQ4_NL", "Q5_0"])))
@example((model("Llama-3.1-8B"), Layout(pipeline_parallel=3)), "Q4_K_M")
@example((model("Llama-3.1-8B"), Layout(pipeline_parallel=2)), "IQ4_NL")
def test_the_ranks_have_the_items_of_the_whole_in_any_format(
    case: tuple[ModelSpec, Layout], weights: str
) -> None:
    spec, layout = case
    if not allowed(spec, layout, weights):
        return
    whole: Counter[tuple[str, ...]] = Counter()
    for term in memory.weight_bytes(spec, weights=weights).terms:
        whole[term.path] += term.value
    total: Counter[tuple[str, ...]] = Counter()
    for rank in range(layout.devices):
        for term in memory.weight_bytes(spec, weights=weights, layout=layout, rank=rank).terms:
            total[term.path] += term.value
    assert set(total) == set(whole)
    copied = (layout.tensor_parallel, layout.data_parallel) != (1, 1)
    # Weights outside the layers, or shared by them, may be on several stages.
    shared = {tensor.path[:2] for tensor in spec.ledger.tensors if not tensor.times}
    for path, value in whole.items():
        assert total[path] >= value, path
        assert copied or path[:2] in shared or total[path] == value, path


@given(placed(), st.one_of(WEIGHTS, st.sampled_from(["IQ2_M", "IQ4_NL"])), st.integers(0, 40))
def test_a_fit_counts_what_its_working_shows(
    case: tuple[ModelSpec, Layout], weights: str, batch: int
) -> None:
    spec, layout = case
    if not allowed(spec, layout, weights):
        return
    answer = memory.fit(
        spec, device_memory=GiB, context=100, batch=batch, weights=weights, kv="bf16", layout=layout
    )
    shown = answer.weight_bytes.total + answer.requests * answer.cache_bytes.total
    assert answer.needed_bytes == shown
    held = memory.weight_bytes(spec, weights=weights, layout=layout, rank=answer.rank)
    assert answer.weight_bytes == held
    again = memory.fit(
        spec, device_memory=GiB, context=100, batch=batch, weights=weights, kv="bf16", layout=layout
    )
    assert answer == again


@given(placed(engines=False), st.integers(0, 5000), st.integers(0, 40))
def test_the_ranks_caches_sum_to_the_whole_and_its_copies_item_by_item(
    case: tuple[ModelSpec, Layout], context: int, batch: int
) -> None:
    spec, layout = case
    whole = memory.kv_cache_bytes(spec, context=context, batch=batch, kv="bf16")
    total: Counter[tuple[str, ...]] = Counter()
    for rank in range(layout.devices):
        held = memory.kv_cache_bytes(
            spec, context=context, batch=batch, kv="bf16", layout=layout, rank=rank
        )
        for term in held.terms:
            total[term.path] += term.value
    expected: Counter[tuple[str, ...]] = Counter()
    shapes = [(entry.name, cache) for entry, cache in spec.ledger.caches]
    for term, (name, cache_) in zip(whole.terms, shapes, strict=True):
        assert term.path == name
        split = [axis for axis in cache_.shape if is_split(axis)]
        few = [axis.size for axis in split if axis.name in {"kv_heads", "state_groups"}]
        ranks = layout.tensor_parallel
        times = max([max(1, ranks // size) for size in few], default=1) if split else ranks
        dealt = type(cache_.span).__name__ != "Constant"
        expected[name] += term.value * times // (layout.decode_context_parallel if dealt else 1)
    assert total == expected


@given(placed(), WEIGHTS, st.integers(0, 5000), st.integers(0, 40))
def test_no_rank_holds_more_than_the_figures_without_a_rank(
    case: tuple[ModelSpec, Layout], stored: str, context: int, batch: int
) -> None:
    spec, layout = case
    assume(allowed(spec, layout, stored))

    def weights(rank: int | None = None) -> int:
        return memory.weight_bytes(spec, weights=stored, layout=layout, rank=rank).total

    def cached(rank: int | None = None) -> int:
        return memory.kv_cache_bytes(
            spec, context=context, batch=batch, kv="bf16", layout=layout, rank=rank
        ).total

    for question in (weights, cached):
        assert question() == max(question(rank=rank) for rank in range(layout.devices))


@given(placed(), WEIGHTS, st.integers(1, 5000))
def test_more_tensor_parallelism_never_raises_what_a_rank_holds(
    case: tuple[ModelSpec, Layout], stored: str, context: int
) -> None:
    spec, layout = case
    assume(allowed(spec, layout, stored))
    for factor in (2, 3, 4):
        more = attrs.evolve(layout, tensor_parallel=layout.tensor_parallel * factor)
        try:
            wide = memory.weight_bytes(spec, weights=stored, layout=more).total
            held = memory.kv_cache_bytes(spec, context=context, kv="bf16", layout=more).total
        except LlmcalcError:
            continue
        assert wide <= memory.weight_bytes(spec, weights=stored, layout=layout).total
        assert held <= memory.kv_cache_bytes(spec, context=context, kv="bf16", layout=layout).total


@given(placed(), st.integers(1, 5000), st.integers(0, 2**38))
def test_a_layouts_largest_batch_fits_on_every_rank_and_one_more_does_not(
    case: tuple[ModelSpec, Layout], context: int, device_memory: int
) -> None:
    spec, layout = case
    formats: dict[str, Any] = {"weights": "fp8", "kv": "bf16"}
    most = memory.max_batch_size(
        spec, device_memory=device_memory, context=context, layout=layout, **formats
    )
    assert most is not None

    def fits(batch: int) -> bool:
        return all(
            memory.weight_bytes(spec, weights="fp8", layout=layout, rank=rank).total
            + memory.kv_cache_bytes(
                spec, context=context, batch=batch, kv="bf16", layout=layout, rank=rank
            ).total
            <= device_memory
            for rank in range(layout.devices)
        )

    for batch in {most - 1, most, most + 1} - {-1}:
        answer = memory.fit(
            spec,
            device_memory=device_memory,
            context=context,
            batch=batch,
            layout=layout,
            **formats,
        )
        assert answer.fits == fits(batch)
        assert answer.max_batch_size == most
        if batch:
            assert answer.fits == (batch <= most)


@given(placed(), st.integers(1, 40), st.integers(0, 2**36))
def test_a_layouts_longest_context_is_the_longest(
    case: tuple[ModelSpec, Layout], batch: int, device_memory: int
) -> None:
    spec, layout = case
    formats: dict[str, Any] = {"weights": "fp8", "kv": "bf16"}
    limit = memory.max_context(
        spec, device_memory=device_memory, batch=batch, layout=layout, **formats
    )
    assert limit is not None

    def fits(context: int) -> bool:
        return memory.fit(
            spec,
            device_memory=device_memory,
            context=context,
            batch=batch,
            layout=layout,
            **formats,
        ).fits

    assert limit == 0 or fits(limit)
    if limit.limited_by == "memory":
        assert not fits(limit + 1)


@given(
    placed(),
    st.lists(st.integers(0, 2**36), max_size=3),
    st.lists(st.integers(0, 9999), max_size=3),
)
def test_array_calls_with_a_layout_give_the_integers_of_scalar_calls(
    case: tuple[ModelSpec, Layout], memories: list[int], contexts: list[int]
) -> None:
    spec, layout = case
    held = memory.kv_cache_bytes(spec, context=np.array(contexts, int), kv="bf16", layout=layout)
    assert np.broadcast_to(held.total, len(contexts)).tolist() == [
        memory.kv_cache_bytes(spec, context=context, kv="bf16", layout=layout).total
        for context in contexts
    ]
    formats: dict[str, Any] = {"weights": "fp8", "kv": "bf16"}
    sizes = memory.max_batch_size(
        spec,
        device_memory=np.array(memories, int)[:, None],
        context=np.array(contexts, int),
        layout=layout,
        **formats,
    )
    assert sizes.tolist() == [
        [
            memory.max_batch_size(spec, device_memory=m, context=c, layout=layout, **formats)
            for c in contexts
        ]
        for m in memories
    ]


def vllm_stages(layers: int, stages: int) -> list[int]:
    """Return vLLM's split, as its docstring words it."""
    sizes = [layers // stages] * stages
    for back in range(layers % stages):
        sizes[stages - 2 - back] += 1
    return sizes


@pytest.mark.parametrize("stages", range(1, 62))
def test_stages_are_those_of_the_engines(stages: int) -> None:
    spec = model("DeepSeek-V3")
    for engine in (None, "vllm"):
        layout = Layout(pipeline_parallel=stages, engine=engine)
        assert [stage.layers for stage in layout.stages(spec)] == vllm_stages(61, stages)
    sglang = [
        stage.layers for stage in Layout(pipeline_parallel=stages, engine="sglang").stages(spec)
    ]
    assert sglang == sorted(sglang)
    assert sum(sglang) == 61
    assert max(sglang) - min(sglang) <= 1


@given(dense_specs(), st.integers(1, 3))
def test_stages_hold_every_layer_once_and_in_order(spec: ModelSpec, stages: int) -> None:
    assume(stages <= spec.num_layers)
    cut = Layout(pipeline_parallel=stages).stages(spec)
    numbers = [sorted(n for own in stage.numbers.values() for n in own) for stage in cut]
    assert [n for own in numbers for n in own] == list(range(spec.num_layers))


def test_given_stages_are_taken() -> None:
    spec = model("Llama-3.1-8B")
    layout = Layout(pipeline_parallel=2, stage_layers=(20, 12))
    assert [stage.layers for stage in layout.stages(spec)] == [20, 12]
    held = [
        memory.kv_cache_bytes(spec, context=1024, kv="bf16", layout=layout, rank=rank).total
        for rank in (0, 1)
    ]
    assert held == [20 * 2**22, 12 * 2**22]


def test_embeddings_are_on_the_first_stage_and_the_head_on_the_last() -> None:
    def groups(name: str, rank: int) -> set[str]:
        layout = Layout(pipeline_parallel=4)
        held = memory.weight_bytes(model(name), weights="bf16", layout=layout, rank=rank)
        return {term.path[0] for term in held.terms}

    inside = {"attention", "feed_forward", "norms"}
    assert groups("Llama-3.1-8B", 0) == inside | {"embeddings"}
    assert groups("Llama-3.1-8B", 1) == groups("Llama-3.1-8B", 2) == inside
    assert groups("Llama-3.1-8B", 3) == inside | {"head"}
    # A tied table is on both; learned positions are looked up on the first stage alone.
    last = memory.weight_bytes(
        model("gpt2"), weights="bf16", layout=Layout(pipeline_parallel=4), rank=3
    )
    assert {term.path[2] for term in last["embeddings"].terms} == {"token"}


def test_a_latent_is_whole_on_every_tensor_parallel_rank_unless_its_slots_are_dealt_out() -> None:
    spec = model("DeepSeek-V3")

    def held(**layout: Any) -> int:
        return memory.kv_cache_bytes(spec, context=4096, kv="bf16", layout=Layout(**layout)).total

    whole = memory.kv_cache_bytes(spec, context=4096, kv="bf16").total
    assert whole == 61 * 4096 * (512 + 64) * 2
    assert held(tensor_parallel=8) == whole
    assert held(tensor_parallel=8, decode_context_parallel=8) == whole // 8
    assert held(data_parallel=8, data_parallel_attention=True) == whole


def test_experts_are_dealt_out_whole_and_the_first_ranks_take_the_remainder() -> None:
    spec = model("Mixtral-8x7B-v0.1")
    expert = 3 * 4096 * 14336 * 32

    def experts(rank: int, **layout: Any) -> int:
        held = memory.weight_bytes(spec, weights="fp8", layout=Layout(**layout), rank=rank)[
            "experts"
        ]
        return held.total - 4096 * 8 * 32

    assert [
        experts(rank, data_parallel=3, expert_parallel=True) // expert for rank in range(3)
    ] == [3, 3, 2]
    assert experts(0, tensor_parallel=2, data_parallel=2, expert_parallel=True) == 2 * expert
    joint = {"tensor_parallel": 2, "data_parallel": 2, "data_parallel_attention": True}
    assert experts(3, **joint) == 2 * expert
    assert experts(0, tensor_parallel=2, data_parallel=2) == 4 * expert


def test_engines_pad_the_vocabulary() -> None:
    spec = model("gpt2")  # 50257 tokens
    padded = memory.weight_bytes(spec, weights="bf16", layout=Layout(engine="vllm"))
    plain = memory.weight_bytes(spec, weights="bf16")
    assert padded.total - plain.total == (50304 - 50257) * 768 * 2
    halves = [
        memory.weight_bytes(
            spec, weights="bf16", layout=Layout(tensor_parallel=2, engine="vllm"), rank=rank
        )["embeddings"].terms[0]
        for rank in (0, 1)
    ]
    assert [half.factors[0][0] for half in halves] == [50304 // 2] * 2
    assert memory.parameters(spec).total == 124439808


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("gpt2", {"tensor_parallel": 5}, r"tensor_parallel = 5: must divide query_heads \(12\)"),
        ("Llama-3.1-8B", {"tensor_parallel": 16, "decode_context_parallel": 4}, "2 copies of each"),
        ("Llama-3.1-8B", {"tensor_parallel": 8, "decode_context_parallel": 2}, "1 copies of each"),
        ("Llama-3.1-8B", {"expert_parallel": True}, "needs a model with routed experts"),
        ("Llama-3.1-8B", {"pipeline_parallel": 33}, "must be at most the 32 layers"),
        (
            "Llama-3.1-8B",
            {"pipeline_parallel": 2, "stage_layers": (16, 15)},
            "must sum to the 32 layers",
        ),
        (
            "Mixtral-8x7B-v0.1",
            {"data_parallel": 16, "expert_parallel": True},
            "must give each of 16 ranks one of the 8 experts",
        ),
        (
            "Mixtral-8x7B-v0.1",
            {"data_parallel": 2, "engine": "vllm"},
            "vLLM splits the experts over all data-parallel ranks",
        ),
        (
            "Llama-3.1-8B",
            {"data_parallel": 2, "data_parallel_attention": True, "engine": "vllm"},
            "replicas share experts only",
        ),
        (
            "gpt2",
            {"tensor_parallel": 12, "engine": "vllm"},
            None,  # 50304 rows are 12 times 4192
        ),
        (
            "gpt-oss-20b",
            {"tensor_parallel": 16, "decode_context_parallel": 2, "engine": "vllm"},
            "vLLM does not split windows",
        ),
        ("gemma3n_text", {"pipeline_parallel": 2}, "read another layer's cache"),
    ],
)
def test_what_engines_refuse_is_refused_with_the_rule(
    name: str, layout: dict[str, Any], message: str | None
) -> None:
    def ask() -> None:
        memory.fit(
            model(name),
            device_memory=GiB,
            context=1,
            weights="bf16",
            kv="bf16",
            layout=Layout(**layout),
        )

    if message is None:
        ask()
    else:
        with pytest.raises(LlmcalcError, match=message):
            ask()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel": 0}, "tensor_parallel = 0"),
        ({"pipeline_parallel": True}, "pipeline_parallel = True"),
        ({"data_parallel": 1.0}, "data_parallel"),
        ({"expert_parallel": 1}, "expert_parallel"),
        ({"decode_context_parallel": 2}, "must divide tensor_parallel"),
        ({"data_parallel_attention": True}, "needs data_parallel of at least 2"),
        ({"pipeline_parallel": 2, "stage_layers": (1,)}, "one number for each stage"),
        ({"stage_layers": [1]}, "must be a tuple"),
        ({"stage_layers": (0,)}, "stage_layers = 0"),
        ({"engine": "vlm"}, "did you mean 'vllm'"),
        ({"tensor_parallel": 2**20, "data_parallel": 2}, "at most 1048576 devices"),
    ],
)
def test_degrees_that_contradict_each_other_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LlmcalcError, match=message):
        Layout(**options)


def test_engines_refuse_a_share_that_cuts_through_blocks_with_one_scale() -> None:
    spec = model("Qwen3-235B-A22B")  # experts of 1536: 192 on each of 8 ranks

    def held(weights: str, **layout: Any) -> int:
        return memory.weight_bytes(
            spec, weights=weights, layout=Layout(tensor_parallel=8, **layout)
        ).total

    with pytest.raises(LlmcalcError, match="whole blocks of 128 rows: a rank would hold 192 of"):
        held("fp8-block128", engine="vllm")
    with pytest.raises(LlmcalcError, match="whole blocks of 128 columns: a rank would hold 192"):
        held("awq-int4-g128", engine="sglang")
    assert held("fp8-block128") > 0
    assert held("fp8-block128", expert_parallel=True, engine="vllm") > 0
    assert held("fp8-channel", engine="vllm") > 0


def test_a_layout_beside_a_degree_is_refused() -> None:
    spec = model("gpt2")
    with pytest.raises(LlmcalcError, match="must not be given beside a layout"):
        memory.weight_bytes(spec, weights="bf16", tensor_parallel=2, layout=Layout())
    with pytest.raises(LlmcalcError, match="layout = 'tp2': must be a Layout"):
        memory.weight_bytes(spec, weights="bf16", layout="tp2")  # type: ignore[arg-type]
    with pytest.raises(LlmcalcError, match="rank = 4: must be below the 4 devices"):
        memory.weight_bytes(spec, weights="bf16", layout=Layout(data_parallel=4), rank=4)


@given(layouts(engines=False), st.integers(0, 10**6))
def test_requests_are_dealt_out_evenly(layout: Layout, batch: int) -> None:
    spec = model("Llama-3.1-8B")
    [stage, *_] = Layout().stages(spec)
    dealt = [Rank(layout, stage, n, 0).requests(batch) for n in range(layout.data_parallel)]
    assert sum(dealt) == batch
    assert max(dealt) - min(dealt) <= 1
    assert dealt == sorted(dealt, reverse=True)


@given(placed())
def test_parameters_do_not_depend_on_the_layout(case: tuple[ModelSpec, Layout]) -> None:
    spec, layout = case
    before = memory.parameters(spec)
    memory.fit(spec, device_memory=GiB, context=1, weights="bf16", kv="bf16", layout=layout)
    assert memory.parameters(spec) == before
