"""Weights as they are in files: safetensors and GGUF, read from their headers alone.

* `tensors`: names, shapes, element types and bytes of all tensors.
* `weight_bytes`: their bytes, as a breakdown.
* `compare`: how they differ from those of a description.

A path is a ``.safetensors`` file, the ``.json`` index of a sharded one, a ``.gguf`` file (the
first of several, too), or a folder with any of these. No tensor is ever read. A header that is
not one is refused with a `llmcalc.LlmcalcError` before anything of its size is allocated: lengths
beyond the file, negative, overlapping or missing ranges, names given twice, deep or huge JSON.

Sources: the safetensors format, https://github.com/huggingface/safetensors#format; the GGUF
format, ``docs/gguf.md`` of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, BinaryIO, Final

import attrs

from llmcalc import formats, memory
from llmcalc.breakdown import Breakdown, Term
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError, LlmcalcError, shown
from llmcalc.spec.model import ModelSpec
from llmcalc.units import Bytes, Params, format_integer, format_quantity

__all__ = ["Comparison", "FileTensor", "compare", "tensors", "weight_bytes"]

#: A header of safetensors has less; the format's own limit is 100 MB.
LARGEST_HEADER: Final = 64 * 2**20

#: JSON with more commas and brackets than this is no header: it would take gigabytes as objects.
MOST_JSON_ITEMS: Final = 2**21

#: No model has more tensors in one file or in all, more shards, more metadata, or more strings in
#: its tokenizer.
MOST_TENSORS: Final = 2**18
MOST_TENSORS_IN_ALL: Final = 2**20
MOST_SHARDS: Final = 2**12
MOST_METADATA: Final = 2**16
MOST_STRINGS: Final = 2**21

#: More axes, or a longer name, no tensor has.
MOST_AXES: Final = 16
LONGEST_NAME: Final = 2**12

#: Bits of an element: ``safetensors/src/tensor.rs``, `Dtype`.
_BITS: Final = {
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

#: The numbers of GGUF's element types: ``ggml.h``, `ggml_type`.
_GGML_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


@attrs.frozen(kw_only=True, repr=False, eq=False)
class FileTensor(Described):
    """A tensor of a file: `shape` as in PyTorch, `dtype` in the file's own word, `file` its place.

    >>> from llmcalc.files import FileTensor
    >>> FileTensor(name="a", shape=(2, 3), dtype="BF16", bytes=12, file="x.safetensors").elements
    6
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    file: str

    @property
    def elements(self) -> int:
        """The product of the shape."""
        return prod(self.shape)


def tensors(path: str | os.PathLike[str]) -> tuple[FileTensor, ...]:
    """Return all tensors of a file, of the shards of an index, or of a folder, from headers alone.

    In a folder the index counts, else all safetensors files together, else the GGUF files. Raises
    `llmcalc.LlmcalcError` for what cannot be read or is not consistent.

    >>> import struct, tempfile, pathlib
    >>> from llmcalc import files
    >>> header = b'{"embed": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [0, 16]}}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "model.safetensors"
    ...     _ = file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    ...     [tensor] = files.tensors(file)
    >>> tensor.name, tensor.shape, tensor.dtype, tensor.bytes
    ('embed', (4, 2), 'BF16', 16)
    """
    place = _path(path)
    kind = _kind(place)
    if kind == "folder":
        return _folder(place)
    if kind == "index":
        return _sharded(place)
    if kind == "gguf":
        return _gguf_files(place)
    return _safetensors(place)


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
    terms = [Term((_group(tensor.name), tensor.name), _factors(tensor)) for tensor in found]
    name = os.path.basename(os.path.normpath(_path(path)))  # noqa: PTH119
    return Breakdown(Bytes, f"Weights in {name}", terms)


def _factors(tensor: FileTensor) -> tuple[tuple[int, str], ...]:
    """Give the factors of a tensor's bytes, by element where they are whole."""
    if not tensor.elements:
        return ((0, "bytes"),)
    if tensor.bytes % tensor.elements == 0:
        return (tensor.elements, "elements"), (tensor.bytes // tensor.elements, "bytes")
    return ((tensor.bytes, "bytes"),)


# Paths --------------------------------------------------------------------------------------


def _path(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str | os.PathLike):
        raise InvalidValueError("path", path, "must be a path")
    place = os.fspath(path)
    if not isinstance(place, str):
        raise InvalidValueError("path", place, "must be a path of text, not of bytes")
    return place


def _kind(place: str) -> str:
    try:
        mode = os.stat(place).st_mode  # noqa: PTH116
    except (OSError, ValueError) as problem:
        raise InvalidValueError("path", place, f"cannot be read: {problem}") from problem
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise InvalidValueError("path", place, "must be a file or a folder")
    name = place.casefold()
    for ending, kind in ((".json", "index"), (".gguf", "gguf"), (".safetensors", "safetensors")):
        if name.endswith(ending):
            return kind
    with _open(place) as file:
        return "gguf" if file.read(4) == b"GGUF" else "safetensors"


def _open(place: str) -> BinaryIO:
    """Open a regular file; a pipe would block, and a device never end."""
    try:
        if not stat.S_ISREG(os.stat(place).st_mode):  # noqa: PTH116
            raise InvalidValueError("path", place, "must be a file")
        return open(place, "rb")  # noqa: PTH123  # callers close it
    except (OSError, ValueError) as problem:
        if isinstance(problem, LlmcalcError):
            raise
        raise InvalidValueError("path", place, f"cannot be read: {problem}") from problem


def _folder(place: str) -> tuple[FileTensor, ...]:
    try:
        names = sorted(os.listdir(place))  # noqa: PTH208
    except OSError as problem:
        raise InvalidValueError("path", place, f"cannot be read: {problem}") from problem

    def ending(end: str) -> list[str]:
        return [os.path.join(place, name) for name in names if name.endswith(end)]  # noqa: PTH118

    indices = ending(".safetensors.index.json")
    if len(indices) > 1:
        usual = [name for name in indices if name.endswith("model.safetensors.index.json")]
        if len(usual) != 1:
            raise InvalidValueError("path", place, "has several indices: name one of them")
        indices = usual
    if indices:
        return _sharded(indices[0])
    found = ending(".safetensors")
    if found:
        return _unique(found, _safetensors)
    found = ending(".gguf")
    if not found:
        raise InvalidValueError("path", place, "holds no safetensors and no GGUF file")
    splits = {_SPLIT.sub("", os.path.basename(name)) for name in found}  # noqa: PTH119
    if len(splits) > 1:
        raise InvalidValueError("path", place, "holds several GGUF models: name one of them")
    return _gguf_files(found[0])


def _unique(places: Iterable[str], read: Any) -> tuple[FileTensor, ...]:
    """Read several files whose tensors must have different names."""
    seen: dict[str, FileTensor] = {}
    for place in places:
        for tensor in read(place):
            if tensor.name in seen:
                raise InvalidValueError(
                    "name", tensor.name, f"is in {seen[tensor.name].file} and in {tensor.file}"
                )
            seen[tensor.name] = tensor
            if len(seen) > MOST_TENSORS_IN_ALL:
                raise InvalidValueError("path", place, f"more than {MOST_TENSORS_IN_ALL} tensors")
    return tuple(seen.values())


# JSON ---------------------------------------------------------------------------------------


def _json(text: bytes, place: str) -> dict[str, Any]:
    """Return a JSON object; refuse what is not one, repeats a key, or is all brackets."""
    items = text.count(b",") + text.count(b"[") + text.count(b"{")
    if items > MOST_JSON_ITEMS:
        raise InvalidValueError("path", place, f"its header has more than {MOST_JSON_ITEMS} items")
    try:
        found = json.loads(text.decode(), object_pairs_hook=lambda pairs: _object(pairs, place))
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, LlmcalcError):
            raise
        raise InvalidValueError("path", place, f"its header is not JSON: {problem}") from problem
    if not isinstance(found, dict):
        raise InvalidValueError("path", place, "its header must be a JSON object")
    return found


def _object(pairs: Sequence[tuple[str, Any]], place: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = ""
        for twice, _ in pairs:
            if twice in seen:
                break
            seen.add(twice)
        raise InvalidValueError("name", twice, f"is given twice in {os.path.basename(place)}")  # noqa: PTH119
    return found


# safetensors --------------------------------------------------------------------------------


def _safetensors(place: str) -> tuple[FileTensor, ...]:
    with _open(place) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            raise InvalidValueError("path", place, "is too short for a safetensors file")
        (length,) = struct.unpack("<Q", start)
        if length > min(size - 8, LARGEST_HEADER):
            raise InvalidValueError(
                "header length",
                length,
                f"must be at most what the file has ({size - 8}) and {LARGEST_HEADER}",
            )
        text = file.read(length)
    if len(text) < length:
        raise InvalidValueError("path", place, "ends within its header")
    if not text.startswith(b"{"):
        raise InvalidValueError("path", place, "its header must start with '{'")
    entries = _json(text, place)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise InvalidValueError("__metadata__", metadata, "must map names to strings")
    if len(entries) > MOST_TENSORS:
        raise InvalidValueError("path", place, f"has more than {MOST_TENSORS} tensors")
    title = os.path.basename(place)  # noqa: PTH119
    ranges: list[tuple[int, int, FileTensor]] = []
    for name, entry in entries.items():
        ranges.append(_entry(name, entry, title))
    ranges.sort(key=lambda each: each[:2])
    end = 0
    for first, last, tensor in ranges:
        if first != end:
            rule = "overlaps the tensor before it" if first < end else "leaves a gap before it"
            raise InvalidValueError(f"{tensor.name}: data_offsets", [first, last], rule)
        end = last
    if end != size - 8 - length:
        raise InvalidValueError(
            "path", place, f"has {size - 8 - length} bytes of data, its header says {end}"
        )
    return tuple(tensor for _, _, tensor in ranges)


def _entry(name: str, entry: object, title: str) -> tuple[int, int, FileTensor]:
    """Read a tensor's entry: its range in the data, and the tensor."""
    if len(name) > LONGEST_NAME:
        raise InvalidValueError("name", name, f"is longer than {LONGEST_NAME} characters")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidValueError(
            shown(name), entry, "must be an object of dtype, shape and data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise InvalidValueError(
            f"{shown(name)}: dtype", dtype, f"must be one of {', '.join(_BITS)}"
        )
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_AXES
        or not all(type(size) is int and 0 <= size < 2**63 for size in shape)
    ):
        raise InvalidValueError(
            f"{shown(name)}: shape", shape, f"must be at most {MOST_AXES} sizes of at least 0"
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int and 0 <= offset < 2**63 for offset in offsets)
        or offsets[0] > offsets[1]
    ):
        raise InvalidValueError(
            f"{shown(name)}: data_offsets", offsets, "must be two offsets of at least 0, in order"
        )
    bits = prod(shape) * _BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise InvalidValueError(
            f"{shown(name)}: data_offsets",
            offsets,
            f"must be {bits / 8:g} bytes apart, for {dtype} of shape {shown(shape)}",
        )
    tensor = FileTensor(name=name, shape=tuple(shape), dtype=dtype, bytes=bits // 8, file=title)
    return offsets[0], offsets[1], tensor


def _sharded(place: str) -> tuple[FileTensor, ...]:
    """Read all shards of an index; each must have the tensors that the index says."""
    with _open(place) as file:
        text = file.read(LARGEST_HEADER + 1)
    if len(text) > LARGEST_HEADER:
        raise InvalidValueError("path", place, f"is larger than {LARGEST_HEADER} bytes")
    where = _json(text, place).get("weight_map")
    if not isinstance(where, dict) or not all(type(name) is str for name in where.values()):
        raise InvalidValueError("weight_map", where, "must map tensors to files")
    shards: dict[str, set[str]] = {}
    for name, shard in where.items():
        if not shard or os.path.basename(shard) != shard or shard in {".", ".."} or "\\" in shard:  # noqa: PTH119
            raise InvalidValueError("weight_map", shard, "must name files beside the index")
        shards.setdefault(shard, set()).add(name)
        if len(shards) > MOST_SHARDS:
            raise InvalidValueError("path", place, f"has more than {MOST_SHARDS} shards")
    folder = os.path.dirname(place)  # noqa: PTH120
    found = _unique([os.path.join(folder, shard) for shard in shards], _safetensors)  # noqa: PTH118
    for tensor in found:
        if where.get(tensor.name) != tensor.file:
            raise InvalidValueError(
                "weight_map",
                tensor.name,
                f"is in {tensor.file}, not in {where.get(tensor.name)} as the index says",
            )
    missing = where.keys() - {tensor.name for tensor in found}
    if missing:
        first = min(missing)
        raise InvalidValueError("weight_map", first, f"is not in {where[first]}")
    return found


# GGUF ---------------------------------------------------------------------------------------

#: The end of the names of a split file: ``-00001-of-00003.gguf``.
_SPLIT: Final = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.gguf$")

#: The values of GGUF's metadata that have a fixed size: number of the type -> struct format.
_SCALARS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9

#: So much is read at once where many short strings follow each other.
_CHUNK: Final = 2**20

#: The metadata that is needed.
_ALIGNMENT: Final = "general.alignment"
_SPLIT_COUNT: Final = "split.count"


def _gguf_files(place: str) -> tuple[FileTensor, ...]:
    """Read a GGUF file and the other parts of a split one."""
    found, parts = _gguf(place)
    if parts <= 1:
        return found
    match = _SPLIT.search(place)
    if match is None or int(match[2]) != parts:
        raise InvalidValueError(
            "path",
            place,
            f"is one of {parts} parts: its name must end in -00001-of-{parts:05}.gguf",
        )
    start = place[: match.start()]
    places = [f"{start}-{part:05}-of-{parts:05}.gguf" for part in range(1, parts + 1)]
    return _unique(places, lambda part: _gguf(part)[0])


class _Reader:
    """Reads little- or big-endian values from a file, never beyond its end."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self.file = file
        self.place = place
        self.size = os.fstat(file.fileno()).st_size
        self.order = "<"
        self.strings = 0

    def left(self) -> int:
        return self.size - self.file.tell()

    def value(self, code: str) -> Any:
        found = self.file.read(struct.calcsize(code))
        try:
            return struct.unpack(self.order + code, found)[0]
        except struct.error:
            raise InvalidValueError("path", self.place, "ends within its header") from None

    def length(self, what: str, each: int, most: int | None = None) -> int:
        """Return a number of things of at least `each` bytes, which the file must have."""
        number: int = self.value("Q")
        if number * each > self.left() or (most is not None and number > most):
            limit = self.left() // each if most is None else min(most, self.left() // each)
            raise InvalidValueError(what, number, f"must be at most {limit} in this file")
        return number

    def text(self, what: str) -> str:
        found = self.file.read(self.length(f"length of {what}", 1, LONGEST_NAME))
        try:
            return found.decode()
        except UnicodeDecodeError as problem:
            raise InvalidValueError(what, found, f"is not UTF-8: {problem}") from problem

    def skip(self, number: int) -> None:
        if number > self.left():
            raise InvalidValueError("path", self.place, "ends within its header")
        self.file.seek(number, os.SEEK_CUR)

    def skip_strings(self, number: int) -> None:
        self.strings += number
        if self.strings > MOST_STRINGS:
            raise InvalidValueError("path", self.place, f"has more than {MOST_STRINGS} strings")
        code, chunk, at = struct.Struct(self.order + "Q"), b"", 0
        for _ in range(number):
            if len(chunk) - at < 8:
                chunk, at = chunk[at:] + self.file.read(_CHUNK), 0
                if len(chunk) < 8:
                    raise InvalidValueError("path", self.place, "ends within its header")
            at += 8 + code.unpack_from(chunk, at)[0]
            if at > len(chunk):
                self.skip(at - len(chunk))
                chunk, at = b"", 0
        self.file.seek(at - len(chunk), os.SEEK_CUR)


def _gguf(place: str) -> tuple[tuple[FileTensor, ...], int]:
    """Read one file: its tensors, and how many parts the model has."""
    with _open(place) as file:
        reader = _Reader(file, place)
        if file.read(4) != b"GGUF":
            raise InvalidValueError("path", place, "is not a GGUF file")
        version: int = reader.value("I")
        if version & 0xFFFF == 0:  # written on a big-endian machine
            reader.order, version = ">", version >> 24
        if version not in {2, 3}:
            raise InvalidValueError("GGUF version", version, "must be 2 or 3")
        # A tensor takes a name's length, its axes' number, a type and an offset at least.
        count = reader.length("number of tensors", 8 + 4 + 4 + 8, MOST_TENSORS)
        metadata = _metadata(reader)
        alignment = metadata.get(_ALIGNMENT, 32)
        if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise InvalidValueError(_ALIGNMENT, alignment, "must be a power of two up to 2**20")
        parts = metadata.get(_SPLIT_COUNT, 1)
        if type(parts) is not int or not 0 <= parts <= MOST_SHARDS:
            raise InvalidValueError(_SPLIT_COUNT, parts, f"must be at most {MOST_SHARDS}")
        title = os.path.basename(place)  # noqa: PTH119
        found = [_tensor_info(reader, title) for _ in range(count)]
        start = -(-file.tell() // alignment) * alignment
    names: set[str] = set()
    end = 0
    for offset, tensor in sorted(found, key=lambda each: each[0]):
        if tensor.name in names:
            raise InvalidValueError("name", tensor.name, f"is given twice in {title}")
        names.add(tensor.name)
        if offset != end:
            rule = "overlaps the tensor before it" if offset < end else "leaves a gap before it"
            raise InvalidValueError(f"{shown(tensor.name)}: offset", offset, rule)
        if start + offset + tensor.bytes > reader.size:
            raise InvalidValueError(
                "path", place, f"has {reader.size} bytes, too few for {shown(tensor.name)}"
            )
        end = -(-(offset + tensor.bytes) // alignment) * alignment
    return tuple(tensor for _, tensor in found), parts


def _metadata(reader: _Reader) -> Mapping[str, Any]:
    """Read the metadata; keep the few values that matter."""
    kept: dict[str, Any] = {}
    names: set[str] = set()
    for _ in range(reader.length("number of metadata entries", 8 + 4 + 1, MOST_METADATA)):
        name = reader.text("metadata key")
        if name in names:
            raise InvalidValueError("metadata key", name, "is given twice")
        names.add(name)
        kind: int = reader.value("I")
        if kind in _SCALARS:
            value = reader.value(_SCALARS[kind])
            if name in {_ALIGNMENT, _SPLIT_COUNT}:
                kept[name] = value
        elif kind == _STRING:
            reader.skip(reader.value("Q"))
        elif kind == _ARRAY:
            _skip_array(reader, name)
        else:
            raise InvalidValueError(f"{shown(name)}: type", kind, "is no type of a value")
    return kept


def _skip_array(reader: _Reader, name: str) -> None:
    kind: int = reader.value("I")
    if kind in _SCALARS:
        each = struct.calcsize(_SCALARS[kind])
        reader.skip(reader.length(f"length of {shown(name)}", each) * each)
    elif kind == _STRING:
        reader.skip_strings(reader.length(f"length of {shown(name)}", 8))
    else:
        raise InvalidValueError(f"{shown(name)}: type of elements", kind, "is no type of a value")


def _tensor_info(reader: _Reader, title: str) -> tuple[int, FileTensor]:
    name = reader.text("a tensor's name")
    axes: int = reader.value("I")
    if axes > 4:
        raise InvalidValueError(f"{shown(name)}: axes", axes, "must be at most 4")
    shape = tuple(reader.value("Q") for _ in range(axes))[::-1]
    if any(size >= 2**63 for size in shape):
        raise InvalidValueError(f"{shown(name)}: shape", shape, "must be below 2**63")
    kind: int = reader.value("I")
    dtype = _GGML_TYPES.get(kind)
    if dtype is None:
        raise InvalidValueError(f"{shown(name)}: type", kind, "is no known type of elements")
    offset: int = reader.value("Q")
    block, size = _ggml_block(dtype)
    if (shape[-1] if shape else 1) % block:
        raise InvalidValueError(
            f"{shown(name)}: shape", shape, f"rows must be whole blocks of {block} elements"
        )
    total = prod(shape) // block * size
    return offset, FileTensor(name=name, shape=shape, dtype=dtype, bytes=total, file=title)


def _ggml_block(dtype: str) -> tuple[int, int]:
    """Return the elements and the bytes of a block."""
    if dtype in _BITS:
        return 1, _BITS[dtype] // 8
    format = formats.get(dtype)
    return format.block_elements, format.block_bytes


# Comparison ---------------------------------------------------------------------------------


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Comparison(Described):
    """How the tensors of a file differ from those of a description, in parameters.

    `file` and `described` are parameters and buffers by group. `scales` are elements that only
    quantised tensors have: scales, zero points, orders. `beyond` are parameters of layers after the
    described ones, such as those that predict several tokens; `tied_copy` is a head that the file
    stores although it is the token table. Neither is part of `file`. `other` names what is in no
    known group.

    ``bool(comparison)`` is whether the totals are equal. Groups are told by names, which differ
    between models: equal totals with `differences` between groups are a matter of names.
    """

    name: str
    file: Mapping[str, int]
    described: Mapping[str, int]
    scales: int = 0
    beyond: int = 0
    tied_copy: int = 0
    other: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.difference

    __hash__ = None  # type: ignore[assignment]  # holds mappings

    @property
    def differences(self) -> Mapping[str, int]:
        """What the file has more than the description, by group, where it is not the same."""
        groups = dict.fromkeys((*self.described, *self.file))
        found = {g: self.file.get(g, 0) - self.described.get(g, 0) for g in groups}
        return {group: more for group, more in found.items() if more}

    @property
    def difference(self) -> int:
        """How many parameters the file has more than the description."""
        return sum(self.file.values()) - sum(self.described.values())

    def explain(self) -> str:
        """Return the comparison as text: a line for each group, and what was left out."""
        lines = [f"Parameters of {self.name}: file, description, difference"]
        for group in dict.fromkeys((*self.described, *self.file)):
            mine, theirs = self.file.get(group, 0), self.described.get(group, 0)
            lines.append(
                f"  {group:<13} {format_integer(mine)}  {format_integer(theirs)}"
                f"  {format_integer(mine - theirs)}"
            )
        for count, what in (
            (self.beyond, "in layers beyond the described ones"),
            (self.tied_copy, "in a copy of the token table for the head"),
            (self.scales, "scales and zero points of quantised tensors"),
        ):
            if count:
                lines.append(f"  left out: {format_quantity(count, Params)} {what}")
        if self.other:
            lines.append(f"  in no known group: {', '.join(self.other[:8])}")
        return "\n".join(lines)


def compare(path: str | os.PathLike[str], spec: ModelSpec) -> Comparison:
    """Return how the tensors of a file differ from those of a description.

    Packed tensors count with the elements that they stand for. Names are those of published
    models and of GGUF files; what they do not tell is in the group ``"other"``.

    >>> import struct, tempfile, pathlib
    >>> from llmcalc import ModelSpec, files
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=1, num_query_heads=1, num_kv_heads=1, embed_dim=8, inner_dim=8,
    ...     vocab_size=4,
    ... )
    >>> header = b'{"wte.weight": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]}}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "model.safetensors"
    ...     _ = file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    ...     report = files.compare(file, spec)
    >>> report.differences
    {'norms': -24, 'attention': -256, 'feed_forward': -192, 'head': -32}
    """
    if not isinstance(spec, ModelSpec):
        raise InvalidValueError("spec", spec, "must be a ModelSpec")
    found = tensors(path)
    by_name = {tensor.name: tensor for tensor in found}
    described = dict(memory.parameters(spec).by())
    for buffer in spec.ledger.buffers:
        factors = buffer.row_factors + buffer.column_factors + buffer.times
        group = buffer.path[0]
        described[group] = described.get(group, 0) + prod(size for size, _ in factors)
    counted: dict[str, int] = {}
    table = spec.embedding.rows.size * (spec.embedding.width or spec.embed_dim)
    scales = beyond = tied_copy = 0
    other = []
    for tensor in found:
        elements = _parameters(tensor, by_name)
        if elements is None:
            scales += tensor.elements
            continue
        group = _group(tensor.name)
        layer = _LAYER.search(tensor.name)
        if layer is not None and int(layer[1]) >= spec.num_layers:
            beyond += elements
        elif group == "head" and spec.head.tied and elements == table:
            tied_copy += elements
        else:
            counted[group] = counted.get(group, 0) + elements
            if group == "other":
                other.append(tensor.name)
    for pair in _ALIKE:
        _tell_apart(pair, counted, described)
    return Comparison(
        name=spec.name,
        file=counted,
        described=described,
        scales=scales,
        beyond=beyond,
        tied_copy=tied_copy,
        other=tuple(other),
    )


#: Groups whose modules some models give the same names.
_ALIKE: Final = (("attention", "recurrent"), ("feed_forward", "experts"))


def _tell_apart(
    pair: tuple[str, str], counted: dict[str, int], described: Mapping[str, int]
) -> None:
    """Where names do not tell two groups apart, but their sum is as described, split it so."""
    if sum(counted.get(group, 0) for group in pair) == sum(described.get(g, 0) for g in pair):
        for group in pair:
            counted.pop(group, None)
            if described.get(group):
                counted[group] = described[group]


#: The number of the layer in a tensor's name.
_LAYER: Final = re.compile(r"(?:layers|h|blocks|block|blk|layer)\.([0-9]{1,6})\.")

#: What tells the group of a tensor, by its name; the first pattern that is found counts.
_GROUPS: Final = tuple(
    (re.compile(pattern), group)
    for pattern, group in (
        (r"(^|\.)(lm_head|embed_out|unembed)\.|^(output|head|decoder)\.", "head"),
        (r"embed_tokens|embed_positions|tok_embeddings|(tokens|positions)_embed\.", "embeddings"),
        (r"(^|\.)(wte|wpe|word_embeddings|embed_in|token_embd|position_embd)\.", "embeddings"),
        (r"^((backbone|rwkv)\.)?embeddings?\.|^transformer\.w\.|llm\.embed\.", "embeddings"),
        (r"(self_attn|attention|attn)\.(\w+\.)*\w*norm", "attention"),
        (r"blk\.\d+\.attn_(q|k|q_a|kv_a)_norm\.", "attention"),
        (r"(mamba|mixer|linear_attn|ssm|temporal_block|recurrent|time_mix)[._]", "recurrent"),
        (r"layers\.\d+\.conv\.", "recurrent"),
        (r"(^|[._])(norm|norm_\w|layernorm|ln|ln\d|ln_\w|\w+_layernorm|\w+norm\w*)\.", "norms"),
        (r"blk\.\d+\.\w*norm", "norms"),
        (r"expert|router|mlp\.gate\.|block_sparse_moe|_exps|_shexp|ffn_gate_inp|moe", "experts"),
        (r"shared_mlp", "experts"),
        (r"e_score_correction|exp_probs_b", "experts"),
        (r"self_attn|attention|attn", "attention"),
        (r"mlp|feed_forward|ffn|\bfc\d?\.|dense_", "feed_forward"),
    )
)


def _group(name: str) -> str:
    """Return the group of a tensor, as far as its name tells."""
    for pattern, group in _GROUPS:
        if pattern.search(name[:300]):
            return group
    return "other"


#: Ends of the names of tensors that stand beside quantised ones.
_BESIDE: Final = (
    ".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".input_scale", ".activation_scale",
    ".weight_zero_point", ".input_zero_point", ".weight_g_idx", ".weight_shape",
    ".weight_global_scale", ".input_global_scale", ".scales", ".qzeros", ".g_idx", ".absmax",
    ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format", "_scales",
    ".k_scale", ".v_scale",
)  # fmt: skip


def _parameters(tensor: FileTensor, by_name: Mapping[str, FileTensor]) -> int | None:
    """Return the parameters that a tensor stands for; `None` for what only stands beside one."""
    name = tensor.name
    if name.endswith(_BESIDE) or ".quant_state." in name or name.startswith("rope_freqs"):
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
