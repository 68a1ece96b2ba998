"""Files that are open for their headers, wherever they are.

* `Stream`: the three methods that readers call, those of a binary file.
* `OpenFile`: a stream with its size and its title.
* `Opener`: what opens a file by its title.
* `last_part`: the name of a file, from its title.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import attrs

from llmcalc.errors import InvalidValueError

__all__ = ["OpenFile", "Opener", "Stream", "last_part"]


class Stream(Protocol):
    """What readers ask of a file: ``read``, ``seek`` and ``tell`` of one opened in binary mode.

    ``read(size)`` gives as many bytes as are asked for, fewer only where the file ends;
    ``seek(offset, whence)`` goes from the start (0) or from where one stands (1). Files that are
    fetched by ranges of bytes need no more than this; small reads follow each other, so that they
    are best buffered (`io.BufferedReader`).
    """

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, and stand behind them."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Stand at `offset` from the start (0) or from where one stands (1), and return where."""
        ...

    def tell(self) -> int:
        """Return where one stands."""
        ...


@attrs.frozen(kw_only=True, eq=False)
class OpenFile:
    """A file that is open for its header: a stream at its start, `size` bytes long.

    `title` is what messages call it, a path or an address; the last part is its `name`.

    >>> import io
    >>> from llmcalc.headers import OpenFile, read_safetensors
    >>> header = b'{"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}'
    >>> stored = len(header).to_bytes(8, "little") + header + bytes(4)
    >>> file = OpenFile(stream=io.BytesIO(stored), size=len(stored), title="memory/a.safetensors")
    >>> [tensor] = read_safetensors(file)
    >>> file.name, tensor.bytes
    ('a.safetensors', 4)
    """

    stream: Stream
    size: int
    title: str

    @property
    def name(self) -> str:
        """The last part of the title."""
        return last_part(self.title)

    def wrong(self, rule: str) -> InvalidValueError:
        """Return the error that the file breaks a rule."""
        return InvalidValueError("path", self.title, rule)


#: Opens a file by its title.
Opener: TypeAlias = Callable[[str], AbstractContextManager[OpenFile]]


def last_part(title: str) -> str:
    """Return the last part of a title, the name of the file.

    >>> from llmcalc.headers.opened import last_part
    >>> last_part("models/llama/model.safetensors")
    'model.safetensors'
    """
    return os.path.basename(title)  # noqa: PTH119  # a title need not be a path
