"""What start-up logs say in further wordings, and from several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import GiB, LlmcalcError, load_model, memory, serving
from llmcalc.errors import UnknownNameError
from llmcalc.huggingface import hub
from llmcalc.serving.logs import EngineLog
from llmcalc.units import MiB

CONFIG = (
    "(EngineCore pid=5) INFO Initializing a V1 LLM engine (v0.19.0) with config: "
    "model='meta-llama/Llama-3.1-8B', dtype=torch.bfloat16, max_seq_len=8192, "
    "tensor_parallel_size={tensor}, pipeline_parallel_size=1, quantization=None, "
    "kv_cache_dtype=auto\n"
)

#: One device, every line that vLLM 0.19 writes of its memory.
FULL = (
    CONFIG.format(tensor=1)
    + """\
(EngineCore pid=5) DEBUG worker init memory snapshot: torch_peak=0.01GiB, free_memory=78.68GiB, \
total_memory=79.19GiB, cuda_memory=0.51GiB, torch_memory=0.02GiB, non_torch_memory=0.49GiB, \
timestamp=1.2
(EngineCore pid=5) DEBUG worker requested memory: 75.23GiB
(EngineCore pid=5) INFO Model loading took 14.99 GiB memory and 4.321 seconds
(EngineCore pid=5) INFO Estimated CUDA graph memory: 0.84 GiB total
(EngineCore pid=5) DEBUG Initial free memory: 78.68 GiB; Requested memory: 0.950000 (util), \
75.23 GiB
(EngineCore pid=5) DEBUG Free memory after profiling: 62.49 GiB (total), 59.04 GiB (within \
requested)
(EngineCore pid=5) DEBUG Memory profiling takes 9.11 seconds. Total non KV cache memory: \
17.12GiB; torch peak memory increase: 1.89GiB; non-torch forward increase memory: 0.25GiB; \
weights memory: 14.99GiB.
(EngineCore pid=5) INFO Available KV cache memory: 58.11 GiB
(EngineCore pid=5) INFO GPU KV cache size: 476,016 tokens
(EngineCore pid=5) INFO Maximum concurrency for 8,192 tokens per request: 58.11x
(EngineCore pid=5) INFO Graph capturing finished in 6 secs, took 0.91 GiB
(EngineCore pid=5) INFO CUDA graph pool memory: 0.91 GiB (actual), 0.84 GiB (estimated), \
difference: 0.07 GiB (7.7%).
(EngineCore pid=5) DEBUG Free memory on device (78.68/79.19 GiB) on startup. Desired GPU memory \
utilization is (0.95, 75.23 GiB). Actual usage is 14.99 GiB for weight, 1.89 GiB for peak \
activation, 0.25 GiB for non-torch memory, and 0.91 GiB for CUDAGraph memory. Replace \
gpu_memory_utilization config with `--kv-cache-memory=61259907072` (57.05 GiB) to fit into \
requested memory, or `--kv-cache-memory=64964328653` (60.50 GiB) to fully utilize gpu memory. \
Current kv cache memory in use is 58.11 GiB.
(APIServer pid=1) DEBUG vllm cache_config_info with initialization after num_gpu_blocks is: 29751
""".replace("\\\n", "")
)

#: The same in the words of 0.33, which counts weights and all else as one.
NEWEST = (
    CONFIG.format(tensor=1).replace("v0.19.0", "v0.33.0")
    + """\
(EngineCore pid=5) DEBUG worker init memory snapshot: torch_peak=0.01GiB, free_memory=78.68GiB, \
total_memory=79.19GiB, cuda_memory=0.51GiB, torch_memory=0.02GiB, non_torch_memory=0.49GiB
(EngineCore pid=5) INFO Model loading took 14.99 GiB memory and 4.321 seconds
(EngineCore pid=5) DEBUG Initial free memory: 78.68 GiB; Requested memory: 0.950000 (util), \
75.23 GiB
(EngineCore pid=5) DEBUG Memory profiling takes 9.11 seconds. Total non KV cache memory: \
17.04GiB; torch peak memory increase: 1.89GiB; total consumed (from mem_get_info): 15.24GiB; \
weights memory: 14.99GiB.
(EngineCore pid=5) INFO Available KV cache memory: 57.35 GiB
(EngineCore pid=5) INFO GPU KV cache size: 469,814 tokens, Maximum concurrency for 8,192 tokens \
per request: 57.35x
(EngineCore pid=5) DEBUG Free memory on device (78.68/79.19 GiB) on startup. Desired GPU memory \
utilization is (0.95, 75.23 GiB). Actual usage is 15.24 GiB for consumed memory (weights + \
non-torch), 2.64 GiB for peak activation, and 0.91 GiB for CUDAGraph memory. Replace \
gpu_memory_utilization config with `--kv-cache-memory=60440927272` (56.29 GiB) to fit into \
requested memory, or `--kv-cache-memory=64145336565` (59.74 GiB) to fully utilize gpu memory. \
Current kv cache memory in use is 57.35 GiB.
""".replace("\\\n", "")
)


def _broken(text: str) -> str:
    return serving.reconcile(text).explanation


def _figures(log: EngineLog) -> dict[str, float]:
    return {one.name: one.value for one in log.figures}


def test_a_full_log_is_consistent() -> None:
    answer = serving.reconcile(FULL)
    assert answer, answer.explanation
    assert len(answer.identities) > 20
    assert answer["pool"].agrees


@pytest.mark.parametrize(
    ("printed", "invented", "broken"),
    [
        ("cuda_memory=0.51", "cuda_memory=0.71", "used = visible - free"),
        ("torch_memory=0.02", "torch_memory=0.12", "torch + non-torch"),
        ("free_memory=78.68", "free_memory=77.68", "free_at_start is the same"),
        ("0.950000 (util)", "0.850000 (util)", "share is the same"),
        ("62.49 GiB (total)", "63.49 GiB (total)", "free within requested"),
        ("59.04 GiB (within", "57.04 GiB (within", "free within requested"),
        ("took 0.91 GiB", "took 1.91 GiB", "graphs is the same"),
        ("Estimated CUDA graph memory: 0.84", "Estimated CUDA graph memory: 0.44",
         "graphs_estimated is the same"),
        ("difference: 0.07", "difference: 0.27", "actual less estimated"),
        ("61259907072", "71259907072", "suggested pool = its bytes"),
        ("(57.05 GiB)", "(56.05 GiB)", "150 MiB"),
        ("(60.50 GiB)", "(61.50 GiB)", "suggested pools differ"),
        ("in use is 58.11", "in use is 57.11", "pool in use = pool"),
        ("29751", "29351", "blocks = what the printed pool holds"),
        ("memory: 75.23GiB", "memory: 74.23GiB", "requested is the same"),
    ],
)  # fmt: skip
def test_every_line_is_held_against_another(printed: str, invented: str, broken: str) -> None:
    assert printed in FULL
    assert broken in _broken(FULL.replace(printed, invented))


def test_the_newest_wording_is_understood() -> None:
    answer = serving.reconcile(NEWEST)
    assert answer, answer.explanation
    figures = _figures(answer.log)
    assert figures["consumed"] == round(15.24 * GiB)
    assert figures["activation_and_graphs"] == round(2.64 * GiB)
    assert figures["tokens"] == 469814
    assert figures["concurrency"] == 57.35
    # The pool, from what is printed of the terms that no profile has.
    assert answer["pool"].computed == pytest.approx(57.35 * GiB, rel=0.0005)
    assert "was not measured" in answer["pool"].note
    for printed, invented, broken in (
        ("2.64 GiB for peak", "3.64 GiB for peak", "pool = requested - consumed"),
        ("total consumed (from mem_get_info): 15.24", "total consumed (from mem_get_info): 16.24",
         "consumed is the same"),
        ("(56.29 GiB)", "(55.29 GiB)", "activation and graphs - graphs - 150 MiB"),
    ):  # fmt: skip
        assert broken in _broken(NEWEST.replace(printed, invented))


def test_a_pool_is_not_computed_from_terms_that_nobody_states() -> None:
    text = "\n".join(line for line in NEWEST.splitlines() if "DEBUG" not in line)
    answer = serving.reconcile(text, share=0.95, visible_bytes=round(79.19 * GiB))
    assert answer["pool"].computed is None
    assert answer["tokens"].agrees


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("(EngineCore pid=5)", "\x1b[1;36m(EngineCore pid=5)\x1b[0;0m"),
        lambda text: "\n".join(f"vllm-1  | {line}" for line in text.splitlines()),
        lambda text: text.replace(" GiB", " gib").replace("GiB;", "GIB;"),
        lambda text: text.replace("58.11 GiB", "59504.64 MiB").replace("14.99 GiB", "14.99 GB"),
        lambda text: "\n".join([*text.splitlines(), *text.splitlines()]),
        lambda text: text.replace("(EngineCore pid=5) INFO", "INFO 04-22 worker.py:1]"),
    ],
    ids=["CRLF", "colours", "compose", "case", "units", "twice", "no process"],
)
def test_the_dress_of_a_log_does_not_matter(change: Callable[[str], str]) -> None:
    answer = serving.reconcile(change(FULL))
    assert answer, answer.explanation
    plain = serving.reconcile(FULL)
    for ours, other in zip(answer.comparisons, plain.comparisons, strict=True):
        assert ours.term == other.term
        assert ours.computed == other.computed
        assert ours.printed == pytest.approx(other.printed)


@pytest.mark.parametrize("line", range(1, FULL.count("\n")))
def test_a_missing_line_is_no_contradiction(line: int) -> None:
    lines = FULL.splitlines()
    answer = serving.reconcile("\n".join(lines[:line] + lines[line + 1 :]))
    assert answer, answer.explanation


RANKS = {
    "new": ("(Worker_TP0 pid=7)", "(Worker_TP1 pid=8)", ("TP0", "TP1")),
    "nested": (
        "(EngineCore_0 pid=5) (VllmWorker TP0 pid=7)",
        "(EngineCore_0 pid=5) (VllmWorker TP1 pid=8)",
        ("TP0", "TP1"),
    ),
    "numbered": ("(VllmWorker rank=0 pid=7)", "(VllmWorker rank=1 pid=8)", ("rank 0", "rank 1")),
    "processes": ("", "(VllmWorkerProcess pid=8)", ("", "pid 8")),
    "ray": ("", "(RayWorkerWrapper pid=8, ip=10.0.0.2)", ("", "pid 8")),
    "data parallel": ("(Worker_DP0_TP0 pid=7)", "(Worker_DP0_TP1 pid=8)", ("DP0_TP0", "DP0_TP1")),
}


@pytest.mark.parametrize("kind", RANKS)
def test_interleaved_processes_are_told_apart(kind: str) -> None:
    first, second, names = RANKS[kind]
    lines = [CONFIG.format(tensor=2).strip()]
    for name, more in ((first, 0.0), (second, 0.30)):
        profiled = (
            f"{name} DEBUG Total non KV cache memory: {11.47 + more:.2f}GiB; torch peak memory "
            f"increase: 1.89GiB; non-torch forward increase memory: {2.07 + more:.2f}GiB; "
            "weights memory: 7.51GiB."
        )
        free = (
            f"{name} DEBUG Initial free memory: {77.66 - more:.2f} GiB; Requested memory: "
            "0.950000 (util), 75.23 GiB"
        )
        pool = f"{name} INFO Available KV cache memory: {63.76 - more:.2f} GiB"
        lines += [free, profiled, pool]
    interleaved = [lines[0], *(lines[1 + i % 2 * 3 + i // 2] for i in range(6))]
    log = serving.parse_log("\n".join(interleaved))
    assert tuple(figure.rank for figure in log.ranks("pool")) == names
    assert not log.broken(), log.broken()
    # The rank with the least memory decides.
    assert log.tightest_rank == names[1]
    assert log.figure("pool").text == "63.46GiB"  # type: ignore[union-attr]


def test_a_worker_that_only_says_its_process_number_has_the_name_that_it_says_elsewhere() -> None:
    text = CONFIG.format(tensor=2) + (
        "(Worker pid=8) DEBUG worker requested memory: 75.23GiB\n"
        "(Worker_TP1 pid=8) INFO Model loading took 7.51 GiB memory and 3 seconds\n"
        "(Worker pid=9) DEBUG worker requested memory: 75.23GiB\n"
    )
    ranks = [figure.rank for figure in serving.parse_log(text).ranks("requested")]
    assert ranks == ["TP1", "pid 9"]


def test_replicas_of_a_mixture_share_its_experts() -> None:
    text = (
        "Initializing a V1 LLM engine (v0.19.0) with config: model='Qwen/Qwen3-30B-A3B', "
        "dtype=torch.bfloat16, max_seq_len=8192, tensor_parallel_size=1, data_parallel_size=4, "
        "quantization=None, kv_cache_dtype=auto\n"
        "non-default args: {'enable_expert_parallel': True}\n"
        "(EngineCore_DP0 pid=7) Model loading took 16.5 GiB memory and 9 seconds\n"
        "(EngineCore_DP1 pid=8) Model loading took 16.5 GiB memory and 9 seconds\n"
    )
    answer = serving.reconcile(text)
    assert answer, answer.explanation
    assert answer["weights"].computed == pytest.approx(16.43 * GiB, rel=0.005)


def test_replicas_have_pools_of_their_own() -> None:
    text = CONFIG.format(tensor=1) + (
        "(EngineCore_DP0 pid=7) INFO Available KV cache memory: 58.11 GiB\n"
        "(EngineCore_DP1 pid=8) INFO Available KV cache memory: 57.80 GiB\n"
        "(EngineCore_DP0 pid=7) INFO GPU KV cache size: 476,016 tokens\n"
        "(EngineCore_DP1 pid=8) INFO GPU KV cache size: 473,488 tokens\n"
        "(APIServer pid=1) Engine 000: vllm cache_config_info after num_gpu_blocks is: 29751\n"
        "(APIServer pid=1) Engine 001: vllm cache_config_info after num_gpu_blocks is: 29593\n"
    )
    log = serving.parse_log(text)
    assert not log.broken(), log.broken()
    assert [figure.value for figure in log.ranks("tokens")] == [476016, 473488]


def test_an_unknown_model_of_a_log_is_neither_read_nor_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama"}', encoding="utf-8")
    monkeypatch.setattr(hub, "config", lambda name: pytest.fail(f"asks the hub for {name}"))
    for name in ("example/no-such-model-1B", str(file), str(tmp_path), "../hosts", "x" * 299):
        with pytest.raises(UnknownNameError):
            serving.reconcile(FULL.replace("meta-llama/Llama-3.1-8B", name))
    # A folder on the engine's machine is known by its last part.
    there = serving.reconcile(FULL.replace("meta-llama/Llama-3.1-8B", "/models/Llama-3.1-8B/"))
    assert there.model == "meta-llama/Llama-3.1-8B"


def test_recurrent_states_are_by_default_as_wide_as_the_engine_has_them() -> None:
    """vLLM printed 242 534 tokens for 5.85 GiB; states are in the model's format."""
    text = (
        "Initializing a V1 LLM engine (v0.21.0) with config: "
        "model='Qwen/Qwen3-Next-80B-A3B-Instruct', dtype=torch.bfloat16, max_seq_len=65536\n"
        "Setting attention block size to 544 tokens to ensure that attention page size is >= "
        "mamba page size.\n"
        "Available KV cache memory: 5.85 GiB\nGPU KV cache size: 248,459 tokens\n"
        "Maximum concurrency for 65,536 tokens per request: 3.79x\n"
    )
    answer = serving.reconcile(text)
    assert answer, answer.explanation
    wide = serving.reconcile(text, state={"conv": "bf16", "state": "fp32"})
    assert wide["tokens"].computed is not None
    assert answer["tokens"].computed is not None
    assert wide["tokens"].computed < answer["tokens"].computed


def test_states_and_the_inputs_of_convolutions_have_formats_of_their_own() -> None:
    model = load_model("Qwen/Qwen3-Next-80B-A3B-Instruct")

    def held(state: str | dict[str, str]) -> int:
        return memory.kv_cache_bytes(model, context=0, kv="bf16", state=state).total

    # 36 layers: states of 32 x 128 x 128 elements; three inputs of 8192 channels.
    state, conv = 36 * 32 * 128 * 128, 36 * 3 * 8192
    assert held("bf16") == 2 * (state + conv)
    assert held({"state": "fp32", "conv": "bf16"}) == 4 * state + 2 * conv
    for wrong in ({"state": "fp32"}, {"state": "fp32", "conv": "bf16", "kv": "bf16"}, {}):
        with pytest.raises(LlmcalcError, match="one for each of state, conv"):
            held(wrong)


def test_the_error_that_a_context_does_not_fit_is_read() -> None:
    text = (
        "INFO vLLM engine (v0.19.0) model='Qwen/Qwen3-32B'\nValueError: To serve at least one "
        "request with the model's max seq len (40960), (10.00 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (1.25 GiB). Based on the available memory, the "
        "estimated maximum model length is 5120. "
    )
    answer = serving.reconcile(text)
    assert answer["needed"].computed == 10 * GiB
    assert answer["needed"].agrees
    assert answer["pool"].printed == 1.25 * GiB
    assert answer.log.value("longest_context") == 5120


ARGUMENTS = "(APIServer pid=1) INFO non-default args: {'max_num_batched_tokens': 8192}\n"


def _alike(one: EngineLog, other: EngineLog) -> bool:
    return (one.figures, one.settings, one.version) == (
        other.figures,
        other.settings,
        other.version,
    )


@pytest.mark.parametrize("arguments", ["", ARGUMENTS])
def test_of_several_starts_the_last_complete_one_counts(arguments: str) -> None:
    once = arguments + FULL
    larger = once.replace("476,016", "475,000").replace("58.11x", "57.98x")
    cut = once[: once.index("(EngineCore pid=5) INFO GPU KV cache size")]
    alone = serving.parse_log(once)
    assert (alone.starts, alone.start) == (1, 1)
    for text, starts, start in (
        (larger + once, 2, 2),
        (once + cut, 2, 1),
        (cut + once + cut, 3, 2),
    ):
        log = serving.parse_log(text.replace("pid=5", "pid=6", 3))
        assert (log.starts, log.start) == (starts, start)
        assert _alike(log, alone)
        assert not log.broken()
        answer = serving.reconcile(text)
        assert answer
        assert f"start {start} of the {starts} in the log" in answer.explain()
    # None came to the end: the last one that says anything.
    assert _alike(serving.parse_log(once.partition("\n")[0] + "\n" + cut), serving.parse_log(cut))
    # What contradicts itself within a start still does.
    invented = once.replace("Available KV cache memory: 58.11", "Available KV cache memory: 59.11")
    assert not serving.reconcile(once + invented)


def test_replicas_are_not_several_starts() -> None:
    lines = [CONFIG.format(tensor=1), FULL[FULL.index("(EngineCore pid=5) DEBUG worker init") :]]
    for name in ("EngineCore_{}", "EngineCore_DP{}"):
        both = "".join(
            line.replace("EngineCore", name.format(replica)) for line in lines for replica in (0, 1)
        )
        assert serving.parse_log(both).starts == 1
        assert serving.parse_log(both * 2).starts == 2


def test_sglang_and_llama_cpp_may_start_several_times() -> None:
    log = serving.parse_log(SGLANG * 2)
    assert (log.starts, log.start) == (2, 2)
    assert log.figures == serving.parse_log(SGLANG).figures
    llama = "build: 4474 (39509fb0) with MSVC 19.29.30157.0 for\n" + LLAMA
    log = serving.parse_log(llama * 3)
    assert (log.starts, log.start) == (3, 3)
    assert log.figures == serving.parse_log(llama).figures


def test_a_log_of_more_starts_than_any_has_is_refused() -> None:
    with pytest.raises(LlmcalcError, match="starts of the engine"):
        serving.parse_log(CONFIG.format(tensor=1) * 1002 + FULL)


SGLANG = """
[2026-01-01 10:00:00] server_args=ServerArgs(model_path='openai/gpt-oss-20b', tp_size=1, \
mem_fraction_static=0.85, page_size=1, kv_cache_dtype='auto')
[2026-01-01 10:00:01] Load weight begin. avail mem=78.50 GB
[2026-01-01 10:00:09] Load weight end. elapsed=8.10 s, type=GptOssForCausalLM, \
dtype=torch.bfloat16, avail mem=64.90 GB, mem usage=13.60 GB.
[2026-01-01 10:00:09] Use sliding window memory pool. full_layer_tokens=1000000, \
swa_layer_tokens=800000
[2026-01-01 10:00:10] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 800000, \
K size: 9.16 GB, V size: 9.16 GB
[2026-01-01 10:00:10] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 1000000, \
K size: 11.44 GB, V size: 11.44 GB
[2026-01-01 10:00:11] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 1000000, \
K size: 0.95 GB, V size: 0.95 GB
[2026-01-01 10:00:20] Capture cuda graph end. Time elapsed: 5.02 s. mem usage=0.60 GB. \
avail mem=9.30 GB.
[2026-01-01 10:00:24] Capture draft CUDA graph end. elapsed=2.02 s, mem usage=0.20 GB, \
avail mem=9.10 GB.
[2026-01-01 10:00:25] max_total_num_tokens=1000000, chunked_prefill_size=8192, \
max_prefill_tokens=16384, max_running_requests=2048, context_len=131072, \
available_gpu_mem=9.10 GB
""".replace("\\\n", "")


def test_sglang_has_a_pool_for_windowed_layers_and_one_for_a_draft() -> None:
    answer = serving.reconcile(SGLANG)
    assert answer, answer.explanation
    # Twelve full and twelve windowed layers of 8 heads x 64 elements x 2 bytes.
    held = 12 * 8 * 64 * 2 * (1000000 + 800000)
    assert answer.log.value("k_cache") == pytest.approx(held, rel=0.001)
    assert answer["tokens"].printed == 1000000
    assert answer["tokens"].agrees
    assert answer.log.value("graphs") == pytest.approx(0.8 * GiB)
    assert "tokens = what the printed pool holds" in _broken(
        SGLANG.replace("K size: 11.44", "K size: 13.44")
    )


def test_sglang_splits_attention_over_fewer_ranks_where_it_is_data_parallel() -> None:
    text = (
        "server_args=ServerArgs(model_path='deepseek-ai/DeepSeek-V3', tp_size=8, dp_size=8, "
        "enable_dp_attention=True, mem_fraction_static=0.8) sglang\n"
        "[2026-01-01 10:00:09 DP0 TP0] KV Cache is allocated. #tokens: 500000, KV size: 32.72 GB\n"
        "[2026-01-01 10:00:09 DP0 TP0] max_total_num_tokens=500000, context_len=8192\n"
    )
    answer = serving.reconcile(text)
    assert answer, answer.explanation
    assert answer["bytes a token"].computed == 61 * 576 * 2


TENSORRT = """
[TensorRT-LLM] TensorRT-LLM version: 1.2.0
[TRT-LLM] [I] Memory used after loading model weights (inside torch) in memory usage profiling: \
14.99 GiB
[TRT-LLM] [I] Memory dynamically allocated during inference (inside torch) in memory usage \
profiling: 0.85 GiB
[TRT-LLM] [I] Memory used outside torch (e.g., NCCL and CUDA graphs) in memory usage profiling: \
1.40 GiB
[TRT-LLM] [I] Peak memory during memory usage profiling (torch + non-torch): 17.80 GiB, available \
KV cache memory when calculating max tokens: 55.76 GiB, fraction is set 0.8999999761581421, \
kv size is 131072. device total memory 79.19 GiB, , tmp kv_mem 0.56 GiB
[TensorRT-LLM][INFO] Number of tokens per block: 32.
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 55.76 GiB for max tokens in paged KV cache (456768).
[TRT-LLM] [I] max_seq_len=8192, max_num_requests=64, max_num_tokens=8192, max_batch_size=64
""".replace("\\\n", "")


def test_tensorrt_llm_states_its_estimate() -> None:
    answer = serving.reconcile(TENSORRT, "meta-llama/Llama-3.1-8B", weights="bf16", kv="bf16")
    assert answer, answer.explanation
    figures = _figures(answer.log)
    assert figures["activation"] == round(0.85 * GiB)
    assert figures["non_torch"] == round(1.4 * GiB)
    assert figures["token_bytes"] == 131072
    assert figures["visible"] == round(79.19 * GiB)
    assert answer["tokens"].agrees
    assert "(total - peak + trial pool) x fraction" in serving.reconcile(
        TENSORRT.replace("17.80 GiB", "27.80 GiB"), "meta-llama/Llama-3.1-8B"
    ).explanation  # fmt: skip


def test_tensorrt_llm_takes_its_fraction_of_what_is_free() -> None:
    text = (
        "[TensorRT-LLM][INFO] Loaded engine size: 15340 MiB\n"
        "[TensorRT-LLM][INFO] Memory usage when calculating max tokens in paged kv cache: total: "
        "31.84 GiB, available: 17.83 GiB\nfree_gpu_memory_fraction=0.9\n"
        "[TensorRT-LLM][INFO] Number of blocks in KV cache primary pool: 4108\n"
        "[TensorRT-LLM][INFO] Number of tokens per block: 32.\n"
        "[TensorRT-LLM][INFO] [MemUsageChange] Allocated 16.05 GiB for max tokens in paged KV "
        "cache (131456)\nmax_seq_len=8192\n"
    )
    answer = serving.reconcile(text, "meta-llama/Llama-3.1-8B")
    assert answer, answer.explanation
    assert answer["pool"].agrees


LLAMA = """
print_info: file format = GGUF V3 (latest)
print_info: file type   = Q4_K - Medium
print_info: file size   = 4.58 GiB (4.89 BPW)
load_tensors:   CPU_Mapped model buffer size =   281.81 MiB
load_tensors:        CUDA0 model buffer size =  4403.49 MiB
llama_context: n_ctx         = 8192
llama_context: n_ubatch      = 512
llama_kv_cache: size = 1024.00 MiB (  8192 cells,  32 layers,  1/1 seqs), K (f16):  512.00 MiB, \
V (f16):  512.00 MiB
""".replace("\\\n", "")


def test_llama_cpp_states_the_type_of_its_file() -> None:
    answer = serving.reconcile(LLAMA, "meta-llama/Llama-3.1-8B")
    assert answer, answer.explanation
    assert answer["weights"].agrees
    assert answer["pool"].printed == answer["pool"].computed == 1024 * MiB
    # Without the type nobody knows what the weights should take.
    silent = serving.reconcile(LLAMA.replace("file type", "type"), "meta-llama/Llama-3.1-8B")
    assert silent
    assert silent["weights"].computed is None


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("all F32", "fp32"), ("F16", "fp16"), ("BF16", "bf16"), ("Q8_0", "Q8_0"),
        ("Q2_K - Medium", "Q2_K"), ("Q3_K - Large", "Q3_K_L"), ("Q4_K - Small", "Q4_K_S"),
        ("Q5_K - Medium", "Q5_K_M"), ("Q6_K", "Q6_K"), ("IQ4_XS - 4.25 bpw", "IQ4_XS"),
        ("IQ3_S mix - 3.66 bpw", "IQ3_M"), ("IQ2_XXS - 2.0625 bpw", "IQ2_XXS"),
    ],
)  # fmt: skip
def test_types_of_files_are_the_mixes(stated: str, name: str) -> None:
    spec = load_model("meta-llama/Llama-3.1-8B")
    answer = serving.reconcile(LLAMA.replace("Q4_K - Medium", stated), spec)
    assert answer["weights"].computed == memory.weight_bytes(spec, weights=name).total


def test_llama_cpp_has_a_smaller_cache_for_windowed_layers() -> None:
    text = """
llama_context: n_ctx         = 32768
llama_kv_cache_iswa: creating non-SWA KV cache, size = 32768 cells
llama_kv_cache: size =  640.00 MiB ( 32768 cells,   5 layers,  1/1 seqs), K (f16):  320.00 MiB, \
V (f16):  320.00 MiB
llama_kv_cache_iswa: creating     SWA KV cache, size = 1536 cells
llama_kv_cache: size =  174.00 MiB (  1536 cells,  29 layers,  1/1 seqs), K (f16):   87.00 MiB, \
V (f16):   87.00 MiB
""".replace("\\\n", "")
    gemma = load_model("google/gemma-3-4b-it")
    answer = serving.reconcile(text, gemma)
    assert answer, answer.explanation
    assert answer["tokens"].printed == 32768
    assert answer["tokens"].agrees
    assert answer["pool"].printed == answer["pool"].computed == 814 * MiB
    # Of several sequences nobody knows the cells of windows.
    several = text.replace("n_ctx ", "n_seq_max     = 2\nllama_context: n_ctx ")
    assert serving.reconcile(several, gemma)["pool"].computed is None
    assert (
        "tokens = what the printed pool holds"
        in serving.reconcile(
            text.replace("174.00 MiB (  1536 cells", "174.00 MiB (  9536 cells"), gemma
        ).explanation
    )


@pytest.mark.parametrize(
    "text",
    [
        "vllm\n" * 400_000,
        "Available KV cache memory: 58.11 GiB\n" * 40_000,
        "vllm " + "(Worker_TP0 pid=" * 100_000,
        "vllm " + "9" * 2_000_000,
        "sglang\n" + "KV Cache is allocated. #tokens: 1, \n" * 50_000,
        "load_tensors:\n"
        + "llama_kv_cache: size = 1 MiB ( 1 cells, 1 layers, , K (f16): \n" * 50_000,
    ],
    ids=["lines", "figures", "processes", "digits", "sglang", "llama.cpp"],
)
def test_hostile_logs_come_to_an_end(text: str) -> None:
    with contextlib.suppress(LlmcalcError):
        assert serving.reconcile(text, "meta-llama/Llama-3.1-8B").explain()


def test_a_log_of_more_processes_than_any_start_has_is_refused() -> None:
    text = "".join(
        f"(Worker_TP{n} pid={n}) Available KV cache memory: 1.00 GiB\n" for n in range(5000)
    )
    with pytest.raises(LlmcalcError, match="at most 4096 processes"):
        serving.parse_log(text)


@given(st.binary(max_size=200), st.integers(0, len(FULL)))
def test_noise_in_a_log_raises_nothing_but_the_library_s_error(noise: bytes, where: int) -> None:
    text = FULL[:where] + noise.decode("latin-1") + FULL[where:]
    try:
        answer = serving.reconcile(text, load_model("meta-llama/Llama-3.1-8B"))
    except LlmcalcError:
        return
    assert answer.explain()
