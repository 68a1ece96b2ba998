"""What costs grow with: tokens, pairs, slots, experts touched, once.

* `Count`: one such number, by its kind and what it is of.
* `Request`: one kind of requests, from which the counts of a single request are computed.
* `total`: the value of a count for all requests of a step together.
* `experts_read`: how many distinct experts are read.

A fold states for each piece which `Count` its cost grows with, once for a model; a workload then
gives the numbers, for integers and for integer arrays alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from llmcalc.boundary import at_most, is_array, larger, smaller
from llmcalc.folds.transformers import Eager
from llmcalc.spec.axes import portion

if TYPE_CHECKING:
    from llmcalc.boundary import Figure, Number
    from llmcalc.spec.spans import Span

__all__ = ["ONCE", "TOKENS", "Count", "ExpertReads", "Request", "Sums", "experts_read", "total"]

#: How many distinct experts a step reads: the exact bounds, or the mean where every token picks
#: its experts uniformly at random.
ExpertReads: TypeAlias = Literal["fewest", "expected", "most"]

EXPERT_READS: Final = ("fewest", "expected", "most")


class Count(NamedTuple):
    """What a cost grows with: its `kind` (`_OF_A_REQUEST`, `_OF_A_STEP`) and what it is `of`.

    `name` is what a printed working calls it. A count is of the requests of one replica, or with
    `all_replicas` of those of all replicas, which then compute together.
    """

    kind: str
    name: str
    of: Any = None
    all_replicas: bool = False

    @property
    def is_late(self) -> bool:
        """Whether it grows with the past tokens."""
        return self.kind not in _WITHOUT_PAST


#: A sum: how much of each count, by its number.
Sums: TypeAlias = tuple[tuple[int, int], ...]

#: Kinds of counts that have nothing of the past tokens.
_WITHOUT_PAST: Final = frozenset({"once", "tokens", "logits", "touched", "assigned", "dealt"})

#: What does not depend on the workload.
ONCE: Final = Count("once", "")

#: Every new token.
TOKENS: Final = Count("tokens", "tokens")


def experts_read(tokens: Number, experts: int, used: int, own: int, reads: ExpertReads) -> Figure:
    """Return how many of `own` experts are read where tokens use `used` of all `experts`."""
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
    import numpy as np

    low, power, high = (np.asarray(one, dtype="float64") for one in (fewest, exponent, most))
    return larger(low, smaller(own * (1 - missed**power), high))


#: So many tokens leave out no expert, to the precision of any float.
_EVERY_EXPERT: Final = 2**62


class Request:
    """`batch` requests of a replica, `all_batch` of all, with `new` tokens after `past` ones.

    With `bound` every count is at least that of any request that is not larger.
    """

    __slots__ = ("all_batch", "batch", "bound", "new", "past")

    batch: Number
    all_batch: Number
    new: Number
    past: Number
    bound: bool

    def __init__(
        self, batch: Number, all_batch: Number, new: Number, past: Number, *, bound: bool
    ) -> None:
        self.batch, self.all_batch = batch, all_batch
        self.new, self.past, self.bound = new, past, bound

    @property
    def eager(self) -> Eager:
        """The same in transformers' modules."""
        return Eager(self.new, self.past, self.bound)


def _pairs(one: Request, span: Span) -> Number:
    return (span.most_pairs if one.bound else span.pairs)(one.new, one.past)


def _present(one: Request, span: Span) -> Number:
    return (span.most_present if one.bound else span.present)(one.new, one.past)


def _fetched(one: Request, span: Span) -> Number:
    return _present(one, span) if one.bound else span.fetched(one.new, one.past)


def _unmasked(one: Request, span: Span) -> Number:
    return _present(one, span) if one.bound else span.unmasked(one.new, one.past)


def _tiled(one: Request, of: tuple[Span, int]) -> Number:
    return _most_tiled(one, of) if one.bound else of[0].tiled(one.new, one.past, of[1])


def _unmasked_tiled(one: Request, of: tuple[Span, int]) -> Number:
    return _most_tiled(one, of) if one.bound else of[0].unmasked_tiled(one.new, one.past, of[1])


def _most_tiled(one: Request, of: tuple[Span, int]) -> Number:
    span, tile = of
    return -(-one.new // tile) * _present(one, span)


def _widest(one: Request, span: Span) -> Number:
    """Give the keys of the token that attends the most, in requests with several new tokens."""
    if one.bound:
        return span.most_pairs(1, one.past + one.new)
    several = smaller(one.new, 2) - smaller(one.new, 1)
    return several * span.widest(one.new, one.past)


def _slots(one: Request, span: Span) -> Number:
    context = one.past + one.new
    return span.most_present(one.new, one.past) if one.bound else span.slots(context)


def _sharded(one: Request, of: tuple[Count, int, int]) -> Number:
    """Give the part of a request's slots that falls to one of the ranks that share them out."""
    whole, ranks, rank = of
    return portion(_OF_A_REQUEST[whole.kind](one, whole.of), ranks, rank)


#: Counts of a single request. ``"logits"`` are its last token, if it has any; ``"rectangle"`` are
#: the pairs of every query with every key at hand; ``"slots"`` are those that it holds after the
#: step; ``"outputs"`` to ``"across"`` are what transformers computes.
_OF_A_REQUEST: Final[Mapping[str, Callable[[Request, Any], Number]]] = {
    "tokens": lambda one, _: one.new,
    "logits": lambda one, _: smaller(one.new, 1),
    "pairs": _pairs,
    "rectangle": lambda one, span: one.new * _present(one, span),
    "widest": _widest,
    "present": _present,
    "fetched": _fetched,
    "unmasked": _unmasked,
    "tiled": _tiled,
    "unmasked tiled": _unmasked_tiled,
    "written": lambda one, span: one.new if one.bound else span.written(one.new, one.past),
    "slots": _slots,
    "sharded": _sharded,
    "outputs": lambda one, convolution: one.eager.outputs(convolution),
    "attended": lambda one, span: one.eager.attended(span),
    "state": lambda one, scan: one.eager.state(scan),
    "within": lambda one, scan: one.eager.within(scan),
    "across": lambda one, scan: one.eager.across(scan),
}


def _touched(tokens: Number, of: tuple[int, int, int, ExpertReads], _bound: bool) -> Figure:
    experts, active, held, reads = of
    return experts_read(tokens, experts, active, held, reads)


def _assigned(tokens: Number, of: tuple[int, int, int, int], bound: bool) -> Number:
    """Give the choices of experts that fall to one rank, where all experts get equally many."""
    experts, active, before, held = of
    choices = tokens * active
    if bound:  # of what is divided below
        return choices * experts
    return -(-choices * (before + held) // experts) + (choices * -before // experts)


def _dealt(tokens: Number, of: tuple[int, int], bound: bool) -> Number:
    """Give the tokens of one of the ranks that share out those that all of them have."""
    return tokens if bound else portion(tokens, *of)


#: Counts of a whole step, from the number of its tokens.
_OF_A_STEP: Final[Mapping[str, Callable[[Number, Any, bool], Figure]]] = {
    "touched": _touched,
    "assigned": _assigned,
    "dealt": _dealt,
}


def of_a_request(count: Count) -> Callable[[Request, Any], Number] | None:
    """Return what gives the count of one request; `None` where it is of a whole step."""
    return _OF_A_REQUEST.get(count.kind)


def total(count: Count, requests: Sequence[Request]) -> Figure:
    """Return the value of a count for all requests together."""
    kind, _, of, everyone = count
    if kind == "once":
        return 1
    each = _OF_A_REQUEST.get(kind)
    if each is None:
        tokens: Any = total(TOKENS._replace(all_replicas=everyone), requests)
        return _OF_A_STEP[kind](tokens, of, requests[0].bound)
    if len(requests) == 1:
        one = requests[0]
        return each(one, of) * (one.all_batch if everyone else one.batch)
    return sum([each(one, of) * (one.all_batch if everyone else one.batch) for one in requests])
