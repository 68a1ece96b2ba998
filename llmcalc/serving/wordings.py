"""Wordings: what engines print when they start, as patterns of their lines.

* `Wording`: what tells an engine's log, and what its lines say.
* `WORDINGS`: those of the engines, by name.
* `SETTINGS`, `SIZES`: how settings are written, whatever the engine; `STATES`: in which lines.
* `VERSION`, `PROCESS`, `WORKER`, `COLOUR`: versions, processes and colours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeAlias

import attrs

from llmcalc.described import Described

__all__ = [
    "COLOUR",
    "PROCESS",
    "SETTINGS",
    "SIZES",
    "STATES",
    "VERSION",
    "WORDINGS",
    "WORKER",
    "Pattern",
    "Wording",
]

#: A number with its unit; engines print no exponents.
_SIZE: Final = r"(-?\d{1,15}(?:\.\d{1,12})?)\s*((?i:[TGMK]iB|[GMK]B))\b"
_COUNT: Final = r"(\d[\d,]{0,20})"
_RATIO: Final = r"(\d{1,12}(?:\.\d{1,20})?)"
#: What stands between two figures of a line; bounded, so that no line takes long.
_GAP: Final = r".{0,300}?"

#: What a line says: words that it must have, a pattern, and the name and kind of each of its
#: groups. The words are part of the pattern, and stand there so that most lines take no time.
Pattern: TypeAlias = tuple[str, str, tuple[tuple[str, str], ...]]

_VLLM: Final[tuple[Pattern, ...]] = (
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

_SGLANG: Final[tuple[Pattern, ...]] = (
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

_TENSORRT: Final[tuple[Pattern, ...]] = (
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

_LLAMA: Final[tuple[Pattern, ...]] = (
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


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Wording(Described):
    """What tells an engine's log from others, and what its lines say.

    `tells`
        A pattern of words that its lines have, and those of others have less often.
    `patterns`
        Its lines that have figures.
    `starts`
        What a process writes once when it starts. The first of these that the log has tells one
        start from the next one: where a process writes it again.
    `process`
        How a line names the process that wrote it; without it, as workers of vLLM do.
    `broken`
        Where a message is broken over several lines: the break is no end of a line.
    `prints_cells`
        Whether its caches have cells, of which the largest number holds the context.
    `prints_drafts`
        Whether the caches of a draft model follow those of the model in the same words.
    `repeats_figures`
        Whether what one process prints twice must be the same each time.
    `tokens_are_blocks`
        Whether its tokens are those of all blocks.
    """

    tells: str
    patterns: tuple[Pattern, ...]
    starts: tuple[str, ...] = ()
    process: re.Pattern[str] | None = None
    broken: re.Pattern[str] | None = None
    prints_cells: bool = False
    prints_drafts: bool = False
    repeats_figures: bool = False
    tokens_are_blocks: bool = False


#: The wordings by the engines' names, in the order in which they are tried.
WORDINGS: Final[Mapping[str, Wording]] = {
    "sglang": Wording(
        tells=r"sglang|Load weight (?:begin|end)\.|KV Cache is allocated\.|max_total_num_tokens=",
        patterns=_SGLANG,
        starts=(r"server_args=ServerArgs\(",),
        process=re.compile(r"\b((?:DP\d+ )?(?:TP\d+)(?: EP\d+)?(?: PP\d+)?)\]"),
        prints_cells=True,
        prints_drafts=True,
    ),
    "tensorrt-llm": Wording(
        tells=r"TensorRT-LLM|TRT-LLM|\[MemUsageChange\]",
        patterns=_TENSORRT,
        tokens_are_blocks=True,
    ),
    "llama.cpp": Wording(
        tells=r"llama_kv_cache|llm_load_|llama_context|load_tensors:|ggml_",
        patterns=_LLAMA,
        starts=(r"\bbuild(?::| =) \d{1,9} \(",),
        prints_cells=True,
    ),
    "vllm": Wording(
        tells=(
            r"vLLM|vllm|gpu_worker|worker\.py|Model loading took|GPU KV cache size"
            r"|KV cache is needed|model weights take|Available KV cache memory"
            r"|Maximum concurrency|# (?:GPU|cuda|CUDA) blocks"
        ),
        patterns=_VLLM,
        starts=(
            r"vLLM API server version ",
            r"non-default args: ",
            r"Initializing an? (?:V1 )?LLM engine \(v",
            r"Starting to load model ",
        ),
        # 0.6 to 0.8
        broken=re.compile(
            r"(?<=GiB[;)])[ \t]*\n[ \t]*(?=(?:the|model|x|PyTorch) )"
            r"|(?<=seconds)[ \t]*\n[ \t]*(?=(?:the|model|x|PyTorch) )"
        ),
        repeats_figures=True,
    ),
}

#: Settings, wherever the log states them: names of ours, and how engines write them.
SETTINGS: Final = {
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
SIZES: Final = {
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
STATES: Final = re.compile(
    r"_size\b|_len\b|model|dtype|quant|max_num|enable_|file type|ftype|_mla KV"
)
#: The process that writes a line, at its start.
PROCESS: Final = re.compile(r"\((\w{1,60})")
VERSION: Final = re.compile(
    r"(?:engine \(v|vLLM API server version |LLM engine version |\[TensorRT-LLM\] TensorRT[- ]LLM"
    r" version: |TensorRT-LLM version: |sglang[ =]v?)(\d{1,5}\.\d{1,5}[\w.+-]{0,40})"
)
#: How vLLM's lines name the process that wrote them: ``(Worker_TP0 pid=7)``,
#: ``(VllmWorker rank=1 pid=7)``, ``(EngineCore_DP0 pid=5)``, ``(RayWorkerWrapper pid=7, ip=...)``.
WORKER: Final = re.compile(
    r"\((?:(?P<core>EngineCore)|(?:Vllm|Ray)?Worker(?:Process|Wrapper|Proc)?)(?:_\d{1,6}\b)?[_ ]?"
    r"(?P<rank>rank=\d{1,6}|(?:[A-Z]{2,4}\d{1,6})(?:[_ ][A-Z]{2,4}\d{1,6}){0,5})?"
    r"(?:[^)]{0,20}?pid=(?P<pid>\d{1,12}))?[^)]{0,60}\)"
)
#: Sequences that colour a terminal.
COLOUR: Final = re.compile(r"\x1b\[[0-?]{0,20}[ -/]{0,5}[@-~]")
