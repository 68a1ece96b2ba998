"""Decoders, prompts and comparisons for tests of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from llmcalc.models.tiny_decoder import KVCache, TinyDecoder
from llmcalc.spec import ModelSpec

torch.set_num_threads(1)

#: Most differences between cached and uncached logits, relative to the largest logit or to 1.
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-4}


def build(
    spec: ModelSpec,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    attention: str = "fast",
    scale: float = 30.0,
) -> TinyDecoder:
    """Return a decoder with weights so large that every part of it shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    decoder = TinyDecoder(spec, dtype=dtype, attention=attention, generator=generator)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.dim() > 1:
                weight.mul_(scale / max(1.0, weight.shape[1] ** 0.5))
            else:  # biases and norms say nothing while they are 0 and 1
                weight.add_(torch.randn(weight.shape, generator=generator, dtype=dtype) / 4)
            assert weight.isfinite().all(), name
    return decoder.eval()


def prompt(spec: ModelSpec, tokens: int, *, batch: int = 1, seed: int = 1) -> Tensor:
    """Return random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(spec.embedding.vocab_size, (batch, tokens), generator=generator)


def difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest logit or to 1; nan is infinite."""
    got, expected = got.detach().double(), expected.detach().double()
    gap = (got - expected).abs().max()
    gap = gap / expected.abs().max().clamp(min=1)
    return float(gap) if bool(gap.isfinite()) else float("inf")


def in_chunks(
    decoder: TinyDecoder, ids: Tensor, chunks: Sequence[int], cache: KVCache | None = None
) -> Tensor:
    """Return all logits of `ids`, read into a cache in chunks of the given sizes."""
    batch, tokens = ids.shape
    if cache is None:
        cache = decoder.new_cache(batch=batch, capacity=tokens)
    parts = torch.split(ids, list(chunks), dim=1)
    return torch.cat([decoder(part, cache=cache) for part in parts], dim=1)


@st.composite
def chunkings(draw: st.DrawFn, tokens: int) -> list[int]:
    """Draw sizes of at least 1 that sum to `tokens`."""
    cuts = draw(st.sets(st.integers(1, tokens - 1), max_size=tokens - 1)) if tokens > 1 else set()
    ends = [0, *sorted(cuts), tokens]
    return [end - start for start, end in pairwise(ends)]
