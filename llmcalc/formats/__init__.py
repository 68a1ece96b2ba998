"""Storage formats, and schemes that say which format each tensor of a model has.

* `Format`, `Extra`: a format, as blocks of elements and what is stored beside them.
* `get`, `names`: formats by their names.
* `packed_integers`: formats of integers with scales for groups.
* `Scheme`, `Coverage`, `Rule`, `Uniform`: which format each stored tensor has.
* `name_of`: the name of either.
* `scheme`, `scheme_names`: schemes by their names, and what a model's config states.

Each name is imported from its module when it is first asked for.
"""

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.formats.blocks import Extra, Format, find, get, names, packed_integers
    from llmcalc.formats.coverage import Coverage, Rule, Scheme, Uniform
    from llmcalc.formats.named import name_of, scheme, scheme_names

__all__ = [
    "Coverage",
    "Extra",
    "Format",
    "Rule",
    "Scheme",
    "Uniform",
    "find",
    "get",
    "name_of",
    "names",
    "packed_integers",
    "scheme",
    "scheme_names",
]

exports(
    __name__,
    {
        "blocks": ("Extra", "Format", "find", "get", "names", "packed_integers"),
        "coverage": ("Coverage", "Rule", "Scheme", "Uniform"),
        "named": ("name_of", "scheme", "scheme_names"),
    },
    globals(),
)
