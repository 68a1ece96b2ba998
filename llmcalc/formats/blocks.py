"""Formats: how many bytes a tensor takes, as blocks of elements with what stands beside.

* `Format`: a format: (elements, bytes) per block, the bytes as a sum that explains itself.
* `Extra`: what is stored beside the blocks: scales, zero points, an order of columns.
* `get`: a format by its name; `find`: the same, `None` where there is none.
* `names`: the known names.
* `packed_integers`: integers with scales for groups of columns, as GPTQ and AWQ store them.

Element sizes are those of the IEEE 754 types, of bfloat16 (truncated IEEE single), of TF32 (stored
as IEEE single), of the OCP 8-bit floating point formats and of packed integers. The sources of
block formats stand at `_BLOCKS` and at the functions that make them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import Final

import attrs

from llmcalc.boundary import size
from llmcalc.breakdown import Factor
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError, UnknownNameError
from llmcalc.headers.elements import GGML_BLOCKS, BlockParts

__all__ = ["Extra", "Format", "find", "get", "names", "packed_integers"]

_optional_size = attrs.validators.optional(size)


@attrs.frozen(repr=False, eq=False)
class Extra(Described):
    """`bytes` for every `rows` x `columns` elements of a matrix, the last ones whole.

    `None` is the whole axis: ``Extra("scales", 4, rows=1, columns=None)`` is one float a row.

    >>> from llmcalc.formats import Extra
    >>> Extra("scales", 4, rows=128, columns=128).count(rows=576, columns=7168)
    280
    """

    name: str
    bytes: int = attrs.field(validator=size)
    rows: int | None = attrs.field(kw_only=True, validator=_optional_size)
    columns: int | None = attrs.field(kw_only=True, validator=_optional_size)

    def count(self, *, rows: int, columns: int) -> int:
        """Return how many there are for a matrix of `rows` x `columns` elements."""
        return _blocks(rows, self.rows) * _blocks(columns, self.columns)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Format(Described):
    """A storage format: every block of `block_elements` elements takes `block_bytes` bytes.

    Blocks run along a tensor's rows (the contracted axis), and a row's last block is stored whole.
    `block_parts` spells the bytes of a block out as a sum. `extras` are stored beside the blocks.
    A `flat` format ignores the shape: its blocks run through the whole matrix. `pad` is what the
    rows and the columns of each matrix are rounded up to before anything is stored.
    `number_format` is the one that engines multiply the values in where a device has a peak for
    it (`llmcalc.hardware.NUMBER_FORMATS`); `None` where the values are first brought to the format
    of the activations, as packed integers with scales for groups are.
    `expert_kernels` names the kernels that engines run experts in the format with, where these
    have layouts and buffers of their own.

    >>> from llmcalc import formats
    >>> formats.get("int4").bytes(rows=2, columns=5)
    6
    >>> formats.get("Q4_0").working
    '2 + 16'
    >>> formats.get("fp8-block128").bytes(rows=576, columns=7168) - 576 * 7168
    1120
    """

    name: str
    block_elements: int = attrs.field(validator=size)
    block_bytes: int = attrs.field(validator=size)
    block_parts: BlockParts = ()
    extras: tuple[Extra, ...] = ()
    flat: bool = False
    pad: tuple[int, int] = (1, 1)
    number_format: str | None = None
    expert_kernels: str | None = None
    #: Whether nothing is stored but the blocks.
    is_plain: bool = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        plain = not self.extras and not self.flat and self.pad == (1, 1)
        object.__setattr__(self, "is_plain", plain)
        if self.block_parts and sum(part for part, _ in self.block_parts) != self.block_bytes:
            raise InvalidValueError(
                "block_bytes", self.block_bytes, f"must be the sum of its parts, {self.working}"
            )

    @property
    def working(self) -> str:
        """The bytes of a block, as the sum of its parts: ``2 + 16``."""
        if not self.block_parts:
            return str(self.block_bytes)
        return " + ".join(str(part) for part, _ in self.block_parts)

    def bytes(self, *, rows: int, columns: int, matrices: int = 1) -> int:
        """Return the bytes of `matrices` matrices of `rows` rows of `columns` elements each."""
        if self.is_plain:
            return matrices * rows * -(-columns // self.block_elements) * self.block_bytes
        down, across = self.pad
        rows, columns = -(-rows // down) * down, -(-columns // across) * across
        if self.flat:
            rows, columns = 1, rows * columns
        each = rows * -(-columns // self.block_elements) * self.block_bytes
        for extra in self.extras:
            each += extra.count(rows=rows, columns=columns) * extra.bytes
        return matrices * each

    def terms(
        self, rows: tuple[Factor, ...], columns: tuple[Factor, ...], *, matrices: int = 1
    ) -> Iterator[tuple[str, tuple[Factor, ...]]]:
        """Give what is stored of a matrix: a suffix of the name, and factors in bytes.

        `rows` and `columns` are the factors of its shape; the first `matrices` factors of the
        rows count matrices that are stored one by one, such as experts.
        """
        if self.is_plain:
            yield "", rows + self.row_factors(columns)
            return
        stack, rows = rows[:matrices], rows[matrices:]
        height, width = prod(size for size, _ in rows), prod(size for size, _ in columns)
        down, across = self.pad
        if self.pad != (1, 1) and (height % down or width % across):
            height, width = -(-height // down) * down, -(-width // across) * across
            rows, columns = ((height, "rows with padding"),), ((width, "columns with padding"),)
        if self.flat:
            rows, columns = (), ((height * width, "elements"),)
            height, width = 1, height * width
        yield "", stack + rows + self.row_factors(columns)
        for extra in self.extras:
            yield (
                f".{extra.name}",
                (
                    *stack,
                    *_grouped(rows, height, extra.rows, "rows"),
                    *_grouped(columns, width, extra.columns, "columns"),
                    (extra.bytes, "bytes"),
                ),
            )

    def row_factors(self, columns: tuple[Factor, ...]) -> tuple[Factor, ...]:
        """Give the factors whose product is the bytes of one row's blocks; the last is bytes."""
        if self.block_elements == 1:
            return (*columns, (self.block_bytes, "bytes"))
        blocks = -(-prod(size for size, _ in columns) // self.block_elements)
        return (blocks, f"blocks of {self.block_elements} elements"), (self.block_bytes, "bytes")

    def slot_bytes(self, columns: int) -> int:
        """Return the bytes of one cache slot of `columns` elements: a row without what is shared.

        Raises `llmcalc.LlmcalcError` for formats whose blocks span several rows.
        """
        total = -(-columns // self.block_elements) * self.block_bytes
        for extra in self.extras:
            if extra.rows == 1:
                total += _blocks(columns, extra.columns) * extra.bytes
            elif extra.rows is not None or extra.columns is not None:
                raise InvalidValueError(
                    "format", self.name, "is a format of weights: its blocks span several rows"
                )
        return total


def _blocks(length: int, block: int | None) -> int:
    return 1 if block is None else -(-length // block)


def _grouped(
    factors: tuple[Factor, ...], length: int, block: int | None, name: str
) -> tuple[Factor, ...]:
    """Give the factors of the blocks along one axis."""
    if block == 1:
        return factors
    return () if block is None else ((_blocks(length, block), f"groups of {block} {name}"),)


#: Plain element types: every element, or pair of elements, takes the same bytes.
PLAIN: Final = {
    "fp64": (1, 8),
    "fp32": (1, 4),
    "tf32": (1, 4),
    "bf16": (1, 2),
    "fp16": (1, 2),
    "fp8": (1, 1),
    "int8": (1, 1),
    "int4": (2, 1),
}

#: Block formats: elements, and the bytes of a block as a sum.
#:
#: Names in capitals: llama.cpp; their sums stand where its files are read.
#: mx...: OCP Microscaling Formats (MX) Specification 1.0, table 1: 32 elements and an E8M0 scale.
_BLOCKS: Final[dict[str, tuple[int, BlockParts]]] = {
    "mxfp8": (32, ((1, "scale"), (32, "values"))),
    "mxfp6": (32, ((1, "scale"), (24, "values"))),
    "mxfp4": (32, ((1, "scale"), (16, "values"))),
    **GGML_BLOCKS,
}

_ONE_A_ROW: Final = (1, None)
_ONE: Final = (None, None)

#: Formats with scales beside the values: elements and bytes of a block, then name, bytes, rows
#: and columns of each extra.
#:
#: fp8: float32 scales for the tensor, for each output channel, for blocks of 128 x 128 (weights
#: of DeepSeek-V3, ``README_WEIGHTS.md``) or for 128 elements of a row (its activations and index
#: keys). int8-channel: what vLLM and compressed-tensors call w8a8. llm-int8: bitsandbytes
#: ``Int8Params``, one float32 (SCB) a row. nvfp4: NVIDIA ModelOpt: an E4M3 scale for 16 elements
#: and a float32 for the tensor.
_SCALED: Final[
    dict[str, tuple[int, BlockParts, tuple[tuple[str, int, tuple[int | None, int | None]], ...]]]
] = {
    "fp8-tensor": (1, ((1, "value"),), (("scale", 4, _ONE),)),
    "fp8-channel": (1, ((1, "value"),), (("scales", 4, _ONE_A_ROW),)),
    "fp8-block128": (1, ((1, "value"),), (("scales", 4, (128, 128)),)),
    "fp8-group128": (1, ((1, "value"),), (("scales", 4, (1, 128)),)),
    "int8-tensor": (1, ((1, "value"),), (("scale", 4, _ONE),)),
    "int8-channel": (1, ((1, "value"),), (("scales", 4, _ONE_A_ROW),)),
    "llm-int8": (1, ((1, "value"),), (("scales", 4, _ONE_A_ROW),)),
    "nvfp4": (16, ((1, "scale"), (8, "values")), (("scale", 4, _ONE),)),
}

#: Other names of the same formats.
_SAME_AS: Final = {"w8a8": "int8-channel", "fp8-block": "fp8-block128", "int8-llm": "llm-int8"}

#: mxfp4-hopper: how vLLM keeps experts for Triton's kernels on Hopper: matrices of a multiple of
#: 64 rows (vLLM ``fused_moe/oracle/mxfp4.py``), rows of a multiple of 128 bytes (triton_kernels).
#: gptq-int4-g128, awq-int4-g64, w4a16-g128, gptq-int8-channel ...
_GROUPED: Final = re.compile(r"(gptq|awq)-int([1-8])-(?:g([1-9][0-9]{0,5})|channel)")
_PACKED: Final = re.compile(r"w([1-8])a16-(?:g([1-9][0-9]{0,5})|channel)")
_LISTED: Final = (
    *(f"gptq-int{bits}-g128" for bits in (2, 3, 4, 8)),
    "gptq-int4-g32",
    "gptq-int4-g64",
    "gptq-int4-channel",
    "awq-int4-g128",
    "awq-int4-g64",
    "w4a16-g128",
    "w8a16-channel",
    "nf4",
    "nf4-single",
    "mxfp4-hopper",
)

#: The number formats that values are multiplied in. The integers of llama.cpp are multiplied with
#: activations that are quantised to int8 (``ggml/src/ggml-cuda/mmq.cu``), fp8 and w8a8 integers
#: with activations of their kind (vLLM, ``layers/quantization``); 4-bit floats where the device
#: has a peak for them. Plain ``int4`` is widened first, as all integers with scales for groups are.
_NUMBERS: Final = {
    **{name: name for name in ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8")},
    **dict.fromkeys(_BLOCKS, "int8"),
    **{name: name.partition("-")[0] for name in _SCALED if name != "llm-int8"},
    "llm-int8": "int8",
    "mxfp8": "fp8",
    "mxfp6": "fp6",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
    "MXFP4": "fp4",
    "NVFP4": "fp4",
}

_MADE: dict[str, Format] = {}


def packed_integers(
    name: str,
    *,
    bits: int,
    group: int | None,
    scale_bytes: int = 2,
    zero_points: bool = False,
    order: bool = False,
    more: tuple[Extra, ...] = (),
) -> Format:
    """Return integers of `bits` packed into 32-bit words, with scales for groups of columns.

    `group` is the number of columns that share a scale, `None` for all. With `zero_points` each
    scale has one, packed as the values are but along the rows; `order` stores the group of every
    column (``g_idx``). This is what AutoGPTQ and AutoAWQ store as qweight, scales, qzeros and
    g_idx, and compressed-tensors ``pack-quantized`` as weight_packed, weight_scale and
    weight_zero_point.

    Sources: AutoGPTQ ``nn_modules/qlinear``; AutoAWQ ``modules/linear/gemm.py``;
    compressed-tensors ``compressors/pack_quantized``.

    >>> from llmcalc import formats
    >>> format = formats.packed_integers("own", bits=4, group=128, zero_points=True)
    >>> [(extra.name, extra.bytes, extra.rows, extra.columns) for extra in format.extras]
    [('scales', 2, 1, 128), ('zero_points', 4, 8, 128)]
    """
    if bits not in {1, 2, 3, 4, 5, 6, 7, 8}:
        raise InvalidValueError("bits", bits, "must be from 1 to 8")
    # Words hold whole values where they can: 32 // bits of them; 3 and others fill 32 bits * n.
    elements, words = (32 // bits, 1) if 32 % bits == 0 else (32, bits)
    extras = [Extra("scales", scale_bytes, rows=1, columns=group)]
    if zero_points:
        extras.append(Extra("zero_points", 4 * words, rows=elements, columns=group))
    if order:
        extras.append(Extra("order", 4, rows=None, columns=1))
    return Format(
        name=name,
        block_elements=elements,
        block_bytes=4 * words,
        extras=(*extras, *more),
    )


def _normal_float(name: str, *, double: bool) -> Format:
    """Return 4-bit values in blocks of 64 through the whole matrix, each block with its maximum.

    With double quantisation maxima are bytes, 256 of which share a float32, with an offset and
    the table of 256 values they stand for. The table of 16 values is a tensor, too.

    Source: bitsandbytes ``functional.py``, `QuantState.as_dict`; Dettmers et al., "QLoRA" (2023),
    section 3.
    """
    table = Extra("table", 16 * 4, rows=None, columns=None)
    if not double:
        extras: tuple[Extra, ...] = (Extra("maxima", 4, rows=1, columns=64), table)
    else:
        extras = (
            Extra("maxima", 1, rows=1, columns=64),
            Extra("maxima_of_maxima", 4, rows=1, columns=64 * 256),
            Extra("offset_and_table_of_maxima", 4 + 256 * 4, rows=None, columns=None),
            table,
        )
    return Format(name=name, block_elements=2, block_bytes=1, extras=extras, flat=True)


def _make(name: str) -> Format | None:
    """Return the format with that name, `None` where there is none."""
    if name in PLAIN:
        elements, count = PLAIN[name]
        number = _NUMBERS.get(name)
        return Format(name=name, block_elements=elements, block_bytes=count, number_format=number)
    if name in _BLOCKS:
        elements, parts = _BLOCKS[name]
        count = sum(part for part, _ in parts)
        return Format(
            name=name,
            block_elements=elements,
            block_bytes=count,
            block_parts=parts,
            number_format=_NUMBERS[name],
            expert_kernels="mxfp4" if name == "mxfp4" else None,
        )
    if name in _SCALED:
        elements, parts, beside = _SCALED[name]
        return Format(
            name=name,
            block_elements=elements,
            block_bytes=sum(part for part, _ in parts),
            block_parts=parts if len(parts) > 1 else (),
            extras=tuple(
                Extra(title, count, rows=rows, columns=columns)
                for title, count, (rows, columns) in beside
            ),
            number_format=_NUMBERS[name],
        )
    if name in {"nf4", "nf4-single"}:
        return _normal_float(name, double=name == "nf4")
    if name == "mxfp4-hopper":
        parts = _BLOCKS["mxfp4"][1]
        return Format(
            name=name,
            block_elements=32,
            block_bytes=17,
            block_parts=parts,
            pad=(64, 256),
            number_format=_NUMBERS["mxfp4"],
        )
    return _make_grouped(name)


def _make_grouped(name: str) -> Format | None:
    """Return the format whose name says its bits and its group."""
    if match := _GROUPED.fullmatch(name):
        kind, bits, group = match.groups()
        return packed_integers(
            name,
            bits=int(bits),
            group=int(group) if group else None,
            zero_points=True,
            order=kind == "gptq",
        )
    if match := _PACKED.fullmatch(name):
        bits, group = match.groups()
        return packed_integers(name, bits=int(bits), group=int(group) if group else None)
    return None


def get(format: str | Format, field: str = "format") -> Format:
    """Return the format with that name; a `Format` is returned as it is.

    `field` is the argument's name in error messages. Raises `llmcalc.LlmcalcError` for an unknown
    name.

    >>> from llmcalc import formats
    >>> formats.get("bf16").block_bytes
    2
    """
    if type(format) is str:
        found = _MADE.get(format)
        if found is None:
            found = find(format)
            if found is None:
                raise UnknownNameError(field, format, names(), listed_by="llmcalc.formats.names()")
        return found
    if isinstance(format, Format):
        return format
    raise InvalidValueError(field, format, "must be a format's name or a Format")


def find(name: str) -> Format | None:
    """Return the format with that name, `None` where there is none."""
    found = _MADE.get(name)
    if found is None and len(name) <= 40:
        found = _make(_SAME_AS.get(name, name))
        # Names of listed formats are few; those made up of other numbers are not kept.
        if found is not None and (name in _BLOCKS or name in PLAIN or name in _SCALED):
            _MADE[name] = found
    return found


def names() -> tuple[str, ...]:
    """Return the names that `get` knows; group sizes and bits may be others than the listed ones.

    >>> from llmcalc import formats
    >>> formats.names()[:8]
    ('fp64', 'fp32', 'tf32', 'bf16', 'fp16', 'fp8', 'int8', 'int4')
    """
    return (*PLAIN, *_SCALED, *_SAME_AS, *_LISTED, *_BLOCKS)
