"""A decoder that a person can read, with KV-cached generation, built from a `ModelSpec`.

* `TinyDecoder`: the model: ``decoder(input_ids)``, ``decoder(input_ids, cache=cache)``,
  `TinyDecoder.generate` and `TinyDecoder.stream`.
* `KVCache`: what it holds between calls.
* `Step`: what a stream yields.

Every dense `ModelSpec` can be built: what the formulas of `llmcalc.memory` and
`llmcalc.roofline` say of the spec, this model shows when it is measured.

Shapes in the comments: B rows, T new tokens, L tokens attended, E width, H query heads, K KV
heads, G = H / K query heads a group, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Literal, Self, TypeAlias, cast

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from llmcalc.boundary import choice, flag_argument, whole_number
from llmcalc.errors import InvalidValueError
from llmcalc.models.executed import ACTIVATIONS, check_executed
from llmcalc.models.sampling import Sampling
from llmcalc.spec import Attention, FeedForward, ModelSpec, Norm, Rotary

__all__ = ["KVCache", "Step", "TinyDecoder"]

#: A layer, or its attention: what it makes of the new tokens, in a pass, as the layer of a number.
_Layer: TypeAlias = "Callable[[Tensor, _Pass, int], Tensor]"
_Function: TypeAlias = Callable[[Tensor], Tensor]

_TOKEN_TYPES: Final = frozenset({torch.int64, torch.int32})


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
        self._bound: tuple[TinyDecoder, Sequence[_Layer], _Function] | None = None

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
        self, layer: int, keys: Tensor, values: Tensor, step: _Pass
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


class AttentionLayer(nn.Module):
    """Multi-head, grouped-query or multi-query attention, with or without a cache."""

    heads: int
    kv_heads: int
    head_dim: int
    W_q: nn.Linear
    W_k: nn.Linear
    W_v: nn.Linear
    W_o: nn.Linear | None
    has_output: bool
    widths: tuple[int, int, int]
    split: tuple[int, int, int]

    def __init__(self, part: Attention, width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = part.query_heads, part.kv_heads, part.head_dim
        queries, keys = part.query_heads * part.head_dim, part.kv_heads * part.head_dim
        self.W_q = nn.Linear(width, queries, bias=part.query_bias)
        self.W_k = nn.Linear(width, keys, bias=part.key_bias)
        self.W_v = nn.Linear(width, keys, bias=part.value_bias)
        self.W_o = nn.Linear(queries, width, bias=part.output_bias) if part.output else None
        self.has_output = part.output
        self.widths = queries, keys, keys
        self.split = part.query_heads, part.kv_heads, part.kv_heads
        #: W_q, W_k and W_v as one matrix, and where in memory each of them begins in it.
        self._joint: tuple[Tensor, Sequence[int]] | None = None

    def join(self) -> None:
        """Lay W_q, W_k and W_v below each other in one matrix, where they have no biases.

        They stay parameters of their own; without gradients one product gives all three.
        """
        three = self.W_q, self.W_k, self.W_v
        if self.is_joint or any(part.bias is not None for part in three):
            return
        matrix = _streamed(torch.cat([part.weight.data for part in three]))
        parts = matrix.split_with_sizes(self.widths)
        self._joint = matrix, [rows.data_ptr() for rows in parts]
        for part, rows in zip(three, parts, strict=True):
            part.weight.data = rows

    @property
    def is_joint(self) -> bool:
        """Whether W_q, W_k and W_v lie in one matrix: they don't once one is put elsewhere."""
        if self._joint is None:
            return False
        three = self.W_q, self.W_k, self.W_v
        return [part.weight.data_ptr() for part in three] == self._joint[1]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Join again what has been moved or converted."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.join()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Join what has been copied or unpickled, too."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.join()

    def bind(self) -> _Layer:
        """Return the part as a function of the new tokens (T * B, E), the pass and the layer."""
        part: Any = self._modules
        three = [part[name] for name in ("W_q", "W_k", "W_v")]
        w_q, w_k, w_v = (one.weight for one in three)
        b_q, b_k, b_v = (one.bias for one in three)
        matrix, places = self._joint or (None, (0, 0, 0))
        q_place, k_place, v_place = places
        w_o, b_o = (part["W_o"].weight, part["W_o"].bias) if self.has_output else (None, None)
        split, kv_heads, head_dim = self.split, self.kv_heads, self.head_dim
        attend, linear, attention = self._attend, F.linear, F.scaled_dot_product_attention

        def mix(x: Tensor, step: _Pass, layer: int) -> Tensor:
            shape = step.new, step.batch, -1, head_dim  # (T, B, H | K | K, D)
            if (
                matrix is not None
                and step.joint
                and w_q.data_ptr() == q_place
                and w_k.data_ptr() == k_place
                and w_v.data_ptr() == v_place
            ):
                q, k, v = linear(x, matrix).view(shape).split_with_sizes(split, 2)
            else:
                q, k = linear(x, w_q, b_q).view(shape), linear(x, w_k, b_k).view(shape)
                v = linear(x, w_v, b_v).view(shape)
            if step.turn is not None:
                q, k = _rotated(q, *step.turn), _rotated(k, *step.turn)
            if step.cache is None:  # (B, K, T, D)
                keys, values = k.permute(1, 2, 0, 3), v.permute(1, 2, 0, 3)
            else:  # (B, K, L, D)
                keys, values = step.cache._append(layer, k, v, step)  # noqa: SLF001
            if step.new > 1 or step.explicit:
                mixed = attend(q, keys, values, step)  # (T * B, H * D)
            else:  # The G query heads of a group are G queries of one KV head: (B, K, G, D).
                q = q.view(step.batch, kv_heads, -1, head_dim)
                mixed = attention(q, keys, values, step.mask).reshape(step.batch, -1)
            return mixed if w_o is None else linear(mixed, w_o, b_o)

        return mix

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, step: _Pass) -> Tensor:
        """Attend with queries (T, B, H, D) to keys and values (B, K, L, D)."""
        q = q.permute(1, 2, 0, 3)  # (B, H, T, D)
        if step.explicit:
            mixed = self._products(q, keys, values, step.mask)
        else:
            mixed = F.scaled_dot_product_attention(
                q,
                keys,
                values,
                attn_mask=step.mask,
                is_causal=step.alone,
                enable_gqa=self.heads != self.kv_heads,
            )
        return mixed.permute(2, 0, 1, 3).flatten(2).flatten(0, 1)

    def _products(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with (B, H, T, D) to (B, K, L, D) by explicit products: (B, H, T, D)."""
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)  # (B * K, L, D)
        # The G query heads of a group are G times as many queries of one KV head.
        rows = (q * self.head_dim**-0.5).reshape(len(keys), -1, self.head_dim)  # (B * K, G * T, D)
        scores = torch.bmm(rows, keys.transpose(1, 2)).view(*q.shape[:3], -1)  # (B, H, T, L)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(dim=-1).view(*rows.shape[:2], -1)  # (B * K, G * T, L)
        return torch.bmm(weights, values).view(q.shape)


class FeedForwardLayer(nn.Module):
    """``fc2(activation(fc1(x)))``, or gated: ``fc2(activation(gate(x)) * fc1(x))``."""

    gate: nn.Linear | None
    fc1: nn.Linear
    fc2: nn.Linear
    gated: bool
    activation: _Function

    def __init__(self, part: FeedForward, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, part.inner_dim, bias=part.input_bias) if part.gated else None
        self.fc1 = nn.Linear(width, part.inner_dim, bias=part.input_bias)
        self.fc2 = nn.Linear(part.inner_dim, width, bias=part.output_bias)
        self.gated = part.gated
        self.activation = ACTIVATIONS[part.activation]

    def bind(self) -> Callable[[Tensor, _Pass], Tensor]:
        """Return the part as a function of the tokens (T * B, E) and the pass."""
        w_1, b_1, w_2, b_2 = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        gate = None if self.gate is None else (self.gate.weight, self.gate.bias)
        activation, linear = self.activation, F.linear

        def transform(x: Tensor, step: _Pass) -> Tensor:
            inner = linear(x, w_1, b_1)
            inner = activation(inner) if gate is None else activation(linear(x, *gate)) * inner
            if step.dropout:
                inner = F.dropout(inner, step.dropout)
            return linear(inner, w_2, b_2)

        return transform


class NormLayer(nn.Module):
    """RMSNorm or LayerNorm."""

    kind: Literal["rms", "layer"]
    eps: float
    shape: tuple[int]
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, part: Norm, width: int) -> None:
        super().__init__()
        self.kind, self.eps, self.shape = part.kind, part.eps, (width,)
        self.weight = nn.Parameter(torch.ones(width))
        bias = nn.Parameter(torch.zeros(width)) if part.has_bias else None
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x``."""
        return self.bind()(x)

    def bind(self) -> _Function:
        """Return the norm as a function."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        shape, eps = self.shape, self.eps
        if self.kind == "layer":
            return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
        if bias is None:
            return lambda x: torch.rms_norm(x, shape, weight, eps)
        return lambda x: torch.rms_norm(x, shape, weight, eps) + bias


class DecoderLayer(nn.Module):
    """``x + attention(norm1(x))``, then ``x + feed_forward(norm2(x))``."""

    attention: AttentionLayer
    feed_forward: FeedForwardLayer
    norm1: NormLayer | None
    norm2: NormLayer | None

    def __init__(self, spec: ModelSpec, blocks: Sequence[Any]) -> None:
        super().__init__()
        attention, feed_forward = blocks
        width = spec.embed_dim
        self.attention = AttentionLayer(attention.part, width)
        self.feed_forward = FeedForwardLayer(feed_forward.part, width)
        self.norm1 = None if attention.norm is None else NormLayer(attention.norm, width)
        self.norm2 = None if feed_forward.norm is None else NormLayer(feed_forward.norm, width)

    def forward(self, x: Tensor, step: _Pass, layer: int) -> Tensor:
        """Apply the layer to the new tokens ``x`` (T * B, E)."""
        return self.bind()(x, step, layer)

    def bind(self) -> _Layer:
        """Return the layer as a function, its parameters looked up."""
        norm1, norm2 = (None if norm is None else norm.bind() for norm in (self.norm1, self.norm2))
        mix, transform = self.attention.bind(), self.feed_forward.bind()

        def apply(x: Tensor, step: _Pass, layer: int) -> Tensor:
            mixed = mix(x if norm1 is None else norm1(x), step, layer)
            if step.dropout:
                mixed = F.dropout(mixed, step.dropout)
            x = x + mixed
            inner = transform(x if norm2 is None else norm2(x), step)
            if step.dropout:
                inner = F.dropout(inner, step.dropout)
            return x + inner

        return apply


class _Pass:
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
        self.head: _Function
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
                module.weight.data = _streamed(module.weight.data)
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
        step = _Pass(cache, counts, explicit=self.explicit)
        return self._head(self._hidden(input_ids, step, last_only=True), step)[:, 0]

    def _hidden(self, input_ids: Tensor, step: _Pass, *, last_only: bool) -> Tensor:
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

    def _bind(self, step: _Pass) -> Sequence[_Layer]:
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

    def _head(self, x: Tensor, step: _Pass) -> Tensor:
        """Give the logits of what the layers left: (B, T, vocabulary), or (B, 1, vocabulary)."""
        logits = step.head(x)
        return logits.view(step.batch, -1, logits.shape[-1])

    def _place(self, x: Tensor, step: _Pass) -> Tensor:
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

    def _pass(self, cache: KVCache | None, counts: Sequence[int]) -> _Pass:
        """Plan a pass; refuse a context past the position limit or the cache's capacity."""
        step = _Pass(cache, counts, explicit=self.explicit)
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


def _streamed(matrix: Tensor) -> Tensor:
    """Return the matrix with its longer side in rows in memory.

    A decode step multiplies each matrix by one row of input. Where memory is slow, long runs
    stream up to half as fast again as short ones.
    """
    rows, columns = matrix.shape
    return matrix.t().contiguous().t() if rows > columns else matrix.contiguous()


def _causal(queries: Tensor, keys: int) -> Tensor:
    """Say of each query's position (..., T) which of the first `keys` it sees: (..., T, keys)."""
    return torch.arange(keys, device=queries.device) <= queries[..., None]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of elements (i, i + D / 2) of ``x`` (T, B, heads, D) by its position."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


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
