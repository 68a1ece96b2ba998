"""The fifth law of the house: order and memory change no answer.

Questions asked in any order, again, with whatever was asked before, and after all that is kept was
cleared, give what a fresh description answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache, partial
from typing import Any, Final

import attrs
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmcalc import GiB, Layout, ModelSpec, engines, formats, memory, planning, roofline, serving
from llmcalc.engines import Engine
from llmcalc.formats import Coverage, Format, Rule, Scheme, Uniform
from llmcalc.spec import StoredTensor
from llmcalc.spec.kept import kept
from tests import house

#: What clears all that is kept.
CLEAR: Final = "clear"


@cache
def used(name: str) -> ModelSpec:
    """Return a model that all examples ask."""
    return house.model(name)


# Public questions in any order --------------------------------------------------------------

SEQUENCES: Final = st.lists(st.sampled_from([CLEAR, *house.QUESTIONS]), min_size=2, max_size=12)


@given(name=st.sampled_from(house.MODELS), sequence=SEQUENCES)
def test_questions_in_any_order_are_answered_as_by_a_fresh_description(
    name: str, sequence: list[str]
) -> None:
    spec = used(name)
    for question in sequence:
        if question == CLEAR:
            spec.ledger.kept.clear()
            spec.multi_token_ledger.kept.clear()
            continue
        ask = house.QUESTIONS[question]
        assert house.answer(ask, spec) == house.answer(ask, house.model(name)), question


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-V3.2-Exp", "openai/gpt-oss-20b"])
def test_all_questions_backwards_and_cleared_between_are_answered_alike(name: str) -> None:
    known, spec = house.known(name), house.model(name)
    for question in reversed(house.QUESTIONS):
        for _ in range(2):
            assert house.answer(house.QUESTIONS[question], spec) == known[question], question
        spec.ledger.kept.clear()
        assert house.answer(house.QUESTIONS[question], spec) == known[question], question


@pytest.mark.slow
@pytest.mark.parametrize("name", house.CONFIGS)
def test_all_questions_to_every_type_of_model_are_answered_alike_in_any_order(name: str) -> None:
    spec, known = house.model(name), house.asked(house.model(name))
    backwards = {question: house.QUESTIONS[question] for question in reversed(house.QUESTIONS)}
    for _ in range(2):
        assert house.differing(house.asked(spec, backwards), known) == []
        spec.ledger.kept.clear()


# Arguments of all kinds ---------------------------------------------------------------------

#: Models whose layers have the same labels, at other places.
NAMES: Final = (
    "google/gemma-2-9b",
    "google/gemma-2-2b",
    "google/gemma-3-1b-it",
    "openai/gpt-oss-20b",
    "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
)

BYTE, NIBBLE, WIDE = formats.get("int8"), formats.get("int4"), formats.get("bf16")


def own_format(size: int) -> Format:
    """Return a format of that many bytes an element; all have one name."""
    return Format(name="mine", block_elements=1, block_bytes=size)


def own_coverage(layers: Any, *first: Format) -> Coverage:
    """Return a scheme that quantises the first two layers; its layers are numbered as given."""
    rules = tuple(Rule(format=one, targets=("re:.*layers\\.[01]\\.",)) for one in first)
    return Coverage(name="mine", wide=WIDE, rules=rules, layers=layers)


@attrs.frozen(repr=False, eq=False)
class Even(Scheme):
    """A scheme of one's own: every second layer has other bytes."""

    sizes: tuple[int, int]

    @property
    def name(self) -> str:  # type: ignore[override]  # it is the same for all
        """The name of all such schemes."""
        return "even"

    def formats_of(
        self, tensor: StoredTensor, layers: Collection[int] | None = None
    ) -> tuple[tuple[Format, int], ...]:
        """Return the formats by whether the layers' numbers are even."""
        if not tensor.times:
            return ((WIDE, 1),)
        numbers = range(tensor.layers) if layers is None else layers
        counts = [sum(number % 2 == odd for number in numbers) for odd in (0, 1)]
        pairs = zip(map(own_format, self.sizes), counts, strict=True)
        return tuple((format, count) for format, count in pairs if count)


def numbers_of(name: str) -> dict[str, tuple[int, ...]]:
    return used(name).ledger.layer_numbers


SCHEMES: Final[list[Callable[[], Any]]] = [
    lambda: "bf16",
    lambda: "Q4_K_M",
    lambda: "IQ2_XS",
    lambda: "fp8-block128",
    lambda: "mxfp4",
    lambda: own_format(1),
    lambda: own_format(3),
    lambda: Uniform(own_format(1)),
    lambda: Uniform(own_format(3)),
    lambda: Even((1, 2)),
    lambda: Even((2, 5)),
    lambda: own_coverage(None, BYTE),
    lambda: own_coverage(None, own_format(1)),
    lambda: own_coverage(None, own_format(3)),
    *[lambda name=name: own_coverage(numbers_of(name), BYTE) for name in NAMES],
    *[lambda name=name: own_coverage(numbers_of(name), NIBBLE, BYTE) for name in NAMES[:3]],
    *[lambda name=name: formats.scheme("Q4_K_M", used(name)) for name in NAMES],
    *[lambda name=name: formats.scheme("IQ2_XS", used(name)) for name in NAMES[:3]],
]

STATES: Final[list[Any]] = [
    "fp32", "bf16", own_format(1), own_format(3), {"state": "fp32", "conv": "bf16"},
    {"conv": "bf16", "state": "fp32"}, {"state": "bf16", "conv": "fp32"},
]  # fmt: skip

#: Engines of one name, and of several.
ENGINES: Final[list[Any]] = [
    "vllm", "vllm-0.6", "sglang",
    *(
        attrs.evolve(engines.get("vllm"), **more)
        for more in ({}, {"vocab_multiple": 512}, {"block_tokens": 64}, {"pads_pages": False},
                     {"mxfp4_kernels": None})
    ),
]  # fmt: skip

PLACES: Final = (
    Layout(),
    Layout(tensor_parallel=2),
    Layout(tensor_parallel=2, engine="vllm"),
    Layout(pipeline_parallel=2),
    Layout(pipeline_parallel=2, stage_layers=(1, 25)),
    Layout(pipeline_parallel=2, engine="sglang"),
    Layout(tensor_parallel=2, expert_parallel=True),
)

STEP: Final[dict[str, Any]] = {"batch": 2, "new": 3, "past": 6000}

#: What is asked, of arguments that are drawn.
ASKS: Final[dict[str, Callable[..., Any]]] = {
    "weights": lambda spec, weights, layout, **_: memory.weight_bytes(
        spec, weights=weights, layout=layout
    ),
    "weights of a rank": lambda spec, weights, layout, **_: memory.weight_bytes(
        spec, weights=weights, layout=layout, rank=layout.devices - 1
    ),
    "cache": lambda spec, kv, state, layout, **_: memory.kv_cache_bytes(
        spec, context=9000, kv=kv, state=state, layout=layout
    ),
    "fit": lambda spec, weights, kv, state, layout, **_: memory.fit(
        spec, device_memory=80 * GiB, context=9000, weights=weights, kv=kv, state=state,
        layout=layout,
    ),
    "bytes": lambda spec, weights, kv, state, layout, **_: roofline.bytes_moved(
        spec, weights=weights, kv=kv, state=state, layout=layout, **STEP
    ),
    "time": lambda spec, weights, kv, state, layout, **_: roofline.step_time(
        spec, house.H100, weights=weights, kv=kv, state=state, layout=layout, **STEP
    ),
    "loaded": lambda spec, weights, engine, layout, **_: serving.loaded_weights(
        spec, weights=weights, engine=engine, layout=layout
    ),
    "activations": lambda spec, weights, engine, layout, **_: serving.activation_peak(
        spec, weights=weights, engine=engine, layout=layout
    ),
    "allocation": lambda spec, kv, state, engine, layout, **_: serving.allocate(
        spec, context=9001, kv=kv, state=state, engine=engine, layout=layout
    ),
    "budget": lambda spec, weights, kv, state, engine, layout, **_: serving.budget(
        spec, context=4096, visible_bytes=96 * GiB, weights=weights, kv=kv, state=state,
        engine=engine, layout=layout, activation_bytes=GiB, non_torch_bytes=GiB, graph_bytes=0,
    ),
    "plan": lambda spec, weights, kv, state, layout, **_: [
        *planning.plan(
            spec, devices=house.H100, context=9000, weights=[weights, "bf16"], kv=kv, state=state,
            layouts=[layout, Layout(tensor_parallel=2)],
        )
    ],
}  # fmt: skip

ARGUMENTS: Final = st.fixed_dictionaries(
    {
        "weights": st.integers(0, len(SCHEMES) - 1),
        "kv": st.sampled_from(["bf16", "fp8", own_format(1), own_format(3)]),
        "state": st.sampled_from(STATES),
        "engine": st.sampled_from(ENGINES),
        "layout": st.sampled_from(PLACES),
    }
)


def ask(spec: ModelSpec, question: str, arguments: dict[str, Any]) -> Any:
    given = {**arguments, "weights": SCHEMES[arguments["weights"]]()}
    return house.told(partial(ASKS[question], spec, **given))


@given(
    name=st.sampled_from(NAMES),
    asked=st.lists(st.tuples(st.sampled_from([*ASKS]), ARGUMENTS), min_size=1, max_size=6),
)
@settings(max_examples=120)
def test_whatever_was_given_before_arguments_are_answered_as_by_a_fresh_description(
    name: str, asked: list[tuple[str, dict[str, Any]]]
) -> None:
    spec = used(name)
    for question, arguments in asked:
        assert ask(spec, question, arguments) == ask(house.model(name), question, arguments)


#: Values of each argument that look alike: of one name, of one kind, made for other models.
VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "weights": tuple(range(len(SCHEMES))),
    "kv": ("bf16", "fp8", own_format(1), own_format(3)),
    "state": tuple(STATES),
    "engine": tuple(ENGINES),
    "layout": PLACES,
}


@pytest.mark.parametrize("argument", VALUES)
@pytest.mark.parametrize(
    "name", ["google/gemma-2-2b", "openai/gpt-oss-20b", "Qwen/Qwen3-Next-80B-A3B-Instruct"]
)
def test_every_value_is_answered_after_every_other_one_as_by_a_fresh_description(
    name: str, argument: str
) -> None:
    spec = house.model(name)
    rest: dict[str, Any] = {
        "weights": 0, "kv": "bf16", "state": "fp32", "engine": "vllm", "layout": Layout(),
    }  # fmt: skip
    for question in ASKS:
        given = [{**rest, argument: value} for value in VALUES[argument]]
        first = [ask(spec, question, one) for one in given]
        spec.ledger.kept.clear()
        last = [ask(spec, question, one) for one in reversed(given)]
        assert first == last[::-1], question


def test_schemes_that_answer_differently_are_not_equal() -> None:
    """Numbers of layers are part of what a scheme says, and so of what it is."""
    some = {"decoder": (0, 1), "window": (2, 3)}
    other = {"decoder": (2, 3), "window": (0, 1)}
    assert own_coverage(some, BYTE) == own_coverage(dict(some), BYTE)
    assert own_coverage(some, BYTE) != own_coverage(other, BYTE)
    assert own_coverage(some, BYTE) != own_coverage(None, BYTE)
    assert hash(own_coverage(some, BYTE)) == hash(own_coverage(dict(some), BYTE))
    mixes = [formats.scheme("Q4_K_M", house.model(name)) for name in NAMES]
    assert len({*mixes}) == len(mixes)
    assert {*mixes} == {formats.scheme("Q4_K_M", house.model(name)) for name in NAMES}


def turned(spec: ModelSpec) -> ModelSpec:
    """Return a model with the same layers in the opposite order."""
    return attrs.evolve(spec, layers=spec.layers[::-1])


#: Schemes by their names, which are made for a model, and one that patterns give layer by layer.
MADE: Final[dict[str, Callable[[ModelSpec], Any]]] = {
    "Q4_K_M": lambda spec: formats.scheme("Q4_K_M", spec),
    "IQ2_XS": lambda spec: formats.scheme("IQ2_XS", spec),
    "numbered": lambda spec: own_coverage(spec.ledger.layer_numbers, BYTE),
    "not numbered": lambda _: own_coverage(None, BYTE),
}


@pytest.mark.parametrize("how", MADE)
@pytest.mark.parametrize("name", ["google/gemma-2-2b", "openai/gpt-oss-20b",
                                  "Qwen/Qwen3-Next-80B-A3B-Instruct"])  # fmt: skip
def test_a_scheme_of_a_model_is_not_that_of_one_with_other_places_of_the_same_layers(
    name: str, how: str
) -> None:
    """Each model has the formats of its own layers, whichever scheme it was asked about before."""
    one, other = house.model(name), turned(house.model(name))
    one_scheme, other_scheme = MADE[how](one), MADE[how](other)
    question: dict[str, Any] = {"kv": "bf16", "state": "fp32", "layout": Layout()}
    for asks in (ASKS["weights"], ASKS["bytes"], ASKS["time"]):
        known = house.told(partial(asks, house.model(name), weights=one_scheme, **question))
        assert known[0] != "refused"
        again = house.told(partial(asks, one, weights=one_scheme, **question))
        foreign = house.told(partial(asks, one, weights=other_scheme, **question))
        assert again == known
        assert foreign == known or (foreign[0] == "refused" and how in {"Q4_K_M", "IQ2_XS"})
        assert house.told(partial(asks, one, weights=one_scheme, **question)) == known
    if how != "not numbered":
        assert one_scheme != other_scheme


@pytest.mark.parametrize("mix", ["Q4_K_M", "IQ2_XS", "Q8_0"])
def test_a_mix_that_was_made_for_a_model_is_answered_or_refused_for_another_one(mix: str) -> None:
    """It is never answered with the layers of the model that it was made for."""
    for name in NAMES:
        for other in NAMES:
            scheme = formats.scheme(mix, used(other))
            found, known = (
                house.told(partial(memory.weight_bytes, used(name), weights=weights))
                for weights in (scheme, mix)
            )
            if name == other:
                assert found == known
            else:
                assert found == known or found[0] == "refused", (name, other)


# What changes after it was given ------------------------------------------------------------


class Mine(Scheme):
    """A scheme that is written without `attrs`, and can change."""

    name = "mine"

    def __init__(self, format: Format) -> None:
        self.format = format

    def formats_of(
        self, tensor: StoredTensor, layers: Collection[int] | None = None
    ) -> tuple[tuple[Format, int], ...]:
        """Return the format that it has now."""
        return ((self.format, tensor.layers if layers is None else len(layers)),)


@pytest.mark.parametrize("question", ["weights", "fit", "bytes", "time", "loaded", "plan"])
def test_a_scheme_that_changes_is_answered_as_it_is(question: str) -> None:
    name = "google/gemma-2-9b"
    spec = used(name)
    scheme = Mine(own_format(1))
    rest: dict[str, Any] = {"kv": "bf16", "state": "fp32", "engine": "vllm", "layout": Layout()}

    def asked(one: ModelSpec) -> Any:
        return house.told(partial(ASKS[question], one, weights=scheme, **rest))

    before = asked(spec)
    assert before == asked(house.model(name))
    assert before[0] != "refused"
    scheme.format = own_format(3)
    assert asked(spec) == asked(house.model(name))
    assert asked(spec) != before


def test_arguments_that_change_afterwards_change_nothing_that_was_made_of_them() -> None:
    name = "google/gemma-2-9b"
    layers = {label: list(numbers) for label, numbers in numbers_of(name).items()}
    scheme = own_coverage(layers, BYTE)
    known = memory.weight_bytes(used(name), weights=scheme).total
    layers["window"].clear()
    layers["decoder"] = []
    assert memory.weight_bytes(used(name), weights=scheme).total == known
    assert memory.weight_bytes(house.model(name), weights=scheme).total == known

    state: dict[str, Any] = {"state": "fp32", "conv": "bf16"}
    hybrid = used("Qwen/Qwen3-Next-80B-A3B-Instruct")
    first = memory.kv_cache_bytes(hybrid, context=8, kv="bf16", state=state).total
    state["state"] = "bf16"
    assert memory.kv_cache_bytes(hybrid, context=8, kv="bf16", state=state).total < first


def test_arrays_that_are_overwritten_change_no_later_answer() -> None:
    spec = house.model("mistralai/Mixtral-8x7B-v0.1")
    asks: tuple[Callable[[], Any], ...] = (
        lambda: roofline.flops(spec, **house.MANY).total,
        lambda: roofline.bytes_moved(spec, weights="bf16", kv="bf16", **house.MANY).total,
        lambda: memory.kv_cache_bytes(spec, context=np.array([1, 9]), kv="bf16").total,
        lambda: (
            roofline.step_time(spec, house.H100, weights="bf16", kv="bf16", **house.MANY).seconds
        ),
    )
    recurrent = house.model("xlstm")
    contexts = np.array([1, 2, 3])  # on which nothing depends
    asks += (
        lambda: roofline.flops(recurrent, batch=1, new=1, past=contexts).total,
        lambda: memory.kv_cache_bytes(recurrent, context=contexts, kv="bf16").total,
        lambda: memory.kv_cache_bytes(recurrent, context=contexts, kv="bf16").terms[0].value,
    )
    for once in asks:
        known = once()
        kept_values = known.tolist()
        known[...] = -1
        assert once().tolist() == kept_values


def test_more_questions_than_are_kept_are_answered_alike() -> None:
    spec = house.model("meta-llama/Llama-3.1-8B")
    widths = [own_format(size) for size in range(1, 300)]
    found = [memory.weight_bytes(spec, weights=one).total for one in widths]
    assert found == [one.block_bytes * memory.parameters(spec).total for one in widths]
    assert len(spec.ledger.kept) <= 256
    assert [memory.weight_bytes(spec, weights=one).total for one in widths] == found


def test_what_is_kept_is_kept_under_values_that_are_equal() -> None:
    """Not under what merely looks alike: True is no 1, and equal values are one."""
    ledger = house.model("meta-llama/Llama-3.1-8B").ledger

    def made(_: Any, *values: Any) -> list[Any]:
        return [*values]

    assert kept(ledger, made, own_format(1)) is kept(ledger, made, own_format(1))
    assert kept(ledger, made, own_format(1)) is not kept(ledger, made, own_format(3))
    assert kept(ledger, made, [1]) is not kept(ledger, made, [1])
    engine: Engine = engines.get("vllm")
    other = attrs.evolve(engine, block_tokens=64)
    assert kept(ledger, made, engine) is not kept(ledger, made, other)
    ledger.kept.clear()
    assert not ledger.kept


@given(st.sampled_from(house.MODELS), st.sampled_from([*house.QUESTIONS]))
@example("deepseek-ai/DeepSeek-V3", "multi-token copies")
def test_asking_changes_no_description(name: str, question: str) -> None:
    spec = used(name)
    house.answer(house.QUESTIONS[question], spec)
    assert spec == house.model(name)
    assert spec.ledger.entries == house.model(name).ledger.entries
