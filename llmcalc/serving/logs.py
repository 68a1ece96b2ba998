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
from functools import cached_property
from typing import Final, TypeAlias

import attrs

from llmcalc.described import Described
from llmcalc.errors import InvalidValueError, LlmcalcError
from llmcalc.units import GiB, KiB, MiB

__all__ = ["EngineLog", "Figure", "Identity", "parse_log"]

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

#: A number with its unit; engines print no exponents.
_SIZE: Final = r"(-?\d{1,15}(?:\.\d{1,12})?)\s*((?i:[TGMK]iB|[GMK]B))\b"
_COUNT: Final = r"(\d[\d,]{0,20})"
_RATIO: Final = r"(\d{1,12}(?:\.\d{1,20})?)"
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


#: What a line says: words that it must have, a pattern, and the name and kind of each of its
#: groups. The words are part of the pattern, and stand there so that most lines take no time.
_Pattern: TypeAlias = tuple[str, str, tuple[tuple[str, str], ...]]

_VLLM: Final[tuple[_Pattern, ...]] = (
    ("Model loading took", rf"Model loading took {_SIZE}", (("weights", "size"),)),
    ("Loading model weights took", rf"Loading model weights took {_SIZE}", (("weights", "size"),)),
    (
        "; non-torch forward increase memory:",
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
        "; total consumed (from mem_get_info):",  # from about 0.28 on
        (
            rf"Total non KV cache memory: {_SIZE}; torch peak memory increase: {_SIZE}; "
            rf"total consumed \(from mem_get_info\): {_SIZE}; weights memory: {_SIZE}"
        ),
        (
            ("non_cache", "size"),
            ("activation", "size"),
            ("consumed", "size"),
            ("weights", "size"),
        ),
    ),
    (
        "Initial free memory:",
        rf"Initial free memory: {_SIZE}; Requested memory: {_RATIO} \(util\), {_SIZE}",
        (("free_at_start", "size"), ("share", "ratio"), ("requested", "size")),
    ),
    (
        ", requested GPU memory:",
        rf"Initial free memory: {_SIZE}, free memory: {_SIZE}, requested GPU memory: {_SIZE}",
        (("free_at_start", "size"), ("free_after_profile", "size"), ("requested", "size")),
    ),
    (
        "Free memory after profiling:",
        rf"Free memory after profiling: {_SIZE} \(total\), {_SIZE} \(within requested\)",
        (("free_after_profile", "size"), ("free_within_requested", "size")),
    ),
    (
        "Initial free memory",
        rf"Initial free memory {_SIZE}, reserved {_SIZE} memory for KV Cache",
        (("free_at_start", "size"), ("pool", "size")),
    ),
    (
        "init memory snapshot:",
        (
            rf"init memory snapshot:{_GAP} free_memory={_SIZE}, total_memory={_SIZE}"
            rf"(?:, cuda_memory={_SIZE}, torch_memory={_SIZE}, non_torch_memory={_SIZE})?"
        ),
        (
            ("free_at_start", "size"),
            ("visible", "size"),
            ("used_at_start", "size"),
            ("torch_at_start", "size"),
            ("non_torch_at_start", "size"),
        ),
    ),
    ("worker requested memory:", rf"worker requested memory: {_SIZE}", (("requested", "size"),)),
    (
        "GiB) on startup. Desired GPU memory utilization is (",
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
    (
        "GiB) on startup. Desired GPU memory utilization is (",
        # From about 0.28 on; graphs are in the activations where they are subtracted.
        (
            rf"Free memory on device \({_RATIO}/{_RATIO} GiB\) on startup\. Desired GPU memory "
            rf"utilization is \({_RATIO}, {_SIZE}\)\. Actual usage is {_SIZE} for consumed memory "
            rf"\(weights \+ non-torch\), {_SIZE} for peak activation, and {_SIZE} for CUDAGraph"
        ),
        (
            ("free_at_start", "gib"),
            ("visible", "gib"),
            ("share", "ratio"),
            ("requested", "size"),
            ("consumed", "size"),
            ("activation_and_graphs", "size"),
            ("graphs", "size"),
        ),
    ),
    (
        ") to fit into requested memory, or `--kv-cache-memory=",
        (
            rf"--kv-cache-memory=(\d{{1,18}})` \({_SIZE}\) to fit into requested memory, or "
            rf"`--kv-cache-memory=(\d{{1,18}})` \({_SIZE}\) to fully utilize"
        ),
        (
            ("pool_to_request_bytes", "count"),
            ("pool_to_request", "size"),
            ("pool_to_memory_bytes", "count"),
            ("pool_to_memory", "size"),
        ),
    ),
    (
        "Current kv cache memory in use is",
        rf"Current kv cache memory in use is {_SIZE}",
        (("pool_in_use", "size"),),
    ),
    ("Available KV cache memory:", rf"Available KV cache memory: {_SIZE}", (("pool", "size"),)),
    ("KV cache size:", rf"\b[A-Z]{{2,8}} KV cache size: {_COUNT} tokens", (("tokens", "count"),)),
    (
        "Maximum concurrency for",
        rf"Maximum concurrency for {_COUNT} tokens per request: {_RATIO}x",
        (("context", "count"), ("concurrency", "ratio")),
    ),
    (
        "Estimated CUDA graph memory:",
        rf"Estimated CUDA graph memory: {_SIZE}",
        (("graphs_estimated", "size"),),
    ),
    (
        "CUDA graph pool memory:",
        (
            rf"CUDA graph pool memory: {_SIZE} \(actual\), {_SIZE} \(estimated\)"
            rf"(?:, difference: {_SIZE})?"
        ),
        (("graphs", "size"), ("graphs_estimated", "size"), ("graphs_difference", "size")),
    ),
    (
        "Graph capturing finished in",
        rf"Graph capturing finished in \d+ secs?, took {_SIZE}",
        (("graphs", "size"),),
    ),
    ("num_gpu_blocks is:", rf"num_gpu_blocks is: {_COUNT}", (("blocks", "count"),)),
    ("blocks:", rf"# (?:GPU|gpu|CUDA|cuda) blocks: {_COUNT}", (("blocks", "count"),)),
    (
        ") x gpu_memory_utilization (",
        rf"total_gpu_memory \({_SIZE}\) x gpu_memory_utilization \({_RATIO}\) = {_SIZE}",
        (("visible", "size"), ("share", "ratio"), ("requested", "size")),
    ),
    ("model weights take", rf"model weights take {_SIZE}", (("weights", "size"),)),
    ("non_torch_memory takes", rf"non_torch_memory takes {_SIZE}", (("non_torch", "size"),)),
    (
        "PyTorch activation peak memory takes",
        rf"PyTorch activation peak memory takes {_SIZE}",
        (("activation", "size"),),
    ),
    (
        "the rest of the memory reserved for KV Cache is",
        rf"the rest of the memory reserved for KV Cache is {_SIZE}",
        (("pool", "size"),),
    ),
    (
        "Memory profiling results: total_gpu_memory=",
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
        "KV cache is needed, which is larger than the available KV cache memory (",
        (
            rf"max seq len \({_COUNT}\), \(?{_SIZE} KV cache is needed, which is larger than the "
            rf"available KV cache memory \({_SIZE}\)"
        ),
        (("context", "count"), ("pool_needed", "size"), ("pool", "size")),
    ),
    (
        "estimated maximum model length is",
        rf"estimated maximum model length is {_COUNT}",
        (("longest_context", "count"),),
    ),
    (
        ") is larger than the maximum number of tokens that can be stored in KV cache (",
        (
            rf"max seq len \({_COUNT}\) is larger than the maximum number of tokens that can be "
            rf"stored in KV cache \({_COUNT}\)"
        ),
        (("context", "count"), ("tokens", "count")),
    ),
    (
        "etting attention block size to",
        rf"[Ss]etting attention block size to {_COUNT} tokens",
        (("block_tokens", "count"),),
    ),
)

_SGLANG: Final[tuple[_Pattern, ...]] = (
    (
        "Load weight begin. avail mem=",
        rf"Load weight begin\. avail mem={_SIZE}",
        (("free_at_start", "size"),),
    ),
    (
        "Load weight end.",
        rf"Load weight end\.{_GAP}avail mem={_SIZE}(?:, mem usage={_SIZE})?",
        (("free_after_weights", "size"), ("weights", "size")),
    ),
    (
        "KV Cache is allocated.",
        rf"KV Cache is allocated\.{_GAP}#tokens: {_COUNT}, K size: {_SIZE}, V size: {_SIZE}",
        (("cells", "count"), ("k_cache", "size"), ("v_cache", "size")),
    ),
    (
        "KV Cache is allocated.",
        rf"KV Cache is allocated\.{_GAP}#tokens: {_COUNT}, (?:KV|Cache) size: {_SIZE}",
        (("cells", "count"), ("pool", "size")),
    ),
    (
        "Use sliding window memory pool.",
        (
            rf"Use sliding window memory pool\.{_GAP}full_layer_tokens={_COUNT}, "
            rf"swa_layer_tokens={_COUNT}"
        ),
        (("full_tokens", "count"), ("window_tokens", "count")),
    ),
    (
        "Mamba Cache is allocated. max_mamba_cache_size:",
        (
            rf"Mamba Cache is allocated\. max_mamba_cache_size: {_COUNT}, "
            rf"conv_state size: {_SIZE}, ssm_state size: {_SIZE}"
        ),
        (("state_slots", "count"), ("conv_cache", "size"), ("state_cache", "size")),
    ),
    (
        "Memory pool end. avail mem=",
        rf"Memory pool end\. avail mem={_SIZE}",
        (("free_after_pool", "size"),),
    ),
    (
        "graph end.",
        rf"Capture [\w /()-]{{0,60}}?(?:cuda|CUDA|npu|device) graph end\.{_GAP}mem usage={_SIZE}",
        (("graphs", "sum"),),
    ),
    ("max_total_num_tokens=", rf"max_total_num_tokens={_COUNT}", (("tokens", "count"),)),
    ("max_running_requests=", rf"max_running_requests={_COUNT}", (("sequences", "count"),)),
    ("context_len=", rf"context_len={_COUNT}", (("context", "count"),)),
    ("mem_fraction_static=", rf"mem_fraction_static={_RATIO}", (("share", "ratio"),)),
)

_TENSORRT: Final[tuple[_Pattern, ...]] = (
    ("Loaded engine size:", rf"Loaded engine size: {_SIZE}", (("weights", "size"),)),
    (
        "for execution context memory",
        rf"Allocated {_SIZE} for execution context memory",
        (("activation", "size"),),
    ),
    (
        "for max tokens",
        rf"Allocated {_SIZE} for max tokens(?: in paged KV cache)? \({_COUNT}\)",
        (("pool", "size"), ("tokens", "count")),
    ),
    (
        "Memory dynamically allocated during inference (inside torch)",
        rf"Memory dynamically allocated during inference \(inside torch\)[^:]*: {_SIZE}",
        (("activation", "size"),),
    ),
    (
        "Memory used outside torch (",
        rf"Memory used outside torch \([^)]*\)[^:]*: {_SIZE}",
        (("non_torch", "size"),),
    ),
    (
        "Peak memory during memory usage profiling (torch + non-torch):",
        (
            rf"Peak memory during memory usage profiling \(torch \+ non-torch\): {_SIZE}, "
            rf"available KV cache memory when calculating max tokens: {_SIZE}, "
            rf"fraction is set {_RATIO}, kv size is {_COUNT}\. device total memory {_SIZE}"
            rf"(?:[, ]{{1,6}}tmp kv_mem {_SIZE})?"
        ),
        (
            ("peak", "size"),
            ("pool_estimated", "size"),
            ("share", "ratio"),
            ("token_bytes", "count"),
            ("visible", "size"),
            ("trial_pool", "size"),
        ),
    ),
    (
        "Number of tokens per block:",
        rf"Number of tokens per block: {_COUNT}",
        (("block_tokens", "count"),),
    ),
    (
        "tokens per block=",
        rf"tokens per block={_COUNT}, primary blocks={_COUNT}",
        (
            ("block_tokens", "count"),
            ("blocks", "count"),
        ),
    ),
    (
        "Number of blocks in KV cache primary pool:",
        rf"Number of blocks in KV cache primary pool: {_COUNT}",
        (("blocks", "count"),),
    ),
    (
        ", max_num_requests=",
        rf"max_seq_len={_COUNT}, max_num_requests={_COUNT}, max_num_tokens={_COUNT}",
        (("context", "count"), ("sequences", "count"), ("batched_tokens", "count")),
    ),
    (
        "calculating max tokens in paged kv cache: total:",
        rf"calculating max tokens in paged kv cache: total: {_SIZE}, available: {_SIZE}",
        (("visible", "size"), ("free_after_weights", "size")),
    ),
    (
        "Memory used after loading model weights (inside torch)",
        rf"Memory used after loading model weights \(inside torch\)[^:]*: {_SIZE}",
        (("weights", "size"),),
    ),
    (
        "free_gpu_memory_fraction",
        rf"free_gpu_memory_fraction[=:]\s*{_RATIO}",
        (("share", "ratio"),),
    ),
)

_LLAMA: Final[tuple[_Pattern, ...]] = (
    (
        "model buffer size =",
        rf"(?:load_tensors|llm_load_tensors):{_GAP} model buffer size =\s*{_SIZE}",
        (("weights", "sum"),),
    ),
    (
        "llama_kv_cache",
        (
            rf"llama_kv_cache\w*{_GAP}\bsize\s*=\s*{_SIZE} "
            rf"\(\s*{_COUNT} cells,\s*{_COUNT} layers,{_GAP}\), "
            rf"K \((\w+)\):\s*{_SIZE}, V \((\w+)\):\s*{_SIZE}"
        ),
        (
            ("pool", "sum"),
            ("cells", "count"),
            ("layers", "count"),
            ("kv_format", "word"),
            ("k_cache", "sum"),
            ("v_format", "word"),
            ("v_cache", "sum"),
        ),
    ),
    (
        "llama_memory_recurrent",
        (
            rf"llama_memory_recurrent{_GAP}\bsize\s*=\s*{_SIZE} \(\s*{_COUNT} cells,{_GAP}\), "
            rf"R \(\w+\):\s*{_SIZE}, S \(\w+\):\s*{_SIZE}"
        ),
        (
            ("states", "sum"),
            ("state_slots", "count"),
            ("conv_cache", "sum"),
            ("state_cache", "sum"),
        ),
    ),
    (
        "KV self size",
        rf"KV self size\s*=\s*{_SIZE}, K \((\w+)\):\s*{_SIZE}, V \((\w+)\):\s*{_SIZE}",
        (
            ("pool", "sum"),
            ("kv_format", "word"),
            ("k_cache", "sum"),
            ("v_format", "word"),
            ("v_cache", "sum"),
        ),
    ),
    ("compute buffer size =", rf"\w* compute buffer size =\s*{_SIZE}", (("activation", "sum"),)),
    ("output buffer size =", rf"\w* output buffer size =\s*{_SIZE}", (("output", "sum"),)),
    ("n_ctx", rf"\bn_ctx\s*=\s*{_COUNT}", (("context", "count"),)),
    ("n_ubatch", rf"\bn_ubatch\s*=\s*{_COUNT}", (("batched_tokens", "count"),)),
    ("n_seq_max", rf"\bn_seq_max\s*=\s*{_COUNT}", (("sequences", "count"),)),
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
    "kv_layout": r"\b(fp8_ds_mla) KV cache format",
    "state_dtype": r"\bmamba_ssm_(?:cache_)?dtype'?[=:] ?'?(?:torch\.)?(\w+)",
    "file_type": r"\b(?:file type|model ftype)\s*= (?:\(guessed\) ?)?([\w .-]{2,40})",
    "expert_parallel": r"\benable_expert_parallel'?[=:] ?(True|False)",
    "data_parallel_attention": r"\benable_dp_attention'?[=:] ?(True|False)",
}
_SIZES: Final = {
    "tensor_parallel": r"\b(?:tensor_parallel_size|tp_size|tensor_parallel)'?[=:] ?(\d{1,6})",
    "pipeline_parallel": r"\b(?:pipeline_parallel_size|pp_size)'?[=:] ?(\d{1,6})",
    "data_parallel": r"\b(?:data_parallel_size|dp_size)'?[=:] ?(\d{1,6})",
    "decode_context_parallel": r"\bdecode_context_parallel_size'?[=:] ?(\d{1,6})",
    "expert_ranks": r"\bep_size'?[=:] ?(\d{1,6})",
    "context": r"\b(?:max_seq_len|max_model_len)'?[=:] ?(\d{1,12})",
    "batched_tokens": r"\b(?:max_num_batched_tokens|chunked_prefill_size)'?[=:] ?(\d{1,12})",
    "sequences": r"\bmax_num_seqs'?[=:] ?(\d{1,12})",
    "block_tokens": r"\b(?:block_size|page_size)'?[=:] ?(\d{1,12})",
}
#: What a line that states a setting has.
_STATES: Final = re.compile(
    r"_size\b|_len\b|model|dtype|quant|max_num|enable_|file type|ftype|_mla KV"
)
#: What a process writes once when it starts, by engine. The first of these that the log has tells
#: one start from the next one: where a process writes it again.
_STARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm": (
        r"vLLM API server version ",
        r"non-default args: ",
        r"Initializing an? (?:V1 )?LLM engine \(v",
        r"Starting to load model ",
    ),
    "sglang": (r"server_args=ServerArgs\(",),
    "llama.cpp": (r"\bbuild(?::| =) \d{1,9} \(",),
}
#: The process that writes a line, at its start.
_PROCESS: Final = re.compile(r"\((\w{1,60})")
_VERSION: Final = re.compile(
    r"(?:engine \(v|vLLM API server version |LLM engine version |\[TensorRT-LLM\] TensorRT[- ]LLM"
    r" version: |TensorRT-LLM version: |sglang[ =]v?)(\d{1,5}\.\d{1,5}[\w.+-]{0,40})"
)
#: How vLLM's lines name the process that wrote them: ``(Worker_TP0 pid=7)``,
#: ``(VllmWorker rank=1 pid=7)``, ``(EngineCore_DP0 pid=5)``, ``(RayWorkerWrapper pid=7, ip=...)``.
_WORKER: Final = re.compile(
    r"\((?:(?P<core>EngineCore)|(?:Vllm|Ray)?Worker(?:Process|Wrapper|Proc)?)(?:_\d{1,6}\b)?[_ ]?"
    r"(?P<rank>rank=\d{1,6}|(?:[A-Z]{2,4}\d{1,6})(?:[_ ][A-Z]{2,4}\d{1,6}){0,5})?"
    r"(?:[^)]{0,20}?pid=(?P<pid>\d{1,12}))?[^)]{0,60}\)"
)
#: Sequences that colour a terminal.
_COLOUR: Final = re.compile(r"\x1b\[[0-?]{0,20}[ -/]{0,5}[@-~]")
_SGLANG_RANK: Final = re.compile(r"\b((?:DP\d+ )?(?:TP\d+)(?: EP\d+)?(?: PP\d+)?)\]")


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
        return tuple(_identities(self))

    def broken(self) -> tuple[Identity, ...]:
        """Return the identities that do not hold."""
        return tuple(identity for identity in self.identities() if not identity.holds)


def parse_log(text: str, engine: str | None = None) -> EngineLog:
    """Return the figures of a start-up log of vLLM, SGLang, TensorRT-LLM or llama.cpp.

    Which `engine` wrote it is told from its words, unless it is given. Old and new wordings of
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
    if engine is None:
        engine = _engine(text)
    elif engine not in _ENGINES:
        raise InvalidValueError("engine", engine, f"must be one of {', '.join(_ENGINES)}")
    lines = list(_lines(text, engine))
    workers = {found["pid"]: found["rank"] for found in _WORKER.finditer(text) if found["rank"]}
    ranked = [(line, _rank(line, engine, workers)) for line in lines]
    begins = _begins(ranked, engine)
    found = [
        _log_of(ranked[begin:end], engine)
        for begin, end in zip(begins, [*begins[1:], len(ranked)], strict=True)
    ]
    started = [number for number, log in enumerate(found) if log.figures]
    if not started:
        raise LlmcalcError(f"log_text: no memory figures of {engine} are in it")
    complete = [number for number in started if found[number].figure("tokens") is not None]
    number = (complete or started)[-1]
    return attrs.evolve(found[number], starts=len(found), start=number + 1)


def _begins(lines: list[tuple[str, str]], engine: str) -> list[int]:
    """Return the numbers of the lines at which a start begins; the first one begins the log."""
    for words in _STARTS.get(engine, ()):
        pattern = re.compile(words)
        begins: list[int] = []
        seen: set[tuple[str, str]] = set()
        for number, (line, rank) in enumerate(lines):
            if pattern.search(line):
                named = _PROCESS.match(line)
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
    patterns = [
        (words, re.compile(pattern), groups) for words, pattern, groups in _ENGINES[engine][1]
    ]
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
        if _STATES.search(line):
            _read_settings(line, settings)
        found = None if version else _VERSION.search(line)
        version = found[1] if found else version
        ranks.add(rank)
        if len(ranks) > _MOST_RANKS:
            raise InvalidValueError(
                "log_text", len(ranks), f"must be of at most {_MOST_RANKS} processes"
            )
    figures += sums.values()
    if engine in {"sglang", "llama.cpp"}:
        figures = list(_joined(figures, engine))
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
    text = _COLOUR.sub("", text.replace("\r\n", "\n"))
    if engine == "vllm":
        text = re.sub(r"(GiB[;)]|seconds)[ \t]*\n[ \t]*(?=(?:the|model|x|PyTorch) )", r"\1 ", text)
    for line in text.splitlines():
        if len(line) > _SHORTEST_LINE:
            yield line[:_LONGEST_LINE]


def _rank(line: str, engine: str, workers: Mapping[str, str]) -> str:
    """Return what the line calls the process that wrote it.

    A worker that only says its process number has the name that it states elsewhere.
    """
    if engine == "sglang":
        named = _SGLANG_RANK.search(line[:300])
        return named[1] if named else ""
    rank = ""
    for found in _WORKER.finditer(line[:300]):  # the innermost process stands last
        pid = found["pid"] or ""
        if found["rank"]:
            rank = found["rank"].replace("rank=", "rank ")
        elif not found["core"]:
            rank = workers.get(pid) or (f"pid {pid}" if pid else rank)
    return rank


def _joined(figures: list[Figure], engine: str) -> Iterator[Figure]:
    """Give the figures with one cache for each rank, and its tokens.

    SGLang prints a pool for windowed layers and one for the others, and then one for the layers of
    a draft model; llama.cpp has caches of several sizes, of which the largest holds the context.
    """
    pools = 2 if any(figure.name == "window_tokens" for figure in figures) else 1
    parts: dict[tuple[str, str], list[Figure]] = {}
    cells: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.name == "cells":
            cells.setdefault(figure.rank, []).append(figure)
        elif engine == "sglang" and figure.name in {"k_cache", "v_cache", "pool"}:
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
            own = several[:pools] if engine == "sglang" else several
            yield attrs.evolve(max(own, key=_by_value), name="tokens")


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


def _identities(log: EngineLog) -> Iterator[Identity]:
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


def _repeated(log: EngineLog, rank: str) -> Iterator[Identity]:
    """Give the figures that one process prints twice: both must be the same."""
    if log.engine != "vllm":  # the others print a draft model's figures under the same names
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


def _later_identities(log: EngineLog, rank: str) -> Iterator[Identity]:
    """Give what vLLM prints of one process beside its budget, as sums of other figures."""

    def find(name: str) -> Figure | None:
        return log.figure(name, rank) or (log.figure(name, "") if rank else None)

    sums: tuple[tuple[str, str, tuple[str, ...], int], ...] = (
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
    )  # fmt: skip
    for name, whole, parts, constant in sums:
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
