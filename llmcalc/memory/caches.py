"""Caches: what requests hold between steps on one device.

* `kv_cache_bytes`: bytes that requests hold between steps on one device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from llmcalc.boundary import choice, is_array
from llmcalc.breakdown import Breakdown, Term
from llmcalc.folds.breakdowns import ArrayTerm, FoldBreakdown
from llmcalc.folds.owners import ranks_of
from llmcalc.folds.pieces import Fold
from llmcalc.folds.storage import Formats, caches_held
from llmcalc.folds.workloads import Workload
from llmcalc.layouts import Layout, Rank
from llmcalc.memory.placed import owner_of
from llmcalc.spec.kept import kept
from llmcalc.spec.model import ModelSpec
from llmcalc.units import Bytes

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.folds.storage import StateFormat
    from llmcalc.formats import Format

__all__ = ["kv_cache_bytes"]


@overload
def kv_cache_bytes(  # type: ignore[overload-overlap]
    spec: ModelSpec,
    *,
    context: Int,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes]: ...
@overload
def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context: Int | IntArray,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes, IntArray]: ...
def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context: Int | IntArray,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes, Any]:
    r"""Return the bytes that `batch` requests of `context` tokens hold on one device.

    .. math:: \sum_{\text{caches}} \text{layers} \cdot \text{batch} \cdot
              \text{slots}(\text{context}) \cdot \text{heads}_r \cdot \text{head_dim} \cdot
              \text{element bytes}

    `context` and `batch` take an integer or an integer array. `kv` is the format of keys and
    values and of the latents that stand for them, or ``"fp8-ds-mla"``, as vLLM and SGLang pack
    latents for sparse attention: the rotated part stays in bfloat16. `index` is the format of a
    sparse indexer's keys (by default `kv`'s; engines take ``"fp8-group128"``), `state` that of
    recurrent states and of the inputs that convolutions keep, or ``{"state": ..., "conv": ...}``
    where these differ. A windowed layer holds at most its window. `rank` is the device; by default
    it is the one that holds most, for each element of an array by itself.

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
    elements = Formats.given("bf16", kv, state, index).caches()
    ranks = ranks_of(spec, tensor_parallel, layout, rank)
    choice(policy, "policy", ("ideal", "transformers"))
    first = ranks[0]
    fold = kept(spec.ledger, caches_held, owner_of(first.layout, first), elements, policy)
    replicas = first.layout.data_parallel
    workload = Workload.holding(batch, context, replicas=replicas, replica=first.replica)
    own = first.requests(batch) if type(batch) is int else batch
    title = "KV cache per request" if type(own) is int and own == 1 else "KV cache"
    if len(ranks) == 1:
        return FoldBreakdown(Bytes, f"{title}{first.title}", fold.on(first.stage), workload)
    return _on_fullest(title, fold, workload, ranks)


def _on_fullest(
    title: str, fold: Fold, workload: Workload, ranks: tuple[Rank, ...]
) -> Breakdown[Bytes, Any]:
    """Return what is held on the rank that holds most, for each element of an array by itself."""
    values = fold.values(workload)
    totals = [values.total(fold.sum_on(rank.stage)) for rank in ranks]
    layers: list[Any]
    if values.shape is None:
        stage = ranks[totals.index(max(totals))].stage
        layers = [piece.on(stage) for piece in fold.pieces]
    else:
        import numpy as np

        best = np.argmax(np.stack(totals), axis=0)
        layers = [
            np.asarray([piece.on(rank.stage) for rank in ranks])[best] for piece in fold.pieces
        ]
    factors = {
        count: workload.factors(count, value, wide=values.wide)
        for count, value in zip(fold.counts, values.each, strict=True)
    }
    terms: list[Term[Any]] = []
    for piece, number in zip(fold.pieces, layers, strict=True):
        if not is_array(number) and not number:
            continue
        for path, found in piece.terms(factors[piece.per], number):
            term = Term(path, found)
            terms.append(term if values.shape is None else ArrayTerm(path, found, values))
    return Breakdown(Bytes, title, terms)
