"""Start-up logs: the memory figures that engines print, in bytes, and what contradicts what.

* `parse_log`: the figures of a log of vLLM, SGLang, TensorRT-LLM or llama.cpp.
* `EngineLog`: these figures and settings; `EngineLog.identities` checks them against each other.
* `Figure`: one printed figure, its text, its rank and how far it is rounded.
* `Identity`: what must hold between figures, and whether it does.

Units are read as the engines mean them: every "GB" of vLLM and SGLang is a GiB (they divide by
2**30), and MiB are MiB. Figures are those of one rank; the log says of which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from llmcalc.described import Described
from llmcalc.errors import InvalidValueError, LlmcalcError
from llmcalc.units import GiB, KiB, MiB

__all__ = ["EngineLog", "Figure", "Identity", "parse_log"]

#: No start-up log is longer; the limits keep hostile input from taking long.
_LONGEST_LOG: Final = 16 * MiB
_LONGEST_LINE: Final = 20_000

_UNITS: Final = {"GiB": GiB, "GB": GiB, "MiB": MiB, "MB": MiB, "KiB": KiB, "B": 1}

#: A number with its unit; engines print no exponents.
_SIZE: Final = r"(-?\d{1,15}(?:\.\d{1,12})?)\s*(GiB|GB|MiB|MB|KiB)"
_COUNT: Final = r"(\d[\d,]{0,20})"
_RATIO: Final = r"(\d{1,12}(?:\.\d{1,12})?)"
#: What stands between two figures of a line; bounded, so that no line takes long.
_GAP: Final = r".{0,300}?"


@attrs.frozen(repr=False, eq=False)
class Figure(Described):
    """One printed figure: bytes, or a count; `within` is half a unit of its last printed digit.

    `rank` is what the log calls the process, such as ``TP0``; empty where it does not say.
    """

    name: str
    value: int | float
    text: str
    rank: str = ""
    within: float = 0.0


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Identity(Described):
    """What must hold between printed figures: `left` and `right` must agree to within `within`."""

    name: str
    rank: str
    left: float
    right: float
    within: float

    @property
    def holds(self) -> bool:
        """Whether both sides agree to within what rounding explains."""
        return abs(self.left - self.right) <= self.within

    def __str__(self) -> str:
        sides = [
            f"{side / GiB:.2f} GiB" if abs(side) >= MiB else f"{side:,.2f}".replace(",", " ")
            for side in (self.left, self.right)
        ]
        where = f" ({self.rank})" if self.rank else ""
        return f"{self.name}{where}: {sides[0]} {'=' if self.holds else '!='} {sides[1]}"


#: What a line of vLLM says: a pattern, and the name and kind of each of its groups.
_Pattern = tuple[str, tuple[tuple[str, str], ...]]

_VLLM: Final[tuple[_Pattern, ...]] = (
    (
        rf"Model loading took {_SIZE}|Loading model weights took {_SIZE}",
        (("weights", "size"), ("weights", "size")),
    ),
    (
        (
            rf"Total non KV cache memory: {_SIZE}; torch peak memory increase: {_SIZE}; "
            rf"non-torch forward increase memory: {_SIZE}; weights memory: {_SIZE}"
        ),
        (
            ("non_cache", "size"),
            ("activation", "size"),
            ("non_torch", "size"),
            ("weights", "size"),
        ),
    ),
    (
        rf"Initial free memory: {_SIZE}; Requested memory: {_RATIO} \(util\), {_SIZE}",
        (("free_at_start", "size"), ("share", "ratio"), ("requested", "size")),
    ),
    (
        rf"init memory snapshot:{_GAP} free_memory={_SIZE}, total_memory={_SIZE}",
        (("free_at_start", "size"), ("visible", "size")),
    ),
    (rf"worker requested memory: {_SIZE}", (("requested", "size"),)),
    (
        (
            rf"Free memory on device \({_RATIO}/{_RATIO} GiB\) on startup\. Desired GPU memory "
            rf"utilization is \({_RATIO}, {_SIZE}\)\. Actual usage is {_SIZE} for weights?, "
            rf"{_SIZE} for peak activation, {_SIZE} for non-torch memory, and {_SIZE} for CUDAGraph"
        ),
        (
            ("free_at_start", "gib"),
            ("visible", "gib"),
            ("share", "ratio"),
            ("requested", "size"),
            ("weights", "size"),
            ("activation", "size"),
            ("non_torch", "size"),
            ("graphs", "size"),
        ),
    ),
    (rf"Current kv cache memory in use is {_SIZE}", (("pool_in_use", "size"),)),
    (rf"Available KV cache memory: {_SIZE}", (("pool", "size"),)),
    (rf"GPU KV cache size: {_COUNT} tokens", (("tokens", "count"),)),
    (
        rf"Maximum concurrency for {_COUNT} tokens per request: {_RATIO}x",
        (("context", "count"), ("concurrency", "ratio")),
    ),
    (rf"Estimated CUDA graph memory: {_SIZE}", (("graphs_estimated", "size"),)),
    (
        rf"CUDA graph pool memory: {_SIZE} \(actual\), {_SIZE} \(estimated\)",
        (("graphs", "size"), ("graphs_estimated", "size")),
    ),
    (rf"Graph capturing finished in \d+ secs?, took {_SIZE}", (("graphs", "size"),)),
    (rf"num_gpu_blocks is: {_COUNT}", (("blocks", "count"),)),
    (rf"# (?:GPU|gpu|CUDA|cuda) blocks: {_COUNT}", (("blocks", "count"),)),
    (
        rf"total_gpu_memory \({_SIZE}\) x gpu_memory_utilization \({_RATIO}\) = {_SIZE}",
        (("visible", "size"), ("share", "ratio"), ("requested", "size")),
    ),
    (rf"model weights take {_SIZE}", (("weights", "size"),)),
    (rf"non_torch_memory takes {_SIZE}", (("non_torch", "size"),)),
    (rf"PyTorch activation peak memory takes {_SIZE}", (("activation", "size"),)),
    (rf"the rest of the memory reserved for KV Cache is {_SIZE}", (("pool", "size"),)),
    (
        (
            rf"Memory profiling results: total_gpu_memory={_SIZE}{_GAP} "
            rf"peak_torch_memory={_SIZE}{_GAP} non_torch_memory={_SIZE} "
            rf"kv_cache_size={_SIZE} gpu_memory_utilization={_RATIO}"
        ),
        (
            ("visible", "size"),
            ("peak_torch", "size"),
            ("non_torch", "size"),
            ("pool", "size"),
            ("share", "ratio"),
        ),
    ),
    (
        (
            rf"max seq len \({_COUNT}\), \(?{_SIZE} KV cache is needed, which is larger than the "
            rf"available KV cache memory \({_SIZE}\)"
        ),
        (("context", "count"), ("pool_needed", "size"), ("pool", "size")),
    ),
    (rf"estimated maximum model length is {_COUNT}", (("longest_context", "count"),)),
    (
        (
            rf"max seq len \({_COUNT}\) is larger than the maximum number of tokens that can be "
            rf"stored in KV cache \({_COUNT}\)"
        ),
        (("context", "count"), ("tokens", "count")),
    ),
    (rf"[Ss]etting attention block size to {_COUNT} tokens", (("block_tokens", "count"),)),
)

_SGLANG: Final[tuple[_Pattern, ...]] = (
    (rf"Load weight begin\. avail mem={_SIZE}", (("free_at_start", "size"),)),
    (
        rf"Load weight end\.{_GAP}avail mem={_SIZE}(?:, mem usage={_SIZE})?",
        (("free_after_weights", "size"), ("weights", "size")),
    ),
    (
        rf"KV Cache is allocated\.{_GAP}#tokens: {_COUNT}, K size: {_SIZE}, V size: {_SIZE}",
        (("tokens", "count"), ("k_cache", "size"), ("v_cache", "size")),
    ),
    (
        rf"KV Cache is allocated\.{_GAP}#tokens: {_COUNT}, (?:KV|Cache) size: {_SIZE}",
        (("tokens", "count"), ("pool", "size")),
    ),
    (
        (
            rf"Mamba Cache is allocated\. max_mamba_cache_size: {_COUNT}, "
            rf"conv_state size: {_SIZE}, ssm_state size: {_SIZE}"
        ),
        (("state_slots", "count"), ("conv_cache", "size"), ("state_cache", "size")),
    ),
    (rf"Memory pool end\. avail mem={_SIZE}", (("free_after_pool", "size"),)),
    (
        rf"Capture (?:target decode )?cuda graph end\.{_GAP}mem usage={_SIZE}",
        (("graphs", "size"),),
    ),
    (rf"max_total_num_tokens={_COUNT}", (("tokens", "count"),)),
    (rf"max_running_requests={_COUNT}", (("sequences", "count"),)),
    (rf"context_len={_COUNT}", (("context", "count"),)),
    (rf"mem_fraction_static={_RATIO}", (("share", "ratio"),)),
)

_TENSORRT: Final[tuple[_Pattern, ...]] = (
    (rf"Loaded engine size: {_SIZE}", (("weights", "size"),)),
    (rf"Allocated {_SIZE} for execution context memory", (("activation", "size"),)),
    (
        rf"Allocated {_SIZE} for max tokens in paged KV cache \({_COUNT}\)",
        (("pool", "size"), ("tokens", "count")),
    ),
    (rf"Number of tokens per block: {_COUNT}", (("block_tokens", "count"),)),
    (
        rf"tokens per block={_COUNT}, primary blocks={_COUNT}",
        (
            ("block_tokens", "count"),
            ("blocks", "count"),
        ),
    ),
    (rf"Number of blocks in KV cache primary pool: {_COUNT}", (("blocks", "count"),)),
    (
        rf"max_seq_len={_COUNT}, max_num_requests={_COUNT}, max_num_tokens={_COUNT}",
        (("context", "count"), ("sequences", "count"), ("batched_tokens", "count")),
    ),
    (
        rf"calculating max tokens in paged kv cache: total: {_SIZE}, available: {_SIZE}",
        (("visible", "size"), ("free_after_weights", "size")),
    ),
    (
        rf"Memory used after loading model weights \(inside torch\)[^:]*: {_SIZE}",
        (("weights", "size"),),
    ),
    (rf"fraction is set {_RATIO}", (("share", "ratio"),)),
    (rf"free_gpu_memory_fraction[=:]\s*{_RATIO}", (("share", "ratio"),)),
)

_LLAMA: Final[tuple[_Pattern, ...]] = (
    (
        rf"(?:load_tensors|llm_load_tensors):{_GAP} model buffer size =\s*{_SIZE}",
        (("weights", "sum"),),
    ),
    (
        (
            rf"(?:llama_kv_cache\w*|KV self){_GAP}size\s*=\s*{_SIZE} "
            rf"\(\s*{_COUNT} cells,\s*{_COUNT} layers,{_GAP}\), "
            rf"K \((\w+)\):\s*{_SIZE}, V \((\w+)\):\s*{_SIZE}"
        ),
        (
            ("pool", "sum"),
            ("tokens", "count"),
            ("layers", "count"),
            ("kv_format", "word"),
            ("k_cache", "sum"),
            ("v_format", "word"),
            ("v_cache", "sum"),
        ),
    ),
    (
        rf"KV self size\s*=\s*{_SIZE}, K \((\w+)\):\s*{_SIZE}, V \((\w+)\):\s*{_SIZE}",
        (
            ("pool", "sum"),
            ("kv_format", "word"),
            ("k_cache", "sum"),
            ("v_format", "word"),
            ("v_cache", "sum"),
        ),
    ),
    (rf"\w* compute buffer size =\s*{_SIZE}", (("activation", "sum"),)),
    (rf"\w* output buffer size =\s*{_SIZE}", (("output", "sum"),)),
    (rf"\bn_ctx\s*=\s*{_COUNT}", (("context", "count"),)),
    (rf"\bn_ubatch\s*=\s*{_COUNT}", (("batched_tokens", "count"),)),
    (rf"\bn_seq_max\s*=\s*{_COUNT}", (("sequences", "count"),)),
)

#: What tells an engine's log, and its patterns.
_ENGINES: Final[Mapping[str, tuple[str, tuple[_Pattern, ...]]]] = {
    "sglang": (
        r"sglang|Load weight (?:begin|end)\.|KV Cache is allocated\.|max_total_num_tokens=",
        _SGLANG,
    ),
    "tensorrt-llm": (r"TensorRT-LLM|TRT-LLM|\[MemUsageChange\]", _TENSORRT),
    "llama.cpp": (r"llama_kv_cache|llm_load_|llama_context|load_tensors:|ggml_", _LLAMA),
    "vllm": (
        (
            r"vLLM|vllm|gpu_worker|worker\.py|Model loading took|GPU KV cache size"
            r"|KV cache is needed|model weights take|Available KV cache memory"
            r"|Maximum concurrency|# (?:GPU|cuda|CUDA) blocks"
        ),
        _VLLM,
    ),
}

#: Settings, wherever the log states them: names of ours, and how engines write them.
_SETTINGS: Final = {
    "model": r"\bmodel(?:_path|_tag)?'?[=:] ?'([^']{1,300})'",
    "dtype": r"\bdtype'?[=:] ?'?(?:torch\.)?(bfloat16|float16|float32|half|float|auto)\b",
    "quantization": r"\bquantization'?[=:] ?'?(\w[\w-]*)",
    "kv_dtype": r"\bkv_cache_dtype'?[=:] ?'?(?:torch\.)?(\w+)",
}
_SIZES: Final = {
    "tensor_parallel": r"\b(?:tensor_parallel_size|tp_size|tensor_parallel)'?[=:] ?(\d{1,6})",
    "pipeline_parallel": r"\b(?:pipeline_parallel_size|pp_size)'?[=:] ?(\d{1,6})",
    "data_parallel": r"\b(?:data_parallel_size|dp_size)'?[=:] ?(\d{1,6})",
    "context": r"\b(?:max_seq_len|max_model_len)'?[=:] ?(\d{1,12})",
    "batched_tokens": r"\b(?:max_num_batched_tokens|chunked_prefill_size)'?[=:] ?(\d{1,12})",
    "sequences": r"\bmax_num_seqs'?[=:] ?(\d{1,12})",
    "block_tokens": r"\b(?:block_size|page_size)'?[=:] ?(\d{1,12})",
}
_VERSION: Final = re.compile(
    r"(?:engine \(v|vLLM API server version |LLM engine version |\[TensorRT-LLM\] TensorRT[- ]LLM"
    r" version: |TensorRT-LLM version: |sglang[ =]v?)(\d{1,5}\.\d{1,5}[\w.+-]{0,40})"
)
_RANK: Final = re.compile(r"\((?:Worker|VllmWorker|EngineCore|RayWorkerWrapper)[_ ]?([A-Z]\w*)? ?")
_SGLANG_RANK: Final = re.compile(r"\b((?:DP\d+ )?(?:TP\d+)(?: EP\d+)?(?: PP\d+)?)\]")


@attrs.frozen(kw_only=True, repr=False, eq=False)
class EngineLog(Described):
    """The figures and settings of a start-up log.

    `figures` are in the order of the log; sizes are bytes. `settings` are what the log says of
    the model, the layout and the limits.
    """

    engine: str
    version: str | None
    model: str | None
    settings: Mapping[str, str | int] = attrs.field(hash=False)
    figures: tuple[Figure, ...] = attrs.field(repr=False)

    def ranks(self, name: str) -> tuple[Figure, ...]:
        """Return the last figure of that name that each rank prints."""
        return tuple(
            {figure.rank: figure for figure in self.figures if figure.name == name}.values()
        )

    def figure(self, name: str, rank: str | None = None) -> Figure | None:
        """Return the figure of that name, `None` where the log has none.

        Without a `rank`, where ranks differ, it is that of the rank whose pool is the smallest,
        if the log says which that is, or else the first one's.
        """
        found = self.ranks(name)
        if rank is not None:
            found = tuple(figure for figure in found if figure.rank == rank)
        if len(found) > 1:
            tightest = self.tightest_rank
            for figure in found:
                if figure.rank == tightest:
                    return figure
        return found[0] if found else None

    @property
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
        return tuple(_identities(self))

    def broken(self) -> tuple[Identity, ...]:
        """Return the identities that do not hold."""
        return tuple(identity for identity in self.identities() if not identity.holds)


def parse_log(text: str, engine: str | None = None) -> EngineLog:
    """Return the figures of a start-up log of vLLM, SGLang, TensorRT-LLM or llama.cpp.

    Which `engine` wrote it is told from its words, unless it is given. Old and new wordings of
    vLLM are understood. Raises `llmcalc.LlmcalcError` for a text without memory figures.

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
    if engine is None:
        engine = _engine(text)
    elif engine not in _ENGINES:
        raise InvalidValueError("engine", engine, f"must be one of {', '.join(_ENGINES)}")
    patterns = [(re.compile(pattern), groups) for pattern, groups in _ENGINES[engine][1]]
    figures: list[Figure] = []
    settings: dict[str, str | int] = {}
    version = None
    sums: dict[tuple[str, str], Figure] = {}
    for line in _lines(text, engine):
        rank = _rank(line, engine)
        for pattern, groups in patterns:
            for match in pattern.finditer(line):
                figures += _read(match, groups, rank, settings, sums)
        _read_settings(line, settings)
        found = None if version else _VERSION.search(line)
        version = found[1] if found else version
    figures += sums.values()
    if not figures:
        raise LlmcalcError(f"log_text: no memory figures of {engine} are in it")
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
    for name, expression in _SETTINGS.items():
        stated = None if name in settings else re.search(expression, line)
        if stated:
            settings[name] = stated[1]
    for name, expression in _SIZES.items():
        stated = None if name in settings else re.search(expression, line)
        if stated:
            settings[name] = int(stated[1])


def _engine(text: str) -> str:
    counts = {name: len(re.findall(words, text)) for name, (words, _) in _ENGINES.items()}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        raise LlmcalcError(
            "log_text: no line of vLLM, SGLang, TensorRT-LLM or llama.cpp is in it; "
            "say which engine wrote it"
        )
    return best


def _lines(text: str, engine: str) -> Iterator[str]:
    """Give the lines; vLLM 0.6 to 0.8 breaks its message over several of them."""
    if engine == "vllm":
        text = re.sub(r"(GiB[;)]|seconds)[ \t]*\n[ \t]*(?=(?:the|model|x|PyTorch) )", r"\1 ", text)
    for line in text.splitlines():
        yield line[:_LONGEST_LINE]


def _rank(line: str, engine: str) -> str:
    if engine == "sglang":
        named = _SGLANG_RANK.search(line[:200])
        return named[1] if named else ""
    named = _RANK.search(line[:200])
    return (named[1] or "") if named else ""


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
    scale = _UNITS[unit]
    return Figure(
        name, round(float(text) * scale), f"{text}{unit}", rank, _half_digit(text) * scale
    )


def _half_digit(text: str) -> float:
    """Return half a unit of the last printed digit."""
    decimals = len(text.partition(".")[2])
    return float(0.5 * 10**-decimals)


def _identities(log: EngineLog) -> Iterator[Identity]:
    everywhere = {figure.rank for figure in log.figures}
    for rank in sorted(everywhere):
        yield from _budget_identities(log, rank)
        yield from _pool_identities(log, rank)
        yield from _repeated(log, rank)


def _repeated(log: EngineLog, rank: str) -> Iterator[Identity]:
    """Give the figures that one process prints twice: both must be the same."""
    if log.engine != "vllm":  # the others print a draft model's figures under the same names
        return
    for name in ("visible", "requested", "weights", "activation", "non_torch", "pool", "tokens"):
        found = [one for one in log.figures if one.name == name and one.rank == rank]
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


def _budget_identities(log: EngineLog, rank: str) -> Iterator[Identity]:
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
        pool = find("pool")
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
    free = find("free_at_start")
    if free and requested and free.value < requested.value - requested.within - free.within:
        yield Identity(
            name="requested is at most what is free at the start",
            rank=rank,
            left=requested.value,
            right=free.value,
            within=requested.within + free.within,
        )


def _pool_identities(log: EngineLog, rank: str) -> Iterator[Identity]:
    def find(name: str) -> Figure | None:
        return log.figure(name, rank)

    before, after, weights = find("free_at_start"), find("free_after_weights"), find("weights")
    if log.engine == "sglang" and before and after and weights:
        yield Identity(
            name="weights = free before - free after loading",
            rank=rank,
            left=weights.value,
            right=before.value - after.value,
            within=before.within + after.within + weights.within,
        )
    tokens, blocks, block = find("tokens"), find("blocks"), find("block_tokens")
    if log.engine == "tensorrt-llm" and tokens and blocks and block:
        yield Identity(
            name="tokens = blocks x tokens per block",
            rank=rank,
            left=tokens.value,
            right=blocks.value * block.value,
            within=0,
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
