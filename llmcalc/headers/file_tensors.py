"""Tensors as headers list them.

* `FileTensor`: one of them.
"""

from __future__ import annotations

from math import prod

import attrs

from llmcalc.described import Described

__all__ = ["FileTensor"]


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
