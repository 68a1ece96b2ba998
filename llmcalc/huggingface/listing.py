"""What `llmcalc.huggingface.supported` lists: model types, what they are made of, how checked.

* `Supported`: the listing, a mapping from each ``model_type``.
* `SupportedType`: what is known of one.
* `Checked`: what of it was held against transformers.

What a type is made of, and how it was checked, is in ``supported.json``, which
``scripts/supported.py`` writes from the measured configurations and from the tests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from llmcalc.huggingface.registry import READERS, SAME_AS

__all__ = ["Checked", "Supported", "SupportedType"]

_FILE = os.path.join(os.path.dirname(__file__), "supported.json")  # noqa: PTH118, PTH120


class Checked(NamedTuple):
    """How a model type was checked.

    `configs` is the number of configurations, class default and published ones, that were held
    against modules of transformers; `equal` names the quantities that are equal, as integers, for
    all of them: ``"parameters"``, ``"groups"``, ``"active parameters"``, and for a small model
    that was run ``"caches"`` and ``"flops"``. `remarks` says what could not be compared, or only
    in part, and why.
    """

    configs: int
    equal: tuple[str, ...]
    remarks: tuple[str, ...]


class SupportedType(NamedTuple):
    """A model type that `llmcalc.load_model` reads.

    `layer_kinds` are the labels of its layers, as breakdowns have them. `cache_kinds` are the
    roles of its caches, each with its span, such as ``"kv window"``; what has one size for all
    contexts is without. `parts` names the classes of `llmcalc.spec` that it is made of. A
    configuration has some of these kinds: the lists are of all that were measured. `same_as` is
    the type whose code it has, where that is another one.
    """

    model_type: str
    layer_kinds: tuple[str, ...]
    cache_kinds: tuple[str, ...]
    parts: tuple[str, ...]
    checked: Checked
    same_as: str | None = None


class Supported(Mapping[str, SupportedType]):
    """The model types that `llmcalc.load_model` reads, in order.

    >>> from llmcalc import huggingface
    >>> huggingface.supported()["olmo_hybrid"].cache_kinds
    ('conv', 'state', 'kv full')
    """

    __slots__ = ()

    def __getitem__(self, model_type: str) -> SupportedType:
        return _types()[model_type]

    def __contains__(self, model_type: object) -> bool:
        return model_type in READERS or model_type in SAME_AS

    def __iter__(self) -> Iterator[str]:
        return iter(sorted((*READERS, *SAME_AS)))

    def __len__(self) -> int:
        return len(READERS) + len(SAME_AS)

    def __repr__(self) -> str:
        return f"<{len(self)} supported model types>"


@cache
def _types() -> dict[str, SupportedType]:
    with open(_FILE, encoding="utf-8") as file:  # noqa: PTH123  # pathlib takes longer to import
        listed: dict[str, dict[str, Any]] = json.load(file)
    return {
        model_type: SupportedType(
            model_type=model_type,
            layer_kinds=tuple(values["layer_kinds"]),
            cache_kinds=tuple(values["cache_kinds"]),
            parts=tuple(values["parts"]),
            checked=Checked(values["configs"], tuple(values["equal"]), tuple(values["remarks"])),
            same_as=SAME_AS.get(model_type),
        )
        for model_type, values in listed.items()
    }
