"""The fourth law of the house: a part that only forwards another is that part."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs
import pytest

from llmcalc import ModelSpec, memory, serving
from llmcalc.spec import (
    Attention,
    Axis,
    Block,
    Experts,
    FeedForward,
    Item,
    LatentAttention,
    Layer,
    Norm,
    ParallelBlock,
    Part,
    Residual,
    Rotary,
    Window,
    runs,
)
from llmcalc.spec.part import Group
from tests import house


class Forwarding:
    """What has all properties of a part, and is no `Part`."""

    def __init__(self, inner: Part) -> None:
        self._inner = inner

    @property
    def group(self) -> Group:
        """Where the other part's items are counted."""
        return self._inner.group

    @property
    def label(self) -> str:
        """The other part's label."""
        return self._inner.label

    def check_width(self, embed_dim: int) -> None:
        """Refuse what the other part refuses."""
        self._inner.check_width(embed_dim)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the other part's items."""
        return self._inner.items(embed)


class ForwardingPart(Part):
    """The same as a subclass of `Part`, written without `attrs`."""

    def __init__(self, inner: Part) -> None:
        self.inner = inner
        self.group = inner.group  # type: ignore[misc]  # of each part its own

    @property
    def label(self) -> str:
        """The other part's label."""
        return self.inner.label

    def check_width(self, embed_dim: int) -> None:
        """Refuse what the other part refuses."""
        self.inner.check_width(embed_dim)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the other part's items."""
        return self.inner.items(embed)


@attrs.frozen
class ForwardingValue(Part):
    """The same as a class of `attrs`, with `attrs`' own equality."""

    inner: Part
    group: Group = attrs.field(  # type: ignore[misc]  # of each part its own
        default=attrs.Factory(lambda self: self.inner.group, takes_self=True)
    )

    @property
    def label(self) -> str:
        """The other part's label."""
        return self.inner.label

    def check_width(self, embed_dim: int) -> None:
        """Refuse what the other part refuses."""
        self.inner.check_width(embed_dim)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the other part's items."""
        return self.inner.items(embed)


WRAPPERS: Final[dict[str, Callable[[Any], Any]]] = {
    "what is no Part": Forwarding,
    "a Part": ForwardingPart,
    "a Part of attrs": ForwardingValue,
}


def forwarded_block(block: Residual, wrap: Callable[[Any], Any]) -> Residual:
    if isinstance(block, Block):
        return attrs.evolve(block, part=wrap(block.part))
    if isinstance(block, ParallelBlock):
        inner = tuple(attrs.evolve(one, part=wrap(one.part)) for one in block.blocks)
        return attrs.evolve(block, blocks=inner)
    return block


def forwarded(spec: ModelSpec, wrap: Callable[[Any], Any]) -> ModelSpec:
    """Return a description each of whose parts stands behind another one that forwards it."""
    made: dict[Layer, Layer] = {}

    def layer(known: Layer) -> Layer:
        if known not in made:
            blocks = tuple(forwarded_block(block, wrap) for block in known.blocks)
            made[known] = attrs.evolve(known, blocks=blocks)
        return made[known]

    modules: list[Any] = [*spec.multi_token]
    return attrs.evolve(
        spec,
        layers=tuple(attrs.evolve(run, layer=layer(run.layer)) for run in spec.layers),
        multi_token=tuple(
            attrs.evolve(module, layers=tuple(map(layer, module.layers))) for module in modules
        ),
    )


@pytest.mark.parametrize("name", house.MODELS)
def test_all_numbers_stay_when_parts_stand_behind_parts_that_forward_them(name: str) -> None:
    spec = forwarded(house.model(name), Forwarding)
    assert house.differing(house.asked(spec), house.known(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", house.CONFIGS)
def test_all_numbers_of_every_type_of_model_stay_behind_parts_that_forward(name: str) -> None:
    known = house.asked(house.model(name))
    for wrap in WRAPPERS.values():
        found = house.asked(forwarded(house.model(name), wrap))
        assert house.differing(found, known) == []


# Parts one by one ---------------------------------------------------------------------------

NORM: Final = Norm(kind="rms")
ROTARY: Final = Rotary(theta=5e5)
EXPERT: Final = FeedForward(inner_dim=512, gated=True, activation="silu")

PARTS: Final[dict[str, tuple[Part, ...]]] = {
    "grouped": (Attention(query_heads=8, kv_heads=2, head_dim=64, rotary=ROTARY), EXPERT),
    "fused": (Attention(query_heads=8, kv_heads=2, head_dim=64, rotary=ROTARY, fused=True), EXPERT),
    "windowed": (
        Attention(query_heads=8, kv_heads=2, head_dim=64, rotary=ROTARY, span=Window(64)),
        Attention(query_heads=8, kv_heads=2, head_dim=64, rotary=Rotary(theta=1e6)),
        EXPERT,
    ),
    "latent": (
        LatentAttention(
            query_heads=8, nope_dim=32, rope_dim=16, value_dim=32, latent_dim=128,
            query_latent_dim=None, norm=NORM, rotary=ROTARY,
        ),
        Experts(num_experts=8, experts_per_token=2, expert=EXPERT, shared=EXPERT),
    ),
}  # fmt: skip


def of_parts(parts: tuple[Any, ...]) -> ModelSpec:
    """Return a model whose layers have one of the parts each, in turn."""
    layers = runs(Layer(blocks=(Block(part=part, norm=NORM),)) for part in (*parts, *parts) * 4)
    return attrs.evolve(
        house.model("meta-llama/Llama-3.1-8B"), layers=layers, embed_dim=512, checkpoint="bf16"
    )


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("name", PARTS)
def test_runs_of_layers_with_parts_that_forward_are_those_of_the_parts(
    name: str, wrap: str
) -> None:
    plain = of_parts(PARTS[name])
    spec = of_parts(tuple(map(WRAPPERS[wrap], PARTS[name])))
    assert [(run.label, run.count) for run in spec.layers] == [
        (run.label, run.count) for run in plain.layers
    ]
    assert spec.ledger.entries == plain.ledger.entries
    assert house.differing(house.asked(spec), house.asked(plain)) == []


def test_what_once_was_asked_of_parts_is_answered_through_one_that_forwards() -> None:
    """Rotary tables, query heads of a KV head, fused matrices, the expansion of latents."""
    for parts in PARTS.values():
        plain, spec = of_parts(parts), of_parts(tuple(map(Forwarding, parts)))
        for weights in ("bf16", "Q4_K_M", "Q5_K_M", "IQ2_XS"):
            loaded = serving.loaded_weights(spec, weights=weights)
            assert loaded == serving.loaded_weights(plain, weights=weights)
            assert loaded.by()["rotary tables"] > 0
            assert memory.weight_bytes(spec, weights=weights) == memory.weight_bytes(
                plain, weights=weights
            )
    latent = serving.loaded_weights(of_parts(PARTS["latent"]), weights="bf16")
    assert latent.by()["absorbed copies"] > 0
    fused, apart = (
        memory.weight_bytes(of_parts(PARTS[name]), weights="Q4_K_M").total
        for name in ("fused", "grouped")
    )
    assert fused != apart


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_part_that_forwards_refuses_the_width_that_the_part_refuses(wrap: str) -> None:
    part = Attention(query_heads=8, kv_heads=2, head_dim=64, output=False)
    assert of_parts((WRAPPERS[wrap](part),)).ledger.entries == of_parts((part,)).ledger.entries
    other = attrs.evolve(part, head_dim=32)
    with pytest.raises(ValueError, match=r"embed_dim = 512: must be that of all heads"):
        of_parts((WRAPPERS[wrap](other),))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_description_with_parts_of_ones_own_survives_copies(wrap: str) -> None:
    spec = of_parts(tuple(map(WRAPPERS[wrap], PARTS["latent"])))
    known = memory.parameters(spec)
    for again in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):  # noqa: S301
        assert again.ledger.entries == spec.ledger.entries
        assert memory.parameters(again) == known
    assert copy.copy(spec) == spec
    assert hash(copy.copy(spec)) == hash(spec)


def test_parts_that_are_written_without_attrs_are_equal_where_they_are_one() -> None:
    inner = PARTS["grouped"][0]
    first, second = ForwardingPart(inner), ForwardingPart(inner)
    assert copy.copy([first]) == [first]
    assert first != second
    assert first != inner
    assert len({first, second, first}) == 2
    assert repr(first)
