"""Residual steps whose parts read the same input.

* `ParallelBlock`: several parts that read the same input and are summed.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from llmcalc.boundary import instance_of
from llmcalc.spec.axes import Axis
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import Block, Residual
from llmcalc.spec.part import Part
from llmcalc.spec.parts import Norm

__all__ = ["ParallelBlock"]

_optional_norm = attrs.validators.optional(instance_of(Norm))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class ParallelBlock(Residual):
    """Parts that read one input: ``x + sum of the blocks' parts of norm(x)``.

    `norm` is what all parts share; each block may have norms of its own. `post_norm` normalises
    the sum of the parts.
    """

    blocks: tuple[Block, ...]
    norm: Norm | None = attrs.field(
        default=None, validator=attrs.validators.optional(instance_of(Norm))
    )
    post_norm: Norm | None = attrs.field(
        default=None, validator=attrs.validators.optional(instance_of(Norm))
    )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of all blocks, in order."""
        return tuple(part for block in self.blocks for part in block.parts)

    @property
    def adds_up(self) -> bool:
        """Whether no part's result is normalised before the sum."""
        return not any(block.post_norm or block.sum_norm for block in self.blocks)

    def entries(self, label: str, count: int, embed: Axis) -> Iterator[Entry]:
        """Emit the items of all parts."""
        if self.norm is not None:
            for item in self.norm.items("norm", (embed,)):
                yield Entry(("norms", label), count, item)
        for block in self.blocks:
            yield from block.entries(label, count, embed)
        if self.post_norm is not None:
            for item in self.post_norm.items("post_norm", (embed,)):
                yield Entry(("norms", label), count, item)
