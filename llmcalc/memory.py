r"""Memory: parameters, weight bytes, KV cache, and what fits on a device.

Counting:

* `parameters`: parameters of the whole model.
* `active_parameters`: those that one token passes through.
* `weight_bytes`: bytes of the weights on one device.
* `kv_cache_bytes`: bytes that requests hold between steps on one device.

What fits on a device:

* `fit`: whether a batch of requests fits, with what is left or missing, and the working.
* `max_batch_size`: the most requests of a context length that fit.
* `max_context`: the longest context that a batch of requests can have.

Textbook formulas, for one look or for a check by hand:

* `gqa_kv_bytes`: the KV cache of grouped-query attention.

Conventions: figures are per device. Under tensor parallelism every rank holds an equal share of
the heads, of the inner width and of the vocabulary (the first ranks one row more where it does
not divide); norms, position tables and the biases of row-split matrices are replicated, and KV
heads too where there are more ranks than heads. Nothing is subtracted for activations,
fragmentation or the engine's own use. GB is 10**9 bytes, GiB is 2**30.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, overload

import attrs

from llmcalc import formats
from llmcalc.boundary import choice, elementwise, evaluate, is_array, smaller, whole_number
from llmcalc.breakdown import Breakdown, Factor, Term
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import WHOLE, Axes, Split, check_ranks, factors
from llmcalc.spec.items import Cache, CacheRole
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.spans import Chunk, Window
from llmcalc.units import Bytes, Params, format_integer, format_quantity

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.formats import Format

__all__ = [
    "ContextLimit",
    "Fit",
    "active_parameters",
    "fit",
    "gqa_kv_bytes",
    "kv_cache_bytes",
    "max_batch_size",
    "max_context",
    "parameters",
    "weight_bytes",
]


def parameters(spec: ModelSpec) -> Breakdown[Params]:
    r"""Return the parameters of the whole model, every stored weight once.

    .. math:: P = \sum_{\text{distinct weights}} \text{count} \prod \text{shape}

    A tied head adds none. Parameters never depend on parallelism or format.

    >>> from llmcalc import ModelSpec, memory
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
    ...     embed_dim=64, inner_dim=128, vocab_size=100,
    ... )
    >>> print(memory.parameters(spec)["norms"].explain())
    Parameters of tiny: norms
      attention_norm.weight     64 embed x 2 layers = 128 parameters
      feed_forward_norm.weight  64 embed x 2 layers = 128 parameters
      final_norm.weight         64 embed = 64 parameters
      total 320 parameters
    """
    terms = [
        Term(tensor.path, tensor.row_factors + tensor.column_factors + tensor.times)
        for tensor in spec.ledger.tensors
    ]
    return Breakdown(Params, f"Parameters of {spec.name}", terms)


def active_parameters(spec: ModelSpec) -> Breakdown[Params]:
    r"""Return the parameters that one token passes through: of the experts, those it is routed to.

    .. math:: P_\text{active} = P - \sum_{\text{routed}} P_\text{routed}
              \left(1 - \frac{k}{E}\right)

    Everything else counts in full, the embedding tables too.

    >>> from llmcalc import load_model, memory
    >>> mixtral = load_model({
    ...     "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32,
    ...     "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    ...     "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
    ... }, name="mixtral-8x7b")
    >>> memory.parameters(mixtral).total, memory.active_parameters(mixtral).total
    (46702792704, 12879925248)
    """
    terms = [
        Term(
            tensor.path,
            tensor.active_factors + tensor.column_factors + tensor.times,
        )
        for tensor in spec.ledger.tensors
    ]
    return Breakdown(Params, f"Active parameters of {spec.name}", terms)


def weight_bytes(
    spec: ModelSpec, *, weights: str | Format, tensor_parallel: Int = 1, rank: Int = 0
) -> Breakdown[Bytes]:
    r"""Return the bytes of the weights that one device of a tensor-parallel group holds.

    .. math:: \sum_{\text{distinct weights}} \text{count} \cdot
              \text{format.bytes}(\text{rows}_r, \text{columns}_r)

    `weights` is a format (see `llmcalc.formats`), taken for every weight, or ``"checkpoint"``
    for the format that the model's config states. `rank` is the device; rank 0, the default,
    never holds less than another one. Raises `llmcalc.LlmcalcError` for an unknown format and
    for a degree that does not divide the heads or the inner width.

    >>> from llmcalc import ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> memory.weight_bytes(llama, weights="bf16").total
    16060522496
    >>> memory.weight_bytes(llama, weights="bf16", tensor_parallel=2).total
    8030527488
    """
    storage = weight_format(spec, weights)
    degree, number = check_ranks(tensor_parallel, rank)
    return _weight_bytes(spec, storage, degree, number)


def _weight_bytes(spec: ModelSpec, storage: Format, degree: int, rank: int) -> Breakdown[Bytes]:
    terms = []
    for tensor in spec.ledger.tensors:
        rows, columns = tensor.share(WHOLE if degree == 1 else Split(ranks=degree, rank=rank))
        terms.append(Term(tensor.path, rows + stored(columns, storage) + tensor.times))
    return Breakdown(Bytes, f"Weights of {spec.name} in {storage.name}", terms)


@overload
def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context: Int,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    batch: Int = 1,
    tensor_parallel: Int = 1,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes]: ...
@overload
def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context: IntArray,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes, IntArray]: ...
@overload
def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context: Int,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    batch: IntArray,
    tensor_parallel: Int = 1,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes, IntArray]: ...
def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context: Int | IntArray,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes, Any]:
    r"""Return the bytes that `batch` requests of `context` tokens hold on one device.

    .. math:: \sum_{\text{caches}} \text{layers} \cdot \text{batch} \cdot
              \text{slots}(\text{context}) \cdot \text{heads}_r \cdot \text{head_dim} \cdot
              \text{element bytes}

    `context` and `batch` take an integer or an integer array. `kv` is the format of keys and
    values and of the latents that stand for them, `index` that of a sparse indexer's keys (by
    default `kv`'s), `state` that of recurrent states and of the inputs that convolutions keep. A
    windowed layer holds at most its window. All ranks hold the same number of bytes.

    `policy` is ``"ideal"``, what a serving engine needs to hold, or ``"transformers"``, what the
    caches of transformers 5 hold: a windowed layer one slot less, a convolution all inputs of its
    kernel, and some models more or wider layers than they need.

    >>> from llmcalc import ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> print(memory.kv_cache_bytes(llama, context=1024, kv="bf16").explain())
    KV cache per request
      k  8 kv_heads x 128 head_dim x 1024 tokens x 32 layers x 2 bytes = 67 108 864 B
      v  8 kv_heads x 128 head_dim x 1024 tokens x 32 layers x 2 bytes = 67 108 864 B
      total 134 217 728 B (0.125 GiB)
    """
    elements = cache_formats(kv, state, index)
    degree, _ = check_ranks(tensor_parallel, 0)
    choice(policy, "policy", ("ideal", "transformers"))
    held = _held_in_transformers if policy == "transformers" else _held

    def fold(context: Any, batch: Any) -> Breakdown[Bytes, Any]:
        return _cache_bytes(spec, context, batch, elements, degree, held=held)

    return evaluate(fold, _total, context=context, batch=batch)


def cache_formats(
    kv: str | Format, state: str | Format, index: str | Format | None
) -> dict[CacheRole, Format]:
    """Give the format of every cache role."""
    keys = formats.get(kv, "kv")
    recurrent = formats.get(state, "state")
    indexer = keys if index is None else formats.get(index, "index")
    return {"kv": keys, "latent": keys, "index": indexer, "state": recurrent, "conv": recurrent}


def _cache_bytes(
    spec: ModelSpec,
    context: Any,
    batch: Any,
    elements: Mapping[CacheRole, Format],
    degree: int,
    *,
    held: Callable[[Cache, Any], Iterable[_Held]] | None = None,
) -> Breakdown[Bytes, Any]:
    one = type(batch) is int and batch == 1
    requests: tuple[Factor, ...] = () if one else ((batch, "requests"),)
    terms = []
    for entry, cache in spec.ledger.caches:
        for shape, slots in (held or _held)(cache, context):
            *outer, inner = shape
            split = WHOLE if degree == 1 else Split(ranks=degree)
            row = stored(factors(((inner,),), split), elements[cache.role])
            terms.append(
                Term(
                    entry.name,
                    (
                        *factors((tuple(outer),), split),
                        *row[:-1],
                        slots,
                        *entry.times,
                        row[-1],
                        *requests,
                    ),
                )
            )
    return Breakdown(Bytes, "KV cache per request" if one else "KV cache", terms)


#: A shape, and how many slots of it are held as a named factor.
_Held: TypeAlias = tuple[Axes, tuple[Any, str]]


def _held(cache: Cache, context: Any) -> Iterator[_Held]:
    """Give what an engine holds."""
    yield cache.shape, (cache.span.slots(context), cache.span.slot_name)


def _held_in_transformers(cache: Cache, context: Any) -> Iterator[_Held]:
    """Give what transformers holds: where nothing else is stated, a window's last slot is not."""
    if cache.in_transformers is not None:
        for shape, span in cache.in_transformers:
            yield shape, (span.slots(context), span.slot_name)
    elif isinstance(cache.span, Window | Chunk):
        slots = smaller(context, cache.span.size - 1)
        yield cache.shape, (slots, f"tokens (window {cache.span.size} - 1)")
    else:
        yield from _held(cache, context)


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Fit(Described):
    """Whether a batch fits on one device, and the working. ``bool(fit)`` is ``fit.fits``.

    All figures are bytes on one device, of rank 0, which no other rank exceeds; `cache_bytes` is
    of one request.
    """

    device_memory: int
    weight_bytes: Breakdown[Bytes]
    cache_bytes: Breakdown[Bytes]
    batch: int
    context: int

    def __bool__(self) -> bool:
        return self.fits

    @cached_property
    def needed_bytes(self) -> int:
        """What the weights and the whole batch need."""
        return self._weights + self.batch * self._request

    @property
    def fits(self) -> bool:
        """Whether what is needed is at most the device's memory."""
        return self.needed_bytes <= self.device_memory

    @property
    def left_bytes(self) -> int:
        """What is left when the batch is in, or 0."""
        return max(0, self.device_memory - self.needed_bytes)

    @property
    def short_bytes(self) -> int:
        """What is missing for the batch to fit, or 0."""
        return max(0, self.needed_bytes - self.device_memory)

    @property
    def max_batch_size(self) -> int | None:
        """The most such requests that fit; `None` where they hold nothing."""
        left = self.device_memory - self._weights
        if left < 0:
            return 0
        return left // self._request if self._request else None

    @cached_property
    def _weights(self) -> int:
        return self.weight_bytes.total

    @cached_property
    def _request(self) -> int:
        return self.cache_bytes.total

    @property
    def reason(self) -> str:
        """One sentence: what fits or what does not, and by how much."""
        memory = format_quantity(self.device_memory, Bytes)
        if self.fits:
            return f"fits: {format_quantity(self.left_bytes, Bytes)} of {memory} are left"
        alone = self._weights > self.device_memory
        what = "the weights alone need" if alone else "weights and cache need"
        needed = self._weights if alone else self.needed_bytes
        return (
            f"does not fit: {what} {format_quantity(needed, Bytes)}, the device has {memory}; "
            f"short by {format_quantity(needed - self.device_memory, Bytes)}"
        )

    def explain(self) -> str:
        """Return the working: weights, cache of one request, and the division."""
        left = self.device_memory - self._weights
        if left < 0:
            batch = "max batch size = 0: the weights do not fit"
        elif not self._request:
            batch = "max batch size: not limited by memory (requests hold nothing)"
        else:
            batch = (
                f"max batch size = floor({format_integer(left)} B left / "
                f"{format_integer(self._request)} B per request) "
                f"= {self.max_batch_size}"
            )
        return "\n".join(
            (self.weight_bytes.explain(), self.cache_bytes.explain(), batch, self.reason)
        )


def fit(
    spec: ModelSpec,
    *,
    device_memory: Int,
    context: Int,
    weights: str | Format,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    batch: Int = 1,
    tensor_parallel: Int = 1,
) -> Fit:
    """Return whether `batch` requests of `context` tokens fit on each device, with the working.

    `device_memory` is in bytes, per device. A batch that does not fit is an answer, not an error:
    `Fit.reason` says what is missing and `Fit.short_bytes` how much.

    >>> from llmcalc import GiB, ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> answer = memory.fit(
    ...     llama, device_memory=80 * GiB, context=1024, batch=8, weights="bf16", kv="bf16"
    ... )
    >>> answer.fits, answer.max_batch_size
    (True, 520)
    >>> memory.fit(
    ...     llama, device_memory=8 * GiB, context=1024, weights="bf16", kv="bf16"
    ... ).short_bytes
    7604805632
    """
    storage = weight_format(spec, weights)
    elements = cache_formats(kv, state, index)
    degree, rank = check_ranks(tensor_parallel, 0)
    tokens = whole_number(context, "context")
    return Fit(
        device_memory=whole_number(device_memory, "device_memory"),
        weight_bytes=_weight_bytes(spec, storage, degree, rank),
        cache_bytes=_cache_bytes(spec, tokens, 1, elements, degree),
        batch=whole_number(batch, "batch"),
        context=tokens,
    )


@overload
def max_batch_size(
    spec: ModelSpec,
    *,
    device_memory: Int,
    context: Int,
    weights: str | Format,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
) -> int | None: ...
@overload
def max_batch_size(
    spec: ModelSpec,
    *,
    device_memory: IntArray,
    context: Int | IntArray,
    weights: str | Format,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
) -> IntArray: ...
@overload
def max_batch_size(
    spec: ModelSpec,
    *,
    device_memory: Int,
    context: IntArray,
    weights: str | Format,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
) -> IntArray: ...
def max_batch_size(
    spec: ModelSpec,
    *,
    device_memory: Int | IntArray,
    context: Int | IntArray,
    weights: str | Format,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
) -> int | IntArray | None:
    r"""Return the most requests of `context` tokens that fit on a device beside the weights.

    .. math:: b = \left\lfloor \frac{\text{device memory} - \text{weights}}
                                    {\text{cache per request}} \right\rfloor

    0 where not even one fits (`fit` says why), `None` where requests hold nothing, so that memory
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
    if is_array(device_memory) or is_array(context):
        return _max_batch_sizes(
            spec,
            device_memory,
            context,
            weights=weights,
            kv=kv,
            state=state,
            index=index,
            tensor_parallel=tensor_parallel,
        )
    return fit(
        spec,
        device_memory=device_memory,  # type: ignore[arg-type]  # arrays went the other way
        context=context,  # type: ignore[arg-type]
        weights=weights,
        kv=kv,
        state=state,
        index=index,
        tensor_parallel=tensor_parallel,
    ).max_batch_size


def _max_batch_sizes(
    spec: ModelSpec,
    device_memory: Int | IntArray,
    context: Int | IntArray,
    *,
    weights: str | Format,
    kv: str | Format,
    state: str | Format,
    index: str | Format | None,
    tensor_parallel: Int,
) -> IntArray:
    import numpy as np

    weight_total = weight_bytes(spec, weights=weights, tensor_parallel=tensor_parallel).total
    elements = cache_formats(kv, state, index)
    degree, _ = check_ranks(tensor_parallel, 0)

    def fold(device_memory: Any, context: Any) -> tuple[Any, Any]:
        request = _cache_bytes(spec, context, 1, elements, degree).total
        return device_memory - weight_total, request

    def bound(amounts: tuple[int, int]) -> int:
        return max(weight_total, *amounts)

    left, request = evaluate(fold, bound, device_memory=device_memory, context=context)
    sizes: IntArray = np.maximum(left, 0) // np.maximum(request, 1)
    unlimited = (request == 0) & (left >= 0)
    if unlimited.any():
        sizes = sizes.astype(np.object_)
        sizes[unlimited] = None
    return sizes


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
def max_context(
    spec: ModelSpec,
    *,
    device_memory: Int,
    weights: str | Format,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    batch: Int = 1,
    tensor_parallel: Int = 1,
) -> ContextLimit | None: ...
@overload
def max_context(
    spec: ModelSpec,
    *,
    device_memory: IntArray,
    weights: str | Format,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
) -> IntArray: ...
@overload
def max_context(
    spec: ModelSpec,
    *,
    device_memory: Int,
    weights: str | Format,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    batch: IntArray,
    tensor_parallel: Int = 1,
) -> IntArray: ...
def max_context(
    spec: ModelSpec,
    *,
    device_memory: Int | IntArray,
    weights: str | Format,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
) -> ContextLimit | IntArray | None:
    """Return the longest context, in tokens, that `batch` requests can have on a device.

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
    storage = weight_format(spec, weights)
    elements = cache_formats(kv, state, index)
    degree, rank = check_ranks(tensor_parallel, 0)
    weight_total = _weight_bytes(spec, storage, degree, rank).total

    def longest(device_memory: int, batch: int) -> ContextLimit | None:
        def fits(tokens: int) -> bool:
            request = _cache_bytes(spec, tokens, 1, elements, degree)
            return weight_total + batch * _total(request) <= device_memory

        return _longest_context(spec, batch, fits)

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


def gqa_kv_bytes(
    *,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    context: int,
    batch: int,
    element_bytes: int,
) -> int:
    r"""Return the KV cache of grouped-query attention in every layer, in bytes.

    .. math:: 2 \cdot \text{layers} \cdot \text{kv heads} \cdot \text{head dim} \cdot
              \text{context} \cdot \text{batch} \cdot \text{element bytes}

    The 2 is for keys and values. Multi-head attention has as many KV heads as query heads,
    multi-query attention one. Source: Pope et al., "Efficiently Scaling Transformer Inference"
    (2022), section 3.3.

    >>> from llmcalc import memory
    >>> memory.gqa_kv_bytes(
    ...     num_layers=32, num_kv_heads=8, head_dim=128, context=1024, batch=1, element_bytes=2
    ... )
    134217728
    """
    product = 2
    for field, value in (
        ("num_layers", num_layers),
        ("num_kv_heads", num_kv_heads),
        ("head_dim", head_dim),
        ("context", context),
        ("batch", batch),
        ("element_bytes", element_bytes),
    ):
        product *= whole_number(value, field)
    return product


def weight_format(spec: ModelSpec, weights: str | Format) -> Format:
    if weights != "checkpoint":
        return formats.get(weights, "weights")
    if spec.checkpoint is None:
        raise InvalidValueError(
            "weights", weights, f"{spec.name} does not state the format of its checkpoint"
        )
    return formats.get(spec.checkpoint, "checkpoint")


def _total(breakdown: Breakdown[Any, int]) -> int:
    return breakdown.total


def stored(columns: tuple[Factor, ...], storage: Format) -> tuple[Factor, ...]:
    """Give the factors whose product is the bytes of one row; the last one is the bytes."""
    size = storage.block_elements
    if size == 1:
        return (*columns, (storage.block_bytes, "bytes"))
    blocks = -(-prod(size for size, _ in columns) // size)
    return ((blocks, f"blocks of {size} elements"), (storage.block_bytes, "bytes"))
