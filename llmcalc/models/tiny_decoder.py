"""A decoder that a person can read, with KV-cached generation, built from a `ModelSpec`.

* `TinyDecoder`: the model: ``decoder(input_ids)``, ``decoder(input_ids, cache=cache)``,
  `TinyDecoder.generate` and `TinyDecoder.stream`.
* `llmcalc.models.caches.KVCache`: what it holds between calls.
* `Step`: what a stream yields.

Every dense `ModelSpec` can be built: what the formulas of `llmcalc.memory` and
`llmcalc.roofline` say of the spec, this model shows when it is measured.

Shapes in the comments: B rows, T new tokens, L tokens attended, E width, H query heads, K KV
heads, G = H / K query heads a group, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Literal, cast

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from llmcalc.boundary import choice, flag_argument, whole_number
from llmcalc.errors import InvalidValueError
from llmcalc.models.caches import KVCache as KVCache  # noqa: PLC0414  # exported here, too
from llmcalc.models.caches import LayerFunction, Pass
from llmcalc.models.executed import check_executed
from llmcalc.models.layers import DecoderLayer, NormLayer, streamed
from llmcalc.models.sampling import Sampling
from llmcalc.spec import ModelSpec, Rotary

__all__ = ["Step", "TinyDecoder"]

_TOKEN_TYPES: Final = frozenset({torch.int64, torch.int32})


@attrs.frozen(eq=False)
class Step:
    """One step of a stream: `tokens` (B,) as chosen from `logits` (B, vocabulary).

    `finished` (B,) says which rows have met the end token, now or before; their tokens are the
    padding token from then on.
    """

    index: int
    tokens: Tensor
    logits: Tensor
    finished: Tensor


class TinyDecoder(nn.Module):
    """A pre-norm decoder built from a dense `ModelSpec`.

    `dropout` is only applied while training. The modules inside are not called one by one, for a
    decode step would spend as long on that as on small matrices: their hooks do not run. A pass
    binds them as functions, and the decode steps after it use these: a parameter that is replaced
    by another one while a cache is in use is read with the next prompt (one that is changed, at
    once).
    `attention` is ``"fast"``, or ``"reference"`` for
    explicit matrix products everywhere, which PyTorch's FLOP counter sees. `generator` draws the
    initial weights (normal, standard deviation 0.02; norms 1, biases 0).

    The keys of ``state_dict`` are ``token_embedding.weight``, ``pos_embedding.weight``,
    ``layers.N.attention.W_q|W_k|W_v|W_o.weight|bias``,
    ``layers.N.feed_forward.fc1|fc2|gate.weight|bias``, ``layers.N.norm1|norm2.weight|bias``,
    ``norm.weight|bias`` and ``output_projection.weight|bias``, as far as the spec has them; a
    tied head has no weight of its own. `llmcalc.models.weights` reads and writes files of them.
    (Matrices with more rows than columns lie column by column in memory, which safetensors' own
    ``save_file`` refuses.)

    Raises `llmcalc.LlmcalcError` for a spec that is not dense: a window, scaled rotary positions
    or a part that this model does not execute.

    >>> import torch
    >>> from llmcalc import ModelSpec, memory
    >>> from llmcalc.models.tiny_decoder import TinyDecoder
    >>> spec = ModelSpec.assignment_decoder(
    ...     vocab_size=100, d_model=16, d_ff=32, num_layers=2, max_seq_len=64
    ... )
    >>> decoder = TinyDecoder(spec, generator=torch.Generator().manual_seed(0)).eval()
    >>> sum(p.numel() for p in decoder.parameters()) == memory.parameters(spec).total
    True
    >>> prompt = torch.tensor([[1, 2, 3, 4]])
    >>> decoder(prompt).shape
    torch.Size([1, 4, 100])
    >>> decoder.generate(prompt, max_new_tokens=3, temperature=0.0).shape
    torch.Size([1, 7])
    """

    token_embedding: nn.Embedding
    pos_embedding: nn.Embedding | None
    layers: nn.ModuleList
    norm: NormLayer | None
    output_projection: nn.Linear

    def __init__(
        self,
        spec: ModelSpec,
        *,
        dropout: float = 0.0,
        attention: Literal["fast", "reference"] = "fast",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        positions = check_executed(spec)
        choice(attention, "attention", ("fast", "reference"))
        place = _check_options(dropout, dtype, device, generator)
        super().__init__()
        self.spec = spec
        self.explicit: bool = attention == "reference"
        self.dropout = dropout
        embedding, width = spec.embedding, spec.embed_dim
        layers = [run.layer for run in spec.layers for _ in range(run.count)]
        with torch.device("meta"):  # allocated once, below, where and as wide as it is wanted
            self.token_embedding = nn.Embedding(embedding.rows.size, width)
            learned = embedding.learned_positions
            self.pos_embedding = None if learned is None else nn.Embedding(learned, width)
            self.layers = nn.ModuleList(DecoderLayer(spec, layer.blocks) for layer in layers)
            self.norm = None if spec.final_norm is None else NormLayer(spec.final_norm, width)
            self.output_projection = nn.Linear(width, embedding.vocab_size, bias=spec.head.bias)
        if spec.head.tied:
            del self.output_projection.weight
        self.to_empty(device=place).to(dtype)
        for module in self.modules():
            if isinstance(module, nn.Linear) and "weight" in module._parameters:  # noqa: SLF001
                module.weight.data = streamed(module.weight.data)
        for layer in self._decoder_layers:
            layer.attention.join()
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02, generator=generator)
            else:
                nn.init.constant_(weight, float("norm" in name and name.endswith("weight")))
        self._positions = positions
        parts = [layer.attention for layer in self._decoder_layers]
        self._heads = tuple((part.kv_heads, part.head_dim) for part in parts)
        self._rotary: tuple[Tensor, Tensor] | None = None

    def new_cache(self, *, batch: int = 1, capacity: int) -> KVCache:
        """Return an empty cache for `batch` rows of up to `capacity` tokens each.

        It is allocated here, in the weights' format and on their device, and never grows.
        """
        rows = whole_number(batch, "batch", minimum=1)
        tokens = whole_number(capacity, "capacity", minimum=1)
        limit = self.spec.max_positions
        if limit is not None and tokens > limit:
            raise InvalidValueError("capacity", tokens, f"must be at most {limit} positions")
        weight = self._table
        # Zeros, not garbage: what a mask hides is still multiplied, by zero.
        with torch.inference_mode(mode=False):  # so that it can be written outside it, too
            keys, values = (
                [
                    torch.zeros(
                        (tokens, rows, kv_heads, head_dim),
                        dtype=weight.dtype,
                        device=weight.device,
                    )
                    for kv_heads, head_dim in self._heads
                ]
                for _ in range(2)
            )
        return KVCache(keys, values, (0,) * rows)

    def forward(
        self,
        input_ids: Tensor,
        *,
        cache: KVCache | None = None,
        lengths: Sequence[int] | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Return the logits of the new tokens `input_ids` (B, T): (B, T, vocabulary).

        With a `cache` the tokens continue what it holds, and are appended to it; gradients do not
        flow then, and nothing is dropped. `lengths` says how many tokens of each row count, where
        rows are shorter than T (padding stands on the right, and its logits mean nothing). With
        `last_only`, the logits of each row's last token alone: (B, 1, vocabulary).

        Raises `llmcalc.LlmcalcError`, and leaves the cache as it was, for token ids outside the
        vocabulary, no tokens, a context past the position limit, a full cache, and tensors or
        caches of the wrong type, shape or device.
        """
        counts = self._check_input(input_ids, lengths)
        flag_argument(last_only, "last_only")
        if cache is not None:
            self._check_cache(cache, len(counts))
        step = self._pass(cache, counts)
        if cache is None or torch.is_inference_mode_enabled():
            return self._head(self._hidden(input_ids, step, last_only=last_only), step)
        with torch.inference_mode():
            hidden = self._hidden(input_ids, step, last_only=last_only)
        with torch.no_grad():  # not inference mode, whose results could not be changed in place
            return self._head(hidden, step)

    def _last_logits(
        self, input_ids: Tensor, cache: KVCache | None, counts: Sequence[int]
    ) -> Tensor:
        """Give the logits (B, vocabulary) of each row's last token; the arguments are checked."""
        step = Pass(cache, counts, explicit=self.explicit)
        return self._head(self._hidden(input_ids, step, last_only=True), step)[:, 0]

    def _hidden(self, input_ids: Tensor, step: Pass, *, last_only: bool) -> Tensor:
        """Run the layers: what the head reads of all tokens (B * T, E), or of the last (B, E)."""
        step.begin(input_ids.device, self.dropout if self.training else 0.0)
        # Tokens come first and rows second, as in the cache.
        x = torch.embedding(self._table, input_ids.t())  # (T, B, E)
        x = self._place(x, step).view(-1, x.shape[-1])  # (T * B, E)
        if step.dropout:
            x = F.dropout(x, step.dropout)
        for index, layer in enumerate(self._bind(step)):
            x = layer(x, step, index)
        if step.cache is not None:
            step.cache.lengths = step.ends
        if step.new > 1:
            x = x.view(step.new, step.batch, -1)
            if last_only:
                ends = torch.tensor(step.counts, device=x.device) - 1
                return x[ends, torch.arange(step.batch, device=x.device)]
            x = x.transpose(0, 1).flatten(0, 1)
        return x

    def _bind(self, step: Pass) -> Sequence[LayerFunction]:
        """Return the layers as functions, and put the head as one into the pass.

        A decode step takes those that the pass before it took: it would spend as long on looking
        parameters up as on small matrix products.
        """
        cache = step.cache
        bound = None if cache is None or step.new > 1 or not step.start else cache._bound  # noqa: SLF001
        if bound is None or bound[0] is not self:
            norm, layers = self.norm, [layer.bind() for layer in self._decoder_layers]
            normed = None if norm is None else norm.bind()
            weight = self._table if self.spec.head.tied else self.output_projection.weight
            bias = self.output_projection.bias

            def head(x: Tensor) -> Tensor:
                return F.linear(x if normed is None else normed(x), weight, bias)

            bound = self, layers, head
            if cache is not None:
                cache._bound = bound  # noqa: SLF001
        step.head = bound[2]
        return bound[1]

    def _head(self, x: Tensor, step: Pass) -> Tensor:
        """Give the logits of what the layers left: (B, T, vocabulary), or (B, 1, vocabulary)."""
        logits = step.head(x)
        return logits.view(step.batch, -1, logits.shape[-1])

    def _place(self, x: Tensor, step: Pass) -> Tensor:
        """Add learned positions to ``x`` (T, B, E), or put the rotary ones into the pass."""
        where: slice | Tensor = slice(step.start, step.end)
        if not step.uniform:  # padding stays on its row's last position: its result means nothing
            positions = torch.tensor(step.past) + torch.arange(step.new)[:, None]
            where = torch.minimum(positions, torch.tensor(step.ends) - 1)  # (T, B)
        learned: Any = self._modules.get("pos_embedding")
        if learned is not None:
            rows: Tensor = learned._parameters["weight"][where]  # noqa: SLF001
            return x + rows.view(step.new, -1, x.shape[-1])
        if self._positions is not None:
            tables = self._rotary_tables(*self._positions, step.end)
            cos, sin = (table[where].view(step.new, -1, 1, table.shape[-1]) for table in tables)
            step.turn = cos, sin
        return x

    def _rotary_tables(
        self, rotary: Rotary, head_dim: int, positions: int
    ) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (at least `positions`, D), kept and grown by doubling."""
        weight = self._table
        tables = self._rotary
        if (
            tables is None
            or tables[0].shape[0] < positions
            or tables[0].dtype != weight.dtype
            or tables[0].device != weight.device
        ):
            size = 1 << (positions - 1).bit_length()
            with torch.inference_mode(mode=False):  # training may use them after a generation
                steps = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
                angles = torch.outer(torch.arange(size, dtype=torch.float64), rotary.theta**-steps)
                angles = torch.cat((angles, angles), dim=-1)
                tables = (angles.cos().to(weight), angles.sin().to(weight))
            self._rotary = tables
        return tables

    @property
    def _table(self) -> Tensor:
        """The token embedding; its type and device are the model's."""
        table: Any = self._modules["token_embedding"]
        weight: Tensor = table._parameters["weight"]  # noqa: SLF001
        return weight

    @property
    def _decoder_layers(self) -> Iterator[Any]:
        layers: Any = self._modules["layers"]
        return iter(layers._modules.values())  # noqa: SLF001  # as __iter__, without a list

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        prefill_chunk_size: int | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the prompt and up to `max_new_tokens` new tokens of each row, as token ids.

        `temperature` 0, the default, takes the likeliest token; above 0 tokens are drawn, from the
        `top_k` likeliest and from the likeliest that together have probability `top_p`, where
        given, by `generator` or else by a new one seeded by the operating system. A row ends with
        `eos_token_id`, and is filled up with `pad_token_id` (by default the end token); when all
        rows have ended, generation stops. `lengths` are the prompts' lengths where they differ; a
        row's new tokens follow its own prompt. With `use_cache` the prompt is read once, in chunks
        of `prefill_chunk_size` tokens where given, and then one token a step; without, everything
        is computed again at every step. Dropout is never applied.

        Raises `llmcalc.LlmcalcError`, before anything is computed, for arguments out of range and
        where prompt and new tokens would pass the position limit.
        """
        steps = self.stream(
            input_ids,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            generator=generator,
            use_cache=use_cache,
            prefill_chunk_size=prefill_chunk_size,
            lengths=lengths,
        )
        tokens = [step.tokens for step in steps]
        new = torch.stack(tokens, dim=1) if tokens else input_ids[:, :0]  # (B, N)
        batch, longest = input_ids.shape
        fill = next((t for t in (pad_token_id, eos_token_id) if t is not None), 0)
        ids = input_ids.new_full((batch, longest + new.shape[1]), fill)
        for row, count in enumerate((longest,) * batch if lengths is None else lengths):
            ids[row, :count] = input_ids[row, :count]
            ids[row, count : count + new.shape[1]] = new[row]
        return ids

    def stream(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        prefill_chunk_size: int | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Iterator[Step]:
        """Return an iterator over the steps of a generation; the arguments are `generate`'s.

        The arguments are checked by the call, before the first step.
        """
        counts = self._check_input(input_ids, lengths)
        new = whole_number(max_new_tokens, "max_new_tokens")
        vocabulary = self.spec.embedding.vocab_size
        sampling = Sampling(
            temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        ).on(self._table.device)
        if top_k is not None and top_k > vocabulary:
            raise InvalidValueError("top_k", top_k, f"must be at most vocab_size ({vocabulary})")
        for name, token in (("eos_token_id", eos_token_id), ("pad_token_id", pad_token_id)):
            if token is not None and whole_number(token, name) >= vocabulary:
                raise InvalidValueError(name, token, f"must be below vocab_size ({vocabulary})")
        flag_argument(use_cache, "use_cache")
        chunk = max(counts)
        if prefill_chunk_size is not None:
            chunk = whole_number(prefill_chunk_size, "prefill_chunk_size", minimum=1)
        read = max(new - 1, 0)  # the last token is chosen, but never read
        self._pass(None, [count + read for count in counts])
        forward = (
            self._cached(input_ids, counts, read, chunk)
            if use_cache
            else self._uncached(input_ids, counts, new)
        )
        fill = eos_token_id if pad_token_id is None else pad_token_id
        return _steps(forward, sampling, new, eos_token_id, fill)

    def _cached(
        self, prompt: Tensor, counts: Sequence[int], read: int, chunk: int
    ) -> Callable[[Tensor | None], Tensor]:
        """Give the next logits (B, vocabulary): the prompt is read once, then a token a step."""
        cache: KVCache | None = None

        def forward(tokens: Tensor | None) -> Tensor:
            nonlocal cache
            if tokens is not None:
                one = (1,) * len(counts)
                return self._last_logits(tokens[:, None], cache, one)
            cache = self.new_cache(batch=len(counts), capacity=max(counts) + read)
            last: dict[int, Tensor] = {}
            for start in range(0, max(counts), chunk):
                # A row whose prompt has ended reads nothing; the others may have more to come.
                part = [min(max(count - start, 0), chunk) for count in counts]
                logits = self._last_logits(prompt[:, start : start + chunk], cache, part)
                last |= {row: logits[row] for row, count in enumerate(part) if count}
            return torch.stack([last[row] for row in range(len(counts))])

        return forward

    def _uncached(
        self, prompt: Tensor, counts: Sequence[int], new: int
    ) -> Callable[[Tensor | None], Tensor]:
        """Give the next logits (B, vocabulary): everything is computed again at every step."""
        ids = prompt.new_zeros((len(counts), max(counts) + new))
        ids[:, : prompt.shape[1]] = prompt
        held = list(counts)

        def forward(tokens: Tensor | None) -> Tensor:
            if tokens is not None:
                for row, token in enumerate(tokens):
                    ids[row, held[row]] = token
                    held[row] += 1
            return self._last_logits(ids[:, : max(held)], None, held)

        return forward

    def _check_input(self, input_ids: Tensor, lengths: Sequence[int] | None) -> tuple[int, ...]:
        """Refuse what is no batch of token ids; return the number of tokens of each row."""
        if not isinstance(input_ids, Tensor):
            raise InvalidValueError("input_ids", input_ids, "must be a tensor")
        if input_ids.dtype not in _TOKEN_TYPES:
            raise InvalidValueError("input_ids", input_ids.dtype, "must be of type int64 or int32")
        shape = input_ids.shape
        if len(shape) != 2 or 0 in shape:
            raise InvalidValueError(
                "input_ids", tuple(shape), "must have shape (batch, tokens), not empty"
            )
        if input_ids.device != self._table.device:
            raise InvalidValueError("input_ids", input_ids.device, "must be on the model's device")
        vocabulary = self.spec.embedding.vocab_size
        rows = input_ids.tolist()
        low, high = min(map(min, rows)), max(map(max, rows))
        if low < 0 or high >= vocabulary:
            raise InvalidValueError(
                "input_ids", low if low < 0 else high, f"must be from 0 to {vocabulary - 1}"
            )
        if lengths is None:
            return (shape[1],) * shape[0]
        given: object = lengths
        if not isinstance(given, Iterable):
            raise InvalidValueError("lengths", lengths, "must be a number for each row")
        counts = tuple(whole_number(length, "lengths", minimum=1) for length in given)
        if len(counts) != shape[0] or max(counts) != shape[1]:
            raise InvalidValueError(
                "lengths", counts, f"must be {shape[0]} numbers, the largest of them {shape[1]}"
            )
        return counts

    def _pass(self, cache: KVCache | None, counts: Sequence[int]) -> Pass:
        """Plan a pass; refuse a context past the position limit or the cache's capacity."""
        step = Pass(cache, counts, explicit=self.explicit)
        limit = self.spec.max_positions
        if limit is not None and step.end > limit:
            raise InvalidValueError("context", step.end, f"must be at most {limit} positions")
        if cache is not None and step.end > cache.capacity:
            raise InvalidValueError(
                "context", step.end, f"must be at most the cache's capacity ({cache.capacity})"
            )
        return step

    def _check_cache(self, cache: KVCache, batch: int) -> None:
        """Refuse what is no cache of this model for so many rows."""
        if not isinstance(cache, KVCache):
            raise InvalidValueError("cache", cache, "must be a KVCache")
        if cache.batch != batch:
            raise InvalidValueError("cache", cache.batch, f"must be for {batch} rows")
        if cache.heads != self._heads:
            raise InvalidValueError(
                "cache", cache.heads, f"must have the model's heads and widths {self._heads}"
            )
        weight, held = self._table, cache.keys[0]
        if held.dtype != weight.dtype or held.device != weight.device:
            raise InvalidValueError(
                "cache",
                f"{held.dtype} on {held.device}",
                f"must be {weight.dtype} on {weight.device}, as the weights are",
            )


def _steps(
    forward: Callable[[Tensor | None], Tensor],
    sampling: Sampling,
    new: int,
    eos: int | None,
    fill: int | None,
) -> Iterator[Step]:
    tokens = finished = None
    for index in range(new):
        with torch.inference_mode():
            logits = forward(tokens)  # (B, vocabulary)
            tokens = sampling.choose(logits)  # (B,)
            if finished is None:
                finished = torch.zeros_like(tokens, dtype=torch.bool)
            if eos is not None and fill is not None:
                tokens = tokens.masked_fill(finished, fill)
                finished = finished | (tokens == eos)
        yield Step(index, tokens, logits, finished)
        if eos is not None and bool(finished.all()):
            return


def _check_options(dropout: object, dtype: object, device: Any, generator: object) -> torch.device:
    """Refuse what a decoder cannot be made with; return the device."""
    if type(dropout) not in {int, float} or not 0 <= cast("float", dropout) < 1:
        raise InvalidValueError("dropout", dropout, "must be a number from 0 to below 1")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidValueError("dtype", dtype, "must be a floating-point torch.dtype")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidValueError("generator", generator, "must be a torch.Generator")
    try:
        return torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as problem:
        raise InvalidValueError("device", device, "must be a device of PyTorch") from problem
