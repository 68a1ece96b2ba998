"""Spans: how many cache slots a layer holds, and how many positions a query attends.

* `Full`: every position up to the query's own.
* `Window`: the last few positions.

Each span answers three questions, for integers and for integer arrays alike:

* ``slots(context)``: slots that a request of `context` tokens holds;
* ``pairs(new, past)``: (query, key) pairs when `new` tokens follow `past` ones, causally;
* ``most_slots``: the slots that no context exceeds, or `None`;
* ``slot_name``: what a slot is called in a printed working.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

from llmcalc.boundary import size, smaller

__all__ = ["Full", "Span", "Window"]


@attrs.frozen
class Full:
    """Every position up to the query's own is attended, and every position is held.

    >>> from llmcalc.spec import Full
    >>> Full().slots(1024), Full().pairs(new=2, past=3)
    (1024, 9)
    """

    @property
    def slot_name(self) -> str:
        """One slot a token."""
        return "tokens"

    @property
    def most_slots(self) -> int | None:
        """`None`: the cache grows with the context."""
        return None

    def slots(self, context: Any) -> Any:
        """Return the slots held for `context` tokens: all of them."""
        return context

    def pairs(self, new: Any, past: Any) -> Any:
        """Return the sum of past + 1, past + 2, ..., past + new."""
        return new * past + new * (new + 1) // 2


@attrs.frozen
class Window:
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

    def slots(self, context: Any) -> Any:
        """Return the slots held for `context` tokens: at most the window."""
        return smaller(context, self.size)

    def pairs(self, new: Any, past: Any) -> Any:
        """Return the sum of min(position, size) over the new tokens' positions."""
        # The first `growing` queries see everything before them, the rest a whole window.
        growing = smaller(self.size - smaller(past, self.size), new)
        return growing * past + growing * (growing + 1) // 2 + (new - growing) * self.size


Span: TypeAlias = Full | Window
