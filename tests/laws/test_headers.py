"""Headers from anywhere, and the metadata of GGUF: what is kept, and what is passed over."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import LlmcalcError, headers
from llmcalc.headers import GgufHeader, OpenFile, Skipped, finding
from llmcalc.headers.elements import GGML_BLOCKS, GGML_TYPES
from llmcalc.headers.gguf import LONGEST_STRING, MOST_ELEMENTS, MOST_KEPT
from tests.laws.test_files import VALID, bounded, entry, gguf, header, safetensors, text, uint32


class Ranges:
    """A file of which only ranges can be had: the three methods, and what was asked for."""

    def __init__(self, stored: bytes) -> None:
        self.stored = stored
        self.at = 0
        self.fetched = 0

    def read(self, size: int, /) -> bytes:
        found = self.stored[self.at : self.at + size]
        self.at += len(found)
        self.fetched += len(found)
        return found

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.at = offset + (self.at if whence else 0)
        return self.at

    def tell(self) -> int:
        return self.at


def opened(stored: bytes, title: str = "model.gguf") -> OpenFile:
    return OpenFile(stream=io.BytesIO(stored), size=len(stored), title=title)


def metadata(*values: tuple[str, int, bytes]) -> dict[str, Any]:
    """Read back a header's metadata: each value is a key, the number of a type, and bytes."""
    joined = b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in values)
    return dict(headers.read_gguf(opened(gguf(metadata=joined, entries=len(values)))).metadata)


def array(kind: int, number: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, number) + values


def test_a_header_of_ranges_is_that_of_the_file_and_no_tensor_is_fetched() -> None:
    data = 10**6
    stored = safetensors(header(a=entry("U8", [data], [0, data])), data)
    stream = Ranges(stored)
    found = headers.read_safetensors(OpenFile(stream=stream, size=len(stored), title="a/b.far"))
    assert [(tensor.name, tensor.bytes, tensor.file) for tensor in found] == [("a", data, "b.far")]
    assert stream.fetched == len(stored) - data
    stored = gguf(("a", (data,), 24, 0), data=data)
    stream = Ranges(stored)
    [tensor] = headers.read_gguf(OpenFile(stream=stream, size=len(stored), title="a.gguf")).tensors
    assert tensor.bytes == data
    assert stream.fetched < len(stored) - data


def test_a_stream_that_is_shorter_than_its_size_is_refused() -> None:
    for name, make in VALID:
        stored = make()
        read: Any = headers.read_gguf if name.endswith("gguf") else headers.read_safetensors
        whole = Ranges(stored)
        read(OpenFile(stream=whole, size=len(stored), title=name))
        for length in range(whole.tell()):
            short = OpenFile(stream=Ranges(stored[:length]), size=len(stored), title=name)
            with pytest.raises(LlmcalcError):
                read(short)


def test_shards_and_parts_are_found_wherever_they_are_opened() -> None:
    part = gguf(("a", (4,), 0, 0), data=32, metadata=uint32("split.count", 2), entries=1)
    stored = {
        "far/model.safetensors.index.json": b'{"weight_map": {"a": "1", "b": "2"}}',
        "far/1": safetensors(header(a=entry()), 8),
        "far/2": safetensors(header(b=entry()), 8),
        "far/m-00001-of-00002.gguf": part,
        "far/m-00002-of-00002.gguf": part.replace(text("a"), text("b")),
    }

    @contextmanager
    def open_file(title: str) -> Iterator[OpenFile]:
        yield OpenFile(stream=Ranges(stored[title]), size=len(stored[title]), title=title)

    def names(title: str) -> list[tuple[str, str]]:
        return [(t.name, t.file) for t in finding.of_file(title, open_file)]

    assert names("far/model.safetensors.index.json") == [("a", "1"), ("b", "2")]
    parts = [("a", "m-00001-of-00002.gguf"), ("b", "m-00002-of-00002.gguf")]
    assert names("far/m-00001-of-00002.gguf") == parts
    found = finding.of_folder("far", [name for name in stored if name.endswith("gguf")], open_file)
    assert [(tensor.name, tensor.file) for tensor in found] == parts
    assert len(finding.of_folder("far", list(stored), open_file)) == 2


@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=8),
        st.one_of(
            st.booleans(),
            st.integers(-(2**63), 2**64 - 1),
            st.floats(width=64, allow_nan=False),
            st.text(max_size=20),
            st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6).map(tuple),
        ),
        max_size=6,
    )
)
def test_numbers_strings_and_short_arrays_are_read_back(values: dict[str, Any]) -> None:
    made = []
    for key, value in values.items():
        if type(value) is bool:
            made.append((key, 7, struct.pack("<?", value)))
        elif type(value) is int:
            made.append(
                (key, 11 if value < 0 else 10, struct.pack("<q" if value < 0 else "<Q", value))
            )
        elif type(value) is float:
            made.append((key, 12, struct.pack("<d", value)))
        elif type(value) is str:
            made.append((key, 8, struct.pack("<Q", len(value.encode())) + value.encode()))
        else:
            made.append((key, 9, array(5, len(value), struct.pack(f"<{len(value)}i", *value))))
    found = metadata(*made)
    assert found == values
    assert list(map(type, found.values())) == list(map(type, values.values()))


def test_what_is_long_is_passed_over_and_says_how_long_it_is() -> None:
    more = MOST_ELEMENTS + 1
    found = metadata(
        ("tokens", 9, array(8, 3, text("a") + text("") + text("ccc"))),
        ("long", 9, array(4, more, bytes(4 * more))),
        ("template", 8, text("x" * (LONGEST_STRING + 1))),
        ("after", 4, struct.pack("<I", 7)),
    )
    assert found == {
        "tokens": Skipped(kind="array of string", length=3),
        "long": Skipped(kind="array of uint32", length=more),
        "template": Skipped(kind="string", length=LONGEST_STRING + 1),
        "after": 7,
    }


def test_what_is_kept_of_a_file_is_bounded_in_all() -> None:
    found = metadata(*((f"k{n}", 8, text("x" * LONGEST_STRING)) for n in range(8)))
    kept = [value for value in found.values() if isinstance(value, str)]
    assert sum(map(len, kept)) == MOST_KEPT
    assert found["k7"] == Skipped(kind="string", length=LONGEST_STRING)
    # Of 16 bits each, so that every element is an object of its own.
    values = array(2, MOST_ELEMENTS, b"\xff" * 2 * MOST_ELEMENTS)
    joined = b"".join(text(f"k{n}") + struct.pack("<I", 9) + values for n in range(600))
    file = opened(gguf(metadata=joined, entries=600))
    with bounded(seconds=30.0, memory=200 * 2**20):  # tracing takes most of the time
        many = headers.read_gguf(file).metadata
    arrays = [value for value in many.values() if isinstance(value, tuple)]
    assert sum(2 * len(value) for value in arrays) == MOST_KEPT
    assert many["k599"] == Skipped(kind="array of uint16", length=MOST_ELEMENTS)


def test_a_string_that_is_not_text_is_kept_with_its_bytes_spelled_out() -> None:
    assert metadata(("a", 8, struct.pack("<Q", 3) + b"a\xffb")) == {"a": "a\\xffb"}


@pytest.mark.parametrize("key", ["general.alignment", "split.count"])
@pytest.mark.parametrize(
    ("kind", "value"), [(8, text("32")), (7, b"\x01"), (6, bytes(4)), (9, array(4, 1, bytes(4)))]
)
def test_the_layout_of_a_file_is_told_by_integers_only(key: str, kind: int, value: bytes) -> None:
    with pytest.raises(LlmcalcError, match=key):
        metadata((key, kind, value))


def test_a_header_says_of_how_many_parts_the_model_is() -> None:
    assert headers.read_gguf(opened(gguf())) == GgufHeader(metadata={}, tensors=())
    for count, parts in ((0, 1), (1, 1), (3, 3)):
        made = gguf(metadata=uint32("split.count", count), entries=1)
        assert headers.read_gguf(opened(made)).parts == parts


def test_every_type_of_ggml_has_a_block() -> None:
    plain = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}
    assert set(GGML_TYPES.values()) == plain | set(GGML_BLOCKS)


def test_a_file_is_opened_by_its_path_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    with headers.open_file(path) as file:
        assert (file.title, file.name, file.size) == (str(path), "model.gguf", len(gguf()))
    with pytest.raises(ValueError, match="closed"):
        file.stream.tell()
    with pytest.raises(LlmcalcError, match="must be a file"), headers.open_file(tmp_path):
        pass
