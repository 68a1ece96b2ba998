"""Tensors as headers list them.

* `FileTensor`: one of them.
* `misplaced`: why its data cannot stand where its header says.
* `together`: those of several files, which must have different names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Final

import attrs

from llmcalc.described import Described
from llmcalc.errors import InvalidValueError

__all__ = ["FileTensor", "misplaced", "together"]

#: No model has more tensors in one file, or in all, or more files.
MOST_TENSORS: Final = 2**18
MOST_TENSORS_IN_ALL: Final = 2**20
MOST_FILES: Final = 2**12

#: No tensor has a longer name.
LONGEST_NAME: Final = 2**12


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


def misplaced(start: int, end: int) -> str | None:
    """Return what is wrong with a tensor that starts there, `end` being that of the one before.

    >>> from llmcalc.headers.file_tensors import misplaced
    >>> misplaced(4, 8), misplaced(8, 8), misplaced(9, 8)
    ('overlaps the tensor before it', None, 'leaves a gap before it')
    """
    if start == end:
        return None
    return "overlaps the tensor before it" if start < end else "leaves a gap before it"


def together(
    titles: Iterable[str], read: Callable[[str], Iterable[FileTensor]]
) -> tuple[FileTensor, ...]:
    """Return the tensors of several files, `read` by their titles; no two may have one name.

    >>> from llmcalc.headers.file_tensors import FileTensor, together
    >>> def read(title):
    ...     yield FileTensor(name=title[0], shape=(2,), dtype="I8", bytes=2, file=title)
    >>> [tensor.name for tensor in together(["a.gguf", "b.gguf"], read)]
    ['a', 'b']
    """
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
