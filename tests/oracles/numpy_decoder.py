"""A decoder in float64 NumPy, written from the definitions, without cache and without batching.

It shares nothing with the package but the weights: one token sequence, one head and one query at
a time. `logits` is all that it has to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def logits(
    weights: Weights,
    tokens: list[int],
    *,
    num_layers: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    norm: str | None,
    norm_eps: float,
    activation: str,
    rotary_theta: float | None,
) -> Array:
    """Return the logits of every token, (tokens, vocabulary)."""
    embedding = weights["token_embedding.weight"]
    stream = embedding[tokens]
    if "pos_embedding.weight" in weights:
        stream = stream + weights["pos_embedding.weight"][: len(tokens)]
    for layer in range(num_layers):
        place = f"layers.{layer}."
        normed = _norm(weights, place + "norm1", stream, norm, norm_eps)
        stream = stream + _attention(
            weights, place + "attention.", normed, query_heads, kv_heads, head_dim, rotary_theta
        )
        normed = _norm(weights, place + "norm2", stream, norm, norm_eps)
        stream = stream + _feed_forward(weights, place + "feed_forward.", normed, activation)
    stream = _norm(weights, "norm", stream, norm, norm_eps)
    head = weights.get("output_projection.weight", embedding)
    return stream @ head.T + weights.get("output_projection.bias", np.zeros(()))


def _linear(weights: Weights, name: str, x: Array) -> Array:
    result: Array = x @ weights[name + ".weight"].T
    return result + weights[name + ".bias"] if name + ".bias" in weights else result


def _norm(weights: Weights, name: str, x: Array, kind: str | None, eps: float) -> Array:
    if kind is None:
        return x
    if kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weights[name + ".weight"]
    return x + weights[name + ".bias"] if name + ".bias" in weights else x


def _attention(
    weights: Weights,
    place: str,
    x: Array,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    theta: float | None,
) -> Array:
    queries, keys, values = (_linear(weights, place + name, x) for name in ("W_q", "W_k", "W_v"))
    result = np.zeros((len(x), query_heads * head_dim))
    for head in range(query_heads):
        shared = head // (query_heads // kv_heads)
        mine = slice(head * head_dim, (head + 1) * head_dim)
        theirs = slice(shared * head_dim, (shared + 1) * head_dim)
        turned = [_turn(key, place, theta) for place, key in enumerate(keys[:, theirs])]
        for position, query in enumerate(queries[:, mine]):
            turned_query = _turn(query, position, theta)
            scores = np.array([turned_query @ key for key in turned[: position + 1]])
            scores = np.exp((scores - scores.max()) / math.sqrt(head_dim))
            result[position, mine] = scores / scores.sum() @ values[: position + 1, theirs]
    return _linear(weights, place + "W_o", result) if place + "W_o.weight" in weights else result


def _turn(x: Array, position: int, theta: float | None) -> Array:
    """Rotate each pair (i, i + half) of a head by position / theta ** (2 i / head_dim)."""
    if theta is None:
        return x
    turned = x.copy()
    half = len(x) // 2
    for i in range(half):
        angle = position / theta ** (2 * i / len(x))
        turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        turned[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return turned


def _feed_forward(weights: Weights, place: str, x: Array, activation: str) -> Array:
    inner = _linear(weights, place + "fc1", x)
    if place + "gate.weight" in weights:
        inner = _activate(_linear(weights, place + "gate", x), activation) * inner
    else:
        inner = _activate(inner, activation)
    return _linear(weights, place + "fc2", inner)


def _activate(x: Array, name: str) -> Array:
    functions: dict[str, Any] = {
        "relu": lambda y: max(y, 0.0),
        "silu": lambda y: y / (1 + math.exp(-y)),
        "gelu": lambda y: y / 2 * (1 + math.erf(y / math.sqrt(2))),
        "gelu_tanh": lambda y: (
            y / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        ),
    }
    result: Array = np.vectorize(functions[name], otypes=[np.float64])(x)
    return result
