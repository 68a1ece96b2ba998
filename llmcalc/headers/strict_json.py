"""JSON of headers and of indices, from files that may lie.

* `json_object`: the object that a text is, or an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from llmcalc.errors import InvalidValueError, LlmcalcError
from llmcalc.headers.opened import OpenFile

__all__ = ["json_object"]

#: JSON with more commas and brackets than this is no header: it would take gigabytes as objects.
MOST_JSON_ITEMS: Final = 2**21


def json_object(text: bytes, file: OpenFile) -> dict[str, object]:
    """Return a JSON object; refuse what is not one, repeats a key, or is all brackets.

    >>> import io
    >>> from llmcalc.headers import OpenFile
    >>> from llmcalc.headers.strict_json import json_object
    >>> json_object(b'{"a": 1}', OpenFile(stream=io.BytesIO(), size=0, title="a.json"))
    {'a': 1}
    """
    items = text.count(b",") + text.count(b"[") + text.count(b"{")
    if items > MOST_JSON_ITEMS:
        raise file.wrong(f"its header has more than {MOST_JSON_ITEMS} items")
    try:
        found: object = json.loads(
            text.decode(), object_pairs_hook=lambda pairs: _distinct(pairs, file)
        )
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, LlmcalcError):
            raise
        raise file.wrong(f"its header is not JSON: {problem}") from problem
    if not isinstance(found, dict):
        raise file.wrong("its header must be a JSON object")
    return found


def _distinct(pairs: Sequence[tuple[str, object]], file: OpenFile) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = ""
        for twice, _ in pairs:
            if twice in seen:
                break
            seen.add(twice)
        raise InvalidValueError("name", twice, f"is given twice in {file.name}")
    return found
