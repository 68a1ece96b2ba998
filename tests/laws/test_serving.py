"""What must hold for cache policies, budgets and start-up logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import attrs
import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st

from llmcalc import (
    GiB,
    Layout,
    LlmcalcError,
    ModelSpec,
    formats,
    load_model,
    memory,
    roofline,
    serving,
)
from llmcalc.engines import Engine, OfRest, PoolRule
from llmcalc.errors import UnknownNameError
from llmcalc.formats import Coverage, Rule
from llmcalc.serving.logs import EngineLog
from llmcalc.spec import Attention, Axis, Block, Layer, Linear, Part
from llmcalc.strategies import dense_specs
from tests.truth import rows

CONTEXTS = st.integers(0, 2**18)
BLOCKS = st.sampled_from([1, 16, 32, 64])
STEPS = st.sampled_from([1, 512, 8192])
#: Windows, windows of fewer layers, latents, states, shared and compressed caches, an indexer.
MIXED = (
    "google/gemma-2-9b",
    "google/gemma-3-1b-it",
    "google/gemma-3-4b-it",
    "openai/gpt-oss-20b",
    "mistralai/Mistral-7B-v0.1",
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V4-Flash",
    "zai-org/GLM-5.2-FP8",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "ibm-granite/granite-4.0-h-small",
    "state-spaces/mamba-130m-hf",
    "google/recurrentgemma-2b",
    "LiquidAI/LFM2-350M",
)
ENGINES = st.sampled_from(["vllm-0.8", "vllm-0.11", "vllm-0.19", "vllm-0.24", "vllm-0.26"])


def _mixed(name: str) -> ModelSpec:
    return load_model(name)


@given(dense_specs(), CONTEXTS, BLOCKS)
def test_of_uniform_attention_paged_wastes_less_than_a_block(
    spec: ModelSpec, context: int, block: int
) -> None:
    paged = serving.allocate(spec, context=context, kv="bf16", block_tokens=block)
    ideal = memory.kv_cache_bytes(spec, context=context, kv="bf16").total
    assert set(paged.bytes.by()) == {"ideal", "last-block waste"}
    assert paged.bytes["ideal"].total == ideal
    assert paged.block_bytes is not None
    assert 0 <= paged.request_bytes - ideal < paged.block_bytes


@pytest.mark.parametrize("name", MIXED)
@given(CONTEXTS, BLOCKS, STEPS, ENGINES, st.integers(1, 3))
def test_paged_is_ideal_and_its_three_wastes(
    name: str, context: int, block: int, step: int, engine: str, states: int
) -> None:
    spec = _mixed(name)
    paged = serving.allocate(
        spec,
        context=context,
        kv="bf16",
        block_tokens=block,
        batched_tokens=step,
        engine=engine,
        state_blocks=states,
    )
    leaves = paged.bytes.by()
    assert set(leaves) <= {"ideal", "last-block waste", "window slack", "group padding"}
    assert all(value >= 0 for value in leaves.values())
    assert leaves["ideal"] == memory.kv_cache_bytes(spec, context=context, kv="bf16").total
    assert paged.blocks is not None
    assert paged.block_bytes is not None
    assert sum(leaves.values()) == paged.blocks * paged.block_bytes


@given(dense_specs(), CONTEXTS, st.integers(0, 2**40), st.integers(0, 2**40), ENGINES)
def test_a_larger_pool_or_a_shorter_context_never_holds_less(
    spec: ModelSpec, context: int, pool: int, more: int, engine: str
) -> None:
    for policy in ("ideal", "contiguous", "paged"):
        request = serving.allocate(
            spec,
            context=context + 1,
            kv="bf16",
            policy=policy,
            engine=engine,
        )
        shorter = serving.allocate(
            spec,
            context=context,
            kv="bf16",
            policy=policy,
            engine=engine,
        )
        held, larger = request.requests(pool), request.requests(pool + more)
        assert held is not None
        assert larger is not None
        assert held <= larger
        shorter_held = shorter.requests(pool)
        assert shorter_held is None or shorter_held >= held


@given(dense_specs(), CONTEXTS, st.integers(0, 2**40))
def test_as_many_requests_fit_as_are_said_and_no_more(
    spec: ModelSpec, context: int, pool: int
) -> None:
    for request in serving.policies(spec, context=context + 1, kv="bf16").values():
        held = request.requests(pool)
        assert held is not None
        assert (
            held * request.request_bytes
            <= pool
            < (held + 1) * request.request_bytes + (request.block_bytes or 0)
        )


@given(dense_specs(), CONTEXTS, CONTEXTS)
def test_contiguous_reserves_the_longest_context(spec: ModelSpec, context: int, more: int) -> None:
    request = serving.allocate(
        spec, context=context, kv="bf16", policy="contiguous", max_context=context + more
    )
    longest = memory.kv_cache_bytes(spec, context=context + more, kv="bf16").total
    assert request.request_bytes == longest
    if more:
        with pytest.raises(LlmcalcError, match="must reach context"):
            serving.allocate(
                spec, context=context + more, kv="bf16", policy="contiguous", max_context=context
            )


@pytest.mark.parametrize(
    ("name", "context", "engine", "blocks"),
    [
        # Worked by hand from vLLM's rules: full layers hold 512 blocks of 16 tokens, windows of
        # up to 8192 tokens 512 and one more; Gemma 3 has five windowed groups to one.
        ("google/gemma-2-9b", 8192, "vllm-0.19", 512 + 513),
        ("google/gemma-3-12b-it", 8192, "vllm-0.19", 512 + 5 * 513),
        ("google/gemma-2-9b", 8192, "vllm-0.8", 512),
        # Windows of 128 and a step of 8192: 8319 tokens in 520 blocks and one.
        ("openai/gpt-oss-20b", 131072, "vllm-0.19", 8192 + 521),
        # From 0.26 on the tokens of two steps: 16 511 in 1032 blocks and one.
        ("openai/gpt-oss-20b", 131072, "vllm-0.26", 8192 + 1033),
        # A state of 1 114 112 B takes a block of 544 tokens; three groups of states.
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 65536, "vllm-0.21", 121 + 3),
        # 26 layers: 22 windowed in six groups of four, four full ones.
        ("google/gemma-3-1b-it", 8192, "vllm-0.19", 512 + 6 * 513),
    ],
)
def test_blocks_of_a_request(name: str, context: int, engine: str, blocks: int) -> None:
    spec = load_model(name)
    request = serving.allocate(spec, context=context, kv="bf16", state="bf16", engine=engine)
    assert request.blocks == blocks


def test_beside_states_blocks_of_latents_are_multiples_of_what_their_kernels_take() -> None:
    configs = {row["model_type"]: row["config"] for row in rows("default_configs")}
    kimi = load_model(configs["kimi_linear"], name="kimi")
    request = serving.allocate(kimi, context=65536, kv="bf16", state="bf16")
    states, latents = request.groups
    # 32 x 128 x 128 elements and three inputs of 3 x 4096 channels, beside latents of 576.
    state = 2 * (32 * 128 * 128 + 3 * 3 * 4096)
    assert latents.block_tokens == 64 * -(-state // (64 * 576 * 2)) == 1024
    assert states.page_bytes == latents.page_bytes == 1024 * 576 * 2


def test_two_states_a_request_give_the_printed_tokens() -> None:
    """vLLM with prefix caching printed 708 425 tokens for 16.63 GiB and 242 534 for 5.85 GiB."""
    spec = load_model("Qwen/Qwen3-Next-80B-A3B-Instruct")
    for context, pool, blocks, tokens in (
        (131072, 16.63, 1335, 708425),
        (65536, 5.85, 470, 242534),
    ):
        request = serving.allocate(
            spec, context=context, kv="bf16", state="bf16", engine="vllm-0.21", state_blocks=2
        )
        assert request.block_bytes is not None
        # The printed pool is rounded to 0.01 GiB, which is less than a block.
        assert abs(blocks * request.block_bytes / GiB - pool) < 0.02
        assert request.tokens(blocks * request.block_bytes) == tokens


def test_padding_of_groups_is_a_leaf() -> None:
    spec = load_model("google/gemma-3-1b-it")
    request = serving.allocate(spec, context=8192, kv="bf16")
    # 22 windowed layers stand in six groups of four: two empty layers of 513 blocks.
    assert request.bytes.by()["group padding"] == 2 * 513 * 16 * 2 * 256 * 2


@pytest.mark.parametrize(
    ("engine", "windowed", "groups"),
    [
        # 20 full layers and more windowed ones: as many to a group as of the fewer kind, or of the
        # other one where that has less than 25 % or 50 % more.
        ("vllm-0.11", 24, {20: 3}),
        ("vllm-0.15", 24, {24: 2}),
        ("vllm-0.15", 25, {20: 3}),
        ("vllm-0.17", 28, {20: 3}),
        ("vllm-0.18", 28, {28: 2}),
        ("vllm-0.19", 30, {20: 3}),
    ],
)
def test_versions_even_out_groups_of_nearly_as_many_layers(
    engine: str, windowed: int, groups: dict[int, int]
) -> None:
    spec = load_model(
        {
            "model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 20 + windowed,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
            "vocab_size": 100, "head_dim": 16, "sliding_window": 64,
            "layer_types": ["full_attention"] * 20 + ["sliding_attention"] * windowed,
        }
    )  # fmt: skip
    found: dict[int, int] = {}
    for group in serving.allocate(spec, context=4096, kv="bf16", engine=engine).groups:
        found[group.layers_per_group] = found.get(group.layers_per_group, 0) + group.count
    assert found == groups


def test_in_a_pipeline_windows_hold_the_tokens_of_a_step_for_each_stage() -> None:
    spec = load_model("openai/gpt-oss-20b")
    for stages, tokens in ((1, 127 + 2 * 8192), (2, 127 + 2 * 8192), (4, 127 + 4 * 8192)):
        request = serving.allocate(
            spec, context=131072, kv="bf16", engine="vllm-0.26",
            layout=Layout(pipeline_parallel=stages), rank=0,
        )  # fmt: skip
        windowed = next(group for group in request.groups if group.label == "window 128")
        assert windowed.blocks == -(-tokens // 16) + 1


def test_pages_that_do_not_divide_are_padded_or_shared() -> None:
    odd = load_model(
        {
            "model_type": "gemma4_text", "hidden_size": 64, "num_hidden_layers": 6,
            "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 128,
            "vocab_size": 100, "head_dim": 24, "global_head_dim": 40, "sliding_window": 64,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        }
    )  # fmt: skip
    shared = serving.allocate(odd, context=4096, kv="bf16", engine="vllm-0.23", batched_tokens=64)
    padded = serving.allocate(odd, context=4096, kv="bf16", engine="vllm-0.24", batched_tokens=64)
    assert sum(group.count for group in shared.groups) == 1
    assert shared.bytes["window slack"].total > 0
    assert "group padding" not in shared.bytes.by()
    assert padded.bytes["group padding"].total > 0
    assert padded.request_bytes < shared.request_bytes


@given(dense_specs(), st.integers(1, 8), CONTEXTS)
def test_decode_context_parallelism_shares_the_slots(
    spec: ModelSpec, degree: int, context: int
) -> None:
    layout = Layout(tensor_parallel=degree, decode_context_parallel=degree)
    try:
        request = serving.allocate(spec, context=context, kv="bf16", layout=layout)
    except LlmcalcError:
        reject()
    share = -(-context // degree)
    assert request.blocks == -(-share // 16)
    assert request.tokens(2**40) == (request.pool_blocks(2**40) or 0) * 16 * degree


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-V3", "google/gemma-3-1b-it"])
@given(CONTEXTS, BLOCKS, STEPS, st.integers(0, 7))
@example(17, 16, 512, 3)
def test_ranks_that_share_out_slots_take_as_many_blocks(
    name: str, context: int, block: int, step: int, rank: int
) -> None:
    spec, layout = load_model(name), Layout(tensor_parallel=8, decode_context_parallel=4)
    request = serving.allocate(
        spec, context=context, kv="bf16", block_tokens=block, batched_tokens=step,
        layout=layout, rank=rank,
    )  # fmt: skip
    ideal = memory.kv_cache_bytes(spec, context=context, kv="bf16", layout=layout, rank=rank)
    leaves = request.bytes.by()
    assert all(value >= 0 for value in leaves.values())
    assert leaves["ideal"] == ideal.total
    assert sum(leaves.values()) == request.request_bytes
    first = serving.allocate(
        spec, context=context, kv="bf16", block_tokens=block, batched_tokens=step, layout=layout
    )
    assert (request.blocks, request.block_bytes) == (first.blocks, first.block_bytes)


@pytest.mark.parametrize("policy", ["ideal", "contiguous", "paged"])
def test_replicas_hold_requests_alike(policy: Any) -> None:
    layout = Layout(tensor_parallel=2, data_parallel=2)
    first, last = (
        serving.allocate(
            LLAMA, context=1000, kv="bf16", policy=policy, layout=layout, rank=rank,
            max_context=2000 if policy == "contiguous" else None,
        )
        for rank in (0, 3)
    )  # fmt: skip
    assert first.bytes.total == last.bytes.total > 0
    assert first.blocks == last.blocks


@pytest.mark.parametrize(
    "name", ["llama-3-8b", "mamba-2.8b-hf", "Qwen3-Next-80B-A3B-Instruct", "DeepSeek-V4-Flash"]
)
@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
def test_what_is_reserved_is_at_least_what_every_rank_holds(name: str, engine: str) -> None:
    spec = load_model(name)
    for layout in (Layout(tensor_parallel=2), Layout(tensor_parallel=4, decode_context_parallel=2)):
        try:
            layout.rank(0, spec)
        except LlmcalcError:  # the model's heads forbid it
            continue
        for rank in range(layout.devices):
            held = memory.kv_cache_bytes(spec, context=1024, kv="bf16", layout=layout, rank=rank)
            asked: dict[str, Any] = {"context": 1024, "kv": "bf16", "policy": "contiguous"}
            answer = serving.allocate(spec, engine=engine, layout=layout, rank=rank, **asked)
            reserved = answer.bytes.by()["reserved"]
            assert all(term.value >= 0 for term in answer.bytes.terms)
            assert answer.bytes.total == held.total + reserved > 0
            if engine == "vllm":  # which reserves the longest context, and no more
                assert reserved == 0


def test_sparse_attention_has_a_packed_cache() -> None:
    spec = load_model("DeepSeek-V3.2-Exp")
    # vLLM, MLAAttentionSpec and DeepseekV32IndexerCache; SGLang printed 43.67 GiB for 975 424.
    width = 61 * (512 + 16 + 2 * 64 + 128 + 4)
    held = memory.kv_cache_bytes(spec, context=64, kv="fp8-ds-mla")
    assert held.total == 64 * width
    assert 43.67 * GiB / 975_424 == pytest.approx(width, rel=2e-4)
    request = serving.allocate(spec, context=64, kv="fp8-ds-mla", block_tokens=64)
    assert request.block_bytes == 64 * width
    moved = roofline.bytes_moved(spec, batch=1, new=1, past=63, weights="bf16", kv="fp8-ds-mla")
    assert moved["cache written"].total == width
    wide = memory.kv_cache_bytes(spec, context=1, kv="bf16", index="fp8-group128")
    assert wide.total == 61 * (2 * 576 + 132)
    with pytest.raises(LlmcalcError, match="a layout of latents"):
        memory.kv_cache_bytes(LLAMA, context=1, kv="fp8-ds-mla")


def test_a_log_says_how_the_cache_of_sparse_attention_is_packed() -> None:
    width, blocks = 61 * (656 + 132), 10_000
    log = f"""
Initializing a V1 LLM engine (v0.19.0) with config: model='deepseek-ai/DeepSeek-V3.2-Exp', \
dtype=torch.bfloat16, max_seq_len=8192, tensor_parallel_size=8, kv_cache_dtype=fp8
Using DeepSeek's fp8_ds_mla KV cache format.
Available KV cache memory: {blocks * 64 * width / GiB:.2f} GiB
GPU KV cache size: {blocks * 64:,} tokens
""".replace("\\\n", "")
    answer = serving.reconcile(log, block_tokens=64)
    assert answer["bytes a token"].computed == width
    assert answer["bytes a token"].agrees
    assert answer
    plain = serving.reconcile(log.replace("fp8_ds_mla", "another"), block_tokens=64)
    assert plain["bytes a token"].computed == 61 * (576 + 132)
    assert not plain


def _as_vllm(
    spec: ModelSpec, layout: Layout, context: int, pool: int, most: float
) -> list[tuple[int, float]]:
    """Blocks and concurrency on each stage, from lists of layers as vLLM makes them.

    Source: vLLM, ``v1/core/kv_cache_utils.py`` (``_get_kv_cache_groups_uniform_page_size``,
    ``_project_kv_cache_groups_to_worker``, ``get_max_concurrency_for_kv_cache_config``).
    """
    windows: list[int | None] = []
    pages = set()
    for run in spec.layers:
        [part] = [part for part in run.layer.parts if isinstance(part, Attention)]
        windows += [getattr(part.span, "size", None)] * run.count
        pages.add(16 * 2 * part.kv_heads * part.head_dim * 2)
    [page] = pages
    kinds: dict[int | None, list[int]] = {}
    for number, window in enumerate(windows):
        kinds.setdefault(window, []).append(number)
    size = min(map(len, kinds.values()))
    largest = max(map(len, kinds.values()))
    if largest < size * most:
        size = largest
    groups = []
    for window, numbers in kinds.items():
        count = -(-len(numbers) // size)
        groups += [(window, set(numbers[first::count])) for first in range(count)]
    needed = 0
    for window, _ in groups:
        held = context if window is None else min(window - 1 + 8192, context)
        needed += -(-held // 16) + (window is not None)
    found, start = [], 0
    for stage in layout.stages(spec):
        here = set(range(start, start + stage.layers))
        start += stage.layers
        blocks = pool // page // max(len(numbers & here) for _, numbers in groups)
        found.append((blocks, blocks / needed))
    return found


@pytest.mark.parametrize(("engine", "most"), [("vllm-0.11", 1.0), ("vllm-0.19", 1.5)])
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8, 13])
@pytest.mark.parametrize(
    "name", ["gemma-3-27b-it", "gemma-3-12b-it", "gemma-2-9b", "gpt-oss-20b", "gpt-oss-120b"]
)
def test_a_pipeline_has_the_groups_of_the_whole_model(
    name: str, stages: int, engine: str, most: float
) -> None:
    spec, layout = load_model(name), Layout(pipeline_parallel=stages)
    for context in (4096, 131072):
        for rank, (blocks, concurrency) in enumerate(
            _as_vllm(spec, layout, context, 40 * GiB, most)
        ):
            request = serving.allocate(
                spec, context=context, kv="bf16", engine=engine, layout=layout, rank=rank
            )
            assert request.pool_blocks(40 * GiB) == blocks
            assert request.concurrency(40 * GiB) == concurrency
            assert request.bytes.total == request.request_bytes


@pytest.mark.parametrize(
    ("stated", "head"),
    [
        ("auto", 2 * 128), ("fp8_e4m3", 128), ("fp8_per_token_head", 128 + 4),
        ("int8_per_token_head", 128 + 4), ("nvfp4", 128 // 2 + 128 // 16),
    ],
)  # fmt: skip
def test_a_log_says_what_the_cache_is_in(stated: str, head: int) -> None:
    width, blocks = 32 * 8 * 2 * head, 20_000
    log = f"""
Initializing a V1 LLM engine (v0.19.0) with config: model='meta-llama/Llama-3.1-8B', \
dtype=torch.bfloat16, max_seq_len=8192, kv_cache_dtype={stated}
Available KV cache memory: {blocks * 16 * width / GiB:.2f} GiB
GPU KV cache size: {blocks * 16:,} tokens
""".replace("\\\n", "")
    answer = serving.reconcile(log)
    assert answer["bytes a token"].computed == width
    assert answer["bytes a token"].agrees
    assert answer


def test_nothing_held_is_no_limit() -> None:
    spec = load_model("state-spaces/mamba-130m-hf")
    request = serving.allocate(spec, context=1000, kv="bf16")
    assert request.blocks == 1
    empty = attrs.evolve(request, bytes=request.bytes.__class__(request.bytes.unit, "none", ()))
    none = attrs.evolve(empty, block_bytes=None, blocks=None, groups=())
    assert none.requests(2**30) is None
    assert none.concurrency(2**30) is None
    assert none.tokens(2**30) is None
    assert none.pool_blocks(2**30) is None


# Budgets ------------------------------------------------------------------------------------

LLAMA = load_model("meta-llama/Llama-3.1-8B")


def _budget(**more: Any) -> serving.Budget:
    arguments: dict[str, Any] = {
        "context": 8192, "weights": "bf16", "kv": "bf16", "visible_bytes": 80 * GiB,
    }  # fmt: skip
    return serving.budget(LLAMA, **(arguments | more))


@given(st.integers(1, 2**38), st.integers(1, 2**17))
@example(2**30, 8192)
def test_a_budget_fits_where_a_request_fits_its_pool(visible: int, context: int) -> None:
    answer = _budget(visible_bytes=visible, context=context)
    assert answer.pool_bytes == (
        answer.requested_bytes
        - answer.weight_bytes
        - answer.activation_bytes
        - answer.non_torch_bytes
    )
    assert bool(answer) is (answer.pool_bytes >= answer.allocation.request_bytes)
    assert answer.pool_bytes + answer.short_bytes >= answer.allocation.request_bytes
    assert ("does not fit" in answer.reason) is not answer.fits
    assert answer.explain().endswith(answer.reason)


def test_a_term_that_is_given_is_taken() -> None:
    answer = _budget(
        weight_bytes=10 * GiB, activation_bytes=2 * GiB, non_torch_bytes=GiB, graph_bytes=GiB,
        share=0.5,
    )  # fmt: skip
    assert answer.pool_bytes == 26 * GiB


def test_a_term_that_the_profile_does_not_know_is_asked_for() -> None:
    with pytest.raises(LlmcalcError, match="give activation_bytes"):
        _budget(engine="vllm-0.8")
    with pytest.raises(LlmcalcError, match="give non_torch_bytes"):
        _budget(engine="vllm-0.8", activation_bytes=0)
    with pytest.raises(LlmcalcError, match="for 2 ranks: give non_torch_bytes"):
        _budget(engine="vllm-0.17", tensor_parallel=2)
    with pytest.raises(LlmcalcError, match="give graph_bytes"):
        _budget(engine="vllm-0.21", activation_bytes=0, non_torch_bytes=0)
    # All that is missing at once, in the words of the log that has it.
    with pytest.raises(LlmcalcError) as refused:
        _budget(engine="vllm-0.21", tensor_parallel=2)
    assert str(refused.value) == (
        "engine = 'vllm-0.21': was not measured for 2 ranks: give activation_bytes (torch peak "
        "memory increase), non_torch_bytes (non-torch forward increase memory), graph_bytes "
        "(Estimated CUDA graph memory); the words in brackets are those of the engine's start-up "
        "log"
    )
    zero = {"activation_bytes": 0, "non_torch_bytes": 0, "graph_bytes": 0}
    assert _budget(engine="vllm-0.21", tensor_parallel=2, **zero).pool_bytes > 0
    with pytest.raises(LlmcalcError, match="give it, or a device"):
        _budget(visible_bytes=None)
    with pytest.raises(LlmcalcError, match="not both"):
        _budget(device="H100-SXM-80GB")
    with pytest.raises(UnknownNameError, match="vllm-0"):
        _budget(engine="vllm-0.91")
    for share in (0, 1.5, True, "0.9", float("nan")):
        with pytest.raises(LlmcalcError, match="above 0 and at most 1"):
            _budget(share=share)


def test_smaller_devices_take_smaller_steps_by_default() -> None:
    large = _budget(visible_bytes=None, device="H100-SXM-80GB")
    small = _budget(visible_bytes=None, device="L4")
    assert large.activation_bytes == serving.activation_peak(LLAMA).total
    step = serving.activation_peak(LLAMA, batched_tokens=2048, sequences=256)
    assert small.activation_bytes == step.total
    a100 = _budget(visible_bytes=None, device="A100-SXM-80GB")
    assert a100.activation_bytes == small.activation_bytes
    assert _budget(visible_bytes=24 * GiB).activation_bytes == small.activation_bytes
    given = _budget(visible_bytes=24 * GiB, batched_tokens=8192, sequences=1024)
    assert given.activation_bytes == large.activation_bytes


def test_experts_keep_their_buffers_beside_either_peak() -> None:
    mixtral = load_model("mistralai/Mixtral-8x7B-v0.1")
    # Of two experts of 14 336 on two ranks: buffers as wide as one's inner width (or the hidden
    # one), and as wide as gate and up.
    buffers = 8192 * 2 * (7168 + 14336) * 2
    peak = serving.activation_peak(mixtral, tensor_parallel=2)
    assert peak["experts"].total == buffers
    sampler = (8192 + 1024) * 4096 * 2 + 1024 * 32000 * 14 + 132 * 32000 * 4 + 40 * 2**20
    assert peak.total == sampler + buffers
    # Experts that stand whole on a rank have buffers of their whole width.
    whole = serving.activation_peak(mixtral, layout=Layout(tensor_parallel=2, expert_parallel=True))
    assert whole["experts"].total == 8192 * 2 * (14336 + 28672) * 2
    # Few requests: the layer's peak counts, with the same buffers.
    few = serving.activation_peak(mixtral, tensor_parallel=2, sequences=1)
    assert few["experts"].total == buffers
    assert few["layer"].total == 8192 * 4 * 4096 * 2 + 16 * 2**20
    # v0.11 frees them: they are a layer's, and the sampler's peak is without them.
    before = serving.activation_peak(mixtral, engine="vllm-0.11", tensor_parallel=2, sequences=1)
    assert before["layer"].total == few["layer"].total + 8192 * 2 * (14336 + 7168) * 2
    assert "experts" not in before.by()


def test_kernels_hold_mxfp4_experts_in_tiles_with_their_scales_twice() -> None:
    gpt = load_model("openai/gpt-oss-20b")
    loaded = serving.loaded_weights(gpt, weights="checkpoint", tensor_parallel=2)
    # 32 experts in 24 layers. Inner width 1440 on a rank, 1472 as a multiple of 64: gate and up
    # have 2944 rows of 2880 elements, down 2880 rows of 1472. Values in tiles of 64 x 128
    # elements, scales in tiles of 256 rows and of 2 groups beside those of the file, fp32 biases.
    gate_and_up = 2944 * 2944 // 2 + 3072 * 90 + 2944 * 90 + 4 * 2944
    down = 2880 * 1536 // 2 + 3072 * 46 + 2880 * 46 + 4 * 2880
    held = 2 * 1440 * 90 * 17 + 2 * 1440 * 2 + 2880 * 45 * 17 + 2880 * 2
    assert loaded["kernels"].total == 32 * 24 * (gate_and_up + down - held)
    # Before v0.17 rows of 16 and 64 elements are a tile: nothing is padded on one device.
    before = serving.loaded_weights(gpt, weights="checkpoint", engine="vllm-0.11")
    scales = 5888 * 90 + 5760 * 90 + 3072 * 90 + 2880 * 90 - (5760 + 2880) * 90
    assert before["kernels"].total == 32 * 24 * (scales + 2 * (5760 + 2880))
    # Without such experts, or where the kernels are not known, there is nothing of it.
    plain = serving.loaded_weights(gpt, weights="bf16")
    unknown = serving.loaded_weights(gpt, weights="checkpoint", engine="vllm-0.21")
    assert "kernels" not in {*plain.by(), *unknown.by()}


def test_kernels_for_mxfp4_experts_keep_no_buffers() -> None:
    gpt = load_model("openai/gpt-oss-20b")
    peak = serving.activation_peak(gpt, weights="checkpoint", tensor_parallel=2)
    assert "experts" not in peak.by()
    assert serving.activation_peak(gpt, weights="bf16", tensor_parallel=2).total > peak.total


def test_latent_attention_expands_what_a_step_may_read_of_its_cache() -> None:
    model = load_model(
        {
            "model_type": "minicpm3", "hidden_size": 2560, "num_hidden_layers": 62,
            "num_attention_heads": 40, "num_key_value_heads": 40, "intermediate_size": 6400,
            "vocab_size": 73448, "q_lora_rank": 768, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32, "v_head_dim": 64,
        }
    )  # fmt: skip
    # 40 heads of 64 + 64 elements, 65 536 tokens: more than the sampler's peak.
    layer = 65536 * 40 * 128 * 2 + 8192 * 4 * 2560 * 2 + 16 * 2**20
    assert serving.activation_peak(model, sequences=64).total == layer
    # At most eight requests of the longest context, or four blocks for each of a step.
    short = serving.activation_peak(model, sequences=256, context=4096)
    assert short.total == 32768 * 40 * 128 * 2 + 8192 * 4 * 2560 * 2 + 16 * 2**20
    # Half the heads on each of two ranks.
    assert serving.activation_peak(model, sequences=64, tensor_parallel=2).total == (
        65536 * 20 * 128 * 2 + 8192 * 4 * 2560 * 2 + 16 * 2**20
    )


def test_of_a_pipeline_the_stage_with_the_least_decides() -> None:
    layout = Layout(pipeline_parallel=4)
    stages = [_budget(layout=layout, rank=rank) for rank in range(4)]
    answer = _budget(layout=layout)
    assert answer.concurrency == min(stage.concurrency or 0 for stage in stages)
    # The sampler stands on the last stage only.
    assert stages[0].activation_bytes < stages[3].activation_bytes


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-V3", "google/gemma-3-27b-it"])
@pytest.mark.parametrize("weights", ["bf16", "fp8-block128", "Q4_K_M"])
def test_what_is_kept_with_a_model_changes_no_budget(name: str, weights: str) -> None:
    used = load_model(name)
    layouts = (
        Layout(),
        Layout(tensor_parallel=2),
        Layout(tensor_parallel=2, pipeline_parallel=2),
        Layout(pipeline_parallel=4),
    )
    for engine in ("vllm-0.11", "vllm-0.19"):
        for layout in layouts:
            for context in (1000, 8192):
                arguments: dict[str, Any] = {
                    "context": context, "weights": weights, "kv": "fp8", "engine": engine,
                    "visible_bytes": 600 * GiB, "layout": layout,
                }  # fmt: skip
                fresh = attrs.evolve(used)
                assert fresh.ledger is not used.ledger
                answer = serving.budget(used, **arguments)
                again = serving.budget(fresh, **arguments)
                assert answer == again
                assert answer.explain() == again.explain()
                assert answer.allocation.explain() == again.allocation.explain()


def test_formats_of_the_same_name_are_told_apart() -> None:
    def own(size: int) -> Coverage:
        bits = formats.packed_integers("own", bits=size, group=128)
        rules = (Rule(format=bits),)
        return Coverage(name="own", wide=formats.get("bf16"), rules=rules)

    four, eight = (_budget(weights=own(size)).weight_bytes for size in (4, 8))
    assert four < 0.7 * eight


def test_what_no_step_has_is_refused() -> None:
    for wrong in (
        {"context": "long"}, {"context": -1}, {"block_tokens": 0}, {"rank": "first"}, {"rank": 1},
        {"batched_tokens": 1.5}, {"sequences": True},
    ):  # fmt: skip
        arguments: dict[str, Any] = wrong
        with pytest.raises(LlmcalcError, match=next(iter(wrong))):
            serving.activation_peak(LLAMA, **arguments)
    assert Layout(tensor_parallel=2, pipeline_parallel=3).place(5) == (0, 2, 1)


def test_engines_take_their_share_elsewhere() -> None:
    static = _budget(engine="sglang-0.5", share=0.8)
    assert static.pool_bytes == int(80 * GiB * 0.8) - static.weight_bytes
    free = _budget(engine="tensorrt-llm-1.2", share=0.9)
    assert free.pool_bytes == int((80 * GiB - free.weight_bytes) * 0.9)
    cells = _budget(engine="llama.cpp", context=4096)
    assert cells.allocation.policy == "contiguous"
    assert cells.allocation.request_bytes == 4096 * 131072
    # Cells come in blocks of 256; windowed layers have a step's beside the window.
    padded = _budget(engine="llama.cpp", context=5000).allocation
    assert padded.request_bytes == 5120 * 131072
    assert dict(padded.bytes.by()) == {"ideal": 5000 * 131072, "reserved": 120 * 131072}
    gemma = load_model("google/gemma-3-4b-it")
    request = serving.allocate(
        gemma, context=32768, kv="fp16", policy="contiguous", engine="llama.cpp"
    )
    assert request.request_bytes == (32768 * 5 + (1024 + 512) * 29) * 4096
    for answer in (static, free, cells):
        assert answer.explain()


def test_profiles_are_engines_with_a_pool_by_their_names() -> None:
    for name in serving.profiles():
        assert serving.profile(name).name == name
        assert serving.profile(name).pool_rule is not None


# Logs ---------------------------------------------------------------------------------------

NEW = """
(EngineCore pid=7) INFO [core.py:1] Initializing a V1 LLM engine (v0.19.1) with config: \
model='meta-llama/Llama-3.1-8B', dtype=torch.bfloat16, max_seq_len=4096, tensor_parallel_size=2, \
pipeline_parallel_size=1, quantization=None, kv_cache_dtype=auto
(Worker pid=8) DEBUG worker init memory snapshot: torch_peak=0.0GiB, free_memory=78.00GiB, \
total_memory=80.00GiB, cuda_memory=1.0GiB
(Worker_TP0 pid=8) INFO Model loading took 7.51 GiB memory and 3.99 seconds
(Worker_TP0 pid=8) DEBUG Initial free memory: 78.00 GiB; Requested memory: 0.900000 (util), \
72.00 GiB
(Worker_TP0 pid=8) DEBUG Memory profiling takes 9 seconds. Total non KV cache memory: 11.47GiB; \
torch peak memory increase: 1.89GiB; non-torch forward increase memory: 2.07GiB; \
weights memory: 7.51GiB.
(Worker_TP1 pid=9) DEBUG Memory profiling takes 9 seconds. Total non KV cache memory: 11.47GiB; \
torch peak memory increase: 1.89GiB; non-torch forward increase memory: 2.07GiB; \
weights memory: 7.51GiB.
(Worker_TP0 pid=8) INFO Available KV cache memory: 60.53 GiB
(EngineCore pid=7) INFO GPU KV cache size: 991,712 tokens
(EngineCore pid=7) INFO Maximum concurrency for 4,096 tokens per request: 242.12x
(Worker_TP0 pid=8) INFO CUDA graph pool memory: 0.76 GiB (actual), 1.69 GiB (estimated)
(APIServer pid=1) DEBUG vllm cache_config_info with initialization after num_gpu_blocks is: 61982
""".replace("\\\n", "")

OLD = """
INFO 07-02 llm_engine.py:1] Initializing an LLM engine (v0.6.6) with config: \
model='meta-llama/Meta-Llama-3-8B', dtype=torch.bfloat16, max_seq_len=8192, \
tensor_parallel_size=1
INFO 07-02 model_runner.py:1097] Loading model weights took 14.9595 GB
INFO 07-02 worker.py:241] the current vLLM instance can use total_gpu_memory (39.50GiB) x \
gpu_memory_utilization (0.90) = 35.55GiB
INFO 07-02 worker.py:241] model weights take 14.96GiB; non_torch_memory takes 0.10GiB; \
PyTorch activation peak memory takes 9.37GiB; \
the rest of the memory reserved for KV Cache is 11.12GiB.
INFO 07-02 gpu_executor.py:76] # GPU blocks: 5693, # CPU blocks: 2048
INFO 07-02 gpu_executor.py:80] Maximum concurrency for 8192 tokens per request: 11.12x
""".replace("\\\n", "")

SGLANG = """
[2026-01-01 10:00:00] server_args=ServerArgs(model_path='Qwen/Qwen3-8B', tp_size=1, \
mem_fraction_static=0.85, page_size=1, kv_cache_dtype='auto')
[2026-01-01 10:00:01] Load weight begin. avail mem=78.50 GB
[2026-01-01 10:00:09] Load weight end. type=Qwen3ForCausalLM, dtype=torch.bfloat16, \
avail mem=63.20 GB, mem usage=15.30 GB.
[2026-01-01 10:00:10] KV Cache is allocated. #tokens: 374400, K size: 25.71 GB, V size: 25.71 GB
[2026-01-01 10:00:10] Memory pool end. avail mem=11.40 GB
[2026-01-01 10:00:20] max_total_num_tokens=374400, chunked_prefill_size=8192, \
max_running_requests=2048, context_len=40960
""".replace("\\\n", "")

TENSORRT = """
[TensorRT-LLM] TensorRT-LLM version: 1.2.0
[TensorRT-LLM][INFO] Memory used after loading model weights (inside torch) in memory usage \
profiling: 14.96 GiB
[TensorRT-LLM][INFO] Number of tokens per block: 64.
[TensorRT-LLM][INFO] Max KV cache blocks per sequence: 128 [window size=8192], \
tokens per block=64, primary blocks=3445, secondary blocks=0
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 26.91 GiB for max tokens in paged KV cache (220480).
[TRT-LLM] [I] max_seq_len=8192, max_num_requests=2048, max_num_tokens=8192
""".replace("\\\n", "")

LLAMA_CPP = """
load_tensors: offloaded 33/33 layers to GPU
load_tensors:        CUDA0 model buffer size = 14315.02 MiB
load_tensors:   CPU_Mapped model buffer size =  1002.00 MiB
llama_context: n_ctx         = 4096
llama_context: n_ubatch      = 512
llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB
llama_kv_cache: size =  512.00 MiB (  4096 cells,  32 layers,  1/1 seqs), K (f16):  256.00 MiB, \
V (f16):  256.00 MiB
llama_context:      CUDA0 compute buffer size =   258.50 MiB
""".replace("\\\n", "")

LOGS = {"vllm": NEW, "vllm, old": OLD, "sglang": SGLANG, "tensorrt-llm": TENSORRT,
        "llama.cpp": LLAMA_CPP}  # fmt: skip
MODELS = {"tensorrt-llm": "meta-llama/Meta-Llama-3-8B", "llama.cpp": "meta-llama/Llama-3.1-8B"}


def _figures(log: EngineLog) -> dict[str, float]:
    return {one.name: one.value for one in log.figures}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "vllm",
            {
                "visible": 80 * GiB, "free_at_start": 78 * GiB, "requested": 72 * GiB,
                "share": 0.9, "weights": round(7.51 * GiB), "activation": round(1.89 * GiB),
                "non_torch": round(2.07 * GiB), "non_cache": round(11.47 * GiB),
                "pool": round(60.53 * GiB), "tokens": 991712, "context": 4096,
                "concurrency": 242.12, "blocks": 61982, "graphs": round(0.76 * GiB),
                "graphs_estimated": round(1.69 * GiB),
            },
        ),
        (
            "vllm, old",
            {
                "visible": round(39.5 * GiB), "share": 0.9, "requested": round(35.55 * GiB),
                "weights": round(14.96 * GiB), "activation": round(9.37 * GiB),
                "non_torch": round(0.1 * GiB), "pool": round(11.12 * GiB), "blocks": 5693,
                "context": 8192, "concurrency": 11.12,
            },
        ),
        (
            "sglang",
            {
                "free_at_start": round(78.5 * GiB), "free_after_weights": round(63.2 * GiB),
                "weights": round(15.3 * GiB), "k_cache": round(25.71 * GiB),
                "v_cache": round(25.71 * GiB), "cells": 374400, "tokens": 374400, "sequences": 2048,
                "context": 40960, "share": 0.85, "free_after_pool": round(11.4 * GiB),
            },
        ),
        (
            "tensorrt-llm",
            {
                "weights": round(14.96 * GiB), "pool": round(26.91 * GiB), "tokens": 220480,
                "block_tokens": 64, "blocks": 3445, "context": 8192, "sequences": 2048,
                "batched_tokens": 8192,
            },
        ),
        (
            "llama.cpp",
            {
                "weights": round(15317.02 * 2**20), "pool": 512 * 2**20, "k_cache": 256 * 2**20,
                "v_cache": 256 * 2**20, "cells": 4096, "tokens": 4096, "layers": 32,
                "context": 4096,
                "batched_tokens": 512, "activation": round(258.5 * 2**20),
            },
        ),
    ],
)  # fmt: skip
def test_every_figure_of_a_log_is_read(name: str, expected: dict[str, float]) -> None:
    log = serving.parse_log(LOGS[name])
    assert log.engine == name.partition(",")[0]
    assert _figures(log) == pytest.approx(expected, abs=1)
    assert not log.broken()


@pytest.mark.parametrize("name", LOGS)
def test_a_log_agrees_with_its_model(name: str) -> None:
    answer = serving.reconcile(LOGS[name], MODELS.get(name))
    assert answer, answer.explanation
    for comparison in answer.comparisons:
        if comparison.term in {"weights", "tokens", "concurrency", "bytes a token", "blocks"}:
            assert comparison.relative is None or abs(comparison.relative) < 0.004, comparison
    assert answer.explain().startswith(answer.model)


@pytest.mark.parametrize(
    ("name", "printed", "invented", "broken"),
    [
        ("vllm", "72.00 GiB", "75.00 GiB", "requested = visible x utilisation"),
        ("vllm", "increase: 1.89GiB", "increase: 2.89GiB", "non-cache total = weights"),
        ("vllm", "memory: 60.53 GiB", "memory: 66.53 GiB", "pool = requested - weights"),
        ("vllm", "991,712", "1,291,712", "tokens = what the printed pool holds"),
        ("vllm", "242.12x", "342.12x", "concurrency = what the printed pool holds"),
        ("vllm", "61982", "71982", "blocks = what the printed pool holds"),
        ("vllm", "loading took 7.51", "loading took 8.51", "weights is the same each time"),
        ("vllm", "78.00", "61.00", "is at most what is free"),
        ("vllm, old", "= 35.55GiB", "= 37.55GiB", "requested = visible x utilisation"),
        ("vllm, old", "Cache is 11.12GiB", "Cache is 13.12GiB", "pool = requested - weights"),
        ("sglang", "mem usage=15.30", "mem usage=17.30", "weights = free before"),
        ("sglang", "374400", "474400", "tokens = what the printed pool holds"),
        ("tensorrt-llm", "(220480)", "(220481)", "tokens = blocks x tokens per block"),
        ("llama.cpp", "size =  512.00", "size =  612.00", "pool = K + V"),
    ],
)
def test_an_invented_figure_breaks_an_identity(
    name: str, printed: str, invented: str, broken: str
) -> None:
    assert printed in LOGS[name]
    answer = serving.reconcile(LOGS[name].replace(printed, invented), MODELS.get(name))
    assert not answer
    assert any(broken in identity.name for identity in answer.broken), answer.explanation
    assert answer.explanation.startswith("inconsistent: ")
    assert broken in answer.explanation


def test_weights_of_another_model_are_told() -> None:
    answer = serving.reconcile(NEW, "Qwen/Qwen2.5-14B")
    assert any("at least those of this model" in str(one) for one in answer.broken)


def test_the_term_that_explains_the_gap_is_named() -> None:
    log = NEW.replace("1.89GiB", "3.89GiB").replace("11.47GiB", "13.47GiB")
    answer = serving.reconcile(
        log.replace("60.53 GiB", "58.53 GiB")
        .replace("991,712", "958,944")
        .replace("242.12x", "234.12x")
        .replace("61982", "59934")
    )
    assert answer, answer.explanation
    assert answer.gap is answer["activation"]
    assert "activation is computed -2.0" in answer.explanation
    assert answer["pool"].agrees is False


def test_a_version_that_was_not_measured_says_so() -> None:
    answer = serving.reconcile(NEW.replace("v0.19.1", "v0.20.2"))
    assert answer.engine == "vllm-0.20"
    assert answer["activation"].computed is None
    older = serving.reconcile(NEW.replace("v0.19.1", "v0.7.3"))
    assert older.engine == "vllm-0.6"
    assert "was not measured" in older.explain()


def test_of_stages_the_tightest_one_is_compared() -> None:
    log = """
Initializing a V1 LLM engine (v0.19.0) with config: model='meta-llama/Llama-3.1-8B', \
dtype=torch.bfloat16, max_seq_len=8192, tensor_parallel_size=1, pipeline_parallel_size=2
worker init memory snapshot: free_memory=77.76GiB, total_memory=79.19GiB
(Worker_PP0 pid=1) Initial free memory: 77.76 GiB; Requested memory: 0.950000 (util), 75.23 GiB
(Worker_PP0 pid=1) Total non KV cache memory: 8.69GiB; torch peak memory increase: 1.1GiB; \
non-torch forward increase memory: 0.07GiB; weights memory: 7.51GiB.
(Worker_PP0 pid=1) Available KV cache memory: 66.54 GiB
(Worker_PP1 pid=2) Total non KV cache memory: 9.6GiB; torch peak memory increase: 2.01GiB; \
non-torch forward increase memory: 0.07GiB; weights memory: 7.51GiB.
GPU KV cache size: 1,075,312 tokens
Maximum concurrency for 8,192 tokens per request: 131.26x
(Worker_PP1 pid=2) Free memory on device (77.76/79.19 GiB) on startup. Desired GPU memory \
utilization is (0.95, 75.23 GiB). Actual usage is 7.51 GiB for weight, 2.01 GiB for peak \
activation, 0.07 GiB for non-torch memory, and 0.65 GiB for CUDAGraph memory. Current kv cache \
memory in use is 65.63 GiB.
""".replace("\\\n", "")
    answer = serving.reconcile(log)
    assert answer.log.tightest_rank == "PP1"
    assert answer, answer.explanation
    for comparison in answer.comparisons:
        assert comparison.relative is None or abs(comparison.relative) < 0.005, comparison


@pytest.mark.parametrize("text", ["", "hello\nworld", "vllm is a serving engine"])
def test_a_text_without_figures_is_refused(text: str) -> None:
    with pytest.raises(LlmcalcError, match="log_text"):
        serving.parse_log(text)


def test_what_is_no_log_is_refused() -> None:
    with pytest.raises(LlmcalcError, match="the text of a log"):
        serving.parse_log(7)  # type: ignore[arg-type]
    with pytest.raises(LlmcalcError, match="must be one of"):
        serving.parse_log(NEW, engine="none")
    with pytest.raises(LlmcalcError, match="say which model"):
        serving.reconcile(LLAMA_CPP)
    with pytest.raises(LlmcalcError, match="must be one of"):
        serving.reconcile(NEW)["no such term"]


@given(st.text(), st.sampled_from(sorted(LOGS)), st.integers(0, 600))
def test_a_damaged_log_is_read_or_refused(noise: str, name: str, where: int) -> None:
    text = LOGS[name]
    try:
        log = serving.parse_log(text[:where] + noise + text[where + len(noise) :])
    except LlmcalcError:
        return
    for identity in log.identities():
        assert str(identity)


def test_long_lines_and_digits_take_no_time() -> None:
    hostile = "Model loading took " + "9" * 100_000 + " GiB\n" + "K (" * 100_000
    with pytest.raises(LlmcalcError):
        serving.parse_log("vllm\n" + hostile)


class _Reserved(OfRest):
    policy: ClassVar[Any] = "contiguous"


class _Whole(OfRest):
    policy: ClassVar[Any] = "ideal"


class _OwnCells(OfRest):
    policy: ClassVar[Any] = "contiguous"
    reserves_cells: ClassVar[bool] = True


@pytest.mark.parametrize("rule", [_Reserved(), _Whole(), _OwnCells()])
def test_an_engine_of_ones_own_may_have_any_policy(rule: PoolRule) -> None:
    engine = Engine(name="mine", pool_rule=rule, share=0.9)
    answer = _budget(engine=engine, context=5000)
    cells = 5008 if rule.reserves_cells else 5000  # whole blocks of 16
    assert answer.allocation.request_bytes == cells * 131072
    if not rule.reserves_cells:
        with pytest.raises(LlmcalcError, match="batched_tokens = 512: has no effect"):
            _budget(engine=engine, batched_tokens=512)


@pytest.mark.parametrize(
    ("engine", "refused"),
    [
        ("vllm-0.19", {}),
        ("sglang-0.5", {"sequences": 7}),
        ("tensorrt-llm-1.2", {"sequences": 7}),
        ("llama.cpp", {"sequences": 7, "state_blocks": 2}),
    ],
)
def test_what_has_no_effect_on_a_budget_is_refused(engine: str, refused: dict[str, Any]) -> None:
    every = {
        "sequences": 7, "dtype": "bf16", "state_blocks": 2, "batched_tokens": 512,
        "block_tokens": 32,
    }  # fmt: skip
    for field, value in (every | refused).items():
        given: dict[str, Any] = {"engine": engine, "share": 0.9, field: value}
        if field in refused:
            with pytest.raises(LlmcalcError, match=f"^{field} = .*has no effect"):
                _budget(**given)
        else:
            assert _budget(**given).fits


def test_a_feed_forward_whose_inner_width_is_not_stated_is_never_left_out() -> None:
    class Narrow(Part):
        group = "feed_forward"

        def items(self, embed: Axis) -> Iterator[Linear]:
            inner = Axis("inner", 2**16)
            yield Linear(name="up", into=(embed,), out=((inner,),))
            yield Linear(name="down", into=(inner,), out=((embed,),))

    class Stated(Narrow):
        def items(self, embed: Axis) -> Iterator[Linear]:
            stated: tuple[Literal["made", "read"], ...] = "made", "read"
            for item, inner in zip(super().items(embed), stated, strict=True):
                yield attrs.evolve(item, name="any", of=item.of, inner=inner)

    [run] = LLAMA.layers
    attention = run.layer.blocks[0]

    def model(part: Part) -> ModelSpec:
        layer = Layer(blocks=(attention, Block(part=part, norm=None)))
        return attrs.evolve(LLAMA, layers=(attrs.evolve(run, layer=layer),))

    with pytest.raises(LlmcalcError, match=r"activation_bytes = None: .*feed_forward"):
        serving.activation_peak(model(Narrow()))
    whole = serving.activation_peak(model(Stated())).total
    assert whole > serving.activation_peak(LLAMA).total
    known = serving.budget(
        model(Narrow()), visible_bytes=80 * GiB, context=100, weights="bf16", kv="bf16",
        activation_bytes=GiB,
    )  # fmt: skip
    assert known.activation_bytes == GiB
