"""The header of a GGUF file: metadata, then what there is of tensors.

* `read_gguf`: the header of a file.
* `GgufHeader`: its metadata and its tensors.
* `Value`: what the metadata has; `Scalar`: numbers and flags.
* `Skipped`: what stands for a value that was not read.

Scalars, strings and short arrays of numbers are kept; arrays of strings (a tokenizer has hundreds
of thousands) and what is longer are passed over.

Source: ``docs/gguf.md`` of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from math import prod
from typing import ClassVar, Final, Literal, TypeAlias

import attrs

from llmcalc.described import Described
from llmcalc.errors import InvalidValueError, shown
from llmcalc.headers.elements import GGML_TYPES, ggml_block
from llmcalc.headers.file_tensors import FileTensor
from llmcalc.headers.limits import LONGEST_NAME, MOST_FILES, MOST_TENSORS, misplaced
from llmcalc.headers.opened import OpenFile

__all__ = ["GgufHeader", "Scalar", "Skipped", "Value", "read_gguf"]

#: No model has more entries of metadata, or more strings in its tokenizer.
MOST_METADATA: Final = 2**16
MOST_STRINGS: Final = 2**21

#: Longer arrays are passed over, as are longer strings: templates of chats are shorter. What is
#: kept of one file takes no more of it than this in all.
MOST_ELEMENTS: Final = 2**12
LONGEST_STRING: Final = 2**20
MOST_KEPT: Final = 2**22

#: So much is read at once where many short strings follow each other.
_CHUNK: Final = 2**20

#: The types of values that have a fixed size: number -> name, format of `struct`.
_SCALARS: Final = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_STRING, _ARRAY = 8, 9

#: The metadata that says how the file itself is laid out.
_ALIGNMENT: Final = "general.alignment"
_SPLIT_COUNT: Final = "split.count"

#: A number of the metadata, or a flag.
Scalar: TypeAlias = bool | int | float


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Skipped(Described):
    """What stands for a value that was not read: its type, and how many elements or bytes it has.

    >>> from llmcalc.headers import Skipped
    >>> Skipped(kind="array of string", length=128256)
    Skipped(kind='array of string', length=128256)
    """

    kind: str
    length: int


#: A value of the metadata; arrays are tuples.
Value: TypeAlias = Scalar | str | tuple[Scalar, ...] | Skipped


@attrs.frozen(kw_only=True, repr=False, eq=False)
class GgufHeader(Described):
    """The header of a GGUF file: its metadata and its tensors, both in the order of the file.

    `parts` is how many files the model has; one holds the tensors that it says.
    """

    metadata: Mapping[str, Value]
    tensors: tuple[FileTensor, ...]
    parts: int = 1

    # Holds a mapping, which has no hash.
    __hash__: ClassVar[None] = None  # type: ignore[assignment]


def read_gguf(file: OpenFile) -> GgufHeader:
    """Return the header of a GGUF file, of version 2 or 3, little- or big-endian.

    Strings that are not UTF-8 are kept with their bytes spelled out. Raises
    `llmcalc.LlmcalcError` for a header that lies: lengths beyond the file, names given twice,
    tensors that overlap or leave gaps.

    >>> import struct, tempfile, pathlib
    >>> from llmcalc import headers
    >>> def text(value):
    ...     return struct.pack("<Q", len(value)) + value
    >>> stored = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    >>> stored += text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    >>> stored += text(b"output.weight") + struct.pack("<IQQIQ", 2, 32, 4, 8, 0)
    >>> stored += bytes(-len(stored) % 32) + bytes(4 * 34)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.gguf"
    ...     _ = path.write_bytes(stored)
    ...     with headers.open_file(path) as file:
    ...         header = headers.read_gguf(file)
    >>> dict(header.metadata)
    {'general.architecture': 'llama'}
    >>> header.tensors[0].dtype, header.tensors[0].shape, header.tensors[0].bytes
    ('Q8_0', (4, 32), 136)
    """
    reader = _Reader(file)
    # A tensor takes a name's length, its axes' number, a type and an offset at least.
    count = reader.length("number of tensors", 8 + 4 + 4 + 8, MOST_TENSORS)
    metadata = _metadata(reader)
    alignment = metadata.get(_ALIGNMENT, 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise InvalidValueError(_ALIGNMENT, alignment, "must be a power of two up to 2**20")
    parts = metadata.get(_SPLIT_COUNT, 1)
    if type(parts) is not int or not 0 <= parts <= MOST_FILES:
        raise InvalidValueError(_SPLIT_COUNT, parts, f"must be at most {MOST_FILES}")
    name = file.name
    found = [_tensor(reader, name) for _ in range(count)]
    _check_places(file, found, -(-file.stream.tell() // alignment) * alignment, alignment)
    return GgufHeader(
        metadata=metadata, tensors=tuple(tensor for _, tensor in found), parts=max(1, parts)
    )


class _Reader:
    """Reads values from a file, never beyond its end."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.stream = file.stream
        self.order: Literal["little", "big"] = "little"
        self.strings = 0
        self.kept = 0
        if self.stream.read(4) != b"GGUF":
            raise file.wrong("is not a GGUF file")
        version = self.uint32()
        if version & 0xFFFF == 0:  # written on a big-endian machine
            self.order, version = "big", version >> 24
        if version not in {2, 3}:
            raise InvalidValueError("GGUF version", version, "must be 2 or 3")

    @property
    def left(self) -> int:
        return self.file.size - self.stream.tell()

    def exactly(self, number: int) -> bytes:
        found = self.stream.read(number)
        if len(found) < number:
            raise self.file.wrong("ends within its header")
        return found

    def uint32(self) -> int:
        return int.from_bytes(self.exactly(4), self.order)

    def uint64(self) -> int:
        return int.from_bytes(self.exactly(8), self.order)

    def scalars(self, code: str, number: int = 1) -> tuple[Scalar, ...]:
        coded = struct.Struct(f"{'<' if self.order == 'little' else '>'}{number}{code}")
        return coded.unpack(self.exactly(coded.size))

    def length(self, what: str, each: int, most: int | None = None) -> int:
        """Return a number of things of at least `each` bytes, which the file must have."""
        number = self.uint64()
        if number * each > self.left or (most is not None and number > most):
            limit = self.left // each if most is None else min(most, self.left // each)
            raise InvalidValueError(what, number, f"must be at most {limit} in this file")
        return number

    def name(self, what: str) -> str:
        found = self.exactly(self.length(f"length of {what}", 1, LONGEST_NAME))
        try:
            return found.decode()
        except UnicodeDecodeError as problem:
            raise InvalidValueError(what, found, f"is not UTF-8: {problem}") from problem

    def skip(self, number: int) -> None:
        if number > self.left:
            raise self.file.wrong("ends within its header")
        self.stream.seek(number, os.SEEK_CUR)

    def keeps(self, size: int) -> bool:
        """Whether `size` more bytes are kept; if so, they count as kept."""
        if self.kept + size > MOST_KEPT:
            return False
        self.kept += size
        return True

    def skip_strings(self, number: int) -> None:
        """Pass over strings that follow each other, many at a time."""
        self.strings += number
        if self.strings > MOST_STRINGS:
            raise self.file.wrong(f"has more than {MOST_STRINGS} strings")
        code = struct.Struct("<Q" if self.order == "little" else ">Q")
        chunk, at = b"", 0
        for _ in range(number):
            if len(chunk) - at < 8:
                chunk, at = chunk[at:] + self.stream.read(_CHUNK), 0
                if len(chunk) < 8:
                    raise self.file.wrong("ends within its header")
            at += 8 + code.unpack_from(chunk, at)[0]
            if at > len(chunk):
                self.skip(at - len(chunk))
                chunk, at = b"", 0
        self.stream.seek(at - len(chunk), os.SEEK_CUR)


def _metadata(reader: _Reader) -> dict[str, Value]:
    """Read the metadata: what is short is kept."""
    found: dict[str, Value] = {}
    for _ in range(reader.length("number of metadata entries", 8 + 4 + 1, MOST_METADATA)):
        name = reader.name("metadata key")
        if name in found:
            raise InvalidValueError("metadata key", name, "is given twice")
        kind = reader.uint32()
        if kind in _SCALARS:
            [found[name]] = reader.scalars(_SCALARS[kind][1])
        elif kind == _STRING:
            found[name] = _string(reader)
        elif kind == _ARRAY:
            found[name] = _array(reader, name)
        else:
            raise InvalidValueError(f"{shown(name)}: type", kind, "is no type of a value")
    return found


def _string(reader: _Reader) -> str | Skipped:
    length = reader.uint64()
    if length > LONGEST_STRING or not reader.keeps(length):
        reader.skip(length)
        return Skipped(kind="string", length=length)
    return reader.exactly(length).decode(errors="backslashreplace")


def _array(reader: _Reader, name: str) -> tuple[Scalar, ...] | Skipped:
    kind = reader.uint32()
    if kind == _STRING:
        length = reader.length(f"length of {shown(name)}", 8)
        reader.skip_strings(length)
        return Skipped(kind="array of string", length=length)
    if kind not in _SCALARS:
        raise InvalidValueError(f"{shown(name)}: type of elements", kind, "is no type of a value")
    word, code = _SCALARS[kind]
    each = struct.calcsize(f"<{code}")
    length = reader.length(f"length of {shown(name)}", each)
    if length > MOST_ELEMENTS or not reader.keeps(length * each):
        reader.skip(length * each)
        return Skipped(kind=f"array of {word}", length=length)
    return reader.scalars(code, length)


def _tensor(reader: _Reader, file: str) -> tuple[int, FileTensor]:
    """Read what there is of a tensor: where its data starts, and the tensor."""
    name = reader.name("a tensor's name")
    axes = reader.uint32()
    if axes > 4:
        raise InvalidValueError(f"{shown(name)}: axes", axes, "must be at most 4")
    shape = tuple(reader.uint64() for _ in range(axes))[::-1]
    if any(size >= 2**63 for size in shape):
        raise InvalidValueError(f"{shown(name)}: shape", shape, "must be below 2**63")
    kind = reader.uint32()
    dtype = GGML_TYPES.get(kind)
    if dtype is None:
        raise InvalidValueError(f"{shown(name)}: type", kind, "is no known type of elements")
    offset = reader.uint64()
    block, size = ggml_block(dtype)
    if (shape[-1] if shape else 1) % block:
        raise InvalidValueError(
            f"{shown(name)}: shape", shape, f"rows must be whole blocks of {block} elements"
        )
    total = prod(shape) // block * size
    return offset, FileTensor(name=name, shape=shape, dtype=dtype, bytes=total, file=file)


def _check_places(
    file: OpenFile, found: list[tuple[int, FileTensor]], start: int, alignment: int
) -> None:
    """Check that tensors follow each other from `start` on, aligned, and that the file has them."""
    names: set[str] = set()
    end = 0
    for offset, tensor in sorted(found, key=lambda each: each[0]):
        if tensor.name in names:
            raise InvalidValueError("name", tensor.name, f"is given twice in {file.name}")
        names.add(tensor.name)
        wrong = misplaced(offset, end)
        if wrong is not None:
            raise InvalidValueError(f"{shown(tensor.name)}: offset", offset, wrong)
        if start + offset + tensor.bytes > file.size:
            raise file.wrong(f"has {file.size} bytes, too few for {shown(tensor.name)}")
        end = -(-(offset + tensor.bytes) // alignment) * alignment
