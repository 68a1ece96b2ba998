"""What a `TinyDecoder` holds between calls, and what the layers of one forward pass share.

* `KVCache`: keys and values of every layer.
* `Pass`: one forward pass over new tokens: its sizes, positions and mask.

Shapes in the comments are those of `llmcalc.models.tiny_decoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Function", "KVCache", "LayerFunction", "Pass"]

#: A layer, or its attention: what it makes of the new tokens, in a pass, as the layer of a number.
LayerFunction: TypeAlias = "Callable[[Tensor, Pass, int], Tensor]"
#: A norm, or the head: a tensor of another.
Function: TypeAlias = Callable[[Tensor], Tensor]


class KVCache:
    """Keys and values of every layer, allocated once for `capacity` tokens a row.

    `keys` and `values` hold a tensor (capacity, B, K, D) for each layer; `lengths` says how many
    tokens of each row are in. `TinyDecoder.new_cache` makes one; a decoder appends to it.

    >>> from llmcalc import ModelSpec
    >>> from llmcalc.models.tiny_decoder import TinyDecoder
    >>> spec = ModelSpec.assignment_decoder(
    ...     vocab_size=10, d_model=8, d_ff=16, num_layers=2, max_seq_len=32
    ... )
    >>> cache = TinyDecoder(spec).new_cache(batch=3, capacity=20)
    >>> cache.nbytes, cache.lengths
    (7680, (0, 0, 0))
    """

    # The token is the outermost axis, so that strides and alignment of what is read depend on
    # the rows and heads, never on the capacity: matrix libraries choose their kernels by both,
    # and a larger capacity must not change the last bit of a result.

    def __init__(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], lengths: Sequence[int]
    ) -> None:
        self.keys: tuple[Tensor, ...] = tuple(keys)
        self.values: tuple[Tensor, ...] = tuple(values)
        self.lengths: tuple[int, ...] = tuple(lengths)
        #: (K, D) of every layer.
        self.heads: tuple[tuple[int, ...], ...] = tuple(tuple(key.shape[2:]) for key in keys)
        #: The same tensors as attention reads them, (B, K, capacity, D).
        self._views = tuple(
            (key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3))
            for key, value in zip(keys, values, strict=True)
        )
        #: The decoder that read the prompt, and its layers and head as functions.
        self._bound: tuple[nn.Module, Sequence[LayerFunction], Function] | None = None

    @property
    def batch(self) -> int:
        """The number of rows."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """The tokens that each row has room for."""
        return self.keys[0].shape[0]

    @property
    def nbytes(self) -> int:
        """The bytes of all keys and values, as allocated."""
        return sum(tensor.nbytes for tensor in self.keys + self.values)

    def clone(self) -> KVCache:
        """Return a copy that can go another way from here."""
        return KVCache(
            [tensor.clone() for tensor in self.keys],
            [tensor.clone() for tensor in self.values],
            self.lengths,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what it holds; views and functions are made anew."""
        return KVCache, (self.keys, self.values, self.lengths)

    def _append(
        self, layer: int, keys: Tensor, values: Tensor, step: Pass
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values (T, B, K, D) of one layer; view all (B, K, L, D)."""
        all_keys, all_values = self.keys[layer], self.values[layer]
        if step.uniform:
            all_keys[step.start : step.end] = keys
            all_values[step.start : step.end] = values
        else:
            for row, (start, count) in enumerate(zip(step.past, step.counts, strict=True)):
                all_keys[start : start + count, row] = keys[:count, row]
                all_values[start : start + count, row] = values[:count, row]
        held_keys, held_values = self._views[layer]
        return held_keys.narrow(2, 0, step.end), held_values.narrow(2, 0, step.end)


class Pass:
    """What all layers of one forward pass share: cache, sizes, positions and the mask."""

    #: The first new position of any row, how many there are, and L, the most tokens that any row
    #: attends.
    start: int
    new: int
    end: int

    def __init__(self, cache: KVCache | None, counts: Sequence[int], *, explicit: bool) -> None:
        self.cache = cache
        self.explicit = explicit
        #: Tokens of each row before the pass, and new ones; T is the most of them.
        self.past: Sequence[int] = (0,) * len(counts) if cache is None else cache.lengths
        self.counts = counts
        self.batch: int = len(counts)
        past, new = self.past[0], counts[0]
        #: Whether all rows are equally long: then no row needs a mask of its own.
        self.uniform: bool = self.past.count(past) == self.batch == counts.count(new)
        self.start, self.new, self.end = past, new, past + new
        self.ends: tuple[int, ...] = (self.end,) * self.batch
        if not self.uniform:
            self.ends = tuple(map(sum, zip(self.past, counts, strict=True)))
            self.start, self.new, self.end = min(self.past), max(counts), max(self.ends)
        #: Whether the new tokens attend nothing but each other: the fast path needs no mask then.
        self.alone: bool = self.uniform and not self.start
        #: Cosines and sines of rotary positions, (T, 1, 1, D) or (T, B, 1, D).
        self.turn: tuple[Tensor, Tensor] | None = None
        #: (T, L) or (B, 1, T, L), True where a query may look; `None` where it may look anywhere.
        self.mask: Tensor | None = None
        #: The final norm and the output matrix.
        self.head: Function
        #: The probability that an element is dropped.
        self.dropout: float = 0.0
        #: Whether one product may give queries, keys and values.
        self.joint: bool = False

    def begin(self, device: torch.device, dropout: float = 0.0) -> None:
        """Settle what is different in inference mode, and make the mask, if one is needed."""
        self.dropout = 0.0 if torch.is_inference_mode_enabled() else dropout
        self.joint = not (self.explicit or torch.is_grad_enabled())
        if not self.uniform:
            rows = torch.tensor(self.past, device=device)[:, None, None]
            self.mask = _causal(rows + torch.arange(self.new, device=device), self.end)
        elif self.new > 1 and (self.explicit or not self.alone):
            self.mask = _causal(torch.arange(self.start, self.end, device=device), self.end)


def _causal(queries: Tensor, keys: int) -> Tensor:
    """Say of each query's position (..., T) which of the first `keys` it sees: (..., T, keys)."""
    return torch.arange(keys, device=queries.device) <= queries[..., None]
