"""What files of published models hold beside the parameters.

* `with_all_modules`: the elements with the modules that predict further tokens.
* `block_scales`: the scales of weights in fp8.
"""

from __future__ import annotations

import math

from llmcalc import ModelSpec, memory
from llmcalc.spec import Linear
from llmcalc.spec.ledger import Ledger


def with_all_modules(spec: ModelSpec, *, copies: bool) -> int:
    """Return parameters, buffers, and modules for further tokens with theirs.

    With `copies`, these have an embedding and a head of their own.
    """
    modules = memory.multi_token_parameters(spec, copies=copies)
    return (memory.parameters(spec) + memory.buffers(spec, multi_token=True) + modules).total


def block_scales(spec: ModelSpec) -> int:
    """Return the scales of 128 x 128 blocks, those of modules for further tokens among them.

    All matrices have them but routers, joins, heads and the weights of an indexer's heads.
    """
    return _block_scales(spec.ledger) + _block_scales(spec.multi_token_ledger)


def _block_scales(ledger: Ledger) -> int:
    scales = 0
    for entry in ledger.entries:
        item = entry.item
        wide = {"router", "join", "output", "index_weights"}
        if isinstance(item, Linear) and item.name not in wide:
            rows_of = sum(math.prod(axis.size for axis in piece) for piece in item.out)
            columns = math.prod(axis.size for axis in item.into)
            blocks = math.ceil(rows_of / 128) * math.ceil(columns / 128)
            experts = 1 if item.experts is None else item.experts.size
            scales += blocks * experts * (entry.count or 1)
    return scales
