"""Reconcile: what an engine printed when it started, against what is computed, term by term.

* `reconcile`: a start-up log against a model.
* `Reconciliation`: the terms, the identities, and which term explains the gap.
* `Comparison`: one term: printed, computed and their difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from llmcalc import formats
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError, LlmcalcError
from llmcalc.formats import Format, Scheme
from llmcalc.hardware import DeviceSpec
from llmcalc.huggingface import catalogue, load_model
from llmcalc.layouts import Layout
from llmcalc.serving.budgets import Budget, budget
from llmcalc.serving.engines import Profile, profile, profiles
from llmcalc.serving.logs import EngineLog, Identity, parse_log
from llmcalc.serving.paging import Allocation, allocate
from llmcalc.spec.model import ModelSpec
from llmcalc.units import GiB

if TYPE_CHECKING:
    from llmcalc.folds.storage import StateFormat

__all__ = ["Comparison", "Reconciliation", "reconcile"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Comparison(Described):
    """One term: what the log prints and what is computed, each `None` where it is not known.

    `unit` is ``"bytes"``, ``"tokens"``, ``"blocks"``, ``"requests"`` or ``"bytes a token"``.
    `within` is how far the printed figure is rounded. `note` says what the computed figure rests
    on, or why there is none.
    """

    term: str
    unit: str
    printed: float | None
    computed: float | None
    within: float = 0.0
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Computed less printed."""
        if self.printed is None or self.computed is None:
            return None
        return self.computed - self.printed

    @property
    def relative(self) -> float | None:
        """The difference as a share of what is printed."""
        difference = self.difference
        return difference / self.printed if difference is not None and self.printed else None

    @property
    def agrees(self) -> bool | None:
        """Whether the difference is within the printed rounding; `None` where there is none."""
        difference = self.difference
        return None if difference is None else abs(difference) <= self.within + 1e-9

    def cells(self) -> tuple[str, str, str, str]:
        """Return the term's row as text: printed, computed, difference and share."""
        share = "" if self.relative is None else f"{_signed(100 * self.relative, '+')} %"
        return (
            _text(self.printed, self.unit),
            _text(self.computed, self.unit),
            _text(self.difference, self.unit, sign="+"),
            share,
        )


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Reconciliation(Described):
    """A start-up log against a model: `comparisons` term by term, and what contradicts what.

    `identities` are those between printed figures, and between printed figures and the model.
    ``bool(reconciliation)`` is whether none of them is broken.
    """

    log: EngineLog
    model: str
    engine: str
    comparisons: tuple[Comparison, ...]
    identities: tuple[Identity, ...]
    budget: Budget | None

    def __bool__(self) -> bool:
        return not self.broken

    def __getitem__(self, term: str) -> Comparison:
        for comparison in self.comparisons:
            if comparison.term == term:
                return comparison
        known = ", ".join(comparison.term for comparison in self.comparisons)
        raise InvalidValueError("term", term, f"must be one of {known}")

    @property
    def broken(self) -> tuple[Identity, ...]:
        """The identities that do not hold: figures that no start of this model prints together."""
        return tuple(identity for identity in self.identities if not identity.holds)

    @property
    def gap(self) -> Comparison | None:
        """The term that explains most of the pool's difference; `None` where there is none."""
        parts = [
            comparison
            for comparison in self.comparisons
            if comparison.term in _POOL_TERMS and comparison.difference is not None
        ]
        pool = next((one for one in self.comparisons if one.term == "pool"), None)
        if pool is not None and pool.agrees:
            return None
        far = [part for part in parts if not part.agrees]
        return max(far, key=lambda part: abs(part.difference or 0), default=None)

    @property
    def explanation(self) -> str:
        """One sentence: whether the log is consistent, and which term explains the gap."""
        if self.broken:
            return "inconsistent: " + "; ".join(map(str, self.broken))
        pool = next((one for one in self.comparisons if one.term == "pool"), None)
        gap = self.gap
        if gap is not None and gap.difference is not None:
            what = f"{gap.term} is computed {gap.cells()[2]}"
            if pool is not None and pool.difference is not None:
                return f"{what}, which explains most of the pool's {pool.cells()[2]}"
            return what
        if pool is not None and pool.agrees:
            return "the pool is what is computed, to the printed digits"
        if pool is not None and pool.difference is not None:
            return f"the pool is computed {pool.cells()[2]}; each of its terms agrees"
        return "no figure contradicts another"

    def explain(self) -> str:
        """Return the table of terms, the broken identities and the explanation."""
        header = ("term", "printed", "computed", "difference", "")
        rows = [header, *((one.term, *one.cells()) for one in self.comparisons)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [f"{self.model}: {self.log.engine} {self.log.version or ''} as {self.engine}"]
        if self.log.starts > 1:
            lines.append(f"start {self.log.start} of the {self.log.starts} in the log")
        lines += [
            "  ".join(
                cell.rjust(width) if n else cell.ljust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines += [f"{one.term}: {one.note}" for one in self.comparisons if one.note]
        lines.append(self.explanation)
        return "\n".join(lines)


#: The terms whose sum is the pool.
_POOL_TERMS = frozenset({"requested", "weights", "activation", "non-torch", "graphs"})


def _text(value: float | None, unit: str, sign: str = "") -> str:
    if value is None:
        return ""
    if unit == "bytes":
        return f"{_signed(value / GiB, sign)} GiB"
    if unit in {"requests", "bytes a token"}:
        return _signed(value, sign)
    return f"{round(value):{sign},}".replace(",", " ")


def _signed(value: float, sign: str) -> str:
    """Return two decimals, in groups of three digits; what rounds to 0 has no sign."""
    text = f"{value:{sign},.2f}".replace(",", " ")
    return text.lstrip("+-") if not float(text.replace(" ", "")) else text


def reconcile(
    log_text: str,
    model: str | ModelSpec | None = None,
    *,
    weights: str | Format | Scheme | None = None,
    kv: str | Format | None = None,
    dtype: str | Format | None = None,
    engine: str | Profile | None = None,
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
    memory and version. Recurrent states are by default in what the log says, or what the engine
    takes: vLLM the model's `dtype`, the others fp32. Index keys are in fp8 with a scale for 128,
    as vLLM and SGLang keep them. `engine` is the profile that the terms are
    computed with. Tokens, blocks and concurrency are computed from the *printed* pool, so that one
    term's gap is not seen twice. Raises `llmcalc.LlmcalcError` where the text has no figures, or
    names no known model.

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
    spec = _model(model, log)
    known, note = _engine(engine, log)
    where = _layout(layout, log, spec)
    computed_in = dtype or _DTYPES.get(str(log.settings.get("dtype")), "bf16")
    stored = weights or _weights(log, spec, str(computed_in))
    form = state or _state(log, str(computed_in))
    held = kv or _kv(log, str(computed_in))
    # Both keep index keys in fp8 with a scale, whatever the rest is in.
    keys = index or ("fp8-group128" if log.engine in {"vllm", "sglang"} else None)
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
            weights=stored,
            kv=held,
            dtype=computed_in,
            device=device,
            visible_bytes=visible_bytes,
            share=share,
            state=form,
            index=keys,
            block_tokens=block_tokens,
            batched_tokens=batched_tokens,
            sequences=sequences,
            layout=where,
            rank=_rank(rank, log, where),
        )
    request = None if answer is None else answer.allocation
    if context and known.pool_rule == "cells":
        request = allocate(
            spec, context=context, kv=held, state=form, index=keys, engine=known, layout=where
        )
    stated = weights is not None or log.engine in {"vllm", "sglang"} or _file_type(log) is not None
    comparisons, identities = _compare(
        log, answer, request, known, where, note=note, weights_stated=stated
    )
    return Reconciliation(
        log=log,
        model=spec.name,
        engine=known.name,
        comparisons=tuple(comparisons),
        identities=(*log.identities(), *identities),
        budget=answer,
    )


#: What engines call number formats.
_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "f32": "fp32",
}


def _model(model: str | ModelSpec | None, log: EngineLog) -> ModelSpec:
    if isinstance(model, ModelSpec):
        return model
    if model is not None:
        return load_model(model)
    if log.model is None:
        raise LlmcalcError("model = None: the log names none; say which model it is of")
    # A name in a log is no reason to read a file or to ask the hub.
    name = log.model.rstrip("/")
    entry = catalogue.find(name) or catalogue.find(name.rpartition("/")[2])
    if entry is None:
        raise catalogue.unknown(name)
    return load_model(entry.name)


def _engine(engine: str | Profile | None, log: EngineLog) -> tuple[Profile, str]:
    """Return the profile of the log's version.

    For one that is not known it is that of the last one before it whose rules for caches are
    known, without its measured terms, and a note that says so.
    """
    if engine is not None:
        return profile(engine), ""
    version = _numbers(log.version or "")
    candidates = [
        name for name in profiles() if name.partition("-")[0] == log.engine.partition("-")[0]
    ]
    if not candidates:
        raise LlmcalcError(f"engine = None: there is no profile of {log.engine}; give one")
    earlier = [name for name in candidates if not version or _numbers(name) <= version[:2]]
    name = max(earlier or candidates[:1], key=_numbers)
    known = profile(name)
    if not version or _numbers(name) == version[:2]:
        return known, ""
    return (
        attrs.evolve(known, activation=None, non_torch_bytes=None),
        f"{log.engine} {log.version} was not measured: its caches are laid out as {name} does",
    )


def _numbers(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else ()


def _layout(layout: Layout | None, log: EngineLog, spec: ModelSpec) -> Layout:
    if layout is not None:
        return layout

    def degree(name: str) -> int:
        value = log.settings.get(name)
        return value if isinstance(value, int) and value > 0 else 1

    tensor, data = degree("tensor_parallel"), degree("data_parallel")
    routed = any(tensor.routed for tensor in spec.ledger.tensors)
    if log.engine == "sglang":  # the degree that it states is that of all ranks
        data = data if log.settings.get("data_parallel_attention") == "True" else 1
        tensor = tensor // data if data <= tensor else tensor
    experts = log.settings.get("expert_parallel") == "True" or degree("expert_ranks") > 1
    return Layout(
        tensor_parallel=tensor,
        pipeline_parallel=degree("pipeline_parallel"),
        data_parallel=data,
        # vLLM's replicas share the routed experts.
        data_parallel_attention=data > 1 and (routed or log.engine == "sglang"),
        expert_parallel=routed and experts and tensor * data > 1,
        decode_context_parallel=degree("decode_context_parallel"),
        engine="vllm" if log.engine == "vllm" and data > 1 and routed else None,
    )


def _rank(rank: int | None, log: EngineLog, layout: Layout) -> int | None:
    """Return the rank whose figures the log's are: of several stages, the tightest one's."""
    if rank is not None or layout.pipeline_parallel == 1:
        return rank
    stage = re.search(r"PP(\d+)", log.tightest_rank or "")
    if stage is None or int(stage[1]) >= layout.pipeline_parallel:
        return 0
    return int(stage[1]) * layout.tensor_parallel


def _weights(log: EngineLog, spec: ModelSpec, dtype: str) -> str:
    file_type = _file_type(log)
    if file_type is not None:
        return file_type
    stated = str(log.settings.get("quantization", "None"))
    if stated == "fp8" and not _is_quantised(spec):
        return "fp8-tensor"  # quantised while loading
    if stated not in {"None", "none", "auto"} or _is_quantised(spec):
        return "checkpoint"
    return dtype


def _file_type(log: EngineLog) -> str | None:
    """Return the format or mix of a GGUF file, as llama.cpp calls it; `None` if it doesn't say.

    Source: llama.cpp, ``llama_model_ftype_name``.
    """
    stated = str(log.settings.get("file_type", "")).strip()
    plain = {"all F32": "fp32", "F16": "fp16", "BF16": "bf16", "MXFP4 MoE": "MXFP4_MOE",
             "Q2_K - Medium": "Q2_K"}  # fmt: skip
    if stated in plain:
        return plain[stated]
    name, _, rest = stated.partition(" ")
    if rest.startswith("mix"):
        name = f"{name[:-1]}M"
    size = re.match(r"- (Small|Medium|Large)\b", rest)
    name += f"_{size[1][0]}" if size else ""
    return name if name in formats.scheme_names() else None


def _is_quantised(spec: ModelSpec) -> bool:
    return getattr(spec.checkpoint, "quantization", None) is not None


def _kv(log: EngineLog, dtype: str) -> str:
    stated = str(log.settings.get("kv_dtype", log.settings.get("kv_format", "auto")))
    packed = _CACHES.get(str(log.settings.get("kv_layout")), _CACHES.get(stated))
    if packed is not None:
        return packed
    if stated.startswith(("fp8", "float8")):
        return "fp8"
    if stated in _DTYPES:
        return _DTYPES[stated]
    return dtype if stated in {"auto", "None"} else stated.upper()


#: What vLLM calls caches with scales beside their values (``v1/kv_cache_interface.py``).
_CACHES = {
    "fp8_ds_mla": "fp8-ds-mla",
    "fp8_per_token_head": "fp8-channel",
    "int8_per_token_head": "int8-channel",
    "nvfp4": "nvfp4",
}


def _state(log: EngineLog, dtype: str) -> str:
    stated = _DTYPES.get(str(log.settings.get("state_dtype")))
    return stated or (dtype if log.engine == "vllm" else "fp32")


def _budget(
    spec: ModelSpec, known: Profile, log: EngineLog, *, visible_bytes: int | None,
    device: str | DeviceSpec | None, share: float | None, batched_tokens: int | None,
    sequences: int | None, block_tokens: int | None, context: int,
    weights: str | Format | Scheme, kv: str | Format, dtype: str | Format, state: StateFormat,
    index: str | Format | None, layout: Layout, rank: int | None,
) -> Budget:  # fmt: skip
    """Compute the budget; terms that the profile does not know are taken from the log."""
    given: dict[str, int] = {}
    if known.pool_rule == "total":
        given = {
            name: 0 if value is None else value for name, value in _printed(known, log, layout)
        }
    if visible_bytes is None and device is None:
        start = log.count("free_at_start") or log.count("requested")
        visible_bytes = start or 1
    elif known.pool_rule == "static":
        visible_bytes, device = log.count("free_at_start") or visible_bytes, None
    stated = log.value("share")
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
        block_tokens=block_tokens or log.count("block_tokens"),
        batched_tokens=batched_tokens or log.count("batched_tokens"),
        sequences=sequences or log.count("sequences"),
        layout=layout,
        rank=rank,
        **given,
    )


def _printed(known: Profile, log: EngineLog, layout: Layout) -> Iterator[tuple[str, int | None]]:
    """Give the terms that the profile does not know, as the log prints them; `None` if it doesn't.

    Newer versions print weights and what is outside the framework as one, and graphs among the
    activations.
    """
    both = log.count("activation_and_graphs")
    if known.activation is None:
        yield "activation_bytes", log.count("activation") if both is None else both
    table, degree = known.non_torch_bytes, layout.tensor_parallel
    if not table or (degree > 1 and max(n for n in table if n <= degree) == 1):
        consumed, weights = log.count("consumed"), log.count("weights")
        outside = log.count("non_torch")
        if outside is None and consumed is not None and weights is not None:
            outside = max(0, consumed - weights)
        yield "non_torch_bytes", outside
    if known.graphs_subtracted:
        yield "graph_bytes", (log.count("graphs_estimated") or 0) if both is None else 0


def _compare(
    log: EngineLog,
    answer: Budget | None,
    request: Allocation | None,
    known: Profile,
    where: Layout,
    *,
    note: str,
    weights_stated: bool,
) -> tuple[list[Comparison], list[Identity]]:
    """Return the terms that are printed or computed, and what must hold of the printed ones."""
    stated = log.figure("share") is not None
    budgeted = answer if stated else None
    unknown = (
        [name for name, value in _printed(known, log, where) if value is None]
        if known.pool_rule == "total"
        else []
    )
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
    if known.pool_rule == "free" and free is not None and fraction is not None:
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
        one_each = log.engine in {"sglang", "llama.cpp"}
        count = _slots if one_each else _capacity
        comparisons += count(log, request, _pool(log), identities)
    return comparisons, identities


def _are_cells(log: EngineLog, known: Profile, request: Allocation) -> bool:
    """Whether the pool is the cells of one context, all in one format.

    States stand apart; windows of several sequences, or beside a quantised cache, have their own
    cells and formats.
    """
    if known.pool_rule != "cells" or any(group.block_tokens is None for group in request.groups):
        return False
    kept = {str(log.settings.get(name)) for name in ("kv_format", "v_format")} - {"None"}
    windows = any(group.label.startswith(("window", "chunk")) for group in request.groups)
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
    tokens = log.figure("tokens")
    uniform = len({group.block_tokens for group in request.groups}) == 1 and (
        sum(group.count for group in request.groups) == 1
    )
    if tokens is not None and pool is not None and tokens.value and uniform and request.context:
        width = request.bytes["ideal"].total / request.context
        found.append(
            Comparison(
                term="bytes a token",
                unit="bytes a token",
                printed=pool[0] / tokens.value,
                computed=width,
                within=pool[1] / tokens.value + (request.block_bytes or 0) / tokens.value,
            )
        )
    return found


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
            if group.label.startswith(("window", "chunk")):
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
