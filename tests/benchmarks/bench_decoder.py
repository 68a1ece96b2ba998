"""Times of cached generation, side by side with textbook code and with the machine's limits.

Run it on a quiet machine; it uses one thread. Everything that is compared takes turns, and what is
printed are medians over the turns, also of the ratios:

    python -m tests.benchmarks.bench_decoder

Three comparisons, for the assignment's decoder (d = 256, two layers):

* a generation of 20 tokens against a textbook uncached loop, and against the decoder's own
  uncached path, by prompt length;
* one decode step against a step of textbook modules that append to their cache with
  ``torch.cat``, each in the mode in which its generation runs: inference mode, and ``no_grad``;
* one decode step against what the machine allows: the bytes that it reads divided by the
  bandwidth of ``F.linear``, and the time that its calls of PyTorch take on tensors of a few
  elements, one after another with nothing between them.
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
from torch.overrides import TorchFunctionMode

from llmcalc import ModelSpec, memory
from llmcalc.models.tiny_decoder import TinyDecoder

NEW_TOKENS = 20
LENGTHS = (10, 50, 100, 500, 1000)
SPEC = ModelSpec.assignment_decoder(
    vocab_size=1000, d_model=256, d_ff=1024, num_layers=2, max_seq_len=2048
)
#: The same calls of PyTorch, with next to nothing to compute.
TINY = ModelSpec.assignment_decoder(
    vocab_size=16, d_model=8, d_ff=8, num_layers=2, max_seq_len=2048
)

#: The seconds of each call in each turn.
Times = dict[str, list[float]]


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
        scores = torch.bmm(q, k.transpose(1, 2)) / q.shape[-1] ** 0.5
        rows, columns = scores.shape[-2:]
        hidden = torch.ones(rows, columns, dtype=torch.bool).triu(columns - rows + 1)
        weights = F.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        return self.W_o(torch.bmm(weights, v)), (k, v)


class TextbookFeedForward(nn.Module):
    """Two matrices with a ReLU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.dropout = nn.Dropout(p=0.1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.dropout(F.relu(self.fc1(x))))
        return result


class TextbookLayer(nn.Module):
    """A pre-norm layer."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.attention = TextbookAttention(width)
        self.feed_forward = TextbookFeedForward(width, inner)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(p=0.1)

    def forward(self, x: Tensor, past: Any) -> tuple[Tensor, Any]:
        mixed, cache = self.attention(self.norm1(x), past)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.feed_forward(self.norm2(x))), cache


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


def take_turns(calls: dict[str, Callable[[], object]], turns: int, *, burst: int = 1) -> Times:
    """Return the seconds of each call in each turn: the median of `burst` calls in a row.

    Steps of a generation follow each other, so that the next one finds in the processor's cache
    what the last one left there; a burst does the same. Its first call is not counted.
    """
    seconds: Times = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            taken = []
            for _ in range(burst):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
            if turn:
                seconds[name].append(statistics.median(taken[1:] or taken))
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median over the turns of one time divided by another."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def prompt(length: int) -> Tensor:
    """Return random token ids."""
    return torch.randint(1000, (1, length), generator=torch.Generator().manual_seed(length))


def generations(decoder: TinyDecoder, textbook: TextbookDecoder) -> None:
    """Print the times of a generation by prompt length."""
    print(f"{NEW_TOKENS} new tokens, milliseconds (and how many times the cached one)")
    print(f"{'prompt':>8}{'cached':>10}{'own uncached':>20}{'textbook uncached':>20}")
    for length in LENGTHS:
        ids = prompt(length)
        calls: dict[str, Callable[[], object]] = {
            "cached": partial(decoder.generate, ids, NEW_TOKENS),
            "own": partial(decoder.generate, ids, NEW_TOKENS, use_cache=False),
            "textbook": partial(textbook.generate, ids, NEW_TOKENS),
        }
        times = take_turns(calls, 7 if length >= 500 else 15)
        print(f"{length:>8}{1e3 * statistics.median(times['cached']):>10.2f}", end="")
        for name in ("own", "textbook"):
            taken, gain = 1e3 * statistics.median(times[name]), ratio(times[name], times["cached"])
            print(f"{f'{taken:.2f} ({gain:.1f}x)':>20}", end="")
        print()


class _Calls(TorchFunctionMode):
    """Keep the calls of PyTorch, to repeat them."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[Any, Any, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.kept.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def repeat(self) -> None:
        """Do nothing but these calls."""
        for function, args, kwargs in self.kept:
            function(*args, **kwargs)


@torch.inference_mode()
def decode(decoder: TinyDecoder, context: int, capacity: int | None = None) -> Callable[[], None]:
    """Return a decode step at a context, which can be repeated."""
    cache = decoder.new_cache(capacity=capacity or context + 1)
    ids = prompt(context) % decoder.spec.embedding.vocab_size
    decoder(ids, cache=cache, last_only=True)
    token = ids[:, :1]

    @torch.inference_mode()
    def step() -> None:
        decoder(token, cache=cache, last_only=True)
        cache.lengths = (context,)

    return step


@torch.no_grad()
def decode_textbook(textbook: TextbookDecoder, context: int) -> Callable[[], None]:
    """Return the same of the textbook."""
    ids = prompt(context)
    _, past = textbook(ids)

    @torch.no_grad()
    def step() -> None:
        textbook(ids[:, :1], past)

    return step


@torch.inference_mode()
def step(decoder: TinyDecoder, textbook: TextbookDecoder, context: int) -> None:
    """Print the time of one decode step beside a textbook step and the machine's limit."""
    weights = memory.weight_bytes(SPEC, weights="fp32")
    read = weights.total - weights["embeddings"].total + 2 * 4 * 256
    read += memory.kv_cache_bytes(SPEC, context=context + 1, kv="fp32").total
    tiny = decode(TinyDecoder(TINY).eval(), context=1)
    with _Calls() as calls_of_step:
        tiny()
    # As many bytes as the step reads, so that they lie as far away as its own.
    wide = [torch.randn(1024, 256) for _ in range(round(read / 2**20))]
    row, one = torch.randn(1, 256), torch.randn(1, 1)

    @torch.inference_mode()
    def linear() -> None:
        for matrix in wide:
            F.linear(row, matrix)

    @torch.inference_mode()
    def dispatch() -> None:
        for _ in wide:
            F.linear(one, one)

    with torch.inference_mode(mode=False):  # each call enters its own
        times = take_turns(
            {
                "own": decode(decoder, context),
                "textbook": decode_textbook(textbook, context),
                "linear": linear,
                "dispatch": dispatch,
                "calls": torch.inference_mode()(calls_of_step.repeat),
            },
            15,
            burst=40,
        )
    streaming = [
        read / (len(wide) * 2**20) * (whole - empty)
        for whole, empty in zip(times["linear"], times["dispatch"], strict=True)
    ]
    floor = [sum(both) for both in zip(streaming, times["calls"], strict=True)]
    own, book, least, bytes_read, calls = (
        1e6 * statistics.median(values)
        for values in (times["own"], times["textbook"], floor, streaming, times["calls"])
    )
    print(
        f"{context:>8}{own:>10.0f}{book:>10.0f}{ratio(times['own'], times['textbook']):>8.2f}"
        f"{least:>10.0f}{ratio(times['own'], floor):>8.2f}   {read / 1e6:.1f} MB in"
        f" {bytes_read:.0f}, {len(calls_of_step.kept)} calls in {calls:.0f}"
    )


def capacities(decoder: TinyDecoder, context: int = 500) -> None:
    """Print the time of a decode step in caches of different capacity."""
    calls: dict[str, Callable[[], object]] = {
        str(capacity): decode(decoder, context, capacity) for capacity in (context + 1, 1024, 2048)
    }
    times = take_turns(calls, 15, burst=40)
    print(f"\none decode step at context {context} by capacity, microseconds")
    for capacity, seconds in times.items():
        print(f"  {capacity:>6} {1e6 * statistics.median(seconds):8.1f}")


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
    for context in LENGTHS:
        step(decoder, textbook, context)
    capacities(decoder)


if __name__ == "__main__":
    main()
