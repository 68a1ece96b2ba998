"""Storage formats: how many bytes a block of elements takes.

* `Format`: a format, as (elements, bytes) per block.
* `get`: a format by its name.
* `names`: the known names.
"""

from __future__ import annotations

import attrs

from llmcalc.described import Described
from llmcalc.errors import InvalidValueError, UnknownNameError

__all__ = ["Format", "get", "names"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Format(Described):
    """A storage format: every block of `block_elements` elements takes `block_bytes` bytes.

    Blocks run along a tensor's rows (the contracted axis), and a row's last block is stored whole.

    >>> from llmcalc import formats
    >>> formats.get("int4").bytes(rows=2, columns=5)
    6
    """

    name: str
    block_elements: int
    block_bytes: int

    def bytes(self, *, rows: int, columns: int) -> int:
        """Return the bytes of a matrix of `rows` rows of `columns` elements each."""
        return rows * -(-columns // self.block_elements) * self.block_bytes


#: Element sizes are those of the IEEE 754 types, of bfloat16 (truncated IEEE single), of the OCP
#: 8-bit floating point formats and of packed integers; no scales or zero points are counted.
_FORMATS = {
    name: Format(name=name, block_elements=elements, block_bytes=size)
    for name, elements, size in (
        ("fp64", 1, 8),
        ("fp32", 1, 4),
        ("bf16", 1, 2),
        ("fp16", 1, 2),
        ("fp8", 1, 1),
        ("int8", 1, 1),
        ("int4", 2, 1),
    )
}


def get(format: str | Format, field: str = "format") -> Format:
    """Return the format with that name; a `Format` is returned as it is.

    `field` is the argument's name in error messages. Raises `llmcalc.LlmcalcError` for an unknown
    name.

    >>> from llmcalc import formats
    >>> formats.get("bf16").block_bytes
    2
    """
    if type(format) is str:
        found = _FORMATS.get(format)
        if found is not None:
            return found
        raise UnknownNameError(field, format, _FORMATS)
    if isinstance(format, Format):
        return format
    raise InvalidValueError(field, format, "must be a format's name or a Format")


def names() -> tuple[str, ...]:
    """Return the names that `get` knows.

    >>> from llmcalc import formats
    >>> formats.names()
    ('fp64', 'fp32', 'bf16', 'fp16', 'fp8', 'int8', 'int4')
    """
    return tuple(_FORMATS)
