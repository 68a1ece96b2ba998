"""What must hold for any plan: its answers fit, and one step more does not."""

from __future__ import annotations

from itertools import product
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import DeviceSpec, GiB, Layout, LlmcalcError, hardware, load_model, memory, planning
from llmcalc.planning import DoesNotFit, Placement
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
    assert repr(table).startswith(f"<Plan of {len(table)} placements, best: 1 x L4")
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
        "counts": [8],
        "engine": "vllm",
    }
    layouts = {row.layout for row in planning.plan(spec, weights="fp8-block128", **common)}
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
    table = planning.plan(spec, context=1024, devices="L4", layouts=[layout], counts=[99])
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
    ],
)
def test_arguments_are_checked_by_name(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"context": 1, "devices": "L4"}
    with pytest.raises(LlmcalcError, match=message):
        planning.plan(model("gpt2"), **(given | arguments))


def test_a_placement_is_a_value() -> None:
    row = planning.plan(model("gpt2"), context=1, devices="L4", counts=[1])[0]
    assert attrs.evolve(row, batch=2) != row
    assert repr(row).endswith("gpt2: 1 x L4, one device, weights bf16, kv bf16>")
    assert row.short_bytes == 0
