"""Which files hold a model's tensors: one, the shards of an index, the parts of a GGUF file.

* `of_file`: the tensors of a file, and of those that belong to it.
* `of_folder`: the tensors of the one model in a folder.

Files are opened by whoever asks, so that they may be anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from llmcalc.errors import InvalidValueError
from llmcalc.headers.file_tensors import FileTensor
from llmcalc.headers.gguf import read_gguf
from llmcalc.headers.limits import MOST_FILES, MOST_TENSORS_IN_ALL
from llmcalc.headers.opened import Opener, OpenFile, last_part
from llmcalc.headers.safetensors import LARGEST_HEADER, read_safetensors
from llmcalc.headers.strict_json import json_object

__all__ = ["of_file", "of_folder"]

#: The end of the names of a split file: ``-00001-of-00003.gguf``.
_SPLIT: Final = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.gguf$")


def of_file(title: str, open_file: Opener) -> tuple[FileTensor, ...]:
    """Return the tensors of a file, of the shards of an index, or of all parts of a GGUF file.

    What it is, its ending says, else its first bytes. `open_file` opens it and those beside it.

    >>> import contextlib, io
    >>> from llmcalc.headers import OpenFile
    >>> from llmcalc.headers.finding import of_file
    >>> header = b'{"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}'
    >>> stored = {
    ...     "far/index.json": b'{"weight_map": {"a": "shard"}}',
    ...     "far/shard": len(header).to_bytes(8, "little") + header + bytes(2),
    ... }
    >>> def open_file(title):
    ...     stream = io.BytesIO(stored[title])
    ...     file = OpenFile(stream=stream, size=len(stored[title]), title=title)
    ...     return contextlib.nullcontext(file)
    >>> of_file("far/index.json", open_file)
    (FileTensor(name='a', shape=(2,), dtype='I8', bytes=2, file='shard'),)
    """
    name = title.casefold()
    if name.endswith(".json"):
        return _sharded(title, open_file)
    if name.endswith(".gguf"):
        return _gguf(title, open_file)
    if not name.endswith(".safetensors"):
        with open_file(title) as file:
            start = file.stream.read(4)
        if start == b"GGUF":
            return _gguf(title, open_file)
    return _safetensors(title, open_file)


def of_folder(title: str, files: Sequence[str], open_file: Opener) -> tuple[FileTensor, ...]:
    """Return the tensors of the model whose files are in a folder.

    The index counts, else all safetensors files together, else the GGUF files. `files` are the
    titles of all that the folder holds.

    >>> from llmcalc.headers.finding import of_folder
    >>> of_folder("models", ["models/a.txt"], open)
    Traceback (most recent call last):
        ...
    llmcalc.errors.InvalidValueError: path = 'models': holds no safetensors and no GGUF file
    """
    indices = [file for file in files if file.endswith(".safetensors.index.json")]
    if len(indices) > 1:
        usual = [file for file in indices if file.endswith("model.safetensors.index.json")]
        if len(usual) != 1:
            raise InvalidValueError("path", title, "has several indices: name one of them")
        indices = usual
    if indices:
        return _sharded(indices[0], open_file)
    found = [file for file in files if file.endswith(".safetensors")]
    if found:
        return _together(found, lambda each: _safetensors(each, open_file))
    found = [file for file in files if file.endswith(".gguf")]
    if not found:
        raise InvalidValueError("path", title, "holds no safetensors and no GGUF file")
    if len({_SPLIT.sub("", last_part(file)) for file in found}) > 1:
        raise InvalidValueError("path", title, "holds several GGUF models: name one of them")
    return _gguf(found[0], open_file)


def _safetensors(title: str, open_file: Opener) -> tuple[FileTensor, ...]:
    with open_file(title) as file:
        return read_safetensors(file)


def _sharded(title: str, open_file: Opener) -> tuple[FileTensor, ...]:
    """Read all shards of an index; each must have the tensors that the index says."""
    with open_file(title) as file:
        where = _weight_map(file)
    shards = dict.fromkeys(where.values())
    if len(shards) > MOST_FILES:
        raise InvalidValueError("path", title, f"has more than {MOST_FILES} shards")
    folder = title.removesuffix(last_part(title))
    found = _together(
        [folder + shard for shard in shards], lambda each: _safetensors(each, open_file)
    )
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


def _weight_map(file: OpenFile) -> dict[str, str]:
    """Read an index: in which file, beside it, each tensor is."""
    text = file.stream.read(LARGEST_HEADER + 1)
    if len(text) > LARGEST_HEADER:
        raise file.wrong(f"is larger than {LARGEST_HEADER} bytes")
    where = json_object(text, file).get("weight_map")
    if not isinstance(where, dict) or not all(type(name) is str for name in where.values()):
        raise InvalidValueError("weight_map", where, "must map tensors to files")
    for shard in where.values():
        if not shard or last_part(shard) != shard or shard in {".", ".."} or "\\" in shard:
            raise InvalidValueError("weight_map", shard, "must name files beside the index")
    return where


def _gguf(title: str, open_file: Opener) -> tuple[FileTensor, ...]:
    """Read a GGUF file and the other parts of a split one."""
    with open_file(title) as file:
        header = read_gguf(file)
    if header.parts <= 1:
        return header.tensors
    match = _SPLIT.search(title)
    if match is None or int(match[2]) != header.parts:
        raise InvalidValueError(
            "path",
            title,
            f"is one of {header.parts} parts: "
            f"its name must end in -00001-of-{header.parts:05}.gguf",
        )
    start = title[: match.start()]

    def read(part: str) -> tuple[FileTensor, ...]:
        with open_file(part) as file:
            return read_gguf(file).tensors

    numbers = range(1, header.parts + 1)
    return _together([f"{start}-{n:05}-of-{header.parts:05}.gguf" for n in numbers], read)


def _together(
    titles: Iterable[str], read: Callable[[str], Iterable[FileTensor]]
) -> tuple[FileTensor, ...]:
    """Return the tensors of several files, `read` by their titles; no two may have one name."""
    seen: dict[str, FileTensor] = {}
    for title in titles:
        for tensor in read(title):
            if tensor.name in seen:
                raise InvalidValueError(
                    "name", tensor.name, f"is in {seen[tensor.name].file} and in {tensor.file}"
                )
            seen[tensor.name] = tensor
            if len(seen) > MOST_TENSORS_IN_ALL:
                raise InvalidValueError("path", title, f"more than {MOST_TENSORS_IN_ALL} tensors")
    return tuple(seen.values())
