"""How much of a device requests need, and the most that fit.

* `needed_bytes`: what weights and requests take on the tightest device.
* `usable_bytes`: what of a device's memory there is for them.
* `max_batch_size`: the most requests of a context length that fit.
* `max_context`: the longest context that a batch of requests can have, a `ContextLimit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Self, overload

from llmcalc.boundary import (
    broadcast_arrays,
    elementwise,
    integer_type,
    is_array,
    is_wide,
    largest_element,
    whole_number,
)
from llmcalc.errors import InvalidValueError
from llmcalc.folds.storage import Formats
from llmcalc.layouts import Layout
from llmcalc.memory.placed import placed
from llmcalc.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray, Number
    from llmcalc.folds.storage import StateFormat
    from llmcalc.formats import Format, Scheme

__all__ = ["ContextLimit", "max_batch_size", "max_context", "needed_bytes", "usable_bytes"]


@overload
def needed_bytes(  # type: ignore[overload-overlap]
    spec: ModelSpec,
    *,
    context: Int,
    batch: Int = 1,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> int: ...
@overload
def needed_bytes(
    spec: ModelSpec,
    *,
    context: Int | IntArray,
    batch: Int | IntArray = 1,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> IntArray: ...
def needed_bytes(
    spec: ModelSpec,
    *,
    context: Int | IntArray,
    batch: Int | IntArray = 1,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> int | IntArray:
    r"""Return the bytes that weights and requests take on the device that needs most.

    .. math:: \max_{\text{ranks}} \left( \text{weights} + b \cdot \text{cache per request} \right)

    `context` is in tokens a request; `batch` counts the requests of the whole layout. Both take an
    integer or an integer array. `fit` gives the same number with its working.

    >>> from llmcalc import ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> memory.needed_bytes(llama, context=1024, batch=8, weights="bf16", kv="bf16")
    17134264320
    """
    formats = Formats.given(weights, kv, state, index)
    return placed(spec, formats, tensor_parallel, layout).needed(batch, context)


def usable_bytes(device_memory: Int, *, share: float = 1.0, reserved_bytes: Int = 0) -> int:
    """Return what of a device's memory a `share` leaves, less `reserved_bytes`, but at least 0.

    The share is a decimal number, above 0 and at most 1: 0.9 means nine tenths, not the nearest
    binary fraction.

    >>> from llmcalc import GiB, memory
    >>> memory.usable_bytes(80 * GiB, share=0.9, reserved_bytes=2 * GiB) / GiB
    70.0
    """
    part: object = share
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1:
        raise InvalidValueError("share", part, "must be a number above 0 and at most 1")
    reserved = whole_number(reserved_bytes, "reserved_bytes")
    size = whole_number(device_memory, "device_memory")
    from fractions import Fraction

    return max(0, int(size * Fraction(repr(float(part)))) - reserved)


@overload
def max_batch_size(  # type: ignore[overload-overlap]
    spec: ModelSpec,
    *,
    device_memory: Int,
    context: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> int | None: ...
@overload
def max_batch_size(
    spec: ModelSpec,
    *,
    device_memory: Int | IntArray,
    context: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> IntArray: ...
def max_batch_size(
    spec: ModelSpec,
    *,
    device_memory: Int | IntArray,
    context: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> int | IntArray | None:
    r"""Return the most requests of `context` tokens that fit beside the weights.

    .. math:: b = \left\lfloor \frac{\text{device memory} - \text{weights}}
                                    {\text{cache per request}} \right\rfloor

    With a layout it is that of the tightest device, times the data-parallel replicas. 0 where not
    even one fits (`fit` says why), `None` where requests hold nothing, so that memory
    never binds. Array arguments give an array; where one of its elements is `None` it is an
    object array.

    >>> from llmcalc import GiB, ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> memory.max_batch_size(
    ...     llama, device_memory=80 * GiB, context=4096, weights="bf16", kv="bf16"
    ... )
    130
    """
    formats = Formats.given(weights, kv, state, index)
    held = placed(spec, formats, tensor_parallel, layout)
    if not is_array(device_memory) and not is_array(context):
        memory = whole_number(device_memory, "device_memory")
        return held.stages(whole_number(context, "context")).most_requests(memory)
    available, tokens = broadcast_arrays(device_memory=device_memory, context=context).values()
    stages = held.stages(tokens)
    wide = is_wide(largest_element(available) * stages.replicas, *stages.weights)
    available = available.astype(integer_type(wide=wide))
    most: Number | None = stages.most_requests(available)
    return most


class ContextLimit(int):
    """A context length in tokens that says what limits it.

    `limited_by` is ``"memory"``, or ``"positions"`` where memory would hold more than the model's
    `max_positions`.

    >>> from llmcalc.memory import ContextLimit
    >>> limit = ContextLimit(8192, "positions")
    >>> limit + 0, limit.limited_by
    (8192, 'positions')
    """

    limited_by: Literal["memory", "positions"]

    def __new__(cls, tokens: int, limited_by: Literal["memory", "positions"]) -> Self:  # noqa: D102
        limit = super().__new__(cls, tokens)
        limit.limited_by = limited_by
        return limit

    def __getnewargs__(self) -> tuple[int, Literal["memory", "positions"]]:  # type: ignore[override]
        return int(self), self.limited_by


@overload
def max_context(  # type: ignore[overload-overlap]
    spec: ModelSpec,
    *,
    device_memory: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> ContextLimit | None: ...
@overload
def max_context(
    spec: ModelSpec,
    *,
    device_memory: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> IntArray: ...
def max_context(
    spec: ModelSpec,
    *,
    device_memory: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> ContextLimit | IntArray | None:
    """Return the longest context, in tokens, that each of `batch` requests can have.

    The answer is an integer whose `limited_by` says what limits it: ``"memory"``, or
    ``"positions"`` where it is capped at the model's `max_positions`. 0 where not even one token
    fits; `None` where neither binds. Array arguments give an array, without `limited_by`; where
    one of its elements is `None` it is an object array.

    >>> from llmcalc import GiB, ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256, max_positions=8192,
    ... )
    >>> limit = memory.max_context(
    ...     llama, device_memory=80 * GiB, batch=8, weights="bf16", kv="bf16"
    ... )
    >>> limit, limit.limited_by
    (8192, 'positions')
    >>> limit = memory.max_context(
    ...     llama, device_memory=80 * GiB, batch=80, weights="bf16", kv="bf16"
    ... )
    >>> limit, limit.limited_by
    (6660, 'memory')
    """
    formats = Formats.given(weights, kv, state, index)
    held = placed(spec, formats, tensor_parallel, layout)

    def longest(device_memory: int, batch: int) -> ContextLimit | None:
        return _longest_context(
            spec, batch, lambda tokens: held.stages(tokens).fits(batch, device_memory)
        )

    return elementwise(longest, device_memory=device_memory, batch=batch)


def _longest_context(
    spec: ModelSpec, batch: int, fits: Callable[[int], bool]
) -> ContextLimit | None:
    """Return the largest context that fits, by bisection: the cache never shrinks as it grows."""
    if not fits(0):
        return ContextLimit(0, "memory")
    if spec.max_positions is not None and fits(spec.max_positions):
        return ContextLimit(spec.max_positions, "positions")
    most_slots = [cache.span.most_slots for _, cache in spec.ledger.caches]
    bounded = [slots for slots in most_slots if slots is not None]
    if not batch or len(bounded) == len(most_slots):
        too_many = max(bounded, default=0)
        if not batch or fits(too_many):
            return None
    else:
        too_many = 1
        while fits(too_many):
            too_many *= 2
    enough = 0
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if fits(middle):
            enough = middle
        else:
            too_many = middle
    return ContextLimit(enough, "memory")
