r"""The budget of a device: what an engine subtracts from its memory until the cache pool is left.

* `budget`: visible memory x utilisation less weights, activations and the rest: the cache pool.
* `Budget`: the terms, and what the pool holds.

.. math:: \text{pool} = \text{visible} \cdot \text{utilisation} - \text{weights} -
          \text{activation peak} - \text{non-torch} - \text{graphs}

Each term is the caller's, or follows from an engine (`llmcalc.engines.get`). Other engines
take their share elsewhere: SGLang's static fraction covers weights and pool, TensorRT-LLM's is one
of what is free when everything else is in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from llmcalc import hardware
from llmcalc.boundary import whole_number
from llmcalc.breakdown import Breakdown, Term
from llmcalc.described import Described
from llmcalc.engines.engine import Engine, check_share
from llmcalc.engines.pools import PoolRule, Used
from llmcalc.engines.registry import DEFAULT, with_pool
from llmcalc.errors import InvalidValueError
from llmcalc.folds.storage import Formats
from llmcalc.formats import Format, Scheme
from llmcalc.hardware import DeviceSpec
from llmcalc.layouts import Layout, chosen
from llmcalc.serving.activations import activation_peak, is_last
from llmcalc.serving.loading import first_rank_numbers, loaded_on_stages, loaded_weights
from llmcalc.serving.paging import Allocation, Takes, allocate, held_caches
from llmcalc.spec.model import ModelSpec, check_spec
from llmcalc.units import Bytes, format_quantity

if TYPE_CHECKING:
    from llmcalc.folds.storage import StateFormat

__all__ = ["Budget", "budget"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Budget(Described):
    """What an engine subtracts from a device's memory, and the cache pool that is left.

    All terms are bytes on one device. `allocation` is what one request of the longest context
    takes of the pool. ``bool(budget)`` is whether that request fits.
    """

    engine: Engine
    visible_bytes: int
    share: float
    weights: Breakdown[Bytes]
    activation: Breakdown[Bytes]
    non_torch_bytes: int
    graph_bytes: int
    allocation: Allocation

    def __bool__(self) -> bool:
        return self.fits

    def __repr__(self) -> str:
        return f"<Budget of {self.engine.name}: {self.reason}>"

    @property
    def weight_bytes(self) -> int:
        """What the loaded weights take."""
        return self.weights.total

    @property
    def activation_bytes(self) -> int:
        """The peak of intermediate results."""
        return self.activation.total

    @property
    def requested_bytes(self) -> int:
        """What the engine may use: of the visible memory its share."""
        return self.engine.pool.requested_bytes(self.visible_bytes, self.share)

    @property
    def _used(self) -> Used:
        return Used(
            self.weight_bytes, self.activation_bytes, self.non_torch_bytes, self.graph_bytes
        )

    @property
    def pool_bytes(self) -> int:
        """The cache pool; negative where the rest does not fit."""
        return self.engine.pool.pool_bytes(self.visible_bytes, self.share, self._used)

    @property
    def blocks(self) -> int | None:
        """The blocks of the pool; `None` where it has none."""
        return self.allocation.pool_blocks(max(0, self.pool_bytes))

    @property
    def tokens(self) -> int | None:
        """The tokens that the pool holds, as the engine counts them."""
        return self.allocation.tokens(max(0, self.pool_bytes))

    @property
    def concurrency(self) -> float | None:
        """How many requests of the longest context the pool holds, as a fraction."""
        return self.allocation.concurrency(max(0, self.pool_bytes))

    @property
    def fits(self) -> bool:
        """Whether at least one request of the longest context fits, as engines demand."""
        return self.short_bytes == 0

    @property
    def short_bytes(self) -> int:
        """What is missing for one request of the longest context, or 0."""
        return max(0, self.allocation.request_bytes - self.pool_bytes)

    @property
    def reason(self) -> str:
        """One sentence: what the pool holds, or what is missing."""
        if self.fits:
            return (
                f"fits: the pool of {format_quantity(self.pool_bytes, Bytes)} holds "
                f"{self.concurrency:.2f} requests of {self.allocation.context} tokens"
                if self.concurrency is not None
                else "fits: requests hold nothing"
            )
        return (
            f"does not fit: a request of {self.allocation.context} tokens needs "
            f"{format_quantity(self.allocation.request_bytes, Bytes)}, the pool has "
            f"{format_quantity(self.pool_bytes, Bytes)}; "
            f"short by {format_quantity(self.short_bytes, Bytes)}"
        )

    def explain(self) -> str:
        """Return the working: memory, each term, the pool and what it holds."""
        visible = format_quantity(self.visible_bytes, Bytes)
        rows = self.engine.pool.working(self.visible_bytes, self.share, self._used)
        width = max(len(name) for name, _ in rows)
        lines = [f"Budget of {self.engine.name} on {visible}"]
        lines += [f"  {name:<{width}}  {text}" for name, text in rows]
        if self.blocks is not None:
            lines.append(f"  {'blocks':<{width}}  {self.blocks}")
        if self.tokens is not None:
            lines.append(f"  {'tokens':<{width}}  {self.tokens}")
        lines.append(self.reason)
        return "\n".join(lines)


def budget(
    spec: ModelSpec,
    *,
    context: int,
    weights: str | Format | Scheme,
    kv: str | Format,
    device: str | DeviceSpec | None = None,
    visible_bytes: int | None = None,
    engine: str | Engine = DEFAULT,
    share: float | None = None,
    dtype: str | Format = "bf16",
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    block_tokens: int | None = None,
    state_blocks: int = 1,
    batched_tokens: int | None = None,
    sequences: int | None = None,
    tensor_parallel: int = 1,
    layout: Layout | None = None,
    rank: int | None = None,
    weight_bytes: int | None = None,
    activation_bytes: int | None = None,
    non_torch_bytes: int | None = None,
    graph_bytes: int | None = None,
) -> Budget:
    """Return an engine's budget on one device: each term, the cache pool and what it holds.

    `context` is the longest request (``max_model_len``). Memory is `visible_bytes`, or what the
    runtime shows of `device`, of which the engine takes its `share`
    (``gpu_memory_utilization``). A step's `batched_tokens` and `sequences` are by default the
    engine's for such a device. A term that is given, such as `activation_bytes`, is taken as it
    is; one that is not follows from the engine, and where that does not know it, the error says
    which to give. `dtype` is the format of the model's own numbers. Of `sequences`,
    `batched_tokens`, `block_tokens` and `state_blocks` one is refused that has no effect on the
    engine's budget.
    Figures are those of one device: `rank`, or else the one that a layout's engine waits for,
    because it holds fewest requests.

    >>> from llmcalc import load_model, serving
    >>> answer = serving.budget(
    ...     load_model("meta-llama/Llama-3.1-8B"), device="H100-SXM-80GB", share=0.95,
    ...     context=8192, weights="bf16", kv="bf16",
    ... )
    >>> print(answer.explain())  # vLLM 0.19 printed 58.11 GiB and 476 016 tokens
    Budget of vllm-0.19 on 85 029 615 042 B (79.19 GiB)
      visible x 0.95   80 778 134 289 B (75.23 GiB)
      weights          -16 094 076 928 B (-14.989 GiB)
      activation peak  -2 023 837 696 B (-1.8848 GiB)
      non-torch        -268 435 456 B (-0.25 GiB)
      graphs           0 B
      cache pool       62 391 784 209 B (58.107 GiB)
      blocks           29750
      tokens           476000
    fits: the pool of 62 391 784 209 B (58.107 GiB) holds 58.11 requests of 8192 tokens
    """
    check_spec(spec)
    known, place = with_pool(engine), chosen(tensor_parallel, layout)
    visible, named = _visible(device, visible_bytes)
    step = known.step(visible, named)
    measured = {
        "activation_bytes": activation_bytes,
        "non_torch_bytes": non_torch_bytes,
        "graph_bytes": graph_bytes,
    }
    portion = check_share(known.share if share is None else share, "share")
    _check_known(known, place, measured)
    _check_effects(
        known,
        {
            "block_tokens": block_tokens,
            "batched_tokens": batched_tokens,
            "sequences": sequences,
        },
    )
    asked = _Asked(
        spec=spec,
        engine=known,
        layout=place,
        context=context,
        weights=weights,
        kv=kv,
        state=state,
        index=index,
        dtype=dtype,
        visible_bytes=visible,
        share=portion,
        block_tokens=block_tokens,
        state_blocks=state_blocks,
        batched_tokens=step[0] if batched_tokens is None else batched_tokens,
        sequences=step[1] if sequences is None else sequences,
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        non_torch_bytes=_number(non_torch_bytes, "non_torch_bytes", _non_torch(known, place)),
        graph_bytes=_number(graph_bytes, "graph_bytes", 0),
    )
    if rank is not None or place.pipeline_parallel == 1:
        return asked.on(rank, asked.loaded(rank), asked.allocation(rank))
    return asked.tightest()


def _visible(device: str | DeviceSpec | None, visible_bytes: int | None) -> tuple[int, str]:
    """Return the memory that the runtime shows, and the name of the device if it has one."""
    if device is None:
        if visible_bytes is None:
            raise InvalidValueError("visible_bytes", None, "give it, or a device")
        return whole_number(visible_bytes, "visible_bytes", minimum=1), ""
    if visible_bytes is not None:
        raise InvalidValueError("visible_bytes", visible_bytes, "give it or a device, not both")
    found = hardware.get(device)
    return found.runtime_memory_bytes or found.memory_bytes, found.name


def _number(given: int | None, field: str, known: int | None) -> int:
    return whole_number(known if given is None else given, field)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class _Asked:
    """A question about a budget, whose arguments are checked: see `budget`."""

    spec: ModelSpec
    engine: Engine
    layout: Layout
    context: int
    weights: str | Format | Scheme
    kv: str | Format
    state: StateFormat
    index: str | Format | None
    dtype: str | Format
    visible_bytes: int
    share: float
    block_tokens: int | None
    state_blocks: int
    batched_tokens: int
    sequences: int
    weight_bytes: int | None
    activation_bytes: int | None
    non_torch_bytes: int
    graph_bytes: int
    #: The peaks that were found, of the last stage and of any other one.
    _peaks: dict[bool, Breakdown[Bytes]] = attrs.field(init=False, factory=dict)

    def on(self, rank: int | None, loaded: Breakdown[Bytes], allocation: Allocation) -> Budget:
        """Return the budget of a rank that holds these weights, with such requests."""
        return Budget(
            engine=self.engine,
            visible_bytes=self.visible_bytes,
            share=self.share,
            weights=loaded,
            activation=self.activation(rank),
            non_torch_bytes=self.non_torch_bytes,
            graph_bytes=self.graph_bytes,
            allocation=allocation,
        )

    def loaded(self, rank: int | None) -> Breakdown[Bytes]:
        """Return the loaded weights on a rank."""
        if self.weight_bytes is not None:
            return _given("Loaded weights", self.weight_bytes, "weight_bytes")
        return loaded_weights(
            self.spec,
            weights=self.weights,
            dtype=self.dtype,
            engine=self.engine,
            layout=self.layout,
            rank=rank,
        )

    def activation(self, rank: int | None) -> Breakdown[Bytes]:
        """Return the peak of intermediate results on a rank."""
        given = self.activation_bytes
        if given is not None or "activation_bytes" not in self.engine.pool.asked:
            return _given("Activation peak", given or 0, "activation_bytes")
        last = is_last(self.layout, rank)
        if last not in self._peaks:
            self._peaks[last] = activation_peak(
                self.spec,
                engine=self.engine,
                weights=self.weights,
                batched_tokens=self.batched_tokens,
                sequences=self.sequences,
                context=self.context,
                block_tokens=self.block_tokens,
                dtype=self.dtype,
                layout=self.layout,
                rank=rank,
            )
        return self._peaks[last]

    def allocation(self, rank: int | None) -> Allocation:
        """Return what a request takes on a rank."""
        blocks = _takes_blocks(self.engine.pool)
        return allocate(
            self.spec,
            context=self.context,
            kv=self.kv,
            state=self.state,
            index=self.index,
            policy=self.engine.pool.policy,
            engine=self.engine,
            block_tokens=self.block_tokens if blocks else None,
            state_blocks=self.state_blocks,
            batched_tokens=self.batched_tokens if blocks else None,
            layout=self.layout,
            rank=rank,
        )

    def tightest(self) -> Budget:
        """Return the budget of the stage that holds fewest requests."""
        ranks = first_rank_numbers(self.layout)
        if self.weight_bytes is None:
            how = self.weights, self.dtype, self.engine, self.layout
            loaded = loaded_on_stages(self.spec, *how)
        else:
            loaded = (self.loaded(None),) * len(ranks)
        alike = tuple(range(len(ranks)))
        if self.engine.pool.policy == "paged":
            # Requests take as much on stages whose layers are alike.
            formats = Formats.given("bf16", self.kv, self.state, self.index)
            alike = held_caches(self.spec, formats, self.layout, None).alike
        requests = {first: self.allocation(ranks[first]) for first in dict.fromkeys(alike)}
        stages = [self.on(ranks[n], loaded[n], requests[first]) for n, first in enumerate(alike)]

        def held(number: int) -> tuple[bool, float]:
            pool = stages[number].pool_bytes
            return pool >= 0, stages[number].allocation.concurrency(max(0, pool)) or 0

        number = min(range(len(stages)), key=held)
        if alike[number] == number:
            return stages[number]
        return attrs.evolve(stages[number], allocation=self.allocation(ranks[number]))


def _given(title: str, value: int, field: str) -> Breakdown[Bytes]:
    number = whole_number(value, field)
    return Breakdown(Bytes, title, [Term(("given", "", field), ((number, "bytes"),))])


def _non_torch(known: Engine, layout: Layout) -> int | None:
    """Return what was measured outside the framework; `None` where that is not known."""
    if "non_torch_bytes" not in known.pool.asked:
        return 0
    return known.non_torch_on(layout.tensor_parallel, layout.pipeline_parallel)


def _takes_blocks(rule: PoolRule) -> bool:
    return Takes(rule.policy, rule.reserves_cells).blocks


def with_effect(rule: PoolRule) -> frozenset[str]:
    """Return which arguments have an effect on a budget whose pool comes about by a rule.

    >>> from llmcalc.engines import OfRest
    >>> from llmcalc.serving.budgets import with_effect
    >>> sorted(with_effect(OfRest()))
    ['batched_tokens', 'block_tokens']
    """
    runs_step = "activation_bytes" in rule.asked
    effects = {
        "block_tokens": runs_step or _takes_blocks(rule),
        "batched_tokens": runs_step or _takes_blocks(rule),
        "sequences": runs_step,
    }
    return frozenset([name for name, has_effect in effects.items() if has_effect])


def _check_effects(known: Engine, given: Mapping[str, object]) -> None:
    """Refuse an argument that has no effect on the engine's budget."""
    effects = with_effect(known.pool)
    for field, value in given.items():
        if value is not None and field not in effects:
            raise InvalidValueError(field, value, f"has no effect on a budget of {known.name}")


def _check_known(known: Engine, layout: Layout, given: Mapping[str, int | None]) -> None:
    """Refuse a budget with terms that are neither given nor known, and say how to give them all."""
    unknown = {
        "activation_bytes": "activation_bytes" in known.pool.asked and known.activation is None,
        "non_torch_bytes": _non_torch(known, layout) is None,
        "graph_bytes": known.graphs_subtracted,
    }
    missing = [name for name, value in given.items() if value is None and unknown[name]]
    if missing:
        ranks = f" for {layout.tensor_parallel} ranks" * (layout.tensor_parallel > 1)
        printed = known.log.words
        words = ", ".join(
            f"{name} ({printed[name]})" if name in printed else name for name in missing
        )
        rule = f"was not measured{ranks}: give {words}"
        if printed:
            rule += "; the words in brackets are those of the engine's start-up log"
        raise InvalidValueError("engine", known.name, rule)
