"""The first law of the house: words carry no information.

Names, titles, labels, paths and printed factors are for people: with all of them changed, all
numbers stay. Every name becomes the same word here, or that of something else, so that whoever
reads one reads a lie.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import attrs
import pytest

from llmcalc import Breakdown, Layout, ModelSpec, engines, formats, hardware, memory, roofline
from llmcalc.breakdown import Term
from llmcalc.folds.breakdowns import FoldBreakdown
from llmcalc.folds.counts import Count
from llmcalc.folds.owners import Owner
from llmcalc.folds.pieces import Shape, Stored
from llmcalc.formats import Coverage, Extra, Format, Rule
from llmcalc.layouts import Rank
from llmcalc.spec import Axis, Embedding, Head, Item, Layer, LayerRun, Norm, Residual, spans
from llmcalc.spec.axes import factors
from llmcalc.spec.ledger import Entry, StoredTensor, stored_name
from tests import house

Rename = Callable[[str], str]


# Names of a description ---------------------------------------------------------------------


class RenamedBlock(Residual):
    """A residual step that emits what another one does, under other names."""

    def __init__(self, inner: Residual, rename: Rename) -> None:
        self.inner, self.rename = inner, rename

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
        return renamed_entries(self.inner.entries(label, count, embed), self.rename)


class RenamedBeside:
    """What stands beside the layers, or predicts further tokens, under other names."""

    def __init__(self, inner: Any, rename: Rename) -> None:
        self.inner, self.rename = inner, rename

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Those of the other one."""
        layers: tuple[Layer, ...] = self.inner.layers
        return layers

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the entries of the other one."""
        return renamed_entries(self.inner.entries(embed), self.rename)

    def copies(self, embed: Axis, vocab: Axis) -> Iterator[Entry]:
        """Emit the copies of the other one."""
        return renamed_entries(self.inner.copies(embed, vocab), self.rename)


def renamed_entries(entries: Iterator[Entry], rename: Rename) -> Iterator[Entry]:
    for entry in entries:
        item = attrs.evolve(entry.item, name=rename(entry.item.name))
        yield attrs.evolve(entry, item=item)


def renamed_part(part: Any, rename: Rename) -> Any:
    """Return an embedding, a norm or a head that emits its items under other names."""

    class Renamed(type(part)):  # type: ignore[misc]
        __slots__ = ()

        def items(self, *arguments: Any, **named: Any) -> Iterator[Item]:
            for item in super().items(*arguments, **named):
                yield attrs.evolve(item, name=rename(item.name))

    fields = {field.name: getattr(part, field.name) for field in attrs.fields(type(part))}
    return Renamed(**fields)


def renamed(spec: ModelSpec, rename: Rename, relabel: Rename, name: str) -> ModelSpec:
    """Return a description with other names of items, labels of layers, and another name."""
    made: dict[Layer, Layer] = {}
    runs = []
    for run in spec.layers:
        if run.layer not in made:
            blocks = tuple(RenamedBlock(block, rename) for block in run.layer.blocks)
            made[run.layer] = attrs.evolve(run.layer, blocks=blocks)
        runs.append(LayerRun(count=run.count, label=relabel(run.label), layer=made[run.layer]))
    embedding: Embedding = renamed_part(spec.embedding, rename)
    if embedding.norm is not None:
        embedding = attrs.evolve(embedding, norm=renamed_part(embedding.norm, rename))
    head: Head = renamed_part(spec.head, rename)
    norm: Norm | None = None if spec.final_norm is None else renamed_part(spec.final_norm, rename)
    return attrs.evolve(
        spec,
        name=name,
        layers=tuple(runs),
        embedding=embedding,
        head=head,
        final_norm=norm,
        beside=tuple(RenamedBeside(one, rename) for one in spec.beside),
        multi_token=tuple(RenamedBeside(one, rename) for one in spec.multi_token),
    )


def names_of(spec: ModelSpec) -> list[str]:
    entries = (*spec.ledger.entries, *spec.multi_token_ledger.entries)
    return sorted({entry.item.name for entry in entries})


def next_of(words: list[str]) -> Rename:
    """Return a map from each of the words to the next one."""
    return dict(zip(words, (*words[1:], *words[:1]), strict=True)).__getitem__


#: Labels that mean something elsewhere: groups, kinds of layers, what stands outside of layers.
LABELS: Final = ["experts", "head", "weights", "window", "cache read", "1", "decoder"]


def all_alike(spec: ModelSpec) -> ModelSpec:
    """Return a description whose items all have one name, and whose layers have labels of others.

    A name of another family stands for the model's own.
    """
    labels = list(dict.fromkeys(run.label for run in spec.layers))
    own = dict(zip(labels, [*LABELS, *map(str, range(2, len(labels)))], strict=False))
    return renamed(spec, lambda _: "x", own.__getitem__, "deepseek-ai/DeepSeek-V3.2-Exp")


def exchanged(spec: ModelSpec) -> ModelSpec:
    """Return a description in which every name and every label is another one's."""
    labels = list(dict.fromkeys(run.label for run in spec.layers))
    return renamed(spec, next_of(names_of(spec)), next_of(labels), "openai/gpt-oss-20b Mixtral")


RENAMED: Final = {"all alike": all_alike, "exchanged": exchanged}


def test_names_are_changed_by_these_tests() -> None:
    spec = house.model("deepseek-ai/DeepSeek-V3")
    assert names_of(all_alike(spec)) == ["x"]
    other = exchanged(spec)
    assert names_of(other) == names_of(spec)
    for mine, theirs in zip(spec.ledger.entries, other.ledger.entries, strict=True):
        assert mine.item.name != theirs.item.name
        assert attrs.evolve(theirs.item, name=mine.item.name) == mine.item
        assert mine.label != theirs.label or not mine.label


@pytest.mark.parametrize("how", RENAMED)
@pytest.mark.parametrize("name", house.MODELS)
def test_all_numbers_stay_when_items_layers_and_model_have_other_names(name: str, how: str) -> None:
    found = house.asked(RENAMED[how](house.model(name)))
    assert house.differing(found, house.known(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", house.ALL_MODELS)
def test_all_numbers_of_every_model_stay_under_other_names(name: str) -> None:
    spec = house.model(name)
    known = house.asked(spec)
    for how in RENAMED.values():
        assert house.differing(house.asked(how(spec)), known) == []


# Keys ---------------------------------------------------------------------------------------


def rekeyed(item: Any) -> Any:
    """Return an item whose keys are other words: operation, reader, storage, merged matrices."""
    keys = {
        name: f"key {getattr(item, name)[::-1]}"
        for name in ("of", "reader", "storage", "merged")
        if name in {field.name for field in attrs.fields(type(item))}
        and getattr(item, name) is not None
    }
    return attrs.evolve(item, **keys)


class RekeyedBlock(RenamedBlock):
    """A residual step whose items have other keys."""

    def entries(self, label: str, count: int, embed: Axis) -> Iterator[Entry]:
        """Emit the entries of the other one."""
        for entry in self.inner.entries(label, count, embed):
            yield attrs.evolve(entry, item=rekeyed(entry.item))


@pytest.mark.parametrize("name", house.MODELS)
def test_keys_are_compared_with_each_other_and_mean_nothing_else(name: str) -> None:
    spec = house.model(name)
    made: dict[Layer, Layer] = {}
    for run in spec.layers:
        blocks = tuple(RekeyedBlock(block, str) for block in run.layer.blocks)
        made.setdefault(run.layer, attrs.evolve(run.layer, blocks=blocks))
    runs = tuple(attrs.evolve(run, layer=made[run.layer]) for run in spec.layers)
    found = house.asked(attrs.evolve(spec, layers=runs))
    assert house.differing(found, house.known(name)) == []


# Printed words ------------------------------------------------------------------------------


def nameless(terms: Any) -> tuple[Any, ...]:
    return tuple((value, "x") for value, _ in terms)


def say_nothing(patch: pytest.MonkeyPatch) -> None:
    """Make everything that is printed the same word, wherever the package makes it."""

    def everywhere(known: Any, other: Any) -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("llmcalc"):
                for attribute, value in list(vars(module).items()):
                    if value is known:
                        patch.setattr(module, attribute, other)

    def title(kind: Any) -> None:
        begin = kind.__init__
        patch.setattr(
            kind, "__init__",
            lambda self, unit, _, *arguments: begin(self, unit, "x", *arguments),
        )  # fmt: skip

    def path(kind: Any) -> None:
        make = kind.__new__
        patch.setattr(
            kind, "__new__",
            lambda cls, path, *arguments, **named: make(
                cls, (*path[:-1], "x"), *arguments, **named
            ),
        )  # fmt: skip

    everywhere(factors, lambda *arguments: nameless(factors(*arguments)))
    everywhere(stored_name, lambda *_, **__: "x")
    title(Breakdown)
    title(FoldBreakdown)
    path(Shape)
    path(Stored)
    for span in [spans.Span, *spans.Span.__subclasses__()]:
        patch.setattr(span, "slot_name", property(lambda _: "x"))
    for kind in (Owner, Rank):
        patch.setattr(kind, "title", property(lambda _: "x"))
    patch.setattr(Entry, "name", property(lambda entry: (*entry.path, "x")))
    patch.setattr(StoredTensor, "path", property(lambda tensor: (*tensor.entry.path, "x")))
    row_factors, terms = Format.row_factors, Format.terms
    patch.setattr(Format, "row_factors", lambda *arguments: nameless(row_factors(*arguments)))
    patch.setattr(
        Format, "terms",
        lambda *arguments, **named: [("x", nameless(own)) for _, own in terms(*arguments, **named)],
    )  # fmt: skip
    count, term = Count.__new__, Term.__init__
    patch.setattr(Count, "__new__", lambda cls, kind, _, *more: count(cls, kind, "x", *more))
    patch.setattr(
        Term, "__init__",
        lambda self, path, own, *more: term(self, (*path[:-1], "x"), nameless(own), *more),
    )  # fmt: skip


def test_everything_that_is_printed_is_one_word_in_these_tests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    say_nothing(monkeypatch)
    spec = house.model("mistralai/Mixtral-8x7B-v0.1")
    texts = [
        memory.weight_bytes(spec, weights="Q4_K_M", tensor_parallel=2).explain(),
        memory.kv_cache_bytes(spec, context=8, batch=2, kv="fp8-group128").explain(),
        roofline.flops(spec, batch=2, new=1, past=7).explain(),
        roofline.bytes_moved(spec, batch=2, new=1, past=7, weights="fp8-block128", kv="bf16")
        .explain(),
    ]  # fmt: skip
    groups = {*spec.ledger.entries[0].path, "attention", "embeddings", "experts", "head", "norms"}
    printed = {"B", "FLOP", "total", "GiB", "TiB", "MiB", "weights", "cache", "read", "written"}
    allowed = {"x", "decoder", "activations", *groups, *printed}
    for text in texts:
        words = {word.strip("().:=") for line in text.splitlines() for word in line.split()}
        found = {part for word in words for part in word.split(".") if part.isalpha()}
        assert found - allowed == set()


@pytest.mark.parametrize("name", house.MODELS)
def test_all_numbers_stay_when_everything_that_is_printed_is_one_word(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = house.known(name)
    say_nothing(monkeypatch)
    assert house.differing(house.asked(house.model(name)), known) == []


# Names of formats, devices and engines ------------------------------------------------------

LLAMA: Final = house.model("meta-llama/Llama-3.1-8B")
MIXTRAL: Final = house.model("mistralai/Mixtral-8x7B-v0.1")

STAGES: Final = Layout(pipeline_parallel=2)
STEP: Final[dict[str, Any]] = {"batch": 2, "new": 3, "past": 50}


def unnamed(format: Format) -> Format:
    extras = tuple(attrs.evolve(extra, name="x") for extra in format.extras)
    return attrs.evolve(format, name="x", extras=extras)


@pytest.mark.parametrize("name", formats.names())
def test_all_numbers_stay_when_a_format_has_another_name(name: str) -> None:
    format = formats.get(name)
    given = {name: format, "x": unnamed(format)}
    device = hardware.get("H100-SXM-80GB")
    questions: dict[str, Callable[[Format], Any]] = {
        "weights": lambda one: memory.weight_bytes(MIXTRAL, weights=one, tensor_parallel=2),
        "cache": lambda one: memory.kv_cache_bytes(LLAMA, context=9, kv=one, state=one, index=one),
        "time": lambda one: roofline.step_time(MIXTRAL, device, weights=one, kv="bf16", **STEP),
        "activations": lambda one: roofline.step_time(
            LLAMA, device, weights="awq-int4-g128", kv="bf16", activations=one, **STEP
        ),
        "covered": lambda one: memory.weight_bytes(LLAMA, weights=covered(one, one)),
    }
    for question, ask in questions.items():
        known, other = (house.told(partial(ask, one)) for one in given.values())
        assert known == other, question


def covered(first: Format, others: Format) -> Coverage:
    """Return a scheme with one format in the first two layers, and another one in the others."""
    rules = (Rule(format=first, targets=("re:.*layers\\.[01]\\.",)), Rule(format=others))
    numbers = {"decoder": tuple(range(32))}
    return Coverage(name="own", wide=formats.get("bf16"), rules=rules, layers=numbers)


def test_formats_of_one_name_are_told_apart() -> None:
    byte, nibble = formats.get("int8"), formats.get("int4")
    named = covered(byte, nibble)
    alike = covered(unnamed(byte), unnamed(nibble))
    for ask in (
        lambda scheme: memory.weight_bytes(LLAMA, weights=scheme),
        lambda scheme: memory.weight_bytes(LLAMA, weights=scheme, layout=STAGES),
        lambda scheme: roofline.bytes_moved(LLAMA, weights=scheme, kv="bf16", **STEP),
        lambda scheme: roofline.step_time(
            LLAMA, "H100-SXM-80GB", weights=scheme, kv="bf16", **STEP
        ),
    ):
        assert house.plain(ask(alike)) == house.plain(ask(named))
    assert Extra("x", 1, rows=1, columns=1) != Extra("x", 2, rows=1, columns=1)


@pytest.mark.parametrize("name", ["vllm-0.19", "vllm-0.6", "sglang-0.5", "llama.cpp"])
def test_all_numbers_stay_when_an_engine_has_another_name(name: str) -> None:
    known = engines.get(name)
    other = attrs.evolve(known, name="x", title="y", family="z", version="99.9")
    questions = {
        question: ask
        for question, ask in house.QUESTIONS.items()
        if getattr(ask, "keywords", {}).get("engine") == name
    }
    assert questions
    for question, ask in questions.items():
        spec = house.model("openai/gpt-oss-20b")
        assert house.told(partial(ask, spec, engine=other)) == house.answer(ask, spec), question


def test_all_numbers_stay_when_a_device_has_another_name() -> None:
    known = hardware.get("A100-SXM-80GB")
    other = attrs.evolve(known, name="x", link="y", host_link="z")
    for ask in (
        lambda device: roofline.step_time(LLAMA, device, weights="bf16", kv="bf16", **STEP),
        lambda device: roofline.generation(
            LLAMA, device, prompt=64, new_tokens=4, weights="fp8", kv="bf16"
        ),
        lambda device: roofline.forecast(
            LLAMA, device, efficiency=house.OWN, prompt=64, new_tokens=4, weights="fp8", kv="bf16"
        ),
    ):
        assert house.plain(ask(other)) == house.plain(ask(known))
