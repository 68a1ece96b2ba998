"""What files of published models hold beside the parameters.

* `with_all_modules`: the elements with the modules that predict further tokens.
* `block_scales`: the scales of weights in fp8.
* `in_blocks`: the elements that are stored in fp8, and their scales.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from llmcalc import ModelSpec, memory
from llmcalc.spec import Linear
from llmcalc.spec.model import Ledger


def with_all_modules(spec: ModelSpec, *, copies: bool) -> int:
    """Return parameters, buffers, and modules for further tokens with theirs.

    With `copies`, these have an embedding and a head of their own.
    """
    modules = memory.multi_token_parameters(spec, copies=copies)
    return (memory.parameters(spec) + memory.buffers(spec, multi_token=True) + modules).total


def block_scales(spec: ModelSpec) -> int:
    """Return the scales of 128 x 128 blocks, those of modules for further tokens among them."""
    return in_blocks(spec.ledger).scales + in_blocks(spec.multi_token_ledger).scales


class InBlocks(NamedTuple):
    """The elements that are stored in fp8, and their scales."""

    elements: int
    scales: int


def in_blocks(ledger: Ledger) -> InBlocks:
    """Return the elements of all matrices but routers, joins, heads and an indexer's weights."""
    elements = scales = 0
    for entry in ledger.entries:
        item = entry.item
        wide = {"router", "join", "output", "index_weights"}
        if isinstance(item, Linear) and item.name not in wide:
            rows_of = sum(math.prod(axis.size for axis in piece) for piece in item.out)
            columns = math.prod(axis.size for axis in item.into)
            number = (1 if item.experts is None else item.experts.size) * (entry.count or 1)
            elements += rows_of * columns * number
            scales += math.ceil(rows_of / 128) * math.ceil(columns / 128) * number
    return InBlocks(elements, scales)
