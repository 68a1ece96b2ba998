"""The decoder against independent truth, and the library's formulas against the decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from llmcalc import LlmcalcError, ModelSpec, load_model, memory, roofline
from llmcalc.models.modes import Case, evaluate, kv_evaluate, load_cases
from llmcalc.models.tiny_decoder import TinyDecoder
from llmcalc.models.weights import load_weights, save_weights
from llmcalc.spec import Attention, FeedForward
from llmcalc.strategies import dense_specs
from tests.decoders import build, difference, in_chunks, prompt
from tests.oracles import numpy_decoder

SEEDS = st.integers(0, 2**31)


def by_numpy(decoder: TinyDecoder, tokens: list[int]) -> numpy_decoder.Array:
    attention, feed_forward = decoder.spec.layers[0].layer.parts
    assert isinstance(attention, Attention)
    assert isinstance(feed_forward, FeedForward)
    norm = decoder.spec.final_norm
    return numpy_decoder.logits(
        {name: weight.double().numpy() for name, weight in decoder.state_dict().items()},
        tokens,
        num_layers=decoder.spec.num_layers,
        query_heads=attention.query_heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        norm=None if norm is None else norm.kind,
        norm_eps=1e-5,
        activation=feed_forward.activation,
        rotary_theta=None if attention.rotary is None else attention.rotary.theta,
    )


@given(spec=dense_specs(), seed=SEEDS, tokens=st.integers(1, 8))
def test_logits_are_those_of_numpy(spec: ModelSpec, seed: int, tokens: int) -> None:
    decoder = build(spec, seed=seed)
    ids = prompt(spec, tokens, seed=seed)
    expected = torch.from_numpy(by_numpy(decoder, ids[0].tolist()))
    assert difference(decoder(ids)[0], expected) <= 1e-11


@given(spec=dense_specs())
def test_parameters_are_those_of_the_module(spec: ModelSpec) -> None:
    decoder = TinyDecoder(spec)
    assert sum(p.numel() for p in decoder.parameters()) == memory.parameters(spec).total
    size = sum(p.nbytes for p in decoder.parameters())
    assert size == memory.weight_bytes(spec, weights="fp32").total


@given(
    spec=dense_specs(),
    batch=st.integers(1, 5),
    capacity=st.integers(1, 256),
    dtype=st.sampled_from([(torch.float32, "fp32"), (torch.float64, "fp64")]),
)
def test_cache_bytes_are_those_of_the_tensors(
    spec: ModelSpec, batch: int, capacity: int, dtype: tuple[torch.dtype, str]
) -> None:
    cache = TinyDecoder(spec, dtype=dtype[0]).new_cache(batch=batch, capacity=capacity)
    formula = memory.kv_cache_bytes(spec, context=capacity, batch=batch, kv=dtype[1])
    assert cache.nbytes == sum(t.nbytes for t in cache.keys + cache.values) == formula.total


def counted_flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return int(counter.get_total_flops())


@given(
    spec=dense_specs(),
    batch=st.integers(1, 3),
    past=st.integers(0, 20),
    new=st.integers(1, 20),
)
def test_flops_are_those_of_pytorchs_counter(
    spec: ModelSpec, batch: int, past: int, new: int
) -> None:
    decoder = TinyDecoder(spec, attention="reference").eval()
    cache = decoder.new_cache(batch=batch, capacity=past + new)
    ids = prompt(spec, past + new, batch=batch)
    if past:
        decoder(ids[:, :past], cache=cache)
    formula = roofline.flops(spec, batch=batch, new=new, past=past, causal=False, logits="all")
    assert counted_flops(lambda: decoder(ids[:, past:], cache=cache)) == formula.total


@given(spec=dense_specs(), batch=st.integers(1, 3), tokens=st.integers(1, 20))
def test_flops_without_cache_are_those_of_pytorchs_counter(
    spec: ModelSpec, batch: int, tokens: int
) -> None:
    decoder = TinyDecoder(spec, attention="reference").eval()
    ids = prompt(spec, tokens, batch=batch)
    full = roofline.flops(spec, batch=batch, new=tokens, past=0, causal=False, logits="all")
    assert counted_flops(lambda: decoder(ids)) == full.total
    last = roofline.flops(spec, batch=batch, new=tokens, past=0, causal=False, logits="last")
    assert counted_flops(lambda: decoder(ids, last_only=True)) == last.total


def _llama_weights(state: dict[str, Any], layers: int) -> dict[str, Any]:
    names = {
        "token_embedding.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "output_projection.weight": "lm_head.weight",
    }
    inner = {
        "attention.W_q": "self_attn.q_proj",
        "attention.W_k": "self_attn.k_proj",
        "attention.W_v": "self_attn.v_proj",
        "attention.W_o": "self_attn.o_proj",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.fc1": "mlp.up_proj",
        "feed_forward.fc2": "mlp.down_proj",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
    }
    for layer in range(layers):
        for ours, theirs in inner.items():
            for kind in ("weight", "bias"):
                names[f"layers.{layer}.{ours}.{kind}"] = f"model.layers.{layer}.{theirs}.{kind}"
    return {ours: state[theirs] for ours, theirs in names.items() if theirs in state}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_logits_are_those_of_transformers(model_type: str, tied: bool) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        model_type,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=90,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attn_implementation="eager",
        initializer_range=0.3,
    )
    theirs = transformers.AutoModelForCausalLM.from_config(config).double().eval()  # type: ignore[no-untyped-call]
    # transformers computes norms and rotary tables in single precision whatever the weights are.
    ours = TinyDecoder(load_model(config.to_dict()), dtype=torch.float64).eval()
    state = _llama_weights(theirs.state_dict(), 3)
    if tied:
        del state["output_projection.weight"]
    ours.load_state_dict(state)
    ids = prompt(ours.spec, 30, batch=2)
    with torch.no_grad():
        assert difference(ours(ids), theirs(ids).logits) <= 1e-5
        tokens = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    assert torch.equal(ours.generate(ids, 8), tokens)


def test_logits_are_those_of_transformers_gpt2() -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=48, n_layer=2, n_head=4, n_positions=64, vocab_size=90, initializer_range=0.3,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).double().eval()  # type: ignore[no-untyped-call]
    state = theirs.state_dict()
    weights = {
        "token_embedding.weight": state["transformer.wte.weight"],
        "pos_embedding.weight": state["transformer.wpe.weight"],
        "norm.weight": state["transformer.ln_f.weight"],
        "norm.bias": state["transformer.ln_f.bias"],
    }
    for layer in range(2):
        place, h = f"layers.{layer}.", f"transformer.h.{layer}."
        for name, part in zip(
            ("W_q", "W_k", "W_v"), state[h + "attn.c_attn.weight"].split(48, dim=1), strict=True
        ):
            weights[f"{place}attention.{name}.weight"] = part.T
        for name, part in zip(
            ("W_q", "W_k", "W_v"), state[h + "attn.c_attn.bias"].split(48), strict=True
        ):
            weights[f"{place}attention.{name}.bias"] = part
        for ours_name, theirs_name in (
            ("attention.W_o", "attn.c_proj"),
            ("feed_forward.fc1", "mlp.c_fc"),
            ("feed_forward.fc2", "mlp.c_proj"),
        ):
            weights[f"{place}{ours_name}.weight"] = state[f"{h}{theirs_name}.weight"].T
            weights[f"{place}{ours_name}.bias"] = state[f"{h}{theirs_name}.bias"]
        for ours_name, theirs_name in (("norm1", "ln_1"), ("norm2", "ln_2")):
            for kind in ("weight", "bias"):
                weights[f"{place}{ours_name}.{kind}"] = state[f"{h}{theirs_name}.{kind}"]
    ours = TinyDecoder(load_model(config.to_dict()), dtype=torch.float64).eval()
    ours.load_state_dict(weights)
    ids = prompt(ours.spec, 40, batch=2)
    with torch.no_grad():
        assert difference(ours(ids), theirs(ids).logits) <= 1e-12


ASSIGNMENT = ModelSpec.assignment_decoder(
    vocab_size=60, d_model=32, d_ff=64, num_layers=2, max_seq_len=96
)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("all_tokens", [False, True])
def test_evaluation_of_a_weights_file_with_cases_made_by_numpy(
    tmp_path: Path, ending: str, all_tokens: bool
) -> None:
    decoder = build(ASSIGNMENT, seed=7, dtype=torch.float32)
    save_weights(decoder, tmp_path / f"model.{ending}")
    cases = []
    for seed, tokens in enumerate((1, 5, 20)):
        ids = prompt(ASSIGNMENT, tokens, seed=seed)[0].tolist()
        logits = by_numpy(decoder, ids)
        expected = logits.tolist() if all_tokens else logits[-1].tolist()
        cases.append({"prompt": ids, "expected_logits": expected})
    cases[1]["tolerance"] = 0.0  # the formats differ, so exactly this one fails
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    loaded = load_weights(TinyDecoder(ASSIGNMENT), tmp_path / f"model.{ending}").eval()
    result = evaluate(loaded, load_cases(tmp_path / "cases.json"))
    assert [case.passed for case in result.results] == [True, False, True]
    assert result.pass_rate == 2 / 3
    assert 0 < result.worst_difference < 1e-5


def test_evaluation_notices_a_wrong_logit() -> None:
    decoder = build(ASSIGNMENT)
    logits = by_numpy(decoder, [1, 2, 3])[-1]
    right = Case(prompt=(1, 2, 3), expected_logits=(tuple(logits),))
    logits[17] += 0.001 * np.abs(logits).max()
    wrong = Case(prompt=(1, 2, 3), expected_logits=(tuple(logits),))
    result = evaluate(decoder, [right, wrong])
    assert [case.passed for case in result.results] == [True, False]
    assert result.worst_difference == pytest.approx(0.001, rel=0.01)


@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_kv_evaluation_passes_and_sees_a_cache_that_is_wrong_only_after_the_prompt(
    monkeypatch: pytest.MonkeyPatch, chunk: int | None
) -> None:
    decoder = build(ASSIGNMENT, dtype=torch.float32)
    prompts = [(1,), (5, 6, 7), tuple(range(20))]
    result = kv_evaluate(decoder, prompts, new_tokens=12, prefill_chunk_size=chunk)
    assert result.pass_rate == 1
    assert result.worst_difference < 1e-5
    cached_step = TinyDecoder._last_logits
    calls = 0

    def spoilt(self: TinyDecoder, ids: Any, cache: Any, counts: Any) -> Any:
        nonlocal calls
        if cache is not None and cache.lengths[0] > 8:
            calls += 1
            cache.values[1][3] += 0.5
        return cached_step(self, ids, cache, counts)

    monkeypatch.setattr(TinyDecoder, "_last_logits", spoilt)
    spoilt_result = kv_evaluate(decoder, [(5, 6, 7)], new_tokens=12, prefill_chunk_size=chunk)
    assert calls
    assert not spoilt_result.results[0].passed


def test_a_float32_decoder_differs_by_rounding_only_between_cached_and_uncached() -> None:
    spec = ModelSpec.assignment_decoder(
        vocab_size=1000, d_model=256, d_ff=1024, num_layers=2, max_seq_len=2048
    )
    decoder = build(spec, dtype=torch.float32)
    ids = prompt(spec, 300)
    with torch.no_grad():
        assert difference(in_chunks(decoder, ids, [128, 100, *[1] * 72]), decoder(ids)) <= 1e-4


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_file_that_does_not_match_says_which_keys_and_shapes_differ(
    tmp_path: Path, ending: str
) -> None:
    save_weights(TinyDecoder(ASSIGNMENT), tmp_path / f"model.{ending}")
    other = ModelSpec.assignment_decoder(
        vocab_size=60, d_model=32, d_ff=48, num_layers=3, max_seq_len=96
    )
    decoder = TinyDecoder(other)
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    with pytest.raises(LlmcalcError) as error:
        load_weights(decoder, tmp_path / f"model.{ending}")
    message = str(error.value)
    assert "layers.0.feed_forward.fc1.weight has shape (64, 32), not (48, 32)" in message
    assert "missing layers.2.attention.W_q.weight" in message
    smaller = ModelSpec.assignment_decoder(
        vocab_size=60, d_model=32, d_ff=64, num_layers=1, max_seq_len=96
    )
    with pytest.raises(LlmcalcError, match=r"unexpected layers\.1\.norm1\.weight"):
        load_weights(TinyDecoder(smaller), tmp_path / f"model.{ending}")
    assert all(torch.equal(before[name], now) for name, now in decoder.state_dict().items())


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


@pytest.mark.parametrize(
    "content",
    [b"", b"not weights", b"\x80\x02}q\x00.", b"PK\x03\x04" + b"\0" * 40],
    ids=["empty", "text", "pickle", "broken zip"],
)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_broken_weights_file_is_an_error(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"model.{ending}"
    path.write_bytes(content)
    with pytest.raises(LlmcalcError, match="path = "):
        load_weights(TinyDecoder(ASSIGNMENT), path)


@pytest.mark.parametrize("how", ["sparse", "meta", "whole numbers"])
def test_a_file_of_other_than_plain_arrays_is_an_error_and_changes_nothing(
    tmp_path: Path, how: str
) -> None:
    decoder = TinyDecoder(ASSIGNMENT)
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    norm = torch.zeros(32)
    spoilt = {"sparse": norm.to_sparse(), "meta": norm.to("meta"), "whole numbers": norm.int()}
    state = {name: weight + 1 for name, weight in before.items()}
    torch.save(state | {"norm.weight": spoilt[how]}, tmp_path / "model.pt")
    with pytest.raises(LlmcalcError, match=r"norm\.weight holds"):
        load_weights(decoder, tmp_path / "model.pt")
    assert all(torch.equal(before[name], now) for name, now in decoder.state_dict().items())


def test_a_weights_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"token_embedding.weight": Harmful()}, tmp_path / "model.pt")
    with pytest.raises(LlmcalcError, match=r"cannot be read as weights: Weights only load failed$"):
        load_weights(TinyDecoder(ASSIGNMENT), tmp_path / "model.pt")
    assert not (tmp_path / "harm").exists()


BAD_CASES = {
    "{}": "must hold a list",
    "[]": "must hold a list",
    "nonsense": "cannot be read as JSON",
    "[3]": r"cases\[0\] = 3",
    '[{"prompt": [], "expected_logits": [1]}]': r"cases\[0\]\.prompt",
    '[{"prompt": [1.5], "expected_logits": [1]}]': r"cases\[0\]\.prompt = 1\.5",
    '[{"prompt": [1]}]': r"cases\[0\]\.expected_logits",
    '[{"prompt": [1], "expected_logits": ["a"]}]': r"cases\[0\]\.expected_logits",
    '[{"prompt": [1, 2], "expected_logits": [[1]]}]': r"cases\[0\]\.expected_logits = 1",
    '[{"prompt": [1], "expected_logits": [1], "tolerance": -1}]': r"cases\[0\]\.tolerance = -1",
    '[{"prompt": [1], "expected_logits": [1], "extra": 0}]': "fields that a test case",
    '[{"prompt": [1], "expected_logits": [1, 2]}]': r"cases\[0\]\.expected_logits = \(1, 2\)",
    '[{"prompt": [60], "expected_logits": [1]}]': r"prompt = \[60\]",
}


@pytest.mark.parametrize("text", BAD_CASES)
def test_bad_test_cases_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cases.json"
    path.write_text(text)
    with pytest.raises(LlmcalcError, match=BAD_CASES[text]):
        evaluate(TinyDecoder(ASSIGNMENT).eval(), load_cases(path))
