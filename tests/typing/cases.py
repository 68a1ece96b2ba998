"""What type checkers must infer; checked by mypy strict with the rest, and by pyright strict.

A negative case is an ignored error: both warn when there is nothing to ignore, so a call that
stops being an error fails the check.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_type

import attrs
import numpy as np
from numpy.typing import NDArray

from llmcalc import GiB, LlmcalcError, ModelSpec, load_model, memory, roofline
from llmcalc.breakdown import Breakdown
from llmcalc.spec import Attention, Axis, Block, Item, Layer, Linear, Norm, Part
from llmcalc.units import Bytes, Flops, Params

INTS: NDArray[np.int64] = np.array([1, 2])


def scalars_give_scalars(spec: ModelSpec) -> None:
    assert_type(memory.parameters(spec), Breakdown[Params])
    assert_type(memory.parameters(spec).total, int)
    assert_type(memory.weight_bytes(spec, weights="bf16").total, int)
    assert_type(memory.kv_cache_bytes(spec, context=1, kv="bf16"), Breakdown[Bytes])
    assert_type(memory.kv_cache_bytes(spec, context=np.int32(1), kv="bf16").total, int)
    assert_type(
        memory.max_batch_size(spec, device_memory=GiB, context=1, weights="bf16", kv="bf16"),
        int | None,
    )
    assert_type(
        memory.max_context(spec, device_memory=GiB, weights="bf16", kv="bf16"),
        memory.ContextLimit | None,
    )
    assert_type(roofline.flops(spec, batch=1, new=1, past=0), Breakdown[Flops])
    assert_type(roofline.attention_flops(queries=1, keys=1, head_dim=1), int)
    assert_type(
        roofline.attention_intensity(
            queries=1, keys=1, head_dim=1, element_bytes=2, algorithm="flash"
        ),
        float,
    )


def arrays_give_arrays(spec: ModelSpec) -> None:
    assert_type(
        memory.kv_cache_bytes(spec, context=INTS, kv="bf16"), Breakdown[Bytes, NDArray[Any]]
    )
    assert_type(memory.kv_cache_bytes(spec, context=1, batch=INTS, kv="bf16").total, NDArray[Any])
    assert_type(
        memory.max_batch_size(spec, device_memory=GiB, context=INTS, weights="bf16", kv="bf16"),
        NDArray[Any],
    )
    assert_type(
        memory.max_context(spec, device_memory=INTS, weights="bf16", kv="bf16"), NDArray[Any]
    )
    assert_type(roofline.flops(spec, batch=1, new=INTS, past=0).total, NDArray[Any])
    assert_type(roofline.flops(spec, batch=1, new=1, past=INTS).total, NDArray[Any])
    assert_type(roofline.attention_flops(queries=1, keys=INTS, head_dim=1), NDArray[Any])
    assert_type(
        roofline.attention_intensity(
            queries=INTS, keys=INTS, head_dim=1, element_bytes=2, algorithm="flash", batch=INTS
        ),
        NDArray[np.floating[Any]],
    )


def units_are_told_apart(spec: ModelSpec) -> None:
    weights = memory.weight_bytes(spec, weights="bf16")
    assert_type(weights + memory.kv_cache_bytes(spec, context=1, kv="bf16"), Breakdown[Bytes])
    memory.parameters(spec) + weights  # type: ignore[operator]
    weights + 1  # type: ignore[operator]


def arguments_are_checked(spec: ModelSpec) -> None:
    memory.kv_cache_bytes(spec, context=1.5, kv="bf16")  # type: ignore[call-overload]
    memory.kv_cache_bytes(spec, 1, kv="bf16")  # type: ignore[call-overload]
    roofline.flops(spec, batch=1, new=1, past=0, logits="some")  # type: ignore[call-overload]
    load_model(3)  # type: ignore[arg-type]
    assert_type(load_model({}), ModelSpec)
    error: ValueError = LlmcalcError()
    raise error


@attrs.frozen(kw_only=True)
class Bottleneck(Part):
    """A part of somebody else's."""

    width: int
    group = "other"

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit a matrix."""
        yield Linear(name="down", into=(embed,), out=((Axis("narrow", self.width),),))


def parts_compose() -> Layer:
    attention = Block(part=Attention(query_heads=8, kv_heads=8, head_dim=64))
    assert_type(attention.part, Part)
    own = Block(part=Bottleneck(width=8), norm=Norm(kind="rms"))
    Block(part=Norm(kind="rms"))  # type: ignore[arg-type]
    return Layer(blocks=(attention, own))
