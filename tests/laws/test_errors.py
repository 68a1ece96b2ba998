"""Laws of errors: they pass between processes as they are, and say in few words what is known."""

from __future__ import annotations

import ast
import copy
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import llmcalc
from llmcalc import (
    Breakdown,
    DeviceSpec,
    Layout,
    LlmcalcError,
    formats,
    hardware,
    load_model,
    memory,
    serving,
)
from llmcalc.boundary import choice, same
from llmcalc.breakdown import Term
from llmcalc.errors import (
    InvalidValueError,
    MissingExtraError,
    UnitMismatchError,
    UnknownNameError,
    shown,
)
from llmcalc.huggingface import catalogue
from llmcalc.roofline import efficiencies
from llmcalc.tables import Table, column
from llmcalc.units import Bytes

LONGEST: Final = 200

COPIES: Final[dict[str, Callable[[Any], Any]]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),  # noqa: S301  # our own bytes
}


class Unreadable:
    """A value that can be pickled, and not be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


class Stubborn:
    """A value that cannot be pickled, nor copied, nor printed."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("stays here")

    def __repr__(self) -> str:
        raise RuntimeError("says nothing")


class OwnError(LlmcalcError):
    """A user's own kind of error, with a constructor of its own."""

    def __init__(self, *, one: int, other: object) -> None:
        self.one, self.other = one, other
        super().__init__(f"{one} and {other}")


LLAMA: Final[dict[str, Any]] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}

#: One error of each kind.
ERRORS: Final[dict[str, LlmcalcError]] = {
    "LlmcalcError": LlmcalcError("nothing is known"),
    "InvalidValueError": InvalidValueError("batch", -1, "must be an integer of at least 0"),
    "UnknownNameError": UnknownNameError("format", "bf61", formats.names(), listed_by="names()"),
    "UnitMismatchError": UnitMismatchError("bytes + FLOPs: both must have one unit"),
    "MissingExtraError": MissingExtraError("to_pandas", "pandas", "pandas"),
    "UnknownDeviceError": hardware.UnknownDeviceError("device", "a100", hardware.names()),
    "_UsageError": import_module("llmcalc.__main__")._UsageError("see --help"),
}


def assert_alike(again: LlmcalcError, made: LlmcalcError) -> None:
    """Check that an error has the kind, the message and the attributes of another one."""
    assert type(again) is type(made)
    assert again is not made
    assert str(again) == str(made)
    assert again.args == made.args
    assert vars(again).keys() == vars(made).keys()
    assert all(same(value, vars(made)[name]) for name, value in vars(again).items())


def test_every_kind_of_error_has_an_example_here() -> None:
    folder = Path(llmcalc.__file__).parent
    found = {
        node.name
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id.endswith("Error") for base in node.bases)
    }
    assert found == ERRORS.keys()


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("error", [*ERRORS.values(), OwnError(one=1, other="a")], ids=repr)
def test_a_copy_of_an_error_has_its_kind_its_message_and_its_attributes(
    error: LlmcalcError, how: str
) -> None:
    assert_alike(COPIES[how](error), error)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_pickles_errors(protocol: int) -> None:
    error = ERRORS["UnknownNameError"]
    assert_alike(pickle.loads(pickle.dumps(error, protocol)), error)  # noqa: S301  # our own bytes


VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.text(), VALUES, st.text())
@example("batch", np.arange(4), "must be a scalar")
def test_a_copy_of_an_error_holds_whatever_value_was_wrong(
    field: str, value: object, rule: str
) -> None:
    error = InvalidValueError(field, value, rule)
    for make in COPIES.values():
        assert_alike(make(error), error)


def test_notes_that_were_added_to_an_error_are_on_its_copies() -> None:
    error = InvalidValueError("batch", -1, "must be at least 0")
    error.add_note("in row 7")
    assert [make(error).__notes__ for make in COPIES.values()] == [["in row 7"]] * 3


def numbers() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    "value",
    [lambda: None, numbers(), threading.Lock(), [1, numbers()], type("Here", (), {})(), Stubborn()],
    ids=["function", "generator", "lock", "list", "local class", "stubborn"],
)
def test_a_value_that_cannot_be_pickled_becomes_its_text_and_stays_in_other_copies(
    value: object,
) -> None:
    error = InvalidValueError("batch", value, "must be an integer")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert (again.field, again.value, again.rule) == ("batch", shown(value), "must be an integer")
    assert str(again) == str(error)
    assert copy.copy(error).value is value
    assert str(copy.deepcopy(error)) == str(error)
    assert type(copy.deepcopy(error).value) is type(value)


def test_a_value_that_cannot_be_unpickled_becomes_its_text() -> None:
    error = InvalidValueError("batch", Unreadable(), "must be an integer")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert again.value == shown(error.value)
    assert str(again) == str(error)


def test_an_error_that_holds_itself_can_be_copied() -> None:
    error = InvalidValueError("batch", [], "must be an integer")
    error.value = error
    again = copy.deepcopy(error)
    assert again.value is again
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  # our own bytes


def refuse() -> None:
    raise InvalidValueError("batch", lambda: None, "must be an integer")


def test_a_bad_argument_is_an_error_in_another_process_and_ends_none() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        calls: list[tuple[Callable[..., Any], object, type[Exception]]] = [
            (hardware.get, "H100-SMX-80GB", hardware.UnknownDeviceError),
            (formats.get, "bf61", UnknownNameError),
            (load_model, {"model_type": "lama"}, UnknownNameError),
            (load_model, {**LLAMA, "vocab_size": [1] * 1000}, InvalidValueError),
            (serving.parse_log, 3, InvalidValueError),
        ]
        for call, argument, kind in calls:
            with pytest.raises(kind) as here:
                call(argument)
            with pytest.raises(kind) as there:
                pool.submit(call, argument).result()
            assert str(there.value) == str(here.value)
        with pytest.raises(InvalidValueError) as unsent:
            pool.submit(refuse).result()
        assert str(unsent.value.value).startswith("<function ")
        assert pool.submit(hardware.get, "L4").result() == hardware.get("L4")


# Messages -----------------------------------------------------------------------------------


@given(st.text(max_size=300), st.text(max_size=3000), st.lists(st.text(max_size=300)))
@example("format", "x" * 10**6, [f"format-{number}" for number in range(1000)])
@example("f" * 500, "x", ["y" * 500])
def test_the_message_for_an_unknown_name_is_short_whatever_is_known(
    field: str, value: str, known: list[str]
) -> None:
    for listed_by in (None, "llmcalc.formats.names()"):
        error = UnknownNameError(field, value, known, listed_by=listed_by)
        assert len(str(error)) <= LONGEST
        assert error.known == tuple(sorted(known))
        assert len(error.suggestions) <= 3
        assert set(error.suggestions) <= set(known)
        assert (error.field, error.value, error.listed_by) == (field, value, listed_by)


@given(st.sets(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=12))
def test_the_message_for_an_unknown_name_names_all_that_are_known_where_these_are_few(
    known: set[str],
) -> None:
    message = str(UnknownNameError("format", "abcx", known, listed_by="names()"))
    assert message.endswith(": " + ", ".join(sorted(known)))
    assert "names()" not in message


def test_the_message_for_an_unknown_name_names_the_nearest_and_where_all_are() -> None:
    many = [f"format-{number}" for number in range(1000)]
    message = str(UnknownNameError("format", "format_777", many, listed_by="names()"))
    assert message.startswith("format = 'format_777': is not known; did you mean 'format-777' or ")
    assert message.endswith("'? All 1000 are in names()")
    assert message.count(" or ") == 2
    assert str(UnknownNameError("format", "?", many)) == (
        "format = '?': is not known; all 1000 are in this error, as `known`"
    )
    assert str(UnknownNameError("format", "?", [])) == "format = '?': is not known; there is none"


@pytest.mark.parametrize("value", [3, None, ["last"]])
def test_a_choice_that_is_no_text_is_refused_with_all_names_where_these_are_few(
    value: object,
) -> None:
    with pytest.raises(InvalidValueError, match=r"logits = .*: must be one of all, last$"):
        choice(value, "logits", ("last", "all"))
    many = [f"choice-{number}" for number in range(1000)]
    with pytest.raises(
        InvalidValueError, match=r"choice-0.* \(all 1000 are in names\(\)\)$"
    ) as one:
        choice(value, "logits", many, listed_by="names()")
    assert len(str(one.value)) <= LONGEST


@given(VALUES, st.integers(0, 400))
def test_a_value_leaves_room_for_the_rule_that_it_breaks(value: object, length: int) -> None:
    message = str(InvalidValueError("field", value, "r" * length))
    assert message.endswith("r" * length)
    assert len(message) <= max(LONGEST, length + len("field = : ") + 40)


#: Wrong names, for everything that knows some; a call to be tested is one line.
WRONG: Final[dict[str, Callable[[str], object]]] = {
    "format": formats.get,
    "weights": lambda name: formats.scheme(name, load_model("llama-3-8b")),
    "model type": lambda name: load_model({"model_type": name}),
    "catalogued model": lambda name: raised(catalogue.unknown(name)),
    "activation": lambda name: load_model({**LLAMA, "hidden_act": name}),
    "quantisation": lambda name: quantised({"quant_method": name}),
    "algorithm": lambda name: quantised({"quant_method": "modelopt", "quant_algo": name}),
    "device": hardware.get,
    "number format": lambda name: hardware.get("L4").peak(name),
    "figure": lambda name: attrs.evolve(hardware.get("L4"), sources={name: "a data sheet"}),
    "profile": serving.profile,
    "calibrated engine": efficiencies.get,
    "calibrated level": lambda name: efficiencies.get("vLLM", at_least=name),  # type: ignore[arg-type]
    "group": lambda name: memory.parameters(load_model("llama-3-8b"))[name],
    "group of many": lambda name: Breakdown(
        Bytes, "many", [Term((f"group {number}",), ()) for number in range(100)]
    )[name],
    "column": lambda name: Table((column("a", [1]),))[name],
    "column of many": lambda name: Table(
        tuple(column(f"column {number}", [1]) for number in range(100))
    )[name],
    "engine of a layout": lambda name: Layout(engine=name),
    "logits": lambda name: choice(name, "logits", ("last", "all")),
}


def raised(error: LlmcalcError) -> object:
    raise error


def quantised(config: dict[str, Any]) -> object:
    return formats.scheme("checkpoint", load_model({**LLAMA, "quantization_config": config}))


@pytest.mark.parametrize("name", ["bf61", "q" * 1000, "\0\n'\"\\" * 40, ""], ids=range(4))
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_name_is_refused_in_few_words_that_say_where_all_names_are(
    what: str, name: str
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        WRONG[what](name)
    error, message = caught.value, str(caught.value)
    assert len(message) <= LONGEST
    assert "\n" not in message
    if ", ".join(error.known) not in message:
        assert f"ll {len(error.known)} are in " in message
        assert (error.listed_by or "`known`") in message
        assert all(repr(near) in message for near in error.suggestions[:1])


@pytest.mark.parametrize("what", WRONG)
def test_what_a_message_names_as_the_list_lists_all(what: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        WRONG[what]("?")
    places = [
        place
        for place in (caught.value.listed_by or "").partition(",")[0].split(" and ")
        if place.startswith("llmcalc.")
    ]
    if places:
        listed = set[str]()
        for place in places:
            module, _, call = place.rpartition(".")
            assert call.endswith("()")
            listed.update(getattr(import_module(module), call.removesuffix("()"))())
        # "general" is a calibration of no engine.
        assert set(caught.value.known) - {"general"} == listed


def test_a_device_without_a_calibration_is_refused_in_few_words_that_name_others() -> None:
    for engine in efficiencies.engines():
        known = efficiencies.devices(engine)
        for device in sorted({*hardware.names()} - {*known}):
            with pytest.raises(InvalidValueError, match="is not calibrated on it") as caught:
                efficiencies.get(engine, device)
            message = str(caught.value)
            assert len(message) <= LONGEST
            listing = f"all {len(known)} are in llmcalc.roofline.efficiencies.devices({engine!r})"
            assert all(name in message for name in known) or listing in message


def test_a_name_that_fits_many_devices_is_refused_in_few_words() -> None:
    with pytest.raises(hardware.UnknownDeviceError, match=r"^device = 'rtx': could be ") as caught:
        hardware.get("rtx")
    assert all(name.startswith("RTX") for name in caught.value.suggestions)
    assert f"or {len(caught.value.suggestions) - 3} others; say which" in str(caught.value)
    assert len(str(caught.value)) <= LONGEST


def test_a_device_of_ones_own_with_a_wrong_figure_is_refused_in_few_words() -> None:
    with pytest.raises(
        LlmcalcError, match=r"peak_flops\.bf61.*did you mean 'peak_flops\.bf16'"
    ) as one:
        DeviceSpec(
            name="mine",
            memory_bytes=1,
            bandwidth_bytes_per_second=1,
            peak_flops={"bf16": 1, "fp8": 2},
            sources={"peak_flops.bf61": "a data sheet"},
        )
    assert len(str(one.value)) <= LONGEST
