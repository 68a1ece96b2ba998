"""Laws of a step that several devices share, of mixed steps, and of what devices exchange."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import Layout, LlmcalcError, ModelSpec, hardware, huggingface, load_model, roofline
from llmcalc.roofline import Requests
from llmcalc.spec import Attention, Linear, Mix
from llmcalc.spec.axes import is_split
from llmcalc.strategies import dense_specs
from tests.laws.test_layouts import copies, model, placed
from tests.truth import rows

WIDE: dict[str, Any] = {"weights": "bf16", "kv": "bf16"}

STEPS = st.fixed_dictionaries(
    {"batch": st.integers(1, 9), "new": st.integers(1, 12), "past": st.integers(0, 300)}
)

#: Layouts of one model of many parts, each with a kind of exchange that others lack.
DEEPSEEK = [
    Layout(tensor_parallel=8),
    Layout(tensor_parallel=8, expert_parallel=True),
    Layout(tensor_parallel=2, data_parallel=4, expert_parallel=True),
    Layout(tensor_parallel=2, data_parallel=4, data_parallel_attention=True),
    Layout(tensor_parallel=2, data_parallel=4, data_parallel_attention=True, expert_parallel=True),
    Layout(
        tensor_parallel=2,
        data_parallel=4,
        data_parallel_attention=True,
        expert_parallel=True,
        engine="vllm",
    ),
    Layout(tensor_parallel=8, decode_context_parallel=4),
    Layout(tensor_parallel=4, pipeline_parallel=2),
]


def ranks_of_an_item(spec: ModelSpec, layout: Layout) -> dict[tuple[str, ...], int]:
    """Count how many times the layout computes each product, for a stage and each request."""
    times = {}
    for tensor in spec.ledger.tensors:
        name = (*tensor.path[:-1], tensor.path[-1].removesuffix(".weight"))
        one_stage = attrs.evolve(tensor, shared=None)  # a tied head is on one stage
        times[name] = copies(one_stage, spec, layout)
    return times


@given(placed(engines=False), STEPS)
def test_the_ranks_flops_sum_to_the_whole_and_what_is_replicated(
    case: tuple[ModelSpec, Layout], step: dict[str, Any]
) -> None:
    spec, layout = case
    whole = {term.path: term.value for term in roofline.flops(spec, **step).terms}
    total: Counter[tuple[str, ...]] = Counter()
    for rank in range(layout.devices):
        done = roofline.flops(spec, **step, layout=layout, rank=rank)
        assert done.total == sum(term.value for term in done.terms)
        total.update({term.path: term.value for term in done.terms})
    assert set(total) == set(whole)
    if layout.tensor_parallel == 1 and not layout.data_parallel_attention:
        # Nothing is computed twice: replicas have requests of their own, stages layers.
        assert total == whole
        return
    known = ranks_of_an_item(spec, layout)
    mixes = {
        (*entry.path, f"{entry.item.name}.{name}"): is_split(entry.item.heads)
        for entry in spec.ledger.entries
        if isinstance(entry.item, Mix)
        for name in ("scores", "values")
    }
    for path, value in whole.items():
        if path in mixes:
            times = 1 if mixes[path] else layout.tensor_parallel
        elif path in known:
            # A replica computes for its own requests what all replicas hold a copy of.
            joint = layout.data_parallel_attention and path[0] in {"feed_forward", "experts"}
            routed = path[0] == "experts" and known[path] == 1
            times = known[path] if joint or routed else known[path] // layout.data_parallel
        else:
            continue
        if (spec.name, path[2]) in PIECES:
            assert total[path] >= value
        else:
            assert total[path] == value * times, path


#: Matrices some of whose pieces are split and some are copied.
PIECES = {
    ("mamba2", "in"),
    ("bamba", "in"),
    ("zamba2", "in"),
}


@given(placed(), STEPS, st.data())
def test_no_rank_does_more_than_the_figures_without_a_rank(
    case: tuple[ModelSpec, Layout], step: dict[str, Any], data: st.DataObject
) -> None:
    spec, layout = case
    rank = data.draw(st.integers(0, layout.devices - 1))
    most = roofline.flops(spec, **step, layout=layout).total
    assert roofline.flops(spec, **step, layout=layout, rank=rank).total <= most
    moved = roofline.bytes_moved(spec, **step, **WIDE, experts="most", layout=layout)
    own = roofline.bytes_moved(spec, **step, **WIDE, experts="most", layout=layout, rank=rank)
    assert own.total <= moved.total


@given(placed(), STEPS)
def test_a_step_under_a_layout_is_what_one_device_of_each_stage_does(
    case: tuple[ModelSpec, Layout], step: dict[str, Any]
) -> None:
    spec, layout = case
    time = roofline.step_time(spec, "H100-SXM-80GB", **step, **WIDE, layout=layout, experts="most")
    firsts = [
        stage * layout.tensor_parallel for stage in range(layout.pipeline_parallel)
    ]  # of the first replica
    stages = [roofline.flops(spec, **step, layout=layout, rank=rank).total for rank in firsts]
    assert time.flops.total == sum(stages)
    moved = [
        roofline.bytes_moved(spec, **step, **WIDE, layout=layout, rank=rank, experts="most").total
        for rank in firsts
    ]
    assert time.bytes.total == sum(moved)
    assert time.seconds == time.items_seconds + time.communication_seconds
    assert (time.communication_seconds > 0) == bool(time.collectives)


@given(
    dense_specs(),
    st.lists(STEPS, min_size=2, max_size=4),
    st.booleans(),
    st.sampled_from(["last", "all"]),
)
def test_a_mixed_step_costs_its_requests_flops_and_reads_the_weights_once(
    spec: ModelSpec, steps: list[dict[str, Any]], causal: bool, logits: Any
) -> None:
    first, *others = steps
    more = [Requests(**one) for one in others]
    options: dict[str, Any] = {"causal": causal, "logits": logits}
    mixed = roofline.flops(spec, **first, **options, mixed_with=more)
    apart = [roofline.flops(spec, **one, **options) for one in steps]
    assert mixed.total == sum(one.total for one in apart)
    assert dict(mixed.by(2)) == dict(sum((Counter(one.by(2)) for one in apart), Counter()))
    moved = roofline.bytes_moved(spec, **first, **WIDE, **options, mixed_with=more)
    alone = [roofline.bytes_moved(spec, **one, **WIDE, **options) for one in steps]
    again = alone[0]["weights"].total - _looked_up(alone[0])
    assert moved.total == sum(one.total for one in alone) - (len(steps) - 1) * again


def _looked_up(moved: Any) -> int:
    return sum(t.value for t in moved.terms if t.path[:2] == ("weights", "embeddings"))


def test_a_mixed_step_of_arrays_is_that_of_its_elements() -> None:
    spec = model("mixtral-8x7b")
    past = np.array([0, 7, 2**33])
    batch = np.array([[1], [2**31]])
    chunk = Requests(batch=1, new=np.array([5, 0, 9]), past=3)
    whole = roofline.flops(spec, batch=batch, new=1, past=past, mixed_with=[chunk])
    for i, requests in enumerate((1, 2**31)):
        for j, (before, new) in enumerate(zip(past.tolist(), (5, 0, 9), strict=True)):
            more = [Requests(batch=1, new=new, past=3)]
            one = roofline.flops(spec, batch=requests, new=1, past=before, mixed_with=more)
            assert whole.total[i, j] == one.total
            assert [t.value[i, j] if np.ndim(t.value) else t.value for t in whole.terms] == [
                t.value for t in one.terms
            ]


@pytest.mark.parametrize(
    "mixed_with",
    [[(1, 2, 3)], Requests(batch=1, new=1, past=1), [Requests(batch=-1, new=1, past=1)]],
)
def test_what_is_mixed_in_is_checked(mixed_with: Any) -> None:
    with pytest.raises(LlmcalcError, match=r"^mixed_with(\[0\]\.batch)? = "):
        roofline.flops(model("gpt2"), batch=1, new=1, past=1, mixed_with=mixed_with)


@pytest.mark.parametrize("layout", DEEPSEEK, ids=str)
def test_arrays_under_a_layout_give_what_integers_give_to_the_last_bit(layout: Layout) -> None:
    spec = load_model("deepseek-v3")
    batch, past = np.array([1, 8, 200])[:, None], np.array([0, 100, 70_000])
    common: dict[str, Any] = {**WIDE, "new": 1, "mla": "absorbed", "layout": layout}
    whole = roofline.step_time(spec, "H200-SXM-141GB", batch=batch, past=past, **common)
    for i, requests in enumerate((1, 8, 200)):
        for j, before in enumerate((0, 100, 70_000)):
            one = roofline.step_time(spec, "H200-SXM-141GB", batch=requests, past=before, **common)
            assert whole.flops.total[i, j] == one.flops.total
            for name in ("seconds", "bound_seconds", "communication_seconds", "memory_seconds"):
                assert getattr(whole, name)[i, j] == getattr(one, name)
            assert whole.bound[i, j] == one.bound
            for ours, theirs in zip(whole.items, one.items, strict=True):
                assert ours.path == theirs.path
                assert ours.seconds[i, j] == theirs.seconds


@given(placed(), STEPS, st.integers(2, 9))
def test_devices_and_links_that_are_faster_in_everything_take_the_time_divided(
    case: tuple[ModelSpec, Layout], step: dict[str, Any], faster: int
) -> None:
    spec, layout = case
    slow = hardware.get("A100-SXM-80GB")
    fast = attrs.evolve(
        slow,
        bandwidth_bytes_per_second=slow.bandwidth_bytes_per_second * faster,
        peak_flops={name: rate * faster for name, rate in slow.peak_flops.items()},
    )
    before, after = (
        roofline.step_time(
            spec,
            device,
            **step,
            **WIDE,
            layout=layout,
            link_bytes_per_second=300e9 * times,
            collective_latency_seconds=1e-5 / times,
        )
        for device, times in ((slow, 1), (fast, faster))
    )
    assert after.seconds == pytest.approx(before.seconds / faster)
    assert after.bound_seconds == pytest.approx(before.bound_seconds / faster)


@given(dense_specs(), STEPS, st.sampled_from([2, 4]))
def test_a_dense_layer_needs_two_sums_over_the_ranks(
    spec: ModelSpec, step: dict[str, Any], ranks: int
) -> None:
    try:
        time = roofline.step_time(spec, "H100-SXM-80GB", **step, **WIDE, tensor_parallel=ranks)
    except LlmcalcError:
        return
    found = [(one.kind, one.count, one.message_bytes) for one in time.collectives]
    tokens = step["batch"] * step["new"]
    hidden = 2 * tokens * spec.embed_dim
    logits = 2 * step["batch"] * spec.embedding.vocab_size
    # Heads that nothing brings back to the width are gathered.
    attention = spec.layers[0].layer.blocks[0].parts[0]
    projected = isinstance(attention, Attention) and attention.output
    first = ("all-reduce" if projected else "all-gather", spec.num_layers, hidden)
    second = ("all-reduce", spec.num_layers, hidden)
    assert found == [("all-reduce", 1, hidden), first, second, ("all-gather", 1, logits)]
    sent = hidden * (2 + spec.num_layers * (4 if projected else 3)) + logits
    sent = sent * (ranks - 1) / ranks
    assert sum(one.sent_bytes for one in time.collectives) == pytest.approx(sent)
    link = hardware.get("H100-SXM-80GB").link_bytes_per_second_per_direction
    assert link is not None
    assert time.communication_seconds == pytest.approx(sent / link)


def all_reduces(name: str, **layout: Any) -> Counter[str]:
    """Count the exchanges of a step by their kind and place."""
    time = roofline.step_time(
        model(name), "H100-SXM-80GB", batch=8, new=1, past=10, **WIDE, layout=Layout(**layout)
    )
    found: Counter[str] = Counter()
    for one in time.collectives:
        found[f"{one.kind} {one.path[0]}"] += one.count
    return found


def test_parts_that_read_the_same_input_share_one_sum() -> None:
    # GPT-J: attention and feed-forward of a layer read the same input.
    spec = model("gptj")
    found = all_reduces("gptj", tensor_parallel=2)
    assert found["all-reduce attention"] + found["all-reduce feed_forward"] == spec.num_layers


def test_routed_and_shared_experts_of_a_layer_share_one_sum() -> None:
    found = all_reduces("deepseek-v3", tensor_parallel=8)
    assert found == {
        "all-reduce embeddings": 1,
        "all-reduce attention": 61,
        "all-reduce feed_forward": 3,
        "all-reduce experts": 58,
        "all-gather head": 1,
    }
    # Whole experts on the ranks of one replica leave partial sums, too.
    assert all_reduces("deepseek-v3", tensor_parallel=8, expert_parallel=True) == found


def test_groups_of_heads_stay_where_their_heads_are() -> None:
    # DeepSeek-V4 brings each group of heads to a few elements, and these to the width.
    spec = model("DeepSeek-V4-Flash")
    step: dict[str, Any] = {"batch": 1, "new": 1, "past": 10}
    exchanged = roofline.collectives(spec, **step, tensor_parallel=4)
    assert {(one.kind, one.path[2]) for one in exchanged if one.path[0] == "attention"} == {
        ("all-reduce", "o_b")
    }
    whole, share = (
        {term.path: term.value for term in roofline.flops(spec, **step, tensor_parallel=n).terms}
        for n in (1, 4)
    )
    for path, value in whole.items():
        if path[2] in {"o_a", "o_b", "q_b"}:
            assert 4 * share[path] == value


def test_experts_of_all_replicas_get_their_tokens_and_send_the_results_back() -> None:
    found = all_reduces(
        "deepseek-v3",
        data_parallel=8,
        expert_parallel=True,
        data_parallel_attention=True,
        engine="vllm",
    )
    assert found == {"all-to-all experts": 2 * 58}


def test_data_parallel_attention_gathers_the_tokens_of_all_replicas_and_scatters_the_sums() -> None:
    found = all_reduces("mixtral-8x7b", data_parallel=8, data_parallel_attention=True)
    assert found == {"all-gather experts": 32, "reduce-scatter experts": 32}


def test_stages_send_the_hidden_state_on() -> None:
    time = roofline.step_time(
        model("mixtral-8x7b"),
        "H100-SXM-80GB",
        batch=3,
        new=5,
        past=0,
        **WIDE,
        layout=Layout(pipeline_parallel=4),
    )
    [send] = time.collectives
    assert (send.kind, send.count, send.message_bytes) == ("send", 3, 2 * 15 * 4096)
    assert send.sent_bytes == 3 * 2 * 15 * 4096


def test_ranks_that_deal_out_slots_gather_queries_and_scatter_results() -> None:
    layout: dict[str, Any] = {"tensor_parallel": 8, "decode_context_parallel": 4}
    step: dict[str, Any] = {"batch": 2, "new": 1, "past": 4095, "mla": "absorbed", **WIDE}
    spec = load_model("deepseek-v3")
    time = roofline.step_time(spec, "H100-SXM-80GB", **step, layout=Layout(**layout))
    mixing = [one for one in time.collectives if one.path[2] == "attention"]
    # 128 heads over 8 ranks: 4 of these gather 64 queries of 576 and scatter 64 results of 512.
    assert {(one.kind, one.ranks, one.message_bytes) for one in mixing} == {
        ("all-gather", 4, 2 * 2 * 64 * 576),
        ("reduce-scatter", 4, 2 * 2 * 64 * 512),
    }
    read, alone = (
        roofline.bytes_moved(spec, **step, layout=Layout(**one))["cache read"].total
        for one in (layout, {"tensor_parallel": 8})
    )
    assert 4 * read == alone


def test_a_device_without_a_link_asks_for_one() -> None:
    lonely = attrs.evolve(
        hardware.get("H100-SXM-80GB"),
        link=None,
        link_bytes_per_second_per_direction=None,
        host_link=None,
        host_link_bytes_per_second_per_direction=None,
        sources={},
    )
    step: dict[str, Any] = {"batch": 1, "new": 1, "past": 1, **WIDE, "tensor_parallel": 2}
    with pytest.raises(LlmcalcError, match=r"^link_bytes_per_second = None: must be given"):
        roofline.step_time(model("gpt2"), lonely, **step)
    time = roofline.step_time(model("gpt2"), lonely, **step, link_bytes_per_second=1e10)
    assert time.link == "given"
    for field in ("link_bytes_per_second", "collective_latency_seconds"):
        with pytest.raises(LlmcalcError, match=f"^{field} = -1"):
            roofline.step_time(
                model("gpt2"),
                lonely,
                **(step | {field: -1, "link_bytes_per_second": 1} | {field: -1}),
            )


@given(
    st.integers(1, 6).flatmap(
        lambda experts: st.tuples(
            st.just(experts), st.integers(1, experts), st.integers(1, experts)
        )
    ),
    st.integers(0, 3),
)
def test_experts_touched_on_a_rank_are_those_of_every_possible_choice(
    sizes: tuple[int, int, int], tokens: int
) -> None:
    experts, used, held = sizes
    own = set(range(held))
    touched = [
        len(own & {expert for choice in choices for expert in choice})
        for choices in product(list(combinations(range(experts), used)), repeat=tokens)
    ]
    common: dict[str, Any] = {
        "num_experts": experts,
        "experts_per_token": used,
        "tokens": tokens,
        "held": held,
    }
    fewest, expected, most = (
        roofline.experts_touched(**common, reads=reads) for reads in ("fewest", "expected", "most")
    )
    assert fewest == min(touched)
    assert most == max(touched)
    assert expected == pytest.approx(sum(touched) / len(touched))


TINY = {row["model_type"]: row["config"] for row in rows("tiny_measured")}


@pytest.mark.parametrize("name", sorted(set(TINY) & set(huggingface.supported())))
def test_a_prefill_of_any_model_type_costs_what_its_chunks_and_decode_steps_cost(name: str) -> None:
    spec = load_model(TINY[name])

    def cost(new: int, past: int, mla: Any = "absorbed") -> int:
        return roofline.flops(spec, batch=3, new=new, past=past, logits="all", mla=mla).total

    whole = cost(70, 0)
    assert whole == sum(cost(1, past) for past in range(70))
    assert whole == cost(33, 0) + cost(30, 33) + cost(7, 63)
    # Expanded, the latents at hand pass the up-projection again in every step.
    again = {
        term.path: term.value
        for term in roofline.flops(spec, batch=3, new=1, past=0, mla="expanded").terms
    }
    more = sum(
        again[entry.name] * (entry.item.span.present(37, 33) - 37)
        for entry in spec.ledger.entries
        if isinstance(entry.item, Linear) and entry.item.tokens in {"latent", "cached"}
    )
    expanded = cost(33, 0, "expanded") + cost(37, 33, "expanded")
    assert expanded - cost(70, 0, "expanded") == more


def test_a_norm_of_all_heads_as_one_vector_sums_over_the_ranks() -> None:
    # OLMoE normalises the queries and the keys of all heads together: two sums for each token.
    found = roofline.collectives(model("olmoe"), batch=3, new=1, past=10, tensor_parallel=2)
    sums = [one for one in found if one.path[2].endswith("norm.weight")]
    assert [(one.kind, one.count, one.message_bytes) for one in sums] == [
        ("all-reduce", model("olmoe").num_layers, 2 * 3 * 2)
    ]
    # Qwen3 normalises each head by itself, which is on one rank.
    found = roofline.collectives(model("qwen3"), batch=3, new=1, past=10, tensor_parallel=2)
    assert not [one for one in found if "norm" in one.path[2]]


def test_a_token_goes_to_a_rank_once_however_many_of_its_experts_are_there() -> None:
    def dispatched(replicas: int) -> int:
        found = roofline.collectives(
            load_model("deepseek-v3"),
            batch=replicas,
            new=1,
            past=10,
            layout=Layout(
                data_parallel=replicas,
                expert_parallel=True,
                data_parallel_attention=True,
                engine="vllm",
            ),
        )
        [experts] = [one for one in found if one.kind == "all-to-all"]
        return int(experts.message_bytes)

    # 8 experts a token: to 2 or 4 ranks at most, or to 8 of 16.
    assert [dispatched(n) // (2 * 7168) for n in (2, 4, 16)] == [2, 4, 8]
