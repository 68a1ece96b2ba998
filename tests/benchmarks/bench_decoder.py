"""Times of cached generation, side by side with textbook code and with the machine's limits.

Run it on a quiet machine; it uses one thread and prints medians of interleaved runs:

    python -m tests.benchmarks.bench_decoder

Three comparisons, for the assignment's decoder (d = 256, two layers):

* a generation of 20 tokens against a textbook uncached loop, and against the decoder's own
  uncached path, by prompt length;
* one decode step against a step of textbook modules that append to their cache with ``torch.cat``;
* one decode step against what the machine allows: the bytes that it reads divided by the
  bandwidth of ``F.linear``, and the cost of dispatching its operators.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from llmcalc import ModelSpec, memory
from llmcalc.models.tiny_decoder import TinyDecoder

NEW_TOKENS = 20
SPEC = ModelSpec.assignment_decoder(
    vocab_size=1000, d_model=256, d_ff=1024, num_layers=2, max_seq_len=2048
)


class TextbookAttention(nn.Module):
    """One head as textbooks write it; with a cache, history is concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W_q = nn.Linear(width, width, bias=False)
        self.W_k = nn.Linear(width, width, bias=False)
        self.W_v = nn.Linear(width, width, bias=False)
        self.W_o = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, past: Any) -> tuple[Tensor, Any]:
        q, k, v = self.W_q(x), self.W_k(x), self.W_v(x)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=1), torch.cat((past[1], v), dim=1)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        rows, columns = scores.shape[-2:]
        mask = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
        scores = scores.masked_fill(~mask, float("-inf"))
        return self.W_o(scores.softmax(dim=-1) @ v), (k, v)


class TextbookFeedForward(nn.Module):
    """Two matrices with a ReLU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return result


class TextbookLayer(nn.Module):
    """A pre-norm layer."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.attention = TextbookAttention(width)
        self.feed_forward = TextbookFeedForward(width, inner)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, past: Any) -> tuple[Tensor, Any]:
        mixed, cache = self.attention(self.norm1(x), past)
        x = x + mixed
        return x + self.feed_forward(self.norm2(x)), cache


class TextbookDecoder(nn.Module):
    """The assignment's decoder of textbook modules, with the same state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(1000, 256)
        self.pos_embedding = nn.Embedding(2048, 256)
        self.layers = nn.ModuleList(TextbookLayer(256, 1024) for _ in range(2))
        self.norm = nn.LayerNorm(256)
        self.output_projection = nn.Linear(256, 1000)

    def forward(self, ids: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        start = 0 if past is None else past[0][0].shape[1]
        positions = torch.arange(start, start + ids.shape[1])
        x = self.token_embedding(ids) + self.pos_embedding(positions)
        caches = []
        for index, layer in enumerate(self.layers):
            x, cache = layer(x, None if past is None else past[index])
            caches.append(cache)
        return self.output_projection(self.norm(x)), caches

    @torch.no_grad()
    def generate(self, ids: Tensor, new_tokens: int) -> Tensor:
        """Compute everything again for every token."""
        for _ in range(new_tokens):
            logits, _ = self(ids)
            ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), dim=1)
        return ids


def medians(
    calls: dict[str, Callable[[], object]], repeats: int, *, burst: int = 1
) -> dict[str, float]:
    """Return the median seconds of each call. The calls take turns, `burst` in a row each.

    Steps of a generation follow each other, so that the next one finds in the processor's cache
    what the last one left there; a burst does the same. Its first call is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(repeats + 1):
        for name, call in calls.items():
            for number in range(burst):
                start = time.perf_counter()
                call()
                if run and (number or burst == 1):
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def generations(decoder: TinyDecoder, textbook: TextbookDecoder) -> None:
    """Print the times of a generation by prompt length."""
    print(f"{NEW_TOKENS} new tokens, milliseconds (and how many times the cached one)")
    print(f"{'prompt':>8}{'cached':>10}{'own uncached':>20}{'textbook uncached':>20}")
    for length in (10, 50, 100, 500, 1000):
        ids = torch.randint(1000, (1, length), generator=torch.Generator().manual_seed(length))
        calls: dict[str, Callable[[], object]] = {
            "cached": partial(decoder.generate, ids, NEW_TOKENS),
            "own": partial(decoder.generate, ids, NEW_TOKENS, use_cache=False),
            "textbook": partial(textbook.generate, ids, NEW_TOKENS),
        }
        times = medians(calls, 7 if length >= 500 else 15)
        cached = times["cached"]
        own, book = (
            f"{1e3 * t:.2f} ({t / cached:.1f}x)" for t in (times["own"], times["textbook"])
        )
        print(f"{length:>8}{1e3 * cached:>10.2f}{own:>20}{book:>20}")


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the operators that PyTorch dispatches, views apart: they touch no data."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def step(decoder: TinyDecoder, textbook: TextbookDecoder, context: int) -> None:
    """Print the time of one decode step beside a textbook step and the machine's limit."""
    ids = torch.randint(1000, (1, context), generator=torch.Generator().manual_seed(0))
    token = ids[:, :1]
    cache = decoder.new_cache(batch=1, capacity=context + 1)
    weights = memory.weight_bytes(SPEC, weights="fp32")
    read = weights.total - weights["embeddings"].total + 2 * 4 * 256
    read += memory.kv_cache_bytes(SPEC, context=context + 1, kv="fp32").total
    with torch.inference_mode():
        decoder(ids, cache=cache, last_only=True)
        _, past = textbook(ids)

        def own() -> None:
            decoder(token, cache=cache, last_only=True)
            cache.lengths = (context,)

        with _Operators() as operators:
            own()
        # As many bytes as the step reads, so that they lie as far away as its own.
        wide = [torch.randn(1024, 256) for _ in range(round(read / 2**20))]
        row, one = torch.randn(1, 256), torch.randn(1, 1)

        def linear() -> None:
            for matrix in wide:
                F.linear(row, matrix)

        def dispatch() -> None:
            for _ in range(100):
                F.linear(one, one)

        calls: dict[str, Callable[[], object]] = {
            "own": own,
            "textbook": lambda: textbook(token, past),
            "linear": linear,
            "dispatch": dispatch,
        }
        times = medians(calls, 5, burst=100)
    one_operator = times["dispatch"] / 100
    bandwidth = len(wide) * 2**20 / (times["linear"] - len(wide) * one_operator)
    floor = read / bandwidth + operators.count * one_operator
    print(
        f"{context:>8}{1e6 * times['own']:>10.0f}{1e6 * times['textbook']:>10.0f}"
        f"{times['own'] / times['textbook']:>8.2f}{1e6 * floor:>10.0f}"
        f"{times['own'] / floor:>8.2f}   {read / 1e6:.1f} MB at {bandwidth / 1e9:.1f} GB/s,"
        f" {operators.count} operators of {1e6 * one_operator:.2f}"
    )


def capacities(decoder: TinyDecoder, context: int = 500) -> None:
    """Print the time of a decode step in caches of different capacity."""
    ids = torch.randint(1000, (1, context), generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        for capacity in (context + 1, 1024, 2048):
            cache = decoder.new_cache(batch=1, capacity=capacity)
            decoder(ids, cache=cache, last_only=True)

            def call(cache: Any = cache) -> None:
                decoder(ids[:, :1], cache=cache, last_only=True)
                cache.lengths = (context,)

            calls[str(capacity)] = call
        times = medians(calls, 5, burst=100)
    print(f"\none decode step at context {context} by capacity, microseconds")
    for capacity_name, seconds in times.items():
        print(f"  {capacity_name:>6} {1e6 * seconds:8.1f}")


def main() -> None:
    """Print all comparisons."""
    torch.set_num_threads(1)
    decoder = TinyDecoder(SPEC, generator=torch.Generator().manual_seed(0)).eval()
    textbook = TextbookDecoder().eval()
    textbook.load_state_dict(decoder.state_dict())
    ids = torch.randint(1000, (1, 30), generator=torch.Generator().manual_seed(1))
    if not torch.equal(decoder.generate(ids, 20), textbook.generate(ids, 20)):
        raise SystemExit("the textbook decoder gives other tokens")
    generations(decoder, textbook)
    print("\none decode step, microseconds")
    print(f"{'context':>8}{'own':>10}{'textbook':>10}{'ratio':>8}{'floor':>10}{'ratio':>8}")
    for context in (500, 1000, 1500, 2000):
        step(decoder, textbook, context)
    capacities(decoder)


if __name__ == "__main__":
    main()
