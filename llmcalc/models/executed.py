"""Which specs a `TinyDecoder` executes, exactly as they say.

* `check_executed`: refuse any other; give the rotary positions that its layers share.
* `ACTIVATIONS`: the functions of a feed-forward, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from llmcalc.errors import InvalidValueError
from llmcalc.spec import (
    Attention,
    Block,
    Embedding,
    FeedForward,
    Head,
    Layer,
    ModelSpec,
    Norm,
    Rotary,
)
from llmcalc.spec.model import check_spec

__all__ = ["ACTIVATIONS", "check_executed"]

_RULE: Final = "cannot be executed by TinyDecoder"

ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}

#: The fields of each part that this model executes; others must have their defaults.
_EXECUTED: Final[dict[type[Any], frozenset[str]]] = {
    Attention: frozenset(
        {"query_heads", "kv_heads", "head_dim", "output", "rotary", "fused"}
        | {"query_bias", "key_bias", "value_bias", "output_bias"}
    ),
    FeedForward: frozenset({"inner_dim", "gated", "activation", "input_bias", "output_bias"}),
    Norm: frozenset({"kind", "bias", "eps"}),
    Block: frozenset({"part", "norm"}),
    Embedding: frozenset({"vocab_size", "learned_positions"}),
    Head: frozenset({"tied", "bias"}),
    ModelSpec: frozenset(
        {"name", "embed_dim", "embedding", "layers", "final_norm", "head", "max_positions"}
        | {"checkpoint", "notes"}
    ),
}


def check_executed(spec: ModelSpec) -> tuple[Rotary, int] | None:
    """Refuse what this model would not compute exactly as the spec says.

    Returns the rotary positions of all layers and the head dimension that they turn.
    """
    check_spec(spec)
    for part in (spec, spec.embedding, spec.final_norm, spec.head):
        _check_part(part)
    positions: set[tuple[Rotary, int] | None] = set()
    for run in spec.layers:
        attention = _check_layer(run.layer)
        rotary = attention.rotary
        if rotary is not None and rotary.scaling is not None:
            raise InvalidValueError("rotary", rotary.scaling, f"{_RULE}: scaled positions")
        if rotary is not None and rotary.fraction != 1:
            raise InvalidValueError("rotary", rotary.fraction, f"{_RULE}: a part of each head")
        positions.add(None if rotary is None else (rotary, attention.head_dim))
    if len(positions) > 1:
        raise InvalidValueError("rotary", positions, f"{_RULE}: layers differ in their positions")
    return positions.pop()


def _check_layer(layer: Layer) -> Attention:
    """Refuse a layer that is not pre-norm attention and feed-forward; return the attention."""
    match layer.blocks:
        case (
            Block(part=Attention() as attention) as first,
            Block(part=FeedForward() as feed_forward) as second,
        ):
            for part in (first, attention, first.norm, second, feed_forward, second.norm):
                _check_part(part)
            if feed_forward.activation not in ACTIVATIONS:
                raise InvalidValueError("activation", feed_forward.activation, _RULE)
            return attention
    names = [type(part).__name__ for part in layer.parts]
    raise InvalidValueError(
        "layer", names, f"{_RULE}: it needs pre-norm attention, then feed-forward"
    )


def _check_part(part: Any) -> None:
    """Refuse an option that the modules here don't have."""
    if part is None:
        return
    for field in attrs.fields(type(part)):
        value = getattr(part, field.name)
        if field.name not in _EXECUTED[type(part)] and value != field.default:
            raise InvalidValueError(field.name, value, _RULE)
