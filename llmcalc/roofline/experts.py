"""How many distinct experts a step reads.

* `experts_touched`: the bounds, and the mean where tokens pick their experts at random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from llmcalc.boundary import (
    choice,
    count,
    integer_type,
    is_array,
    is_wide,
    largest_element,
    whole_number,
)
from llmcalc.errors import InvalidValueError
from llmcalc.folds.counts import EXPERT_READS, ExpertReads, experts_read

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmcalc.boundary import Figure, Int, IntArray

__all__ = ["experts_touched"]


@overload
def experts_touched(  # type: ignore[overload-overlap]
    *,
    num_experts: Int,
    experts_per_token: Int,
    tokens: Int,
    reads: Literal["fewest", "most"],
    held: Int | None = None,
) -> int: ...
@overload
def experts_touched(  # type: ignore[overload-overlap]
    *,
    num_experts: Int,
    experts_per_token: Int,
    tokens: Int,
    reads: ExpertReads = "expected",
    held: Int | None = None,
) -> float: ...
@overload
def experts_touched(
    *,
    num_experts: Int,
    experts_per_token: Int,
    tokens: Int | IntArray,
    reads: ExpertReads = "expected",
    held: Int | None = None,
) -> NDArray[Any]: ...
def experts_touched(
    *,
    num_experts: Int,
    experts_per_token: Int,
    tokens: Int | IntArray,
    reads: ExpertReads = "expected",
    held: Int | None = None,
) -> Figure:
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
    asked = count(tokens, "tokens")
    if is_array(asked):
        asked = asked.astype(integer_type(wide=is_wide(largest_element(asked))))
    return experts_read(asked, experts, used, own, reads)
