"""Laws of tables: what is put into one comes out of it, exactly, and in the order asked for."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmcalc import LlmcalcError
from llmcalc.errors import MissingExtraError
from llmcalc.roofline import Sweep
from llmcalc.tables import Column, Table, column, labels

#: Numbers of any size, which 64 bits may not hold.
INTEGERS = st.one_of(st.integers(-5, 5), st.integers(-(2**70), 2**70))
ROWS = st.lists(
    st.tuples(st.sampled_from(["a", "b|c", "long label"]), INTEGERS, st.floats(allow_nan=False)),
    max_size=8,
)


def table_of(rows: list[tuple[str, int, float]], **options: Any) -> Table:
    texts: Any
    texts, integers, floats = ([row[at] for row in rows] for at in range(3))
    columns = (
        labels("label", texts),
        column("number", integers, "B"),
        column("rate", np.asarray(floats, dtype=np.float64), "tokens/s"),
    )
    return Table(columns, **options)


@given(ROWS)
@example([("a", 2**63, 0.0), ("a", -1, 0.0)])
@example([("a", 2**62, 0.5)])
def test_rows_and_arrays_hold_what_was_put_in(rows: list[tuple[str, int, float]]) -> None:
    table = table_of(rows)
    assert len(table) == len(rows)
    assert [tuple(row.values()) for row in table] == rows
    assert table["number"].tolist() == [number for _, number, _ in rows]
    assert table["label"].tolist() == [label for label, _, _ in rows]
    structured = table.to_numpy()
    assert structured.dtype.names == table.names == ("label", "number", "rate")
    assert structured.shape == (len(rows),)
    for name in table.names:
        assert structured[name].tolist() == table[name].tolist()
    if rows:
        small = all(abs(number) < 2**62 for _, number, _ in rows)
        assert table["number"].dtype == (np.int64 if small else np.object_)
    assert table.units == {"label": "", "number": "B", "rate": "tokens/s"}


@given(ROWS, st.sampled_from(["label", "number", "rate"]), st.booleans())
def test_sorting_is_pythons_stable_sorting(
    rows: list[tuple[str, int, float]], name: str, descending: bool
) -> None:
    at = ("label", "number", "rate").index(name)
    expected = sorted(rows, key=lambda row: row[at], reverse=descending)
    found = table_of(rows).sort_by(name, descending=descending)
    assert [tuple(row.values()) for row in found] == expected


@given(ROWS, st.sampled_from(["a", "b|c", "not there"]))
def test_selections_keep_the_rows_that_are_asked_for_in_their_order(
    rows: list[tuple[str, int, float]], label: str
) -> None:
    table = table_of(rows, notes=("kept",))
    chosen = table.where(table["rate"] > 0, label=label)
    assert [tuple(row.values()) for row in chosen] == [
        row for row in rows if row[0] == label and row[2] > 0
    ]
    assert [tuple(row.values()) for row in table[:2]] == rows[:2]
    assert chosen.notes == table.select("rate").notes == ("kept",)
    assert table.select("rate", "label").names == ("rate", "label")
    for number in {row[1] for row in rows}:
        assert set(table.where(number=number)["number"].tolist()) == {number}


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12),
    st.sampled_from([np.int64, np.uint8, np.float64, np.object_]),
)
def test_pareto_keeps_what_nothing_beats_and_all_else_is_beaten_by_something_kept(
    points: list[tuple[int, int]], dtype: Any
) -> None:
    x, y = (np.asarray([p[at] for p in points], dtype=dtype) for at in range(2))
    best = Table((column("x", x), column("y", y))).pareto("x", "y")
    kept = list(zip(best["x"].tolist(), best["y"].tolist(), strict=True))

    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and a[0] >= b[0] and a[1] >= b[1]

    assert not any(beats(a, b) for a in points for b in kept)
    for point in points:
        assert kept.count(point) == points.count(point) or any(beats(a, point) for a in kept)
    assert kept == sorted(kept)
    assert set(kept) <= set(points)


def test_a_column_takes_the_narrowest_type_that_changes_nothing() -> None:
    cases: list[tuple[Any, Any]] = [
        ([1, 2], np.int64),
        ([1, 2**70], np.object_),
        ([1.5, 2.0], np.float64),
        ([1, 2.5], np.object_),
        ([True, False], np.bool_),
        ([True, 2], np.object_),
        ([None, 1], np.object_),
        ([], np.object_),
        (np.asarray([1, 2], dtype=np.uint8), np.uint8),
        (np.asarray([3, 4], dtype=np.object_), np.int64),
    ]
    for values, dtype in cases:
        found = column("c", values)
        assert found.values.dtype == dtype
        assert found.array.tolist() == list(values)
        assert len(found) == len(values)
    assert repr(column("bytes", [1], "B")) == "<Column bytes in B: 1 values>"


def test_markdown_shows_units_multiples_and_what_is_left_out() -> None:
    table = Table(
        (
            labels("name", ["x|y", "z", "z"]),
            column("needed", [2**30, 1000, None], "B"),
            column("mean", [2.5 * 2**20, 7.25, float("inf")], "B"),
            column("seconds", [0.00123456, 123456.7, float("nan")], "s"),
            column("requests", [12345678, 1, 2]),
            column("fits", [True, False, True]),
        ),
        notes=("a note",),
    )
    assert table.to_markdown(2).splitlines() == [
        "| name | needed | mean | seconds (s) | requests | fits |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        r"| x\|y | 1 GiB | 0.0024414 GiB | 0.001235 | 12 345 678 | yes |",
        "| z | 1000 B | 7 B | 123 457 | 1 | no |",
        "",
        "1 more",
        "",
        "a note",
    ]
    assert "| z | - | inf | - | 2 | yes |" in table.to_markdown(None)
    assert table._repr_markdown_() == table.to_markdown()
    assert repr(table) == "<Table of 3 rows: name, needed, mean, seconds, requests, fits>"
    assert len(Table(())) == len(list(Table(()))) == 0


def test_what_is_no_column_and_no_selection_is_refused_by_name() -> None:
    table = table_of([("a", 1, 0.5), ("a", 2, float("nan"))])
    ask: Any = table
    for wrong, message in (
        (lambda: table["numbr"], "column = 'numbr': .*did you mean 'number'"),
        (lambda: ask[0], "column = 0: must be the name"),
        (lambda: table.where(size=3), "column = 'size'"),
        (lambda: table.where(np.asarray([1, 0])), "rows = .*array of 2 truth values"),
        (lambda: table.where(np.asarray([True])), "rows = .*array of 2 truth values"),
        (lambda: table.sort_by("rate", descending=ask), "descending"),
        (lambda: table.pareto("label", "number"), "label = .*must be numbers"),
        (lambda: table.pareto("number", "rate"), "rate = .*must be numbers"),
        (lambda: column("grid", np.ones((2, 2))), "grid = .*single row"),
        (lambda: Table((column("a", [1]), column("b", []))), "columns = .*equally many rows"),
        (lambda: Table((column("a", [1]), column("a", [2]))), "columns = .*different names"),
    ):
        with pytest.raises(LlmcalcError, match=message):
            wrong()


def test_texts_are_kept_once_each() -> None:
    column = labels("device", ["L4", "A10", "L4"], np.asarray([0, 1, 2, 0]))
    assert column.texts == ("L4", "A10")
    assert column.values.tolist() == [0, 1, 0, 0]
    assert isinstance(column, Column)


def test_pandas_gets_the_columns_with_their_units() -> None:
    pandas = pytest.importorskip("pandas")
    frame = table_of([("a", 1, 0.5), ("b", 2**70, 1.5), ("a", 3, 2.5)]).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["label", "number", "rate"]
    assert frame["label"].tolist() == ["a", "b", "a"]
    assert list(frame["label"].cat.categories) == ["a", "b"]
    assert frame["number"].tolist() == [1, 2**70, 3]
    assert frame["rate"].sum() == 4.5
    assert frame.attrs["units"] == {"label": "", "number": "B", "rate": "tokens/s"}


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"llmcalc-inference\[pandas\]"):
        table_of([]).to_pandas()


def test_importing_tables_imports_no_numpy() -> None:
    code = "import sys, llmcalc.tables; assert not {'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@given(ROWS)
def test_tables_of_the_same_rows_are_equal_and_have_no_hash(
    rows: list[tuple[str, int, float]],
) -> None:
    table = table_of(rows, notes=("measured",))
    assert table == table_of(rows, notes=("measured",))
    assert table == table.take(np.arange(len(rows)))
    for one in (table, *table.columns):
        with pytest.raises(TypeError, match="unhashable"):
            hash(one)


@pytest.mark.parametrize(
    "other",
    [
        Table((labels("label", ["a", "c"]), column("number", [1, 2], "B")), ("measured",)),
        Table((labels("label", ["a", "b"]), column("number", [1, 3], "B")), ("measured",)),
        Table((labels("label", ["a", "b"]), column("number", [1, 2], "s")), ("measured",)),
        Table((labels("label", ["a", "b"]), column("other", [1, 2], "B")), ("measured",)),
        Table((labels("label", ["a", "b"]), column("number", [1, 2], "B"))),
        Table((column("number", [1, 2], "B"), labels("label", ["a", "b"])), ("measured",)),
        Table((column("label", [0, 1]), column("number", [1, 2], "B")), ("measured",)),
        Table((labels("label", ["a"]), column("number", [1], "B")), ("measured",)),
        Sweep((labels("label", ["a", "b"]), column("number", [1, 2], "B")), ("measured",)),
        "a table",
    ],
    ids=["text", "number", "unit", "name", "notes", "order", "kind", "rows", "type", "text alone"],
)
def test_tables_that_differ_in_anything_are_not_equal(other: object) -> None:
    table = Table((labels("label", ["a", "b"]), column("number", [1, 2], "B")), ("measured",))
    assert table != other


def test_columns_are_equal_by_what_they_show() -> None:
    long = labels("label", ["c", "b", "a", "b"])
    assert long.take(slice(2, None)) == labels("label", ["a", "b"])
    assert column("number", [1, 2]) == column("number", np.array([1, 2], dtype=object))
    assert column("rate", [1.0, math.nan]) == column("rate", [1.0, math.nan])
    assert column("rate", [None, math.nan]) == column("rate", [None, float("nan")])
    assert column("rate", [1.0, math.nan]) != column("rate", [math.nan, 1.0])
    assert column("rate", [1.0, math.nan]) != column("rate", [1.0, 2.0])
    assert column("rate", [1.0, math.nan]) != column("rate", [1.0, None])


def test_sweeps_that_refuse_different_combinations_are_not_equal() -> None:
    columns = (column("number", [1, 2]),)
    refused = Table((labels("reason", ["too large"]),))
    assert Sweep(columns, refused=refused) == Sweep(columns, refused=refused)
    assert Sweep(columns, refused=refused) != Sweep(columns)
    assert Sweep(columns, model="a") != Sweep(columns, model="b")
