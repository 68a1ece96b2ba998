"""What holds for every file of weights: limits, and how tensors follow each other.

* `MOST_TENSORS`, `MOST_TENSORS_IN_ALL`, `MOST_FILES`, `LONGEST_NAME`: no model has more.
* `misplaced`: why the data of a tensor cannot stand where the header says.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LONGEST_NAME", "MOST_FILES", "MOST_TENSORS", "MOST_TENSORS_IN_ALL", "misplaced"]

#: Tensors in one file, and in all files of a model; files of a model; characters or bytes of a
#: name.
MOST_TENSORS: Final = 2**18
MOST_TENSORS_IN_ALL: Final = 2**20
MOST_FILES: Final = 2**12
LONGEST_NAME: Final = 2**12


def misplaced(start: int, end: int) -> str | None:
    """Return what is wrong with a tensor that starts there, `end` being that of the one before.

    >>> from llmcalc.headers.limits import misplaced
    >>> misplaced(4, 8), misplaced(8, 8), misplaced(9, 8)
    ('overlaps the tensor before it', None, 'leaves a gap before it')
    """
    if start == end:
        return None
    return "overlaps the tensor before it" if start < end else "leaves a gap before it"
