"""Identities: what must hold between the printed figures of a start.

* `identities`: all of them, for each rank that prints the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import attrs

from llmcalc.serving.figures import Figure, Identity
from llmcalc.serving.wordings import WORDINGS
from llmcalc.units import MiB

__all__ = ["identities"]


class Log(Protocol):
    """The figures of a log, as `llmcalc.serving.EngineLog` has them."""

    @property
    def engine(self) -> str:
        """The engine that wrote it."""
        ...

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures, in the order of the log."""
        ...

    def figure(self, name: str, rank: str | None = None) -> Figure | None:
        """Return the last figure of that name."""
        ...

    def every(self, name: str, rank: str) -> tuple[Figure, ...]:
        """Return all figures of that name that a rank prints."""
        ...


def identities(log: Log) -> Iterator[Identity]:
    """Give what must hold between the figures of a log, for each rank that prints them.

    >>> from llmcalc.serving import parse_log
    >>> from llmcalc.serving.identities import identities
    >>> log = parse_log('''
    ... total_gpu_memory (79.15GiB) x gpu_memory_utilization (0.70) = 55.40GiB
    ... ''', engine="vllm")
    >>> [str(one) for one in identities(log)]
    ['requested = visible x utilisation: 55.40 GiB = 55.41 GiB']
    """
    everywhere = {figure.rank for figure in log.figures}
    for rank in sorted(everywhere):
        yield from _budget_identities(log, rank)
        yield from _pool_identities(log, rank)
        yield from _repeated(log, rank)


#: What vLLM prints in more than one line of a start.
_STATED_AGAIN: Final = (
    "visible", "share", "free_at_start", "requested", "weights", "activation", "non_torch",
    "consumed", "pool", "tokens", "graphs", "graphs_estimated",
)  # fmt: skip


def _repeated(log: Log, rank: str) -> Iterator[Identity]:
    """Give the figures that one process prints twice: both must be the same."""
    if not WORDINGS[log.engine].repeats_figures:
        return
    for name in _STATED_AGAIN:
        found = log.every(name, rank)
        if len(found) > 1:
            low, high = min(found, key=_by_value), max(found, key=_by_value)
            yield Identity(
                name=f"{name} is the same each time",
                rank=rank,
                left=low.value,
                right=high.value,
                within=low.within + high.within,
            )


def _by_value(figure: Figure) -> float:
    return figure.value


def _budget_identities(log: Log, rank: str) -> Iterator[Identity]:
    def find(name: str) -> Figure | None:
        return log.figure(name, rank) or (log.figure(name, "") if rank else None)

    visible, share = find("visible"), find("share") or log.figure("share")
    requested = find("requested")
    if visible and share and requested:
        yield Identity(
            name="requested = visible x utilisation",
            rank=rank,
            left=requested.value,
            right=visible.value * share.value,
            within=requested.within + visible.within * share.value + visible.value * share.within,
        )
    found = [find(name) for name in ("weights", "activation", "non_torch")]
    parts = [figure for figure in found if figure is not None]
    if len(parts) == len(found):
        used = sum(part.value for part in parts)
        within = sum(part.within for part in parts)
        total = find("non_cache")
        if total:
            yield Identity(
                name="non-cache total = weights + activation + non-torch",
                rank=rank,
                left=total.value,
                right=used,
                within=within + total.within,
            )
        pool = find("pool") or find("pool_in_use")
        if pool and requested:
            identity = Identity(
                name="pool = requested - weights - activation - non-torch",
                rank=rank,
                left=pool.value,
                right=requested.value - used,
                within=within + requested.within + pool.within,
            )
            graphs = find("graphs_estimated")
            if not identity.holds and graphs:
                subtracted = attrs.evolve(
                    identity,
                    name=f"{identity.name} - graphs",
                    right=identity.right - graphs.value,
                    within=identity.within + graphs.within,
                )
                identity = subtracted if subtracted.holds else identity
            yield identity
    yield from _later_identities(log, rank)
    free = find("free_at_start")
    if free and requested and free.value < requested.value - requested.within - free.within:
        yield Identity(
            name="requested is at most what is free at the start",
            rank=rank,
            left=requested.value,
            right=free.value,
            within=requested.within + free.within,
        )


#: What vLLM leaves when it suggests a size for the pool.
_SPARED: Final = 150 * MiB


#: Sums that vLLM prints: an identity's name, the whole, its parts, and bytes beside them.
_SUMS: Final[tuple[tuple[str, str, tuple[str, ...], int], ...]] = (
    ("used = visible - free at the start", "used_at_start", ("visible", "-free_at_start"), 0),
    (
        "used at the start = torch + non-torch",
        "used_at_start",
        ("torch_at_start", "non_torch_at_start"),
        0,
    ),
    (
        "free within requested = free after profiling - free at the start + requested",
        "free_within_requested",
        ("free_after_profile", "-free_at_start", "requested"),
        0,
    ),
    ("pool in use = pool", "pool_in_use", ("pool",), 0),
    ("suggested pool = its bytes", "pool_to_request", ("pool_to_request_bytes",), 0),
    ("suggested pool = its bytes", "pool_to_memory", ("pool_to_memory_bytes",), 0),
    (
        "suggested pool = requested - weights - activation - non-torch - graphs - 150 MiB",
        "pool_to_request",
        ("requested", "-weights", "-activation", "-non_torch", "-graphs"),
        -_SPARED,
    ),
    (
        "suggested pool = requested - consumed - activation and graphs - graphs - 150 MiB",
        "pool_to_request",
        ("requested", "-consumed", "-activation_and_graphs", "-graphs"),
        -_SPARED,
    ),
    (
        "suggested pools differ as requested and free at the start do",
        "pool_to_memory",
        ("pool_to_request", "-requested", "free_at_start"),
        0,
    ),
    (
        "pool = requested - consumed - activation and graphs",
        "pool_in_use",
        ("requested", "-consumed", "-activation_and_graphs"),
        0,
    ),
)


def _later_identities(log: Log, rank: str) -> Iterator[Identity]:
    """Give what vLLM prints of one process beside its budget, as sums of other figures."""

    def find(name: str) -> Figure | None:
        return log.figure(name, rank) or (log.figure(name, "") if rank else None)

    for name, whole, parts, constant in _SUMS:
        left = find(whole)
        found = [(part[0] == "-", find(part.lstrip("-"))) for part in parts]
        known = [(negative, part) for negative, part in found if part is not None]
        if left is None or len(known) < len(found):
            continue
        yield Identity(
            name=name,
            rank=rank,
            left=left.value,
            right=constant + sum(-part.value if minus else part.value for minus, part in known),
            within=left.within + sum(part.within for _, part in known),
        )
    actual, estimated = find("graphs"), find("graphs_estimated")
    difference = find("graphs_difference")
    if actual and estimated and difference:
        yield Identity(
            name="graphs difference = actual less estimated, either way",
            rank=rank,
            left=difference.value,
            right=abs(actual.value - estimated.value),
            within=difference.within + actual.within + estimated.within,
        )


def _pool_identities(log: Log, rank: str) -> Iterator[Identity]:
    def find(name: str) -> Figure | None:
        return log.figure(name, rank)

    before, after, weights = find("free_at_start"), find("free_after_weights"), find("weights")
    if before and after and weights:
        yield Identity(
            name="weights = free before - free after loading",
            rank=rank,
            left=weights.value,
            right=before.value - after.value,
            within=before.within + after.within + weights.within,
        )
    tokens, blocks, block = find("tokens"), find("blocks"), find("block_tokens")
    if WORDINGS[log.engine].tokens_are_blocks and tokens and blocks and block:
        yield Identity(
            name="tokens = blocks x tokens per block",
            rank=rank,
            left=tokens.value,
            right=blocks.value * block.value,
            within=0,
        )
    estimate, peak, trial = find("pool_estimated"), find("peak"), find("trial_pool")
    visible, share = find("visible"), find("share")
    if estimate and peak and trial and visible and share:
        yield Identity(
            name="pool = (total - peak + trial pool) x fraction",
            rank=rank,
            left=estimate.value,
            right=(visible.value - peak.value + trial.value) * share.value,
            within=estimate.within
            + (peak.within + trial.within + visible.within) * share.value
            + abs(visible.value - peak.value + trial.value) * share.within,
        )
    pool, keys, values = find("pool"), find("k_cache"), find("v_cache")
    if pool and keys and values:
        yield Identity(
            name="pool = K + V",
            rank=rank,
            left=pool.value,
            right=keys.value + values.value,
            within=pool.within + keys.within + values.within,
        )
