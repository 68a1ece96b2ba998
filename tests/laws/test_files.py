"""Headers that lie: refused by one error, at once, in little memory; and laws of honest ones."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmcalc import LlmcalcError, files

shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def safetensors(header: bytes, data: int = 0, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(data)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def header(**tensors: Any) -> bytes:
    return json.dumps(tensors).encode()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(
    *infos: tuple[str, tuple[int, ...], int, int],
    data: int = 0,
    metadata: bytes = b"",
    entries: int = 0,
    tensors: int | None = None,
    version: int = 3,
) -> bytes:
    """A GGUF file by hand: each info is a name, the axes innermost first, a type, an offset."""
    number = len(infos) if tensors is None else tensors
    made = b"GGUF" + struct.pack("<IQQ", version, number, entries) + metadata
    for name, axes, kind, offset in infos:
        made += text(name) + struct.pack("<I", len(axes)) + struct.pack(f"<{len(axes)}Q", *axes)
        made += struct.pack("<IQ", kind, offset)
    made += bytes(-len(made) % 32)
    return made + bytes(data)


def uint32(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", 4, value)


@contextmanager
def bounded(seconds: float = 3.0, memory: int = 400 * 2**20) -> Iterator[None]:
    tracemalloc.start()
    start = time.perf_counter()
    try:
        yield
        assert time.perf_counter() - start < seconds
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()


HUGE = 2**63 - 1

HOSTILE_SAFETENSORS: dict[str, bytes] = {
    "empty": b"",
    "no header": b"\x01\x00",
    "length beyond the file": safetensors(b"{}", length=2**40),
    "length of all ones": safetensors(b"{}", length=2**64 - 1),
    "length zero": safetensors(b""),
    "truncated header": safetensors(header(a=entry()))[:-20],
    "no JSON": safetensors(b"{'a'}"),
    "not an object": safetensors(b"[1, 2]"),
    "UTF-16": safetensors(json.dumps({"a": entry()}).encode("utf-16-le"), 8),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "deep lists": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep objects": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "all brackets": safetensors(b"{" + b"[" * 2**23),
    "all commas": safetensors(b'{"a":[' + b"0," * 2**22 + b"0]}"),
    "long number": safetensors(b'{"a":' + b"9" * 100_000 + b"}"),
    "name given twice": safetensors(
        b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", 8
    ),
    "field given twice": safetensors(
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8
    ),
    "name of a megabyte": safetensors(header(**{"a" * 2**20: entry()}), 8),
    "entry no object": safetensors(header(a=[1])),
    "field missing": safetensors(header(a={"dtype": "F32", "shape": [2]}), 8),
    "unknown field": safetensors(header(a={**entry(), "more": 1}), 8),
    "unknown dtype": safetensors(header(a=entry(dtype="F33")), 8),
    "dtype no string": safetensors(header(a=entry(dtype=["F32"])), 8),
    "negative size": safetensors(header(a=entry(shape=[-2]))),
    "huge size": safetensors(header(a=entry(shape=[2**70], offsets=[0, 2**72])), 8),
    "huge product": safetensors(header(a=entry(shape=[HUGE] * 16))),
    "many axes": safetensors(header(a=entry(shape=[1] * 5000, offsets=[0, 4])), 4),
    "float size": safetensors(header(a=entry(shape=[2.0])), 8),
    "bool size": safetensors(header(a=entry(dtype="F64", shape=[True])), 8),
    "size of another length": safetensors(header(a=entry(shape=[3])), 8),
    "negative offset": safetensors(header(a=entry(offsets=[-8, 0])), 8),
    "offsets reversed": safetensors(header(a=entry(shape=[0], offsets=[8, 0])), 8),
    "one offset": safetensors(header(a=entry(offsets=[8])), 8),
    "offset beyond the file": safetensors(header(a=entry(shape=[2**60], offsets=[0, 2**62]))),
    "overlap": safetensors(header(a=entry(), b=entry(offsets=[4, 12])), 12),
    "same range": safetensors(header(a=entry(), b=entry()), 8),
    "gap": safetensors(header(a=entry(), b=entry(offsets=[12, 20])), 20),
    "start not zero": safetensors(header(a=entry(offsets=[8, 16])), 16),
    "truncated data": safetensors(header(a=entry()), 7),
    "trailing data": safetensors(header(a=entry()), 9),
    "half a byte": safetensors(header(a=entry(dtype="F4", shape=[3], offsets=[0, 1])), 1),
    "metadata no object": safetensors(header(__metadata__=[1])),
    "metadata of numbers": safetensors(header(__metadata__={"a": 1})),
}

F32, Q4_0 = 0, 2

HOSTILE_GGUF: dict[str, bytes] = {
    "magic": b"GGML" + bytes(40),
    "magic alone": b"GGUF",
    "version": gguf(version=1),
    "version of later": gguf(version=99),
    "number of tensors": gguf(tensors=2**62),
    "number of tensors of all ones": gguf(tensors=2**64 - 1),
    "number of entries": gguf(entries=2**63),
    "length of a key": gguf(metadata=struct.pack("<Q", 2**50), entries=1),
    "length of a string": gguf(
        metadata=text("a") + struct.pack("<IQ", 8, 2**60) + bytes(64), entries=1
    ),
    "length of an array": gguf(
        metadata=text("a") + struct.pack("<IIQ", 9, 4, 2**62) + bytes(64), entries=1
    ),
    "strings of an array": gguf(
        metadata=text("a") + struct.pack("<IIQ", 9, 8, 2) + struct.pack("<Q", 2**50) + bytes(64),
        entries=1,
    ),
    "array of arrays": gguf(
        metadata=text("a") + struct.pack("<IIQ", 9, 9, 1) * 50 + bytes(64), entries=1
    ),
    "millions of strings": gguf(
        metadata=text("a") + struct.pack("<IIQ", 9, 8, 2**22) + bytes(2**25), entries=1
    ),
    "type of a value": gguf(metadata=text("a") + struct.pack("<I", 77) + bytes(64), entries=1),
    "key given twice": gguf(metadata=uint32("a", 1) * 2, entries=2),
    "alignment zero": gguf(metadata=uint32("general.alignment", 0), entries=1),
    "alignment odd": gguf(metadata=uint32("general.alignment", 33), entries=1),
    "alignment of gigabytes": gguf(metadata=uint32("general.alignment", 2**31), entries=1),
    "parts": gguf(metadata=uint32("split.count", 2**31), entries=1),
    "parts that are not there": gguf(metadata=uint32("split.count", 3), entries=1),
    "key not UTF-8": gguf(metadata=struct.pack("<Q", 1) + b"\xff" + bytes(16), entries=1),
    "axes": gguf(("a", (1,) * 5, F32, 0), data=4),
    "huge axes": gguf(("a", (2**62, 2**62), F32, 0), data=4),
    "axis of all ones": gguf(("a", (2**64 - 1,), F32, 0), data=4),
    "type of elements": gguf(("a", (4,), 1234, 0), data=16),
    "part of a block": gguf(("a", (33,), Q4_0, 0), data=64),
    "scalar of a block": gguf(("a", (), Q4_0, 0), data=64),
    "offset beyond the file": gguf(("a", (4,), F32, 2**60), data=16),
    "overlap": gguf(("a", (4,), F32, 0), ("b", (4,), F32, 0), data=64),
    "gap": gguf(("a", (4,), F32, 0), ("b", (4,), F32, 64), data=128),
    "name given twice": gguf(("a", (8,), F32, 0), ("a", (8,), F32, 32), data=64),
    "truncated data": gguf(("a", (8,), F32, 0), data=31),
    "truncated infos": gguf(("a", (8,), F32, 0), ("b", (8,), F32, 32))[:-40],
}


@pytest.mark.parametrize("name", HOSTILE_SAFETENSORS)
def test_a_safetensors_header_that_lies_is_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE_SAFETENSORS[name])
    with bounded(), pytest.raises(LlmcalcError):
        files.tensors(path)


@pytest.mark.parametrize("name", HOSTILE_GGUF)
def test_a_gguf_header_that_lies_is_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(HOSTILE_GGUF[name])
    with bounded(), pytest.raises(LlmcalcError):
        files.tensors(path)


def test_a_length_that_a_sparse_file_has_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**33))
        file.truncate(2**34)
    with bounded(memory=2**20), pytest.raises(LlmcalcError, match="header length"):
        files.tensors(path)


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        [],
        {"a": 1},
        {"a": ""},
        {"a": ".."},
        {"a": "../model.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "missing.safetensors"},
        {"b": "model.safetensors"},
        {"a": "model.safetensors", "b": "model.safetensors"},
        {f"t{n}": f"{n}.safetensors" for n in range(5000)},
    ],
    ids=str,
)
def test_an_index_that_lies_is_refused(weight_map: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors(header(a=entry()), 8))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with bounded(), pytest.raises(LlmcalcError):
        files.tensors(tmp_path)
    index.write_text('{"weight_map": {"a": "model.safetensors", "a": "model.safetensors"}}')
    with pytest.raises(LlmcalcError, match="twice"):
        files.tensors(index)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors(header(a=entry()), 8))
    with pytest.raises(LlmcalcError, match=r"in a\.safetensors and in b\.safetensors"):
        files.tensors(tmp_path)


@pytest.mark.parametrize("place", [b"x", 3, None, "", "missing", "a\0b"])
def test_what_is_no_path_of_a_file_is_refused(place: Any) -> None:
    with pytest.raises(LlmcalcError):
        files.tensors(place)


def test_a_pipe_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LlmcalcError, match="holds no safetensors"):
        files.tensors(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(LlmcalcError, match="must be a file"):
        files.tensors(tmp_path / "pipe.safetensors")
    with pytest.raises(LlmcalcError, match="must be a file"):
        files.tensors(tmp_path)


VALID: tuple[tuple[str, Callable[[], bytes]], ...] = (
    ("model.safetensors", lambda: safetensors(header(a=entry(), b=entry(offsets=[8, 16])), 16)),
    (
        "model.gguf",
        lambda: gguf(
            ("a", (32, 2), Q4_0, 0),
            ("b", (3,), F32, 64),
            data=96,
            metadata=uint32("general.alignment", 32),
            entries=1,
        ),
    ),
)


@shared_folder
@given(
    valid=st.sampled_from(VALID), at=st.integers(0, 400), damage=st.binary(min_size=1, max_size=9)
)
@example(valid=VALID[0], at=8, damage=b"}")
@example(valid=VALID[1], at=8, damage=b"\xff" * 8)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    valid: tuple[str, Callable[[], bytes]], at: int, damage: bytes, tmp_path: Path
) -> None:
    name, make = valid
    made = make()
    at %= len(made)
    path = tmp_path / name
    path.write_bytes(made[:at] + damage + made[at + len(damage) :])
    try:
        found = files.tensors(path)
    except LlmcalcError:
        return
    assert sum(tensor.bytes for tensor in found) <= path.stat().st_size


@shared_folder
@given(
    data=st.binary(max_size=200),
    name=st.sampled_from(["model.safetensors", "model.gguf", "model"]),
)
def test_arbitrary_bytes_are_refused(data: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"GGUF" + data if name.endswith("gguf") else data)
    with suppress(LlmcalcError):
        assert files.tensors(path) == ()


@shared_folder
@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(["F32", "BF16", "F8_E4M3", "I64"]),
            st.lists(st.integers(0, 6), max_size=4),
        ),
        max_size=8,
    )
)
def test_an_honest_header_is_read_back(
    tensors: dict[str, tuple[str, list[int]]], tmp_path: Path
) -> None:
    sizes = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "I64": 8}
    entries, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        count = sizes[dtype]
        for size in shape:
            count *= size
        entries[name] = entry(dtype, shape, [end, end + count])
        end += count
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(json.dumps(entries, ensure_ascii=False).encode(), end))
    found = {t.name: (t.dtype, list(t.shape)) for t in files.tensors(path)}
    assert found == tensors
    assert files.weight_bytes(path).total == end
