"""What transformers computes and holds otherwise, where that is more than the model needs.

* `Eager`: one step of a model in transformers' eager modules, without optional kernels.
* `at_hand`: the span whose positions its caches keep.
* `held`: the shapes and the slots that its caches hold.
* `pairs`, `active`, `products`: what its modules compute of an item.

PyTorch's FLOP counter counts these modules: padded convolutions, recurrences as products of whole
chunks, attention over the full square. This is the one room that reads the items' field
``in_transformers``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from llmcalc.boundary import smaller
from llmcalc.spec.axes import Axes
from llmcalc.spec.spans import Full, Span, Window

if TYPE_CHECKING:
    from llmcalc.boundary import Number
    from llmcalc.spec.items import Cache, Conv, EagerScan, Linear, Mix, Scan

__all__ = ["Eager", "active", "at_hand", "held", "pairs", "products"]


def at_hand(span: Span) -> Span:
    """Return the span whose positions transformers keeps at hand: the layer's own, but for one.

    Before a step it keeps one position less than a window or a chunk has. Of a single position it
    keeps all: its slice of the last zero positions is a slice of all of them
    (``DynamicSlidingWindowLayer.update`` in ``cache_utils.py``).

    >>> from llmcalc.folds.transformers import at_hand
    >>> from llmcalc.spec import Window
    >>> at_hand(Window(8)), at_hand(Window(1))
    (Window(size=8), Full())
    """
    return Full() if span.limit == 1 else span


def held(cache: Cache) -> Iterator[tuple[Axes, Span, str]]:
    """Give what transformers holds of a cache: shapes, spans and what a slot is called.

    Where nothing else is stated, the last slot of a window is not held.
    """
    if cache.in_transformers is not None:
        for shape, span in cache.in_transformers:
            yield shape, span, span.slot_name
        return
    span = at_hand(cache.span)
    if span.limit is not None:
        name = f"tokens (window {span.limit} - 1)"
        yield cache.shape, Window(span.limit - 1), name
    else:
        yield cache.shape, span, span.slot_name


def pairs(item: Mix) -> tuple[str, Span]:
    """Return the count of the pairs that are computed, and the span that they are of."""
    eager = item.in_transformers
    span = None if eager is None else eager.span
    kind = "attended" if eager is not None and eager.skips else "rectangle"
    return kind, span or at_hand(item.span)


def active(item: Linear) -> int | None:
    """Return how many experts are computed for each token."""
    return item.in_transformers or item.active


def products(item: Scan) -> Iterator[tuple[str, int | None, EagerScan]]:
    """Give the kinds of products of a recurrence, and the elements of each; `None`: the state's.

    Nothing where transformers computes what the model says.
    """
    eager = item.in_transformers
    for name, elements in () if eager is None else eager.kinds:
        yield name, elements, eager  # type: ignore[misc]  # not None where it has kinds


@attrs.frozen(eq=False)
class Eager:
    """A step of `new` tokens that follow `past` ones.

    With `bound` every count is at least that of any step that is not larger.
    """

    new: Number
    past: Number
    bound: bool = False

    def attended(self, span: Span) -> Number:
        """Return the pairs that are attended, where no other is computed."""
        return (span.most_pairs if self.bound else span.pairs)(self.new, self.past)

    def outputs(self, item: Conv) -> Number:
        """Return the outputs of a convolution that pads both ends.

        A single token is convolved with all inputs that are kept, several that follow others
        with these before them.
        """
        if item.in_transformers is not None:
            return self.new + smaller(self.new, 1) * item.in_transformers
        follows, alone = self._follows, self._alone
        padded = self.new + item.kernel - 1 + follows * item.kernel
        some = smaller(self.new, 1)
        return some * (padded - alone * 2 * (item.kernel - 1))

    def state(self, scan: EagerScan) -> Number:
        """Return how many times the tokens pass over the state."""
        steps = self._by_step(scan) * self.new * scan.step_products
        return steps + self._in_chunks(scan) * self._tokens(scan) * scan.products

    def within(self, scan: EagerScan) -> Number:
        """Return the pairs of positions that share a chunk."""
        tokens = self._tokens(scan)
        rest: Number = 0
        if scan.rest != "padded" and not self.bound:
            rest = self._rest(scan)
        pairs = (tokens - rest) * scan.chunk
        if scan.rest == "part":
            pairs = pairs + rest * rest
        return self._in_chunks(scan) * pairs

    def _rest(self, scan: EagerScan) -> Number:
        """Return the tokens that fill no chunk."""
        if scan.piece is None:
            return self.new % scan.chunk
        whole, last = self.new // scan.piece, self.new % scan.piece
        return whole * (scan.piece % scan.chunk) + last % scan.chunk

    def across(self, scan: EagerScan) -> Number:
        """Return the pairs of chunks, with the state before the first as one more."""
        chunks = -(-self.new // scan.chunk) + 1
        return self._in_chunks(scan) * chunks * chunks

    def _tokens(self, scan: EagerScan) -> Number:
        """Return the tokens, up to whole chunks where the last one is padded."""
        if scan.rest == "padded" or self.bound:
            return -(-self.new // scan.chunk) * scan.chunk
        return self.new

    @property
    def _follows(self) -> Number:
        """1 where the tokens follow others, else 0."""
        return 1 if self.bound else smaller(self.past, 1)

    @property
    def _alone(self) -> Number:
        """1 where a single token follows others, else 0."""
        one = 2 * smaller(self.new, 1) - smaller(self.new, 2)
        return 0 if self.bound else self._follows * one

    def _by_step(self, scan: EagerScan) -> Number:
        if self.bound:
            return 1
        return self._follows if scan.stepwise else self._alone

    def _in_chunks(self, scan: EagerScan) -> Number:
        return 1 if self.bound else (1 - self._by_step(scan)) * smaller(self.new, 1)
