"""What the pictures of steps, sweeps and memory must show, read from their artists."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from llmcalc import GiB, Layout, LlmcalcError, ModelSpec, load_model, memory, plots, roofline
from llmcalc.roofline import StepTime, Sweep
from tests.laws.test_plots import OKABE_ITO, check_that_texts_overlap_nothing, drawn
from tests.truth import rows

WIDE: dict[str, Any] = {"weights": "bf16", "kv": "bf16"}
H100, A100 = "H100-SXM-80GB", "A100-SXM-80GB"


@pytest.fixture(scope="module")
def models() -> dict[str, ModelSpec]:
    [mamba] = [row["config"] for row in rows("default_configs") if row["model_type"] == "mamba2"]
    named = {name: load_model(name) for name in ("llama-3-8b", "DeepSeek-V3", "mixtral-8x7b")}
    return named | {"mamba2": load_model(mamba)}


@pytest.fixture(scope="module")
def llama(models: dict[str, ModelSpec]) -> ModelSpec:
    return models["llama-3-8b"]


def step(spec: ModelSpec, device: str = H100, **changes: Any) -> StepTime:
    arguments: dict[str, Any] = {"batch": 32, "new": 1, "past": 4095, **WIDE}
    return roofline.step_time(spec, device, **(arguments | changes))


def sweep(spec: ModelSpec, **changes: Any) -> Sweep:
    arguments: dict[str, Any] = {"batch": 1, "new": 1, "past": 4095, "devices": H100, **WIDE}
    return roofline.sweep(spec, **(arguments | changes))


def marks(ax: Axes) -> list[tuple[float, float]]:
    return [tuple(np.asarray(one.get_offsets()).tolist()[0]) for one in ax.collections]


def scattered(ax: Axes) -> list[Any]:
    """Give the marks; all that is drawn as a collection is one."""
    return list(ax.collections)


def legend_texts(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


# ---- the roofline ------------------------------------------------------------------------------


def test_the_roof_is_the_bandwidth_up_to_the_ridge_and_then_the_peak(llama: ModelSpec) -> None:
    one = step(llama)
    ax = plots.roofline(one)
    x, y = drawn(ax, 0)
    assert x[1] == one.ridge_point
    assert y == pytest.approx([x[0] * 3.35, 989, 989])
    assert x[0] < one.ridge_point < x[2]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert drawn(ax, 1)[0] == [one.ridge_point] * 2
    assert [text.get_text() for text in ax.texts] == ["ridge 295 FLOP/byte"]
    assert ax.get_lines()[0].get_label() == "H100-SXM-80GB: 989 TFLOP/s, 3.35 TB/s"


@pytest.mark.parametrize("name", ["llama-3-8b", "DeepSeek-V3", "mixtral-8x7b", "mamba2"])
@pytest.mark.parametrize("workload", [{}, {"batch": 1, "new": 2048, "past": 100}])
def test_marks_are_the_kinds_of_items_at_or_below_the_roof(
    models: dict[str, ModelSpec], name: str, workload: dict[str, Any]
) -> None:
    one = step(models[name], **workload)
    ax = plots.roofline(one)
    *kinds, whole = marks(ax)
    assert whole == pytest.approx(
        (one.intensity, one.flops.total / one.items_seconds / 1e12), rel=1e-9
    )
    for x, y in (*kinds, whole):
        assert y <= min(989, x * 3.35) * (1 + 1e-9)
        assert ax.get_xlim()[0] < x < ax.get_xlim()[1]
        assert ax.get_ylim()[0] < y < ax.get_ylim()[1]
    # The FLOPs of the kinds are those of the step: rate x time, with time from the areas.
    areas = [mark.get_sizes()[0] for mark in scattered(ax)[:-1]]
    shares = [(area - 30) / 400 for area in areas]
    total = sum(
        y * 1e12 * share * one.items_seconds for (_, y), share in zip(kinds, shares, strict=True)
    )
    assert total == pytest.approx(one.flops.total, rel=1e-6)
    assert sum(shares) <= 1 + 1e-9
    labels = legend_texts(ax)
    assert len(labels) == len(kinds) + 1
    assert ("recurrent, state" in labels) == (name == "mamba2")
    assert ("experts" in labels) == (name in {"DeepSeek-V3", "mixtral-8x7b"})
    assert ("attention, cache" in labels) == (name != "mamba2")


def test_attention_over_the_cache_is_apart_from_its_matrices(llama: ModelSpec) -> None:
    one = step(llama)
    [mixing] = [item for item in one.items if item.path[-1] == "attention"]
    ax = plots.roofline(one)
    colours = [to_hex(mark.get_facecolor()[0]) for mark in scattered(ax)]
    place = marks(ax)[colours.index("#d55e00")]
    assert place[0] == pytest.approx(mixing.intensity)
    legend: Any = ax.get_legend()
    looks = {handle.get_label(): handle.get_color() for handle in legend.legend_handles}
    assert looks["attention, cache"] == "#D55E00"


def test_two_steps_are_told_apart_by_full_and_hollow_marks(llama: ModelSpec) -> None:
    ax = plots.roofline({"decode": step(llama), "prefill": step(llama, A100, new=512, past=0)})
    hollow = [not len(mark.get_facecolor()) for mark in scattered(ax)]
    half = len(hollow) // 2
    assert hollow == [False] * half + [True] * half
    labels = legend_texts(ax)
    assert labels[-4:-2] == ["decode", "prefill"]
    assert [text.partition(":")[0] for text in labels[-2:]] == [H100, A100]
    styles = [line.get_linestyle() for line in ax.get_lines()[:2]]
    assert styles == ["-", "--"]
    assert len(ax.texts) == 2
    one_roof = plots.roofline({"a": step(llama), "b": step(llama, batch=1)})
    assert len(one_roof.texts) == 1


# ---- bars --------------------------------------------------------------------------------------


def bars(ax: Axes) -> dict[str, dict[str, float]]:
    """Give the length of each bar by its row and its label."""
    names = [label.get_text() for label in ax.get_yticklabels()]
    found: dict[str, dict[str, float]] = {}
    for container in ax.containers:
        for bar in container:
            row = names[round(bar.get_y() + bar.get_height() / 2)]
            found.setdefault(row, {})[str(container.get_label())] = bar.get_width()
    return found


@pytest.mark.parametrize("by", ["kind", "item"])
@pytest.mark.parametrize("name", ["llama-3-8b", "DeepSeek-V3", "mixtral-8x7b", "mamba2"])
def test_bars_are_the_times_of_all_items(models: dict[str, ModelSpec], name: str, by: Any) -> None:
    one = step(models[name])
    ax = plots.time_breakdown(one, by=by)
    factor = {"s": 1.0, "ms": 1e3, "µs": 1e6}[ax.get_xlabel().removeprefix("time (").rstrip(")")]
    found = bars(ax)
    for label, expected in (
        ("computing", sum(item.compute_seconds for item in one.items)),
        ("moving bytes", sum(item.memory_seconds for item in one.items)),
    ):
        assert sum(row[label] for row in found.values()) == pytest.approx(factor * expected)
    assert len(found) == len(ax.texts) <= 14
    if by == "item" and len(one.items) > 14:
        assert f"{len(one.items) - 13} others" in found
    longest = max(ax.get_xlim())
    assert all(0 <= width < longest for row in found.values() for width in row.values())
    assert f"bound of the step {1e3 * one.bound_seconds:.4g} ms" in ax.get_title() or factor > 1e3


def test_bars_are_in_the_order_of_time_and_say_time_and_share(llama: ModelSpec) -> None:
    one = step(llama)
    ax = plots.time_breakdown(one, by="item")
    longest = sorted(one.items, key=lambda item: -item.seconds)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [".".join(filter(None, item.path)) for item in longest]
    assert ax.texts[0].get_text() == "5.13 ms, 53 %"
    assert ax.texts[-1].get_text().endswith(" ns, < 0.1 %")
    assert pytest.approx(1e3 * longest[0].seconds, abs=0.01) == 5.13


def test_what_devices_exchange_has_bars_of_its_own(llama: ModelSpec) -> None:
    one = step(llama, tensor_parallel=4, collective_latency_seconds=1e-5)
    ax = plots.time_breakdown(one)
    exchanged = {row: own["exchanging"] for row, own in bars(ax).items() if "exchanging" in own}
    assert set(exchanged) == {"all-reduce", "all-gather"}
    assert sum(exchanged.values()) == pytest.approx(1e3 * one.communication_seconds)
    assert not any("exchanging" in row for row in bars(plots.time_breakdown(step(llama))).values())


# ---- sweeps ------------------------------------------------------------------------------------


def test_lines_are_the_columns_of_the_table(llama: ModelSpec) -> None:
    batch = 2 ** np.arange(8)
    table = sweep(llama, devices=[H100, A100], batch=batch[::-1])
    cases: list[tuple[Axes, str, float]] = [
        (plots.step_times(table, against="batch"), "seconds", 1e3),
        (plots.step_times(table, against="batch", time="bound_seconds"), "bound_seconds", 1e3),
        (plots.throughput(table, against="batch"), "tokens_per_second", 1),
        (plots.throughput(table, against="batch", per="user"), "tokens_per_second_per_user", 1),
    ]
    for ax, name, factor in cases:
        for line, device in enumerate((H100, A100)):
            own = table.where(device=device).sort_by("batch")
            x, y = drawn(ax, 2 * line)
            assert x == own["batch"].tolist()
            assert y == pytest.approx((factor * own[name]).tolist())
            assert ax.get_lines()[2 * line].get_label() == device
    assert [ax.get_ylabel() for ax, *_ in cases] == [
        "time of a step (ms)",
        "least time of a step (ms)",
        "tokens/s",
        "tokens/s per user",
    ]
    assert cases[0][0].get_title().splitlines()[1] == (
        "one device, weights bf16, kv bf16, new 1, past 4095"
    )


def test_what_does_not_fit_is_dotted_from_the_last_point_that_does(llama: ModelSpec) -> None:
    table = sweep(llama, batch=2 ** np.arange(10))
    most = memory.max_batch_size(llama, device_memory=85520809984, context=4096, **WIDE)
    assert most == 129
    ax = plots.step_times(table, against="batch")
    solid, dotted, *_ = ax.get_lines()
    assert drawn(ax, 0)[0] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert drawn(ax, 1)[0] == [128, 256, 512]
    assert solid.get_color() == dotted.get_color()
    assert solid.get_linestyle() == "-" != dotted.get_linestyle()
    labels = legend_texts(ax)
    assert labels[-1] == "does not fit into memory"
    nothing = plots.step_times(
        sweep(llama, devices="T4", compute="fp16", batch=2 ** np.arange(3)), against="batch"
    )
    assert drawn(nothing, 0)[0] == []
    assert drawn(nothing, 1)[0] == [1, 2, 4]


def test_lines_against_context_differ_in_all_else_that_differs(llama: ModelSpec) -> None:
    table = sweep(
        llama,
        batch=np.array([1, 8])[:, None],
        past=np.array([0, 1023, 4095]),
        weights=["bf16", "fp8"],
    )
    ax = plots.step_times(table, against="context")
    assert [line.get_label() for line in ax.get_lines()[::2]] == [
        "weights bf16, batch 1",
        "weights bf16, batch 8",
        "weights fp8, batch 1",
        "weights fp8, batch 8",
    ]
    assert drawn(ax, 0)[0] == [1, 1024, 4096]
    prompts = sweep(llama, new=np.array([16, 64, 256]), past=0)
    assert drawn(plots.step_times(prompts, against="context"), 0)[0] == [16, 64, 256]
    assert drawn(plots.step_times(prompts, against="new"), 0)[0] == [16, 64, 256]
    alone = plots.step_times(prompts, against="new")
    assert not legend_texts(alone)


def test_zero_has_a_place_on_the_axis_of_tokens_and_none_among_rates(llama: ModelSpec) -> None:
    ax = plots.step_times(sweep(llama, past=np.array([0, 10, 20])), against="past")
    assert ax.get_xscale() == "linear"
    assert drawn(ax, 0)[0] == [0, 10, 20]
    ax = plots.throughput(sweep(llama, batch=np.array([0, 1, 2])), against="batch")
    assert drawn(ax, 0)[0] == [1, 2]


def test_lines_have_different_looks_in_colours_that_everybody_tells_apart(llama: ModelSpec) -> None:
    table = sweep(
        llama, tensor_parallel=[1, 2, 4, 8], weights=["bf16", "fp8"], batch=2 ** np.arange(4)
    )
    ax = plots.throughput(table, against="batch", per="device")
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(lines) == 8
    assert {to_hex(line.get_color()) for line in ax.get_lines()} <= OKABE_ITO
    with pytest.raises(LlmcalcError, match="would be 20 lines, more than 16: select rows"):
        plots.step_times(
            sweep(llama, batch=np.arange(20)[:, None], past=np.arange(2)), against="past"
        )


def test_the_frontier_is_drawn_in_order_with_a_look_for_each_combination(llama: ModelSpec) -> None:
    table = roofline.frontier(
        llama, devices=H100, tensor_parallel=[1, 2, 4, 8], context=4096, **WIDE
    )
    ax = plots.frontier(table)
    x, y = drawn(ax, 0)
    assert x == table["tokens_per_second_per_user"].tolist() == sorted(x)
    assert y == table["tokens_per_second_per_device"].tolist()
    points = ax.get_lines()[1:]
    assert {line.get_label() for line in points} == set(table["layout"].tolist())
    assert sum(len(drawn(ax, line)[0]) for line in range(1, len(ax.get_lines()))) == len(table)
    assert {line.get_linestyle() for line in points} == {"None"}
    batches = {text.get_text() for text in ax.texts}
    assert batches <= set(map(str, table["batch"].tolist()))
    assert len(batches) > 2
    assert "context 4096; texts: batch" in ax.get_title()
    every = sweep(llama, batch=2 ** np.arange(6))
    best = every.pareto("tokens_per_second_per_user", "tokens_per_second_per_device")
    ax = plots.frontier(every)
    assert drawn(ax, 0)[0] == best["tokens_per_second_per_user"].tolist()
    assert not legend_texts(ax)


# ---- memory ------------------------------------------------------------------------------------


def areas(ax: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Give the lower and the upper edge of each area."""
    found = {}
    for area in ax.collections:
        vertices = np.asarray(area.get_paths()[0].vertices).tolist()
        points = sorted({x for x, _ in vertices})
        edges = [[pick(y for at, y in vertices if at == x) for x in points] for pick in (min, max)]
        found[str(area.get_label())] = (edges[0], edges[1])
    return found


@pytest.mark.parametrize("layout", [Layout(), Layout(tensor_parallel=2, pipeline_parallel=2)])
def test_the_stack_is_weights_and_cache_of_the_tightest_device(
    llama: ModelSpec, layout: Layout
) -> None:
    contexts = [1, 1000, 8000]
    ax = plots.memory_stack(
        llama, device=H100, contexts=contexts[::-1], batch=32, layout=layout, share=0.9, **WIDE
    )
    usable = memory.usable_bytes(85520809984, share=0.9)
    fits = [
        memory.fit(llama, device_memory=usable, context=n, batch=32, layout=layout, **WIDE)
        for n in contexts
    ]
    found = areas(ax)
    assert found["weights"][1] == [fit.weight_bytes.total / GiB for fit in fits]
    assert found["cache"][0] == found["weights"][1]
    assert found["cache"][1] == [fit.needed_bytes / GiB for fit in fits]
    assert found["free"][1] == [usable / GiB] * 3
    levels = [drawn(ax, line)[1][0] for line in range(2)]
    assert levels == [usable / GiB, 85520809984 / GiB]
    assert [line.get_label() for line in ax.get_lines()[:2]] == [
        "can be used: 71.68 GiB",
        "all memory: 79.65 GiB",
    ]


def test_the_longest_context_is_marked_where_it_is_within_the_picture(llama: ModelSpec) -> None:
    common: dict[str, Any] = {"device": H100, "contexts": range(1, 8193, 64), **WIDE}
    ax = plots.memory_stack(llama, batch=100, **common)
    longest = memory.max_context(llama, device_memory=85520809984, batch=100, **WIDE)
    assert [text.get_text() for text in ax.texts] == [f"{longest} tokens fit"]
    assert drawn(ax, -1)[0] == [longest] * 2
    assert not plots.memory_stack(llama, batch=1, **common).texts
    longer = plots.memory_stack(llama, batch=1, **(common | {"contexts": [1, 20000]}))
    assert [text.get_text() for text in longer.texts] == ["8192 positions"]


# ---- all of them -------------------------------------------------------------------------------


def pictures(models: dict[str, ModelSpec]) -> list[tuple[Axes, bool]]:
    """Give pictures of several models and devices, and whether no text may lie on a line."""
    llama, mixtral, mamba = models["llama-3-8b"], models["mixtral-8x7b"], models["mamba2"]
    deepseek = models["DeepSeek-V3"]
    wide: dict[str, Any] = {"tensor_parallel": 16, "mla": "absorbed", "weights": "fp8"}
    huge = 10 ** np.arange(2, 8)
    return [
        (plots.roofline({"decode": step(llama), "prefill": step(llama, new=4096, past=0)}), True),
        (plots.roofline(step(deepseek, batch=64, **wide)), True),
        (plots.roofline({"H100": step(mixtral), "A100": step(mixtral, A100)}), True),
        (plots.roofline(step(mamba, "RTX-4090", batch=1)), True),
        (plots.time_breakdown(step(llama)), True),
        (plots.time_breakdown(step(deepseek, batch=64, **wide), by="item"), True),
        (plots.time_breakdown(step(mixtral, A100, new=4096, past=0, tensor_parallel=2)), True),
        (plots.time_breakdown(step(mamba, "RTX-4090", batch=1), by="item"), True),
        (
            plots.step_times(
                sweep(llama, devices=[H100, A100], batch=2 ** np.arange(10)), against="batch"
            ),
            True,
        ),
        (
            plots.throughput(
                sweep(mamba, devices="RTX-4090", batch=np.array([1, 99])[:, None], past=huge),
                against="context",
            ),
            True,
        ),
        (plots.step_times(sweep(mixtral, past=np.arange(0, 10**5, 999)), against="past"), True),
        (
            plots.frontier(
                roofline.frontier(
                    llama, devices=H100, tensor_parallel=[1, 2, 4, 8], context=4096, **WIDE
                )
            ),
            False,
        ),
        (
            plots.frontier(sweep(llama, tensor_parallel=[1, 2, 4, 8], batch=2 ** np.arange(9))),
            False,
        ),
        (
            plots.memory_stack(llama, device=H100, contexts=range(1, 8193, 64), batch=100, **WIDE),
            False,
        ),
        (
            plots.memory_stack(
                deepseek,
                device="H200-SXM-141GB",
                contexts=range(1, 163840, 1024),
                batch=32,
                weights="fp8",
                kv="bf16",
                tensor_parallel=8,
                share=0.9,
            ),
            False,
        ),
        (
            plots.memory_stack(mamba, device="RTX-4090", contexts=[1, 10**6], batch=1000, **WIDE),
            False,
        ),
    ]


def test_no_text_overlaps_another_one_or_leaves_the_picture(models: dict[str, ModelSpec]) -> None:
    for ax, lines in pictures(models):
        check_that_texts_overlap_nothing(ax, lines=lines)


def test_every_picture_names_its_units_and_draws_on_the_axes_it_is_given(llama: ModelSpec) -> None:
    table = sweep(llama, batch=2 ** np.arange(4))
    draws: list[Any] = [
        lambda ax: plots.roofline(step(llama), ax=ax),
        lambda ax: plots.time_breakdown(step(llama), ax=ax),
        lambda ax: plots.step_times(table, against="batch", ax=ax),
        lambda ax: plots.throughput(table, against="batch", ax=ax),
        lambda ax: plots.frontier(table, ax=ax),
        lambda ax: plots.memory_stack(llama, device=H100, contexts=[1, 9], **WIDE, ax=ax),
    ]
    for draw in draws:
        left, right = Figure().subplots(1, 2)
        assert draw(left) is left
        assert not right.has_data()
        labels = left.get_xlabel() + left.get_ylabel()
        assert "(" in labels or "tokens/s" in labels
        assert left.get_title()
        with pytest.raises(LlmcalcError, match="ax = 'left': must be a matplotlib Axes"):
            draw("left")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda draw, s, t: draw.roofline({}), "steps = .*one or two"),
        (lambda draw, s, t: draw.roofline({"a": s, "b": s, "c": s}), "steps = .*one or two"),
        (lambda draw, s, t: draw.roofline({"a": 3}), "steps = 3: must be what"),
        (lambda draw, s, t: draw.time_breakdown(t), "step = .*must be what"),
        (lambda draw, s, t: draw.time_breakdown(s, by="layer"), "by = 'layer'"),
        (lambda draw, s, t: draw.step_times(s, against="batch"), "table = .*must be a table"),
        (lambda draw, s, t: draw.step_times(t, against="bach"), "against = 'bach'"),
        (lambda draw, s, t: draw.step_times(t, against="batch", time="x"), "time = 'x'"),
        (lambda draw, s, t: draw.throughput(t, against="batch", per="x"), "per = 'x'"),
        (lambda draw, s, t: draw.frontier(t[:0]), "must have rows"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(llama: ModelSpec, draw: Any, message: str) -> None:
    with pytest.raises(LlmcalcError, match=message):
        draw(plots, step(llama), sweep(llama))


def test_steps_of_arrays_and_single_contexts_are_refused(llama: ModelSpec) -> None:
    with pytest.raises(LlmcalcError, match="must be one step, not an array"):
        plots.roofline(step(llama, batch=np.array([1, 2])))
    with pytest.raises(LlmcalcError, match=r"contexts = .*two different contexts"):
        plots.memory_stack(llama, device=H100, contexts=[8, 8], **WIDE)
    refused = sweep(llama, tensor_parallel=3)
    with pytest.raises(LlmcalcError, match="must have rows; tensor_parallel = 3"):
        plots.step_times(refused, against="batch")


def test_these_pictures_are_written_without_pyplot_too() -> None:
    code = """
import io, sys
from llmcalc import load_model, plots, roofline
assert "matplotlib" not in sys.modules
llama = load_model("llama-3-8b")
step = roofline.step_time(
    llama, "L4", batch=1, new=1, past=9, weights="bf16", kv="bf16"
)
table = roofline.frontier(llama, devices="L4", context=9, weights="bf16", kv="bf16")
for ax in (
    plots.roofline(step), plots.time_breakdown(step), plots.frontier(table),
    plots.step_times(table, against="batch"),
    plots.memory_stack(llama, device="L4", contexts=[1, 9], weights="bf16", kv="bf16"),
):
    picture = io.BytesIO()
    ax.figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\\x89PNG")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
