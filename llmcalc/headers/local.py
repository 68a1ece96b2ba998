"""Files of this machine.

* `tensors`: the tensors of a file, of a model in several files, or of a folder.
* `open_file`: a file, opened for its header.
* `path_text`: a path as text.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from llmcalc.errors import InvalidValueError
from llmcalc.headers.file_tensors import FileTensor
from llmcalc.headers.finding import of_file, of_folder
from llmcalc.headers.opened import OpenFile

__all__ = ["open_file", "path_text", "tensors"]


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
    place = path_text(path)
    try:
        mode = os.stat(place).st_mode  # noqa: PTH116
        names = sorted(os.listdir(place)) if stat.S_ISDIR(mode) else []  # noqa: PTH208
    except (OSError, ValueError) as problem:
        raise InvalidValueError("path", place, f"cannot be read: {problem}") from problem
    if stat.S_ISDIR(mode):
        return of_folder(place, [os.path.join(place, name) for name in names], open_file)  # noqa: PTH118
    if not stat.S_ISREG(mode):
        raise InvalidValueError("path", place, "must be a file or a folder")
    return of_file(place, open_file)


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[OpenFile]:
    """Open a regular file for its header; a pipe would block, and a device never end.

    >>> import tempfile, pathlib
    >>> from llmcalc.headers import open_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.gguf"
    ...     _ = path.write_bytes(b"GGUF")
    ...     with open_file(path) as file:
    ...         print(file.name, file.size)
    model.gguf 4
    """
    place = path_text(path)
    with _opened(place) as stream:
        size = os.fstat(stream.fileno()).st_size
        yield OpenFile(stream=stream, size=size, title=place)


def _opened(place: str) -> BinaryIO:
    try:
        if stat.S_ISREG(os.stat(place).st_mode):  # noqa: PTH116
            return open(place, "rb")  # noqa: PTH123
    except (OSError, ValueError) as problem:
        raise InvalidValueError("path", place, f"cannot be read: {problem}") from problem
    raise InvalidValueError("path", place, "must be a file")


def path_text(path: str | os.PathLike[str]) -> str:
    """Return a path as text.

    >>> import pathlib
    >>> from llmcalc.headers.local import path_text
    >>> path_text(pathlib.PurePosixPath("models/llama"))
    'models/llama'
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidValueError("path", path, "must be a path")
    place = os.fspath(path)
    if not isinstance(place, str):
        raise InvalidValueError("path", place, "must be a path of text, not of bytes")
    return place
