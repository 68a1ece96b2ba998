"""Engine: what is known of one version of a serving engine, every number with its source.

* `Engine`: its placement, how its pool comes about, and what a forecast knows of it.
* `ActivationRule`: the fitted rule for the peak of intermediate results.
* `Mxfp4Kernels`: what kernels for experts in mxfp4 round up.
* `Conventions`: how the engine computes a step.
* `LogWords`: what the figures of its start-up log mean.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import attrs

from llmcalc.boundary import choice, flag, instance_of, one_of, size, whole_number
from llmcalc.described import Described, FrozenMapping
from llmcalc.engines.placement import Placement
from llmcalc.engines.pools import POOLS, PoolName, PoolRule
from llmcalc.errors import InvalidValueError
from llmcalc.units import GiB

if TYPE_CHECKING:
    from llmcalc.boundary import Field

__all__ = ["ActivationRule", "Conventions", "Engine", "LogWords", "Mxfp4Kernels"]

#: How layers of several kinds share the pool: "none": all layers hold every token, in one block
#: table; "kinds": a block table for each group of layers of one kind.
CacheGroups: TypeAlias = Literal["none", "kinds"]

#: From this memory on engines take larger steps by default, but on these devices. Source: vLLM,
#: ``EngineArgs.get_batch_defaults``.
_LARGE_DEVICE: Final = 70 * GiB
_SMALL_ALL_THE_SAME: Final = "a100"

#: As many tokens of its cache latent attention expands at once at most.
_MOST_EXPANDED: Final = 64 * 1024


@attrs.frozen(kw_only=True, repr=False, eq=False)
class ActivationRule(Described):
    """The peak of a profiling step's intermediate results, as a rule fitted to an engine.

    The step has T tokens, of which S give logits. Its peak is the larger one of

    * the widest layer: ``T x (layer_inner x inner + layer_hidden x hidden) x element bytes``,
      with the inner width per device; latent attention has its expanded cache instead:
      ``C x heads x (nope + value) x element bytes``, for C cached tokens (`expanded_tokens`);
    * sampling: ``(T + S) x hidden x element bytes + S x vocabulary x (element bytes +
      sampler_logit_bytes) + sampler_rows x vocabulary x 4``,

    each with a constant: workspace of matrix products, and input buffers. Experts, k for a token,
    work in two buffers, of ``T x k x max(inner, hidden)`` and ``T x k x max(gate and up, hidden)``
    elements. With `keeps_expert_buffers` the engine keeps them from the first step on, beside
    whichever peak; without, they are a layer's, in ``T x k x (max(gate and up, hidden) + inner)``
    elements.
    """

    layer_inner: int
    layer_hidden: int
    layer_constant_bytes: int
    keeps_expert_buffers: bool
    sampler_logit_bytes: int
    sampler_rows: int
    sampler_constant_bytes: int

    @staticmethod
    def expanded_tokens(sequences: int, context: int | None, block_tokens: int) -> int:
        """Return how many cached tokens latent attention expands at once in the profiling step.

        `context` is the longest one; without it the answer is the most that is ever expanded.
        Source: vLLM, ``MLACommonMetadataBuilder.determine_chunked_prefill_workspace_size``.

        >>> from llmcalc.engines import ActivationRule
        >>> ActivationRule.expanded_tokens(sequences=256, context=4096, block_tokens=16)
        32768
        """
        most = _MOST_EXPANDED
        if context is not None:
            most = min(max(8 * context, 4 * sequences * block_tokens), most)
        return max(most, sequences * block_tokens)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Mxfp4Kernels(Described):
    """What kernels for mxfp4 experts round up: inner width per device, rows, contracted axis."""

    inner_multiple: int
    row_multiple: int
    contracted_multiple: int


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Conventions(Described):
    """How an engine computes a step, as arguments of `llmcalc.roofline.run`.

    `None` is that function's own default. `compute` lists the number formats that products may be
    in, the first one first that a device has a peak for; without any they are those of the
    weights.

    >>> from llmcalc.engines import Conventions
    >>> Conventions(chunk=512, compute=("fp8", "fp16")).options({"fp16", "bf16"})
    {'chunk': 512, 'compute': 'fp16'}
    """

    attention: str | None = None
    activations: str | None = None
    chunk: int | None = None
    micro_batch_tokens: int | None = None
    in_flight: int | None = None
    queue: int | None = None
    layer_launches: int | None = None
    compute: tuple[str, ...] = ()

    def options(self, peaks: Collection[str]) -> dict[str, Any]:
        """Return the arguments on a device that has peaks for these number formats."""
        given = {
            field.name: getattr(self, field.name)
            for field in attrs.fields(type(self))
            if field.name != "compute"
        }
        found = {name: value for name, value in given.items() if value is not None}
        if self.compute:
            # Without any of them there is no peak, which a step then says.
            found["compute"] = next((n for n in self.compute if n in peaks), self.compute[0])
        return found


def _frozen(words: Mapping[str, str]) -> Mapping[str, str]:
    given: object = words
    return FrozenMapping(words) if isinstance(given, Mapping) else words  # which is refused


def _frozen_table(table: Mapping[int, int] | None) -> Mapping[int, int] | None:
    return FrozenMapping(table) if isinstance(table, Mapping) else table


_mapping = instance_of(Mapping)
_optional_mapping = attrs.validators.optional(_mapping)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class LogWords(Described):
    """What the figures of an engine's start-up log mean, where engines differ.

    `states_weights`
        Whether it says in which format the weights are.
    `counts_all_ranks`
        Whether the degree of tensor parallelism that it states is that of all ranks, among which
        data-parallel attention has its replicas.
    `counts_slots`
        Whether its tokens are slots that each layer has, and not those of the blocks of a pool.
    `words`
        What it calls the terms of `llmcalc.engines.Used`, as far as it prints them.
    """

    states_weights: bool = attrs.field(default=False, validator=flag)
    counts_all_ranks: bool = attrs.field(default=False, validator=flag)
    counts_slots: bool = attrs.field(default=False, validator=flag)
    words: Mapping[str, str] = attrs.field(factory=dict, converter=_frozen, validator=_mapping)


def _percent(_instance: object, attribute: Field, value: object) -> None:
    whole_number(value, attribute.name)


def _pool_rule(_instance: object, attribute: Field, value: object) -> None:
    if value is not None and not isinstance(value, PoolRule):
        choice(value, attribute.name, POOLS)


def _share(_instance: object, attribute: Field, value: object) -> None:
    if value is not None:
        check_share(value, attribute.name)


def check_share(value: object, field: str) -> float:
    """Return a share of memory, checked: a number above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidValueError(field, value, "must be a number above 0 and at most 1")
    return float(value)


def _multiple(engine: Engine) -> int:
    placement = engine.placement  # which is checked after this
    return placement.vocab_multiple if isinstance(placement, Placement) else 1


_optional_size = attrs.validators.optional(size)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Engine(Described):
    """What is known of one version of an engine. Take one with `llmcalc.engines.get`, or build it.

    What is not known of an engine is `None`, and a question that needs it is refused or asks for
    it: an engine may have rules for one kind of question alone.

    `name`, `title`, `family`, `version`
        What it is called: in one word (``"vllm-0.19"``), by people (``"vLLM"``), and its name in
        two parts.

    What a layout asks for:

    `placement`
        How it places a model on devices: see `llmcalc.engines.placement.Placement`.

    What a budget asks for:

    `pool_rule`
        How the cache pool comes about: ``"total"``, ``"static"``, ``"free"``, ``"cells"``, or a
        `PoolRule` of your own. `pool` is the rule itself.
    `share`
        The default share of memory (``gpu_memory_utilization``, ``mem_fraction_static``,
        ``free_gpu_memory_fraction``).
    `block_tokens`, `batched_tokens`, `sequences`
        Defaults: tokens of a block, of a step, and requests of a step. `small_batched_tokens` and
        `small_sequences` are those of smaller devices, where they differ.
    `cache_groups`
        ``"none"``: every layer holds every token. ``"kinds"``: layers are grouped by what they
        hold.
    `evened_groups_percent`
        Groups have as many layers as the kind that has fewest; but where the kind that has most
        has less than so many per cent more, as many as that one. With 0 never.
    `pads_pages`
        Whether pages of layers that do not divide each other are padded. Other versions refuse
        such a model, unless their hybrid manager is switched off: one block table for all.
    `batches_in_flight`
        How many steps' tokens a windowed layer holds beside its window; in a pipeline an engine
        that has several holds those of one for each stage.
    `state_block_step`, `latent_block_step`
        Where there are recurrent states, an attention block is a multiple of this many tokens; the
        second, where attention keeps latents.
    `tokens_of_blocks`
        Whether the printed number of tokens is that of one group's blocks, or concurrency x
        context.
    `graphs_subtracted`
        Whether memory for CUDA graphs is subtracted before the pool.
    `activation`
        The rule for the peak of intermediate results, `None` where none was fitted.
    `non_torch_bytes`
        What is allocated outside the framework (communication, libraries), by tensor-parallel
        degree; the largest degree that is listed stands for higher ones.
    `pipeline_non_torch_bytes`
        The same in a pipeline without tensor parallelism, whose communication is set up before
        the profiling step.
    `vocab_multiple`
        Vocabulary rows are padded to a multiple of this: by default that of the placement.
    `mxfp4_kernels`
        What the engine's kernels for mxfp4 experts round up on Hopper; `None` where that is not
        known.
    `index_format`
        The format of an indexer's keys, whatever other caches are in; `None` for theirs.
    `state_format`
        The format of recurrent states by default; ``"model"`` is the one of the model.

    What a forecast asks for:

    `calibration`
        What its calibration is called in `llmcalc.roofline.efficiencies`.
    `conventions`
        How it computes a step: see `Conventions`.

    `log`
        What the figures of its start-up log mean: see `LogWords`.
    `sources`
        Where each of these is from.

    Raises `llmcalc.LlmcalcError` for a value that a field does not allow.

    >>> from llmcalc import engines
    >>> mine = engines.Engine(name="mine", pool_rule="free", share=0.8, block_tokens=64)
    >>> mine.pool, mine.placement
    (OfRest(), None)
    """

    name: str = attrs.field(validator=instance_of(str))
    title: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))
    family: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))
    version: str = ""
    placement: Placement | None = attrs.field(
        default=None, validator=attrs.validators.optional(instance_of(Placement))
    )
    pool_rule: PoolName | PoolRule | None = attrs.field(default=None, validator=_pool_rule)
    share: float | None = attrs.field(default=None, validator=_share)
    block_tokens: int = attrs.field(default=16, validator=size)
    batched_tokens: int = attrs.field(default=8192, validator=size)
    sequences: int = attrs.field(default=256, validator=size)
    small_batched_tokens: int | None = attrs.field(default=None, validator=_optional_size)
    small_sequences: int | None = attrs.field(default=None, validator=_optional_size)
    cache_groups: CacheGroups = attrs.field(default="kinds", validator=one_of("none", "kinds"))
    evened_groups_percent: int = attrs.field(default=0, validator=_percent)
    pads_pages: bool = attrs.field(default=False, validator=flag)
    batches_in_flight: int = attrs.field(default=1, validator=size)
    state_block_step: int = attrs.field(default=16, validator=size)
    latent_block_step: int = attrs.field(default=64, validator=size)
    tokens_of_blocks: bool = attrs.field(default=True, validator=flag)
    graphs_subtracted: bool = attrs.field(default=False, validator=flag)
    activation: ActivationRule | None = None
    non_torch_bytes: Mapping[int, int] | None = attrs.field(
        default=None, converter=_frozen_table, validator=_optional_mapping
    )
    pipeline_non_torch_bytes: int | None = None
    vocab_multiple: int = attrs.field(
        default=attrs.Factory(_multiple, takes_self=True), validator=size
    )
    mxfp4_kernels: Mxfp4Kernels | None = None
    index_format: str | None = None
    state_format: str = "fp32"
    calibration: str | None = None
    conventions: Conventions = Conventions()
    log: LogWords = LogWords()
    sources: Mapping[str, str] = attrs.field(
        factory=dict, converter=_frozen, validator=_mapping, repr=False
    )

    def __hash__(self) -> int:
        return hash((Engine, self.name))  # what is equal has the same name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        known = {
            "placement": self.placement,
            "pool": self.pool_rule,
            "activation": self.activation,
            "non-torch": self.non_torch_bytes,
            "forecasts": self.calibration,
        }
        found = ", ".join([name for name, rule in known.items() if rule is not None])
        return f"<Engine {self.name}: {found or 'nothing'} known>"

    @property
    def pool(self) -> PoolRule:
        """How the cache pool comes about. Raises `llmcalc.LlmcalcError` where that is not known."""
        rule = self.pool_rule
        if rule is None:
            raise InvalidValueError("engine", self.name, "has no rule for a cache pool")
        return rule if isinstance(rule, PoolRule) else POOLS[rule]

    @property
    def is_measured(self) -> bool:
        """Whether a budget on one device needs no term from the caller."""
        if self.pool_rule is None:
            return False
        known = {
            "activation_bytes": self.activation is not None,
            "non_torch_bytes": self.non_torch_on() is not None,
        }
        return all(known.get(term) for term in self.pool.asked) and not self.graphs_subtracted

    @property
    def version_numbers(self) -> tuple[int, ...]:
        """The version as numbers, which can be compared; empty where it has none."""
        return numbers_of(self.version)

    def without_measurements(self) -> Engine:
        """Return the engine without what was measured of this version alone.

        >>> from llmcalc import engines
        >>> engines.get("vllm-0.19").without_measurements().activation is None
        True
        """
        return attrs.evolve(
            self, activation=None, non_torch_bytes=None, pipeline_non_torch_bytes=None
        )

    def step(self, visible_bytes: int, device: str = "") -> tuple[int, int]:
        """Return the default tokens and requests of a step on a device with so much memory.

        >>> from llmcalc import GiB, engines
        >>> engine = engines.get("vllm-0.19")
        >>> engine.step(80 * GiB, "H100-SXM-80GB"), engine.step(24 * GiB, "L4")
        ((8192, 1024), (2048, 256))
        """
        if visible_bytes >= _LARGE_DEVICE and _SMALL_ALL_THE_SAME not in device.casefold():
            return self.batched_tokens, self.sequences
        return (
            self.small_batched_tokens or self.batched_tokens,
            self.small_sequences or self.sequences,
        )

    def non_torch_on(self, tensor_parallel: int = 1, pipeline_parallel: int = 1) -> int | None:
        """Return what was measured outside the framework on one device of a layout, in bytes.

        `None` where that is not known: what was measured of one device says nothing of several.

        >>> from llmcalc import engines
        >>> engine = engines.get("vllm-0.19")
        >>> engine.non_torch_on(), engine.non_torch_on(8), engine.non_torch_on(1, 2)
        (268435456, 2287070085, 75161928)
        """
        own = self.pipeline_non_torch_bytes
        if tensor_parallel == 1 < pipeline_parallel and own is not None:
            return own
        table = self.non_torch_bytes or {}
        nearest = max([degree for degree in table if degree <= tensor_parallel], default=None)
        if nearest is None or nearest == 1 < tensor_parallel:
            return None
        return table[nearest]


def numbers_of(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; nothing where the text has none.

    >>> from llmcalc.engines.engine import numbers_of
    >>> numbers_of("v0.19.1rc2"), numbers_of("b9010")
    ((0, 19), ())
    """
    found = re.search(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else ()
