"""How many parameters a stored tensor stands for: quantised ones hold several in an element.

* `parameters_of`: those of one tensor of a file.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmcalc.files.names import is_beside
from llmcalc.headers.file_tensors import FileTensor

__all__ = ["parameters_of"]


def parameters_of(tensor: FileTensor, by_name: Mapping[str, FileTensor]) -> int | None:
    """Return the parameters that a tensor stands for; `None` for what only stands beside one.

    `by_name` has all tensors of the model.

    >>> from llmcalc.files.packed import parameters_of
    >>> from llmcalc.headers import FileTensor
    >>> words = FileTensor(
    ...     name="up.weight_packed", shape=(4, 2), dtype="I32", bytes=32, file="a.safetensors"
    ... )
    >>> parameters_of(words, {words.name: words})
    64
    """
    name = tensor.name
    if is_beside(name):
        return None
    if name.endswith(".qweight"):
        return _packed(tensor, by_name, name.removesuffix("qweight"))
    if name.endswith(".weight_packed"):
        return _compressed(tensor, by_name, name.removesuffix("weight_packed"))
    halves = f"{name}.absmax" in by_name or f"{name}_scale_2" in by_name
    if tensor.dtype == "U8" and (name.endswith("_blocks") or halves):
        return 2 * tensor.elements
    return tensor.elements


def _packed(tensor: FileTensor, by_name: Mapping[str, FileTensor], start: str) -> int:
    """Return the elements of a GPTQ or AWQ matrix, from the words of its rows of zero points."""
    scales, zeros = by_name.get(f"{start}scales"), by_name.get(f"{start}qzeros")
    if scales is None or zeros is None or not zeros.shape or not scales.shape:
        return tensor.elements * 8
    out = scales.shape[-1]
    bits = 32 * zeros.shape[-1] // out if out else 0
    return tensor.elements * 32 // bits if bits else tensor.elements * 8


def _compressed(tensor: FileTensor, by_name: Mapping[str, FileTensor], start: str) -> int:
    """Return the elements of a compressed-tensors matrix: int4 in words, or fp4 in bytes."""
    if tensor.dtype == "U8":
        return 2 * tensor.elements
    zeros = by_name.get(f"{start}weight_zero_point")
    if zeros is not None and zeros.dtype == "I32" and zeros.shape and tensor.shape:
        per_word = tensor.shape[0] // zeros.shape[0] if zeros.shape[0] else 0
        return tensor.elements * (per_word or 8)
    return tensor.elements * 8
