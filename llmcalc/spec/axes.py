"""Axes: the named dimensions of tensors, and how tensor parallelism splits each by its name.

* `Axis`: a name and a size.
* `Split`: the ranks that tensors are split over, seen from one of them.
* `factors`: a dimension's share on one rank as the named factors of a term.
* `rank_size`: how much of an axis one rank holds.
* `portion`: how many of what is spread over ranks one by one a rank holds.
* `is_split`: whether tensor parallelism divides an axis at all.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final, TypeAlias, overload

import attrs

from llmcalc.breakdown import Factor
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError

if TYPE_CHECKING:
    from llmcalc.boundary import Number

__all__ = ["Axis", "Split", "is_split", "portion", "rank_size"]

#: What tensor parallelism does with an axis, by its name; an axis that is not named here is
#: whole on every rank. "even": every rank holds the same share, so the degree must divide the
#: size. "replicated": like "even", but where there are more ranks than entries, each entry lives
#: on degree / size ranks. "uneven": the first ranks take the remainder, one entry each.
_SPLITS: Final = {
    "query_heads": "even",
    "kv_heads": "replicated",
    "inner": "even",
    "channels": "even",
    "recurrent_heads": "even",
    "key_heads": "even",
    "state_groups": "replicated",
    "output_groups": "even",
    "vocab": "uneven",
}


@attrs.frozen(repr=False, eq=False)
class Axis(Described):
    """A named dimension of a tensor.

    >>> from llmcalc.spec import Axis
    >>> Axis("kv_heads", 8)
    Axis(name='kv_heads', size=8)
    """

    name: str
    size: int


#: The axes whose product is one dimension of a tensor.
Axes: TypeAlias = tuple[Axis, ...]


@attrs.frozen(repr=False, eq=False)
class Split(Described):
    """The ranks that a tensor is split over, and which of them it is seen from.

    Each of `ranks` holds a share of every axis that is split by its name. With `whole_experts`
    whole experts are distributed instead and no axis of theirs is split. The vocabulary is first
    padded to a multiple of `vocab_multiple`; above 1 the ranks must divide what that gives.
    """

    ranks: int = 1
    rank: int = 0
    whole_experts: bool = False
    vocab_multiple: int = 1


#: One rank that holds everything.
WHOLE: Final = Split()


def factors(pieces: tuple[Axes, ...], split: Split = WHOLE) -> tuple[Factor, ...]:
    """Return what the rank holds of a dimension that is the sum of `pieces`, as named factors.

    One piece gives a factor for each of its axes; several give one factor, their sum.

    >>> from llmcalc.spec.axes import Axis, Split, factors
    >>> heads, width = Axis("query_heads", 8), Axis("head_dim", 64)
    >>> factors(((heads, width),), Split(ranks=2))
    ((4, 'query_heads'), (64, 'head_dim'))
    >>> factors(((heads, width), (Axis("latent", 5),)))
    ((517, 'query_heads*head_dim + latent'),)
    """
    if len(pieces) == 1:
        if split is WHOLE:
            return tuple([(axis.size, axis.name) for axis in pieces[0]])
        return tuple([(_held(axis, split), axis.name) for axis in pieces[0]])
    parts = [factors((piece,), split) for piece in pieces]
    total = sum(prod(size for size, _ in part) for part in parts)
    return ((total, " + ".join("*".join(name for _, name in part) for part in parts)),)


def extent(pieces: tuple[Axes, ...], split: Split = WHOLE) -> int:
    """Return how many entries of a dimension the rank holds: the product of `factors`.

    >>> from llmcalc.spec.axes import Axis, Split, extent
    >>> extent(((Axis("query_heads", 8), Axis("head_dim", 64)),), Split(ranks=2))
    256
    """
    total = 0
    for piece in pieces:
        product = 1
        for axis in piece:
            product *= axis.size if split is WHOLE else _held(axis, split)
        total += product
    return total


def is_split(axis: Axis) -> bool:
    """Whether tensor parallelism divides this axis over the ranks."""
    return axis.name in _SPLITS


def rank_size(axis: Axis, *, tensor_parallel: int, rank: int) -> int:
    """Return how many entries of `axis` the rank holds, of `tensor_parallel` ranks.

    Rank 0 never holds less than another rank. Raises `llmcalc.LlmcalcError` where the degree does
    not fit the axis, as serving engines do.

    >>> from llmcalc.spec.axes import Axis, rank_size
    >>> rank_size(Axis("kv_heads", 8), tensor_parallel=16, rank=0)
    1
    >>> [rank_size(Axis("vocab", 50257), tensor_parallel=2, rank=rank) for rank in (0, 1)]
    [25129, 25128]
    >>> rank_size(Axis("inner", 100), tensor_parallel=8, rank=0)
    Traceback (most recent call last):
        ...
    llmcalc.errors.InvalidValueError: tensor_parallel = 8: must divide inner (100)
    """
    split = _SPLITS.get(axis.name)
    if split is None or tensor_parallel == 1:
        return axis.size
    if split == "uneven":
        return portion(axis.size, tensor_parallel, rank)
    each, rest = divmod(axis.size, tensor_parallel)
    if not rest:
        return each
    if split == "replicated":
        if tensor_parallel % axis.size == 0:
            return 1
        rule = f"must divide {axis.name} ({axis.size}) or be a multiple of it"
    else:
        rule = f"must divide {axis.name} ({axis.size})"
    raise InvalidValueError("tensor_parallel", tensor_parallel, rule)


@overload
def portion(size: int, ranks: int, rank: int) -> int: ...
@overload
def portion(size: Number, ranks: int, rank: int) -> Number: ...
def portion(size: Number, ranks: int, rank: int) -> Number:
    """Return how many of `size` the rank holds: the first ranks take the remainder, one each.

    >>> from llmcalc.spec.axes import portion
    >>> [portion(10, 4, rank) for rank in range(4)]
    [3, 3, 2, 2]
    """
    return (size + ranks - 1 - rank) // ranks


def _held(axis: Axis, split: Split) -> int:
    """Return how many entries of `axis` the rank of a split holds."""
    if split.whole_experts:
        return portion(axis.size, split.ranks, split.rank) if axis.name == "experts" else axis.size
    if split.vocab_multiple > 1 and axis.name == "vocab":
        padded = -(-axis.size // split.vocab_multiple) * split.vocab_multiple
        if padded % split.ranks:
            rule = f"must divide the padded vocabulary ({padded})"
            raise InvalidValueError("tensor_parallel", split.ranks, rule)
        return padded // split.ranks
    return rank_size(axis, tensor_parallel=split.ranks, rank=split.rank)
