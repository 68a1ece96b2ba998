r"""The bytes that a whole model's step moves, as a fold over its ledger.

* `bytes_moved`: what one step reads from and writes to a device's memory, item by item.
* `experts_touched`: how many experts a number of tokens reads.

Conventions: every weight that a step needs is read once, an embedding table by the rows that are
looked up. Keys and values at hand are read once a request and KV head, however many queries share
them, and those of new tokens are written. Activations are what each matrix product, convolution,
norm and attention reads and writes, with nothing fused but attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, overload

from llmcalc import formats
from llmcalc.boundary import choice, evaluate, flag_argument, is_array, smaller
from llmcalc.breakdown import Breakdown, Factor, Term
from llmcalc.memory import cache_formats, stored
from llmcalc.spec.axes import WHOLE, Axes, Axis, Split, check_ranks, factors
from llmcalc.spec.items import Conv, Linear, Mix, Scale, Table
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.spans import Span
from llmcalc.units import Bytes

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.formats import Format, Scheme

__all__ = ["ExpertReads", "bytes_moved", "experts_touched"]

#: How many distinct experts a step reads: the exact bounds, or the mean where every token picks
#: its experts uniformly at random.
ExpertReads: TypeAlias = Literal["fewest", "expected", "most"]

_EXPERT_READS: Final = ("fewest", "expected", "most")


def experts_touched(
    *, num_experts: int, experts_per_token: int, tokens: Any, reads: ExpertReads = "expected"
) -> Any:
    r"""Return how many distinct experts `tokens` tokens read.

    .. math:: E \left(1 - \left(1 - \tfrac{k}{E}\right)^{T}\right) \quad\text{expected, between}
              \quad k \text{ and } \min(E, k T)

    The expectation is a float, the bounds are integers. `tokens` takes an integer or an array.

    >>> from llmcalc import roofline
    >>> [
    ...     roofline.experts_touched(num_experts=8, experts_per_token=2, tokens=4, reads=reads)
    ...     for reads in ("fewest", "expected", "most")
    ... ]
    [2, 5.46875, 8]
    """
    choice(reads, "reads", _EXPERT_READS)
    if reads == "fewest":
        return smaller(tokens, 1) * experts_per_token
    if reads == "most":
        # No more than all of them, also where the product would be too large for an array.
        return smaller(smaller(tokens, num_experts) * experts_per_token, num_experts)
    missed = 1 - experts_per_token / num_experts
    if is_array(tokens):
        return num_experts * (1 - missed ** tokens.astype("float64"))
    return num_experts * (1 - missed**tokens)


@overload
def bytes_moved(
    spec: ModelSpec,
    *,
    batch: Int,
    new: Int,
    past: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    activations: str | Format = "bf16",
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    attention: Literal["flash", "standard"] = "flash",
    mla: Literal["expanded", "absorbed"] = "expanded",
    experts: ExpertReads = "expected",
    tensor_parallel: Int = 1,
) -> Breakdown[Bytes]: ...
@overload
def bytes_moved(
    spec: ModelSpec,
    *,
    batch: IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    activations: str | Format = "bf16",
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    attention: Literal["flash", "standard"] = "flash",
    mla: Literal["expanded", "absorbed"] = "expanded",
    experts: ExpertReads = "expected",
    tensor_parallel: Int = 1,
) -> Breakdown[Bytes, IntArray]: ...
@overload
def bytes_moved(
    spec: ModelSpec,
    *,
    batch: Int,
    new: IntArray,
    past: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    activations: str | Format = "bf16",
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    attention: Literal["flash", "standard"] = "flash",
    mla: Literal["expanded", "absorbed"] = "expanded",
    experts: ExpertReads = "expected",
    tensor_parallel: Int = 1,
) -> Breakdown[Bytes, IntArray]: ...
@overload
def bytes_moved(
    spec: ModelSpec,
    *,
    batch: Int,
    new: Int,
    past: IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    activations: str | Format = "bf16",
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    attention: Literal["flash", "standard"] = "flash",
    mla: Literal["expanded", "absorbed"] = "expanded",
    experts: ExpertReads = "expected",
    tensor_parallel: Int = 1,
) -> Breakdown[Bytes, IntArray]: ...
def bytes_moved(
    spec: ModelSpec,
    *,
    batch: Int | IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: str | Format = "fp32",
    index: str | Format | None = None,
    activations: str | Format = "bf16",
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    attention: Literal["flash", "standard"] = "flash",
    mla: Literal["expanded", "absorbed"] = "expanded",
    experts: ExpertReads = "expected",
    tensor_parallel: Int = 1,
) -> Breakdown[Bytes, Any]:
    r"""Return the bytes that one device moves in a step, item by item.

    `new` tokens follow `past` ones in each of `batch` requests. The groups are ``"weights"``,
    ``"cache read"``, ``"cache written"`` and ``"activations"``. `weights`, `kv`, `state` and
    `index` are formats as in `llmcalc.memory`, `activations` is the format of what flows between
    items. Attention is ``"flash"``, whose scores never leave the chip, or ``"standard"``, which
    writes and reads them twice; `causal` then says whether masked scores move as well. `experts`
    says how many distinct experts are read (`experts_touched`); with ``"expected"`` the bytes of
    mixtures are floats. With `tensor_parallel` the figures are rank 0's, which no other exceeds.

    >>> from llmcalc import ModelSpec, roofline
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> step = roofline.bytes_moved(llama, batch=1, new=1, past=4095, weights="bf16", kv="bf16")
    >>> for group, size in step.by().items():
    ...     print(f"{group:<13} {size:>14,}")
    weights       15,009,857,536
    cache read       536,870,912
    cache written        131,072
    activations        7,096,832
    """
    flag_argument(causal, "causal")
    choice(logits, "logits", ("last", "all"))
    choice(attention, "attention", ("flash", "standard"))
    choice(mla, "mla", ("expanded", "absorbed"))
    choice(experts, "experts", _EXPERT_READS)
    degree, _ = check_ranks(tensor_parallel, 0)
    traffic = _Traffic(
        spec,
        formats.scheme(weights, spec),
        cache_formats(kv, state, index),
        formats.get(activations, "activations"),
        split=WHOLE if degree == 1 else Split(ranks=degree),
        causal=causal,
        everything=logits == "all",
        standard=attention == "standard",
        absorbed=mla == "absorbed",
        experts=experts,
    )

    def total(breakdown: Breakdown[Bytes, Any]) -> int:
        return int(breakdown.total) + 1

    return evaluate(
        partial(traffic.breakdown, bound=False),
        total,
        bounding=partial(traffic.breakdown, bound=True),
        batch=batch,
        new=new,
        past=past,
    )


class _Traffic:
    """What is fixed of a step; `breakdown` adds the workload."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Scheme,
        caches: Any,
        activations: Format,
        *,
        split: Split,
        causal: bool,
        everything: bool,
        standard: bool,
        absorbed: bool,
        experts: ExpertReads,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.caches = caches
        self.activations = activations
        self.split = split
        self.causal = causal
        self.everything = everything
        self.standard = standard
        self.absorbed = absorbed
        self.experts = experts

    def breakdown(self, batch: Any, new: Any, past: Any, *, bound: bool) -> Breakdown[Bytes, Any]:
        """Return the bytes of a step; with `bound`, at least those of any smaller one."""
        terms = [
            *self._weights(batch, new),
            *self._caches(batch, new, past, bound=bound),
            *self._activations(batch, new, past, bound=bound),
        ]
        return Breakdown(Bytes, f"Bytes moved by {self.spec.name}", terms)

    def _weights(self, batch: Any, new: Any) -> Iterator[Term[Any]]:
        for entry, tensor in self.spec.ledger.weight_reads:
            item = entry.item
            rows, columns = tensor.share(self.split)
            if isinstance(item, Table):
                rows = ((new, "tokens"), *_requests(batch))
            elif isinstance(item, Linear) and item.active is not None and item.experts is not None:
                touched = experts_touched(
                    num_experts=item.experts.size,
                    experts_per_token=item.active,
                    tokens=batch * new,
                    reads=self.experts,
                )
                rows = tuple(
                    (touched, "experts read") if name == "experts" else (size, name)
                    for size, name in rows
                )
            for path, held in self.weights.stored(tensor, rows, columns):
                yield Term(("weights", *path), held)

    def _caches(self, batch: Any, new: Any, past: Any, *, bound: bool) -> Iterator[Term[Any]]:
        for entry, cache in self.spec.ledger.cache_reads:
            *outer, inner = cache.shape
            held = stored(factors(((inner,),), self.split), self.caches[cache.role])
            span = cache.span
            read = span.present(new, past) if bound else span.fetched(new, past)
            shape = (*factors((tuple(outer),), self.split), *held, *entry.times)
            name = span.slot_name
            yield Term(("cache read", *entry.name), (*shape, (read, name), *_requests(batch)))
            if cache.held:
                written = (new if bound else span.written(new, past), name)
                yield Term(("cache written", *entry.name), (*shape, written, *_requests(batch)))

    def _activations(self, batch: Any, new: Any, past: Any, *, bound: bool) -> Iterator[Term[Any]]:
        element = stored((), self.activations)
        requests = _requests(batch)
        last = new if self.everything else smaller(new, 1)

        def latents(span: Span) -> Any:
            return new if self.absorbed else span.present(new, past)

        for entry in self.spec.ledger.entries:
            for name, pieces, tokens in self._flows(entry, new, last, latents):
                yield Term(
                    ("activations", *entry.path, name),
                    (*factors(pieces, self.split), tokens, *requests, *entry.times, *element),
                )
            item = entry.item
            if self.standard and isinstance(item, Mix):
                span = item.span
                if self.causal:
                    pairs = span.most_pairs(new, past) if bound else span.pairs(new, past)
                else:
                    pairs = new * span.present(new, past)
                heads = factors(((item.heads,),), self.split)
                yield Term(
                    ("activations", *entry.path, f"{item.name}.scores"),
                    ((4, "passes"), *heads, (pairs, "pairs"), *requests, *entry.times, *element),
                )

    def _flows(
        self, entry: Entry, new: Any, last: Any, latents: Callable[[Span], Any]
    ) -> Iterator[tuple[str, tuple[Axes, ...], Factor]]:
        """Give the name, the axes read and written, and the tokens of an item's activations."""
        item = entry.item
        tokens = (new, "tokens")
        if isinstance(item, Linear):
            if item.tokens != "all":
                tokens = (last if item.tokens == "logits" else latents(item.span), "tokens")
            pieces = (item.into, *item.out)
            if item.active is not None:
                used = Axis("experts per token", item.active)
                pieces = tuple((used, *piece) for piece in pieces)
            yield item.name, pieces, tokens
        elif isinstance(item, Mix):
            query_key, value = item.query_key, item.value
            if item.absorbed is not None:
                if self.absorbed:
                    query_key, value = item.absorbed
                else:  # the expanded keys and values, which are no cache
                    pieces = ((item.heads, query_key), (item.heads, value))
                    yield f"{item.name}.expanded", pieces, (latents(item.span), "tokens")
            yield item.name, ((item.heads, query_key), (item.heads, value)), tokens
        elif isinstance(item, Conv):
            yield item.name, (item.channels, item.channels), tokens
        elif isinstance(item, Scale) and item.name.endswith("norm.weight"):
            yield item.name, (item.axes, item.axes), (last, "tokens") if entry.after else tokens


def _requests(batch: Any) -> tuple[Factor, ...]:
    return () if type(batch) is int and batch == 1 else ((cast("Any", batch), "requests"),)
