"""What is kept of a model: what was found out about it before any workload is known.

* `kept`: the result of a function of a ledger, made once.

Kept are the schemes of formats, folds before the workload, what each rank of a layout holds, and
what an engine adds to that. Each is kept with the ledger, under the function that makes it and the
values that it depends on. No answer to a workload is kept. Clearing all of it (``ledger.kept``)
changes nothing but time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple, Unpack, cast

if TYPE_CHECKING:
    from llmcalc.spec.model import Ledger

__all__ = ["kept"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: So much is kept for a model.
_MOST: Final = 256


def kept(ledger: Ledger, make: Callable[[Ledger, Unpack[Ts]], T], *arguments: *Ts) -> T:
    """Return ``make(ledger, *arguments)``, which is made once for arguments that are equal.

    Arguments must be checked first, for numbers of several types are equal: ``1``, ``1.0`` and
    ``True`` find the same. What has no hash, such as a scheme of your own that can change, is made
    each time.

    >>> from llmcalc import load_model
    >>> from llmcalc.spec.kept import kept
    >>> ledger = load_model("llama-3-8b").ledger
    >>> def number(ledger, kind):
    ...     return [sum(type(entry.item).__name__ == kind for entry in ledger.entries)]
    >>> kept(ledger, number, "Linear"), kept(ledger, number, "Linear") is kept(
    ...     ledger, number, "Linear"
    ... )
    ([8], True)
    """
    key = (make, *arguments)
    store = ledger.kept
    try:
        found = store.get(key, store)
    except TypeError:
        return make(ledger, *arguments)
    if found is not store:
        return cast("T", found)
    made = make(ledger, *arguments)
    for oldest in list(store)[: max(0, len(store) + 1 - _MOST)]:
        store.pop(oldest, None)  # which another thread may have dropped
    store[key] = made
    return made
