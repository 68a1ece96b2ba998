"""What weights take in files.

* `weight_bytes`: the bytes of all tensors, in groups.
"""

from __future__ import annotations

import os

from llmcalc.breakdown import Breakdown, Factor, Term
from llmcalc.files.names import group_of
from llmcalc.headers.file_tensors import FileTensor
from llmcalc.headers.local import path_text, tensors
from llmcalc.units import Bytes

__all__ = ["weight_bytes"]


def weight_bytes(path: str | os.PathLike[str]) -> Breakdown[Bytes]:
    """Return the bytes of all tensors in a file, in the groups that a description has.

    Quantised tensors count with their scales. Headers and metadata are left out.

    >>> import struct, tempfile, pathlib
    >>> from llmcalc import files
    >>> header = b'{"lm_head.weight": {"dtype": "F16", "shape": [4, 2], "data_offsets": [0, 16]}}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "model.safetensors"
    ...     _ = file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    ...     print(files.weight_bytes(file).explain())
    Weights in model.safetensors
      lm_head.weight  8 elements x 2 bytes = 16 B
      total 16 B
    """
    found = tensors(path)
    terms = [Term((group_of(tensor.name), tensor.name), _factors(tensor)) for tensor in found]
    name = os.path.basename(os.path.normpath(path_text(path)))  # noqa: PTH119
    return Breakdown(Bytes, f"Weights in {name}", terms)


def _factors(tensor: FileTensor) -> tuple[Factor, ...]:
    """Give the factors of a tensor's bytes, by element where they are whole."""
    if not tensor.elements:
        return ((0, "bytes"),)
    if tensor.bytes % tensor.elements == 0:
        return (tensor.elements, "elements"), (tensor.bytes // tensor.elements, "bytes")
    return ((tensor.bytes, "bytes"),)
