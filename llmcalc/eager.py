"""What transformers computes with plain PyTorch, where that is more than the model needs.

* `Eager`: one step of a model in transformers' eager modules, without optional kernels.
* `at_hand`: the span whose positions its caches keep.

PyTorch's FLOP counter counts these modules: padded convolutions, recurrences as products of whole
chunks, attention over the full square.
"""

from __future__ import annotations

from typing import Any

import attrs

from llmcalc.boundary import smaller
from llmcalc.spec.items import Conv, EagerScan
from llmcalc.spec.spans import Chunk, Full, Span, Window

__all__ = ["Eager", "at_hand"]


def at_hand(span: Span) -> Span:
    """Return the span whose positions transformers keeps at hand: the layer's own, but for one.

    Before a step it keeps one position less than a window or a chunk has. Of a single position it
    keeps all: its slice of the last zero positions is a slice of all of them
    (``DynamicSlidingWindowLayer.update`` in ``cache_utils.py``).

    >>> from llmcalc.eager import at_hand
    >>> from llmcalc.spec import Window
    >>> at_hand(Window(8)), at_hand(Window(1))
    (Window(size=8), Full())
    """
    return Full() if isinstance(span, Window | Chunk) and span.size == 1 else span


@attrs.frozen
class Eager:
    """A step of `new` tokens that follow `past` ones.

    With `bound` every count is at least that of any step that is not larger.
    """

    new: Any
    past: Any
    bound: bool = False

    def attended(self, span: Span) -> Any:
        """Return the pairs that are attended, where no other is computed."""
        return (span.most_pairs if self.bound else span.pairs)(self.new, self.past)

    def outputs(self, item: Conv) -> Any:
        """Return the outputs of a convolution that pads both ends.

        A single token is convolved with all inputs that are kept, several that follow others
        with these before them.
        """
        if item.eager_more is not None:
            return self.new + smaller(self.new, 1) * item.eager_more
        follows, alone = self._follows, self._alone
        padded = self.new + item.kernel - 1 + follows * item.kernel
        some = smaller(self.new, 1)
        return some * (padded - alone * 2 * (item.kernel - 1))

    def state(self, scan: EagerScan) -> Any:
        """Return how many times the tokens pass over the state."""
        steps = self._by_step(scan) * self.new * scan.step_products
        return steps + self._in_chunks(scan) * self._tokens(scan) * scan.products

    def within(self, scan: EagerScan) -> Any:
        """Return the pairs of positions that share a chunk."""
        tokens, rest = self._tokens(scan), 0
        if scan.rest != "padded" and not self.bound:
            rest = self._rest(scan)
        pairs = (tokens - rest) * scan.chunk
        if scan.rest == "part":
            pairs = pairs + rest * rest
        return self._in_chunks(scan) * pairs

    def _rest(self, scan: EagerScan) -> Any:
        """Return the tokens that fill no chunk."""
        if scan.piece is None:
            return self.new % scan.chunk
        whole, last = self.new // scan.piece, self.new % scan.piece
        return whole * (scan.piece % scan.chunk) + last % scan.chunk

    def across(self, scan: EagerScan) -> Any:
        """Return the pairs of chunks, with the state before the first as one more."""
        chunks = -(-self.new // scan.chunk) + 1
        return self._in_chunks(scan) * chunks * chunks

    def _tokens(self, scan: EagerScan) -> Any:
        """Return the tokens, up to whole chunks where the last one is padded."""
        if scan.rest == "padded" or self.bound:
            return -(-self.new // scan.chunk) * scan.chunk
        return self.new

    @property
    def _follows(self) -> Any:
        """1 where the tokens follow others, else 0."""
        return 1 if self.bound else smaller(self.past, 1)

    @property
    def _alone(self) -> Any:
        """1 where a single token follows others, else 0."""
        one = 2 * smaller(self.new, 1) - smaller(self.new, 2)
        return 0 if self.bound else self._follows * one

    def _by_step(self, scan: EagerScan) -> Any:
        if self.bound:
            return 1
        return self._follows if scan.stepwise else self._alone

    def _in_chunks(self, scan: EagerScan) -> Any:
        return 1 if self.bound else (1 - self._by_step(scan)) * smaller(self.new, 1)
