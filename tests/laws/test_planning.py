"""What must hold for any plan: its answers fit, and one step more does not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import (
    DeviceSpec,
    GiB,
    Layout,
    LlmcalcError,
    engines,
    formats,
    hardware,
    load_model,
    memory,
    planning,
)
from llmcalc.folds.owners import Owner
from llmcalc.folds.storage import weights_by_place, weights_held
from llmcalc.planning import DoesNotFit, Placement, Plan
from tests.laws.test_layouts import MODELS, model

WORKLOADS = st.fixed_dictionaries({"context": st.integers(0, 20_000), "batch": st.integers(0, 64)})
FORMATS = ("fp32", "bf16", "fp8", "int4")
MEMORY = st.integers(1, 2**39)


def device(name: str, memory_bytes: int) -> DeviceSpec:
    return DeviceSpec(
        name=name, memory_bytes=memory_bytes, bandwidth_bytes_per_second=1, peak_flops={}
    )


def fits(spec: Any, layout: Layout, usable: int, workload: dict[str, Any], **formats: Any) -> bool:
    """Ask every rank of a layout by itself."""
    for rank in range(layout.devices):
        held = memory.weight_bytes(spec, weights=formats["weights"], layout=layout, rank=rank)
        cache = memory.kv_cache_bytes(spec, kv=formats["kv"], layout=layout, rank=rank, **workload)
        if held.total + cache.total > usable:
            return False
    return True


def every_layout(count: int) -> list[Layout]:
    """List all layouts of a number of devices without asking the planner."""
    found = []
    degrees = range(1, count + 1)
    for tensor, stages, data, context in product(degrees, degrees, degrees, degrees):
        for whole, attention in product((False, True), repeat=2):
            if tensor * stages * data == count:
                try:
                    found.append(
                        Layout(
                            tensor_parallel=tensor,
                            pipeline_parallel=stages,
                            data_parallel=data,
                            decode_context_parallel=context,
                            expert_parallel=whole,
                            data_parallel_attention=attention,
                        )
                    )
                except LlmcalcError:
                    continue
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_possible_layouts_are_all_that_are_not_refused(name: str, count: int) -> None:
    spec = model(name)
    possible = planning.possible_layouts(spec, count)
    assert len(set(possible)) == len(possible)
    for layout in every_layout(count):
        try:
            memory.fit(spec, device_memory=1, context=1, weights="bf16", kv="bf16", layout=layout)
        except LlmcalcError:
            assert layout not in possible
        else:
            alone = layout.expert_parallel and layout.expert_ranks == 1
            assert (layout in possible) is not alone


@given(
    st.sampled_from(MODELS),
    WORKLOADS,
    st.lists(MEMORY, min_size=1, max_size=3),
    st.sampled_from(["devices", "memory", "batch"]),
)
def test_a_plan_is_every_placement_that_fits_and_no_other(
    name: str, workload: dict[str, Any], memories: list[int], order: Any
) -> None:
    spec = model(name)
    devices = [device(f"device {n}", size) for n, size in enumerate(memories)]
    table = planning.plan(
        spec,
        devices=devices,
        counts=(1, 2, 3),
        weights=FORMATS,
        kv=["bf16", "fp8"],
        order=order,
        **workload,
    )
    got = {(row.device, row.layout, *row.format_names): row for row in table}
    assert len(got) == len(table)
    layouts = [layout for count in (1, 2, 3) for layout in planning.possible_layouts(spec, count)]
    for one, layout, weights, kv in product(devices, layouts, FORMATS, ("bf16", "fp8")):
        answer = memory.fit(
            spec, device_memory=one.memory_bytes, weights=weights, kv=kv, layout=layout, **workload
        )
        row = got.get((one, layout, weights, kv))
        assert (row is not None) == answer.fits
        if row is not None:
            assert row
            assert row.needed_bytes == answer.needed_bytes
            assert row.left_bytes == answer.left_bytes
            assert row.max_batch_size == answer.max_batch_size
            assert row.fit == answer
    if not got:
        assert not table
        assert isinstance(table.best, DoesNotFit)
        closest = table.best.closest
        assert closest is not None
        assert table.best.short_bytes == closest.fit.short_bytes == closest.short_bytes > 0
    else:
        assert table.best == table[0]
        assert table.shortfall is None


@given(st.sampled_from(MODELS), WORKLOADS, st.sampled_from([2**33, 2**36, 2**38]))
def test_a_plan_is_ranked_as_it_says(name: str, workload: dict[str, Any], size: int) -> None:
    spec = model(name)
    devices = [device("small", size), device("large", 2 * size)]
    widths = {weights: -memory.weight_bytes(spec, weights=weights).total for weights in FORMATS}

    def keys(order: Any) -> list[Any]:
        table = planning.plan(
            spec, devices=devices, counts=(1, 2, 4), weights=FORMATS, order=order, **workload
        )
        found = []
        for row in table:
            assert row.device is not None
            wide = widths[row.format_names[0]]
            bought = row.devices * row.device.memory_bytes
            most = float("-inf") if row.max_batch_size is None else -row.max_batch_size
            found.append(
                {
                    "devices": (row.devices, wide, bought),
                    "memory": (bought, wide, row.devices),
                    "batch": (most, wide, bought),
                }[order]
            )
        return found

    for order in ("devices", "memory", "batch"):
        assert keys(order) == sorted(keys(order))


@given(st.sampled_from(MODELS), WORKLOADS, st.integers(2**30, 2**38), st.sampled_from(FORMATS))
def test_the_fewest_devices_fit_and_one_device_less_does_not(
    name: str, workload: dict[str, Any], size: int, weights: str
) -> None:
    spec = model(name)
    formats: dict[str, Any] = {"weights": weights, "kv": "bf16"}
    answer = planning.fewest_devices(spec, device=size, max_devices=6, **formats, **workload)
    last = answer.devices if isinstance(answer, Placement) else 7
    for count in range(1, last):
        for layout in planning.possible_layouts(spec, count):
            assert not fits(spec, layout, size, workload, **formats)
    if isinstance(answer, Placement):
        assert fits(spec, answer.layout, size, workload, **formats)
        assert answer.fit.fits
    else:
        assert not answer
        assert answer.closest is not None
        assert answer.short_bytes == answer.closest.fit.short_bytes
        assert "short by" in answer.reason


@given(st.sampled_from(MODELS), WORKLOADS, st.integers(2**28, 2**38))
def test_the_smallest_degree_fits_and_no_smaller_one_does(
    name: str, workload: dict[str, Any], size: int
) -> None:
    spec = model(name)
    formats: dict[str, Any] = {"weights": "bf16", "kv": "bf16"}
    answer = planning.smallest_tensor_parallel(
        spec, device=size, max_devices=32, **formats, **workload
    )
    last = answer.layout.tensor_parallel if isinstance(answer, Placement) else 33
    for degree in range(1, last):
        layout = Layout(tensor_parallel=degree)
        try:
            answer_ = memory.fit(spec, device_memory=size, layout=layout, **formats, **workload)
        except LlmcalcError:
            continue
        assert not answer_.fits
    if isinstance(answer, Placement):
        assert fits(spec, answer.layout, size, workload, **formats)


@given(st.sampled_from(MODELS), WORKLOADS, st.integers(2**28, 2**40), st.permutations(FORMATS))
def test_the_widest_format_fits_and_no_wider_one_does(
    name: str, workload: dict[str, Any], size: int, candidates: list[str]
) -> None:
    spec = model(name)
    answer = planning.widest_format(spec, device=size, kv="bf16", weights=candidates, **workload)
    held = {
        weights: memory.fit(spec, device_memory=size, weights=weights, kv="bf16", **workload)
        for weights in FORMATS
    }
    fitting = [weights for weights in FORMATS if held[weights].fits]
    if isinstance(answer, Placement):
        assert answer.weights == fitting[0]
        assert answer.fit == held[fitting[0]]
    else:
        assert not fitting
        assert answer.short_bytes == held["int4"].short_bytes


def test_the_whole_catalogue_is_planned_for() -> None:
    spec = load_model("DeepSeek-V3")
    table = planning.plan(spec, context=8192, batch=16, weights=["fp8", "bf16"])
    devices = {row.device.name for row in table if row.device is not None}
    assert {"H100-SXM-80GB", "H200-SXM-141GB", "B200-SXM-180GB"} & devices
    assert devices <= set(hardware.names())


def test_a_share_is_taken_as_it_is_written_and_what_is_reserved_is_left_out() -> None:
    spec = model("Llama-3.1-8B")
    h100 = hardware.get("H100-SXM-80GB")
    [row, *_] = planning.plan(
        spec, context=1, devices="H100-SXM-80GB", counts=[1], share=0.9, reserved_bytes=GiB
    )
    assert row.usable_bytes == h100.memory_bytes * 9 // 10 - GiB
    for share in (0, 1.5, True, "1", float("nan")):
        with pytest.raises(LlmcalcError, match="share"):
            planning.plan(spec, context=1, share=share)  # type: ignore[arg-type]
    with pytest.raises(LlmcalcError, match="reserved_bytes"):
        planning.plan(spec, context=1, reserved_bytes=-1)


def test_a_plan_is_a_table() -> None:
    spec = model("Llama-3.1-8B")
    table = planning.plan(
        spec, context=8192, devices=["H100-SXM-80GB", "L4"], counts=[1, 2], weights=["bf16", "fp8"]
    )
    columns = table.columns()
    assert list(columns) == list(planning.COLUMNS)
    assert columns["layout"] == [str(row.layout) for row in table]
    assert columns["max_batch_size"][0] == table[0].max_batch_size
    lines = table.to_markdown(limit=2).splitlines()
    assert lines[2].startswith("| L4 | 1 | one device | bf16 | bf16 | 15.958 GiB |")
    assert len(lines) == 6
    assert lines[-1] == f"{len(table) - 2} more"
    assert table[:2] == [table[0], table[1]]
    first = "\n  1 x L4, one device, weights bf16, kv bf16; fits, largest batch "
    assert repr(table).startswith(f"<Plan of {len(table)} placements, best first:{first}")
    assert repr(table).endswith(f"\n  {len(table) - 3} more>")
    assert len(repr(table).splitlines()) == 5
    assert table._repr_markdown_() == table.to_markdown()
    assert list(table) == table[:]


def test_a_plan_that_does_not_fit_says_what_is_short() -> None:
    spec = model("DeepSeek-V3")
    table = planning.plan(spec, context=1, devices="L4", counts=[1, 2], weights="fp8")
    assert not table
    assert isinstance(table.best, DoesNotFit)
    assert table.best.fits is False
    assert "2 x L4" in table.best.reason
    assert "short by" in table.best.reason
    assert table.best.reason in table.to_markdown()
    assert repr(table) == f"<Plan without placements: {table.best.reason}>"
    assert repr(table.best) == f"<DoesNotFit: {table.best.reason}>"
    assert table.columns() == {name: [] for name in planning.COLUMNS}
    refused = planning.plan(
        spec, context=1, layouts=[Layout(tensor_parallel=3)], devices="L4", weights="fp8"
    )
    assert isinstance(refused.best, DoesNotFit)
    assert refused.best.closest is None
    assert refused.best.short_bytes is None
    assert "must divide query_heads (128)" in refused.best.reason


def test_what_an_engine_refuses_in_a_format_is_passed_over() -> None:
    spec = model("Qwen3-235B-A22B")
    common: dict[str, Any] = {
        "context": 1024,
        "devices": "H200-SXM-141GB",
        "engine": "vllm",
    }
    found = planning.plan(spec, weights="fp8-block128", counts=[8], **common)
    layouts = {row.layout for row in found}
    assert Layout(tensor_parallel=8, engine="vllm") not in layouts
    assert Layout(tensor_parallel=8, expert_parallel=True, engine="vllm") in layouts
    refused = planning.plan(
        spec,
        weights="fp8-block128",
        layouts=[Layout(tensor_parallel=8, engine="vllm")],
        **common,
    )
    assert isinstance(refused.best, DoesNotFit)
    assert "whole blocks of 128 rows" in refused.best.reason


def test_given_layouts_are_planned_for_alone() -> None:
    spec = model("Llama-3.1-8B")
    layout = Layout(pipeline_parallel=2, stage_layers=(20, 12), engine="vllm")
    table = planning.plan(spec, context=1024, devices="L4", layouts=[layout])
    assert [row.layout for row in table] == [layout]
    assert table[0].fit.fits
    assert table[0].needed_bytes == table[0].fit.needed_bytes
    with pytest.raises(LlmcalcError, match="must be Layouts"):
        planning.plan(spec, context=1, layouts=["tp2"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": "H1000"}, "devices = 'H1000'"),
        ({"weights": "bf61"}, "bf61"),
        ({"kv": "bf61"}, "bf61"),
        ({"counts": [0]}, "counts = 0"),
        ({"order": "price"}, "order = 'price'"),
        ({"batch": 1.5}, "batch"),
        ({"engine": "vlm"}, "vlm"),
        ({"engine": "tgi"}, "tgi"),
        ({"layouts": Layout(), "engine": "vlm"}, "vlm"),
        ({"layouts": Layout(), "engine": "vllm"}, "engine = 'vllm': must be that of each"),
        ({"layouts": []}, "layouts"),
        ({"counts": []}, "counts"),
        ({"weights": []}, "weights"),
    ],
)
def test_arguments_are_checked_by_name(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"context": 1, "devices": "L4"}
    with pytest.raises(LlmcalcError, match=message):
        planning.plan(model("gpt2"), **(given | arguments))


def test_a_placement_is_a_value() -> None:
    row = planning.plan(model("gpt2"), context=1, devices="L4", counts=[1])[0]
    assert attrs.evolve(row, batch=2) != row
    most = f"fits, largest batch {row.fit.max_batch_size}"
    assert repr(row).endswith(f"gpt2: 1 x L4, one device, weights bf16, kv bf16; {most}>")
    assert row.short_bytes == 0
    short = attrs.evolve(row, usable_bytes=row.needed_bytes - 1)
    assert not short
    assert repr(short).endswith("; does not fit: short by 1 B>")
    free = attrs.evolve(row, max_batch_size=None)
    assert repr(free).endswith("; fits, memory limits no batch>")


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),  # noqa: S301  # our own bytes
}


@pytest.mark.parametrize("how", COPIES)
@given(st.sampled_from(MODELS), WORKLOADS, MEMORY)
def test_a_copy_of_a_plan_equals_it_and_answers_as_it_does(
    how: str, name: str, workload: dict[str, Any], size: int
) -> None:
    made = planning.plan(
        model(name), devices=device("own", size), counts=(1, 2), weights=["bf16", "fp8"], **workload
    )
    again = COPIES[how](made)
    assert type(again) is Plan
    assert again == made
    assert hash(again) == hash(made)
    assert repr(again) == repr(made)
    assert again.table() == made.table()
    assert again[:] == made[:]
    assert again.best == made.best
    assert again.shortfall == made.shortfall


def test_plans_that_differ_are_not_equal() -> None:
    spec, common = model("gpt2"), {"context": 8, "devices": "L4", "counts": [1, 2]}
    one = planning.plan(spec, **common)  # type: ignore[arg-type]
    assert one != planning.plan(spec, **common, batch=2)  # type: ignore[arg-type]
    assert one != planning.plan(spec, **common, order="batch")  # type: ignore[arg-type]
    assert one != one[:]


def ranks(table: Plan, order: str) -> list[tuple[Any, ...]]:
    """What the rows of a plan are ranked by; rows that are equal in it are tied."""
    found = []
    for row in table:
        assert row.device is not None
        layout, bought = row.layout, row.devices * row.device.memory_bytes
        wide = (
            -memory.weight_bytes(row.spec, weights=row.weights).total,
            -memory.kv_cache_bytes(row.spec, context=row.context, kv=row.kv).total,
        )
        most = float("-inf") if row.max_batch_size is None else -row.max_batch_size
        first = {
            "devices": (row.devices, *wide, bought),
            "memory": (bought, *wide, row.devices),
            "batch": (most, *wide, bought),
        }[order]
        ways = sum(
            degree > 1
            for degree in (
                layout.tensor_parallel,
                layout.pipeline_parallel,
                layout.data_parallel,
                layout.decode_context_parallel,
            )
        )
        ways += layout.expert_parallel + layout.data_parallel_attention
        found.append((*first, ways, -row.left_bytes))
    return found


@given(
    st.sampled_from(MODELS),
    WORKLOADS,
    st.sampled_from(["devices", "memory", "batch"]),
    st.permutations([("small", 2**34), ("large", 2**36), ("huge", 2**38)]),
    st.permutations(["bf16", "fp8", "int8", "int4"]),
    st.permutations(["bf16", "fp8"]),
    st.permutations([1, 2, 3]),
)
def test_the_order_of_the_choices_decides_nothing_but_ties(
    name: str,
    workload: dict[str, Any],
    order: Any,
    sizes: list[tuple[str, int]],
    weights: list[str],
    kv: list[str],
    counts: list[int],
) -> None:
    def ask(
        sizes: list[tuple[str, int]], weights: list[str], kv: list[str], counts: list[int]
    ) -> Plan:
        devices = [device(*one) for one in sizes]
        choices: dict[str, Any] = {"devices": devices, "weights": weights, "kv": kv}
        return planning.plan(model(name), counts=counts, order=order, **choices, **workload)

    one = ask(sizes, weights, kv, counts)
    other = ask(sorted(sizes), sorted(weights), sorted(kv), sorted(counts))
    assert set(map(str, one)) == set(map(str, other))
    assert {str(row): row for row in one} == {str(row): row for row in other}
    assert ranks(one, order) == ranks(other, order) == sorted(ranks(one, order))
    assert (one.shortfall is None) == (other.shortfall is None)
    if isinstance(one.best, DoesNotFit) and isinstance(other.best, DoesNotFit):
        assert one.best.short_bytes == other.best.short_bytes


@given(st.sampled_from(MODELS), WORKLOADS, st.permutations(every_layout(2) + every_layout(3)))
def test_the_order_of_given_layouts_decides_nothing_but_ties(
    name: str, workload: dict[str, Any], layouts: list[Layout]
) -> None:
    common: dict[str, Any] = {"devices": device("own", 2**36), **workload}
    one = planning.plan(model(name), layouts=layouts, **common)
    other = planning.plan(model(name), layouts=every_layout(2) + every_layout(3), **common)
    assert {str(row): row for row in one} == {str(row): row for row in other}
    assert ranks(one, "devices") == ranks(other, "devices")


ASKED: dict[str, Callable[[Any], object]] = {
    "possible_layouts": lambda spec: planning.possible_layouts(spec, 2),
    "plan": lambda spec: planning.plan(spec, context=1, devices="L4"),
    "fewest_devices": lambda spec: planning.fewest_devices(
        spec, device="L4", context=1, weights="bf16", kv="bf16"
    ),
    "smallest_tensor_parallel": lambda spec: planning.smallest_tensor_parallel(
        spec, device="L4", context=1, weights="bf16", kv="bf16"
    ),
    "widest_format": lambda spec: planning.widest_format(spec, device="L4", context=1, kv="bf16"),
}


@pytest.mark.parametrize("question", ASKED)
@pytest.mark.parametrize("spec", ["llama-3-8b", None, 8, {"model_type": "llama"}])
def test_what_is_no_model_is_refused_with_what_returns_one(question: str, spec: object) -> None:
    with pytest.raises(LlmcalcError, match=r"^spec = .*llmcalc\.load_model"):
        ASKED[question](spec)


@pytest.mark.parametrize("engine", ["VLLM", "vLLM", engines.get("vllm")])
def test_an_engine_is_named_in_any_case_or_given_itself(engine: Any) -> None:
    spec = model("Qwen3-235B-A22B")
    common: dict[str, Any] = {"context": 1024, "kv": "bf16", "weights": "bf16"}
    named = planning.possible_layouts(spec, 8, engine="vllm")
    own = planning.possible_layouts(spec, 8, engine=engine)
    assert list(map(str, own)) == list(map(str, named))
    assert len(named) < len(planning.possible_layouts(spec, 8))
    for search in (planning.fewest_devices, planning.smallest_tensor_parallel):
        one = search(spec, device=2**38, engine=engine, **common)
        other = search(spec, device=2**38, engine="vllm", **common)
        assert one
        assert str(one) == str(other)
        assert one.fits == other.fits
    rows = planning.plan(spec, devices="H200-SXM-141GB", counts=8, engine=engine, **common)
    again = planning.plan(spec, devices="H200-SXM-141GB", counts=8, engine="vllm", **common)
    assert rows.table() == again.table()


def test_formats_of_one_name_are_told_apart() -> None:
    spec = model("Llama-3.1-8B")
    bf16 = formats.get("bf16")
    rules = [formats.Rule(format=formats.get(name)) for name in ("int8", "int4")]
    own = [formats.Coverage(name="own", wide=bf16, rules=(rule,)) for rule in rules]
    rows = planning.plan(spec, context=1, devices="H100-SXM-80GB", counts=1, weights=own)
    assert [row.weights for row in rows] == own
    for row in rows:
        assert row.needed_bytes == row.fit.needed_bytes
    assert rows[0].needed_bytes > rows[1].needed_bytes


@pytest.mark.parametrize("weights", ["Q4_K_M", "MXFP4_MOE", "fp8-block128", "nf4"])
@pytest.mark.parametrize("engine", [None, "vllm"])
@pytest.mark.parametrize("name", MODELS)
def test_what_layouts_have_in_common_is_what_each_has_alone(
    name: str, engine: str | None, weights: str
) -> None:
    spec = model(name)
    table = planning.plan(
        spec,
        context=1000,
        batch=5,
        devices=device("own", 2**42),
        counts=[1, 2, 6],
        weights=weights,
        state={"state": "fp32", "conv": "bf16"},
        engine=engine,
    )
    for row in table:
        assert row.state == {"state": "fp32", "conv": "bf16"}
        assert row.needed_bytes == row.fit.needed_bytes
        assert row.max_batch_size == row.fit.max_batch_size


@pytest.mark.parametrize("weights", ["bf16", "Q4_K_M", "MXFP4_MOE"])
@pytest.mark.parametrize("name", MODELS)
def test_sums_by_place_are_those_of_the_pieces(name: str, weights: str) -> None:
    spec = model(name)
    scheme = formats.scheme(weights, spec)
    for layout in planning.possible_layouts(spec, 6):
        for rank in layout.first_ranks(spec):
            owner = Owner(rank, pipeline=True)
            held = weights_by_place(spec.ledger, owner, scheme)
            fold = weights_held(spec.ledger, owner, scheme)
            total = sum(size for _, size in fold.sum_on(rank.stage))
            assert sum(where.on(rank.stage) * each for where, each in held.items()) == total
            assert all(piece.where.on(rank.stage) == piece.on(rank.stage) for piece in fold.pieces)


def test_one_count_and_one_layout_need_no_list() -> None:
    spec, common = model("gpt2"), {"context": 8, "devices": "L4"}
    two = Layout(pipeline_parallel=2)
    assert planning.plan(spec, counts=2, **common) == planning.plan(spec, counts=[2], **common)  # type: ignore[arg-type]
    assert [row.layout for row in planning.plan(spec, layouts=two, **common)] == [two]  # type: ignore[arg-type]


def test_counts_beside_layouts_are_refused() -> None:
    with pytest.raises(LlmcalcError, match=r"^counts = .*has no effect beside layouts"):
        planning.plan(model("Llama-3.1-8B"), context=1, layouts=Layout(), counts=planning.COUNTS)


@pytest.mark.parametrize("devices", [2**20 + 1, 2**31, 10**30])
def test_more_devices_than_a_layout_allows_are_refused_at_once(devices: int) -> None:
    with pytest.raises(LlmcalcError, match=r"^devices = \d+: must be at most 1048576$"):
        planning.possible_layouts(model("Llama-3.1-8B"), devices)
    with pytest.raises(LlmcalcError, match=r"^counts = \d+: must be at most 1048576$"):
        planning.plan(model("Llama-3.1-8B"), context=1, counts=[devices])
