"""What a step has of everything that costs something: tokens, pairs, slots, experts.

* `Count`: one such number, by its kind and what it is of.
* `Requests`: requests of a step that have the same number of new and past tokens.
* `experts_touched`: how many distinct experts are read; `ExpertReads` names bounds and mean.
* `Workload`: all requests of a step; it gives the value of every count.
* `Values`: these values, and sums that are made of them.

A fold states for each item which `Count` its cost grows with, once for a model; a `Workload` then
gives the numbers, for integers and for integer arrays alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from math import prod
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, overload

import attrs

from llmcalc.boundary import (
    INT64_SAFE,
    at_most,
    choice,
    count,
    is_array,
    larger,
    largest,
    smaller,
    whole_number,
)
from llmcalc.breakdown import Factor
from llmcalc.described import DescribedArrays
from llmcalc.eager import Eager
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import share
from llmcalc.spec.spans import Remainder

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    from llmcalc.boundary import Int, IntArray

__all__ = ["ExpertReads", "Requests", "experts_touched"]

#: How many distinct experts a step reads: the exact bounds, or the mean where every token picks
#: its experts uniformly at random.
ExpertReads: TypeAlias = Literal["fewest", "expected", "most"]

EXPERT_READS: Final = ("fewest", "expected", "most")


class Count(NamedTuple):
    """What a cost grows with: its `kind` (`_OF_A_REQUEST`, `_OF_A_STEP`) and what it is `of`.

    `name` is what a printed working calls it. A `joint` count is of the requests of all replicas
    that compute together, another one of those of one replica.
    """

    kind: str
    name: str
    of: Any = None
    joint: bool = False

    @property
    def is_late(self) -> bool:
        """Whether it grows with the past tokens."""
        return self.kind not in _WITHOUT_PAST


#: A sum: how much of each count, by its number.
Sums: TypeAlias = tuple[tuple[int, int], ...]

#: Kinds of counts that have nothing of the past tokens.
_WITHOUT_PAST: Final = frozenset({"once", "tokens", "logits", "touched", "assigned"})

#: What does not depend on the workload.
ONCE: Final = Count("once", "")

#: Every new token.
TOKENS: Final = Count("tokens", "tokens")


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


@overload
def experts_touched(
    *,
    num_experts: Int,
    experts_per_token: Int,
    tokens: Int,
    reads: Literal["fewest", "most"],
    held: Int | None = None,
) -> int: ...
@overload
def experts_touched(
    *,
    num_experts: Int,
    experts_per_token: Int,
    tokens: Int,
    reads: Literal["expected"] = "expected",
    held: Int | None = None,
) -> float: ...
@overload
def experts_touched(
    *,
    num_experts: Int,
    experts_per_token: Int,
    tokens: IntArray,
    reads: Literal["fewest", "most"],
    held: Int | None = None,
) -> IntArray: ...
@overload
def experts_touched(
    *,
    num_experts: Int,
    experts_per_token: Int,
    tokens: IntArray,
    reads: Literal["expected"] = "expected",
    held: Int | None = None,
) -> NDArray[floating[Any]]: ...
def experts_touched(
    *,
    num_experts: Int,
    experts_per_token: Int,
    tokens: Int | IntArray,
    reads: ExpertReads = "expected",
    held: Int | None = None,
) -> Any:
    r"""Return how many distinct experts `tokens` tokens read.

    .. math:: E \left(1 - \left(1 - \tfrac{k}{E}\right)^{T}\right) \quad\text{expected, between}
              \quad k \text{ and } \min(E, k T)

    The expectation is a float, the bounds are integers. `tokens` takes an integer or an array.
    With `held` only the experts of a rank that holds so many count: in expectation their share,
    at the least those for which the others leave no room. Raises `llmcalc.LlmcalcError` where a
    token would need more experts than there are, or a rank would hold more.

    >>> from llmcalc import roofline
    >>> [
    ...     roofline.experts_touched(num_experts=8, experts_per_token=2, tokens=4, reads=reads)
    ...     for reads in ("fewest", "expected", "most")
    ... ]
    [2, 5.46875, 8]
    """
    choice(reads, "reads", EXPERT_READS)
    experts = whole_number(num_experts, "num_experts", minimum=1)
    used = whole_number(experts_per_token, "experts_per_token", minimum=1)
    own = experts if held is None else whole_number(held, "held")
    for field, number in (("experts_per_token", used), ("held", own)):
        if number > experts:
            raise InvalidValueError(field, number, f"must be at most num_experts ({experts})")
    asked: Any = count(tokens, "tokens")
    if is_array(asked) and asked.dtype.kind != "O":
        asked = asked.astype("int64")
    return _experts_read(asked, experts, used, own, reads)


def _experts_read(tokens: Any, experts: int, used: int, own: int, reads: ExpertReads) -> Any:
    """Give what `experts_touched` gives, without its checks."""
    fewest = smaller(tokens, 1) * max(0, used - (experts - own))
    if reads == "fewest":
        return fewest
    most = at_most(own, tokens, used)
    if reads == "most":
        return most
    missed = 1 - used / experts
    exponent = smaller(tokens, _EVERY_EXPERT)
    if not is_array(tokens):
        # Rounding must not take the mean past the bounds.
        return float(max(fewest, min(own * (1 - missed**exponent), most)))
    mean = own * (1 - missed ** exponent.astype("float64"))
    return larger(fewest.astype("float64"), smaller(mean, most.astype("float64")))


#: So many tokens leave out no expert, to the precision of any float.
_EVERY_EXPERT: Final = 2**62


class _One:
    """One kind of requests, from which the counts of a single request are computed.

    With `bound` every count is at least that of any request that is not larger.
    """

    __slots__ = ("batch", "bound", "eager", "joint_batch", "new", "past")

    def __init__(self, batch: Any, joint_batch: Any, new: Any, past: Any, *, bound: bool) -> None:
        self.batch, self.joint_batch = batch, joint_batch
        self.new, self.past, self.bound = new, past, bound
        self.eager = Eager(new, past, bound)


def _pairs(one: _One, span: Any) -> Any:
    return (span.most_pairs if one.bound else span.pairs)(one.new, one.past)


def _present(one: _One, span: Any) -> Any:
    if one.bound and isinstance(span, Remainder):  # of which a longer context may leave less
        return smaller(one.new + one.past, span.size - 1)
    return span.present(one.new, one.past)


def _fetched(one: _One, span: Any) -> Any:
    return _present(one, span) if one.bound else span.fetched(one.new, one.past)


def _tiled(one: _One, of: Any) -> Any:
    return _by_tile(one, of) if one.bound else of[0].tiled(one.new, one.past, of[1])


def _by_tile(one: _One, of: Any) -> Any:
    span, tile = of
    return -(-one.new // tile) * _present(one, span)


def _dealt(one: _One, of: Any) -> Any:
    """Give the share of slots that falls to one of the ranks that deal them out."""
    whole, ranks, rank = of
    return share(_OF_A_REQUEST[whole.kind](one, whole.of), ranks, rank)


#: Counts of a single request. ``"logits"`` are its last token, if it has any; ``"rectangle"`` are
#: the pairs of every query with every key at hand; ``"outputs"`` to ``"across"`` are what
#: transformers computes.
_OF_A_REQUEST: Final[Mapping[str, Callable[[_One, Any], Any]]] = {
    "tokens": lambda one, _: one.new,
    "logits": lambda one, _: smaller(one.new, 1),
    "pairs": _pairs,
    "rectangle": lambda one, span: one.new * _present(one, span),
    "tile rectangle": _by_tile,
    "tiled": _tiled,
    "present": _present,
    "fetched": _fetched,
    "written": lambda one, span: one.new if one.bound else span.written(one.new, one.past),
    "outputs": lambda one, convolution: one.eager.outputs(convolution),
    "attended": lambda one, span: one.eager.attended(span),
    "state": lambda one, scan: one.eager.state(scan),
    "within": lambda one, scan: one.eager.within(scan),
    "across": lambda one, scan: one.eager.across(scan),
    "dealt": _dealt,
}


def _touched(tokens: Any, of: Any, _bound: bool) -> Any:
    experts, active, held, reads = of
    return _experts_read(tokens, experts, active, held, reads)


def _assigned(tokens: Any, of: Any, bound: bool) -> Any:
    """Give the choices of experts that fall to one rank, where all experts get equally many."""
    experts, active, before, held = of
    choices = tokens * active
    if bound:  # of what is divided below
        return choices * experts
    return -(-choices * (before + held) // experts) + (choices * -before // experts)


#: Counts of a whole step, from the number of its tokens.
_OF_A_STEP: Final[Mapping[str, Callable[[Any, Any, bool], Any]]] = {
    "touched": _touched,
    "assigned": _assigned,
}


class Values:
    """The values of counts: integers, or arrays, which broadcast to the `shape` of all arguments.

    Arrays are of int64, or of Python integers where these are `wide`; they are made when they are
    first needed.
    """

    __slots__ = ("_counts", "_found", "_kinds", "_workload", "shape", "wide")

    def __init__(self, workload: Workload, counts: Sequence[Count], *, wide: bool) -> None:
        self.shape, self.wide = workload.shape, wide
        self._workload, self._counts = workload, counts
        self._kinds = workload.kinds(wide=wide)
        alone = self.shape is None
        self._found: list[Any] = _totals(counts, self._kinds) if alone else [None] * len(counts)

    @property
    def each(self) -> list[Any]:
        """The value of every count."""
        return [self._value(number) for number in range(len(self._counts))]

    def _value(self, number: int) -> Any:
        found = self._found[number]
        if found is None:
            found = self._found[number] = _total(self._counts[number], self._kinds)
        return found

    def sum(self, sums: Sums, begin: Any = None) -> Any:
        """Return a sum of so much of each count, in any shape that broadcasts to that of all.

        Where it is of arrays, it may `begin` with what was summed before.
        """
        if self.shape is None:
            found, amount = self._found, 0
            for number, size in sums:
                amount += size * found[number]
            return amount
        total: Any = begin
        for number, size in sums:
            value = self._value(number)
            part = value if size == 1 else size * value
            total = part if total is None else total + part
        if self.wide and is_array(total) and any(self._is_mean(number) for number, _ in sums):
            return total.astype("float64")
        return 0 if total is None else total

    def _is_mean(self, number: int) -> bool:
        value = self._value(number)
        return is_array(value) and value.dtype.kind == "f"

    def total(self, sums: Sums) -> Any:
        """Return such a sum in the shape of all arguments."""
        if self.shape is None:
            return self.sum(sums)
        return by_blocks(self.shape, [self], self.of_blocks(sums))

    def of_blocks(self, sums: Sums) -> Callable[[Index, Values], Any]:
        """Return such a sum as a function of a block and the values there.

        What does not grow with the past tokens is summed once, where that is far less.
        """
        import numpy as np

        late = tuple(one for one in sums if self._counts[one[0]].is_late)
        before = sums[: len(sums) - len(late)]
        few = None if self.wide or not before or sums != before + late else self.early()
        if few is None:
            return lambda _, part: part.sum(sums)
        table = np.broadcast_to(few[0].sum(before), few[0].shape or ())
        if few[1] is None:
            whole = np.broadcast_to(table, self.shape or ())
            return lambda index, part: part.sum(late, whole[index])
        at = np.broadcast_to(few[1], self.shape or ())
        return lambda index, part: part.sum(late, table[at[index]])

    def whole(self, value: Any) -> Any:
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
        found = self._workload.early()
        return found and (Values(found[0], self._counts, wide=self.wide), found[1])


#: Where in an array a block of it lies.
Index: TypeAlias = tuple[slice, ...]

#: Arrays of so many elements stay in a core's cache, a few at a time.
_BLOCK: Final = 2**14

#: So many times fewer workloads are worth to be computed apart.
_FAR_FEWER: Final = 8


def by_blocks(shape: tuple[int, ...], values: Sequence[Values], figure: Callable[..., Any]) -> Any:
    """Return the figure that `figure` gives of an index and of values there, in the whole shape.

    It is computed a block at a time, so that what it is made of stays in the cache.
    """
    import numpy as np

    axis = max(range(len(shape)), key=shape.__getitem__, default=0)
    length = shape[axis] if shape else 1
    each = max(1, _BLOCK * length // max(1, prod(shape)))
    if each >= length or any(one.wide for one in values):
        return broadcast(figure((), *values), shape, wide=any(one.wide for one in values))
    found: Any = None
    for start in range(0, length, each):
        index = (*[slice(None)] * axis, slice(start, start + each))
        part = figure(index, *[one.block(index) for one in values])
        if found is None:
            found = np.empty(shape, dtype=np.asarray(part).dtype)
        found[index] = part
    return found


class Workload:
    """The requests of a step: of one kind, or of several with `mixed_with`.

    Each argument is an integer or an array of integers; `shape` is what all of them broadcast to,
    `None` without arrays. `replicas` share the requests out, and counts that are not joint are
    those of number `replica`.
    """

    __slots__ = ("_bounds", "_dealt", "_given", "shape")

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
        given: list[Any] = [("batch", batch), ("new", new), ("past", past)]
        if type(mixed_with) is not tuple or mixed_with:
            for number, one in enumerate(_checked(mixed_with)):
                place = f"mixed_with[{number}]"
                given += [(f"{place}.{name}", getattr(one, name)) for name in _ARGUMENTS]
        self._dealt = replicas, replica
        self._given: list[Any] = [count(value, field) for field, value in given]
        self.shape = _shape(given, self._given)
        self._bounds = self._given
        if self.shape is not None:
            # At least 1 keeps one empty factor from hiding how large the others are.
            self._bounds = [max(1, largest(v) if is_array(v) else v) for v in self._given]

    def values(self, counts: Sequence[Count], total: Callable[[list[Any]], Any]) -> Values:
        """Return the value of each count.

        `total` gives the largest sum that is made of values; where that stays below 2**62, arrays
        are of int64.
        """
        if self.shape is None:
            return Values(self, counts, wide=False)
        most = self.most(counts)
        wide = max(total(most), *most, *self._bounds) >= INT64_SAFE
        return Values(self, counts, wide=wide)

    def kinds(self, *, wide: bool) -> list[_One]:
        """Return the kinds of requests, arrays as int64 or, where `wide`, of Python integers."""
        return self._kinds(self._typed(wide=wide), bound=False)

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
        if len(arrays) != 1 or largest(arrays[0]) >= few:
            return None
        table = np.arange(largest(arrays[0]) + 1)
        given = [table if is_array(value) else value for value in (batch, new)]
        return self._like([*given, 0], table.shape), arrays[0].astype(np.int64, copy=False)

    def _like(self, given: list[Any], shape: tuple[int, ...]) -> Workload:
        """Return a workload of arguments that are checked and not larger than these."""
        made = copy(self)
        made._given, made.shape = given, shape  # noqa: SLF001  # its own class
        return made

    def most(self, counts: Sequence[Count]) -> list[Any]:
        """Return for each count a bound of its elements' values."""
        bound = self.shape is not None
        return _totals(counts, self._kinds(self._bounds, bound=bound))

    def factors(self, count: Count, value: Any, *, wide: bool) -> tuple[Factor, ...]:
        """Return a value as named factors, broadcast to the shape of all arguments."""
        if count.kind == "once":
            return ()
        if count.kind in _OF_A_STEP or len(self._given) > 3:
            name = count.name if count.kind in _OF_A_STEP else f"{count.name} of all requests"
            return ((self._broadcast(value), name),)
        [one] = self._kinds(self._typed(wide=wide), bound=False)
        each = self._broadcast(_OF_A_REQUEST[count.kind](one, count.of))
        batch = one.joint_batch if count.joint else one.batch
        if type(batch) is int and batch == 1:
            return ((each, count.name),)
        return ((each, count.name), (self._broadcast(batch), "requests"))

    def _broadcast(self, value: Any) -> Any:
        return broadcast(value, self.shape) if is_array(value) else value

    def _typed(self, *, wide: bool) -> list[Any]:
        """Return the arguments, arrays as int64 or, where they are `wide`, of Python integers."""
        if self.shape is None:
            return self._given
        import numpy as np

        dtype = np.object_ if wide else np.int64
        return [v.astype(dtype, copy=False) if is_array(v) else v for v in self._given]

    def _kinds(self, given: list[Any], *, bound: bool) -> list[_One]:
        replicas, replica = self._dealt
        kinds = []
        for first in range(0, len(given), 3):
            batch, new, past = given[first : first + 3]
            own = batch if replicas == 1 else share(batch, replicas, replica)
            kinds.append(_One(own, batch, new, past, bound=bound))
        return kinds


def _block(array: IntArray, shape: tuple[int, ...], index: Index) -> IntArray:
    """Return the elements of an array that a block of the shape that it broadcasts to has."""
    missing = len(shape) - array.ndim
    own = [
        slice(None) if size == 1 else part
        for size, part in zip(array.shape, index[missing:], strict=False)
    ]
    return array[tuple(own)]


def _totals(counts: Sequence[Count], kinds: list[_One]) -> list[Any]:
    """Return the value of each count for all requests together."""
    return [_total(count, kinds) for count in counts]


def _total(count: Count, kinds: list[_One]) -> Any:
    kind, _, of, joint = count
    if kind == "once":
        return 1
    each = _OF_A_REQUEST.get(kind)
    if each is None:
        tokens = _total(TOKENS._replace(joint=joint), kinds)
        return _OF_A_STEP[kind](tokens, of, kinds[0].bound)
    if len(kinds) == 1:
        [one] = kinds
        return each(one, of) * (one.joint_batch if joint else one.batch)
    return sum([each(one, of) * (one.joint_batch if joint else one.batch) for one in kinds])


def broadcast(value: Any, shape: tuple[int, ...] | None, *, wide: bool = False) -> Any:
    """Return a number or an array as an array of the shape; as it is without a shape.

    An integer gives an array of int64, or of Python integers where they are `wide`.
    """
    # A view that repeats elements is not writable. It is copied, for users may write to results.
    if shape is None or (is_array(value) and value.shape == shape and value.flags.writeable):
        return value
    import numpy as np

    dtype = (np.object_ if wide else np.int64) if type(value) is int else None
    return np.broadcast_to(np.asarray(value, dtype=dtype), shape).copy()


#: What there are of requests of one kind.
_ARGUMENTS: Final = ("batch", "new", "past")


def _checked(mixed_with: object) -> Iterable[Requests]:
    if not isinstance(mixed_with, Sequence) or isinstance(mixed_with, str):
        raise InvalidValueError("mixed_with", mixed_with, "must be a sequence of Requests")
    for one in mixed_with:
        if not isinstance(one, Requests):
            raise InvalidValueError("mixed_with", one, "must hold Requests")
    return mixed_with


def _shape(given: list[Any], values: list[Any]) -> tuple[int, ...] | None:
    if not any(map(is_array, values)):
        return None
    import numpy as np

    try:
        return np.broadcast_shapes(*(value.shape for value in values if is_array(value)))
    except ValueError:
        shapes = {field: np.shape(value) for field, value in given}
        fields = ", ".join(shapes)
        raise InvalidValueError(fields, shapes, "shapes must broadcast") from None
