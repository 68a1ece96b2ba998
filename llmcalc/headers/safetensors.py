"""The header of a safetensors file: JSON behind eight bytes that say how long it is.

* `read_safetensors`: the tensors of a file.

Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

from math import prod
from typing import Final, TypeGuard

from llmcalc.errors import InvalidValueError, shown
from llmcalc.headers.elements import BITS
from llmcalc.headers.file_tensors import FileTensor
from llmcalc.headers.limits import LONGEST_NAME, MOST_TENSORS, misplaced
from llmcalc.headers.opened import OpenFile
from llmcalc.headers.strict_json import json_object

__all__ = ["read_safetensors"]

#: A header has less, and so has an index; the format's own limit is 100 MB.
LARGEST_HEADER: Final = 64 * 2**20

#: No tensor has more axes.
MOST_AXES: Final = 16


def read_safetensors(file: OpenFile) -> tuple[FileTensor, ...]:
    """Return the tensors of a safetensors file, in the order of their data.

    Raises `llmcalc.LlmcalcError` for a header that lies: one longer than the file, ranges that
    overlap, leave gaps or are not as long as the shape says.

    >>> import struct, tempfile, pathlib
    >>> from llmcalc import headers
    >>> header = b'{"embed": {"dtype": "F16", "shape": [4, 2], "data_offsets": [0, 16]}}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.safetensors"
    ...     _ = path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    ...     with headers.open_file(path) as file:
    ...         [tensor] = headers.read_safetensors(file)
    >>> tensor.name, tensor.shape, tensor.file
    ('embed', (4, 2), 'model.safetensors')
    """
    text = _text(file)
    entries = json_object(text, file)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise InvalidValueError("__metadata__", metadata, "must map names to strings")
    if len(entries) > MOST_TENSORS:
        raise file.wrong(f"has more than {MOST_TENSORS} tensors")
    title = file.name
    ranges = [_entry(name, entry, title) for name, entry in entries.items()]
    ranges.sort(key=lambda each: each[:2])
    end = 0
    for first, last, tensor in ranges:
        wrong = misplaced(first, end)
        if wrong is not None:
            raise InvalidValueError(f"{tensor.name}: data_offsets", [first, last], wrong)
        end = last
    data = file.size - 8 - len(text)
    if end != data:
        raise file.wrong(f"has {data} bytes of data, its header says {end}")
    return tuple(tensor for _, _, tensor in ranges)


def _text(file: OpenFile) -> bytes:
    """Read the JSON of the header."""
    start = file.stream.read(8)
    if len(start) < 8:
        raise file.wrong("is too short for a safetensors file")
    length = int.from_bytes(start, "little")
    if length > min(file.size - 8, LARGEST_HEADER):
        raise InvalidValueError(
            "header length",
            length,
            f"must be at most what the file has ({file.size - 8}) and {LARGEST_HEADER}",
        )
    text = file.stream.read(length)
    if len(text) < length:
        raise file.wrong("ends within its header")
    if not text.startswith(b"{"):
        raise file.wrong("its header must start with '{'")
    return text


def _entry(name: str, entry: object, file: str) -> tuple[int, int, FileTensor]:
    """Read a tensor's entry: its range in the data, and the tensor."""
    if len(name) > LONGEST_NAME:
        raise InvalidValueError("name", name, f"is longer than {LONGEST_NAME} characters")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidValueError(
            shown(name), entry, "must be an object of dtype, shape and data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise InvalidValueError(f"{shown(name)}: dtype", dtype, f"must be one of {', '.join(BITS)}")
    if not _are_sizes(shape) or len(shape) > MOST_AXES:
        raise InvalidValueError(
            f"{shown(name)}: shape", shape, f"must be at most {MOST_AXES} sizes of at least 0"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidValueError(
            f"{shown(name)}: data_offsets", offsets, "must be two offsets of at least 0, in order"
        )
    bits = prod(shape) * BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise InvalidValueError(
            f"{shown(name)}: data_offsets",
            offsets,
            f"must be {bits / 8:g} bytes apart, for {dtype} of shape {shown(shape)}",
        )
    tensor = FileTensor(name=name, shape=tuple(shape), dtype=dtype, bytes=bits // 8, file=file)
    return offsets[0], offsets[1], tensor


def _are_sizes(found: object) -> TypeGuard[list[int]]:
    """Whether it is a list of integers of at least 0."""
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 2**63 for n in found)
