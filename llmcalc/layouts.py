r"""Layouts: which device holds which weights and which part of a request's cache.

* `Layout`: the degrees of tensor, pipeline, expert, data and decode-context parallelism.
* `Rank`: one device of a layout, and what it holds of a model.
* `Stage`: the layers of one pipeline stage.
* `ENGINES`: the serving engines whose rules a layout can follow.

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
* **Data parallelism** copies everything; requests are dealt out to the replicas.
* **Expert parallelism** deals out whole experts over the `t d` ranks of a stage.
* **Data-parallel attention** copies attention alone: the `t d` ranks of a stage split the rest
  like tensor-parallel ranks. `ENGINES` says what the rest is in each engine.
* **Decode-context parallelism** deals out the slots of each request over tensor-parallel ranks
  that would hold copies of the same KV heads or latent.

The first rank of a stage never holds less than another one of the stage: it takes every
remainder. Parameters never depend on the layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import attrs

from llmcalc.boundary import choice, flag, size, whole_number
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import WHOLE, Split, is_split, share
from llmcalc.spec.items import Cache, Mix
from llmcalc.spec.spans import Chunk, Constant, Window

if TYPE_CHECKING:
    from llmcalc.boundary import Int
    from llmcalc.breakdown import Factor
    from llmcalc.spec.ledger import Place, StoredTensor
    from llmcalc.spec.model import ModelSpec

__all__ = ["ENGINES", "ONE_DEVICE", "Layout", "Rank", "Stage"]


class Engine(NamedTuple):
    """The rules of a serving engine, as far as placement goes.

    `vocab_multiple`: the vocabulary is padded to a multiple of this. `last_stages`: the stages
    that take one layer more where they don't divide: the last ones, or with `False` those before
    the last one. `joint`: the groups that data-parallel attention leaves to all ranks of a stage,
    besides routed experts; everything else belongs to a replica.
    """

    vocab_multiple: int
    last_stages: bool
    joint: frozenset[str]


#: The engines by name; `None` is a layout of no particular engine. Sources: vLLM,
#: ``distributed/utils.py`` (``get_pp_indices``), ``layers/vocab_parallel_embedding.py`` and
#: ``layers/fused_moe/config.py`` (``flatten_tp_across_dp``); SGLang, ``srt/distributed/utils.py``
#: (``get_pp_indices``) and ``srt/layers/vocab_parallel_embedding.py``.
ENGINES: Final[Mapping[str | None, Engine]] = MappingProxyType(
    {
        None: Engine(1, False, frozenset({"feed_forward", "experts"})),
        "vllm": Engine(64, False, frozenset()),
        "sglang": Engine(64, True, frozenset({"feed_forward", "experts"})),
    }
)

EngineName: TypeAlias = Literal["vllm", "sglang"]


def _engine(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        choice(value, attribute.name, [name for name in ENGINES if name is not None])


def _stage_layers(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
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
    layers of each stage, where they are not the engine's own split. `engine` adds an engine's
    rules: vocabulary padding, the split into stages, and what it refuses.

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
    engine: EngineName | None = attrs.field(default=None, validator=_engine)

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
        if tensor * self.pipeline_parallel * self.data_parallel > _MOST_DEVICES:
            rule = f"must give at most {_MOST_DEVICES} devices with the other degrees"
            raise InvalidValueError("tensor_parallel", tensor, rule)

    @property
    def devices(self) -> int:
        """The number of devices: tensor x pipeline x data parallelism."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def expert_ranks(self) -> int:
        """The ranks of a stage that share the routed experts."""
        joint = self.expert_parallel or self.data_parallel_attention
        return self.tensor_parallel * (self.data_parallel if joint else 1)

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

        Where they do not divide the layers, vLLM and layouts without an engine give one layer
        more to the stages before the last one, SGLang to the last ones.

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
        total, number = spec.num_layers, self.pipeline_parallel
        if self.stage_layers is not None:
            sizes: Iterable[int] = self.stage_layers
            if sum(sizes) != total:
                rule = f"must sum to the {total} layers of {spec.name}"
                raise InvalidValueError("stage_layers", self.stage_layers, rule)
        elif number > total:
            rule = f"must be at most the {total} layers of {spec.name}: a stage has at least one"
            raise InvalidValueError("pipeline_parallel", number, rule)
        else:
            each, rest = divmod(total, number)
            last = ENGINES[self.engine].last_stages
            first_more = number - rest - (0 if last or not rest else 1)
            sizes = [each + (first_more <= stage < first_more + rest) for stage in range(number)]
        return tuple(_cut(spec, sizes))

    def check(self, spec: ModelSpec) -> None:
        """Refuse, with the rule, what no engine or the named engine would not start with.

        >>> from llmcalc import Layout, load_model
        >>> Layout(tensor_parallel=2, expert_parallel=True).check(load_model("Llama-3.1-8B"))
        Traceback (most recent call last):
            ...
        llmcalc.errors.InvalidValueError: expert_parallel = True: needs a model with routed experts
        """
        if self.devices == 1 and self.engine is None and not self.expert_parallel:
            return
        self._check_experts(spec)
        if self.pipeline_parallel > 1 and len(spec.ledger.caches) < len(spec.ledger.cache_reads):
            rule = f"{spec.name} has layers that read another layer's cache: it needs one stage"
            raise InvalidValueError("pipeline_parallel", self.pipeline_parallel, rule)
        if self.decode_context_parallel > 1:
            self._check_context(spec)

    def _check_experts(self, spec: ModelSpec) -> None:
        shared = self.expert_parallel or self.data_parallel_attention
        if not shared and (self.engine is None or self.data_parallel == 1):
            return
        experts = min(
            (
                axis.size
                for tensor in spec.ledger.tensors
                if tensor.routed
                for axis in tensor.rows[0]
                if axis.name == "experts"
            ),
            default=None,
        )
        if experts is None:
            if self.expert_parallel:
                raise InvalidValueError(
                    "expert_parallel", True, "needs a model with routed experts"
                )
            if self.data_parallel_attention and self.engine == "vllm":
                rule = "vLLM's replicas share experts only, and the model has none that are routed"
                raise InvalidValueError("data_parallel_attention", True, rule)
            return
        if self.expert_parallel and self.expert_ranks > experts:
            rule = f"must give each of {self.expert_ranks} ranks one of the {experts} experts"
            raise InvalidValueError("expert_parallel", True, rule)
        if self.engine == "vllm" and self.data_parallel > 1 and not shared:
            rule = (
                "vLLM splits the experts over all data-parallel ranks: "
                "data_parallel_attention or expert_parallel must be set"
            )
            raise InvalidValueError("data_parallel", self.data_parallel, rule)

    def _check_context(self, spec: ModelSpec) -> None:
        """Refuse ranks that would not hold the same cache: they have no slots to share."""
        degree, tensor = self.decode_context_parallel, self.tensor_parallel
        for entry, cache in spec.ledger.caches:
            if isinstance(cache.span, Constant):
                continue
            if self.engine == "vllm" and isinstance(cache.span, Window | Chunk):
                rule = "vLLM does not split windows"
                raise InvalidValueError("decode_context_parallel", degree, rule)
            split = [axis for axis in cache.shape if is_split(axis)]
            heads = max((axis.size for axis in split), default=1)
            copies = max(1, tensor // heads)
            if copies % degree:
                rule = (
                    f"must divide the {copies} copies of each of {heads} KV heads"
                    if split
                    else f"must divide the {copies} copies of {entry.name[-1]}"
                )
                raise InvalidValueError("decode_context_parallel", degree, rule)
            if self.engine == "vllm" and split:
                _check_groups(spec, entry.path[1], heads, degree)

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

    def numbers_of(self, tensor: StoredTensor) -> tuple[int, ...] | None:
        """Return the layers of the stage that store the tensor; `None` if it has all layers."""
        if self.stages == 1 or not tensor.times:
            return None
        return self.numbers.get(tensor.places[0][1], ())

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

    def times(
        self, places: tuple[Place, ...], times: tuple[Factor, ...]
    ) -> tuple[Factor, ...] | None:
        """Return the factors that count the stage's layers; `None` where it has none of them.

        `times` are the factors for the whole model: none for what is stored once.
        """
        if self.stages == 1:
            return times
        if not times:
            return times if any(map(self.has, places)) else None
        count = len(self.numbers.get(places[0][1], ()))
        return ((count, times[0][1]), *times[1:]) if count else None


class Rank:
    """One rank of a layout, and what it holds of a model.

    It has a `replica`, a `stage` and a `tensor_rank`; `number` is its place among all ranks.
    """

    __slots__ = (
        "_experts",
        "_groups",
        "_joint",
        "_own",
        "layout",
        "replica",
        "stage",
        "tensor_rank",
    )

    def __init__(self, layout: Layout, stage: Stage, replica: int, tensor_rank: int) -> None:
        self.layout, self.stage = layout, stage
        self.replica, self.tensor_rank = replica, tensor_rank
        rules = ENGINES[layout.engine]
        ranks, multiple, self._groups = layout.tensor_parallel, rules.vocab_multiple, rules.joint
        self._own = _split(ranks, tensor_rank, multiple)
        self._joint = self._experts = self._own
        if layout.data_parallel_attention:
            joint = ranks * layout.data_parallel
            self._joint = self._experts = _split(joint, replica * ranks + tensor_rank, multiple)
        if layout.expert_parallel:
            self._experts = Split(
                ranks=layout.expert_ranks, rank=replica * ranks + tensor_rank, whole_experts=True
            )

    def on(self, stage: Stage) -> Rank:
        """Return the rank in the same place of another stage."""
        other = object.__new__(Rank)
        other.layout, other.stage = self.layout, stage
        other.replica, other.tensor_rank = self.replica, self.tensor_rank
        other._own, other._joint, other._experts = self._own, self._joint, self._experts
        other._groups = self._groups
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

    @property
    def attention(self) -> Split:
        """How attention and its caches are split."""
        return self._own

    def split(self, tensor: StoredTensor) -> Split:
        """Return how a weight is split."""
        return self.part(tensor.path[0], routed=tensor.routed)

    def part(self, group: str, *, routed: bool) -> Split:
        """Return how the items of a group are split, or its routed experts."""
        if routed:
            return self._experts
        return self._joint if group in self._groups else self._own

    def is_joint(self, group: str, *, routed: bool) -> bool:
        """Whether the ranks of all replicas compute the items together, for all their requests."""
        return self.part(group, routed=routed).ranks > self._own.ranks

    def slots(self, cache: Cache, slots: Any, name: str) -> tuple[Any, str]:
        """Return how many of a request's slots the rank holds, and what they are called."""
        degree = self.layout.decode_context_parallel
        if degree == 1 or isinstance(cache.span, Constant):
            return slots, name
        return self.dealt(slots), f"{name} / {degree}"

    def dealt(self, slots: Any) -> Any:
        """Return how many of the slots that ranks share out it holds."""
        degree = self.layout.decode_context_parallel
        return share(slots, degree, self.tensor_rank % degree)

    def requests(self, batch: Any) -> Any:
        """Return how many of `batch` requests the rank's replica serves."""
        degree = self.layout.data_parallel
        return batch if degree == 1 else share(batch, degree, self.replica)


#: More devices than any machine has; the limit keeps a slip from taking all memory.
_MOST_DEVICES: Final = 2**20


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


def _check_groups(spec: ModelSpec, label: str, heads: int, degree: int) -> None:
    """Refuse, as vLLM does, a degree that does not divide the queries of a KV head."""
    for entry in spec.ledger.entries:
        item = entry.item
        if isinstance(item, Mix) and entry.path[1] == label and item.heads.name == "query_heads":
            group = item.heads.size // heads
            if group % degree:
                rule = f"vLLM needs a divisor of the {group} query heads of each KV head"
                raise InvalidValueError("decode_context_parallel", degree, rule)


#: Everything on one device.
ONE_DEVICE: Final = Layout()
