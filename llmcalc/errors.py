"""The errors that llmcalc raises: one base class and a few kinds.

Every error that bad input can cause is an `LlmcalcError`, which is a `ValueError`; its message
names the field, the value that was given and the rule that the value breaks.

* `LlmcalcError`: the base class; catch this one.
* `InvalidValueError`: a value breaks a rule.
* `UnknownNameError`: a name is not in a catalogue; suggestions are part of the message.
* `UnitMismatchError`: two quantities of different units were combined.
* `MissingExtraError`: a feature needs an optional dependency that is not installed.

All of them can be pickled and copied, whatever value they hold, and so pass between processes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import accumulate
from typing import Any, Self, TypeAlias, TypeVar

__all__ = [
    "InvalidValueError",
    "LlmcalcError",
    "MissingExtraError",
    "UnitMismatchError",
    "UnknownNameError",
]

#: No message that lists names is longer.
LONGEST_MESSAGE = 200

#: How much of a message a value may take, beside names, and beside a rule that is long itself.
_LONGEST_VALUE, _SHORT_VALUE, _SHORTEST_VALUE = 120, 60, 40


class LlmcalcError(ValueError):
    """The base class of every error that llmcalc raises for bad input.

    A copy has the attributes and the message of its original. So has an unpickled error: what
    cannot be pickled is in it as the text that messages show.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        held = {name: _pickled(value) for name, value in vars(self).items()}
        return _unpickled, (type(self), [_pickled(arg) for arg in self.args], held)

    def __copy__(self) -> Self:
        return _made(type(self), self.args, vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        error = memo[id(self)] = _made(type(self), self.args, {})
        error.args = tuple(_deep(arg, memo) for arg in self.args)
        vars(error).update({name: _deep(value, memo) for name, value in vars(self).items()})
        return error


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
        room = LONGEST_MESSAGE - len(f"{field} = : {rule}")
        longest = min(max(room, _SHORTEST_VALUE), _LONGEST_VALUE)
        super().__init__(f"{field} = {shown(value, longest)}: {rule}")


class UnknownNameError(LlmcalcError):
    """A name is in no catalogue. `suggestions` holds the nearest known names, best first.

    The message names all that are known where these are few; otherwise the nearest, and where
    all of them are (`listed_by`). `known` holds all in any case.

    >>> from llmcalc.errors import UnknownNameError
    >>> print(UnknownNameError("format", "bf61", ["fp32", "bf16"]))
    format = 'bf61': is not known; did you mean 'bf16'? Known: bf16, fp32
    >>> many = [f"fp{bits}" for bits in range(4, 100)]
    >>> print(UnknownNameError("format", "fq16", many, listed_by="formats.names()"))
    format = 'fq16': is not known; did you mean 'fp16'? All 96 are in formats.names()
    """

    def __init__(
        self,
        field: str,
        value: str,
        known: Iterable[str],
        *,
        listed_by: str | None = None,
        spellings: Mapping[str, str] | None = None,
    ) -> None:
        self.field = field
        self.value = value
        self.known: tuple[str, ...] = tuple(sorted(known))
        self.listed_by = listed_by
        #: Lower-case spellings, by which a name may be near, of the names to suggest.
        near = {name.casefold(): name for name in self.known} if spellings is None else spellings
        self.suggestions: tuple[str, ...] = nearest(value[:LONGEST_MESSAGE].casefold(), near)
        super().__init__(listing_message(field, value, self._rules()))

    def _rules(self) -> Iterator[str]:
        """Give what the message may say, the most telling first."""
        if not self.known:
            yield "is not known; there is none"
            return
        hints = [
            f"is not known; did you mean {either(self.suggestions[:number])}? "
            for number in range(len(self.suggestions), 0, -1)
        ]
        names = ", ".join(self.known)
        yield from (f"{hint}Known: {names}" for hint in hints)
        yield f"is not known; known: {names}"
        listing = _listing(self.known, self.listed_by)
        yield from (f"{hint}All {listing}" for hint in hints)
        yield f"is not known; all {listing}"


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


# Messages -----------------------------------------------------------------------------------


class _Shown(reprlib.Repr):
    """Values in messages, cut short: a hostile config must not make a message of gigabytes."""

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002  # what is shown has no depth
        # Python refuses to print integers of more than 4300 digits.
        return str(x) if x.bit_length() <= 256 else f"<integer of {x.bit_length()} bits>"


_REPR = _Shown()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = _LONGEST_VALUE


def shown(value: object, longest: int = _LONGEST_VALUE) -> str:
    """Return the value as messages show it: cut short to so many characters."""
    return _cut(_REPR.repr(value), longest)


def nearest(name: str, spellings: Mapping[str, str]) -> tuple[str, ...]:
    """Return what the nearest of the spellings stand for, at most three, the best first."""
    from difflib import get_close_matches

    found = get_close_matches(name, spellings, n=3)
    return tuple(dict.fromkeys(spellings[spelling] for spelling in found))


def listing_message(field: str, value: object, rules: Iterable[str]) -> str:
    """Return a message of at most 200 characters, with the first of the rules that fits into it."""
    start = f"{_cut(field, _SHORT_VALUE)} = {shown(value, _SHORT_VALUE)}: "
    message = start + fitting(rules, LONGEST_MESSAGE - len(start))
    return message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 3] + "..."


def fitting(texts: Iterable[str], longest: int) -> str:
    """Return the first of the texts that has at most so many characters, or else the last one."""
    text = ""
    for text in texts:
        if len(text) <= longest:
            break
    return text


def among(names: Sequence[str], listed_by: str | None = None) -> str:
    """Return the names as a rule lists them; where they are many, some, and what lists all.

    >>> from llmcalc.errors import among
    >>> among(["last", "all"])
    'last, all'
    >>> among([f"name-{number}" for number in range(1000)], "names()")
    'name-0, name-1, name-2, name-3, name-4, name-5, name-6 ... (all 1000 are in names())'
    """
    text = ", ".join(names)
    if len(text) <= _LONGEST_VALUE:
        return text
    lengths = accumulate(len(name) + 2 for name in names)
    some = [name for name, length in zip(names, lengths, strict=True) if length <= _SHORT_VALUE]
    text = ", ".join(some) or _cut(names[0], _SHORT_VALUE)
    return f"{text} ... (all {_listing(names, listed_by)})"


def _listing(names: Sequence[str], listed_by: str | None) -> str:
    """Return where all of the names are, without "all"."""
    return f"{len(names)} are in {listed_by or 'this error, as `known`'}"


def either(names: Sequence[str]) -> str:
    """Return the names as alternatives: ``'a' or 'b'``."""
    return " or ".join(map(repr, names))


def _cut(text: str, longest: int) -> str:
    """Return the text, without its middle where it is longer."""
    if len(text) <= longest:
        return text
    end = (longest - 3) // 2
    return f"{text[: longest - 3 - end]}...{text[-end:]}"


# Copies -------------------------------------------------------------------------------------

#: What is pickled of a value: itself, where that is possible, and its shown text.
_Pickled: TypeAlias = tuple[bytes | None, str]


def _pickled(value: object) -> _Pickled:
    import pickle

    try:
        return pickle.dumps(value), shown(value)
    except Exception:  # noqa: BLE001  # whatever the classes of a value raise
        return None, shown(value)


def _value(pickled: _Pickled) -> Any:
    import pickle

    own, text = pickled
    if own is None:
        return text
    try:
        return pickle.loads(own)  # noqa: S301  # part of what is being unpickled anyway
    except Exception:  # noqa: BLE001  # such as a class that this process does not have
        return text


def _unpickled(
    kind: type[LlmcalcError], args: Iterable[_Pickled], held: Mapping[str, _Pickled]
) -> LlmcalcError:
    return _made(kind, map(_value, args), {name: _value(one) for name, one in held.items()})


_ErrorT = TypeVar("_ErrorT", bound=LlmcalcError)


def _made(kind: type[_ErrorT], args: Iterable[Any], held: Mapping[str, Any]) -> _ErrorT:
    """Return an error as it is: its constructor, which checks and words, is not called again."""
    error = ValueError.__new__(kind, *args)
    vars(error).update(held)
    return error


def _deep(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return deepcopy(value, memo)
    except Exception:  # noqa: BLE001  # what cannot be copied is the same thing in the copy
        return value
