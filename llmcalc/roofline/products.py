r"""The FLOPs of a whole model's step, as a fold over its ledger.

* `flops`: the matrix products of one step, item by item.
* `products`: that fold before the workload is known.

Conventions: one multiply-accumulate is two FLOPs. Matrix products and convolutions are counted, as
PyTorch's counter does, with causal pairs and logits for the last token unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, overload

from llmcalc.boundary import choice, flag_argument
from llmcalc.breakdown import Breakdown, Factor
from llmcalc.eager import at_hand
from llmcalc.roofline.counts import TOKENS, Count, Requests
from llmcalc.roofline.programs import Largest, Piece, Program, keep
from llmcalc.roofline.shares import Share, item_key, shares_of
from llmcalc.spec.axes import factors
from llmcalc.spec.items import Conv, Linear, Mix, Scan
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import ModelSpec
from llmcalc.units import Flops

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.layouts import Layout

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
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
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
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
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
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
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
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
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
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
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

    With a `layout`, or with `tensor_parallel` for short, the figures are those of one device: of
    `rank`, or of the one that computes most (of the pipeline stages, the one that does so at the
    largest workload of the call). `batch` is that of the whole layout. Where whole experts are
    dealt out to ranks, all of them get equally many tokens, and the first ranks the remainder.

    `mixed_with` are further requests of the same step, such as the chunk of a prompt that is
    computed together with decode steps.

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
    everything, absorbed, eager = logits == "all", mla == "absorbed", convention == "transformers"
    found = Largest()
    for share in shares_of(spec, tensor_parallel, layout, rank):
        fold = products(
            spec, share, causal=causal, everything=everything, absorbed=absorbed, eager=eager
        )
        found.add(share, fold)
    return found.breakdown(
        Flops, f"FLOPs of {spec.name}", lambda share: share.workload(batch, new, past, mixed_with)
    )


def products(
    spec: ModelSpec, share: Share, *, causal: bool, everything: bool, absorbed: bool, eager: bool
) -> Program:
    """Return the fold of the FLOPs that a share computes, before the workload is known.

    With `everything` all logits are computed; the other conventions are those of `flops`.
    """
    key = ("products", share.key, causal, everything, absorbed, eager)
    found = spec.ledger.programs.get(key)
    if found is None:
        conventions = _Conventions(causal, everything, absorbed, eager)
        pieces = [
            Piece(path, item_key(path), (_TWO, *shape), count, times)
            for entry in spec.ledger.entries
            for times in (share.times(entry),)
            if times is not None
            for path, shape, count in _products(entry, share, conventions)
        ]
        found = keep(spec.ledger, key, pieces)
    return found


class _Conventions(NamedTuple):
    causal: bool
    everything: bool
    absorbed: bool
    eager: bool

    def pairs(self, item: Mix) -> Count:
        """Return the pairs of queries and keys that are computed."""
        if self.eager:
            kind = "attended" if item.eager_skips else "rectangle"
            return Count(kind, "pairs", item.eager_span or at_hand(item.span))
        return Count("pairs" if self.causal else "rectangle", "pairs", item.span)

    def tokens(self, item: Linear, joint: bool) -> Count:
        """Return the tokens that pass through a matrix."""
        if item.tokens == "latent" and not self.absorbed:
            span = at_hand(item.span) if self.eager else item.span
            return Count("present", "tokens", span, joint)
        last = item.tokens == "logits" and not self.everything
        return Count("logits" if last else "tokens", "tokens", None, joint)


def _products(
    entry: Entry, share: Share, conventions: _Conventions
) -> Iterator[tuple[tuple[str, ...], tuple[Factor, ...], Count]]:
    """Give the path, the factors and the count of each matrix product of an item."""
    item, split = entry.item, share.split(entry)
    if isinstance(item, Linear):
        yield _linear(entry, item, share, conventions)
    elif isinstance(item, Conv):
        shape = (*factors((item.channels,), split), (item.into * item.kernel, "inputs"))
        outputs = Count("outputs", "outputs", item) if conventions.eager else TOKENS
        yield entry.name, shape, outputs
    elif isinstance(item, Scan):
        state = factors((item.state,), split)
        if not conventions.eager or item.eager is None:
            yield entry.name, ((item.products, "products"), *state), TOKENS
            return
        for name, elements in item.eager.kinds:
            shape = state if elements is None else ((elements, "elements"),)
            path = (*entry.path, f"{item.name}.{name}")
            yield path, shape, Count(name, "products", item.eager)
    elif isinstance(item, Mix):
        widths = (item.query_key, item.value)
        if conventions.absorbed and item.absorbed is not None:
            widths = item.absorbed
        for name, width in zip(("scores", "values"), widths, strict=True):
            shape = factors(((item.heads, width),), split)
            yield (*entry.path, f"{item.name}.{name}"), shape, conventions.pairs(item)


def _linear(
    entry: Entry, item: Linear, share: Share, conventions: _Conventions
) -> tuple[tuple[str, ...], tuple[Factor, ...], Count]:
    split, joint = share.split(entry), share.joint(entry)
    shape = (*factors(item.out, split), *factors((item.into,), split))
    if item.active is not None and item.experts is not None:
        dealt = share.dealt(entry, item.experts)
        if dealt is not None:
            of = (item.experts.size, item.active, *dealt)
            return entry.name, shape, Count("assigned", "tokens in experts", of, joint)
        used = item.active
        if conventions.eager and item.eager_active:
            used = item.eager_active
        shape = ((used, "experts per token"), *shape)
    elif item.blocks is not None:
        shape = (*factors(((item.blocks,),), split), *shape)
    return entry.name, shape, conventions.tokens(item, joint)
