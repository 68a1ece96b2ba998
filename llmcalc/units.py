"""Units: byte multiples, unit types, and how a quantity is printed.

Byte multiples (plain integers, to multiply with):

* `KB`, `MB`, `GB`, `TB`: powers of 1000.
* `KiB`, `MiB`, `GiB`, `TiB`: powers of 1024.

Unit types, which tell a `llmcalc.Breakdown` of one unit from one of another, for a type checker
and at run time:

* `Bytes`, `Params`, `Flops`: counted in integers.
* `Seconds`, `TokensPerSecond`: floats.

Printing:

* `format_integer`: digits in groups of three.
* `format_quantity`: a value with its unit.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "GB",
    "KB",
    "MB",
    "TB",
    "Bytes",
    "Flops",
    "GiB",
    "KiB",
    "MiB",
    "Params",
    "Seconds",
    "TiB",
    "TokensPerSecond",
    "Unit",
    "format_integer",
    "format_quantity",
]

KB = 10**3
MB = 10**6
GB = 10**9
TB = 10**12
KiB = 2**10
MiB = 2**20
GiB = 2**30
TiB = 2**40


class Unit:
    """The base class of the unit types. They are never instantiated: the class is the unit."""

    symbol: ClassVar[str]
    #: Multiples to print in parentheses, largest first: (from this value on, size, symbol).
    multiples: ClassVar[tuple[tuple[int, int, str], ...]] = ()


class Bytes(Unit):
    """Memory, in bytes."""

    symbol: ClassVar[str] = "B"
    multiples: ClassVar[tuple[tuple[int, int, str], ...]] = (
        (TiB, TiB, "TiB"),
        (MiB, GiB, "GiB"),
    )


class Params(Unit):
    """Model parameters, in elements."""

    symbol: ClassVar[str] = "parameters"


class Flops(Unit):
    """Floating-point operations; one multiply-accumulate is two."""

    symbol: ClassVar[str] = "FLOP"


class TokensPerSecond(Unit):
    """Tokens by time, a float."""

    symbol = "tokens/s"


class Seconds(Unit):
    """Time, in seconds."""

    symbol: ClassVar[str] = "s"


def format_integer(value: int) -> str:
    """Return the digits of `value`, from five digits on in groups of three.

    >>> from llmcalc.units import format_integer
    >>> format_integer(1024), format_integer(134217728)
    ('1024', '134 217 728')
    """
    return str(value) if abs(value) < 10_000 else f"{value:,}".replace(",", " ")


def format_quantity(value: object, unit: type[Unit]) -> str:
    """Return `value` with its unit; bytes from 1 MiB on also in binary multiples.

    An array is printed as its smallest and largest element and its shape.

    >>> from llmcalc.units import Bytes, Params, format_quantity
    >>> format_quantity(134217728, Bytes)
    '134 217 728 B (0.125 GiB)'
    >>> format_quantity(8030261248, Params)
    '8 030 261 248 parameters'
    """
    if isinstance(value, int):
        text = f"{format_integer(value)} {unit.symbol}"
        for threshold, size, symbol in unit.multiples:
            if abs(value) >= threshold:
                return f"{text} ({value / size:.5g} {symbol})"
        return text
    if isinstance(value, float):
        return f"{value:.6g} {unit.symbol}"
    return f"{format_array(value)} {unit.symbol}"


def format_array(value: object) -> str:
    """Return the range and shape of an array: ``1024 ... 4096 [shape 3]``."""
    import numpy as np

    array = np.asarray(value)
    shape = "x".join(map(str, array.shape)) or "scalar"
    if not array.size:
        return f"[empty, shape {shape}]"
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        ends = f"{low:.6g}" if low == high else f"{low:.6g} ... {high:.6g}"
    else:
        first, last = format_integer(int(low)), format_integer(int(high))
        ends = first if low == high else f"{first} ... {last}"
    return f"{ends} [shape {shape}]"
