"""What a step has of everything that costs something: tokens, pairs, slots, experts.

* `Count`: one such number, by its kind and what it is of.
* `Requests`: requests of a step that have the same number of new and past tokens.
* `Workload`: all requests of a step; it gives the value of every count.

A fold states for each item which `Count` its cost grows with, once for a model; a `Workload` then
gives the numbers, for integers and for integer arrays alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import attrs

from llmcalc.boundary import (
    INT64_SAFE,
    choice,
    count,
    is_array,
    largest,
    smaller,
)
from llmcalc.breakdown import Factor
from llmcalc.described import Described
from llmcalc.eager import Eager
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import share

if TYPE_CHECKING:
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


#: What does not depend on the workload.
ONCE: Final = Count("once", "")

#: Every new token.
TOKENS: Final = Count("tokens", "tokens")


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Requests(Described):
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


def experts_touched(
    *,
    num_experts: int,
    experts_per_token: int,
    tokens: Any,
    reads: ExpertReads = "expected",
    held: int | None = None,
) -> Any:
    r"""Return how many distinct experts `tokens` tokens read.

    .. math:: E \left(1 - \left(1 - \tfrac{k}{E}\right)^{T}\right) \quad\text{expected, between}
              \quad k \text{ and } \min(E, k T)

    The expectation is a float, the bounds are integers. `tokens` takes an integer or an array.
    With `held` only the experts of a rank that holds so many count: in expectation their share,
    at the least those for which the others leave no room.

    >>> from llmcalc import roofline
    >>> [
    ...     roofline.experts_touched(num_experts=8, experts_per_token=2, tokens=4, reads=reads)
    ...     for reads in ("fewest", "expected", "most")
    ... ]
    [2, 5.46875, 8]
    """
    choice(reads, "reads", EXPERT_READS)
    own = num_experts if held is None else held
    if reads == "fewest":
        least = experts_per_token - (num_experts - own)
        return smaller(tokens, 1) * max(0, least)
    if reads == "most":
        # No more than all of them, also where the product would be too large for an array.
        return smaller(smaller(tokens, own) * experts_per_token, own)
    missed = 1 - experts_per_token / num_experts
    if is_array(tokens):
        return own * (1 - missed ** tokens.astype("float64"))
    return own * (1 - missed**tokens)


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


def _fetched(one: _One, span: Any) -> Any:
    return (span.present if one.bound else span.fetched)(one.new, one.past)


def _tiled(one: _One, of: Any) -> Any:
    span, tile = of
    if one.bound:
        return -(-one.new // tile) * span.present(one.new, one.past)
    return span.tiled(one.new, one.past, tile)


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
    "rectangle": lambda one, span: one.new * span.present(one.new, one.past),
    "tile rectangle": lambda one, of: -(-one.new // of[1]) * of[0].present(one.new, one.past),
    "tiled": _tiled,
    "present": lambda one, span: span.present(one.new, one.past),
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
    return experts_touched(
        num_experts=experts, experts_per_token=active, tokens=tokens, reads=reads, held=held
    )


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
        if mixed_with != ():
            for one in _checked(mixed_with):
                given += [("batch", one.batch), ("new", one.new), ("past", one.past)]
        self._dealt = replicas, replica
        self._given: list[Any] = [count(value, field) for field, value in given]
        self.shape = _shape(given, self._given)
        # A bound of at least 1 keeps one empty factor from hiding how large the others are.
        self._bounds = [max(1, largest(v)) if is_array(v) else v for v in self._given]

    def values(self, counts: Sequence[Count], total: Callable[[list[Any]], Any]) -> list[Any]:
        """Return the value of each count: integers, arrays of int64, or arrays of Python integers.

        `total` gives the largest sum that is made of values; where that stays below 2**62, arrays
        are of int64.
        """
        if self.shape is None:
            return _totals(counts, self._kinds(self._given, bound=False))
        most = self.most(counts)
        wide = max(total(most), *most, *self._bounds) >= INT64_SAFE
        return _totals(counts, self._kinds(self._typed(wide=wide), bound=False))

    def most(self, counts: Sequence[Count]) -> list[Any]:
        """Return for each count a bound of its elements' values."""
        bound = self.shape is not None
        return _totals(counts, self._kinds(self._bounds, bound=bound))

    def factors(self, count: Count, value: Any) -> tuple[Factor, ...]:
        """Return a value as named factors, broadcast to the shape of all arguments."""
        if count.kind == "once":
            return ()
        if count.kind in _OF_A_STEP or len(self._given) > 3:
            name = count.name if count.kind in _OF_A_STEP else f"{count.name} of all requests"
            return ((self._broadcast(value), name),)
        wide = is_array(value) and value.dtype.kind == "O"
        [one] = self._kinds(self._typed(wide=wide), bound=False)
        each = self._broadcast(_OF_A_REQUEST[count.kind](one, count.of))
        batch = one.joint_batch if count.joint else one.batch
        if type(batch) is int and batch == 1:
            return ((each, count.name),)
        return ((each, count.name), (self._broadcast(batch), "requests"))

    def _broadcast(self, value: Any) -> Any:
        return value if self.shape is None or not is_array(value) else broadcast(value, self.shape)

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


def broadcast(value: Any, shape: tuple[int, ...]) -> Any:
    """Return a number or an array as an array of the shape."""
    import numpy as np

    if is_array(value) and value.shape == shape:
        return value
    return np.broadcast_to(value, shape).copy()


def _checked(mixed_with: object) -> Iterable[Requests]:
    if not isinstance(mixed_with, Sequence):
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
