"""Textbook formulas of memory, for one look or for a check by hand.

* `gqa_kv_bytes`: the KV cache of grouped-query attention.
"""

from __future__ import annotations

from llmcalc.boundary import whole_number

__all__ = ["gqa_kv_bytes"]


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
