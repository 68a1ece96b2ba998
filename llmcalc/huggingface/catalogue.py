"""Models by name, without network.

* `find`: the entry that a name means.
* `names`: the hub ids of all entries.
* `unknown`: the error for a name that means none, with the names that are near.
* `Entry`: a model's shape, its source, and the total that was published.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from llmcalc.errors import UnknownNameError

__all__ = ["Entry", "find", "names", "unknown"]

_FILE = os.path.join(os.path.dirname(__file__), "catalogue.json")  # noqa: PTH118, PTH120


class Entry(NamedTuple):
    """A published model: its hub id, its shape as a ``config.json`` states it, and the sources.

    `published` is the exact total that was published, where one is known: `published_source` says
    which file prints it, and `published_counts` what it counts: the parameters, and what else
    beside them.
    """

    name: str
    config: Mapping[str, object]
    source: str
    aliases: tuple[str, ...] = ()
    published: int | None = None
    published_source: str | None = None
    published_counts: str | None = None


def find(name: str) -> Entry | None:
    """Return the entry that `name` means, `None` where there is none.

    A name is a hub id, the part of one behind the slash, or a short name. Case, and what stands
    between letters and digits, make no difference; nothing else is forgiven.

    >>> from llmcalc.huggingface import catalogue
    >>> catalogue.find("Llama 3 8B").name
    'meta-llama/Meta-Llama-3-8B'
    """
    return _by_spelling().get(_spelling(name))


def names() -> tuple[str, ...]:
    """Return the hub ids of all entries.

    >>> from llmcalc.huggingface import catalogue
    >>> "openai/gpt-oss-120b" in catalogue.names()
    True
    """
    return tuple(_entries())


def unknown(name: str) -> UnknownNameError:
    """Return the error for a name that means no entry; it suggests the nearest ones.

    >>> from llmcalc.huggingface import catalogue
    >>> catalogue.unknown("llama-3-9b").suggestions[0]
    'meta-llama/Meta-Llama-3-8B'
    """
    near: dict[str, str] = {}
    for entry in _entries().values():
        for spelling in (entry.name, *entry.aliases):
            near[spelling.casefold()] = entry.name
            near.setdefault(spelling.rpartition("/")[2].casefold(), entry.name)
    listed_by = f"{__name__}.names()"
    return UnknownNameError("source", name, _entries(), listed_by=listed_by, spellings=near)


@cache
def _entries() -> dict[str, Entry]:
    with open(_FILE, encoding="utf-8") as file:  # noqa: PTH123  # pathlib takes longer to import
        values: dict[str, dict[str, Any]] = json.load(file)
    return {
        name: Entry(name=name, aliases=tuple(entry.pop("aliases", ())), **entry)
        for name, entry in values.items()
    }


@cache
def _by_spelling() -> dict[str, Entry]:
    """Give every entry under each spelling of each of its names."""
    spellings: dict[str, Entry] = {}
    for entry in _entries().values():
        for name in (entry.name, *entry.aliases):
            spellings[_spelling(name)] = entry
            # Behind the slash, unless that is the name of another model, too.
            spellings.setdefault(_spelling(name.rpartition("/")[2]), entry)
    return spellings


def _spelling(name: str) -> str:
    return re.sub(r"[^a-z0-9/.]", "", name.casefold())
