"""The layers of a `TinyDecoder`: modules that bind themselves as functions of a pass.

* `AttentionLayer`, `FeedForwardLayer`, `NormLayer`, `DecoderLayer`: the modules.
* `streamed`: a matrix as it is laid out in memory.

Shapes in the comments are those of `llmcalc.models.tiny_decoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from llmcalc.models.caches import Function, LayerFunction, Pass
from llmcalc.models.executed import ACTIVATIONS
from llmcalc.spec import Attention, FeedForward, ModelSpec, Norm

__all__ = ["AttentionLayer", "DecoderLayer", "FeedForwardLayer", "NormLayer", "streamed"]


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
        matrix = streamed(torch.cat([part.weight.data for part in three]))
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

    def bind(self) -> LayerFunction:
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

        def mix(x: Tensor, step: Pass, layer: int) -> Tensor:
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

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, step: Pass) -> Tensor:
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
    activation: Function

    def __init__(self, part: FeedForward, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, part.inner_dim, bias=part.input_bias) if part.gated else None
        self.fc1 = nn.Linear(width, part.inner_dim, bias=part.input_bias)
        self.fc2 = nn.Linear(part.inner_dim, width, bias=part.output_bias)
        self.gated = part.gated
        self.activation = ACTIVATIONS[part.activation]

    def bind(self) -> Callable[[Tensor, Pass], Tensor]:
        """Return the part as a function of the tokens (T * B, E) and the pass."""
        w_1, b_1, w_2, b_2 = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        gate = None if self.gate is None else (self.gate.weight, self.gate.bias)
        activation, linear = self.activation, F.linear

        def transform(x: Tensor, step: Pass) -> Tensor:
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

    def bind(self) -> Function:
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

    def forward(self, x: Tensor, step: Pass, layer: int) -> Tensor:
        """Apply the layer to the new tokens ``x`` (T * B, E)."""
        return self.bind()(x, step, layer)

    def bind(self) -> LayerFunction:
        """Return the layer as a function, its parameters looked up."""
        norm1, norm2 = (None if norm is None else norm.bind() for norm in (self.norm1, self.norm2))
        mix, transform = self.attention.bind(), self.feed_forward.bind()

        def apply(x: Tensor, step: Pass, layer: int) -> Tensor:
            mixed = mix(x if norm1 is None else norm1(x), step, layer)
            if step.dropout:
                mixed = F.dropout(mixed, step.dropout)
            x = x + mixed
            inner = transform(x if norm2 is None else norm2(x), step)
            if step.dropout:
                inner = F.dropout(inner, step.dropout)
            return x + inner

        return apply


def streamed(matrix: Tensor) -> Tensor:
    """Return the matrix with its longer side in rows in memory.

    A decode step multiplies each matrix by one row of input. Where memory is slow, long runs
    stream up to half as fast again as short ones.
    """
    rows, columns = matrix.shape
    return matrix.t().contiguous().t() if rows > columns else matrix.contiguous()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of elements (i, i + D / 2) of ``x`` (T, B, heads, D) by its position."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
