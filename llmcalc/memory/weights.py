"""Weights: their bytes on one device.

* `weight_bytes`: bytes of the weights on one device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcalc import formats
from llmcalc.breakdown import Breakdown
from llmcalc.folds.breakdowns import FoldBreakdown
from llmcalc.folds.owners import ranks_of
from llmcalc.folds.storage import Formats, weights_held
from llmcalc.folds.workloads import NOTHING
from llmcalc.layouts import Layout
from llmcalc.memory.placed import owner_of, placed
from llmcalc.spec.model import ModelSpec
from llmcalc.units import Bytes

if TYPE_CHECKING:
    from llmcalc.boundary import Int
    from llmcalc.formats import Format, Scheme

__all__ = ["weight_bytes"]


def weight_bytes(
    spec: ModelSpec,
    *,
    weights: str | Format | Scheme,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
) -> Breakdown[Bytes]:
    r"""Return the bytes of the weights that one device holds.

    .. math:: \sum_{\text{distinct weights}} \text{count} \cdot
              \text{format.bytes}(\text{rows}_r, \text{columns}_r)

    `weights` is the format of an element, taken for every weight; a quantised format or a mix of
    llama.cpp, which leave some tensors wide; ``"checkpoint"`` for what the model's config states;
    or a scheme of your own (see `llmcalc.formats.scheme`). `rank` is the device; by default
    it is the one that holds most. Raises `llmcalc.LlmcalcError` for an unknown format and
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
    if rank is None:
        held = placed(spec, Formats(weights, "bf16"), tensor_parallel, layout)
        return held.weights_on(held.totals.index(max(held.totals)))
    scheme = formats.scheme(weights, spec)
    [one] = ranks_of(spec, tensor_parallel, layout, rank)
    fold = weights_held(spec.ledger, owner_of(one.layout, one), scheme).on(one.stage)
    return FoldBreakdown(
        Bytes, f"Weights of {spec.name} in {scheme.name}{one.title}", fold, NOTHING
    )
