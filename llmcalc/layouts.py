r"""Layouts: which device holds which weights and which part of a request's cache.

* `Layout`: the degrees of tensor, pipeline, expert, data and decode-context parallelism.
* `Rank`: one device of a layout, and what it holds of a model.
* `Stage`: the layers of one pipeline stage.
* `requests_of`: how many requests of a batch a replica serves.
* `chosen`: the layout that arguments ask for; `ONE_DEVICE`: the one that they ask for by default.
* `ENGINES`: how the engines place a model of which that is known.

Ranks are numbered as vLLM numbers them: tensor-parallel ranks are neighbours, then come the
pipeline stages, then the data-parallel replicas. With :math:`t`, :math:`p` and :math:`d` the
degrees of tensor, pipeline and data parallelism

.. math:: \text{rank} = (\text{replica} \cdot p + \text{stage}) \cdot t + \text{tensor rank}

Who holds what:

* **Tensor parallelism** splits heads, inner widths and the vocabulary over `t` ranks. Norms,
  routers, position tables and latents are whole on each; KV heads that are fewer than the ranks
  are copied.
* **Pipeline parallelism** gives each stage its layers and their caches. Embeddings are on the
  first stage, the final norm and the head on the last; a tied table is on both, and weights that
  layers share are on every stage that uses them.
* **Data parallelism** copies everything; requests are distributed over the replicas.
* **Expert parallelism** spreads whole experts over the `t d` ranks of a stage.
* **Data-parallel attention** copies attention alone: the `t d` ranks of a stage split the rest
  like tensor-parallel ranks. `llmcalc.engines.Placement` says what the rest is in each engine.
* **Decode-context parallelism** shards the slots of each request over tensor-parallel ranks that
  would hold copies of the same KV heads or latent.

The first rank of a stage never holds less than another one of the stage: it takes every
remainder. Parameters never depend on the layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, overload

import attrs

from llmcalc.boundary import flag, size, whole_number
from llmcalc.described import Described
from llmcalc.engines.placement import GENERIC, Placement
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import WHOLE, Split, is_split, portion
from llmcalc.spec.items import Cache, Mix
from llmcalc.spec.ledger import Entry, Place, StoredTensor
from llmcalc.spec.model import ModelSpec, check_spec
from llmcalc.spec.spans import Span

if TYPE_CHECKING:
    from llmcalc.boundary import Field, Int, Number
    from llmcalc.engines.engine import Engine

__all__ = ["ENGINES", "ONE_DEVICE", "Layout", "Rank", "Stage", "chosen", "requests_of"]


def _engine(value: str | Engine | None) -> str | Engine | None:
    """Return an engine as it is kept: by the name that lists it, or as it is."""
    if value is None:
        return None
    from llmcalc.engines import registry

    registry.placement_of(value)
    return registry.canonical(value) if isinstance(value, str) else value


def _stage_layers(_instance: object, attribute: Field, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, tuple):
        raise InvalidValueError(attribute.name, value, "must be a tuple with the layers of stages")
    for layers in value:
        whole_number(layers, attribute.name, minimum=1)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Layout(Described):
    """How a model is spread over devices; see the module for who holds what.

    `tensor_parallel` is the degree in which attention is split, also with data-parallel
    attention: SGLang's ``--tp 8 --dp 4 --enable-dp-attention`` is ``Layout(tensor_parallel=2,
    data_parallel=4, data_parallel_attention=True, engine="sglang")``. `stage_layers` gives the
    layers of each stage, where they are not the engine's own split. `engine` adds the rules of an
    engine (`llmcalc.engines`: its name in any case, or an `Engine`): vocabulary padding, the split
    into stages, and what it refuses.

    Raises `llmcalc.LlmcalcError` for degrees that contradict each other; what a model does not
    allow is refused when a question about it is asked, with the rule.

    >>> from llmcalc import Layout, ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> layout = Layout(tensor_parallel=2, pipeline_parallel=2)
    >>> layout.devices, str(layout)
    (4, 'tp2 pp2')
    >>> memory.weight_bytes(llama, weights="bf16", layout=layout).total
    4015267840
    >>> [
    ...     memory.weight_bytes(llama, weights="bf16", layout=layout, rank=rank).total
    ...     for rank in range(4)
    ... ]
    [4015259648, 4015259648, 4015267840, 4015267840]
    """

    tensor_parallel: int = attrs.field(default=1, validator=size)
    pipeline_parallel: int = attrs.field(default=1, validator=size)
    data_parallel: int = attrs.field(default=1, validator=size)
    expert_parallel: bool = attrs.field(default=False, validator=flag)
    decode_context_parallel: int = attrs.field(default=1, validator=size)
    data_parallel_attention: bool = attrs.field(default=False, validator=flag)
    stage_layers: tuple[int, ...] | None = attrs.field(default=None, validator=_stage_layers)
    engine: str | Engine | None = attrs.field(default=None, converter=_engine)

    def __attrs_post_init__(self) -> None:
        tensor, context = self.tensor_parallel, self.decode_context_parallel
        if tensor % context:
            rule = f"must divide tensor_parallel ({tensor}): its ranks share the slots"
            raise InvalidValueError("decode_context_parallel", context, rule)
        if self.data_parallel_attention and self.data_parallel == 1:
            rule = (
                "needs data_parallel of at least 2: attention is split over tensor_parallel ranks "
                "and copied over the data_parallel replicas"
            )
            raise InvalidValueError("data_parallel_attention", True, rule)
        stages = self.stage_layers
        if stages is not None and len(stages) != self.pipeline_parallel:
            rule = f"must have one number for each stage ({self.pipeline_parallel})"
            raise InvalidValueError("stage_layers", stages, rule)
        if tensor * self.pipeline_parallel * self.data_parallel > MOST_DEVICES:
            rule = f"must give at most {MOST_DEVICES} devices with the other degrees"
            raise InvalidValueError("tensor_parallel", tensor, rule)

    @property
    def devices(self) -> int:
        """The number of devices: tensor x pipeline x data parallelism."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def expert_ranks(self) -> int:
        """The ranks of a stage that share the routed experts."""
        return self.tensor_parallel * (self.data_parallel if self._shares_experts else 1)

    @property
    def placement(self) -> Placement:
        """The rules that it follows: those of its engine, or of no particular one.

        >>> from llmcalc import Layout
        >>> Layout(engine="vLLM").placement.vocab_multiple, Layout().placement.vocab_multiple
        (64, 1)
        """
        if self.engine is None:
            return GENERIC
        from llmcalc.engines import registry

        return registry.placement_of(self.engine)

    @property
    def _shares_experts(self) -> bool:
        """Whether several replicas share the routed experts."""
        return self.expert_parallel or self.data_parallel_attention

    def __str__(self) -> str:
        degrees = (
            ("tp", self.tensor_parallel),
            ("pp", self.pipeline_parallel),
            ("dp", self.data_parallel),
            ("dcp", self.decode_context_parallel),
        )
        words = [f"{name}{degree}" for name, degree in degrees if degree > 1]
        words += ["ep"] * self.expert_parallel + ["dp-attention"] * self.data_parallel_attention
        return " ".join(words) or "one device"

    def stages(self, spec: ModelSpec) -> tuple[Stage, ...]:
        """Return the pipeline stages of a model, in order.

        Where they do not divide the layers, layouts without an engine give one layer more to the
        stages before the last one; an engine has its own rule.

        >>> from llmcalc import Layout, load_model
        >>> deepseek = load_model("DeepSeek-V3")
        >>> [stage.layers for stage in Layout(pipeline_parallel=4).stages(deepseek)]
        [15, 15, 16, 15]
        >>> [
        ...     stage.layers
        ...     for stage in Layout(pipeline_parallel=4, engine="sglang").stages(deepseek)
        ... ]
        [15, 15, 15, 16]
        """
        check_spec(spec)
        total, number = spec.num_layers, self.pipeline_parallel
        if self.stage_layers is not None:
            sizes = self.stage_layers
            if sum(sizes) != total:
                rule = f"must sum to the {total} layers of {spec.name}"
                raise InvalidValueError("stage_layers", self.stage_layers, rule)
        elif number > total:
            rule = f"must be at most the {total} layers of {spec.name}: a stage has at least one"
            raise InvalidValueError("pipeline_parallel", number, rule)
        else:
            sizes = self.placement.stage_layers(total, number)
        return tuple(_cut(spec, sizes))

    def check(self, spec: ModelSpec) -> None:
        """Refuse, with the rule, what no engine or the named engine would not start with.

        >>> from llmcalc import Layout, load_model
        >>> Layout(tensor_parallel=2, expert_parallel=True).check(load_model("Llama-3.1-8B"))
        Traceback (most recent call last):
            ...
        llmcalc.errors.InvalidValueError: expert_parallel = True: needs a model with routed experts
        """
        check_spec(spec)
        if self.devices == 1 and self.engine is None and not self.expert_parallel:
            return
        placement = self.placement
        self._check_replicas(spec, placement)
        if self.pipeline_parallel > 1 and len(spec.ledger.caches) < len(spec.ledger.cache_reads):
            rule = f"{spec.name} has layers that read another layer's cache: it needs one stage"
            raise InvalidValueError("pipeline_parallel", self.pipeline_parallel, rule)
        if self.decode_context_parallel > 1:
            for entry, cache in spec.ledger.caches:
                self._check_slots(spec, placement, entry, cache)

    def _check_replicas(self, spec: ModelSpec, placement: Placement) -> None:
        """Refuse replicas that do not share experts as they must."""
        several = self.data_parallel > 1
        if not self._shares_experts and not (several and placement.replicas_share_experts):
            return
        experts = _fewest_experts(spec)
        routed = experts is not None
        if self.expert_parallel and experts is None:
            raise InvalidValueError("expert_parallel", True, "needs a model with routed experts")
        if self.expert_parallel and experts is not None and self.expert_ranks > experts:
            rule = f"must give each of {self.expert_ranks} ranks one of the {experts} experts"
            raise InvalidValueError("expert_parallel", True, rule)
        if self.data_parallel_attention:
            _refuse("data_parallel_attention", True, placement.attention_rule(routed=routed))
        if several:
            broken = placement.replicas_rule(routed=routed, shared=self._shares_experts)
            _refuse("data_parallel", self.data_parallel, broken)

    def _check_slots(
        self, spec: ModelSpec, placement: Placement, entry: Entry, cache: Cache
    ) -> None:
        """Refuse ranks that would not hold the same cache: they have no slots to share."""
        degree, field = self.decode_context_parallel, "decode_context_parallel"
        if cache.span.is_state:
            return
        windowed = cache.span.limit is not None
        _refuse(field, degree, placement.slots_rule(degree, windowed=windowed))
        split = [axis for axis in cache.shape if is_split(axis)]
        heads = max((axis.size for axis in split), default=1)
        copies = max(1, self.tensor_parallel // heads)
        if copies % degree:
            held = f"each of {heads} KV heads" if split else cache.name
            raise InvalidValueError(field, degree, f"must divide the {copies} copies of {held}")
        for other in spec.ledger.entries if split else ():
            item = other.item
            if isinstance(item, Mix) and other.path == entry.path and item.of == cache.reader:
                queries = item.heads.size // heads
                rule = placement.slots_rule(degree, windowed=windowed, queries=queries)
                _refuse(field, degree, rule)

    def rank(self, number: Int, spec: ModelSpec) -> Rank:
        """Return one rank of the layout, for a model.

        >>> from llmcalc import Layout, load_model
        >>> layout = Layout(tensor_parallel=2, pipeline_parallel=2, data_parallel=2)
        >>> rank = layout.rank(7, load_model("Llama-3.1-8B"))
        >>> rank.replica, rank.stage.number, rank.tensor_rank
        (1, 1, 1)
        """
        self.check(spec)
        replica, stage, tensor_rank = self.place(number)
        return Rank(self, self.stages(spec)[stage], replica, tensor_rank)

    def place(self, number: Int) -> tuple[int, int, int]:
        """Return the replica, the stage and the tensor-parallel rank of a rank.

        >>> from llmcalc import Layout
        >>> Layout(tensor_parallel=2, pipeline_parallel=2, data_parallel=2).place(7)
        (1, 1, 1)
        """
        place = whole_number(number, "rank")
        if place >= self.devices:
            raise InvalidValueError("rank", place, f"must be below the {self.devices} devices")
        rest, tensor_rank = divmod(place, self.tensor_parallel)
        replica, stage = divmod(rest, self.pipeline_parallel)
        return replica, stage, tensor_rank

    def first_ranks(self, spec: ModelSpec) -> tuple[Rank, ...]:
        """Return the first rank of each stage: none of its stage holds more."""
        self.check(spec)
        first = None
        ranks = []
        for stage in self.stages(spec):
            first = Rank(self, stage, 0, 0) if first is None else first.on(stage)
            ranks.append(first)
        return tuple(ranks)


@attrs.frozen(repr=False, eq=False)
class Stage(Described):
    """The layers that one of several stages computes: `numbers` gives those of each label."""

    number: int
    stages: int
    layers: int
    numbers: Mapping[str, tuple[int, ...]]

    def count(self, place: Place) -> int:
        """Return how many of the layers at a place the stage has; 1 of what stands outside."""
        if place[0] == "layers":
            return len(self.numbers.get(place[1], ()))
        return int(self.has(place))

    def uses(self, places: tuple[Place, ...]) -> bool:
        """Whether what is used at these places is used on the stage."""
        return self.stages == 1 or any(map(self.has, places))

    def has(self, place: Place) -> bool:
        """Whether what stands at this place is on the stage."""
        where, label = place
        if where == "layers":
            return label in self.numbers
        return self.number == (0 if where == "before" else self.stages - 1)


class Rank:
    """One rank of a layout, and what it holds of a model.

    It has a `replica`, a `stage` and a `tensor_rank`; `number` is its place among all ranks.
    """

    __slots__ = (
        "_experts",
        "_shared",
        "_shared_groups",
        "attention",
        "layout",
        "replica",
        "stage",
        "tensor_rank",
    )

    layout: Layout
    stage: Stage
    replica: int
    tensor_rank: int
    #: How attention and its caches are split.
    attention: Split

    def __init__(self, layout: Layout, stage: Stage, replica: int, tensor_rank: int) -> None:
        self.layout, self.stage = layout, stage
        self.replica, self.tensor_rank = replica, tensor_rank
        placement = layout.placement
        ranks, multiple = layout.tensor_parallel, placement.vocab_multiple
        self._shared_groups = placement.shared_groups
        self.attention = _split(ranks, tensor_rank, multiple)
        self._shared = self._experts = self.attention
        place = replica * ranks + tensor_rank
        if layout.data_parallel_attention:
            everything = _split(ranks * layout.data_parallel, place, multiple)
            self._shared = self._experts = everything
        if layout.expert_parallel:
            self._experts = Split(ranks=layout.expert_ranks, rank=place, whole_experts=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rank):
            return NotImplemented
        mine, theirs = (
            (one.layout, one.stage, one.replica, one.tensor_rank) for one in (self, other)
        )
        return mine == theirs

    def __hash__(self) -> int:
        return hash((self.layout, self.stage.number, self.replica, self.tensor_rank))

    def __repr__(self) -> str:
        return f"<Rank {self.number} of {self.layout.devices}: {self.layout}>"

    def on(self, stage: Stage) -> Rank:
        """Return the rank in the same place of another stage."""
        other = object.__new__(Rank)
        for name in Rank.__slots__:
            setattr(other, name, getattr(self, name))
        other.stage = stage
        return other

    @property
    def number(self) -> int:
        """The rank's number, from 0."""
        layout = self.layout
        stages = self.replica * layout.pipeline_parallel + self.stage.number
        return stages * layout.tensor_parallel + self.tensor_rank

    @property
    def title(self) -> str:
        """What titles say of the rank: nothing, where it holds what every rank holds."""
        layout = self.layout
        if layout.devices == layout.tensor_parallel:
            return ""
        return f" on rank {self.number} of {layout.devices} ({layout})"

    def split(self, tensor: StoredTensor) -> Split:
        """Return how a weight is split."""
        return self.part(tensor.group, routed=tensor.routed)

    def part(self, group: str, *, routed: bool) -> Split:
        """Return how the items of a group are split, or its routed experts."""
        if routed:
            return self._experts
        return self._shared if group in self._shared_groups else self.attention

    def across_replicas(self, group: str, *, routed: bool) -> bool:
        """Whether the ranks of all replicas compute the items together, for all their requests."""
        return self.part(group, routed=routed).ranks > self.attention.ranks

    def slot_ranks(self, span: Span) -> int:
        """Return over how many ranks the slots of a cache are sharded that holds such a span.

        >>> from llmcalc import Layout, load_model
        >>> from llmcalc.spec import Constant, Full
        >>> layout = Layout(tensor_parallel=8, decode_context_parallel=4)
        >>> rank = layout.rank(6, load_model("DeepSeek-V3"))
        >>> rank.slot_ranks(Full()), rank.slot_rank, rank.slot_ranks(Constant())
        (4, 2, 1)
        """
        return 1 if span.is_state else self.layout.decode_context_parallel

    @property
    def slot_rank(self) -> int:
        """The rank's place among those that shard the slots of a request."""
        return self.tensor_rank % self.layout.decode_context_parallel

    @overload
    def requests(self, batch: int) -> int: ...
    @overload
    def requests(self, batch: Number) -> Number: ...
    def requests(self, batch: Number) -> Number:
        """Return how many of `batch` requests the rank's replica serves."""
        return requests_of(batch, self.layout.data_parallel, self.replica)


@overload
def requests_of(batch: int, replicas: int, replica: int) -> int: ...
@overload
def requests_of(batch: Number, replicas: int, replica: int) -> Number: ...
def requests_of(batch: Number, replicas: int, replica: int) -> Number:
    """Return how many of `batch` requests a replica serves: the first ones take the remainder.

    >>> from llmcalc.layouts import requests_of
    >>> [requests_of(10, 4, replica) for replica in range(4)]
    [3, 3, 2, 2]
    """
    return batch if replicas == 1 else portion(batch, replicas, replica)


#: More devices than any machine has; the limit keeps a slip from taking all memory.
MOST_DEVICES: Final[int] = 2**20


def _split(ranks: int, rank: int, vocab_multiple: int) -> Split:
    if ranks == 1 and vocab_multiple == 1:
        return WHOLE
    return Split(ranks=ranks, rank=rank, vocab_multiple=vocab_multiple)


def _cut(spec: ModelSpec, sizes: Iterable[int]) -> Iterator[Stage]:
    """Cut the layers into stages of the given sizes."""
    sizes = tuple(sizes)
    runs = iter(spec.layers)
    run, left, layer = None, 0, 0
    for number, layers in enumerate(sizes):
        numbers: dict[str, tuple[int, ...]] = {}
        missing = layers
        while missing:
            if run is None or not left:
                run = next(runs)
                left = run.count
            taken = left if left < missing else missing
            more = tuple(range(layer, layer + taken))
            numbers[run.label] = numbers[run.label] + more if run.label in numbers else more
            layer, left, missing = layer + taken, left - taken, missing - taken
        yield Stage(number, len(sizes), layers, numbers)


def _fewest_experts(spec: ModelSpec) -> int | None:
    """Return how many routed experts a layer has, the fewest; `None` where no layer has any."""
    # They are the first axis of the rows.
    found = [tensor.rows[0][0].size for tensor in spec.ledger.tensors if tensor.routed]
    return min(found, default=None)


def _refuse(field: str, value: object, rule: str | None) -> None:
    """Raise the error of a rule, if one is broken."""
    if rule is not None:
        raise InvalidValueError(field, value, rule)


#: Everything on one device.
ONE_DEVICE: Final[Layout] = Layout()


def chosen(tensor_parallel: Int, layout: Layout | None) -> Layout:
    """Return the layout that is asked for, as it is or as a degree of tensor parallelism.

    Raises `llmcalc.LlmcalcError` where both are given, or the second is no layout.

    >>> from llmcalc.layouts import Layout, chosen
    >>> str(chosen(2, None)), str(chosen(1, Layout(data_parallel=2))), str(chosen(1, None))
    ('tp2', 'dp2', 'one device')
    """
    degree = whole_number(tensor_parallel, "tensor_parallel", minimum=1)
    if layout is None:
        return ONE_DEVICE if degree == 1 else Layout(tensor_parallel=degree)
    if not isinstance(layout, Layout):
        raise InvalidValueError("layout", layout, "must be a Layout")
    if degree != 1:
        rule = "must not be given beside a layout, which has its own"
        raise InvalidValueError("tensor_parallel", degree, rule)
    return layout


class _Placements(Mapping[str | None, Placement]):
    """How engines place a model, by their names; `None` is a layout of no particular engine."""

    def _known(self) -> dict[str | None, Placement]:
        from llmcalc.engines import registry

        known: dict[str | None, Placement] = {None: GENERIC}
        known.update(registry.placed())
        return known

    def __getitem__(self, engine: str | None) -> Placement:
        return self._known()[engine]

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def __repr__(self) -> str:
        return repr(self._known())


#: How the engines place a model of which that is known; `None` is a layout of no particular one.
#: A layout's `placement` has its own.
ENGINES: Final[Mapping[str | None, Placement]] = _Placements()
