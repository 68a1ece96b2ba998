r"""The FLOPs of a whole model's step, as a fold over its ledger.

* `flops`: the matrix products of one step, item by item.

Conventions: one multiply-accumulate is two FLOPs. Matrix products and convolutions are counted, as
PyTorch's counter does, with causal pairs and logits for the last token unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from llmcalc.boundary import choice, evaluate, flag_argument, smaller
from llmcalc.breakdown import Breakdown, Factor, Term
from llmcalc.eager import Eager
from llmcalc.spec.axes import WHOLE, Split, check_ranks, factors
from llmcalc.spec.items import Conv, Linear, Mix, Scan
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.spans import Span
from llmcalc.units import Flops

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray

__all__ = ["flops"]

#: A multiply-accumulate is two operations.
_TWO: Final = (2, "FLOP")


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
    tensor_parallel: Int = 1,
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
    tensor_parallel: Int = 1,
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
    tensor_parallel: Int = 1,
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
    tensor_parallel: Int = 1,
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
    tensor_parallel: Int = 1,
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

    With `tensor_parallel` the figures are those of rank 0 of so many, which no other exceeds.

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
    degree, _ = check_ranks(tensor_parallel, 0)
    split = WHOLE if degree == 1 else Split(ranks=degree)
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
                eager=eager if in_transformers else None,
                split=split,
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
    *,
    eager: Eager | None,
    split: Split,
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
            used = factors(((item.blocks,),), split)
        shape = (*used, *factors(item.out, split), *factors((item.into,), split))
        met = latents(item.span) if item.tokens == "latent" else tokens[item.tokens]
        yield entry.name, (*shape, met)
    elif isinstance(item, Conv):
        shape = (*factors((item.channels,), split), (item.into * item.kernel, "inputs"))
        outputs = tokens["all"] if eager is None else (eager.outputs(item), "outputs")
        yield entry.name, (*shape, outputs)
    elif isinstance(item, Scan):
        state = factors((item.state,), split)
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
            yield path, (*factors(((item.heads, width),), split), met)


def _total(breakdown: Breakdown[Any, int]) -> int:
    return breakdown.total
