"""Breakdowns: a quantity as the sum of its terms, each term with its named factors.

* `Term`: one leaf, a product of named factors at a path.
* `Breakdown`: the terms of one quantity. Only leaves are stored; totals, groups and the printed
  working are always derived from them, so that they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, cast

import attrs

from llmcalc.boundary import choice, same
from llmcalc.described import Described, FrozenMapping
from llmcalc.errors import UnitMismatchError
from llmcalc.units import Unit, format_array, format_quantity

if TYPE_CHECKING:
    # Only type checkers need the default: it makes Breakdown[Bytes] mean Breakdown[Bytes, int].
    from typing_extensions import TypeVar

    UnitT = TypeVar("UnitT", bound=Unit)
    ValueT = TypeVar("ValueT", default=int)
else:
    from typing import TypeVar

    UnitT = TypeVar("UnitT")
    ValueT = TypeVar("ValueT")

__all__ = ["Breakdown", "Factor", "Term"]

#: A named factor of a term: its value (an integer, a float or an array) and what it counts.
Factor: TypeAlias = tuple[Any, str]


@attrs.frozen(repr=False, eq=False)
class Term(Described, Generic[ValueT]):
    """One leaf of a breakdown: the product of its named factors.

    `path` names the leaf from the group down, such as ``("attention", "decoder", "q.weight")``.

    >>> from llmcalc.breakdown import Term
    >>> term = Term(("cache", "k"), ((8, "kv_heads"), (128, "head_dim"), (2, "bytes")))
    >>> term.value
    2048
    """

    path: tuple[str, ...]
    factors: tuple[Factor, ...]

    @property
    def value(self) -> ValueT:
        """The product of the factors: an integer, or an array where a factor is one."""
        product: Any = 1
        for factor, _ in self.factors:
            product = product * factor
        return cast("ValueT", product)

    @property
    def working(self) -> str:
        """The factors with their names: ``8 kv_heads x 128 head_dim x 2 bytes``."""
        return " x ".join(f"{_factor_text(value)} {name}" for value, name in self.factors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Term):
            return NotImplemented
        return (
            self.path == other.path
            and len(self.factors) == len(other.factors)
            and all(
                mine[1] == theirs[1] and same(mine[0], theirs[0])
                for mine, theirs in zip(self.factors, other.factors, strict=True)
            )
        )

    # Factors may be arrays, which have no hash.
    __hash__: ClassVar[None] = None  # type: ignore[assignment]


class Breakdown(Generic[UnitT, ValueT]):
    """A quantity as the sum of its terms.

    `unit` is the unit type (`llmcalc.units.Bytes`, `Params`, `Flops` or `Seconds`), `title` says
    what the quantity is, `terms` are the leaves, or a function that gives them when they are first
    asked for. `Breakdown[Bytes]` holds integers; `Breakdown[Bytes, IntArray]` is what a call with
    array arguments returns.

    Adding breakdowns of one unit joins their terms; of different units it is an error, for mypy
    and at run time (`UnitMismatchError`). Two breakdowns are equal when unit, paths, factor names
    and factor values are; arrays are equal when their shapes and all their elements are, so that
    ``==`` always gives one bool. Titles are not compared.

    >>> from llmcalc import Breakdown
    >>> from llmcalc.breakdown import Term
    >>> from llmcalc.units import Bytes
    >>> cache = Breakdown(Bytes, "KV cache", (
    ...     Term(("cache", "k"), ((8, "kv_heads"), (128, "head_dim"), (2, "bytes"))),
    ...     Term(("cache", "v"), ((8, "kv_heads"), (128, "head_dim"), (2, "bytes"))),
    ... ))
    >>> cache.total
    4096
    >>> print(cache.explain())
    KV cache
      k  8 kv_heads x 128 head_dim x 2 bytes = 2048 B
      v  8 kv_heads x 128 head_dim x 2 bytes = 2048 B
      total 4096 B
    """

    __slots__ = ("_terms", "_total", "title", "unit")

    unit: type[UnitT]
    title: str
    _terms: tuple[Term[ValueT], ...] | Callable[[], Iterable[Term[ValueT]]]
    #: The total, once it was asked for, of integers; arrays could be changed afterwards.
    _total: int | None

    if not TYPE_CHECKING:

        def __class_getitem__(cls, parameters):
            if not isinstance(parameters, tuple):
                parameters = (parameters, int)
            return super().__class_getitem__(parameters)

    def __init__(
        self,
        unit: type[UnitT],
        title: str,
        terms: Iterable[Term[ValueT]] | Callable[[], Iterable[Term[ValueT]]],
    ) -> None:
        object.__setattr__(self, "unit", unit)
        object.__setattr__(self, "title", title)
        object.__setattr__(self, "_terms", terms if callable(terms) else tuple(terms))
        object.__setattr__(self, "_total", None)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Breakdown is immutable: {name} cannot be set")

    def __reduce__(self) -> tuple[Any, ...]:
        return Breakdown, (self.unit, self.title, self.terms)

    @property
    def terms(self) -> tuple[Term[ValueT], ...]:
        """The leaves, in the order of the model."""
        terms = self._terms
        if not isinstance(terms, tuple):
            terms = tuple(terms())
            object.__setattr__(self, "_terms", terms)
        return terms

    @property
    def total(self) -> ValueT:
        """The sum of all terms: an `int`, or an array where a factor is one."""
        total: Any = self._total
        if total is None:
            total = 0
            for term in self.terms:
                total = total + term.value
            if type(total) is int:
                object.__setattr__(self, "_total", total)
        return cast("ValueT", total)

    def by(self, level: int = 0) -> Mapping[str, ValueT]:
        """Return the sums by the path's element at `level`: 0 is the group, -1 the last one.

        Paths that are too short for a level are together under ``""``.

        >>> from llmcalc import ModelSpec, memory
        >>> spec = ModelSpec.dense(
        ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
        ...     embed_dim=64, inner_dim=128, vocab_size=100,
        ... )
        >>> dict(memory.parameters(spec).by())
        {'embeddings': 6400, 'norms': 320, 'attention': 24576, 'feed_forward': 49152, 'head': 6400}
        """
        return self.regroup(lambda path: path[level] if -len(path) <= level < len(path) else "")

    def regroup(self, key: Callable[[tuple[str, ...]], str]) -> Mapping[str, ValueT]:
        """Return the sums of the terms by ``key(path)``, in the order of first appearance."""
        sums: dict[str, Any] = {}
        for term in self.terms:
            group = key(term.path)
            sums[group] = sums[group] + term.value if group in sums else term.value
        return FrozenMapping(sums)

    def __getitem__(self, group: str) -> Breakdown[UnitT, ValueT]:
        """Return the breakdown of one group (the first element of the paths)."""
        terms = tuple(term for term in self.terms if term.path[0] == group)
        if not terms:
            choice(group, "group", {term.path[0] for term in self.terms})
        return Breakdown(self.unit, f"{self.title}: {group}", terms)

    def __add__(self, other: Breakdown[UnitT, ValueT]) -> Breakdown[UnitT, ValueT]:
        if not isinstance(other, Breakdown):
            return NotImplemented
        if self.unit is not other.unit:
            raise UnitMismatchError(
                f"{self.title} ({self.unit.__name__}) + {other.title} ({other.unit.__name__}): "
                "both must have one unit"
            )
        return Breakdown(self.unit, f"{self.title} + {other.title}", self.terms + other.terms)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Breakdown):
            return NotImplemented
        return self.unit is other.unit and self.terms == other.terms

    # Factors may be arrays, which have no hash.
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"<Breakdown {self.title}: {format_quantity(self.total, self.unit)}, "
            f"{len(self.terms)} terms>"
        )

    def explain(self) -> str:
        """Return the working as text: a line for each term with its factors, then the total.

        An array factor is printed as its range and shape; its elements are in `terms`.
        """
        rows = self._rows()
        width = max((len(name) for name, _, _ in rows), default=0)
        lines = [self.title]
        lines += [f"  {name:<{width}}  {working} = {value}" for name, working, value in rows]
        lines.append(f"  total {format_quantity(self.total, self.unit)}")
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Return the working as a Markdown table."""
        lines = [f"**{self.title}**", "", "| term | working | value |", "| --- | --- | ---: |"]
        lines += [f"| {name} | {working} | {value} |" for name, working, value in self._rows()]
        lines.append(f"| total | | {format_quantity(self.total, self.unit)} |")
        return "\n".join(lines)

    def to_html(self) -> str:
        """Return the working as an HTML table, as notebooks show it."""
        from html import escape

        rows = [*self._rows(), ("total", "", format_quantity(self.total, self.unit))]
        body = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(working)}</td>"
            f"<td style='text-align:right'>{escape(value)}</td></tr>"
            for name, working, value in rows
        )
        return f"<table><caption>{escape(self.title)}</caption>{body}</table>"

    _repr_markdown_ = to_markdown
    _repr_html_ = to_html

    def _rows(self) -> list[tuple[str, str, str]]:
        names = _shortest_names([term.path for term in self.terms])
        plain = self.unit
        return [
            (name, term.working, _value_text(term.value, plain))
            for name, term in zip(names, self.terms, strict=True)
        ]


def _shortest_names(paths: list[tuple[str, ...]]) -> list[str]:
    """Name each path by as few of its last elements as tell all of them apart."""
    deepest = max(map(len, paths), default=0)
    for depth in range(1, deepest + 1):
        if len({path[-depth:] for path in paths}) == len(paths):
            break
    else:
        depth = deepest
    return [".".join(filter(None, path[-depth:])) for path in paths]


def _value_text(value: object, unit: type[Unit]) -> str:
    text = format_quantity(value, unit)
    return text.partition(" (")[0]


def _factor_text(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return format_array(value)
