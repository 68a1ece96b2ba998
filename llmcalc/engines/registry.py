"""The engines by name: one vocabulary for layouts, budgets, forecasts and plans.

* `get`: an engine by its name, in whatever case it is written.
* `names`: the names that it knows.
* `DEFAULT`: the engine of every question that names none.
* `versions`: the known versions of an engine; `of_version`: the one to take for a version.
* `canonical`: a name as it is listed.
* `placement_of`: how an engine places a model; `with_pool`, `with_calibration`: an engine that has
  a rule for a cache pool, or a calibration. Each refuses the others.

A name is that of an engine (``vllm``: the newest version that was measured), or that of one
version (``vllm-0.19``). A version that nobody looked at is not taken for its neighbour.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, Final

import attrs

from llmcalc.engines import calibrated as calibrated_engines
from llmcalc.engines import llama_cpp, sglang, tensorrt_llm, vllm
from llmcalc.engines.engine import ActivationRule, Engine, Mxfp4Kernels, numbers_of
from llmcalc.engines.placement import GENERIC, Placement
from llmcalc.errors import InvalidValueError, UnknownNameError

__all__ = [
    "DEFAULT",
    "with_calibration",
    "canonical",
    "get",
    "names",
    "of_version",
    "placement_of",
    "versions",
    "with_pool",
]

#: The engine of budgets and allocations that name none: the version that was measured most.
DEFAULT: Final = "vllm-0.19"

#: Where engines are described, in the order in which they are listed: a module for each, whose
#: ``ENGINES`` are versions, or what the versions in the data have in common.
_HOMES: Final[tuple[ModuleType, ...]] = (vllm, sglang, tensorrt_llm, llama_cpp, calibrated_engines)


def get(engine: str | Engine, field: str = "engine") -> Engine:
    """Return the engine with that name, in whatever case; an `Engine` is returned as it is.

    The name of a family stands for the newest version that was measured, or where none was, for
    the newest one. Raises `llmcalc.LlmcalcError`, in at most 200 characters, for an unknown name.

    >>> from llmcalc import engines
    >>> engines.get("vLLM").name, engines.get("TensorRT-LLM").name, engines.get("llama.cpp").name
    ('vllm-0.19', 'tensorrt-llm-1.2', 'llama.cpp')
    >>> engines.get("vlm")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    llmcalc.errors.UnknownNameError: engine = 'vlm': is not known; did you mean 'vllm'? All ...
    """
    if isinstance(engine, Engine):
        return engine
    table = _table()
    return table[canonical(engine, field)]


def canonical(engine: str, field: str = "engine") -> str:
    """Return a name as it is listed: in lower case. Raises as `get` does.

    >>> from llmcalc import engines
    >>> engines.canonical("vLLM-0.19"), engines.canonical("VLLM")
    ('vllm-0.19', 'vllm')
    """
    table = _table()
    if not isinstance(engine, str):
        raise InvalidValueError(field, engine, "must be the name of an engine, or an Engine")
    if engine in table:
        return engine
    name = engine.casefold()
    if name not in table:
        raise UnknownNameError(field, engine, table, listed_by="llmcalc.engines.names()")
    return name


def names() -> tuple[str, ...]:
    """Return the names of the known engines, each followed by those of its versions.

    >>> from llmcalc import engines
    >>> engines.names()[:3], engines.names()[-2:]
    (('vllm', 'vllm-0.6', 'vllm-0.8'), ('lmdeploy', 'tgi'))
    """
    return tuple(_table())


def versions(engine: str) -> tuple[Engine, ...]:
    """Return the known versions of an engine, the oldest first; one without any is its own.

    >>> from llmcalc import engines
    >>> [one.name for one in engines.versions("SGLang")]
    ['sglang-0.5']
    """
    return _versions()[get(engine).family]


def of_version(engine: str, version: str | None) -> Engine:
    """Return what to take for a version of an engine, which may be one that is not known.

    It is the last one before it, or else the first one, and then without what was measured of
    that version alone. Without a `version` it is the newest one.

    >>> from llmcalc import engines
    >>> engines.of_version("vllm", "0.19.1").name, engines.of_version("vllm", "0.7.3").name
    ('vllm-0.19', 'vllm-0.6')
    """
    several = versions(engine)
    numbers = numbers_of(version or "")
    if not numbers:
        return several[-1]
    earlier = [one for one in several if one.version_numbers <= numbers]
    found = earlier[-1] if earlier else several[0]
    return found if found.version_numbers == numbers else found.without_measurements()


def placement_of(engine: str | Engine | None, field: str = "engine") -> Placement:
    """Return how an engine places a model; `None` is no particular one.

    Raises `llmcalc.LlmcalcError`, with the engines that it is known of, where it is not known.

    >>> from llmcalc import engines
    >>> engines.placement_of("sglang").last_stages, engines.placement_of(None).last_stages
    (True, False)
    >>> engines.placement_of("tgi")
    Traceback (most recent call last):
        ...
    llmcalc.errors.InvalidValueError: engine = 'tgi': has no known placement; sglang, vllm have one
    """
    if engine is None:
        return GENERIC
    found = get(engine, field).placement
    if found is None:
        known = _known(lambda one: one.placement is not None)
        raise InvalidValueError(field, str(engine), f"has no known placement; {known} have one")
    return found


def with_pool(engine: str | Engine, field: str = "engine") -> Engine:
    """Return the engine if it has a rule for a cache pool; an `Engine` of your own needs one, too.

    Raises `llmcalc.LlmcalcError`, with the engines that have one, where it has none.

    >>> from llmcalc import engines
    >>> engines.with_pool("VLLM").pool
    OfVisible()
    >>> engines.with_pool("exllama")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    llmcalc.errors.InvalidValueError: engine = 'exllama': has no rule for a cache pool; ... have one
    """
    found = get(engine, field)
    if found.pool_rule is None:
        known = _known(lambda one: one.pool_rule is not None)
        rule = f"has no rule for a cache pool; {known} have one"
        raise InvalidValueError(field, found.name, rule)
    return found


def with_calibration(engine: str | Engine, field: str = "engine") -> Engine:
    """Return the engine if forecasts are calibrated on it.

    Raises `llmcalc.LlmcalcError`, with the engines that are, where it is not.

    >>> from llmcalc import engines
    >>> engines.with_calibration("vllm-0.6").calibration
    'vLLM'
    """
    found = get(engine, field)
    if found.calibration is None:
        known = _known(lambda one: one.calibration is not None)
        raise InvalidValueError(field, found.name, f"is not calibrated; {known} are")
    return found


def placed() -> dict[str, Placement]:
    """Return how engines place a model, by the names of those of which that is known."""
    found = {name: several[-1].placement for name, several in _versions().items()}
    return {name: rules for name, rules in found.items() if rules is not None}


def _known(has: Callable[[Engine], bool]) -> str:
    return ", ".join(sorted(name for name, several in _versions().items() if has(several[-1])))


@cache
def _versions() -> dict[str, tuple[Engine, ...]]:
    """Return the versions of every engine, the oldest first."""
    import json
    from pathlib import Path

    data = Path(__file__).parent.parent / "data" / "engines.json"
    text = data.read_text(encoding="utf-8")
    rows: dict[str, dict[str, dict[str, Any]]] = json.loads(text)
    found: dict[str, list[Engine]] = {}
    for home in _HOMES:
        for engine in home.ENGINES:
            made = [_version(engine, *row) for row in rows.pop(engine.name, {}).items()]
            found.setdefault(engine.family, []).extend(made or [engine])
    return {
        name: tuple(sorted(several, key=lambda one: one.version_numbers))
        for name, several in found.items()
    }


@cache
def _table() -> dict[str, Engine]:
    """Return the engines by every name that there is."""
    found = {}
    for name, several in _versions().items():
        measured = [one for one in several if one.is_measured]
        found[name] = (measured or several)[-1]
        found |= {one.name: one for one in several}
    return found


def _version(engine: Engine, version: str, row: dict[str, Any]) -> Engine:
    """Return one version of an engine, as a row of the data describes it."""
    fields = dict(row)
    if "activation" in fields:
        fields["activation"] = ActivationRule(**fields["activation"])
    if "mxfp4_kernels" in fields:
        fields["mxfp4_kernels"] = Mxfp4Kernels(**fields["mxfp4_kernels"])
    if "non_torch_bytes" in fields:
        table = fields["non_torch_bytes"]
        fields["non_torch_bytes"] = {int(degree): number for degree, number in table.items()}
    fields["sources"] = {**engine.sources, **fields["sources"]}
    name = f"{engine.name}-{version}" if version else engine.name
    return attrs.evolve(engine, name=name, family=engine.name, version=version, **fields)
