"""Laws of sweeps and frontiers: every row is the step it names, and nothing is dropped silently."""

from __future__ import annotations

from typing import Any, get_args

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcalc import (
    DeviceSpec,
    GiB,
    Layout,
    LlmcalcError,
    ModelSpec,
    TiB,
    hardware,
    load_model,
    memory,
    roofline,
)
from llmcalc.formats import get, scheme
from llmcalc.roofline import Sweep, sweeps
from llmcalc.strategies import dense_specs
from llmcalc.tables import Table
from tests.truth import rows

WIDE: dict[str, Any] = {"weights": "bf16", "kv": "bf16"}

#: Two devices that the small models of the tests can fill.
SMALL = DeviceSpec(
    name="small",
    memory_bytes=2**17,
    bandwidth_bytes_per_second=10**9,
    peak_flops={"bf16": 10**11},
    link="wire",
    link_bytes_per_second_per_direction=10**8,
)
FAST = DeviceSpec(
    name="fast",
    memory_bytes=2**18,
    bandwidth_bytes_per_second=10**10,
    peak_flops={"bf16": 10**11, "fp8": 2 * 10**11},
    link="wire",
    link_bytes_per_second_per_direction=10**9,
)
DEVICES = {device.name: device for device in (SMALL, FAST)}

#: Layouts by what tables call them; most models refuse some of them.
LAYOUTS = {
    str(layout): layout
    for layout in (
        Layout(),
        Layout(tensor_parallel=2),
        Layout(data_parallel=2),
        Layout(pipeline_parallel=2),
        Layout(expert_parallel=True, tensor_parallel=2),
    )
}
SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def llama() -> ModelSpec:
    return load_model("llama-3-8b")


@settings(max_examples=25)
@given(spec=dense_specs(), batch=SIZES, new=SIZES, past=SIZES, bound=st.booleans())
def test_every_row_is_the_step_it_names(
    spec: ModelSpec, batch: list[int], new: list[int], past: list[int], bound: bool
) -> None:
    time: sweeps.Time = "bound_seconds" if bound else "seconds"
    table = roofline.sweep(
        spec,
        devices=DEVICES.values(),
        layouts=LAYOUTS.values(),
        weights=["bf16", "fp8"],
        kv=["bf16", "int8"],
        batch=np.array(batch)[:, None, None],
        new=np.array(new)[:, None],
        past=np.array(past),
        time=time,
        share=0.5,
    )
    points = len(batch) * len(new) * len(past)
    combinations = len(DEVICES) * len(LAYOUTS) * 2 * 2
    assert len(table) + points * len(table.refused) == points * combinations
    for row in table:
        device, layout = DEVICES[row["device"]], LAYOUTS[row["layout"]]
        formats_of = {"weights": row["weights"], "kv": row["kv"]}
        workload = {name: row[name] for name in ("batch", "new", "past")}
        step = roofline.step_time(spec, device, layout=layout, **workload, **formats_of)
        assert row["flops"] == step.flops.total
        assert row["bytes"] == step.bytes.total
        for name in ("seconds", "communication_seconds", "bound_seconds"):
            assert row[name] == pytest.approx(getattr(step, name), rel=1e-14)
        assert row["bound"] == step.bound
        assert row["context"] == row["past"] + row["new"]
        tokens = row["batch"] * row["new"]
        assert row["devices"] == layout.devices
        assert row["tokens_per_second"] * row[time] == pytest.approx(tokens)
        assert row["tokens_per_second_per_device"] * row[time] * layout.devices == pytest.approx(
            tokens
        )
        assert row["tokens_per_second_per_user"] * row[time] == pytest.approx(row["new"])
        fit = memory.fit(
            spec,
            device_memory=device.memory_bytes // 2,
            context=row["context"],
            batch=row["batch"],
            layout=layout,
            **formats_of,
        )
        assert row["needed_bytes"] == fit.needed_bytes
        assert row["fits"] == fit.fits
    for row in table.refused:
        with pytest.raises(LlmcalcError) as refusal:
            roofline.step_time(
                spec,
                DEVICES[row["device"]],
                layout=LAYOUTS[row["layout"]],
                weights=row["weights"],
                kv=row["kv"],
                batch=1,
                new=1,
                past=1,
            )
        assert row["reason"] == str(refusal.value)


@settings(max_examples=25)
@given(
    spec=dense_specs(), context=st.integers(1, 60), given_batch=st.booleans(), bound=st.booleans()
)
def test_the_frontier_is_what_nothing_that_fits_beats(
    spec: ModelSpec, context: int, given_batch: bool, bound: bool
) -> None:
    time: sweeps.Time = "bound_seconds" if bound else "seconds"
    batch = np.array([1, 3, 20, 300])
    common: dict[str, Any] = {
        "devices": list(DEVICES.values()),
        "layouts": list(LAYOUTS.values()),
        "weights": ["bf16", "fp8"],
        "kv": "bf16",
        "time": time,
    }
    best = roofline.frontier(spec, context=context, batch=batch if given_batch else None, **common)
    assert bool(best["fits"].all())
    assert (np.diff(best["tokens_per_second_per_user"]) >= 0).all()
    assert set(best["context"].tolist()) <= {context}
    tried = roofline.sweep(
        spec, batch=batch if given_batch else np.arange(1, 40), new=1, past=context - 1, **common
    )
    if not given_batch:
        powers = tried["batch"] & (tried["batch"] - 1) == 0
        tried = tried.where(powers)
    for row in tried.where(tried["fits"]):
        speed, rate = row["tokens_per_second_per_user"], row["tokens_per_second_per_device"]
        better = (best["tokens_per_second_per_user"] >= speed) & (
            best["tokens_per_second_per_device"] >= rate
        )
        assert better.any()
        beaten = (best["tokens_per_second_per_user"] <= speed) & (
            best["tokens_per_second_per_device"] <= rate
        )
        same = (best["tokens_per_second_per_user"] == speed) & (
            best["tokens_per_second_per_device"] == rate
        )
        assert not (beaten & ~same).any()


def test_the_frontier_tries_powers_of_two_and_the_most_that_fit(llama: ModelSpec) -> None:
    best = roofline.frontier(llama, devices="H100-SXM-80GB", context=4096, **WIDE)
    most = memory.max_batch_size(llama, device_memory=85520809984, context=4096, **WIDE)
    # On one device more requests are slower for each and faster in all.
    assert best["batch"].tolist() == [129, 128, 64, 32, 16, 8, 4, 2, 1]
    assert most == 129
    assert best.notes == ("9 of 9 points: the others are beaten by one of these",)


def test_a_batch_of_the_frontier_fits_where_one_more_does_not(llama: ModelSpec) -> None:
    best = roofline.frontier(
        llama,
        devices="H100-SXM-80GB",
        context=4096,
        batch=np.arange(1, 1000),
        share=0.5,
        reserved_bytes=GiB,
        **WIDE,
    )
    largest = max(best["batch"].tolist())
    usable = memory.usable_bytes(85520809984, share=0.5, reserved_bytes=GiB)
    batch = np.array([largest, largest + 1])
    needed = memory.needed_bytes(llama, context=4096, batch=batch, **WIDE)
    assert (needed <= usable).tolist() == [True, False]


def test_what_needs_all_of_the_memory_fits_and_one_byte_more_does_not(llama: ModelSpec) -> None:
    needed = memory.needed_bytes(llama, context=4096, batch=3, **WIDE)
    for memory_bytes, fits in ((needed, True), (needed - 1, False)):
        device = attrs.evolve(hardware.get("H100-SXM-80GB"), memory_bytes=memory_bytes, sources={})
        table = roofline.sweep(llama, devices=device, batch=3, new=1, past=4095, **WIDE)
        assert table["fits"].tolist() == [fits]


def test_what_is_refused_has_its_reason_in_the_table_and_below_it(llama: ModelSpec) -> None:
    linkless = DeviceSpec(
        name="alone", memory_bytes=GiB, bandwidth_bytes_per_second=10**9, peak_flops={"bf16": 1}
    )
    table = roofline.sweep(
        llama,
        devices=["H100-SXM-80GB", linkless],
        tensor_parallel=[1, 2, 3],
        compute="fp8",
        batch=1,
        new=1,
        past=0,
        **WIDE,
    )
    assert table["layout"].tolist() == ["one device", "tp2"]
    reasons = {(row["device"], row["layout"]): row["reason"] for row in table.refused}
    assert set(reasons) == {
        ("H100-SXM-80GB", "tp3"),
        ("alone", "one device"),
        ("alone", "tp2"),
        ("alone", "tp3"),
    }
    assert "must divide query_heads (32)" in reasons["H100-SXM-80GB", "tp3"]
    assert "alone has no peak for this format" in reasons["alone", "one device"]
    printed = table.to_markdown()
    assert all(reason in printed for reason in reasons.values())
    assert isinstance(table.where(table["fits"]), Sweep)
    assert len(table.sort_by("seconds").refused) == 4
    without_link = roofline.sweep(
        llama, devices=linkless, tensor_parallel=2, batch=1, new=1, past=0, **WIDE
    )
    assert not len(without_link)
    assert "link_bytes_per_second" in next(iter(without_link.refused))["reason"]


def test_a_frontier_says_what_fits_nowhere(llama: ModelSpec) -> None:
    table = roofline.frontier(
        llama, devices=["H100-SXM-80GB", "T4"], context=4096, compute="fp16", **WIDE
    )
    [refused] = table.refused
    assert refused["device"] == "T4"
    assert refused["reason"].startswith("no request of 4096 tokens: ")
    assert "short by" in refused["reason"]
    few = roofline.frontier(
        llama, devices="H100-SXM-80GB", context=4096, batch=np.array([500]), **WIDE
    )
    assert not len(few)
    assert next(iter(few.refused))["reason"].endswith("at most 129 requests fit")


def test_contexts_past_the_positions_of_the_model_are_noted(llama: ModelSpec) -> None:
    past = np.array([8190, 8191, 8192, 9000])
    table = roofline.sweep(llama, devices="H100-SXM-80GB", batch=1, new=1, past=past, **WIDE)
    [note] = table.notes
    expected = "was made for 8192 positions, and 2 rows have longer contexts"
    assert note == f"{llama.name} {expected}"
    assert note in table.to_markdown()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": "H100"}, "devices = 'H100': could be"),
        ({"devices": []}, "devices = .*at least one"),
        ({"layouts": "tp2"}, "layouts = 'tp2': must be Layouts"),
        ({"layouts": Layout(), "tensor_parallel": 2}, "tensor_parallel = 2: must not be given"),
        ({"tensor_parallel": 0}, "tensor_parallel = 0"),
        ({"weights": ["bf16", "bf61"]}, "weights = 'bf61'"),
        ({"kv": "fp9"}, "kv = 'fp9'"),
        ({"batch": -1}, "batch = -1"),
        ({"batch": np.array([1.5])}, "batch = "),
        ({"new": np.array([1, 2]), "past": np.array([1, 2, 3])}, "shapes must broadcast"),
        ({"logits": "some"}, "logits = 'some'"),
        ({"experts": 3}, "experts = 3"),
        ({"compute": "fp17"}, "compute = 'fp17'"),
        ({"state": "fp9"}, "state = 'fp9'"),
        ({"layouts": Layout(tensor_parallel=2), "link_bytes_per_second": -1}, "link_bytes_per_sec"),
        ({"time": "forecast"}, "time = 'forecast'"),
        ({"share": 0}, "share = 0"),
        ({"reserved_bytes": -1}, "reserved_bytes = -1"),
        ({"mixed_with": ()}, "mixed_with = .*step_time"),
    ],
)
def test_what_is_wrong_with_any_device_is_raised(
    llama: ModelSpec, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"devices": "H100-SXM-80GB", "batch": 1, "new": 1, "past": 0}
    with pytest.raises(LlmcalcError, match=message):
        roofline.sweep(llama, **(arguments | WIDE | changes))


def test_a_frontier_of_no_requests_or_of_none_that_hold_anything_is_refused(
    llama: ModelSpec,
) -> None:
    arguments: dict[str, Any] = {"devices": "H100-SXM-80GB", **WIDE}
    with pytest.raises(LlmcalcError, match="batch = 0: must be at least 1"):
        roofline.frontier(llama, context=1, batch=np.array([0, 1]), **arguments)
    with pytest.raises(LlmcalcError, match="context = 0"):
        roofline.frontier(llama, context=0, **arguments)


def test_integers_are_exact_where_64_bits_do_not_hold_them(llama: ModelSpec) -> None:
    table = roofline.sweep(
        llama,
        devices="H100-SXM-80GB",
        batch=np.array([1, 2**62]),
        new=np.array([1, 2**61]),
        past=np.array([2**62 + 1, 5], dtype=np.uint64),
        **WIDE,
    )
    assert table["context"].tolist() == [2**62 + 2, 2**61 + 5]
    for row in table:
        workload = {name: row[name] for name in ("batch", "new", "past")}
        assert row["flops"] == roofline.flops(llama, **workload).total
        assert row["bytes"] == roofline.bytes_moved(llama, **workload, **WIDE).total
        one = memory.fit(llama, device_memory=1, context=row["context"], batch=row["batch"], **WIDE)
        assert row["needed_bytes"] == one.needed_bytes
    assert table["flops"].dtype == np.object_
    assert not table["fits"].any()


def test_arrays_of_narrow_integers_are_widened(llama: ModelSpec) -> None:
    narrow, wide = (
        roofline.sweep(
            llama,
            devices="H100-SXM-80GB",
            batch=np.array([200], dtype=types[0]),
            new=np.array([100], dtype=types[1]),
            past=np.array([100], dtype=types[1]),
            **WIDE,
        )
        for types in ((np.uint8, np.int8), (np.int64, np.int64))
    )
    assert list(narrow) == list(wide)
    assert narrow["context"].tolist() == [200]


def test_formats_and_schemes_of_ones_own_are_named_by_their_names(llama: ModelSpec) -> None:
    table = roofline.sweep(
        llama,
        devices="H100-SXM-80GB",
        weights=[get("fp8"), scheme("awq-int4-g128", llama), "Q4_K_M"],
        kv=get("fp8"),
        batch=1,
        new=1,
        past=0,
    )
    assert table["weights"].tolist() == ["fp8", "awq-int4-g128", "Q4_K_M"]
    assert set(table["kv"].tolist()) == {"fp8"}


@pytest.mark.parametrize(
    "config",
    [
        row["config"]
        for row in rows("default_configs")
        if row["model_type"] in {"gemma2", "llama4_text", "deepseek_v3", "mamba2", "qwen3_next"}
    ],
    ids=lambda config: config["model_type"],
)
def test_models_of_every_kind_have_sweeps_and_frontiers(config: dict[str, Any]) -> None:
    spec = load_model(config)
    large = attrs.evolve(hardware.get("H100-SXM-80GB"), memory_bytes=10 * TiB, sources={})
    common: dict[str, Any] = {"devices": large, "state": "bf16", **WIDE}
    table = roofline.sweep(
        spec, batch=np.array([1, 64])[:, None], new=1, past=np.array([9, 99999]), **common
    )
    assert len(table) == 4
    for row in table:
        step = roofline.step_time(
            spec,
            "H100-SXM-80GB",
            batch=row["batch"],
            new=1,
            past=row["past"],
            state="bf16",
            **WIDE,
        )
        assert row["bytes"] == pytest.approx(step.bytes.total, rel=1e-12)
        assert row["seconds"] == pytest.approx(step.seconds, rel=1e-12)
    best = roofline.frontier(spec, context=4096, batch=np.array([1, 2]), **common)
    assert {1} <= set(best["batch"].tolist())


@given(spec=dense_specs(), context=SIZES, batch=SIZES)
def test_needed_bytes_of_an_array_are_those_of_each_fit(
    spec: ModelSpec, context: list[int], batch: list[int]
) -> None:
    contexts, batches = np.array(context)[:, None], np.array(batch)
    for layout in (None, Layout(data_parallel=3), Layout(pipeline_parallel=spec.num_layers)):
        found = memory.needed_bytes(spec, context=contexts, batch=batches, layout=layout, **WIDE)
        assert found.shape == (len(context), len(batch))
        for i, tokens in enumerate(context):
            for j, requests in enumerate(batch):
                fit = memory.fit(
                    spec, device_memory=0, context=tokens, batch=requests, layout=layout, **WIDE
                )
                assert found[i, j] == fit.needed_bytes
                assert fit.needed_bytes == memory.needed_bytes(
                    spec, context=tokens, batch=requests, layout=layout, **WIDE
                )


def test_times_that_rates_can_be_of_are_those_that_are_named() -> None:
    assert set(get_args(sweeps.Time)) == set(sweeps.TIMES) <= set(sweeps.UNITS)
    assert isinstance(Sweep(()).refused, Table)
