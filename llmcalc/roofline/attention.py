r"""One attention call, as textbook formulas in the numbers of queries and keys.

Prefill, chunk and decode are one formula:

* `attention_flops`: scores, softmax and values.
* `attention_bytes`: traffic to and from device memory under a named `Algorithm`.
* `attention_intensity`: their ratio.

Conventions: one multiply-accumulate is two FLOPs. The formulas are the textbook's: the full
square of queries and keys, and 5 FLOPs a score for the softmax, unless `causal` and
`softmax_flops` say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, overload

from llmcalc.boundary import (
    broadcast_arrays,
    choice,
    count,
    flag_argument,
    integer_type,
    is_array,
    is_wide,
    largest_element,
    smaller,
    tile_size,
    whole_number,
)
from llmcalc.errors import InvalidValueError
from llmcalc.spec.spans import Full

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    from llmcalc.boundary import Int, IntArray, Number

    FloatArray: TypeAlias = NDArray[floating[Any]]

__all__ = [
    "Algorithm",
    "attention_bytes",
    "attention_flops",
    "attention_intensity",
]

#: How attention moves data. ``"standard"``: scores are written and read, twice each. ``"flash"``:
#: scores never leave the chip. ``"assignment"``: the course assignment's own accounting.
Algorithm: TypeAlias = Literal["standard", "flash", "assignment"]

_ALGORITHMS: Final = ("standard", "flash", "assignment")


@overload
def attention_flops(  # type: ignore[overload-overlap]
    *,
    queries: Int,
    keys: Int,
    head_dim: Int,
    batch: Int = 1,
    query_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
) -> int: ...
@overload
def attention_flops(
    *,
    queries: Int | IntArray,
    keys: Int | IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    query_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
) -> IntArray: ...
def attention_flops(
    *,
    queries: Int | IntArray,
    keys: Int | IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    query_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
) -> int | IntArray:
    r"""Return the FLOPs of one attention call.

    .. math:: F = B H \left(4 d + s\right) \text{pairs}, \qquad
              \text{pairs} = N_q N_k \ \text{(full)} \quad\text{or}\quad
              N_q (N_k - N_q) + \tfrac12 N_q (N_q + 1) \ \text{(causal)}

    `queries` (N_q) attend `keys` (N_k); with `causal` the queries are the last of the keys, and
    each attends the keys up to its own. A score takes 2d FLOPs, its softmax `softmax_flops` (s):
    by default 5, for the maximum, the subtraction, the exponential, the sum and the division;
    weighing the values takes 2d more. `batch` (B) and `query_heads` (H) multiply the work.

    Source: Dao et al., "FlashAttention" (2022), algorithm 0, counted operation by operation.

    >>> from llmcalc import roofline
    >>> roofline.attention_flops(queries=1024, keys=1024, head_dim=128)
    542113792
    >>> roofline.attention_flops(queries=1, keys=1024, head_dim=128)
    529408
    """
    width = whole_number(head_dim, "head_dim", minimum=1)
    heads = whole_number(query_heads, "query_heads", minimum=1)
    softmax = whole_number(softmax_flops, "softmax_flops")
    _check_causal(queries, keys, causal)

    def fold(queries: Number, keys: Number, batch: Number) -> Number:
        return _pairs(queries, keys, causal) * (heads * (4 * width + softmax)) * batch

    return _at_each(fold, queries=queries, keys=keys, batch=batch)


@overload
def attention_bytes(  # type: ignore[overload-overlap]
    *,
    queries: Int,
    keys: Int,
    head_dim: Int,
    batch: Int = 1,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    shared_kv: bool | None = None,
    query_tile: Int | None = None,
) -> int: ...
@overload
def attention_bytes(
    *,
    queries: Int | IntArray,
    keys: Int | IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    shared_kv: bool | None = None,
    query_tile: Int | None = None,
) -> IntArray: ...
def attention_bytes(
    *,
    queries: Int | IntArray,
    keys: Int | IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    shared_kv: bool | None = None,
    query_tile: Int | None = None,
) -> int | IntArray:
    r"""Return the bytes that one attention call moves to and from device memory.

    .. math::
        \text{standard} &= \left(2 H N_q d + 2 H_{kv} N_k d + 4 H N_q N_k\right) B e \\
        \text{flash} &= \left(2 H N_q d + 2 H_{kv} N_k d\right) B e \\
        \text{flash, tiled} &= \left(2 H N_q d + 2 H_{kv} d \sum_\text{tiles} n_k\right) B e \\
        \text{assignment} &= \left(5 N d + 3 N^2\right) B e \ \text{(prefill)}, \qquad
        \left((2 N + 1) d + 3 N B\right) e \ \text{(decode)}

    ``"standard"`` counts each pass of algorithm 0: read Q and K, write S; read S, write P; read P
    and V, write O; the scores that a causal mask hides move as well. ``"flash"`` keeps scores on
    the chip and reads K and V once, as if the chip held them; with `query_tile` it reads them
    again for every tile of so many queries, with `causal` only those up to the tile's last query
    (:math:`n_k`). The K and V of a KV head are read once for all query heads of its group.
    ``"assignment"`` is the course assignment's accounting, defined for one head and for
    ``queries == keys`` (prefill) or ``queries == 1`` (decode, which wins where both hold).

    `shared_kv` says whether the whole batch reads one K and V: true of a shared prefix, false of
    independent requests. The default `None` is the algorithm's own convention: independent for
    ``"standard"`` and ``"flash"``; for ``"assignment"`` shared in decode, together with the
    query and output rows, which it counts once for the batch. `element_bytes` (e) is the size of
    every element.

    Source: Dao et al., "FlashAttention" (2022), algorithms 0 and 1; Dao, "FlashAttention-2" (2023),
    algorithm 1, whose outer loop is over tiles of queries.

    >>> from llmcalc import roofline
    >>> roofline.attention_bytes(
    ...     queries=1024, keys=1024, head_dim=128, element_bytes=2, algorithm="standard"
    ... )
    9437184
    >>> [
    ...     roofline.attention_bytes(
    ...         queries=1024, keys=1024, head_dim=128, element_bytes=2, algorithm="flash",
    ...         query_tile=tile,
    ...     )
    ...     for tile in (None, 128)
    ... ]
    [1048576, 4718592]
    """
    width = whole_number(head_dim, "head_dim", minimum=1)
    size = whole_number(element_bytes, "element_bytes", minimum=1)
    heads = whole_number(query_heads, "query_heads", minimum=1)
    groups = whole_number(kv_heads, "kv_heads", minimum=1)
    if heads % groups:
        raise InvalidValueError("kv_heads", groups, f"must divide query_heads ({heads})")
    choice(algorithm, "algorithm", _ALGORITHMS)
    if shared_kv is not None:
        flag_argument(shared_kv, "shared_kv")
    rows = tile_size(query_tile, "query_tile")
    if rows is not None and algorithm != "flash":
        raise InvalidValueError("query_tile", rows, "is of algorithm='flash' alone")
    _check_causal(queries, keys, causal)
    if algorithm == "assignment":
        _check_assignment(queries, keys, heads, causal)

        def fold(queries: Number, keys: Number, batch: Number) -> Number:
            return _assignment_elements(queries, keys, width, batch, shared_kv) * size

    else:
        passes = 4 if algorithm == "standard" else 0

        def fold(queries: Number, keys: Number, batch: Number) -> Number:
            own = 2 * heads * width * queries + passes * heads * queries * keys
            read = 2 * groups * width * _read(queries, keys, causal, rows)
            return (own * batch + read * (smaller(batch, 1) if shared_kv else batch)) * size

    return _at_each(fold, queries=queries, keys=keys, batch=batch)


@overload
def attention_intensity(  # type: ignore[overload-overlap]
    *,
    queries: Int,
    keys: Int,
    head_dim: Int,
    batch: Int = 1,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
    shared_kv: bool | None = None,
    query_tile: Int | None = None,
) -> float: ...
@overload
def attention_intensity(
    *,
    queries: Int | IntArray,
    keys: Int | IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
    shared_kv: bool | None = None,
    query_tile: Int | None = None,
) -> FloatArray: ...
def attention_intensity(
    *,
    queries: Int | IntArray,
    keys: Int | IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
    shared_kv: bool | None = None,
    query_tile: Int | None = None,
) -> float | FloatArray:
    r"""Return the arithmetic intensity of one attention call, in FLOPs per byte.

    .. math:: I = \frac{\text{attention\_flops}}{\text{attention\_bytes}}

    The arguments are those of `attention_flops` and `attention_bytes`. Below a device's ridge
    point (`llmcalc.DeviceSpec.ridge_point`) memory binds, above it compute does. Raises
    `llmcalc.LlmcalcError` where nothing is moved (no queries and no keys, or an empty batch).

    >>> from llmcalc import roofline
    >>> for algorithm in ("standard", "flash", "assignment"):
    ...     prefill, decode = (
    ...         roofline.attention_intensity(
    ...             queries=queries, keys=1024, head_dim=128, element_bytes=2, algorithm=algorithm
    ...         )
    ...         for queries in (1024, 1)
    ...     )
    ...     print(f"{algorithm}: {prefill:.3f} prefill, {decode:.3f} decode")
    standard: 57.444 prefill, 0.993 decode
    flash: 517.000 prefill, 1.009 decode
    assignment: 71.310 prefill, 0.998 decode
    """
    work: Number = attention_flops(
        queries=queries,
        keys=keys,
        head_dim=head_dim,
        batch=batch,
        query_heads=query_heads,
        causal=causal,
        softmax_flops=softmax_flops,
    )
    moved: Number = attention_bytes(
        queries=queries,
        keys=keys,
        head_dim=head_dim,
        element_bytes=element_bytes,
        algorithm=algorithm,
        batch=batch,
        query_heads=query_heads,
        kv_heads=kv_heads,
        causal=causal,
        shared_kv=shared_kv,
        query_tile=query_tile,
    )
    if is_array(moved):
        if not moved.all():
            raise _nothing_moved(keys=keys, queries=queries, batch=batch)
        # Where int64 would overflow, the quotient is an object array of Python floats.
        return (work / moved).astype("float64")
    if not moved:
        raise _nothing_moved(keys=keys, queries=queries, batch=batch)
    return work / moved


def _nothing_moved(**workload: Any) -> InvalidValueError:
    """Return the error for an intensity without bytes, which names what is 0."""
    empty = next(field for field, value in workload.items() if not _everywhere(value > 0))
    return InvalidValueError(empty, workload[empty], "must be at least 1: an intensity needs bytes")


def _at_each(formula: Callable[..., Number], **arguments: Int | IntArray) -> Number:
    """Return a formula that grows with all of its arguments, for integers or integer arrays."""
    if not any(map(is_array, arguments.values())):
        return formula(**{field: whole_number(one, field) for field, one in arguments.items()})
    arrays = broadcast_arrays(**arguments)
    # A bound of at least 1 keeps one empty factor from hiding how large the others are.
    bounds = {field: max(1, largest_element(array)) for field, array in arrays.items()}
    most: Any = formula(**bounds)
    made_of = integer_type(wide=is_wide(most, *bounds.values()))
    return formula(**{field: array.astype(made_of) for field, array in arrays.items()})


def _pairs(queries: Number, keys: Number, causal: bool) -> Number:
    if causal:
        return Full().pairs(queries, keys - queries)
    return queries * keys


def _read(queries: Number, keys: Number, causal: bool, tile: int | None) -> Number:
    """Give the keys that are read, those of every tile of queries again."""
    if tile is None:
        return keys
    if causal:
        return Full().tiled(queries, keys - queries, tile)
    return -(-queries // tile) * keys


def _assignment_elements(
    queries: Number, keys: Number, width: int, batch: Number, shared_kv: bool | None
) -> Number:
    """Give the elements that the assignment counts; decode wins where both cases hold.

    With arrays both cases are computed for every element and the right one is kept.
    """
    prefill = (5 * width * keys + 3 * keys * keys) * batch
    rows = (2 * keys + 1) * width
    decode = (rows * batch if shared_kv is False else rows) + 3 * keys * batch
    if not is_array(queries):
        return decode if queries == 1 else prefill
    import numpy as np

    return np.where(queries == 1, decode, prefill)


def _check_causal(queries: object, keys: object, causal: bool) -> None:
    flag_argument(causal, "causal")
    if causal and not _everywhere(count(queries, "queries") <= count(keys, "keys")):
        raise InvalidValueError("queries", queries, f"must be at most keys ({keys}) when causal")


def _check_assignment(queries: object, keys: object, heads: int, causal: bool) -> None:
    rule = "algorithm='assignment' is defined for"
    number = count(queries, "queries")
    if not _everywhere((number == 1) | (number == count(keys, "keys"))):
        raise InvalidValueError("queries", queries, f"{rule} 1 (decode) or keys (prefill)")
    if heads != 1:
        raise InvalidValueError("query_heads", heads, f"{rule} one head")
    if causal:
        raise InvalidValueError("causal", causal, f"{rule} the full square")


def _everywhere(condition: Any) -> bool:
    return bool(condition.all()) if is_array(condition) else bool(condition)
