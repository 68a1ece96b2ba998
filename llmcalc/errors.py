"""The errors that llmcalc raises: one base class and a few kinds.

Every error that bad input can cause is an `LlmcalcError`, which is a `ValueError`; its message
names the field, the value that was given and the rule that the value breaks.

* `LlmcalcError`: the base class; catch this one.
* `InvalidValueError`: a value breaks a rule.
* `UnknownNameError`: a name is not in a catalogue; suggestions are part of the message.
* `UnitMismatchError`: two quantities of different units were combined.
* `MissingExtraError`: a feature needs an optional dependency that is not installed.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping

__all__ = [
    "InvalidValueError",
    "LlmcalcError",
    "MissingExtraError",
    "UnitMismatchError",
    "UnknownNameError",
]


class LlmcalcError(ValueError):
    """The base class of every error that llmcalc raises for bad input."""


class InvalidValueError(LlmcalcError):
    """A value breaks a rule.

    >>> from llmcalc.errors import InvalidValueError
    >>> print(InvalidValueError("batch", -1, "must be an integer of at least 0"))
    batch = -1: must be an integer of at least 0
    """

    def __init__(self, field: str, value: object, rule: str) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        super().__init__(f"{field} = {shown(value)}: {rule}")


class UnknownNameError(LlmcalcError):
    """A name is in no catalogue. `suggestions` holds the nearest known names, best first.

    >>> from llmcalc.errors import UnknownNameError
    >>> print(UnknownNameError("format", "bf61", ["fp32", "bf16"]))
    format = 'bf61': is not known; did you mean 'bf16'? Known: bf16, fp32
    """

    def __init__(
        self,
        field: str,
        value: str,
        known: Iterable[str],
        *,
        spellings: Mapping[str, str] | None = None,
    ) -> None:
        from difflib import get_close_matches

        self.field = field
        self.value = value
        self.known = tuple(sorted(known))
        #: Lower-case spellings, by which a name may be near, of the names to suggest.
        near = {name.casefold(): name for name in self.known} if spellings is None else spellings
        found = get_close_matches(value[:200].casefold(), near, n=3)
        self.suggestions = tuple(dict.fromkeys(near[spelling] for spelling in found))
        hint = ""
        if self.suggestions:
            hint = "; did you mean " + " or ".join(map(repr, self.suggestions)) + "?"
        listing = ", ".join(self.known)
        joint = " Known: " if hint else "; known: "
        super().__init__(f"{field} = {shown(value)}: is not known{hint}{joint}{listing}")


class UnitMismatchError(LlmcalcError):
    """Quantities of different units cannot be added or compared."""


class MissingExtraError(LlmcalcError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        self.extra = extra
        super().__init__(
            f"{feature} needs {package}, which is not installed: "
            f"pip install 'llmcalc-inference[{extra}]'"
        )


class _Shown(reprlib.Repr):
    """Values in messages, cut short: a hostile config must not make a message of gigabytes."""

    def repr_int(self, x: int, _level: int) -> str:
        # Python refuses to print integers of more than 4300 digits.
        return str(x) if x.bit_length() <= 256 else f"<integer of {x.bit_length()} bits>"


_REPR = _Shown()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = 120


def shown(value: object) -> str:
    """Return the value as messages show it: cut short."""
    return _REPR.repr(value)
