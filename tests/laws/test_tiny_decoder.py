"""Laws of the decoder: the cache changes no logit, and nothing looks ahead."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmcalc import LlmcalcError, ModelSpec
from llmcalc.models import caches, layers, tiny_decoder
from llmcalc.models.tiny_decoder import TinyDecoder
from llmcalc.spec import ModelSpec as Spec
from llmcalc.strategies import dense_specs
from tests.decoders import LIMITS, build, chunkings, difference, in_chunks, prompt

SEEDS = st.integers(0, 2**31)


def small(**options: Any) -> Spec:
    sizes: dict[str, Any] = {
        "name": "small",
        "num_layers": 2,
        "num_query_heads": 4,
        "num_kv_heads": 2,
        "embed_dim": 32,
        "inner_dim": 48,
        "vocab_size": 50,
    }
    return ModelSpec.dense(**(sizes | options))


def the_assignments() -> Spec:
    return ModelSpec.assignment_decoder(
        vocab_size=40, d_model=24, d_ff=48, num_layers=2, max_seq_len=64
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(spec=dense_specs(), seed=SEEDS, batch=st.integers(1, 3), data=st.data())
def test_cached_logits_are_the_uncached_ones_for_any_chunking(
    dtype: torch.dtype, spec: Spec, seed: int, batch: int, data: st.DataObject
) -> None:
    tokens = data.draw(st.integers(1, 40))
    decoder = build(spec, seed=seed, dtype=dtype)
    ids = prompt(spec, tokens, batch=batch, seed=seed)
    cached = in_chunks(decoder, ids, data.draw(chunkings(tokens)))
    assert difference(cached, decoder(ids)) <= LIMITS[dtype]


@given(spec=dense_specs(), seed=SEEDS, batch=st.integers(1, 3), data=st.data())
def test_greedy_tokens_are_the_same_with_and_without_cache(
    spec: Spec, seed: int, batch: int, data: st.DataObject
) -> None:
    decoder = build(spec, seed=seed)
    ids = prompt(spec, data.draw(st.integers(1, 20)), batch=batch, seed=seed)
    chunk = data.draw(st.none() | st.integers(1, 25))
    cached = decoder.generate(ids, 12, prefill_chunk_size=chunk)
    assert torch.equal(cached, decoder.generate(ids, 12, use_cache=False))


@given(spec=dense_specs(), seed=SEEDS, data=st.data())
def test_rows_of_different_length_are_answered_as_if_alone(
    spec: Spec, seed: int, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=4))
    chunk = data.draw(st.none() | st.integers(1, 14))
    use_cache = data.draw(st.booleans())
    decoder = build(spec, seed=seed)
    ids = prompt(spec, max(lengths), batch=len(lengths), seed=seed)
    together = decoder.generate(
        ids, 5, lengths=lengths, prefill_chunk_size=chunk, use_cache=use_cache
    )
    for row, length in enumerate(lengths):
        alone = decoder.generate(ids[row : row + 1, :length], 5)
        assert together[row, : length + 5].tolist() == alone[0].tolist()


@given(spec=dense_specs(), seed=SEEDS, data=st.data(), cached=st.booleans())
def test_a_later_token_never_changes_an_earlier_logit(
    spec: Spec, seed: int, data: st.DataObject, cached: bool
) -> None:
    tokens = data.draw(st.integers(2, 24))
    changed = data.draw(st.integers(1, tokens - 1))
    decoder = build(spec, seed=seed)
    ids = prompt(spec, tokens, seed=seed)
    other = ids.clone()
    other[0, changed:] = (other[0, changed:] + 1) % spec.embedding.vocab_size

    def logits(ids: Tensor) -> Tensor:
        cache = decoder.new_cache(batch=1, capacity=tokens) if cached else None
        result: Tensor = decoder(ids, cache=cache)
        return result

    assert difference(logits(other)[:, :changed], logits(ids)[:, :changed]) <= 1e-12


@given(spec=dense_specs(max_head_dim=33), seed=SEEDS, batch=st.integers(1, 3), data=st.data())
def test_a_repeated_call_a_clone_and_a_larger_cache_change_no_bit(
    spec: Spec, seed: int, batch: int, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    tokens = data.draw(st.integers(2, 40))
    first, *rest = data.draw(chunkings(tokens))
    limit = spec.max_positions or 300
    larger = data.draw(st.integers(tokens, min(limit, 300)))
    decoder = build(spec, seed=seed, dtype=dtype)
    ids = prompt(spec, tokens, batch=batch, seed=seed)

    def follow(capacity: int, *, clone: bool = False) -> list[Tensor]:
        cache = decoder.new_cache(batch=batch, capacity=capacity)
        logits = [decoder(ids[:, :first], cache=cache)]
        if clone:
            original, cache = cache, cache.clone()
            for tensor in original.keys + original.values:
                tensor.fill_(float("nan"))  # so that a clone that shares memory shows
        if rest:
            logits.append(in_chunks(decoder, ids[:, first:], rest, cache))
        return logits

    expected = follow(tokens)
    for other in (follow(tokens), follow(larger), follow(tokens, clone=True)):
        assert all(torch.equal(a, b) for a, b in zip(other, expected, strict=True))


@given(spec=dense_specs(), seed=SEEDS)
def test_the_fast_path_gives_the_reference_paths_logits(spec: Spec, seed: int) -> None:
    ids = prompt(spec, 17, batch=2, seed=seed)
    fast, reference = (build(spec, seed=seed, attention=name) for name in ("fast", "reference"))
    assert difference(fast(ids), reference(ids)) <= 1e-12
    chunks = [5, 1, 8, 3]
    assert difference(in_chunks(fast, ids, chunks), in_chunks(reference, ids, chunks)) <= 1e-12


def _cache_law_holds(decoder: TinyDecoder, ids: Tensor, chunks: list[int]) -> bool:
    return difference(in_chunks(decoder, ids, chunks), decoder(ids)) <= 1e-12


@pytest.mark.parametrize("offset", [-1, 1])
def test_the_cache_law_fails_when_the_mask_is_off_by_one(
    monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    decoder = build(small(), attention="reference")
    ids = prompt(decoder.spec, 9)
    assert _cache_law_holds(decoder, ids, [4, 1, 3, 1])
    right = caches._causal
    monkeypatch.setattr(caches, "_causal", lambda q, keys: right(q + offset, keys))
    assert not _cache_law_holds(decoder, ids, [4, 1, 3, 1])


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_cache_law_fails_when_positions_are_not_offset(
    monkeypatch: pytest.MonkeyPatch, positions: str
) -> None:
    decoder = build(small(positions=positions, max_positions=32))
    ids = prompt(decoder.spec, 9)
    assert _cache_law_holds(decoder, ids, [4, 1, 3, 1])
    place = TinyDecoder._place

    def from_zero(self: TinyDecoder, x: Tensor, step: Any) -> Tensor:
        moved = caches.Pass(None, step.counts, explicit=False)
        result = place(self, x, moved)
        step.turn = moved.turn
        return result

    monkeypatch.setattr(TinyDecoder, "_place", from_zero)
    assert not _cache_law_holds(decoder, ids, [4, 1, 3, 1])


def test_the_cache_law_fails_when_the_whole_sequence_is_fed_again() -> None:
    decoder = build(small())
    ids = prompt(decoder.spec, 9)
    cache = decoder.new_cache(batch=1, capacity=17)
    decoder(ids[:, :8], cache=cache)
    again = decoder(ids, cache=cache, last_only=True)
    assert difference(again, decoder(ids, last_only=True)) > 1e-12


def test_a_decode_step_reads_one_token_and_writes_one_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = build(small())
    widths: list[int] = []
    append = tiny_decoder.KVCache._append

    def recorded(self: Any, layer: int, keys: Tensor, values: Tensor, step: Any) -> Any:
        widths.append(keys.shape[0])
        return append(self, layer, keys, values, step)

    monkeypatch.setattr(tiny_decoder.KVCache, "_append", recorded)
    decoder.generate(prompt(decoder.spec, 10), 4)
    assert widths == [10, 10] + [1, 1] * 3


def test_the_cache_is_allocated_once() -> None:
    decoder = build(the_assignments())
    cache = decoder.new_cache(batch=2, capacity=30)
    places = [tensor.data_ptr() for tensor in cache.keys + cache.values]
    in_chunks(decoder, prompt(decoder.spec, 20, batch=2), [7, 1, 1, 11], cache)
    assert [tensor.data_ptr() for tensor in cache.keys + cache.values] == places
    assert cache.lengths == (20, 20)


def test_the_assignments_decoder_has_the_assignments_keys() -> None:
    names = ["token_embedding.weight", "pos_embedding.weight", "norm.weight", "norm.bias"]
    for layer in range(2):
        place = f"layers.{layer}."
        names += [f"{place}attention.{name}.weight" for name in ("W_q", "W_k", "W_v", "W_o")]
        for name in ("feed_forward.fc1", "feed_forward.fc2", "norm1", "norm2"):
            names += [f"{place}{name}.weight", f"{place}{name}.bias"]
    names += ["output_projection.weight", "output_projection.bias"]
    assert TinyDecoder(the_assignments()).state_dict().keys() == set(names)


def test_dropout_acts_in_training_only_and_never_while_generating() -> None:
    decoder = TinyDecoder(the_assignments(), dropout=0.5)
    ids = prompt(decoder.spec, 8)
    decoder.train()
    assert not torch.equal(decoder(ids), decoder(ids))
    trained = decoder.generate(ids, 6)
    decoder.eval()
    assert torch.equal(decoder(ids), decoder(ids))
    assert torch.equal(decoder.generate(ids, 6), trained)


def test_the_decoder_learns_also_after_it_has_generated() -> None:
    decoder = TinyDecoder(small(), generator=torch.Generator().manual_seed(0)).train()
    ids = prompt(decoder.spec, 8)
    decoder.generate(ids, 3)
    with torch.inference_mode():
        decoder.new_cache(batch=1, capacity=4)
    optimizer = torch.optim.SGD(decoder.parameters(), lr=0.5)
    losses = []
    for _ in range(40):
        logits = decoder(ids[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 2


@pytest.mark.parametrize("cached", [False, True])
def test_logits_can_be_changed_in_place_outside_inference_mode(cached: bool) -> None:
    decoder = build(small())
    cache = decoder.new_cache(batch=1, capacity=4) if cached else None
    with torch.no_grad():
        logits = decoder(prompt(decoder.spec, 4), cache=cache)
        logits /= 2
    assert not logits.requires_grad


def test_gradients_do_not_flow_through_a_cache() -> None:
    decoder = build(small())
    cache = decoder.new_cache(batch=1, capacity=4)
    assert decoder(prompt(decoder.spec, 4)).requires_grad
    assert not decoder(prompt(decoder.spec, 4), cache=cache).requires_grad


def test_dropout_never_acts_with_a_cache() -> None:
    decoder = TinyDecoder(the_assignments(), dropout=0.5).train()
    ids = prompt(decoder.spec, 8)
    first, second = (decoder(ids, cache=decoder.new_cache(batch=1, capacity=8)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "gelu_tanh"])
def test_a_whole_decoder_can_be_pickled(activation: str) -> None:
    decoder = build(small(activation=activation))
    ids = prompt(decoder.spec, 4)
    copy = pickle.loads(pickle.dumps(decoder))  # noqa: S301  # made here
    assert torch.equal(copy(ids), decoder(ids))


def _attentions(decoder: TinyDecoder) -> list[layers.AttentionLayer]:
    return [part for part in decoder.modules() if isinstance(part, layers.AttentionLayer)]


def _moved(decoder: TinyDecoder) -> dict[str, TinyDecoder]:
    """Return decoders of the same weights whose projections were put elsewhere."""
    state = decoder.state_dict()
    assigned, trained, replaced = (build(decoder.spec, seed=1) for _ in range(3))
    assigned.load_state_dict({name: weight.clone() for name, weight in state.items()}, assign=True)
    trained.load_state_dict(state)
    replaced.load_state_dict(state)
    for attention in _attentions(replaced):
        weight = attention.W_k.weight
        attention.W_k.weight = torch.nn.Parameter(weight.detach().clone())
        weight.data.fill_(float("nan"))  # where it lay before is not read
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.125)
    for _ in range(2):  # there and back again
        for weight in trained.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = -0.125
    wide = build(decoder.spec, dtype=torch.float32, seed=1).double()
    wide.load_state_dict(state)
    return {
        "as built": decoder,
        "assigned": assigned,
        "trained": trained,
        "replaced": replaced,
        "converted": wide,
        "copied": deepcopy(decoder),
        "unpickled": pickle.loads(pickle.dumps(decoder)),  # noqa: S301  # made here
    }


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_projections_are_read_wherever_their_weights_lie(kv_heads: int) -> None:
    decoder = build(small(num_kv_heads=kv_heads))
    ids = prompt(decoder.spec, 9)
    expected = decoder(ids)  # with gradients, and so by a product for each projection
    moved = _moved(decoder)
    joint = {name: _attentions(copy)[0].is_joint for name, copy in moved.items()}
    assert joint == {
        "as built": True,
        "assigned": False,
        "trained": True,
        "replaced": False,
        "converted": True,
        "copied": True,
        "unpickled": True,
    }
    for name, copy in moved.items():
        assert difference(in_chunks(copy, ids, [4, 1, 3, 1]), expected) <= 1e-12, name


def test_weights_that_are_put_elsewhere_are_read_in_the_next_step() -> None:
    decoder, other = build(small()), build(small(), seed=1)
    ids = prompt(decoder.spec, 9)
    cache, expected = (model.new_cache(batch=1, capacity=9) for model in (decoder, decoder))
    for held in (cache, expected):
        decoder(ids[:, :8], cache=held)
    weights = torch.cat([weight.detach().flatten() for weight in other.parameters()])
    torch.nn.utils.vector_to_parameters(weights, decoder.parameters())
    logits = decoder(ids[:, 8:], cache=cache)
    assert difference(logits, other(ids[:, 8:], cache=expected)) <= 1e-12


def test_parameters_that_are_replaced_are_read_with_the_next_prompt() -> None:
    decoder, other = build(small()), build(small(), seed=1)
    ids = prompt(decoder.spec, 9)
    cache = decoder.new_cache(batch=1, capacity=9)
    in_chunks(decoder, ids, [8, 1], cache)
    state = {name: weight.clone() for name, weight in other.state_dict().items()}
    decoder.load_state_dict(state, assign=True)
    cache.lengths = (0,)
    assert difference(in_chunks(decoder, ids, [8, 1], cache), other(ids)) <= 1e-12


def test_a_cache_in_use_can_be_copied_and_pickled_and_read_by_another_decoder() -> None:
    decoder = build(small())
    ids = prompt(decoder.spec, 9)
    cache = decoder.new_cache(batch=1, capacity=9)
    in_chunks(decoder, ids[:, :8], [7, 1], cache)
    copies = [deepcopy(cache), pickle.loads(pickle.dumps(cache)), cache.clone()]  # noqa: S301
    expected = decoder(ids[:, 8:], cache=cache)
    for copy in copies:
        assert torch.equal(deepcopy(decoder)(ids[:, 8:], cache=copy), expected)


def test_projections_with_biases_are_left_apart() -> None:
    decoder = build(small(query_key_value_bias=True))
    assert not _attentions(decoder)[0].is_joint
    assert not _attentions(decoder.float())[0].is_joint


def test_a_decode_step_neither_joins_history_nor_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = build(the_assignments())

    def fail(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError

    for name in ("cat", "arange", "ones", "tril", "triu"):
        monkeypatch.setattr(torch, name, fail)
    cache = decoder.new_cache(batch=2, capacity=64)
    for step in range(3):
        decoder(torch.full((2, 1), step), cache=cache)
    assert cache.lengths == (3, 3)


def test_a_cache_made_in_inference_mode_can_be_filled_outside_it() -> None:
    decoder = build(small())
    with torch.inference_mode():
        cache = decoder.new_cache(batch=1, capacity=4)
    decoder(prompt(decoder.spec, 4), cache=cache)
    assert cache.lengths == (4,)


def test_sampling_is_decided_by_its_generator_and_leaves_the_global_one_alone() -> None:
    decoder = build(small(), scale=2.0)
    ids = prompt(decoder.spec, 5, batch=2)
    before = torch.get_rng_state()
    runs = [
        decoder.generate(ids, 10, temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    decoder.generate(ids, 10, temperature=1.0)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_top_k_and_top_p_draw_from_the_likeliest_tokens_only() -> None:
    decoder = build(small(), scale=1.0)
    ids = prompt(decoder.spec, 5)
    greedy = decoder.generate(ids, 8)
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"top_k": 1, "top_p": 0.5}):
        assert torch.equal(decoder.generate(ids, 8, temperature=5.0, **options), greedy)
    drawn: set[int] = set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        for step in decoder.stream(ids, 1, temperature=9.0, top_k=3, generator=generator):
            drawn.add(int(step.tokens))
            likeliest = set(step.logits[0].topk(3).indices.tolist())
    assert drawn == likeliest


def test_temperature_divides_the_logits() -> None:
    decoder = build(small(vocab_size=5), scale=1.0)
    ids = prompt(decoder.spec, 5, batch=4000)
    ids[:] = ids[0]
    generator = torch.Generator().manual_seed(0)
    [step] = decoder.stream(ids, 1, temperature=0.5, generator=generator)
    seen = torch.bincount(step.tokens, minlength=5) / 4000
    expected = (step.logits[0] / 0.5).softmax(-1)
    assert (seen - expected).abs().max() < 0.03  # standard deviation below 0.008


def test_the_smallest_temperature_is_greedy_not_nan() -> None:
    decoder = build(small())
    ids = prompt(decoder.spec, 5)
    cold = decoder.generate(ids, 4, temperature=5e-324)
    assert torch.equal(cold, decoder.generate(ids, 4))


def test_a_row_ends_with_the_end_token_and_generation_with_the_last_row() -> None:
    decoder = build(small(vocab_size=6))
    ids = prompt(decoder.spec, 4, batch=3)
    free = decoder.generate(ids, 12)
    end = int(free[0, 6])
    ended = decoder.generate(ids, 12, eos_token_id=end, pad_token_id=5)
    longest = 0
    for row, (with_end, without) in enumerate(zip(ended.tolist(), free.tolist(), strict=True)):
        new = without[4:]
        stop = new.index(end) + 1 if end in new else 12
        longest = max(longest, stop)
        assert with_end[4 : 4 + stop] == new[:stop], row
        assert set(with_end[4 + stop :]) <= {5}
    assert ended.shape[1] == 4 + longest


def test_a_stream_gives_the_tokens_that_generate_gives_one_by_one() -> None:
    decoder = build(small())
    ids = prompt(decoder.spec, 6, batch=2)
    steps = list(decoder.stream(ids, 7))
    tokens = torch.stack([step.tokens for step in steps], dim=1)
    assert [step.index for step in steps] == list(range(7))
    assert torch.equal(torch.cat((ids, tokens), dim=1), decoder.generate(ids, 7))
    for step in steps:
        assert step.logits.shape == (2, 50)


def test_no_new_tokens_give_the_prompt() -> None:
    decoder = build(small())
    ids = prompt(decoder.spec, 6)
    assert torch.equal(decoder.generate(ids, 0), ids)


def test_the_last_position_can_be_generated_and_read() -> None:
    decoder = build(the_assignments())  # 64 positions
    ids = prompt(decoder.spec, 60)
    assert decoder.generate(ids, 5).shape == (1, 65)  # the last token is never read
    with pytest.raises(LlmcalcError, match="context = 65"):
        decoder.generate(ids, 6)


ids = torch.tensor([[1, 2, 3]])

BAD_CALLS: dict[str, tuple[str, Any]] = {
    "a token past the vocabulary": ("input_ids = 40", lambda d: d(torch.tensor([[1, 40]]))),
    "a negative token": ("input_ids = -1", lambda d: d(torch.tensor([[1, -1]]))),
    "an empty prompt": ("input_ids", lambda d: d(torch.zeros((1, 0), dtype=torch.int64))),
    "no rows": ("input_ids", lambda d: d.generate(torch.zeros((0, 3), dtype=torch.int64), 1)),
    "a flat prompt": ("input_ids", lambda d: d(torch.tensor([1, 2, 3]))),
    "floating-point tokens": ("input_ids", lambda d: d(torch.tensor([[1.0, 2.0]]))),
    "a list": ("input_ids", lambda d: d([[1, 2, 3]])),
    "a context past the limit": (
        "context = 65",
        lambda d: d(torch.ones((1, 65), dtype=torch.int64)),
    ),
    "new tokens past the limit": ("context = 82", lambda d: d.generate(ids, 80)),
    "negative new tokens": ("max_new_tokens = -1", lambda d: d.generate(ids, -1)),
    "a fractional number of tokens": ("max_new_tokens = 1.5", lambda d: d.generate(ids, 1.5)),
    "a negative temperature": (
        "temperature = -0.1",
        lambda d: d.generate(ids, 1, temperature=-0.1),
    ),
    "an infinite temperature": (
        "temperature = inf",
        lambda d: d.generate(ids, 1, temperature=float("inf")),
    ),
    "a temperature that is no number": (
        "temperature = nan",
        lambda d: d.generate(ids, 1, temperature=float("nan")),
    ),
    "top_k of 0": ("top_k = 0", lambda d: d.generate(ids, 1, temperature=1.0, top_k=0)),
    "top_k past the vocabulary": (
        "top_k = 41",
        lambda d: d.generate(ids, 1, temperature=1.0, top_k=41),
    ),
    "top_p of 0": ("top_p = 0", lambda d: d.generate(ids, 1, temperature=1.0, top_p=0.0)),
    "top_p above 1": ("top_p = 1.5", lambda d: d.generate(ids, 1, temperature=1.0, top_p=1.5)),
    "a generator that is none": ("generator = 3", lambda d: d.generate(ids, 1, generator=3)),
    "an end token past the vocabulary": (
        "eos_token_id = 40",
        lambda d: d.generate(ids, 1, eos_token_id=40),
    ),
    "a pad token past the vocabulary": (
        "pad_token_id = 99",
        lambda d: d.generate(ids, 1, eos_token_id=1, pad_token_id=99),
    ),
    "a chunk of 0": (
        "prefill_chunk_size = 0",
        lambda d: d.generate(ids, 1, prefill_chunk_size=0),
    ),
    "use_cache that is no flag": ("use_cache = 1", lambda d: d.generate(ids, 1, use_cache=1)),
    "a cache without room": ("capacity = 0", lambda d: d.new_cache(batch=1, capacity=0)),
    "a cache past the limit": ("capacity = 65", lambda d: d.new_cache(batch=1, capacity=65)),
    "a cache without rows": ("batch = 0", lambda d: d.new_cache(batch=0, capacity=4)),
    "another batch's cache": (
        "cache = 2: must be for 1 rows",
        lambda d: d(ids, cache=d.new_cache(batch=2, capacity=4)),
    ),
    "something else for a cache": ("cache = ", lambda d: d(ids, cache=[])),
    "another model's cache": (
        "cache = ",
        lambda d: d(ids, cache=build(small()).new_cache(batch=1, capacity=4)),
    ),
    "a cache of another type": (
        "cache = 'torch.float32",
        lambda d: d(ids, cache=build(d.spec, dtype=torch.float32).new_cache(batch=1, capacity=4)),
    ),
    "lengths that are too few": ("lengths", lambda d: d(ids, lengths=[])),
    "lengths that pass the prompt": ("lengths", lambda d: d(ids, lengths=[4])),
    "a length of 0": ("lengths = 0", lambda d: d(ids, lengths=[0])),
    "one length for all": ("lengths = 3", lambda d: d(ids, lengths=3)),
    "a prompt past the limit": (
        "context = 65",
        lambda d: d.generate(torch.ones((1, 65), dtype=torch.int64), 0),
    ),
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_is_refused(what: str) -> None:
    message, call = BAD_CALLS[what]
    with pytest.raises(LlmcalcError, match=message):
        call(build(the_assignments()))


def test_a_full_cache_is_refused_and_stays_as_it_was() -> None:
    decoder = build(the_assignments())
    ids = prompt(decoder.spec, 9)
    cache = decoder.new_cache(batch=1, capacity=8)
    decoder(ids[:, :6], cache=cache)
    held = cache.clone()
    with pytest.raises(LlmcalcError, match="capacity"):
        decoder(ids[:, 6:], cache=cache)
    assert cache.lengths == (6,)
    assert all(map(torch.equal, cache.keys + cache.values, held.keys + held.values))
    decoder(ids[:, 6:8], cache=cache)
    assert cache.lengths == (8,)


BAD_SPECS = {
    "dropout": lambda: TinyDecoder(small(), dropout=1.0),
    "dropout = 'much'": lambda: TinyDecoder(small(), dropout="much"),  # type: ignore[arg-type]
    "attention": lambda: TinyDecoder(small(), attention="quick"),  # type: ignore[arg-type]
    "spec": lambda: TinyDecoder("llama"),  # type: ignore[arg-type]
    "dtype": lambda: TinyDecoder(small(), dtype=torch.int32),
    "device": lambda: TinyDecoder(small(), device="abacus"),
    "generator": lambda: TinyDecoder(small(), generator=3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("field", BAD_SPECS)
def test_a_decoder_of_bad_arguments_is_refused(field: str) -> None:
    with pytest.raises(LlmcalcError, match=f"^{field.partition(' ')[0]} = "):
        BAD_SPECS[field]()
