"""Reconcile: what an engine printed when it started, against what is computed, term by term.

* `reconcile`: a start-up log against a model; its answer is a `llmcalc.serving.Reconciliation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmcalc.engines.engine import Engine
from llmcalc.formats import Format, Scheme
from llmcalc.hardware import DeviceSpec
from llmcalc.layouts import Layout
from llmcalc.serving.budgets import Budget, budget, with_effect
from llmcalc.serving.comparisons import Comparison, Reconciliation
from llmcalc.serving.figures import Identity
from llmcalc.serving.logs import EngineLog, parse_log
from llmcalc.serving.paging import Allocation, allocate
from llmcalc.serving.stated import Stated, engine_of, model_of, printed_terms
from llmcalc.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmcalc.folds.storage import StateFormat

__all__ = ["reconcile"]


def reconcile(
    log_text: str,
    model: str | ModelSpec | None = None,
    *,
    weights: str | Format | Scheme | None = None,
    kv: str | Format | None = None,
    dtype: str | Format | None = None,
    engine: str | Engine | None = None,
    device: str | DeviceSpec | None = None,
    visible_bytes: int | None = None,
    share: float | None = None,
    state: StateFormat | None = None,
    index: str | Format | None = None,
    block_tokens: int | None = None,
    batched_tokens: int | None = None,
    sequences: int | None = None,
    layout: Layout | None = None,
    rank: int | None = None,
) -> Reconciliation:
    """Return what a start-up log prints against what is computed, term by term.

    `log_text` is a log of vLLM, SGLang, TensorRT-LLM or llama.cpp. What is not given is taken from
    the log: the model (by its name in the catalogue; nothing is fetched), formats, layout, limits,
    memory and version; where the log is silent on recurrent states and index keys, they are as the
    engine that wrote it keeps them. `engine` is what the terms are computed with, one of
    `llmcalc.engines`. Tokens, blocks and concurrency are computed from the *printed* pool, so that
    one term's gap is not seen twice. Raises `llmcalc.LlmcalcError` where the text has no figures,
    or names no known model.

    >>> from llmcalc import serving
    >>> answer = serving.reconcile('''
    ... Initializing a V1 LLM engine (v0.19.0) with config: model='meta-llama/Llama-3.1-8B'
    ... worker init memory snapshot: free_memory=78.68GiB, total_memory=79.19GiB
    ... Initial free memory: 78.68 GiB; Requested memory: 0.950000 (util), 75.23 GiB
    ... Model loading took 14.99 GiB memory and 4 seconds
    ... Available KV cache memory: 58.11 GiB
    ... GPU KV cache size: 476,016 tokens
    ... Maximum concurrency for 8,192 tokens per request: 58.11x
    ... ''')
    >>> print(answer.explain())
    meta-llama/Llama-3.1-8B: vllm 0.19.0 as vllm-0.19
    term              printed    computed  difference
    visible         79.19 GiB
    requested       75.23 GiB   75.23 GiB    0.00 GiB   0.00 %
    weights         14.99 GiB   14.99 GiB    0.00 GiB  -0.01 %
    pool            58.11 GiB   58.11 GiB    0.00 GiB  -0.01 %
    tokens            476 016     476 032         +16   0.00 %
    concurrency         58.11       58.11        0.00   0.00 %
    bytes a token  131 077.82  131 072.00       -5.82   0.00 %
    tokens: from the printed pool
    concurrency: from the printed pool
    the pool is what is computed, to the printed digits
    """
    log = parse_log(log_text)
    spec = model_of(log, model)
    known, note = engine_of(log, engine)
    stated = Stated(log, spec, None if dtype is None else str(dtype))
    where = stated.layout if layout is None else layout
    form, held = state or stated.state, kv or stated.kv
    keys = index or stated.writer.index_format
    visible = log.figure("visible")
    if visible_bytes is None and device is None and visible is not None:
        visible_bytes = int(visible.value)
    context = log.count("context")
    answer = None
    if context:
        answer = _budget(
            spec,
            known,
            log,
            context=context,
            weights=weights or stated.weights,
            kv=held,
            dtype=dtype or stated.dtype,
            device=device,
            visible_bytes=visible_bytes,
            share=share,
            state=form,
            index=keys,
            block_tokens=block_tokens,
            batched_tokens=batched_tokens,
            sequences=sequences,
            layout=where,
            rank=stated.rank(where) if rank is None else rank,
        )
    request = None if answer is None else answer.allocation
    if context and known.pool.reserves_cells:
        request = allocate(
            spec, context=context, kv=held, state=form, index=keys, engine=known, layout=where
        )
    comparisons, identities = _compare(
        stated,
        answer,
        request,
        known,
        where,
        note=note,
        weights_stated=weights is not None or stated.states_weights,
    )
    return Reconciliation(
        log=log,
        model=spec.name,
        engine=known.name,
        comparisons=tuple(comparisons),
        identities=(*log.identities(), *identities),
        budget=answer,
    )


def _budget(
    spec: ModelSpec, known: Engine, log: EngineLog, *, visible_bytes: int | None,
    device: str | DeviceSpec | None, share: float | None, batched_tokens: int | None,
    sequences: int | None, block_tokens: int | None, context: int,
    weights: str | Format | Scheme, kv: str | Format, dtype: str | Format, state: StateFormat,
    index: str | Format | None, layout: Layout, rank: int | None,
) -> Budget:  # fmt: skip
    """Compute the budget; terms that the engine does not know are taken from the log."""
    printed = printed_terms(known, log, layout)
    given: dict[str, int] = {name: 0 if value is None else value for name, value in printed}
    if visible_bytes is None and device is None:
        start = log.count("free_at_start") or log.count("requested")
        visible_bytes = start or 1
    elif known.pool.share_of == "free":
        visible_bytes, device = log.count("free_at_start") or visible_bytes, None
    stated, effects = log.value("share"), with_effect(known.pool)

    def printed_count(name: str) -> int | None:
        return log.count(name) if name in effects else None

    return budget(
        spec,
        context=context,
        weights=weights,
        kv=kv,
        dtype=dtype,
        device=device,
        visible_bytes=visible_bytes,
        engine=known,
        share=share if share is not None else stated,
        state=state,
        index=index,
        block_tokens=block_tokens or printed_count("block_tokens"),
        batched_tokens=batched_tokens or printed_count("batched_tokens"),
        sequences=sequences or printed_count("sequences"),
        layout=layout,
        rank=rank,
        **given,
    )


def _compare(
    start: Stated,
    answer: Budget | None,
    request: Allocation | None,
    known: Engine,
    where: Layout,
    *,
    note: str,
    weights_stated: bool,
) -> tuple[list[Comparison], list[Identity]]:
    """Return the terms that are printed or computed, and what must hold of the printed ones."""
    log = start.log
    budgeted = answer if log.figure("share") is not None else None
    unknown = [name for name, value in printed_terms(known, log, where) if value is None]
    sizes = {
        "visible": ("visible", None),
        "requested": ("requested", None if budgeted is None else budgeted.requested_bytes),
        "weights": (
            "weights",
            answer.weight_bytes if answer is not None and weights_stated else None,
        ),
        "activation": (
            "activation",
            None if answer is None or known.activation is None else answer.activation_bytes,
        ),
        "non-torch": (
            "non_torch",
            None if answer is None or not known.non_torch_bytes else answer.non_torch_bytes,
        ),
        "graphs": ("graphs", None),
        "pool": ("pool", None if budgeted is None or unknown else budgeted.pool_bytes),
        "needed": ("pool_needed", None if request is None else request.request_bytes),
    }
    free, fraction = log.figure("free_after_weights"), log.value("share")
    if known.pool.share_of == "rest" and free is not None and fraction is not None:
        sizes["pool"] = "pool", int(free.value * fraction)
    if answer is not None and request is not None and _are_cells(log, known, request):
        sizes["pool"] = "pool", answer.allocation.request_bytes
    comparisons = []
    for term, (name, computed) in sizes.items():
        figure = log.figure(name)
        printed = (figure.value, figure.within) if figure is not None else None
        if term == "pool":
            printed = _pool(log)
        if printed is None and (computed is None or term != "pool"):
            continue
        comparisons.append(
            Comparison(
                term=term,
                unit="bytes",
                printed=None if printed is None else printed[0],
                computed=computed,
                within=0.0 if printed is None else printed[1],
                note=note if term == "pool" else "",
            )
        )
    identities: list[Identity] = []
    if answer is not None and weights_stated:
        identities += _at_least(log, answer)
    if request is not None:
        count = _slots if start.writer.log.counts_slots else _capacity
        comparisons += count(log, request, _pool(log), identities)
    return comparisons, identities


def _are_cells(log: EngineLog, known: Engine, request: Allocation) -> bool:
    """Whether the pool is the cells of one context, all in one format.

    States stand apart; windows of several sequences, or beside a quantised cache, have their own
    cells and formats.
    """
    groups = request.groups
    if not known.pool.reserves_cells or any(group.block_tokens is None for group in groups):
        return False
    kept = {str(log.settings.get(name)) for name in ("kv_format", "v_format")} - {"None"}
    windows = any(group.sort in {"window", "chunk"} for group in groups)
    alone = (log.count("sequences") or 1) == 1 and kept <= {"f16", "bf16", "f32"}
    return len(kept) <= 1 and (alone or not windows)


def _pool(log: EngineLog) -> tuple[float, float] | None:
    """Return the printed pool and its rounding: of several stages, that of the tightest one."""
    figure = log.figure("pool")
    tightest = log.tightest_rank
    if figure is not None and tightest is not None and figure.rank not in {tightest, ""}:
        figure = log.figure("pool_in_use", tightest) or figure
    if figure is not None:
        return figure.value, figure.within
    return _keys_and_values(log)


def _at_least(log: EngineLog, answer: Budget) -> list[Identity]:
    """Return that the printed weights hold the model's; a vision tower may come on top."""
    printed, computed = log.figure("weights"), answer.weight_bytes
    if printed is None or printed.value >= computed:
        return []
    return [
        Identity(
            name="weights hold at least those of this model",
            rank=printed.rank,
            left=printed.value,
            right=computed,
            within=printed.within + 0.02 * computed,
        )
    ]


def _keys_and_values(log: EngineLog) -> tuple[float, float] | None:
    """Return keys and values together, where the log prints them apart."""
    keys, values = log.figure("k_cache"), log.figure("v_cache")
    if keys is None or values is None:
        return None
    return keys.value + values.value, keys.within + values.within


def _capacity(
    log: EngineLog,
    request: Allocation,
    pool: tuple[float, float] | None,
    identities: list[Identity],
) -> list[Comparison]:
    """Return what the printed pool holds against what is printed of it."""
    tables = sum(group.count for group in request.groups)
    share = 0.005 if tables <= 1 else 0.02
    found: list[Comparison] = []
    low, high = (
        (None, None) if pool is None else (max(0, int(pool[0] - pool[1])), int(pool[0] + pool[1]))
    )
    rows = (
        ("blocks", "blocks", "blocks", request.pool_blocks),
        ("tokens", "tokens", "tokens", request.tokens),
        ("concurrency", "concurrency", "requests", request.concurrency),
    )
    for term, name, unit, count in rows:
        figure = log.figure(name)
        if figure is None:
            continue
        if pool is None or low is None or high is None:
            found.append(
                Comparison(
                    term=term,
                    unit=unit,
                    printed=figure.value,
                    computed=None,
                    within=figure.within,
                    note="the log prints no pool to compute it from",
                )
            )
            continue
        computed, least, most = count(int(pool[0])), count(low), count(high)
        spread = 0.0 if least is None or most is None else (most - least) / 2
        # A block more or less decides how the figures round.
        slack = spread + figure.within + _one_block(request, term)
        found.append(
            Comparison(
                term=term,
                unit=unit,
                printed=figure.value,
                computed=computed,
                within=slack,
                note="from the printed pool",
            )
        )
        if computed is not None:
            identities.append(
                Identity(
                    name=f"{term} = what the printed pool holds of this model",
                    rank="",
                    left=figure.value,
                    right=computed,
                    within=slack + share * computed,
                )
            )
    return [*found, *_width(log, request, pool)]


def _width(
    log: EngineLog, request: Allocation, pool: tuple[float, float] | None
) -> Iterator[Comparison]:
    """Give the bytes of one token, where every layer's are in blocks of one size."""
    tokens = log.figure("tokens")
    uniform = len({group.block_tokens for group in request.groups}) == 1 and (
        sum(group.count for group in request.groups) == 1
    )
    if tokens is not None and pool is not None and tokens.value and uniform and request.context:
        width = request.bytes["ideal"].total / request.context
        yield Comparison(
            term="bytes a token",
            unit="bytes a token",
            printed=pool[0] / tokens.value,
            computed=width,
            within=pool[1] / tokens.value + (request.block_bytes or 0) / tokens.value,
        )


def _slots(
    log: EngineLog,
    request: Allocation,
    pool: tuple[float, float] | None,
    identities: list[Identity],
) -> list[Comparison]:
    """Return the slots that the printed pool holds, where each layer has one for a token.

    Windowed layers may have fewer slots than the others: a pool, or a cache, of their own.
    """
    tokens, width = log.figure("tokens"), request.context
    if tokens is None or pool is None or not tokens.value or not width:
        return []
    fewer = log.figure("window_tokens") or min(
        (figure for figure in log.figures if figure.name == "cells"),
        key=lambda figure: figure.value,
        default=tokens,
    )
    whole = windowed = 0
    for group in request.groups:
        if group.block_tokens is not None:
            slot = group.layers * group.page_bytes // group.block_tokens
            if group.sort in {"window", "chunk"}:
                windowed += slot
            else:
                whole += slot
    expected = whole * tokens.value + windowed * fewer.value
    if not expected:
        return []
    each = expected / tokens.value
    # Engines keep a few slots more, for padding.
    slack = pool[1] / each + tokens.within + 512
    computed = pool[0] / each
    identities.append(
        Identity(
            name="tokens = what the printed pool holds of this model",
            rank="",
            left=tokens.value,
            right=computed,
            within=slack + 0.005 * computed,
        )
    )
    found = [
        Comparison(
            term="tokens",
            unit="tokens",
            printed=tokens.value,
            computed=round(computed),
            within=slack,
            note="from the printed pool",
        )
    ]
    if not windowed or fewer.value == tokens.value:
        found.append(
            Comparison(
                term="bytes a token",
                unit="bytes a token",
                printed=pool[0] / tokens.value,
                computed=each,
                within=(pool[1] + 512 * each) / tokens.value,
            )
        )
    return found


def _one_block(request: Allocation, term: str) -> float:
    """Return what one block more of the pool is worth in the term."""
    if term == "blocks":
        return 1.0
    if term == "concurrency":
        return 1 / request.blocks if request.blocks else 0.0
    sizes = [group.block_tokens for group in request.groups if group.block_tokens is not None]
    if request.tokens_of_blocks and sizes:
        return float(min(sizes))
    return request.context / request.blocks if request.blocks else 0.0
