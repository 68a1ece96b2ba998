"""Laws of what a step moves and how long it takes at least."""

from __future__ import annotations

from itertools import product
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import (
    Breakdown,
    LlmcalcError,
    ModelSpec,
    formats,
    hardware,
    huggingface,
    load_model,
    memory,
    roofline,
)
from llmcalc.spec import Attention, Chunk, Full, Mix, Window
from llmcalc.strategies import dense_specs
from llmcalc.units import Bytes
from tests.truth import rows

STEPS = st.fixed_dictionaries(
    {"batch": st.integers(1, 5), "new": st.integers(1, 40), "past": st.integers(0, 300)}
)
WIDE: dict[str, Any] = {"weights": "bf16", "kv": "bf16"}

#: A model of every kind of cache and mixer that is cheap to load.
KINDS = [
    row["config"]
    for row in rows("default_configs")
    if row["model_type"]
    in {"gemma2", "llama4_text", "deepseek_v3", "deepseek_v32", "mamba2", "qwen3_next", "zamba2"}
]


#: A small model of every type.
TINY = {row["model_type"]: row["config"] for row in rows("tiny_measured")}


@pytest.fixture(params=KINDS, ids=lambda config: config["model_type"])
def kind(request: pytest.FixtureRequest) -> ModelSpec:
    return load_model(request.param)


@given(spec=dense_specs(), step=STEPS)
def test_every_weight_is_read_once_and_tables_by_the_row(
    spec: ModelSpec, step: dict[str, Any]
) -> None:
    moved = roofline.bytes_moved(spec, **step, **WIDE)["weights"]
    weights = memory.weight_bytes(spec, weights="bf16")
    looked_up = step["batch"] * step["new"] * spec.embed_dim * 2
    tables = weights["embeddings"].total
    head = 0
    if spec.head.tied:  # read as a matrix, though it is stored as the table
        head = spec.embedding.vocab_size * spec.embed_dim * 2
    learned = spec.embedding.learned_positions is not None
    expected = weights.total - tables + head + looked_up * (1 + learned)
    assert moved.total == expected


@given(spec=dense_specs(), step=STEPS)
def test_cache_is_read_up_to_the_step_and_written_for_it(
    spec: ModelSpec, step: dict[str, Any]
) -> None:
    moved = roofline.bytes_moved(spec, **step, **WIDE)
    context = step["past"] + step["new"]
    whole = memory.kv_cache_bytes(spec, context=context, batch=step["batch"], kv="bf16").total
    before = memory.kv_cache_bytes(spec, context=step["past"], batch=step["batch"], kv="bf16").total
    assert moved["cache read"].total == whole
    assert moved["cache written"].total == whole - before


@given(spec=dense_specs(), step=STEPS, causal=st.booleans())
def test_flash_attention_never_moves_more_than_standard(
    spec: ModelSpec, step: dict[str, Any], causal: bool
) -> None:
    flash, standard = (
        roofline.bytes_moved(spec, **step, **WIDE, causal=causal, attention=name).total
        for name in ("flash", "standard")
    )
    assert flash < standard


@pytest.mark.parametrize("attention", ["flash", "standard"])
def test_bytes_of_arrays_are_those_of_their_elements(kind: ModelSpec, attention: Any) -> None:
    batch = np.array([1, 2, 7])[:, None]
    past = np.array([0, 5, 100, 4097, 10**6])
    for new in (1, 3, 300):
        whole = roofline.bytes_moved(
            kind, batch=batch, new=new, past=past, **WIDE, attention=attention, experts="most"
        )
        assert whole.total.shape == (3, 5)
        for row, requests in enumerate((1, 2, 7)):
            for column, before in enumerate(past.tolist()):
                one = roofline.bytes_moved(
                    kind,
                    batch=requests,
                    new=new,
                    past=before,
                    **WIDE,
                    attention=attention,
                    experts="most",
                )
                assert whole.total[row, column] == one.total


def test_bytes_past_the_reach_of_int64_are_exact(kind: ModelSpec) -> None:
    batch = np.array([2**40, 3])
    whole = roofline.bytes_moved(kind, batch=batch, new=2**20, past=2**20, **WIDE, experts="fewest")
    one = roofline.bytes_moved(kind, batch=2**40, new=2**20, past=2**20, **WIDE, experts="fewest")
    assert whole.total[0] == one.total > 2**63


@given(st.integers(1, 512), st.data())
def test_exact_bounds_bracket_the_expected_experts(experts: int, data: st.DataObject) -> None:
    used = data.draw(st.integers(1, experts))
    tokens = data.draw(st.integers(0, 10**5))
    sizes: dict[str, Any] = {"num_experts": experts, "experts_per_token": used, "tokens": tokens}
    fewest, expected, most = (
        roofline.experts_touched(**sizes, reads=reads) for reads in ("fewest", "expected", "most")
    )
    assert fewest <= expected * (1 + 1e-12)
    assert expected <= most * (1 + 1e-12)
    if tokens <= 1:
        assert fewest == most == used * tokens


def test_expected_experts_are_those_of_a_simulation() -> None:
    generator = np.random.default_rng(0)
    seen = []
    for _ in range(4000):
        picked = [generator.choice(16, size=3, replace=False) for _ in range(5)]
        seen.append(len(np.unique(picked)))
    expected = roofline.experts_touched(num_experts=16, experts_per_token=3, tokens=5)
    assert np.mean(seen) == pytest.approx(expected, abs=0.1)  # standard error 0.02


@given(spec=dense_specs(), step=STEPS, faster=st.integers(1, 64))
def test_a_device_that_is_faster_in_everything_takes_the_time_divided(
    spec: ModelSpec, step: dict[str, Any], faster: int
) -> None:
    slow = hardware.get("A100-SXM-80GB")
    fast = attrs.evolve(
        slow,
        bandwidth_bytes_per_second=slow.bandwidth_bytes_per_second * faster,
        peak_flops={name: rate * faster for name, rate in slow.peak_flops.items()},
    )
    before, after = (roofline.step_time(spec, device, **step, **WIDE) for device in (slow, fast))
    assert after.seconds == pytest.approx(before.seconds / faster)
    assert after.bound_seconds == pytest.approx(before.bound_seconds / faster)


@given(spec=dense_specs(), step=STEPS)
def test_items_sum_to_the_step_and_the_bound_is_below(
    spec: ModelSpec, step: dict[str, Any]
) -> None:
    time = roofline.step_time(spec, "L4", **step, **WIDE)
    assert sum(item.flops for item in time.items) == time.flops.total
    assert sum(item.bytes for item in time.items) == time.bytes.total
    assert time.bound_seconds <= time.seconds * (1 + 1e-12)
    assert time.bound_seconds == max(time.compute_seconds, time.memory_seconds)


@given(spec=dense_specs(), batch=st.integers(1, 60), past=st.integers(0, 300))
def test_a_larger_batch_never_gives_fewer_tokens_a_second(
    spec: ModelSpec, batch: int, past: int
) -> None:
    def rate(batch: int) -> float:
        time = roofline.step_time(spec, "L4", batch=batch, new=1, past=past, **WIDE)
        return batch / float(time.bound_seconds)

    assert rate(batch + 1) >= rate(batch) * (1 - 1e-12)


def test_times_of_arrays_are_those_of_their_elements(kind: ModelSpec) -> None:
    past = np.array([0, 10, 5000])
    whole = roofline.step_time(kind, "H100-SXM-80GB", batch=4, new=2, past=past, **WIDE)
    for index, before in enumerate(past.tolist()):
        one = roofline.step_time(kind, "H100-SXM-80GB", batch=4, new=2, past=before, **WIDE)
        assert whole.seconds[index] == pytest.approx(one.seconds, rel=1e-14)
        assert whole.bound_seconds[index] == pytest.approx(one.bound_seconds, rel=1e-14)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_flops_and_weights_sum_to_the_whole_and_what_is_replicated(ranks: int) -> None:
    spec = load_model("llama-3-8b")
    step: dict[str, Any] = {"batch": 2, "new": 3, "past": 50}
    whole = roofline.flops(spec, **step)
    one = roofline.flops(spec, **step, tensor_parallel=ranks)
    assert one.total * ranks == whole.total  # every product of a Llama is split
    moved = roofline.bytes_moved(spec, **step, **WIDE)
    share = roofline.bytes_moved(spec, **step, **WIDE, tensor_parallel=ranks)
    for group in ("cache read", "cache written"):
        assert share[group].total * ranks == moved[group].total


def test_a_shared_cache_is_read_by_all_its_layers_and_written_by_one() -> None:
    [config] = [
        row["config"] for row in rows("default_configs") if row["model_type"] == "gemma3n_text"
    ]
    spec = load_model(config)
    moved = roofline.bytes_moved(spec, batch=1, new=1, past=10, **WIDE)
    layers = config["num_hidden_layers"]
    held = layers - config["num_kv_shared_layers"]
    assert moved["cache read"].total * held == moved["cache written"].total * 11 * layers


@pytest.mark.parametrize(
    ("field", "value"),
    [("attention", "quick"), ("experts", "some"), ("mla", "both"), ("logits", 1), ("batch", -1)],
)
def test_a_bad_argument_is_refused(field: str, value: Any) -> None:
    arguments: dict[str, Any] = {"batch": 1, "new": 1, "past": 1, **WIDE, field: value}
    with pytest.raises(LlmcalcError, match=f"^{field} = "):
        roofline.bytes_moved(load_model("llama-3-8b"), **arguments)


def test_a_device_without_a_peak_for_the_format_is_refused() -> None:
    with pytest.raises(LlmcalcError, match="has no peak for this format"):
        roofline.step_time(
            load_model("llama-3-8b"), "A100-SXM-80GB", batch=1, new=1, past=1, **WIDE, compute="fp8"
        )


@pytest.mark.parametrize("span", [Full(), Window(5), Window(1), Window(40)], ids=str)
@given(new=st.integers(0, 60), past=st.integers(0, 60), tile=st.integers(1, 20))
def test_tiles_read_what_their_queries_see(span: Any, new: int, past: int, tile: int) -> None:
    def seen(first: int, last: int) -> set[int]:
        """Return the keys that the queries of some positions attend."""
        width = span.size if isinstance(span, Window) else last
        return {k for q in range(first, last) for k in range(max(0, q - width + 1), q + 1)}

    starts = range(past, past + new, tile)
    assert span.tiled(new, past, tile) == sum(
        len(seen(start, min(start + tile, past + new))) for start in starts
    )


@given(
    size=st.integers(1, 20),
    new=st.integers(0, 60),
    past=st.integers(0, 60),
    tile=st.integers(1, 20),
)
def test_the_chunks_of_positions_are_tiled_one_by_one(
    size: int, new: int, past: int, tile: int
) -> None:
    read, position = 0, past
    while position < past + new:
        start = position - position % size
        end = min(position + tile, start + size, past + new)
        read, position = read + end - start, end
    assert Chunk(size).tiled(new, past, tile) == read


@given(dense_specs(max_head_dim=64), STEPS, st.integers(1, 64), st.booleans())
def test_tiles_move_more_than_none_and_wide_ones_less_than_standard_attention(
    spec: ModelSpec, step: dict[str, Any], tile: int, causal: bool
) -> None:
    def moved(**options: Any) -> int:
        moved: int = roofline.bytes_moved(spec, **step, **WIDE, causal=causal, **options).total
        return moved

    tiled, untiled = moved(query_tile=tile), moved()
    assert tiled >= untiled
    if tile >= step["new"]:
        assert tiled == untiled
    attention = spec.layers[0].layer.blocks[0].parts[0]
    assert isinstance(attention, Attention)
    if attention.head_dim <= 2 * tile:
        assert tiled <= moved(attention="standard")


@pytest.mark.parametrize("tile", [16, 128])
@pytest.mark.parametrize("mla", ["expanded", "absorbed"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("step", [(2, 300, 0), (1, 33, 5000), (3, 1, 40), (1, 9000, 1)])
def test_tiles_of_any_kind_of_attention_move_less_than_standard_attention(
    kind: ModelSpec, step: tuple[int, int, int], *, causal: bool, mla: Any, tile: int
) -> None:
    batch, new, past = step
    options: dict[str, Any] = {"batch": batch, "new": new, "past": past, "mla": mla, **WIDE}
    options["causal"] = causal
    untiled = roofline.bytes_moved(kind, **options).total
    tiled = roofline.bytes_moved(kind, **options, query_tile=tile).total
    standard = roofline.bytes_moved(kind, **options, attention="standard").total
    assert untiled <= tiled
    widest = max(
        (e.item.query_key.size for e in kind.ledger.entries if isinstance(e.item, Mix)), default=0
    )
    if widest <= 2 * tile:
        assert tiled <= standard


@pytest.mark.parametrize("name", sorted(set(TINY) & set(huggingface.supported())))
def test_attention_of_every_model_type_moves_less_the_more_the_chip_holds(name: str) -> None:
    spec = load_model(TINY[name])
    mixes = [entry.item for entry in spec.ledger.entries if isinstance(entry.item, Mix)]
    for (batch, new, past), causal, mla in product(
        [(2, 300, 0), (1, 33, 500), (3, 1, 40)], (True, False), ("expanded", "absorbed")
    ):
        options: dict[str, Any] = {"batch": batch, "new": new, "past": past, **WIDE}
        options |= {"causal": causal, "mla": mla, "experts": "most"}

        def moved(options: Any = options, **more: Any) -> int:
            return int(roofline.bytes_moved(spec, **options, **more).total)

        untiled, standard = moved(), moved(attention="standard")
        assert untiled <= standard
        for tile in (16, 128):
            widths = [w for mix in mixes for w in (mix.query_key, *(mix.absorbed or ()))]
            if max((width.size for width in widths), default=0) <= 2 * tile:
                assert untiled <= moved(query_tile=tile) <= standard


@given(
    queries=st.integers(0, 200),
    past=st.integers(0, 200),
    head_dim=st.integers(1, 64),
    group=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    tile=st.integers(1, 64),
    causal=st.booleans(),
)
def test_one_attention_call_moves_what_the_fold_says(
    *,
    queries: int,
    past: int,
    head_dim: int,
    group: int,
    kv_heads: int,
    tile: int,
    causal: bool,
) -> None:
    spec = ModelSpec.dense(
        name="one",
        num_layers=1,
        num_query_heads=group * kv_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        embed_dim=8,
        inner_dim=8,
        vocab_size=8,
        positions="none",
    )
    common: dict[str, Any] = {"head_dim": head_dim, "element_bytes": 2, "causal": causal}
    heads: dict[str, Any] = {"query_heads": group * kv_heads, "kv_heads": kv_heads}
    calls: list[tuple[Any, int | None]] = [("flash", None), ("flash", tile), ("standard", None)]
    for algorithm, tiles in calls:
        moved = roofline.bytes_moved(
            spec,
            batch=3,
            new=queries,
            past=past,
            **WIDE,
            causal=causal,
            attention=algorithm,
            query_tile=tiles,
        )
        fold = sum(
            term.value
            for term in moved.terms
            if term.path[0] == "cache read" or term.path[-1] in {"attention", "attention.scores"}
        )
        assert fold == roofline.attention_bytes(
            queries=queries,
            keys=past + queries,
            batch=3,
            algorithm=algorithm,
            query_tile=tiles,
            **common,
            **heads,
        )


@given(spec=dense_specs(), step=STEPS, data=st.data())
def test_chunks_move_what_the_whole_moves_and_what_each_reads_again(
    spec: ModelSpec, step: dict[str, Any], data: st.DataObject
) -> None:
    batch, new, past = step["batch"], step["new"], step["past"]
    cut = data.draw(st.integers(0, new))

    def moved(new: int, past: int) -> Breakdown[Bytes]:
        return roofline.bytes_moved(spec, batch=batch, new=new, past=past, **WIDE, logits="all")

    whole, first, second = moved(new, past), moved(cut, past), moved(new - cut, past + cut)
    looked_up = sum(t.value for t in whole.terms if t.path[:2] == ("weights", "embeddings"))
    weights_again = whole["weights"].total - looked_up
    # The second chunk reads again what the first one had at hand.
    cache_again = moved(cut, past)["cache read"].total
    assert first.total + second.total - whole.total == weights_again + cache_again


@pytest.mark.parametrize(
    ("name", "weights", "device", "number"),
    [
        ("llama-3-8b", "bf16", "H100-SXM-80GB", "bf16"),
        ("llama-3-8b", "fp8", "H100-SXM-80GB", "fp8"),
        ("llama-3-8b", "fp8", "A100-SXM-80GB", "bf16"),  # which has no peak for fp8
        ("llama-3-8b", "w8a8", "A100-SXM-80GB", "int8"),
        ("llama-3-8b", "awq-int4-g128", "A100-SXM-80GB", "bf16"),
        ("llama-3-8b", "int4", "A100-SXM-80GB", "bf16"),  # though it has a peak for int4
        ("llama-3-8b", "Q4_K_M", "RTX-4090", "int8"),
        ("deepseek-v3", "checkpoint", "H200-SXM-141GB", "fp8"),
        ("gpt-oss-20b", "checkpoint", "H100-SXM-80GB", "bf16"),
        ("gpt-oss-20b", "checkpoint", "B200-SXM-180GB", "fp4"),
    ],
)
def test_products_run_in_the_number_format_of_most_weights(
    name: str, weights: str, device: str, number: str
) -> None:
    spec = load_model(name)
    step: dict[str, Any] = {"batch": 1, "new": 1, "past": 1, "kv": "bf16"}
    time = roofline.step_time(spec, device, **step, weights=weights)
    assert time.peak_flops == hardware.get(device).peak(number)
    scheme = formats.scheme(weights, spec)
    assert roofline.step_time(spec, device, **step, weights=scheme).peak_flops == time.peak_flops


def test_a_norm_of_heads_reads_and_writes_every_head() -> None:
    # Qwen3 0.6B: 16 query and 8 KV heads of 128, width 1024; every element in and out.
    moved = roofline.bytes_moved(load_model("Qwen3-0.6B"), batch=1, new=3, past=0, **WIDE)
    flows = {term.path[3]: term.value for term in moved["activations"].terms}
    assert flows["q_norm.weight"] == 2 * 16 * 128 * 2 * 3 * 28
    assert flows["k_norm.weight"] == 2 * 8 * 128 * 2 * 3 * 28
    assert flows["attention_norm.weight"] == 2 * 1024 * 2 * 3 * 28


def test_states_and_the_inputs_of_convolutions_may_have_formats_of_their_own() -> None:
    spec = load_model("mamba-130m-hf")
    step: dict[str, Any] = {"batch": 1, "new": 1, "past": 5, **WIDE}
    formats_of = {"state": "fp32", "conv": "bf16"}

    def cache() -> dict[str, int]:
        moved = roofline.bytes_moved(spec, **step, state=formats_of)
        return {term.path[3]: term.value for term in moved["cache read"].terms}

    # 24 layers, 1536 channels: 16 elements of state each, the last 3 inputs.
    assert cache() == {"conv": 24 * 1536 * 3 * 2, "state": 24 * 1536 * 16 * 4}
    formats_of["conv"] = "fp32"  # the caller's mapping is read anew every time
    assert cache()["conv"] == 24 * 1536 * 3 * 4
