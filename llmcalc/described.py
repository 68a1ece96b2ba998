"""What the frozen classes of this library share.

* `Described`: how they are shown, compared and hashed: by type and fields.
* `DescribedArrays`: the same, where fields may hold arrays.
* `FrozenMapping`: a small mapping that cannot be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, TypeVar, cast

import attrs

from llmcalc.boundary import same

__all__ = ["Described", "DescribedArrays", "FrozenMapping"]

K = TypeVar("K")
V = TypeVar("V")


class Described:
    """The base of `attrs` classes that are shown, compared and hashed by their fields.

    It stands in for the methods that `attrs` would write for each class: writing those takes
    longer than an answer does. Of a class that is written without `attrs`, each object equals
    itself alone.

    >>> import attrs
    >>> from llmcalc.described import Described
    >>> @attrs.frozen(repr=False, eq=False)
    ... class Pair(Described):
    ...     left: int
    ...     right: int
    >>> Pair(1, 2), Pair(1, 2) == Pair(1, 2), Pair(1, 2) == Pair(2, 1)
    (Pair(left=1, right=2), True, False)
    """

    __slots__ = ()

    def _values(self) -> tuple[Any, ...]:
        cls = type(self)
        read = _READS.get(cls)
        if read is None:
            read = _READS[cls] = _reading(cls)
        return read(self)

    def __repr__(self) -> str:
        cls = type(self)
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in (attrs.fields(cast("type[Any]", cls)) if attrs.has(cls) else ())
            if field.repr
        ]
        return f"{cls.__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Described) or type(self) is not type(other):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))


class DescribedArrays(Described):
    """The base of those whose fields may hold arrays: ``==`` always gives one bool.

    Arrays are equal when their shapes and all their elements are.

    >>> import attrs, numpy as np
    >>> from llmcalc.described import DescribedArrays
    >>> @attrs.frozen(repr=False, eq=False)
    ... class Pair(DescribedArrays):
    ...     left: object
    ...     right: object
    >>> Pair(np.array([1, 2]), 3) == Pair(np.array([1, 2]), 3), Pair(np.array([3]), 3) == Pair(3, 3)
    (True, False)
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, DescribedArrays) or type(self) is not type(other):
            return NotImplemented
        return all(map(same, self._values(), other._values()))

    def __hash__(self) -> int:
        return super().__hash__()


class FrozenMapping(Mapping[K, V]):
    """A small mapping that cannot be changed: it can be pickled, and hashed where its values can.

    It equals every mapping of the same keys with equal values, which may be arrays.

    >>> from llmcalc.described import FrozenMapping
    >>> FrozenMapping({"head": 6400}), FrozenMapping({"head": 6400}) == {"head": 6400}
    ({'head': 6400}, True)
    """

    __slots__ = ("_held",)

    def __init__(self, values: Mapping[K, V]) -> None:
        self._held = dict(values)

    def __getitem__(self, key: K) -> V:
        return self._held[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self._held.keys() == other.keys() and all(
            same(value, other[key]) for key, value in self._held.items()
        )

    def __hash__(self) -> int:
        return hash(frozenset(self._held.items()))

    def __repr__(self) -> str:
        return repr(self._held)

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenMapping, (self._held,)


def _reading(cls: type[Any]) -> Callable[[object], tuple[Any, ...]]:
    """Return a function that reads the fields that equality rests on."""
    if not attrs.has(cls):
        return lambda described: (object.__hash__(described),)
    names = tuple(field.name for field in attrs.fields(cls) if field.eq)
    if len(names) > 1:
        return attrgetter(*names)
    return lambda described: tuple([getattr(described, name) for name in names])


_READS: dict[type[Any], Callable[[object], tuple[Any, ...]]] = {}
