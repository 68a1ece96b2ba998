"""One engine: one vocabulary everywhere, rules that are its own, and no name outside its rooms."""

from __future__ import annotations

import ast
import copy
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import GiB, Layout, LlmcalcError, engines, huggingface, load_model, planning, serving
from llmcalc.engines import Engine, Placement, PoolRule, Used, registry
from llmcalc.engines.pools import POOLS
from llmcalc.errors import InvalidValueError, UnknownNameError
from llmcalc.huggingface import catalogue
from llmcalc.layouts import ENGINES
from llmcalc.roofline import efficiencies, forecast
from llmcalc.serving.wordings import WORDINGS
from llmcalc.spec.part import Group

LLAMA = load_model("meta-llama/Llama-3.1-8B")
PACKAGE = Path(engines.__file__).parent.parent

ALL = [engines.get(name) for name in engines.names()]
FAMILIES = sorted({engine.family for engine in ALL})

#: A name of an engine in any case.
CASES = st.sampled_from(engines.names()).flatmap(
    lambda name: st.lists(st.booleans(), min_size=len(name), max_size=len(name)).map(
        lambda upper: "".join(
            letter.upper() if high else letter for letter, high in zip(name, upper, strict=True)
        )
    )
)


# One vocabulary ----------------------------------------------------------------------------


@given(CASES)
def test_a_name_means_the_same_engine_in_any_case_in_every_room(name: str) -> None:
    known = engines.get(name)
    assert engines.canonical(name) == name.casefold()
    assert known.name.startswith(name.casefold())
    assert engines.get(known) is known
    answers: tuple[tuple[object, Callable[[], object], object], ...] = (
        (known.placement, lambda: Layout(engine=name).engine, name.casefold()),
        (known.pool_rule, lambda: serving.profile(name), known),
        (known.calibration, lambda: efficiencies.get(name).engine, known.calibration),
    )
    for is_known, ask, answer in answers:
        if is_known is not None:
            assert ask() == answer
        else:
            with pytest.raises(InvalidValueError, match=r"^engine = "):
                ask()


def test_names_that_people_write_are_known() -> None:
    written = ("vLLM", "VLLM-0.19", "SGLang", "TensorRT-LLM", "llama.cpp", "ExLlamaV2", "TGI")
    assert [engines.get(name).title for name in written] == [
        *("vLLM", "vLLM", "SGLang", "TensorRT-LLM", "llama.cpp", "exllamav2", "TGI")
    ]
    for engine in ALL:
        assert engines.get(engine.title).family == engine.family
    assert {*efficiencies.engines()} == {one.calibration for one in ALL} - {None}
    assert {*WORDINGS} <= {*FAMILIES}
    assert engines.DEFAULT in serving.profiles()


def test_an_engine_without_a_version_is_the_newest_that_was_measured_and_answers_print_it() -> None:
    measured = [one for one in engines.versions("vllm") if one.is_measured]
    assert engines.get("vllm") == max(measured, key=lambda one: one.version_numbers)
    for name in ("vllm", "vLLM"):
        answer = serving.budget(
            LLAMA, device="H100-SXM-80GB", context=8192, weights="bf16", kv="bf16", engine=name
        )
        assert answer.explain().startswith(f"Budget of {engines.get('vllm').name} on ")
    assert engines.get("vllm").name == "vllm-0.19"
    assert engines.get("sglang").name == "sglang-0.5"


def test_versions_stand_in_order_and_an_unknown_one_has_no_measurements() -> None:
    for family in FAMILIES:
        several = engines.versions(family)
        assert [one.version_numbers for one in several] == sorted(
            one.version_numbers for one in several
        )
        assert {one.family for one in several} == {family}
        assert engines.of_version(family, None) == several[-1]
    vllm = engines.of_version("vllm", "0.19.1")
    assert vllm is engines.get("vllm-0.19")
    between, later, before = (engines.of_version("vllm", v) for v in ("0.7", "0.99", "0.1"))
    assert [one.name for one in (between, later, before)] == ["vllm-0.6", "vllm-0.26", "vllm-0.6"]
    for one in (between, later, before):
        assert not one.is_measured
        assert one.activation is None
        assert one.non_torch_bytes is None
        assert one.pipeline_non_torch_bytes is None


@pytest.mark.parametrize("name", ["vlm", "vllm-0.91", "", "a" * 10_000, "vllm 0.19"])
def test_an_unknown_name_is_one_short_error_wherever_it_is_given(name: str) -> None:
    asks: tuple[Any, ...] = (
        lambda: engines.get(name),
        lambda: Layout(engine=name),
        lambda: serving.profile(name),
        lambda: serving.allocate(LLAMA, context=1, kv="bf16", engine=name),
        lambda: efficiencies.get(name),
        lambda: efficiencies.conventions(name, "H100-SXM-80GB"),
        lambda: planning.possible_layouts(LLAMA, 2, engine=name),
    )
    for ask in asks:
        with pytest.raises(UnknownNameError, match=r"^engine = ") as error:
            ask()
        assert len(str(error.value)) <= 200
        assert "llmcalc.engines.names()" in str(error.value)


@pytest.mark.parametrize("thing", [None, 3, True, b"vllm", ("vllm",)])
def test_what_is_no_name_is_refused(thing: Any) -> None:
    for ask in (engines.get, engines.canonical, serving.profile, efficiencies.get):
        with pytest.raises(LlmcalcError, match=r"^engine = "):
            ask(thing)
    if thing is not None:
        with pytest.raises(LlmcalcError, match=r"^engine = "):
            Layout(engine=thing)


# What is not known is refused ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama.cpp", "exllama", "TensorRT-LLM", "tgi"])
def test_a_layout_of_an_engine_whose_placement_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(InvalidValueError, match="sglang, vllm have one"):
        Layout(engine=name)
    with pytest.raises(InvalidValueError, match="sglang, vllm have one"):
        planning.possible_layouts(LLAMA, 2, engine=name)


def test_a_budget_of_an_engine_without_a_pool_is_refused() -> None:
    for ask in (
        lambda: serving.budget(
            LLAMA, visible_bytes=GiB, context=1, weights="bf16", kv="bf16", engine="exllama"
        ),
        lambda: serving.allocate(LLAMA, context=1, kv="bf16", engine=Engine(name="mine")),
        lambda: Engine(name="mine").pool,
    ):
        with pytest.raises(InvalidValueError, match="has no rule for a cache pool"):
            ask()


def test_a_forecast_of_an_engine_without_a_calibration_is_refused() -> None:
    mine = Engine(name="mine", pool_rule="total", share=0.9)
    unknown = Engine(name="mine", calibration="of no one")
    for engine, rule in ((mine, "is not calibrated"), ("sglang", "autoawq"), (unknown, "of no")):
        with pytest.raises(LlmcalcError, match=rule):
            forecast(
                LLAMA, "H100-SXM-80GB", engine=engine, prompt=8, new_tokens=8,
                weights="bf16", kv="bf16",
            )  # fmt: skip
    with pytest.raises(LlmcalcError, match="is not calibrated"):
        efficiencies.conventions(mine, "H100-SXM-80GB")


def test_a_budget_refuses_no_layout_for_the_sake_of_its_engine() -> None:
    """What a layout of the engine refuses, one of no engine does not, whatever the budget's."""
    mixtral = load_model("Mixtral-8x7B-v0.1")
    refused = Layout(data_parallel=2, engine="vllm")
    with pytest.raises(LlmcalcError, match="vLLM splits the experts"):
        refused.check(mixtral)
    common: dict[str, Any] = {"visible_bytes": 160 * GiB, "context": 1024, "kv": "bf16"}
    answer = serving.budget(
        mixtral, weights="bf16", engine="vllm-0.19", layout=Layout(data_parallel=2), **common
    )
    assert answer.fits
    with pytest.raises(LlmcalcError, match="vLLM splits the experts"):
        serving.budget(mixtral, weights="bf16", engine="sglang", layout=refused, **common)


# An engine and its rules --------------------------------------------------------------------


def test_engines_are_values() -> None:
    mine = Engine(
        name="mine",
        pool_rule=engines.Cells(),
        share=0.5,
        placement=Placement(engine="Mine", shared_groups=frozenset({"experts"})),
        non_torch_bytes={1: 5},
        conventions=engines.Conventions(compute=("fp16",)),
    )
    for engine in (*ALL, mine):
        for same in (copy.copy(engine), copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):  # noqa: S301
            assert same == engine
            assert hash(same) == hash(engine)
            assert str(same) == engine.name
    assert len({*ALL}) == len({engine.name for engine in ALL})
    assert attrs.evolve(mine, share=0.6) != mine
    layout = Layout(tensor_parallel=2, engine=mine)
    assert pickle.loads(pickle.dumps(layout)) == layout  # noqa: S301
    assert layout.placement is mine.placement


def test_a_profile_is_an_engine_and_is_built_as_ever() -> None:
    assert serving.Profile is Engine
    mine = serving.Profile(name="mine", pool_rule="total", share=0.9, block_tokens=32)
    assert mine.pool is POOLS["total"]
    assert (mine.family, mine.version, mine.title) == ("mine", "", "mine")
    for wrong in (
        {"pool_rule": "all", "share": 0.9}, {"share": 1.5}, {"share": True}, {"block_tokens": 0},
        {"cache_groups": "some"}, {"pads_pages": 1}, {"placement": "vllm"},
        {"evened_groups_percent": -1}, {"pool_rule": 3},
    ):  # fmt: skip
        arguments: dict[str, Any] = wrong
        with pytest.raises(LlmcalcError, match=next(iter(wrong))):
            Engine(name="mine", **arguments)
    with pytest.raises(LlmcalcError, match="name"):
        Engine(name=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ALL, ids=str)
def test_every_rule_and_number_of_an_engine_has_a_source(engine: Engine) -> None:
    named = {"name", "title", "family", "version", "sources"}
    for field in attrs.fields(Engine):
        value = getattr(engine, field.name)
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = 1 if field.name == "vocab_multiple" else None
        if field.name not in named and value != default:
            assert field.name in engine.sources, field.name


@given(
    st.sampled_from([*POOLS.values()]),
    st.integers(1, 2**40),
    st.floats(0.01, 1),
    st.tuples(*[st.integers(0, 2**37)] * 4),
)
def test_a_pool_falls_by_what_is_subtracted_and_its_working_adds_up(
    rule: PoolRule, visible: int, share: float, terms: tuple[int, int, int, int]
) -> None:
    used = Used(*terms)
    pool = rule.pool_bytes(visible, share, used)
    assert {*rule.asked} <= {*rule.subtracted} <= {*Used._fields}
    for name in Used._fields:
        more = rule.pool_bytes(visible, share, used._replace(**{name: getattr(used, name) + 2**20}))
        assert more < pool if name in rule.subtracted else more == pool
    lines = rule.working(visible, share, used)
    assert lines[-1][0] == "cache pool"

    def shown(text: str) -> int:
        found = re.match(r"-?[\d ]+(?= B)", text)
        return int(found[0].replace(" ", "")) if found else 0

    first, *rest = [shown(text) for _, text in lines]
    left = first + sum(rest[:-1])
    if rule.share_of == "rest" and left > 0:
        left = int(left * share)
    assert rest[-1] == left == pool


def test_the_default_step_is_that_of_the_device() -> None:
    vllm = engines.get("vllm-0.19")
    assert vllm.step(80 * GiB, "A100-SXM-80GB") == vllm.step(24 * GiB) == (2048, 256)
    assert vllm.step(80 * GiB) == (8192, 1024)
    assert engines.get("sglang").step(GiB) == engines.get("sglang").step(100 * GiB)


def test_groups_that_replicas_share_are_groups_of_the_ledger() -> None:
    for placement in ENGINES.values():
        assert placement.shared_groups <= {*get_args(Group)}
    assert {*ENGINES} == {None, "vllm", "sglang"}
    assert len(ENGINES) == 3
    assert ENGINES["vllm"] == engines.placement_of("vllm-0.6") == Layout(engine="vllm").placement
    assert "vLLM" in repr(ENGINES)


@given(st.integers(1, 200), st.integers(1, 200), st.booleans())
def test_stages_take_every_layer_and_differ_by_one_at_most(
    layers: int, stages: int, last: bool
) -> None:
    cut = Placement(last_stages=last).stage_layers(layers, stages)
    assert len(cut) == stages
    assert sum(cut) == layers
    assert max(cut) - min(cut) <= 1
    if last:
        assert list(cut) == sorted(cut)
    elif layers % stages:
        assert cut[-1] == min(cut)


def test_an_engine_of_ones_own_places_as_it_says() -> None:
    placement = Placement(engine="Mine", vocab_multiple=128, last_stages=True)
    mine = Engine(name="mine", placement=placement)
    layout = Layout(pipeline_parallel=3, engine=mine)
    assert [stage.layers for stage in layout.stages(LLAMA)] == [10, 11, 11]
    assert str(layout.engine) == "mine"
    assert mine.vocab_multiple == 128
    assert all(one.engine is mine for one in planning.possible_layouts(LLAMA, 2, engine=mine))


def test_an_engine_is_added_by_a_module_and_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Engine(name="mine-1.2", family="mine", version="1.2", pool_rule="static", share=0.5)
    new = attrs.evolve(old, name="mine-1.10", version="1.10", graphs_subtracted=True)
    home = ModuleType("mine")
    home.ENGINES = (new, old)  # type: ignore[attr-defined]
    monkeypatch.setattr(registry, "_HOMES", (*registry._HOMES, home))
    try:
        _forget()
        assert engines.names()[-3:] == ("mine", "mine-1.2", "mine-1.10")
        assert engines.get("MINE") is old  # the newer one has a term that is not known
        assert engines.versions("mine") == (old, new)
        assert serving.profiles()[-1] == "mine-1.10"
        assert serving.profile("Mine-1.10") is new
    finally:
        monkeypatch.undo()
        _forget()


def _forget() -> None:
    registry._versions.cache_clear()
    registry._table.cache_clear()


def test_logs_are_parsed_as_those_of_an_engine_in_any_case_and_version() -> None:
    text = "gpu_worker.py:1] Available KV cache memory: 58.11 GiB"
    assert serving.parse_log(text).engine == "vllm"
    assert serving.parse_log(text, engine="vLLM-0.19") == serving.parse_log(text, engine="VLLM")
    for name in ("exllama", "none"):
        with pytest.raises(LlmcalcError, match="must be one of sglang"):
            serving.parse_log(text, engine=name)


# No name outside its rooms ------------------------------------------------------------------

#: Where an engine's name may be a literal: its own room, patterns of logs, and the readers of
#: configs, which state the names of files.
ENGINE_ROOMS = ("engines/", "huggingface/", "serving/wordings.py", "__main__.py", "cli/")

#: Where a model's or a model type's name may be one.
MODEL_ROOMS = ("huggingface/", "__main__.py", "cli/")

#: Model types that are called as the kind of layer that they have.
KINDS_OF_LAYERS = {"mamba", "mamba2", "rwkv"}


def literals(path: Path) -> Iterator[ast.Constant]:
    """Give the strings of a file that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {
        node.value for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in alone:
            yield node


def outside(rooms: tuple[str, ...]) -> Iterator[Path]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.relative_to(PACKAGE).as_posix().startswith(rooms):
            yield path


def named(words: set[str]) -> re.Pattern[str]:
    either = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return re.compile(rf"(?<![\w./-])(?:{either})(?:-\d[\d.]*)?(?![\w/])", re.IGNORECASE)


def test_no_engine_is_named_outside_its_rooms() -> None:
    pattern = named({*FAMILIES} | {engine.title for engine in ALL})
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.value!r}"
        for path in outside(ENGINE_ROOMS)
        for node in literals(path)
        if pattern.search(str(node.value))
    ]
    assert not found
    assert pattern.search("vllm-0.19")
    assert pattern.search("as llama.cpp does")
    assert not pattern.search("llama_cpp")


def test_no_model_is_named_outside_its_rooms() -> None:
    names = {*huggingface.supported()} | {name.casefold() for name in catalogue.names()}
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.value!r}"
        for path in outside(MODEL_ROOMS)
        for node in literals(path)
        if str(node.value).casefold() in names - KINDS_OF_LAYERS
    ]
    assert not found
    assert "llama" in names


def test_an_engine_touches_two_files_of_the_package_at_most() -> None:
    """Those that name an engine: its own, and the registry that lists it."""
    own = {path.stem for path in (PACKAGE / "engines").glob("*.py")}
    rooms = {"__init__", "engine", "placement", "pools", "registry"}
    for path in (PACKAGE / "engines").glob("*.py"):
        if path.stem in {"engine", "placement", "pools"}:
            pattern = named({*FAMILIES} | {engine.title for engine in ALL})
            assert not [node for node in literals(path) if pattern.search(str(node.value))]
    registry = (PACKAGE / "engines" / "registry.py").read_text(encoding="utf-8")
    for module in own - rooms:
        assert module in registry


def test_no_table_of_an_engine_can_be_changed() -> None:
    engine = engines.get("vllm-0.19")
    given = {1: 5}
    own = Engine(name="mine", non_torch_bytes=given, sources={"share": "mine"})
    given[1] = 6
    assert own.non_torch_bytes == {1: 5}
    for table in (engine.non_torch_bytes, engine.sources, own.sources, engine.log.words):
        with pytest.raises(TypeError):
            table[1] = 0  # type: ignore[index]
    assert pickle.loads(pickle.dumps(engine)) == engine  # noqa: S301
    for field in ("sources", "non_torch_bytes"):
        wrong: dict[str, Any] = {field: 7}
        with pytest.raises(LlmcalcError, match=f"^{field} = 7: must be Mapping"):
            Engine(name="mine", **wrong)
