"""What the pictures must show, read from their artists."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from llmcalc import LlmcalcError, hardware, plots, roofline
from llmcalc.errors import MissingExtraError

OKABE_ITO = {
    "#000000",
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
}
ALGORITHMS: tuple[roofline.Algorithm, ...] = ("standard", "flash", "assignment")


def prefill(**changes: Any) -> Axes:
    sizes: dict[str, Any] = {"contexts": [128, 1024, 4096], "head_dim": 128, "element_bytes": 2}
    ax: Axes = plots.prefill_intensity(**(sizes | changes))
    return ax


def decode(**changes: Any) -> Axes:
    sizes: dict[str, Any] = {"batches": [1, 8, 64], "head_dim": 128, "element_bytes": 2}
    ax: Axes = plots.decode_intensity(**({"context": 1024} | sizes | changes))
    return ax


def row(prompt: int, uncached: Any, cached: Any) -> Any:
    return SimpleNamespace(prompt_length=prompt, uncached_seconds=uncached, cached_seconds=cached)


def drawn(ax: Axes, line: int = 0) -> tuple[list[Any], list[Any]]:
    artist = ax.get_lines()[line]
    return list(artist.get_xdata()), list(artist.get_ydata())  # type: ignore[arg-type]


@settings(max_examples=10)
@given(
    st.lists(st.integers(1, 2**17), min_size=1, max_size=5),
    st.sampled_from([(1, 1), (8, 2), (4, 4)]),
    st.booleans(),
    st.sampled_from([0, 5]),
)
def test_prefill_lines_are_the_roofline_values(
    contexts: list[int], heads: tuple[int, int], causal: bool, softmax: int
) -> None:
    common: dict[str, Any] = {
        "head_dim": 64,
        "element_bytes": 1,
        "query_heads": heads[0],
        "kv_heads": heads[1],
        "causal": causal,
        "softmax_flops": softmax,
    }
    algorithms: tuple[roofline.Algorithm, ...] = ("flash", "standard")
    ax = plots.prefill_intensity(contexts=contexts, algorithm=algorithms, **common)
    for line, algorithm in enumerate(algorithms):
        expected = [
            roofline.attention_intensity(queries=n, keys=n, algorithm=algorithm, **common)
            for n in contexts
        ]
        assert drawn(ax, line) == (contexts, expected)
        assert ax.get_lines()[line].get_label() == algorithm
    assert len(ax.get_lines()) == 2


def test_decode_lines_are_the_roofline_values_for_each_way_of_sharing() -> None:
    ax = decode(algorithm=ALGORITHMS, shared_kv=[False, True])
    cases = [(algorithm, shared) for algorithm in ALGORITHMS for shared in (False, True)]
    for line, (algorithm, shared) in enumerate(cases):
        expected = [
            roofline.attention_intensity(
                queries=1,
                keys=1024,
                batch=batch,
                head_dim=128,
                element_bytes=2,
                algorithm=algorithm,
                shared_kv=shared,
            )
            for batch in (1, 8, 64)
        ]
        assert drawn(ax, line) == ([1, 8, 64], expected)
        sharing = "one KV shared" if shared else "own KV each"
        assert ax.get_lines()[line].get_label() == f"{algorithm}, {sharing}"
        assert ax.get_lines()[line].get_linestyle() == ("--" if shared else "-")


def test_each_algorithm_keeps_its_own_convention_of_sharing() -> None:
    labels = [line.get_label() for line in decode(algorithm=ALGORITHMS).get_lines()]
    assert labels == [
        "standard, own KV each",
        "flash, own KV each",
        "assignment, one KV shared",
    ]
    assert f"{drawn(prefill(algorithm='assignment'))[1][1]:.3f}" == "71.310"
    assert f"{drawn(decode(algorithm='assignment'))[1][0]:.3f}" == "0.998"


@pytest.mark.parametrize("draw", [prefill, decode])
@pytest.mark.parametrize("device", ["H100-SXM-80GB", hardware.get("L4")])
def test_the_ridge_point_is_drawn_and_named(draw: Any, device: Any) -> None:
    ax = draw(device=device, format="fp8")
    spec = hardware.get(device)
    assert drawn(ax, -1)[1] == [spec.ridge_point("fp8")] * 2
    (text,) = ax.texts
    assert spec.name in text.get_text()
    assert "fp8" in text.get_text()
    assert f"{spec.ridge_point('fp8'):.3g} FLOP/byte" in text.get_text()
    low, high = ax.get_ylim()
    assert low < spec.ridge_point("fp8") < high
    assert not draw().texts


@pytest.mark.parametrize("draw", [prefill, decode])
def test_intensity_axes_are_logarithmic_and_labelled_with_units(draw: Any) -> None:
    ax = draw(algorithm=ALGORITHMS, device="H100-SXM-80GB")
    assert ax.get_ylabel() == "arithmetic intensity (FLOP/byte)"
    assert ax.get_xlabel() in {"context (tokens)", "batch size (requests)"}
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert "head_dim 128, 2 bytes an element" in ax.get_title()
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        line.get_label() for line in ax.get_lines()[:3]
    ]
    assert {to_hex(line.get_color()) for line in ax.get_lines()} <= OKABE_ITO
    looks = {(line.get_color(), line.get_marker()) for line in ax.get_lines()[:3]}
    assert len({colour for colour, _ in looks}) == len({mark for _, mark in looks}) == 3


def check_that_texts_overlap_nothing(ax: Axes, *, lines: bool = True) -> None:
    """Draw a picture, and hold its texts against each other and, with `lines`, against these."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = ax.figure
    assert isinstance(figure, Figure)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    ticks = []
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    ticks = [label for label in ticks if label.get_text()]
    texts = (*ticks, ax.xaxis.label, ax.yaxis.label, ax.get_legend(), ax.title, *ax.texts)
    boxes = [artist.get_window_extent(renderer) for artist in texts if artist is not None]
    boxes = [box for box in boxes if box.width]  # an axis of names has no label
    for i, box in enumerate(boxes):
        assert figure.bbox.padded(1).count_contains(box.corners()) == 4
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    for text in ax.texts if lines else ():
        box = text.get_window_extent(renderer)
        for line in ax.get_lines():
            path = line.get_transform().transform_path(line.get_path())
            assert not path.intersects_bbox(box, filled=False)


def test_texts_overlap_neither_each_other_nor_the_lines_that_rise_through_the_ridge() -> None:
    for ax in (
        prefill(contexts=[128, 256, 512, 1024, 2048, 4096], algorithm=ALGORITHMS, device="h100sxm"),
        decode(algorithm=ALGORITHMS, shared_kv=[False, True], device="A100-SXM-80GB"),
        plots.latency([row(n, n / 100, n / 1000) for n in (10, 50, 100, 500, 1000)]),
    ):
        check_that_texts_overlap_nothing(ax)


def test_latency_lines_are_the_rows_in_order_of_the_prompt() -> None:
    rows = [row(1000, 1.5, 0.05), row(10, 0.06, 0.02)]
    ax = plots.latency(iter(rows))
    assert drawn(ax, 0) == ([10, 1000], [0.06, 1.5])
    assert drawn(ax, 1) == ([10, 1000], [0.02, 0.05])
    assert [line.get_label() for line in ax.get_lines()] == ["without cache", "with cache"]
    assert ax.get_xlabel() == "prompt length (tokens)"
    assert ax.get_ylabel() == "median time (s)"
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.texts] == ["3x", "30x"]
    assert [text.get_text() for text in plots.latency([row(9, 300.0, 1.0)]).texts] == ["300x"]


@pytest.mark.parametrize(
    "draw",
    [prefill, decode, lambda ax: plots.latency([row(1, 1.0, 1.0), row(2, 2.0, 1.0)], ax=ax)],
)
def test_a_given_axes_is_drawn_on_and_returned(draw: Any) -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert draw(ax=left) is left
    assert left.get_lines()
    assert not right.get_lines()
    with pytest.raises(LlmcalcError, match="ax = 'left': must be a matplotlib Axes"):
        draw(ax="left")


def test_ticks_are_plain_numbers() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    few = prefill(contexts=[512, 1024, 16384])
    many = prefill(contexts=list(range(100, 20_000, 100)))
    for ax, expected in ((few, {"512", "1024", "16 384"}), (many, {"1024", "16 384"})):
        assert isinstance(ax.figure, Figure)
        canvas: Any = FigureCanvasAgg(ax.figure)
        canvas.draw()
        assert expected <= {label.get_text() for label in ax.get_xticklabels()}
    assert not any(line.get_marker() for line in many.get_lines())


def test_arrays_and_ranges_are_sequences_of_points() -> None:
    expected = drawn(prefill(contexts=[256, 512, 768]))
    assert drawn(prefill(contexts=range(256, 769, 256))) == expected
    assert drawn(prefill(contexts=np.array([256, 512, 768], dtype=np.uint16))) == expected
    assert drawn(decode(batches=np.array([1, 8, 64]))) == drawn(decode())


@pytest.mark.parametrize(
    ("draw", "changes", "message"),
    [
        (prefill, {"contexts": []}, "contexts = .*at least one"),
        (prefill, {"contexts": 1024}, "contexts = 1024: must be a sequence of integers"),
        (prefill, {"contexts": "1024"}, "contexts = '1024': must be a sequence"),
        (prefill, {"contexts": [0]}, "contexts = 0"),
        (prefill, {"contexts": [1.5]}, "contexts = 1.5"),
        (prefill, {"contexts": np.array([[1, 2]])}, "contexts = "),
        (prefill, {"contexts": np.array(3)}, "contexts = array"),
        (prefill, {"algorithm": "flush"}, "did you mean 'flash'"),
        (prefill, {"algorithm": []}, "algorithm = .*at least one"),
        (prefill, {"algorithm": "assignment", "causal": True}, "causal = True"),
        (prefill, {"device": "H100"}, "device = 'H100': could be"),
        (prefill, {"device": "T4"}, "T4 has no peak for this format"),
        (prefill, {"device": "L4", "format": "bf61"}, "did you mean 'bf16'"),
        (decode, {"batches": [True]}, "batches = True"),
        (decode, {"shared_kv": []}, "shared_kv = .*at least one"),
        (decode, {"shared_kv": "yes"}, "shared_kv = 'yes': must be True or False"),
        (decode, {"context": 0}, "context = 0"),
        (decode, {"head_dim": 0}, "head_dim = 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    draw: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LlmcalcError, match=message):
        draw(**changes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "prompt_length = .*at least one"),
        ([row(10, 0.0, 1.0)], "uncached_seconds = 0.0: must be a positive number"),
        ([row(10, 1.0, -1.0)], "cached_seconds = -1.0"),
        ([row(10, float("nan"), 1.0)], "uncached_seconds = nan"),
        ([row(10, float("inf"), 1.0)], "uncached_seconds = inf"),
        ([row(10, True, 1.0)], "uncached_seconds = True: must be a number of seconds"),
        ([row(10, 1.0, "fast")], "cached_seconds = 'fast': must be a number"),
        ([row(0, 1.0, 1.0)], "prompt_length = 0"),
    ],
)
def test_times_that_cannot_be_drawn_are_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(LlmcalcError, match=message):
        plots.latency(rows)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r"llmcalc-inference\[plot\]"):
        prefill()


def test_a_matplotlib_that_is_broken_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"matplotlib\.figure"):
        prefill()


def test_pictures_are_written_without_pyplot_and_importing_needs_no_matplotlib() -> None:
    code = """
import io, sys
from types import SimpleNamespace as Row
from llmcalc import plots
assert "matplotlib" not in sys.modules and "numpy" not in sys.modules
axes = [
    plots.prefill_intensity(contexts=[1, 2], head_dim=8, element_bytes=2, device="L4"),
    plots.decode_intensity(batches=[1, 2], context=9, head_dim=8, element_bytes=2, device="L4"),
    plots.latency([Row(prompt_length=10, uncached_seconds=0.2, cached_seconds=0.1)]),
]
for ax in axes:
    picture = io.BytesIO()
    ax.figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\\x89PNG")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
