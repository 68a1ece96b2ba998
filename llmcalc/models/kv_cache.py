"""The KV cache of `llmcalc.models.tiny_decoder.TinyDecoder`.

* `KVCache`: preallocated keys and values of every layer, and how many positions each row holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from llmcalc.models.tiny_decoder import TinyDecoder

__all__ = ["KVCache"]


class _Store(NamedTuple):
    """One preallocated tensor and the two views of it that attention needs."""

    tensor: Tensor  # (capacity, batch, kv_heads, head_dim)
    rows: Tensor  # (capacity * batch, kv_heads * head_dim): one row a token, for writing
    heads: Tensor  # (batch * kv_heads, 1, capacity, head_dim): for reading

    @classmethod
    def of(cls, tensor: Tensor) -> _Store:
        capacity, batch, heads, width = tensor.shape
        return cls(
            tensor,
            tensor.view(capacity * batch, heads * width),
            tensor.view(capacity, batch * heads, 1, width).permute(1, 2, 0, 3),
        )


class KVCache:
    """Keys and values of every layer, for `batch` rows of at most `capacity` positions each.

    Made by `TinyDecoder.new_cache`, and valid for that decoder only. `keys` and `values` hold one
    tensor a layer, of shape (capacity, batch, kv_heads, head_dim), allocated once. Rows may hold
    different numbers of positions (`lengths`); what lies behind a row's length is never attended.

    >>> from llmcalc import ModelSpec, memory
    >>> from llmcalc.models.tiny_decoder import TinyDecoder
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
    ...     embed_dim=32, inner_dim=64, vocab_size=100,
    ... )
    >>> cache = TinyDecoder(spec).new_cache(batch=3, capacity=16)
    >>> cache.nbytes == memory.kv_cache_bytes(spec, context=16, batch=3, kv="fp32").total
    True
    >>> cache.lengths
    (0, 0, 0)
    """

    # The position is the outermost axis. So the strides and the alignment of what is read depend
    # on the batch and the heads, but never on the capacity: matrix libraries choose their kernels
    # by both, and a larger capacity must not change the last bit of a result. It is also the
    # order in which projections produce rows, so that they write here without a copy.

    __slots__ = ("_keys", "_lengths", "_values", "batch", "capacity", "decoder")

    def __init__(
        self, decoder: TinyDecoder, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]
    ) -> None:
        self.decoder = decoder
        self.capacity, self.batch = keys[0].shape[:2]
        self._keys = tuple(map(_Store.of, keys))
        self._values = tuple(map(_Store.of, values))
        self._lengths = (0,) * self.batch

    @classmethod
    def _allocate(cls, decoder: TinyDecoder, batch: int, capacity: int) -> KVCache:
        # Zeros, not empty: a masked score weighs a value by 0, and 0 times stray NaN is NaN.
        # Ordinary tensors even inside inference mode, so that they can be written outside it.
        with torch.inference_mode(False):
            keys, values = (
                tuple(
                    torch.zeros(
                        (capacity, batch, part.kv_heads, part.head_dim),
                        dtype=decoder.dtype,
                        device=decoder.device,
                    )
                    for part in decoder.attention_parts
                )
                for _ in range(2)
            )
        return cls(decoder, keys, values)

    @property
    def keys(self) -> tuple[Tensor, ...]:
        """The keys of each layer, (capacity, batch, kv_heads, head_dim)."""
        return tuple(store.tensor for store in self._keys)

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The values of each layer, (capacity, batch, kv_heads, head_dim)."""
        return tuple(store.tensor for store in self._values)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many positions each row holds."""
        return self._lengths

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the elements."""
        return self._keys[0].tensor.dtype

    def clone(self) -> KVCache:
        """Return an independent copy, which continues from the same positions."""
        with torch.inference_mode(False):
            other = KVCache(
                self.decoder,
                tuple(tensor.clone() for tensor in self.keys),
                tuple(tensor.clone() for tensor in self.values),
            )
        other._lengths = self._lengths
        return other

    def reset(self) -> None:
        """Forget every position; the memory is kept."""
        for tensor in (*self.keys, *self.values):
            tensor.zero_()
        self._lengths = (0,) * self.batch

    def __repr__(self) -> str:
        return f"KVCache(batch={self.batch}, capacity={self.capacity}, lengths={self.lengths})"
