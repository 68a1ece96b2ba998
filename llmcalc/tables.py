"""Tables: columns of numbers and of labels, each with its name and its unit.

* `Table`: the columns, with selections, orders and the Pareto-optimal rows; as NumPy's structured
  arrays, as pandas' frames, as Markdown.
* `Column`: one column.
* `column`: a column of numbers; `labels`: a column of texts.

Integers are exact: 64-bit where all of a column fit, Python's own where not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

import attrs

from llmcalc.boundary import flag_argument, integer_type, is_array, is_wide, same
from llmcalc.errors import InvalidValueError, MissingExtraError, UnknownNameError
from llmcalc.units import Bytes, MiB, format_integer, format_quantity

if TYPE_CHECKING:
    from numpy import bool_
    from numpy.typing import NDArray

__all__ = ["Column", "Table", "column", "labels"]


@attrs.frozen(eq=False, repr=False)
class Column:
    """One column: `values`, an array of numbers, in `unit`; or of texts, as places in `texts`.

    `column` and `labels` make one. Nothing in it may be changed. Columns are equal when names,
    units and all values are; what is not a number equals itself.
    """

    name: str
    values: NDArray[Any]
    unit: str = ""
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Column):
            return NotImplemented
        if (self.name, self.unit) != (other.name, other.unit):
            return False
        if self.texts == other.texts:
            return same(self.values, other.values)
        texts = self.texts is not None and other.texts is not None
        return texts and same(self.array, other.array)

    # Holds an array, which has no hash.
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        unit = f" in {self.unit}" if self.unit else ""
        return f"<Column {self.name}{unit}: {len(self)} values>"

    @property
    def array(self) -> NDArray[Any]:
        """The values as an array: numbers, or the texts themselves."""
        if self.texts is None:
            return self.values
        import numpy as np

        texts: NDArray[Any] = np.asarray(self.texts, dtype=np.str_)[self.values]
        return texts

    @property
    def title(self) -> str:
        """The name, with the unit in parentheses where there is one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def take(self, rows: Any) -> Column:
        """Return the column with some of the rows, in that order."""
        return attrs.evolve(self, values=self.values[rows])


def column(name: str, values: object, unit: str = "") -> Column:
    """Return a column of numbers, of truth values, or of these with `None` among them.

    Integers become 64-bit ones where all fit, and otherwise stay Python's own.

    >>> from llmcalc.tables import column
    >>> column("batch", [1, 2, 4], "requests").values.dtype, column("n", [2**80]).values.dtype
    (dtype('int64'), dtype('O'))
    """
    import numpy as np

    array = np.asarray(values) if is_array(values) else _objects(values)
    if array.ndim != 1:
        raise InvalidValueError(name, array.shape, "must be a single row of values")
    return Column(name, _narrow(array) if array.dtype.kind == "O" else array, unit)


def _objects(values: Any) -> NDArray[Any]:
    import numpy as np

    values = list(values)
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    """Return objects of one type as an array of that type, if that changes none of them."""
    import numpy as np

    kinds = set(map(type, array))
    if kinds == {int} and not is_wide(max(abs(array))):
        return array.astype(integer_type(wide=False))
    if kinds in ({float}, {bool}):
        return array.astype(np.float64 if kinds == {float} else np.bool_)
    return array


def labels(name: str, values: Sequence[str], places: NDArray[Any] | None = None) -> Column:
    """Return a column of texts: `values` one by one, or those at `places` in `values`.

    >>> from llmcalc.tables import labels
    >>> labels("device", ["L4", "A10", "L4"]).array.tolist()
    ['L4', 'A10', 'L4']
    """
    import numpy as np

    known = {text: place for place, text in enumerate(dict.fromkeys(values))}
    own = np.asarray([known[text] for text in values], dtype=np.int32)
    return Column(name, own if places is None else own[places], texts=tuple(known))


@attrs.frozen(eq=False, repr=False)
class Table:
    """Columns of equal length, and `notes` on them.

    ``len(table)`` counts the rows, ``table["seconds"]`` is the array of a column, ``table[:5]`` a
    table of the first rows, and iterating gives each row as a dictionary of Python values.
    Tables are not changed: what selects or sorts returns a new one. Two are equal when they are of
    one type, and columns, notes and whatever else a type adds are equal.

    >>> from llmcalc.tables import Table, column, labels
    >>> table = Table((
    ...     labels("device", ["L4", "A10", "T4"]),
    ...     column("seconds", [0.03, 0.01, 0.02], "s"),
    ... ))
    >>> len(table), table["seconds"].min()
    (3, np.float64(0.01))
    >>> print(table.where(table["seconds"] < 0.03).sort_by("seconds").to_markdown())
    | device | seconds (s) |
    | --- | ---: |
    | A10 | 0.01 |
    | T4 | 0.02 |
    """

    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        lengths = {one.name: len(one) for one in self.columns}
        if len(set(lengths.values())) > 1 or len(lengths) < len(self.columns):
            rule = "must have different names and equally many rows"
            raise InvalidValueError("columns", [(c.name, len(c)) for c in self.columns], rule)

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Table) or type(self) is not type(other):
            return NotImplemented
        fields = [field.name for field in attrs.fields(type(self))]
        return all(getattr(self, name) == getattr(other, name) for name in fields)

    # Holds arrays, which have no hash.
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows()

    def __repr__(self) -> str:
        names = ", ".join(self.names)
        return f"<{type(self).__name__} of {len(self)} rows: {names}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(one.name for one in self.columns)

    @property
    def units(self) -> dict[str, str]:
        """The unit of each column; an empty text where it has none."""
        return {one.name: one.unit for one in self.columns}

    def column(self, name: str) -> Column:
        """Return one column; raises `llmcalc.LlmcalcError` where there is none of that name."""
        for one in self.columns:
            if one.name == name:
                return one
        if not isinstance(name, str):
            raise InvalidValueError("column", name, "must be the name of a column")
        raise UnknownNameError("column", name, self.names, listed_by="Table.names")

    @overload
    def __getitem__(self, key: str) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> Self: ...
    def __getitem__(self, key: str | slice) -> NDArray[Any] | Self:
        return self.take(key) if isinstance(key, slice) else self.column(key).array

    def rows(self) -> Iterator[dict[str, Any]]:
        """Give each row as a dictionary of Python values, by the names of the columns."""
        names = self.names
        for row in zip(*(one.array.tolist() for one in self.columns), strict=True):
            yield dict(zip(names, row, strict=True))

    def take(self, rows: Any) -> Self:
        """Return the rows at these places: a slice, an array of places or one of truth values."""
        return attrs.evolve(self, columns=tuple(one.take(rows) for one in self.columns))

    def select(self, *names: str) -> Self:
        """Return the named columns, in that order."""
        return attrs.evolve(self, columns=tuple(self.column(name) for name in names))

    def where(self, rows: NDArray[bool_] | None = None, /, **equal: object) -> Self:
        """Return the rows where `rows` is true and every named column has the given value.

        >>> from llmcalc.tables import Table, column, labels
        >>> table = Table((labels("device", ["L4", "A10"]), column("batch", [1, 8])))
        >>> list(table.where(device="A10"))
        [{'device': 'A10', 'batch': 8}]
        """
        import numpy as np

        chosen = np.ones(len(self), dtype=np.bool_)
        if rows is not None:
            if not is_array(rows) or rows.dtype.kind != "b" or rows.shape != chosen.shape:
                rule = f"must be an array of {len(self)} truth values"
                raise InvalidValueError("rows", rows, rule)
            chosen &= rows
        for name, value in equal.items():
            one = self.column(name)
            if one.texts is None:
                chosen &= np.asarray(one.values == value, dtype=np.bool_)
            else:
                known = one.texts.index(value) if value in one.texts else -1
                chosen &= one.values == known
        return self.take(chosen)

    def sort_by(self, name: str, *, descending: bool = False) -> Self:
        """Return the rows in the order of a column; equal ones stay in their order."""
        import numpy as np

        array = self.column(name).array
        if flag_argument(descending, "descending"):
            return self.take(len(array) - 1 - np.argsort(array[::-1], kind="stable")[::-1])
        return self.take(np.argsort(array, kind="stable"))

    def pareto(self, first: str, second: str) -> Self:
        """Return the rows that no other one beats in two columns of which more is better.

        A row is beaten where another one has at least as much in both columns and more in one.
        Rows with the same values in both are kept together. The order is that of `first`, the
        least first.

        >>> from llmcalc.tables import Table, column
        >>> table = Table((column("speed", [1, 2, 3, 2]), column("size", [9, 5, 5, 7])))
        >>> [tuple(row.values()) for row in table.pareto("speed", "size")]
        [(1, 9), (2, 7), (3, 5)]
        """
        import numpy as np

        if not len(self):
            return self
        x, y = self._ranks(first), self._ranks(second)
        order = np.lexsort((-y, -x))
        x, y = x[order], y[order]
        starts = np.flatnonzero(np.concatenate(([True], x[1:] != x[:-1])))
        sizes = np.diff(np.append(starts, len(x)))
        best = y[starts]  # of the rows with the same value of `first`
        before = np.concatenate(([True], best[1:] > np.maximum.accumulate(best)[:-1]))
        kept = np.repeat(before, sizes) & (y == np.repeat(best, sizes))
        return self.take(order[kept][::-1]).sort_by(first)

    def _ranks(self, name: str) -> NDArray[Any]:
        """Return the place of each value of a column among its distinct values, the least first."""
        import numpy as np

        one = self.column(name)
        if one.texts is not None or (one.values.dtype.kind == "f" and np.isnan(one.values).any()):
            raise InvalidValueError(name, one, "must be numbers, to compare rows by")
        places: NDArray[Any] = np.unique(one.values, return_inverse=True)[1]
        return places

    def to_numpy(self) -> NDArray[Any]:
        """Return a structured array, a field for each column.

        Texts are NumPy's; integers that do not fit 64 bits are objects.

        >>> from llmcalc.tables import Table, column, labels
        >>> Table((labels("device", ["L4", "A10"]), column("batch", [1, 8]))).to_numpy()
        array([('L4', 1), ('A10', 8)], dtype=[('device', '<U3'), ('batch', '<i8')])
        """
        import numpy as np

        arrays = [one.array for one in self.columns]
        dtype = [(one.name, array.dtype) for one, array in zip(self.columns, arrays, strict=True)]
        table = np.empty(len(self), dtype=dtype)
        for one, array in zip(self.columns, arrays, strict=True):
            table[one.name] = array
        return table

    def to_pandas(self) -> Any:
        """Return a pandas ``DataFrame``: texts as categories, the units in ``frame.attrs``.

        Raises `llmcalc.errors.MissingExtraError` where pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError as error:
            if error.name != "pandas":
                raise
            raise MissingExtraError("to_pandas", "pandas", "pandas") from None
        frame = pandas.DataFrame(
            {
                one.name: one.values
                if one.texts is None
                else pandas.Categorical.from_codes(one.values, categories=list(one.texts))
                for one in self.columns
            }
        )
        frame.attrs["units"] = self.units
        return frame

    def to_markdown(self, limit: int | None = 20) -> str:
        """Return the first `limit` rows as a Markdown table, or all of them, and the notes.

        Bytes from 1 MiB on are in binary multiples, floats are rounded to four digits.
        """
        shown = self if limit is None else self.take(slice(limit))
        bars = ["---" if one.texts is not None else "---:" for one in self.columns]
        titles, *rows = shown.texts()
        lines = [_line(row) for row in (titles, bars, *rows)]
        remarks = [f"{len(self) - len(shown)} more"] if len(shown) < len(self) else []
        for remark in (*remarks, *self._remarks()):
            lines += ["", remark]
        return "\n".join(lines)

    def texts(self) -> list[list[str]]:
        """Return what is printed: the titles of the columns, then the cells of each row.

        >>> from llmcalc.tables import Table, column
        >>> Table((column("context", [32768], "tokens"), column("needed", [2**30], "B"))).texts()
        [['context (tokens)', 'needed'], ['32 768', '1 GiB']]
        """
        cells = [[_cell(value, one.unit) for value in one.array.tolist()] for one in self.columns]
        rows = [list(row) for row in zip(*cells, strict=True)]
        return [[_title(one) for one in self.columns], *rows]

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def _remarks(self) -> Iterable[str]:
        """Give what stands below the table."""
        return self.notes


def _line(cells: Iterable[str]) -> str:
    return " | ".join(["", *(cell.replace("|", r"\|") for cell in cells), ""]).strip()


def _title(one: Column) -> str:
    # The cells of bytes have their multiples with them.
    return one.name if one.unit == Bytes.symbol else one.title


def _cell(value: object, unit: str) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-" if value is None or math.isnan(value) else str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == Bytes.symbol and isinstance(value, int | float):
        whole = format_quantity(round(value), Bytes)
        return whole.partition("(")[2].rstrip(")") if value >= MiB else whole
    if isinstance(value, int):
        return format_integer(value)
    if isinstance(value, float):
        return format_integer(round(value)) if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)
