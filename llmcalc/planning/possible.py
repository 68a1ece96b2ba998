"""Possible layouts: those that nothing refuses for a model, on a number of devices.

* `possible_layouts`: every layout of a model on so many devices.

For the rooms beside this one:

* `number_of_devices`: a number of them, checked.
* `layouts_on`: the same for arguments that are checked; what it finds is kept with the model.
* `check`: refuses a layout that a model does not allow.
* `split_of`: what of a layout says how weights are split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

from llmcalc.boundary import whole_number
from llmcalc.errors import InvalidValueError, LlmcalcError
from llmcalc.layouts import MOST_DEVICES, Layout, Rank, Stage
from llmcalc.spec.axes import Axis, extent, is_split
from llmcalc.spec.kept import kept
from llmcalc.spec.model import ModelSpec, check_spec

if TYPE_CHECKING:
    from llmcalc.boundary import Int
    from llmcalc.engines.engine import Engine
    from llmcalc.spec.model import Ledger

__all__ = ["possible_layouts"]

#: What of a layout says how weights are split.
Split: TypeAlias = "tuple[int, int, bool, bool, str | Engine | None]"


def possible_layouts(
    spec: ModelSpec, devices: Int, *, engine: str | Engine | None = None
) -> tuple[Layout, ...]:
    """Return every layout of a model on so many devices that is not refused.

    Degrees of tensor, pipeline and data parallelism multiply to `devices`. Each comes with every
    choice of expert parallelism, data-parallel attention and decode-context parallelism. An
    `engine` (`llmcalc.engines`: its name in any case, or an `Engine`) adds its own rules. The order
    is that of the degrees, tensor parallelism largest first.

    Raises `llmcalc.LlmcalcError` where `spec` is no model, `devices` no number from 1 to what a
    `llmcalc.Layout` allows, or `engine` none whose placement is known.

    >>> from llmcalc import load_model, planning
    >>> [str(layout) for layout in planning.possible_layouts(load_model("Llama-3.1-8B"), 2)]
    ['tp2', 'dp2', 'dp2 dp-attention', 'pp2']
    """
    check_spec(spec)
    return layouts_on(spec, number_of_devices(devices, "devices"), engine)


def number_of_devices(devices: object, field: str) -> int:
    """Return a number of devices that a layout may have; refuse more."""
    number = whole_number(devices, field, minimum=1)
    if number > MOST_DEVICES:
        raise InvalidValueError(field, number, f"must be at most {MOST_DEVICES}")
    return number


def layouts_on(spec: ModelSpec, devices: int, engine: str | Engine | None) -> tuple[Layout, ...]:
    """Return every layout on so many devices that is not refused."""
    return kept(spec.ledger, _Possible, Layout(engine=engine).engine).on(spec.ledger, devices)


class _Possible:
    """The layouts of a model that an engine allows, on each number of devices that was asked."""

    __slots__ = ("_allowed", "_engine", "_found")

    def __init__(self, _: Ledger, engine: str | Engine | None) -> None:
        self._engine = engine
        self._found: dict[int, tuple[Layout, ...]] = {}
        self._allowed: dict[tuple[object, ...], bool] = {}

    def on(self, ledger: Ledger, devices: int) -> tuple[Layout, ...]:
        """Return those on a number of devices."""
        found = self._found.get(devices)
        if found is None:
            every = _every_layout(ledger, devices, self._engine)
            found = tuple([layout for layout in every if self._allows(ledger.spec, layout)])
            self._found[devices] = found
        return found

    def _allows(self, spec: ModelSpec, layout: Layout) -> bool:
        # Whatever else two layouts differ in, both are refused or neither is.
        degrees = layout.pipeline_parallel, layout.data_parallel
        alike = *split_of(layout), layout.decode_context_parallel, *[one > 1 for one in degrees]
        allowed = self._allowed.get(alike)
        if allowed is None:
            try:
                check(spec, layout)
            except LlmcalcError:
                allowed = False
            else:
                allowed = True
            self._allowed[alike] = allowed
        return allowed


def _every_layout(ledger: Ledger, devices: int, engine: str | Engine | None) -> Iterator[Layout]:
    """Give every layout on so many devices that says something of the model."""
    routed = any(tensor.routed for tensor in ledger.tensors)
    layers = ledger.spec.num_layers
    for tensor in _divisors(devices):
        for stages in reversed(_divisors(devices // tensor)):
            replicas = devices // tensor // stages
            shared = (False, True) if replicas > 1 else (False,)
            experts = (False, True) if routed and tensor * replicas > 1 else (False,)
            for context in reversed(_divisors(tensor)) if stages <= layers else ():
                for attention in shared:
                    for whole in experts:
                        yield Layout(
                            tensor_parallel=tensor,
                            pipeline_parallel=stages,
                            data_parallel=replicas,
                            expert_parallel=whole,
                            decode_context_parallel=context,
                            data_parallel_attention=attention,
                            engine=engine,
                        )


def _divisors(number: int) -> list[int]:
    """Return the divisors of a number, the largest first."""
    return [divisor for divisor in range(number, 0, -1) if number % divisor == 0]


def split_of(layout: Layout) -> Split:
    """Return what of a layout says how weights are split: where it is equal, they are.

    >>> from llmcalc import Layout
    >>> from llmcalc.planning.possible import split_of
    >>> split_of(Layout(tensor_parallel=2)) == split_of(Layout(tensor_parallel=2, data_parallel=4))
    True
    """
    return (
        layout.tensor_parallel,
        layout.expert_ranks,
        layout.expert_parallel,
        layout.data_parallel_attention,
        layout.engine,
    )


def check(spec: ModelSpec, layout: Layout) -> None:
    """Refuse a layout whose rules or whose ranks do not go with the model; see `Layout.check`.

    Raises `llmcalc.LlmcalcError`, with the rule. That it has as many layers as stages is not
    checked here, but by `Layout.stages`.
    """
    layout.check(spec)
    rank = Rank(layout, _NO_STAGE, 0, 0)
    weights, caches = kept(spec.ledger, _divided)
    for group, routed, axis in weights:
        extent(((axis,),), rank.part(group, routed=routed))
    for axis in caches:
        extent(((axis,),), rank.attention)


_NO_STAGE: Final = Stage(0, 1, 0, {})


def _divided(
    ledger: Ledger,
) -> tuple[tuple[tuple[str, bool, Axis], ...], tuple[Axis, ...]]:
    """Return the axes that ranks share of weights, with what says how, and of caches."""
    weights: dict[tuple[str, bool, Axis], None] = {}
    for tensor in ledger.tensors:
        group, routed = tensor.group, tensor.routed
        for piece in (*tensor.rows, *tensor.columns):
            for axis in filter(is_split, piece):
                weights[group, routed, axis] = None
    caches = {axis: None for _, cache in ledger.caches for axis in filter(is_split, cache.shape)}
    return tuple(weights), tuple(caches)
