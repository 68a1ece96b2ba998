"""The requests of a step, and the value of every count that a fold grows with.

* `Requests`: requests of a step that have the same number of new and past tokens.
* `Workload`: all requests of a step, or what requests hold.
* `Values`: the values of counts, and sums that are made of them.
* `evaluate`: a figure of values, computed in blocks that stay in the cache.

Integers and integer arrays go the same way. Arrays are computed in int64 where no value and no sum
can reach 2**62, and otherwise as arrays of Python integers. What has nothing of the past tokens is
summed first, so that many points can have it in common: a figure is ``finish(begin, ...)``, with
``begin`` what does not grow with the past tokens, in the order of the model, and ``finish`` adds
the rest, in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from math import prod
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from llmcalc.boundary import count, integer_type, is_array, is_wide, largest_element
from llmcalc.breakdown import Factor
from llmcalc.described import DescribedArrays
from llmcalc.errors import InvalidValueError
from llmcalc.folds.counts import Count, Request, Sums, of_a_request, total
from llmcalc.layouts import requests_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmcalc.boundary import Figure, Int, IntArray, Number

    #: Arguments by their names, before they are checked.
    _Given: TypeAlias = list[tuple[str, Int | IntArray]]

__all__ = ["NOTHING", "Index", "Requests", "Values", "Workload", "broadcast", "evaluate"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Requests(DescribedArrays):
    """`batch` requests of a step, in each of which `new` tokens follow `past` ones.

    A step that serves several kinds of requests at once has one of these for each (`mixed_with`
    of `llmcalc.roofline.flops` and the functions beside it).

    >>> from llmcalc.roofline import Requests
    >>> Requests(batch=1, new=512, past=0)
    Requests(batch=1, new=512, past=0)
    """

    batch: Int | IntArray
    new: Int | IntArray
    past: Int | IntArray


#: Where in an array a block of it lies.
Index: TypeAlias = tuple[slice, ...]

#: Arrays of so many elements stay in a core's cache, a few at a time.
_BLOCK: Final = 2**14

#: So many times fewer workloads are worth to be computed apart.
_FAR_FEWER: Final = 8

#: To copy more elements than this would take as long as an answer.
_COPIED: Final = 2**16

#: What there are of requests of one kind.
_ARGUMENTS: Final = ("batch", "new", "past")


class Workload:
    """The requests of a step: of one kind, or of several with `mixed_with`.

    Each argument is an integer or an array of integers; `shape` is the one that all of them
    broadcast to, `None` without arrays. Arrays of up to 65 536 elements are copied. Larger ones are
    read where they lie: they must stay as they are while answers are in use. `replicas` share the
    requests out, and counts that are not of all of them are those of number `replica`.
    """

    __slots__ = ("_bounds", "_given", "_replicas", "_scalar", "shape")

    shape: tuple[int, ...] | None
    _given: list[Number]
    #: Of each argument a bound of its elements.
    _bounds: list[Any]

    def __init__(
        self,
        batch: Int | IntArray,
        new: Int | IntArray,
        past: Int | IntArray,
        mixed_with: Sequence[Requests] = (),
        *,
        replicas: int = 1,
        replica: int = 0,
    ) -> None:
        given: _Given = [("batch", batch), ("new", new), ("past", past)]
        if type(mixed_with) is not tuple or mixed_with:
            for number, one in enumerate(_checked(mixed_with)):
                place = f"mixed_with[{number}]"
                given += [(f"{place}.{name}", getattr(one, name)) for name in _ARGUMENTS]
        self._begin(given, [count(value, field) for field, value in given], replicas, replica)

    @classmethod
    def holding(
        cls,
        batch: Int | IntArray,
        context: Int | IntArray,
        *,
        replicas: int = 1,
        replica: int = 0,
    ) -> Workload:
        """Return `batch` requests that hold `context` tokens each, between two steps."""
        made = cls.__new__(cls)
        given: _Given = [("context", context), ("batch", batch)]
        tokens, requests = count(context, "context"), count(batch, "batch")
        made._begin(given, [requests, 0, tokens], replicas, replica)  # noqa: SLF001  # its own
        return made

    def _begin(
        self,
        given: _Given,
        checked: list[Number],
        replicas: int,
        replica: int,
    ) -> None:
        self._replicas = replicas, replica
        self._given = self._bounds = checked
        self._scalar: list[Request] | None = None
        self.shape = _shape(given, checked)
        if self.shape is not None:
            most = [largest_element(v) if is_array(v) else v for v in checked]
            self._given = [_own(v) if is_array(v) else v for v in checked]
            # At least 1 keeps one empty factor from hiding how large the others are.
            self._bounds = [max(1, bound) for bound in most]

    def check_at_most(self, most: int) -> None:
        """Refuse an argument above `most`, which is one below a power of two."""
        for place, bound in enumerate(self._bounds):
            if bound > most:
                kind, number = divmod(place, len(_ARGUMENTS))
                name = _ARGUMENTS[number]
                field = f"mixed_with[{kind - 1}].{name}" if kind else name
                raise InvalidValueError(field, bound, f"must be below 2**{most.bit_length()}")

    def values(self, counts: Sequence[Count], most: Callable[[list[Any]], Any]) -> Values:
        """Return the value of each count.

        `most` gives the largest sum that is made of values, from a bound of each.
        """
        if self.shape is None:
            return Values(self, counts, wide=False)
        bounds = self.most(counts)
        wide = is_wide(most(bounds), *bounds, *self._bounds)
        return Values(self, counts, wide=wide)

    def requests(self, *, wide: bool) -> list[Request]:
        """Return the kinds of requests, arrays as int64 or, where `wide`, of Python integers."""
        if self.shape is not None:
            return self._kinds(self._typed(wide=wide), bound=False)
        if self._scalar is None:  # the same for all folds
            self._scalar = self._kinds(self._given, bound=False)
        return self._scalar

    def block(self, index: Index) -> Workload:
        """Return some of the elements of a workload of arrays."""
        import numpy as np

        shape = self.shape or ()
        given = [_block(value, shape, index) if is_array(value) else value for value in self._given]
        sizes = [value.shape for value in given if is_array(value)]
        return self._like(given, np.broadcast_shapes(*sizes))

    def early(self) -> tuple[Workload, IntArray | None] | None:
        """Return far fewer workloads without past tokens, and which of them each of these is."""
        import numpy as np

        if self.shape is None or len(self._given) > 3:
            return None
        batch, new, _ = self._given
        few = prod(self.shape) // _FAR_FEWER
        arrays = [value for value in (batch, new) if is_array(value)]
        shape = np.broadcast_shapes(*(value.shape for value in arrays))
        if prod(shape) <= few:
            return self._like([batch, new, 0], shape), None
        if len(arrays) != 1 or largest_element(arrays[0]) >= few:
            return None
        table = np.arange(largest_element(arrays[0]) + 1)
        given = [table if is_array(value) else value for value in (batch, new)]
        return self._like([*given, 0], table.shape), arrays[0].astype(np.int64, copy=False)

    def _like(self, given: list[Number], shape: tuple[int, ...]) -> Workload:
        """Return a workload of arguments that are checked and not larger than these."""
        made = copy(self)
        made._given, made.shape = given, shape  # noqa: SLF001  # its own class
        return made

    def most(self, counts: Sequence[Count]) -> list[Any]:
        """Return for each count a bound of its elements' values."""
        kinds = self._kinds(self._bounds, bound=self.shape is not None)
        return [total(count, kinds) for count in counts]

    def factors(self, count: Count, value: Figure, *, wide: bool) -> tuple[Factor, ...]:
        """Return a value as named factors, broadcast to the shape of all arguments."""
        if count.kind == "once":
            return ()
        of_one = of_a_request(count)
        if of_one is None or len(self._given) > 3:
            name = count.name if of_one is None else f"{count.name} of all requests"
            return ((self._broadcast(value), name),)
        [one] = self.requests(wide=wide)
        each = self._broadcast(of_one(one, count.of))
        batch = one.all_batch if count.all_replicas else one.batch
        if type(batch) is int and batch == 1:
            return ((each, count.name),)
        return ((each, count.name), (self._broadcast(batch), "requests"))

    def _broadcast(self, value: Figure) -> Figure:
        return broadcast(value, self.shape) if is_array(value) else value

    def _typed(self, *, wide: bool) -> list[Number]:
        """Return the arguments, arrays as int64 or, where they are `wide`, of Python integers."""
        dtype = integer_type(wide=wide)
        return [v.astype(dtype, copy=False) if is_array(v) else v for v in self._given]

    def _kinds(self, given: list[Number], *, bound: bool) -> list[Request]:
        replicas, replica = self._replicas
        kinds = []
        for first in range(0, len(given), 3):
            batch, new, past = given[first : first + 3]
            own = requests_of(batch, replicas, replica)
            kinds.append(Request(own, batch, new, past, bound=bound))
        return kinds


class Values:
    """The values of counts: integers, or arrays, which broadcast to the `shape` of all arguments.

    Arrays are of int64, or of Python integers where these are `wide`; they are made when they are
    first needed.
    """

    __slots__ = ("_counts", "_found", "_kinds", "_workload", "shape", "wide")

    shape: tuple[int, ...] | None
    wide: bool

    def __init__(self, workload: Workload, counts: Sequence[Count], *, wide: bool) -> None:
        self.shape, self.wide = workload.shape, wide
        self._workload, self._counts = workload, counts
        self._kinds: list[Request] | None = None
        if self.shape is None:
            kinds = workload.requests(wide=wide)
            self._found: list[Any] = [total(count, kinds) for count in counts]
        else:
            self._found = [None] * len(counts)

    @property
    def each(self) -> list[Figure]:
        """The value of every count."""
        return [self._value(number) for number in range(len(self._counts))]

    def _value(self, number: int) -> Any:
        found = self._found[number]
        if found is None:
            if self._kinds is None:
                self._kinds = self._workload.requests(wide=self.wide)
            found = self._found[number] = total(self._counts[number], self._kinds)
        return found

    def sum(self, sums: Sums, begin: Figure | None = None) -> Any:
        """Return a sum of so much of each count, in any shape that broadcasts to that of all.

        It may `begin` with what was summed before.
        """
        if self.shape is None:
            found, amount = self._found, 0 if begin is None else begin
            for number, size in sums:
                amount += size * found[number]
            return amount
        whole: Any = begin
        for number, size in sums:
            value = self._value(number)
            part = value if size == 1 else size * value
            whole = part if whole is None else whole + part
        if self.wide and is_array(whole):
            parts = [begin, *[self._value(number) for number, _ in sums]]
            if any(is_array(part) and part.dtype.kind == "f" for part in parts):
                return whole.astype("float64")  # of means
        return 0 if whole is None else whole

    def halves(self, sums: Sums) -> tuple[Sums, Sums]:
        """Return the part of a sum that has nothing of the past tokens, and the rest."""
        early = tuple(one for one in sums if not self._counts[one[0]].is_late)
        return early, tuple(one for one in sums if self._counts[one[0]].is_late)

    def total(self, sums: Sums) -> Any:
        """Return such a sum in the shape of all arguments."""
        if self.shape is None:
            return self.sum(sums)
        early, late = self.halves(sums)
        return evaluate(
            [self],
            lambda own: own.sum(early) if early else None,
            lambda begin, own: own.sum(late, begin),
        )

    def whole(self, value: Any) -> Figure:
        """Return a figure in the shape of all arguments."""
        return broadcast(value, self.shape, wide=self.wide)

    def block(self, index: Index) -> Values:
        """Return the values of some of the elements."""
        return Values(self._workload.block(index), self._counts, wide=self.wide)

    def early(self) -> tuple[Values, IntArray | None] | None:
        """Return the values for far fewer workloads, which have all but the past tokens of these.

        Those of a workload are at the element that the array says, or where there is none at its
        own after broadcasting. Returns `None` where there are not far fewer.
        """
        found = None if self.wide else self._workload.early()
        return found and (Values(found[0], self._counts, wide=self.wide), found[1])


def evaluate(
    values: Sequence[Values], begin: Callable[..., object], finish: Callable[..., Any]
) -> Any:
    """Return ``finish(begin(*values), *values)`` in the shape of all arguments.

    `begin` has nothing of the past tokens: an array, a tuple of them, or `None`. Where far fewer
    points differ in it, it is computed for these alone. The rest is computed a block at a time,
    so that what it is made of stays in the cache; each point has what it has alone.
    """
    shape = values[0].shape
    if shape is None:
        return finish(begin(*values), *values)
    import numpy as np

    wide = any(one.wide for one in values)
    few = [one.early() for one in values]
    table, at = None, None
    if not wide and all(few):
        table = begin(*[one[0] for one in few if one])
        at = few[0][1] if few[0] else None
        at = None if at is None else np.broadcast_to(at, shape)
    axis = max(range(len(shape)), key=shape.__getitem__, default=0)
    length = shape[axis] if shape else 1
    each = max(1, _BLOCK * length // max(1, prod(shape)))
    if each >= length or wide:
        part = begin(*values) if table is None else _at(table, at, shape, ...)
        return broadcast(finish(part, *values), shape, wide=wide)
    found: NDArray[Any] | None = None
    for start in range(0, length, each):
        index = (*[slice(None)] * axis, slice(start, start + each))
        own = [one.block(index) for one in values]
        first = begin(*own) if table is None else _at(table, at, shape, index)
        part = finish(first, *own)
        if found is None:
            found = np.empty(shape, dtype=np.asarray(part).dtype)
        found[index] = part
    return found


def _at(table: Any, at: Any, shape: tuple[int, ...], index: Any) -> Any:
    """Return what stands in a table for the points of a block."""
    import numpy as np

    if isinstance(table, tuple):
        return tuple([_at(one, at, shape, index) for one in table])
    if table is None or not np.ndim(table):
        return table
    return np.broadcast_to(table, shape)[index] if at is None else table[at[index]]


def _block(array: IntArray, shape: tuple[int, ...], index: Index) -> IntArray:
    """Return the elements of an array that a block of the shape that it broadcasts to has."""
    missing = len(shape) - array.ndim
    own = [
        slice(None) if size == 1 else part
        for size, part in zip(array.shape, index[missing:], strict=False)
    ]
    return array[tuple(own)]


def broadcast(value: Figure, shape: tuple[int, ...] | None, *, wide: bool = False) -> Figure:
    """Return a number or an array as an array of the shape; as it is without a shape.

    An integer gives an array of int64, or of Python integers where they are `wide`.
    """
    # A view that repeats elements is not writable. It is copied, for users may write to results.
    if shape is None or (is_array(value) and value.shape == shape and value.flags.writeable):
        return value
    import numpy as np

    dtype = integer_type(wide=wide) if type(value) is int else None
    return np.broadcast_to(np.asarray(value, dtype=dtype), shape).copy()


def _checked(mixed_with: object) -> Iterable[Requests]:
    if not isinstance(mixed_with, Sequence) or isinstance(mixed_with, str):
        raise InvalidValueError("mixed_with", mixed_with, "must be a sequence of Requests")
    for one in mixed_with:
        if not isinstance(one, Requests):
            raise InvalidValueError("mixed_with", one, "must hold Requests")
    return mixed_with


def _own(array: IntArray) -> IntArray:
    """Return a small array as a copy, which nobody else can change, and a large one as a view.

    Neither can be written to: results that are made of it are copies where users may write.
    """
    own = array.copy() if array.size <= _COPIED else array.view()
    own.flags.writeable = False
    return own


def _shape(given: _Given, values: list[Number]) -> tuple[int, ...] | None:
    if all(type(value) is int for value in values):
        return None
    import numpy as np

    try:
        return np.broadcast_shapes(*(value.shape for value in values if is_array(value)))
    except ValueError:
        shapes = {field: np.shape(value) for field, value in given}
        fields = ", ".join(shapes)
        raise InvalidValueError(fields, shapes, "shapes must broadcast") from None


#: No requests: what weights take does not depend on any.
NOTHING: Final = Workload(0, 0, 0)
