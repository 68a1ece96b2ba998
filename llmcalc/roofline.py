r"""Roofline: FLOPs, bytes and arithmetic intensity.

One attention call, as textbook formulas in the numbers of queries and keys (prefill, chunk and
decode are one formula):

* `attention_flops`: scores, softmax and values.
* `attention_bytes`: traffic to and from device memory under a named algorithm.
* `attention_intensity`: their ratio.

Whole models, as folds over the ledger:

* `flops`: the matrix products of one step, item by item.

Conventions: one multiply-accumulate is two FLOPs. The ``attention_*`` formulas are the
textbook's: the full square of queries and keys, and 5 FLOPs a score for the softmax, unless
`causal` and `softmax_flops` say otherwise. Whole-model functions count matrix products only, as
PyTorch's counter does; they default to causal pairs and to logits for the last token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, overload

from llmcalc.boundary import choice, count, evaluate, flag_argument, is_array, smaller, whole_number
from llmcalc.breakdown import Breakdown, Factor, Term
from llmcalc.eager import Eager
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import factors
from llmcalc.spec.items import Conv, Linear, Mix, Scan
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.spans import Full, Span
from llmcalc.units import Flops

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    from llmcalc.boundary import Int, IntArray

    FloatArray: TypeAlias = NDArray[floating[Any]]

__all__ = [
    "Algorithm",
    "attention_bytes",
    "attention_flops",
    "attention_intensity",
    "flops",
]

#: How attention moves data. ``"standard"``: scores are written and read, twice each. ``"flash"``:
#: scores never leave the chip. ``"assignment"``: the course assignment's own accounting.
Algorithm: TypeAlias = Literal["standard", "flash", "assignment"]

_ALGORITHMS: Final = ("standard", "flash", "assignment")


@overload
def attention_flops(
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
    queries: IntArray,
    keys: Int | IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    query_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
) -> IntArray: ...
@overload
def attention_flops(
    *,
    queries: Int,
    keys: IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    query_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
) -> IntArray: ...
@overload
def attention_flops(
    *,
    queries: Int,
    keys: Int,
    head_dim: Int,
    batch: IntArray,
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

    def fold(queries: Any, keys: Any, batch: Any) -> Any:
        return _pairs(queries, keys, causal) * (heads * (4 * width + softmax)) * batch

    answer: int | IntArray = evaluate(fold, _itself, queries=queries, keys=keys, batch=batch)
    return answer


@overload
def attention_bytes(
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
) -> int: ...
@overload
def attention_bytes(
    *,
    queries: IntArray,
    keys: Int | IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    shared_kv: bool | None = None,
) -> IntArray: ...
@overload
def attention_bytes(
    *,
    queries: Int,
    keys: IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    shared_kv: bool | None = None,
) -> IntArray: ...
@overload
def attention_bytes(
    *,
    queries: Int,
    keys: Int,
    head_dim: Int,
    batch: IntArray,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    shared_kv: bool | None = None,
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
) -> int | IntArray:
    r"""Return the bytes that one attention call moves to and from device memory.

    .. math::
        \text{standard} &= \left(2 H N_q d + 2 H_{kv} N_k d + 4 H \,\text{pairs}\right) B e \\
        \text{flash} &= \left(2 H N_q d + 2 H_{kv} N_k d\right) B e \\
        \text{assignment} &= \left(5 N d + 3 N^2\right) B e \ \text{(prefill)}, \qquad
        \left((2 N + 1) d + 3 N B\right) e \ \text{(decode)}

    ``"standard"`` counts each pass of algorithm 0: read Q and K, write S; read S, write P; read P
    and V, write O. ``"flash"`` keeps scores on the chip and reads K and V once. Both read the K
    and V of a KV head once for all query heads of its group. ``"assignment"`` is the course
    assignment's accounting, defined for one head and for ``queries == keys`` (prefill) or
    ``queries == 1`` (decode, which wins where both hold).

    `shared_kv` says whether the whole batch reads one K and V: true of a shared prefix, false of
    independent requests. The default `None` is the algorithm's own convention: independent for
    ``"standard"`` and ``"flash"``; for ``"assignment"`` shared in decode, together with the
    query and output rows, which it counts once for the batch. `element_bytes` (e) is the size of
    every element. With `causal`, only the attended scores move.

    Source: Dao et al., "FlashAttention" (2022), algorithm 0.

    >>> from llmcalc import roofline
    >>> roofline.attention_bytes(
    ...     queries=1024, keys=1024, head_dim=128, element_bytes=2, algorithm="standard"
    ... )
    9437184
    >>> roofline.attention_bytes(
    ...     queries=1024, keys=1024, head_dim=128, element_bytes=2, algorithm="flash"
    ... )
    1048576
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
    _check_causal(queries, keys, causal)
    if algorithm == "assignment":
        _check_assignment(queries, keys, heads, causal)

        def fold(queries: Any, keys: Any, batch: Any) -> Any:
            return _assignment_elements(queries, keys, width, batch, shared_kv) * size

    else:
        passes = 4 if algorithm == "standard" else 0

        def fold(queries: Any, keys: Any, batch: Any) -> Any:
            own = 2 * heads * width * queries + passes * heads * _pairs(queries, keys, causal)
            read = 2 * groups * width * keys * (smaller(batch, 1) if shared_kv else batch)
            return (own * batch + read) * size

    answer: int | IntArray = evaluate(fold, _itself, queries=queries, keys=keys, batch=batch)
    return answer


@overload
def attention_intensity(
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
) -> float: ...
@overload
def attention_intensity(
    *,
    queries: IntArray,
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
) -> FloatArray: ...
@overload
def attention_intensity(
    *,
    queries: Int,
    keys: IntArray,
    head_dim: Int,
    batch: Int | IntArray = 1,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
    shared_kv: bool | None = None,
) -> FloatArray: ...
@overload
def attention_intensity(
    *,
    queries: Int,
    keys: Int,
    head_dim: Int,
    batch: IntArray,
    element_bytes: Int,
    algorithm: Algorithm,
    query_heads: Int = 1,
    kv_heads: Int = 1,
    causal: bool = False,
    softmax_flops: Int = 5,
    shared_kv: bool | None = None,
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
    # Any mix of integers and arrays, which no single overload describes.
    work = cast("Any", attention_flops)(
        queries=queries,
        keys=keys,
        head_dim=head_dim,
        batch=batch,
        query_heads=query_heads,
        causal=causal,
        softmax_flops=softmax_flops,
    )
    moved = cast("Any", attention_bytes)(
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
    )
    if is_array(moved):
        if not moved.all():
            raise _nothing_moved(keys=keys, queries=queries, batch=batch)
        # Where int64 would overflow, the quotient is an object array of Python floats.
        ratio: FloatArray = (work / moved).astype("float64")
        return ratio
    if not moved:
        raise _nothing_moved(keys=keys, queries=queries, batch=batch)
    intensity: float = work / moved
    return intensity


@overload
def flops(
    spec: ModelSpec,
    *,
    batch: Int,
    new: Int,
    past: Int,
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    mla: Literal["expanded", "absorbed"] = "expanded",
    convention: Literal["model", "transformers"] = "model",
) -> Breakdown[Flops]: ...
@overload
def flops(
    spec: ModelSpec,
    *,
    batch: IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    mla: Literal["expanded", "absorbed"] = "expanded",
    convention: Literal["model", "transformers"] = "model",
) -> Breakdown[Flops, IntArray]: ...
@overload
def flops(
    spec: ModelSpec,
    *,
    batch: Int,
    new: IntArray,
    past: Int | IntArray,
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    mla: Literal["expanded", "absorbed"] = "expanded",
    convention: Literal["model", "transformers"] = "model",
) -> Breakdown[Flops, IntArray]: ...
@overload
def flops(
    spec: ModelSpec,
    *,
    batch: Int,
    new: Int,
    past: IntArray,
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    mla: Literal["expanded", "absorbed"] = "expanded",
    convention: Literal["model", "transformers"] = "model",
) -> Breakdown[Flops, IntArray]: ...
def flops(
    spec: ModelSpec,
    *,
    batch: Int | IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    mla: Literal["expanded", "absorbed"] = "expanded",
    convention: Literal["model", "transformers"] = "model",
) -> Breakdown[Flops, Any]:
    r"""Return the FLOPs of the matrix products of one step, item by item.

    .. math:: \sum_{\text{linears}} 2 \cdot \text{tokens} \cdot \text{in} \cdot \text{out}
              + \sum_{\text{attention}} 2 H (d_{qk} + d_v) \cdot \text{pairs}

    `new` tokens follow `past` ones in each of `batch` requests: ``past=0`` is a prefill, ``new=1``
    a decode step, the rest a chunk. With `causal` a token attends the positions up to its own
    within the layer's span; without, all keys that the step has at hand, as a kernel computes
    that only masks scores, and as PyTorch's counter counts it. `logits` are computed for the
    ``"last"`` token or for ``"all"``. `mla` is the form of latent attention: ``"expanded"``
    computes keys and values from all latents again at every step, ``"absorbed"`` attends to the
    latents as they are cached. Lookups, norms, softmax, activations, rotary embedding and bias
    additions are not counted.

    `convention` is ``"model"``, what the model's definition needs, or ``"transformers"``, what
    PyTorch's counter counts when transformers' own modules run without optional kernels: full
    squares (whatever `causal` says), padded convolutions, and recurrences as products of chunks.

    >>> from llmcalc import ModelSpec, roofline
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> roofline.flops(llama, batch=1, new=4096, past=0, causal=False, logits="all").total
    70274254897152
    >>> step = roofline.flops(llama, batch=1, new=1, past=1023)
    >>> print(step["head"].explain())
    FLOPs of llama-3-8b: head
      output  2 FLOP x 128256 vocab x 4096 embed x 1 tokens = 1 050 673 152 FLOP
      total 1 050 673 152 FLOP
    """
    flag_argument(causal, "causal")
    choice(logits, "logits", ("last", "all"))
    choice(mla, "mla", ("expanded", "absorbed"))
    choice(convention, "convention", ("model", "transformers"))
    absorbed, everything = mla == "absorbed", logits == "all"
    in_transformers = convention == "transformers"

    def compute(batch: Any, new: Any, past: Any, *, bound: bool) -> Breakdown[Flops, Any]:
        eager = Eager(new, past, bound)

        def pairs(span: Span) -> Any:
            if in_transformers or not causal:
                return eager.pairs(span)
            return span.most_pairs(new, past) if bound else span.pairs(new, past)

        tokens = {
            "all": (new, "tokens"),
            "logits": (new if everything else smaller(new, 1), "tokens"),
        }

        def latents(span: Span) -> Factor:
            return (new if absorbed else span.present(new, past), "tokens")

        one = type(batch) is int and batch == 1
        requests = () if one else ((batch, "requests"),)
        terms = [
            Term(path, (_TWO, *shape, *requests, *entry.times))
            for entry in spec.ledger.entries
            for path, shape in _products(
                entry,
                tokens,
                latents,
                pairs,
                eager if in_transformers else None,
                absorbed=absorbed,
            )
        ]
        return Breakdown(Flops, f"FLOPs of {spec.name}", terms)

    return evaluate(
        partial(compute, bound=False),
        _total,
        bounding=partial(compute, bound=True),
        batch=batch,
        new=new,
        past=past,
    )


def _products(
    entry: Entry,
    tokens: Mapping[str, Factor],
    latents: Callable[[Span], Factor],
    pairs: Callable[[Span], Any],
    eager: Eager | None,
    *,
    absorbed: bool,
) -> Iterator[tuple[tuple[str, ...], tuple[Factor, ...]]]:
    """Give the path and the factors of each matrix product of an item."""
    item = entry.item
    if isinstance(item, Linear):
        used: tuple[Factor, ...] = ()
        if item.active is not None:
            computed = item.active if eager is None else item.eager_active or item.active
            used = ((computed, "experts per token"),)
        elif item.blocks is not None:
            used = factors(((item.blocks,),))
        shape = (*used, *factors(item.out), *factors((item.into,)))
        met = latents(item.span) if item.tokens == "latent" else tokens[item.tokens]
        yield entry.name, (*shape, met)
    elif isinstance(item, Conv):
        shape = (*factors((item.channels,)), (item.into * item.kernel, "inputs"))
        outputs = tokens["all"] if eager is None else (eager.outputs(item), "outputs")
        yield entry.name, (*shape, outputs)
    elif isinstance(item, Scan):
        state = factors((item.state,))
        if eager is None or item.eager is None:
            yield entry.name, ((item.products, "products"), *state, tokens["all"])
            return
        for name, elements, count in eager.scans(item.eager):
            shape = state if elements is None else ((elements, "elements"),)
            yield (*entry.path, f"{item.name}.{name}"), (*shape, (count, "products"))
    elif isinstance(item, Mix):
        widths = (item.query_key, item.value)
        if absorbed and item.absorbed is not None:
            widths = item.absorbed
        span = item.span if eager is None else item.eager_span or item.span
        skips = eager is not None and item.eager_skips
        met = (eager.attended(span) if eager is not None and skips else pairs(span), "pairs")
        for name, width in zip(("scores", "values"), widths, strict=True):
            path = (*entry.path, f"{item.name}.{name}")
            yield path, (*factors(((item.heads, width),)), met)


def _nothing_moved(**workload: Any) -> InvalidValueError:
    """Return the error for an intensity without bytes, which names what is 0."""
    empty = next(field for field, value in workload.items() if not _everywhere(value > 0))
    return InvalidValueError(empty, workload[empty], "must be at least 1: an intensity needs bytes")


#: A multiply-accumulate is two operations.
_TWO: Final = (2, "FLOP")


def _pairs(queries: Any, keys: Any, causal: bool) -> Any:
    if causal:
        return Full().pairs(queries, keys - queries)
    return queries * keys


def _assignment_elements(
    queries: Any, keys: Any, width: int, batch: Any, shared_kv: bool | None
) -> Any:
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


def _total(breakdown: Breakdown[Any, int]) -> int:
    return breakdown.total


def _itself(value: int) -> int:
    return value
