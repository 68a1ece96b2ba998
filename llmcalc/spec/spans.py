"""Spans: how many cache slots a layer holds, and how many positions a query attends.

* `Full`: every position up to the query's own.
* `Window`: the last few positions.
* `Chunk`: the positions of the query's own chunk.
* `TopK`: as many positions as an indexer picks; all are held.
* `Compressed`: one slot for several positions.
* `Remainder`: the positions that do not make up such a slot yet.
* `Constant`: a state that does not grow, such as that of a recurrence.
* `Span`: what all of them answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from llmcalc.boundary import at_most, size, smaller
from llmcalc.described import Described

if TYPE_CHECKING:
    from llmcalc.boundary import Number

__all__ = ["Chunk", "Compressed", "Constant", "Full", "Remainder", "Span", "TopK", "Window"]


class Span(Described):
    """What a layer holds and attends of the positions, for integers and integer arrays alike.

    `new` tokens follow `past` ones. The answers here are those of a span that holds every position
    and attends all up to the query's own; other spans answer where they differ.
    """

    __slots__ = ()

    @property
    def slot_name(self) -> str:
        """What a slot is called in a printed working."""
        return "tokens"

    @property
    def most_slots(self) -> int | None:
        """The slots that no context exceeds; `None` where the cache grows with the context."""
        return None

    @property
    def is_state(self) -> bool:
        """Whether a request holds one state, whatever its context, and nothing of a position."""
        return False

    @property
    def limit(self) -> int | None:
        """How many positions at most are held and attended; `None` where only the context says."""
        return None

    def slots(self, context: Number) -> Number:
        """Return the slots that a request of `context` tokens holds."""
        return context

    def pairs(self, new: Number, past: Number) -> Number:
        """Return the (query, key) pairs of a step, causally: past + 1, past + 2, ..., summed."""
        return new * past + new * (new + 1) // 2

    def most_pairs(self, new: Number, past: Number) -> Number:
        """Return a bound of the pairs of all workloads up to this one."""
        return self.pairs(new, past)

    def widest(self, new: Number, past: Number) -> Number:
        """Return the pairs of the new token that attends the most keys: of the last one."""
        return self.pairs(1, past + new - 1)

    def present(self, new: Number, past: Number) -> Number:
        """Return the keys that a step has at hand, in a kernel that skips none of them."""
        return past + new

    def most_present(self, new: Number, past: Number) -> Number:
        """Return a bound of the keys at hand in all workloads up to this one."""
        return self.present(new, past)

    def fetched(self, new: Number, past: Number) -> Number:
        """Return the slots that a step reads, each once."""
        return self.present(new, past)

    def unmasked(self, new: Number, past: Number) -> Number:
        """Return the slots that a step reads which hides none of the keys at hand."""
        return self.present(new, past)

    def tiled(self, new: Number, past: Number, tile: int) -> Number:
        """Return the slots that are read where each tile of new tokens reads its own again.

        A tile reads the positions up to its last token: their sum over the tiles.
        """
        tiles = -(-new // tile)
        return tiles * past + tile * (tiles * (tiles - 1) // 2) + new

    def unmasked_tiled(self, new: Number, past: Number, tile: int) -> Number:
        """Return the same where no tile hides a key at hand."""
        return -(-new // tile) * self.present(new, past)

    def written(self, new: Number, past: Number) -> Number:  # noqa: ARG002  # other spans need it
        """Return the slots that a step writes."""
        return new


@attrs.frozen(repr=False, eq=False)
class Full(Span):
    """Every position up to the query's own is attended, and every position is held.

    >>> from llmcalc.spec import Full
    >>> Full().slots(1024), Full().pairs(new=2, past=3)
    (1024, 9)
    """


@attrs.frozen(repr=False, eq=False)
class Window(Span):
    """The query's own position and the `size` - 1 before it are attended; `size` slots are held.

    >>> from llmcalc.spec import Window
    >>> Window(4).slots(1024), Window(4).pairs(new=2, past=3)
    (4, 8)
    """

    size: int = attrs.field(validator=size)

    @property
    def slot_name(self) -> str:
        """One slot for each token in the window."""
        return f"tokens (window {self.size})"

    @property
    def most_slots(self) -> int | None:
        """The window's size."""
        return self.size

    @property
    def limit(self) -> int | None:
        """The window's size."""
        return self.size

    def slots(self, context: Number) -> Number:
        """Return the slots held for `context` tokens: at most the window."""
        return smaller(context, self.size)

    def pairs(self, new: Number, past: Number) -> Number:
        """Return the sum of min(position, size) over the new tokens' positions."""
        # The first `growing` queries see everything before them, the rest a whole window.
        growing = smaller(self.size - smaller(past, self.size), new)
        return growing * past + growing * (growing + 1) // 2 + (new - growing) * self.size

    def present(self, new: Number, past: Number) -> Number:
        """Return what is held before the step, short of one slot, and the new positions."""
        return smaller(past, self.size - 1) + new

    def tiled(self, new: Number, past: Number, tile: int) -> Number:
        """Return the sum, over the tiles, of their positions and of what their first query sees."""
        tiles = -(-new // tile)
        # Before each of the first `growing` tiles stand fewer positions than fit in the window.
        before = self.size - 1
        growing = smaller(-(-(before - smaller(past, before)) // tile), tiles)
        seen = growing * past + tile * (growing * (growing - 1) // 2)
        return seen + (tiles - growing) * before + new

    def written(self, new: Number, past: Number) -> Number:  # noqa: ARG002
        """Return a slot for each new token that the window still holds."""
        return smaller(new, self.size)


@attrs.frozen(repr=False, eq=False)
class Chunk(Span):
    """Positions are cut into chunks of `size`; a query attends its own chunk up to itself.

    What a request holds is given at its peak: the end of a chunk.

    >>> from llmcalc.spec import Chunk
    >>> Chunk(4).slots(1024), Chunk(4).pairs(new=3, past=3)
    (4, 7)
    """

    size: int = attrs.field(validator=size)

    @property
    def slot_name(self) -> str:
        """One slot for each token in the chunk."""
        return f"tokens (chunk {self.size})"

    @property
    def most_slots(self) -> int | None:
        """The chunk's size."""
        return self.size

    @property
    def limit(self) -> int | None:
        """The chunk's size."""
        return self.size

    def slots(self, context: Number) -> Number:
        """Return the slots held for up to `context` tokens: at most a chunk."""
        return smaller(context, self.size)

    def pairs(self, new: Number, past: Number) -> Number:
        """Return the sum of position % size + 1 over the new tokens' positions, from 0."""
        # First what is left of the chunk that is under way, then whole chunks, then a begun one.
        seen = past % self.size
        first = smaller(new, self.size - seen)
        whole, rest = (new - first) // self.size, (new - first) % self.size
        return (
            first * seen
            + first * (first + 1) // 2
            + whole * self.size * (self.size + 1) // 2
            + rest * (rest + 1) // 2
        )

    def most_pairs(self, new: Number, past: Number) -> Number:
        """Return the pairs if every new token met a full chunk."""
        return new * smaller(past + new, self.size)

    def widest(self, new: Number, past: Number) -> Number:
        """Return those of the last token, or of the last one before a chunk ends."""
        return smaller(past % self.size + new, self.size)

    def present(self, new: Number, past: Number) -> Number:
        """Return what is held before the step, short of one slot, and the new positions."""
        return smaller(past, self.size - 1) + new

    def fetched(self, new: Number, past: Number) -> Number:
        """Return the positions from the start of the chunk that is under way."""
        return past % self.size + new

    def tiled(self, new: Number, past: Number, tile: int) -> Number:
        """Return the sum over the chunks, each of which has tiles of its own."""
        whole = Full()
        seen = past % self.size
        first = smaller(new, self.size - seen)
        chunks, rest = (new - first) // self.size, (new - first) % self.size
        # A whole chunk's tiles start at 0, tile, ...; what they read of it could pass 64 bits.
        tiles = -(-self.size // tile)
        before = chunks * tiles * (tiles - 1) // 2 * tile
        return (
            whole.tiled(first, seen, tile)
            + (before + chunks * self.size)
            + whole.tiled(rest, 0, tile)
        )

    def written(self, new: Number, past: Number) -> Number:  # noqa: ARG002
        """Return a slot for each new token, at most a chunk."""
        return smaller(new, self.size)


@attrs.frozen(repr=False, eq=False)
class TopK(Span):
    """Every position is held; a query attends the `count` that an indexer picks among them.

    >>> from llmcalc.spec import TopK
    >>> TopK(4).slots(1024), TopK(4).pairs(new=2, past=3)
    (1024, 8)
    """

    count: int = attrs.field(validator=size)

    def pairs(self, new: Number, past: Number) -> Number:
        """Return the sum of min(position, count) over the new tokens' positions."""
        return Window(self.count).pairs(new, past)

    def fetched(self, new: Number, past: Number) -> Number:
        """Return a bound of the positions that the new tokens pick together."""
        return at_most(past + new, new, self.count)

    def unmasked(self, new: Number, past: Number) -> Number:
        """Return what is fetched: nobody reads what nobody picked."""
        return self.fetched(new, past)

    def tiled(self, new: Number, past: Number, tile: int) -> Number:
        """Return a bound of the positions that the queries of each tile pick together."""
        return at_most(super().tiled(new, past, tile), new, self.count)

    def unmasked_tiled(self, new: Number, past: Number, tile: int) -> Number:
        """Return a bound of the same where a tile picks among all positions."""
        return at_most(super().unmasked_tiled(new, past, tile), new, self.count)


@attrs.frozen(repr=False, eq=False)
class Constant(Span):
    """One state a request, whatever its context.

    >>> from llmcalc.spec import Constant
    >>> Constant().slots(1024), Constant().most_slots
    (1, 1)
    """

    @property
    def slot_name(self) -> str:
        """One slot a request."""
        return "state"

    @property
    def most_slots(self) -> int | None:
        """One."""
        return 1

    @property
    def is_state(self) -> bool:
        """It is one."""
        return True

    def slots(self, context: Number) -> Number:
        """Return 1, in the shape of `context`."""
        return context * 0 + 1

    def pairs(self, new: Number, past: Number) -> Number:
        """Return one for each new token: each meets the state once."""
        return new + past * 0

    def present(self, new: Number, past: Number) -> Number:
        """Return one state."""
        return self.slots(past + new)

    def tiled(self, new: Number, past: Number, tile: int) -> Number:  # noqa: ARG002
        """Return one state: a recurrence reads it once."""
        return self.slots(past + new)

    def unmasked_tiled(self, new: Number, past: Number, tile: int) -> Number:
        """Return one state."""
        return self.tiled(new, past, tile)

    def written(self, new: Number, past: Number) -> Number:
        """Return one state."""
        return self.slots(past + new)


@attrs.frozen(repr=False, eq=False)
class Compressed(Span):
    """Every `ratio` positions give one slot once they are complete; a query attends the slots.

    With `most`, it attends that many at most, which an indexer picks.

    >>> from llmcalc.spec import Compressed
    >>> Compressed(4).slots(1023), Compressed(4).pairs(new=2, past=3)
    (255, 2)
    """

    ratio: int = attrs.field(validator=size)
    most: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))

    @property
    def slot_name(self) -> str:
        """One slot for several tokens."""
        return f"slots of {self.ratio} tokens"

    def slots(self, context: Number) -> Number:
        """Return the complete slots."""
        return context // self.ratio

    def pairs(self, new: Number, past: Number) -> Number:
        """Return the sum of the slots that are complete at each of the new tokens' positions."""
        return self._pairs_up_to(past + new) - self._pairs_up_to(past)

    def most_pairs(self, new: Number, past: Number) -> Number:
        """Return a bound of what is subtracted, too."""
        return (past + new) * ((past + new) // self.ratio + 1)

    def _pairs_up_to(self, context: Number) -> Number:
        full = self.most is not None and self.most * self.ratio <= _LONGEST
        growing = smaller(context, (self.most or 0) * self.ratio) if full else context
        slots = growing // self.ratio
        pairs = slots * (slots - 1) // 2 * self.ratio + slots * (growing % self.ratio + 1)
        return pairs + (context - growing) * (self.most or 0) if full else pairs

    def present(self, new: Number, past: Number) -> Number:
        """Return the slots that are complete after the step."""
        return (past + new) // self.ratio

    def fetched(self, new: Number, past: Number) -> Number:
        """Return the complete slots, or a bound of those that the new tokens pick together."""
        complete = self.present(new, past)
        return complete if self.most is None else at_most(complete, new, self.most)

    def unmasked(self, new: Number, past: Number) -> Number:
        """Return what is fetched: nobody reads what nobody picked."""
        return self.fetched(new, past)

    def tiled(self, new: Number, past: Number, tile: int) -> Number:
        """Return all complete slots for every tile, or a bound of what its queries pick."""
        read = -(-new // tile) * self.present(new, past)
        return read if self.most is None else at_most(read, new, self.most)

    def unmasked_tiled(self, new: Number, past: Number, tile: int) -> Number:
        """Return the same: a tile may read all complete slots."""
        return self.tiled(new, past, tile)

    def written(self, new: Number, past: Number) -> Number:
        """Return the slots that the step completes."""
        return self.slots(past + new) - self.slots(past)


@attrs.frozen(repr=False, eq=False)
class Remainder(Span):
    """The positions that do not make up a whole of `size` yet.

    >>> from llmcalc.spec import Remainder
    >>> Remainder(4).slots(1023)
    3
    """

    size: int = attrs.field(validator=size)

    @property
    def slot_name(self) -> str:
        """One slot for each token that is left over."""
        return f"tokens (of {self.size})"

    @property
    def most_slots(self) -> int | None:
        """One less than the size."""
        return self.size - 1

    def slots(self, context: Number) -> Number:
        """Return the rest of the context."""
        return context % self.size

    def pairs(self, new: Number, past: Number) -> Number:
        """Return one for each new token: none is attended, each is kept."""
        return new + past * 0

    def present(self, new: Number, past: Number) -> Number:
        """Return what is left over after the step."""
        return self.slots(past + new)

    def most_present(self, new: Number, past: Number) -> Number:
        """Return a bound: a longer context may leave less over."""
        return smaller(new + past, self.size - 1)

    def fetched(self, new: Number, past: Number) -> Number:  # noqa: ARG002
        """Return what is left over before the step."""
        return self.slots(past)

    def unmasked(self, new: Number, past: Number) -> Number:
        """Return what is left over before the step."""
        return self.fetched(new, past)

    def tiled(self, new: Number, past: Number, tile: int) -> Number:  # noqa: ARG002
        """Return what is left over before the step: nothing of it is attended."""
        return self.slots(past)

    def unmasked_tiled(self, new: Number, past: Number, tile: int) -> Number:
        """Return what is left over before the step."""
        return self.tiled(new, past, tile)

    def written(self, new: Number, past: Number) -> Number:  # noqa: ARG002
        """Return a slot for each new token, at most the size."""
        return smaller(new, self.size)


#: No context is longer than this; where a limit is beyond it, it never binds.
_LONGEST = 2**48
