"""What enters the library: checks of fields and arguments, and calls broadcast over arrays.

* `whole_number`: one integer argument, checked.
* `positive_number`: a number above 0; `positive_numbers`: one, or an array of them.
* `tile_size`: how many tokens are computed at a time.
* `count`: a workload argument, an integer or an integer array.
* `flag_argument`: True or False.
* `choice`: one of a few strings.
* `several`: one thing or an iterable of them.
* `is_array`: whether something is an array with a dimension.
* `is_wide`: whether int64 could overflow: the one place that decides it.
* `integer_type`: what arrays of integers are made of: int64, or Python integers.
* `broadcast_arrays`: workload arguments as arrays of one shape.
* `smaller`, `larger`: the minimum and maximum, of numbers or arrays.
* `at_most`: a product, or what limits it.
* `size`, `size_or_zero`, `flag`, `one_of`, `instance_of`: `attrs` validators for the fields of
  descriptions.
* `same`: whether two values, numbers or arrays, are equal.
* `elementwise`: a scalar function over workload arguments, called for each element.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast, overload

from llmcalc.errors import InvalidValueError, UnknownNameError, among

if TYPE_CHECKING:
    from attrs import Attribute
    from numpy import integer
    from numpy.typing import NDArray
    from typing_extensions import TypeIs

    #: An array of integers: int64, or Python ints in an object array where int64 could overflow.
    IntArray: TypeAlias = NDArray[Any]
    #: A scalar integer argument; NumPy's integer scalars are accepted.
    Int: TypeAlias = int | integer[Any]
    #: What folds count in: an integer, or an array of integers.
    Number: TypeAlias = int | IntArray
    #: What they give: a number, which may be a mean or a time, or an array of such.
    Figure: TypeAlias = float | NDArray[Any]
    #: A field of a description, of whatever type, as its validator sees it.
    Field: TypeAlias = Attribute[Any]

__all__ = [
    "at_most",
    "broadcast_arrays",
    "choice",
    "count",
    "elementwise",
    "flag",
    "flag_argument",
    "instance_of",
    "integer_type",
    "is_array",
    "is_wide",
    "larger",
    "one_of",
    "positive_number",
    "positive_numbers",
    "same",
    "several",
    "size",
    "size_or_zero",
    "smaller",
    "tile_size",
    "whole_number",
]

#: Arrays are computed in int64 while no intermediate can reach this; the factor of two below
#: the type's own limit is for formulas that halve a product at the end.
INT64_SAFE = 2**62

#: No axis of a model comes near this; the limit keeps a corrupt config from passing as a model.
LARGEST_SIZE = 2**48

#: No time, rate or price comes near this; times and rates that are made of such stay finite.
LARGEST_NUMBER = 1e300

T = TypeVar("T")
N = TypeVar("N", bound="int | None")
F = TypeVar("F", bound="Figure")


def whole_number(value: object, field: str, *, minimum: int = 0) -> int:
    """Return `value` as an `int`; refuse bools, floats and what is below `minimum`.

    >>> from llmcalc.boundary import whole_number
    >>> whole_number(3, "batch")
    3
    >>> whole_number(-3, "batch")
    Traceback (most recent call last):
        ...
    llmcalc.errors.InvalidValueError: batch = -3: must be an integer of at least 0
    """
    if type(value) is int:
        number = value
    else:
        held = _held(value)
        if isinstance(held, bool):
            raise InvalidValueError(field, value, "must be an integer, not a bool")
        try:
            number = operator.index(held)
        except TypeError:
            raise InvalidValueError(
                field, value, f"must be an integer of at least {minimum}"
            ) from None
    if number < minimum:
        raise InvalidValueError(field, value, f"must be an integer of at least {minimum}")
    return number


def positive_number(value: object, field: str, *, zero: bool = False) -> float:
    """Return a finite number above 0, or with `zero` at least 0, as a float.

    >>> from llmcalc.boundary import positive_number
    >>> positive_number(3, "watts")
    3.0
    """
    number = -1.0
    if type(value) is not bool and isinstance(value, Real):
        with suppress(OverflowError):  # a larger integer than any float is refused below
            number = float(value)
    if not 0 <= number < LARGEST_NUMBER or not (number or zero):
        rule = "must be a number of at least 0" if zero else "must be a positive number"
        raise InvalidValueError(field, value, rule)
    return number


def positive_numbers(value: object, field: str) -> Figure:
    """Return a finite number above 0 as a float, or an array of such numbers as one of floats."""
    if not is_array(value):
        return positive_number(value, field)
    if value.dtype.kind not in "iuf":
        raise InvalidValueError(field, value, f"must hold numbers, not {value.dtype}")
    numbers: NDArray[Any] = value.astype("float64")
    if not ((numbers > 0) & (numbers < LARGEST_NUMBER)).all():
        raise InvalidValueError(field, value, "must hold positive numbers")
    return numbers


def tile_size(value: object, field: str) -> int | None:
    """Return how many tokens are computed at a time, from 1 to 2**48; `None` is all of them."""
    if value is None:
        return None
    number = whole_number(value, field, minimum=1)
    if number > LARGEST_SIZE:
        raise InvalidValueError(field, value, "must be at most 2**48")
    return number


def _held(value: Any) -> Any:
    """Return what an array without a dimension holds; everything else is what it is."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray) and value.ndim == 0:
        return value.item()
    return value


def count(value: object, field: str) -> Number:
    """Return a workload argument, an integer or an array of integers of at least 0, checked."""
    if type(value) is not int and is_array(value):
        return integer_array(value, field)
    return whole_number(value, field)


def flag_argument(value: object, field: str) -> bool:
    """Return `value` if it is True or False and nothing else."""
    if type(value) is not bool:
        raise InvalidValueError(field, value, "must be True or False")
    return value


def choice(
    value: object, field: str, allowed: Collection[str], *, listed_by: str | None = None
) -> str:
    """Return `value` if it is one of `allowed`, a few strings.

    Where they may be many, `listed_by` is what lists them, for the message.

    >>> from llmcalc.boundary import choice
    >>> choice("most", "logits", ("last", "all"))
    Traceback (most recent call last):
        ...
    llmcalc.errors.UnknownNameError: logits = 'most': is not known; known: all, last
    """
    if not isinstance(value, str):
        rule = f"must be one of {among(sorted(allowed), listed_by)}"
        raise InvalidValueError(field, value, rule)
    if value not in allowed:
        raise UnknownNameError(field, value, allowed, listed_by=listed_by)
    return value


def several(value: Any, field: str) -> tuple[Any, ...]:
    """Return one thing, or all of an iterable that is no text, as a tuple that is not empty.

    >>> from llmcalc.boundary import several
    >>> several("bf16", "weights"), several(["bf16", "fp8"], "weights")
    (('bf16',), ('bf16', 'fp8'))
    """
    one = isinstance(value, str) or not isinstance(value, Iterable)
    choices = (value,) if one else tuple(value)
    if not choices:
        raise InvalidValueError(field, value, "must hold at least one choice")
    return choices


def size(_instance: object, attribute: Field, value: object) -> None:
    """Check a size of a description (an `attrs` validator): a plain integer from 1 to 2**48."""
    if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
        raise InvalidValueError(attribute.name, value, "must be an int from 1 to 2**48")


def size_or_zero(_instance: object, attribute: Field, value: object) -> None:
    """Check a size of what may have none (an `attrs` validator): an integer from 0 to 2**48."""
    if type(value) is not int or not 0 <= value <= LARGEST_SIZE:
        raise InvalidValueError(attribute.name, value, "must be an int from 0 to 2**48")


def flag(_instance: object, attribute: Field, value: object) -> None:
    """Check a flag of a description (an `attrs` validator): True or False and nothing else."""
    flag_argument(value, attribute.name)


def one_of(*allowed: str) -> Callable[[object, Field, object], None]:
    """Return an `attrs` validator for one of a few strings."""

    def validate(_instance: object, attribute: Field, value: object) -> None:
        choice(value, attribute.name, allowed)

    return validate


def instance_of(*kinds: type) -> Callable[[object, Field, object], None]:
    """Return an `attrs` validator for instances of one of `kinds`."""

    def validate(_instance: object, attribute: Field, value: object) -> None:
        if not isinstance(value, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise InvalidValueError(attribute.name, value, f"must be {names}")

    return validate


def is_array(value: Any) -> TypeIs[NDArray[Any]]:
    """Whether `value` is a NumPy array with a dimension; one without is the number that it holds.

    NumPy is not imported: without it there are no arrays.
    """
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.ndim > 0


def is_wide(*bounds: int) -> bool:
    """Whether numbers of such bounds are computed as Python integers, for int64 could overflow.

    >>> from llmcalc.boundary import is_wide
    >>> is_wide(10**18), is_wide(1, 2**62)
    (False, True)
    """
    return max(bounds) >= INT64_SAFE


def integer_type(*, wide: bool) -> type[Any]:
    """Return what arrays of integers are made of: int64 or, where they are `wide`, Python's own."""
    import numpy as np

    return np.object_ if wide else np.int64


def smaller(a: F, b: F) -> F:
    """Return the smaller of two integers, or of integers and arrays element by element."""
    if is_array(a) or is_array(b):
        import numpy as np

        return cast("F", np.minimum(a, b))
    return a if a < b else b


@overload
def at_most(limit: int, number: int, each: int) -> int: ...
@overload
def at_most(limit: Number, number: Number, each: int) -> Number: ...
def at_most(limit: Number, number: Number, each: int) -> Number:
    """Return the smaller of `limit` and ``number * each``, and compute nothing larger on the way.

    >>> from llmcalc.boundary import at_most
    >>> at_most(10, 3, 3), at_most(10, 4, 3)
    (9, 10)
    """
    whole = limit // each
    fitting = smaller(number, whole)
    return fitting * each + (smaller(number, whole + 1) - fitting) * (limit - whole * each)


def larger(a: F, b: F) -> F:
    """Return the larger of two numbers, or of numbers and arrays element by element."""
    if is_array(a) or is_array(b):
        import numpy as np

        return cast("F", np.maximum(a, b))
    return a if a > b else b


def same(a: object, b: object) -> bool:
    """Whether two values are equal; arrays are when their shapes and all their elements are.

    What is not a number in both arrays is equal, so that an array equals its copies.
    """
    if is_array(a) or is_array(b):
        import numpy as np

        one, other = np.asarray(a), np.asarray(b)
        if one.shape != other.shape:
            return False
        differ = one != other
        if not differ.any():
            return True
        one, other = one[differ], other[differ]
        return bool(((one != one) & (other != other)).all())  # noqa: PLR0124  # not a number
    return bool(a == b)


def elementwise(function: Callable[..., N], /, **workload: object) -> N | IntArray:
    """Return ``function(**workload)`` for integers; for arrays, an array of its results.

    `function` is called with Python integers. The array is int64 where every result fits, and an
    object array otherwise (large integers, or `None`).
    """
    if not any(is_array(value) for value in workload.values()):
        return function(**{field: whole_number(v, field) for field, v in workload.items()})
    import numpy as np

    arrays = broadcast_arrays(**workload)
    points = zip(*(array.astype(np.object_).ravel() for array in arrays.values()), strict=True)
    results = [function(**dict(zip(arrays, point, strict=True))) for point in points]
    small = all(result is not None and not is_wide(abs(result)) for result in results)
    shape = next(iter(arrays.values())).shape
    answer: IntArray = np.empty(shape, dtype=integer_type(wide=not small))
    answer.ravel()[:] = results
    return answer


def broadcast_arrays(**workload: object) -> dict[str, IntArray]:
    """Return workload arguments as arrays of integers of one shape, checked."""
    import numpy as np

    arrays = {field: integer_array(value, field) for field, value in workload.items()}
    try:
        broadcast = np.broadcast_arrays(*arrays.values())
    except ValueError:
        shapes = {field: array.shape for field, array in arrays.items()}
        raise InvalidValueError(", ".join(arrays), shapes, "shapes must broadcast") from None
    return dict(zip(arrays, broadcast, strict=True))


def integer_array(value: object, field: str) -> IntArray:
    """Return `value` as an array of integers of at least 0; refuse every other kind of element."""
    import numpy as np

    if not is_array(value):
        return np.asarray(whole_number(value, field), dtype=np.object_)
    value = np.asarray(value)
    if value.dtype.kind == "O":
        flat = [whole_number(element, field) for element in value.ravel()]
        copy = np.empty(value.shape, dtype=np.object_)
        copy.ravel()[:] = flat
        return copy
    if value.dtype.kind not in "iu":
        raise InvalidValueError(field, value, f"must hold integers, not {value.dtype}")
    if value.size and value.min() < 0:
        raise InvalidValueError(field, int(value.min()), "must hold integers of at least 0")
    # uint64 has values that int64 lacks; Python integers hold both.
    return value.astype(np.object_) if value.dtype == np.uint64 else value


def largest_element(array: IntArray) -> int:
    """Return the largest element as a Python integer; 0 for an empty array."""
    return int(array.max()) if array.size else 0
