"""The second law of the house: a window, chunk or top-k that is never reached is none.

That is so for every quantity of `memory` and `roofline`, also under an `Efficiency`, in forecasts,
in tiles, causal and not. An engine may give it blocks and groups of its own, so that serving is
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmcalc import Layout, ModelSpec, load_model, memory, roofline
from llmcalc.spec import (
    Attention,
    Axis,
    Block,
    Chunk,
    Compressed,
    Full,
    Layer,
    LayerRun,
    MaskedAttention,
    Residual,
    Span,
    TopK,
    Window,
    runs,
)
from llmcalc.spec.ledger import Entry
from tests import house

#: Beyond every context that is asked for.
FAR: Final = 2**40

#: What never limits anything; and what it is like.
NEVER: Final[dict[str, Callable[[int], Span]]] = {"window": Window, "chunk": Chunk, "top-k": TopK}

#: Everything that a fold asks a span, but for what transformers keeps.
ASKED: Final[dict[str, Callable[[Span, Any, Any, int], Any]]] = {
    "pairs": lambda span, new, past, _: span.pairs(new, past),
    "widest": lambda span, new, past, _: span.widest(new, past),
    "keys at hand": lambda span, new, past, _: span.present(new, past),
    "read": lambda span, new, past, _: span.fetched(new, past),
    "read without a mask": lambda span, new, past, _: span.unmasked(new, past),
    "read by tiles": lambda span, new, past, tile: span.tiled(new, past, tile),
    "read by tiles without a mask": lambda span, *step: span.unmasked_tiled(*step),
    "written": lambda span, new, past, _: span.written(new, past),
    "held": lambda span, new, past, _: span.slots(past + new),
    "bound of pairs": lambda span, *step: span.most_pairs(*step[:2]) >= span.pairs(*step[:2]),
    "bound of keys": lambda span, *step: span.most_present(*step[:2]) >= span.present(*step[:2]),
}

PAST: Final = st.integers(0, 3000) | st.integers(0, 2**30)

#: A step has a token: what none attends is read by nobody, in a window or without one.
NEW: Final = st.integers(1, 3000) | st.integers(1, 2**30)


@pytest.mark.parametrize("kind", NEVER)
@given(new=NEW, past=PAST, more=st.integers(0, 2), tile=st.integers(1, 300))
@example(new=1, past=0, more=0, tile=64)
@example(new=64, past=64, more=0, tile=64)
def test_what_is_never_reached_answers_as_if_there_were_no_limit(
    kind: str, new: int, past: int, more: int, tile: int
) -> None:
    limited = NEVER[kind](past + new + more)
    for name, ask in ASKED.items():
        assert ask(limited, new, past, tile) == ask(Full(), new, past, tile), name


@pytest.mark.parametrize("kind", NEVER)
@given(
    new=st.lists(st.integers(1, 500), min_size=3, max_size=3),
    past=st.lists(st.integers(0, 500), min_size=3, max_size=3),
    tile=st.integers(1, 300),
)
def test_what_no_element_of_an_array_reaches_answers_as_if_there_were_no_limit(
    kind: str, new: list[int], past: list[int], tile: int
) -> None:
    tokens, before = np.array(new), np.array(past)
    limited = NEVER[kind](int(max(tokens + before)))
    for name, ask in ASKED.items():
        found, known = (ask(span, tokens, before, tile) for span in (limited, Full()))
        assert np.array_equal(found, known), name


@given(
    ratio=st.integers(1, 9), new=NEW, past=PAST, more=st.integers(0, 2),
    tile=st.integers(1, 300),
)  # fmt: skip
def test_a_choice_of_more_slots_than_there_are_is_none(
    ratio: int, new: int, past: int, more: int, tile: int
) -> None:
    most = max(1, (past + new) // ratio + more)
    for name, ask in ASKED.items():
        found, known = (
            ask(span, new, past, tile) for span in (Compressed(ratio, most), Compressed(ratio))
        )
        assert found == known, name


# Whole models -------------------------------------------------------------------------------


class Respanned(Residual):
    """A residual step that emits what another one does, with other spans."""

    def __init__(self, inner: Residual, span: Callable[[Span], Span]) -> None:
        self.inner, self.span = inner, span

    @property
    def parts(self) -> Any:
        """The parts of the other one."""
        return self.inner.parts

    @property
    def adds_up(self) -> bool:
        """Whether those of the other one are added."""
        return self.inner.adds_up

    def entries(self, label: str, count: int, embed: Axis) -> Iterator[Entry]:
        """Emit the entries of the other one."""
        for entry in self.inner.entries(label, count, embed):
            item: Any = entry.item
            if isinstance(getattr(item, "span", None), Span):
                yield attrs.evolve(entry, item=attrs.evolve(item, span=self.span(item.span)))
            else:
                yield entry


def respanned(spec: ModelSpec, span: Callable[[Span], Span]) -> ModelSpec:
    """Return a description in which every span of the layers is another one."""
    made: dict[Layer, Layer] = {}
    for run in spec.layers:
        blocks = tuple(Respanned(block, span) for block in run.layer.blocks)
        made.setdefault(run.layer, attrs.evolve(run.layer, blocks=blocks))
    layers = tuple(attrs.evolve(run, layer=made[run.layer]) for run in spec.layers)
    return attrs.evolve(spec, layers=layers)


def never(limit: Callable[[int], Span]) -> Callable[[Span], Span]:
    """Return what gives every position a limit that nothing reaches."""

    def limited(span: Span) -> Span:
        if isinstance(span, Full):
            return limit(FAR)
        if isinstance(span, Compressed) and span.most is None:
            return Compressed(span.ratio, FAR)
        return span

    return limited


#: All questions but those that an engine's own rules answer.
QUESTIONS: Final = {
    name: ask
    for name, ask in house.QUESTIONS.items()
    if name not in {"fewest of an engine", *house.of_serving()}
}


@pytest.mark.parametrize("kind", NEVER)
@pytest.mark.parametrize("name", house.MODELS)
def test_all_numbers_of_a_model_stay_with_limits_that_nothing_reaches(name: str, kind: str) -> None:
    limited = respanned(house.model(name), never(NEVER[kind]))
    assert house.differing(house.asked(limited, QUESTIONS), house.known(name)) == []


def test_models_have_limits_that_these_tests_set() -> None:
    limited = [
        name for name in house.MODELS
        if respanned(house.model(name), never(Window)).ledger.entries
        != house.model(name).ledger.entries
    ]  # fmt: skip
    assert len(limited) >= len(house.MODELS) - 2  # xLSTM attends nothing


# Parts --------------------------------------------------------------------------------------


def attention(span: Span) -> Attention:
    return Attention(query_heads=8, kv_heads=2, head_dim=64, span=span)


def masked(span: Span) -> MaskedAttention:
    return MaskedAttention(attention=attention(span))


LLAMA: Final = load_model("Llama-3.1-8B")


def of_parts(*parts: Any) -> ModelSpec:
    """Return a model whose layers have these parts, in turn."""
    layers = runs([Layer(blocks=(Block(part=part),)) for part in (*parts, *parts)])
    return attrs.evolve(LLAMA, layers=layers, embed_dim=512)


@pytest.mark.parametrize("kind", NEVER)
@pytest.mark.parametrize("make", [attention, masked])
@given(
    new=st.integers(1, 400), past=st.integers(0, 800), batch=st.integers(1, 9),
    causal=st.booleans(), tile=st.none() | st.integers(1, 128), standard=st.booleans(),
    ranks=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_layers_with_and_without_a_limit_that_is_never_reached_cost_the_same(
    make: Callable[[Span], Any], kind: str, new: int, past: int, batch: int, causal: bool,
    tile: int | None, standard: bool, ranks: int,
) -> None:  # fmt: skip
    limit = NEVER[kind](new + past + 1)
    plain, mixed = of_parts(make(Full()), make(Full())), of_parts(make(limit), make(Full()))
    step: dict[str, Any] = {
        "batch": batch, "new": new, "past": past, "tensor_parallel": ranks, "causal": causal,
    }  # fmt: skip
    moved: dict[str, Any] = {
        "query_tile": tile, "attention": "standard" if standard else "flash", "weights": "bf16",
        "kv": "bf16",
    }  # fmt: skip

    def totals(spec: ModelSpec) -> list[Any]:
        timed = roofline.step_time(spec, house.H100, **step, **moved)
        held = (
            memory.kv_cache_bytes(
                spec, context=new + past, batch=batch, kv="bf16", tensor_parallel=ranks,
                policy=policy,
            ).total
            for policy in ("ideal", "transformers")
        )  # fmt: skip
        counted = (
            roofline.flops(spec, **{**step, "causal": causal}, convention=convention).total
            for convention in ("model", "transformers")
        )
        return [
            *held, *counted, dict(timed.bytes.by()), timed.seconds, timed.bound_seconds,
            [{**efficiency.parts(timed)} for efficiency in (house.OWN, roofline.Efficiency())],
        ]  # fmt: skip

    *exact, seconds, bound, parts = totals(mixed)
    *known, other_seconds, other_bound, other_parts = totals(plain)
    assert exact == known
    # Two kinds of layers are added where there is one: floats round once more.
    assert [seconds, bound] == pytest.approx([other_seconds, other_bound], rel=1e-12)
    for mine, theirs in zip(parts, other_parts, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("kind", NEVER)
def test_forecasts_do_not_tell_a_limit_that_is_never_reached(kind: str) -> None:
    def forecast(span: Span, **how: Any) -> list[float]:
        answer = roofline.forecast(
            of_parts(attention(span)), "RTX-3090", prompt=300, new_tokens=5, batch=3,
            weights="bf16", kv="bf16", chunk=128, query_tile=64, **how,
        )  # fmt: skip
        run = answer.run
        return [answer.seconds, *answer.token_seconds, answer.bound_seconds, run.pipeline_gain]

    for how in (
        {"engine": "llama.cpp"},
        {"efficiency": house.OWN, "layout": Layout(pipeline_parallel=2), "micro_batch_tokens": 300},
    ):
        assert forecast(NEVER[kind](305), **how) == forecast(Full(), **how)


def test_a_longest_context_is_none_of_a_window_where_memory_binds_first() -> None:
    def longest(span: Span) -> Any:
        spec = attrs.evolve(of_parts(attention(span)), max_positions=None)
        limit = memory.max_context(
            spec, device_memory=4 * 2**30, batch=64, weights="bf16", kv="bf16"
        )
        assert limit is not None
        return int(limit), limit.limited_by

    known = longest(Full())
    for limit in NEVER.values():
        assert longest(limit(known[0] + 1)) == known
        assert longest(limit(FAR)) == known


def test_runs_of_equal_layers_have_one_label_each() -> None:
    spec = of_parts(attention(Window(8)), attention(Full()))
    assert [(run.label, run.count) for run in spec.layers] == [
        ("window", 1), ("decoder", 1), ("window", 1), ("decoder", 1),
    ]  # fmt: skip
    assert isinstance(spec.layers[0], LayerRun)
