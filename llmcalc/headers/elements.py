"""Types of elements, as files of weights name or number them, and how many bytes they take.

* `BITS`: the types of safetensors, with the bits of an element; the plain ones of ggml are among
  them, by the same names.
* `GGML_BLOCKS`: the block formats of ggml: elements, and the bytes of a block as a sum.
* `GGML_TYPES`: the names of ggml's types, by their numbers in GGUF files.
* `ggml_block`: the elements and the bytes of a block of one of these.

`llmcalc.formats` builds its formats of llama.cpp on the same sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

__all__ = ["BITS", "GGML_BLOCKS", "GGML_TYPES", "BlockParts", "ggml_block"]

#: What a block's bytes are made of: how many bytes of what.
BlockParts: TypeAlias = tuple[tuple[int, str], ...]

#: Bits of an element: ``safetensors/src/tensor.rs``, `Dtype`.
BITS: Final[Mapping[str, int]] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}

#: The block structs of ``ggml/src/ggml-common.h``, in the order of their fields;
#: ``GGML_QUANT_SIZES`` of gguf-py has the same sums.
GGML_BLOCKS: Final[Mapping[str, tuple[int, BlockParts]]] = {
    "Q1_0": (128, ((2, "scale"), (16, "values"))),
    "Q4_0": (32, ((2, "scale"), (16, "values"))),
    "Q4_1": (32, ((2, "scale"), (2, "minimum"), (16, "values"))),
    "Q5_0": (32, ((2, "scale"), (4, "high bits"), (16, "low bits"))),
    "Q5_1": (32, ((2, "scale"), (2, "minimum"), (4, "high bits"), (16, "low bits"))),
    "Q8_0": (32, ((2, "scale"), (32, "values"))),
    "Q8_1": (32, ((2, "scale"), (2, "sum"), (32, "values"))),
    "Q2_K": (256, ((16, "scales and minima"), (64, "values"), (2, "scale"), (2, "minimum"))),
    "Q3_K": (256, ((32, "high bits"), (64, "low bits"), (12, "scales"), (2, "scale"))),
    "Q4_K": (256, ((2, "scale"), (2, "minimum"), (12, "scales and minima"), (128, "values"))),
    "Q5_K": (
        256,
        (
            (2, "scale"),
            (2, "minimum"),
            (12, "scales and minima"),
            (32, "high bits"),
            (128, "low bits"),
        ),
    ),
    "Q6_K": (256, ((128, "low bits"), (64, "high bits"), (16, "scales"), (2, "scale"))),
    "Q8_K": (256, ((4, "scale"), (256, "values"), (32, "sums"))),
    "IQ1_S": (256, ((2, "scale"), (32, "grid"), (16, "high bits and scales"))),
    "IQ1_M": (256, ((32, "grid"), (16, "high bits"), (8, "scales"))),
    "IQ2_XXS": (256, ((2, "scale"), (64, "grid"))),
    "IQ2_XS": (256, ((2, "scale"), (64, "grid"), (8, "scales"))),
    "IQ2_S": (256, ((2, "scale"), (64, "grid"), (8, "high bits"), (8, "scales"))),
    "IQ3_XXS": (256, ((2, "scale"), (96, "grid"))),
    "IQ3_S": (256, ((2, "scale"), (64, "grid"), (8, "high bits"), (32, "signs"), (4, "scales"))),
    "IQ4_NL": (32, ((2, "scale"), (16, "values"))),
    "IQ4_XS": (256, ((2, "scale"), (2, "high bits"), (4, "scales"), (128, "values"))),
    "TQ1_0": (256, ((48, "values"), (4, "values"), (2, "scale"))),
    "TQ2_0": (256, ((64, "values"), (2, "scale"))),
    "MXFP4": (32, ((1, "scale"), (16, "values"))),
    "NVFP4": (64, ((4, "scales"), (32, "values"))),
}

#: The numbers of the types of elements: ``ggml.h``, `ggml_type`.
GGML_TYPES: Final[Mapping[int, str]] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


def ggml_block(dtype: str) -> tuple[int, int]:
    """Return the elements and the bytes of a block of one of ggml's types.

    >>> from llmcalc.headers.elements import ggml_block
    >>> ggml_block("BF16"), ggml_block("Q4_0")
    ((1, 2), (32, 18))
    """
    if dtype in BITS:
        return 1, BITS[dtype] // 8
    elements, parts = GGML_BLOCKS[dtype]
    return elements, sum(size for size, _ in parts)
