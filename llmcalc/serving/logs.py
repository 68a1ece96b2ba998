"""Start-up logs: the memory figures that engines print, in bytes, and what contradicts what.

* `parse_log`: the figures of a log of vLLM, SGLang, TensorRT-LLM or llama.cpp.
* `EngineLog`: these figures and settings; `EngineLog.identities` checks them against each other.

Units are read as the engines mean them: every "GB" of vLLM and SGLang is a GiB (they divide by
2**30), and MiB are MiB. Figures are those of one rank; the log says of which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Final

import attrs

from llmcalc.described import Described
from llmcalc.engines.registry import get
from llmcalc.errors import InvalidValueError, LlmcalcError, UnknownNameError
from llmcalc.serving.figures import Figure, Identity
from llmcalc.serving.identities import identities
from llmcalc.serving.wordings import (
    COLOUR,
    PROCESS,
    SETTINGS,
    SIZES,
    STATES,
    VERSION,
    WORDINGS,
    WORKER,
    Wording,
)
from llmcalc.units import GiB, KiB, MiB

__all__ = ["EngineLog", "parse_log"]

#: No start-up log is longer; the limits keep hostile input from taking long.
_LONGEST_LOG: Final = 16 * MiB
_LONGEST_LINE: Final = 20_000
_SHORTEST_LINE: Final = 6
_MOST_RANKS: Final = 4096
#: More starts than one log has; each is parsed.
_MOST_STARTS: Final = 1000

_UNITS: Final = {
    "tib": 1024 * GiB, "gib": GiB, "gb": GiB, "mib": MiB, "mb": MiB, "kib": KiB, "kb": KiB,
}  # fmt: skip


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class EngineLog(Described):
    """The figures and settings of a start-up log.

    `figures` are in the order of the log; sizes are bytes. `settings` are what the log says of
    the model, the layout and the limits. Of a log of several `starts` they are those of number
    `start`, the last one that came as far as the number of tokens, or else the last one that has
    figures.
    """

    engine: str
    version: str | None
    model: str | None
    settings: Mapping[str, str | int] = attrs.field(hash=False)
    figures: tuple[Figure, ...] = attrs.field(repr=False)
    starts: int = 1
    start: int = 1

    def ranks(self, name: str) -> tuple[Figure, ...]:
        """Return the last figure of that name that each rank prints."""
        return tuple(several[-1] for several in self._by_name.get(name, {}).values())

    @cached_property
    def _by_name(self) -> dict[str, dict[str, list[Figure]]]:
        """All figures, by their name and rank."""
        found: dict[str, dict[str, list[Figure]]] = {}
        for figure in self.figures:
            found.setdefault(figure.name, {}).setdefault(figure.rank, []).append(figure)
        return found

    def every(self, name: str, rank: str) -> tuple[Figure, ...]:
        """Return all figures of that name that a rank prints, in the order of the log."""
        return tuple(self._by_name.get(name, {}).get(rank, ()))

    def figure(self, name: str, rank: str | None = None) -> Figure | None:
        """Return the figure of that name, `None` where the log has none.

        Without a `rank`, where ranks differ, it is that of the rank whose pool is the smallest,
        if the log says which that is, or else the first one's.
        """
        by_rank = self._by_name.get(name, {})
        if rank is None and by_rank:
            rank = self.tightest_rank if self.tightest_rank in by_rank else next(iter(by_rank))
        several = by_rank.get(rank or "")
        return several[-1] if several else None

    @cached_property
    def tightest_rank(self) -> str | None:
        """The rank that has least left for the pool, where the log says so."""
        used = {figure.rank: figure.value for figure in self.ranks("non_cache")}
        return max(used, key=lambda rank: used[rank]) if used else None

    def value(self, name: str) -> float | None:
        """Return the value of a figure or setting of that name; `None` where there is none."""
        figure = self.figure(name)
        if figure is not None:
            return figure.value
        setting = self.settings.get(name)
        return setting if isinstance(setting, int) else None

    def count(self, name: str) -> int | None:
        """Return a count: `value` as an integer."""
        found = self.value(name)
        return None if found is None else int(found)

    def identities(self) -> tuple[Identity, ...]:
        """Return what must hold between the figures, for each rank that prints them.

        Sums may differ by half a unit of the last digit of each of their terms.
        """
        return tuple(identities(self))

    def broken(self) -> tuple[Identity, ...]:
        """Return the identities that do not hold."""
        return tuple(identity for identity in self.identities() if not identity.holds)


def parse_log(text: str, engine: str | None = None) -> EngineLog:
    """Return the figures of a start-up log of vLLM, SGLang, TensorRT-LLM or llama.cpp.

    Which `engine` wrote it is told from its words, unless it is given: one of those, in whatever
    case and version. Old and new wordings of
    vLLM are understood. Of a log in which the engine started several times the figures are those
    of one start: see `EngineLog`. Raises `llmcalc.LlmcalcError` for a text without memory figures.

    >>> from llmcalc import serving
    >>> log = serving.parse_log('''
    ... INFO worker.py:267] the current vLLM instance can use total_gpu_memory (79.15GiB)
    ...  x gpu_memory_utilization (0.70) = 55.40GiB
    ... INFO worker.py:267] model weights take 8.63GiB; non_torch_memory takes 0.09GiB;
    ...  PyTorch activation peak memory takes 1.16GiB;
    ...  the rest of the memory reserved for KV Cache is 45.21GiB.
    ... ''')
    >>> log.figure("weights").text, log.figure("weights").value
    ('8.63GiB', 9266391941)
    >>> [str(identity) for identity in log.broken()]
    ['pool = requested - weights - activation - non-torch: 45.21 GiB != 45.52 GiB']
    """
    if not isinstance(text, str):
        raise InvalidValueError("log_text", text, "must be the text of a log")
    if len(text) > _LONGEST_LOG:
        raise InvalidValueError(
            "log_text", len(text), f"must have at most {_LONGEST_LOG} characters"
        )
    name = _writer(text) if engine is None else _named(engine)
    wording = WORDINGS[name]
    lines = list(_lines(text, wording))
    workers = {found["pid"]: found["rank"] for found in WORKER.finditer(text) if found["rank"]}
    ranked = [(line, _rank(line, wording, workers)) for line in lines]
    begins = _begins(ranked, wording)
    found = [
        _log_of(ranked[begin:end], name)
        for begin, end in zip(begins, [*begins[1:], len(ranked)], strict=True)
    ]
    started = [number for number, log in enumerate(found) if log.figures]
    if not started:
        raise LlmcalcError(f"log_text: no memory figures of {name} are in it")
    complete = [number for number in started if found[number].figure("tokens") is not None]
    number = (complete or started)[-1]
    return attrs.evolve(found[number], starts=len(found), start=number + 1)


def _begins(lines: list[tuple[str, str]], wording: Wording) -> list[int]:
    """Return the numbers of the lines at which a start begins; the first one begins the log."""
    for words in wording.starts:
        pattern = re.compile(words)
        begins: list[int] = []
        seen: set[tuple[str, str]] = set()
        for number, (line, rank) in enumerate(lines):
            if pattern.search(line):
                named = PROCESS.match(line)
                process = named[1] if named else "", rank
                if process in seen or not begins:
                    begins.append(number)
                    seen.clear()
                seen.add(process)
        if len(begins) > _MOST_STARTS:
            rule = f"must be of at most {_MOST_STARTS} starts of the engine"
            raise InvalidValueError("log_text", len(begins), rule)
        if begins:
            return [0, *begins[1:]]
    return [0]


def _log_of(lines: list[tuple[str, str]], engine: str) -> EngineLog:
    """Return what the lines of one start say; it may have no figures."""
    wording = WORDINGS[engine]
    patterns = [(words, re.compile(pattern), groups) for words, pattern, groups in wording.patterns]
    figures: list[Figure] = []
    settings: dict[str, str | int] = {}
    version = None
    ranks: set[str] = set()
    sums: dict[tuple[str, str], Figure] = {}
    for line, rank in lines:
        for words, pattern, groups in patterns:
            if words in line:
                for match in pattern.finditer(line):
                    figures += _read(match, groups, rank, settings, sums)
        if STATES.search(line):
            _read_settings(line, settings)
        found = None if version else VERSION.search(line)
        version = found[1] if found else version
        ranks.add(rank)
        if len(ranks) > _MOST_RANKS:
            raise InvalidValueError(
                "log_text", len(ranks), f"must be of at most {_MOST_RANKS} processes"
            )
    figures += sums.values()
    if wording.prints_cells:
        figures = list(_joined(figures, wording))
    model = settings.get("model")
    return EngineLog(
        engine=engine,
        version=version,
        model=model if isinstance(model, str) else None,
        settings=settings,
        figures=tuple(figures),
    )


def _read_settings(line: str, settings: dict[str, str | int]) -> None:
    """Keep what the line says of settings that no earlier one stated."""
    for name, expression in SETTINGS.items():
        stated = None if name in settings else re.search(expression, line)
        if stated:
            settings[name] = stated[1]
    for name, expression in SIZES.items():
        stated = None if name in settings else re.search(expression, line)
        if stated:
            settings[name] = int(stated[1])


def _writer(text: str) -> str:
    """Return the name of the engine that wrote a log, told from its words."""
    counts = {name: len(re.findall(one.tells, text)) for name, one in WORDINGS.items()}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        titles = " or ".join(get(name).title for name in WORDINGS)
        raise LlmcalcError(f"log_text: no line of {titles} is in it; say which engine wrote it")
    return best


def _named(engine: str) -> str:
    """Return the name of the engine that is said to have written a log."""
    try:
        family = get(engine).family
    except UnknownNameError:
        family = ""
    if family not in WORDINGS:
        raise InvalidValueError("engine", engine, f"must be one of {', '.join(WORDINGS)}")
    return family


def _lines(text: str, wording: Wording) -> Iterator[str]:
    """Give the lines of a log."""
    text = COLOUR.sub("", text.replace("\r\n", "\n"))
    if wording.broken is not None:
        text = wording.broken.sub(" ", text)
    for line in text.splitlines():
        if len(line) > _SHORTEST_LINE:
            yield line[:_LONGEST_LINE]


def _rank(line: str, wording: Wording, workers: Mapping[str, str]) -> str:
    """Return what the line calls the process that wrote it.

    A worker that only says its process number has the name that it states elsewhere.
    """
    if wording.process is not None:
        named = wording.process.search(line[:300])
        return named[1] if named else ""
    rank = ""
    for found in WORKER.finditer(line[:300]):  # the innermost process stands last
        pid = found["pid"] or ""
        if found["rank"]:
            rank = found["rank"].replace("rank=", "rank ")
        elif not found["core"]:
            rank = workers.get(pid) or (f"pid {pid}" if pid else rank)
    return rank


def _joined(figures: list[Figure], wording: Wording) -> Iterator[Figure]:
    """Give the figures with one cache for each rank, and its tokens.

    Where there are drafts, the model's own are the first ones: a cache, or one for windowed layers
    and one for the others.
    """
    pools = 2 if any(figure.name == "window_tokens" for figure in figures) else 1
    parts: dict[tuple[str, str], list[Figure]] = {}
    cells: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.name == "cells":
            cells.setdefault(figure.rank, []).append(figure)
        elif wording.prints_drafts and figure.name in {"k_cache", "v_cache", "pool"}:
            parts.setdefault((figure.name, figure.rank), []).append(figure)
            continue
        yield figure
    for (name, rank), several in parts.items():
        own = several[:pools]
        yield Figure(
            name,
            sum(figure.value for figure in own),
            " + ".join(figure.text for figure in own),
            rank,
            sum(figure.within for figure in own),
        )
    if not any(figure.name == "tokens" for figure in figures):
        for several in cells.values():
            own = several[:pools] if wording.prints_drafts else several
            yield attrs.evolve(max(own, key=lambda figure: figure.value), name="tokens")


def _read(
    match: re.Match[str],
    groups: tuple[tuple[str, str], ...],
    rank: str,
    settings: dict[str, str | int],
    sums: dict[tuple[str, str], Figure],
) -> Iterator[Figure]:
    values = iter(match.groups())
    for name, kind in groups:
        text = next(values)
        unit = next(values) if kind in {"size", "sum"} else None
        if text is None:
            continue
        if kind == "word":
            settings.setdefault(name, text)
        elif kind == "count":
            yield Figure(name, int(text.replace(",", "")), text, rank)
        elif kind == "ratio":
            yield Figure(name, float(text), text, rank, _half_digit(text))
        elif kind == "gib":
            yield _size(name, text, "GiB", rank)
        elif kind == "size":
            yield _size(name, text, str(unit), rank)
        else:
            figure = _size(name, text, str(unit), rank)
            before = sums.get((name, rank))
            if before is None:
                sums[name, rank] = figure
            else:
                sums[name, rank] = Figure(
                    name,
                    before.value + figure.value,
                    f"{before.text} + {figure.text}",
                    rank,
                    before.within + figure.within,
                )


def _size(name: str, text: str, unit: str, rank: str) -> Figure:
    scale = _UNITS[unit.lower()]
    return Figure(
        name, round(float(text) * scale), f"{text}{unit}", rank, _half_digit(text) * scale
    )


def _half_digit(text: str) -> float:
    """Return half a unit of the last printed digit."""
    decimals = len(text.partition(".")[2])
    return float(0.5 * 10**-decimals)
