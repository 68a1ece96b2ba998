r"""Planning: which devices, how many, in which layout and which formats.

* `plan`: all of them that serve a workload, ranked, as a table.
* `fewest_devices`: the fewest devices of one kind that do.
* `smallest_tensor_parallel`: the smallest degree of tensor parallelism that does.
* `widest_format`: the widest of some formats of the weights that does.
* `Placement`: one way to serve a workload; `DoesNotFit`: what is short, and by how much.
* `possible_layouts`: the layouts that a number of devices allows for a model.

The largest batch and the longest context of a layout are `llmcalc.memory.max_batch_size` and
`llmcalc.memory.max_context`. All answers are exact: what is found fits on every rank, and one
device, degree or format less does not.

Conventions: `context` is in tokens a request and `batch` counts the requests of the whole layout.
Of each device's memory a `share` is taken, less `reserved_bytes` for activations and the engine's
own use; by default all of it. `llmcalc.serving.budget` says what an engine takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, overload

import attrs

from llmcalc import formats, hardware, memory
from llmcalc.boundary import choice, several, whole_number
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError, LlmcalcError
from llmcalc.hardware import DeviceSpec
from llmcalc.layouts import Layout, Rank, Stage
from llmcalc.tables import Table, column, labels
from llmcalc.units import Bytes

if TYPE_CHECKING:
    from llmcalc.boundary import Int
    from llmcalc.engines.engine import Engine
    from llmcalc.folds.storage import StateFormat
    from llmcalc.formats import Format, Scheme
    from llmcalc.spec.model import ModelSpec

__all__ = [
    "DoesNotFit",
    "Placement",
    "Plan",
    "fewest_devices",
    "plan",
    "possible_layouts",
    "smallest_tensor_parallel",
    "widest_format",
]

#: How many devices are tried, where nothing else is said.
COUNTS: Final = (1, 2, 4, 8, 16)

#: The formats that `widest_format` tries, where nothing else is said.
WIDTHS: Final = ("fp32", "bf16", "fp8", "int4")

#: What a plan is ranked by; `plan` says what each means.
Order: TypeAlias = Literal["devices", "memory", "batch"]


def possible_layouts(
    spec: ModelSpec, devices: Int, *, engine: str | Engine | None = None
) -> tuple[Layout, ...]:
    """Return every layout of a model on so many devices that is not refused.

    Degrees of tensor, pipeline and data parallelism multiply to `devices`; with each, experts
    dealt out or split, attention data-parallel or not, and slots dealt out or not. An `engine`
    (`llmcalc.engines`) adds its own rules. The order is that of the degrees, tensor parallelism
    largest first.

    >>> from llmcalc import load_model, planning
    >>> [str(layout) for layout in planning.possible_layouts(load_model("Llama-3.1-8B"), 2)]
    ['tp2', 'dp2', 'dp2 dp-attention', 'pp2']
    """
    count = whole_number(devices, "devices", minimum=1)
    return tuple(layout for layout, _ in _Ledgers(spec).layouts(count, engine))


class _Ledgers:
    """What the layouts of one model have in common, so that none is computed twice."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.routed = any(tensor.routed for tensor in spec.ledger.tensors)
        self._stages: dict[tuple[int, str | Engine | None], tuple[Stage, ...] | None] = {}
        self._weights: dict[Any, memory.Weights | None] = {}
        self._totals: dict[Any, list[int]] = {}
        self._requests: dict[Any, list[int]] = {}
        self._allowed: dict[Any, bool] = {}
        self.refusal: str | None = None

    def layouts(
        self, devices: int, engine: str | Engine | None
    ) -> Iterator[tuple[Layout, tuple[Stage, ...]]]:
        """Give every layout that is not refused, with its stages."""
        for tensor in _divisors(devices):
            for stages in reversed(_divisors(devices // tensor)):
                cut = self.stages(stages, engine)
                if cut is not None:
                    for layout in self._options(tensor, stages, devices, engine):
                        yield layout, cut

    def _options(
        self, tensor: int, stages: int, devices: int, engine: str | Engine | None
    ) -> Iterator[Layout]:
        replicas = devices // tensor // stages
        joint = (False, True) if replicas > 1 else (False,)
        experts = (False, True) if self.routed and tensor * replicas > 1 else (False,)
        for context in reversed(_divisors(tensor)):
            for attention in joint:
                for whole in experts:
                    layout = Layout(
                        tensor_parallel=tensor,
                        pipeline_parallel=stages,
                        data_parallel=replicas,
                        expert_parallel=whole,
                        decode_context_parallel=context,
                        data_parallel_attention=attention,
                        engine=engine,
                    )
                    if self._allows(layout):
                        yield layout

    def _allows(self, layout: Layout) -> bool:
        """Whether nothing refuses the layout; its stages are known to be possible."""
        key = (
            *_sharing(layout),
            layout.decode_context_parallel,
            layout.pipeline_parallel > 1,
            layout.data_parallel > 1,
        )
        if key not in self._allowed:
            try:
                layout.check(self.spec)
                rank = Rank(layout, _NO_STAGE, 0, 0)
                for tensor in self.spec.ledger.tensors:
                    tensor.share(rank.split(tensor))
                memory.cache_pieces(self.spec, 1, memory.cache_formats("bf16", "fp32", None), rank)
            except LlmcalcError:
                self._allowed[key] = False
            else:
                self._allowed[key] = True
        return self._allowed[key]

    def stages(self, number: int, engine: str | Engine | None) -> tuple[Stage, ...] | None:
        """Return the stages of a pipeline, `None` where there are more than layers."""
        key = number, engine
        if key not in self._stages:
            possible = number <= self.spec.num_layers
            layout = Layout(pipeline_parallel=number, engine=engine) if possible else None
            self._stages[key] = None if layout is None else layout.stages(self.spec)
        return self._stages[key]

    def weights(self, layout: Layout, cut: tuple[Stage, ...], storage: Scheme) -> list[int]:
        """Return the weights on the first rank of each stage; nothing if that is refused."""
        key = (*_sharing(layout), id(storage))
        whole = (*key, layout.pipeline_parallel, layout.stage_layers)
        if whole not in self._totals:
            if key not in self._weights:
                rank = Rank(layout, cut[0], 0, 0)
                try:
                    self._weights[key] = memory.Weights(self.spec, storage, rank)
                except InvalidValueError as refused:
                    self._weights[key], self.refusal = None, str(refused)
            held = self._weights[key]
            self._totals[whole] = [held.total(stage) for stage in cut] if held else []
        return self._totals[whole]

    def requests(
        self,
        layout: Layout,
        cut: tuple[Stage, ...],
        context: int,
        elements: Any,
    ) -> list[int]:
        """Return what one request holds on the first rank of each stage."""
        key = (
            layout.tensor_parallel,
            layout.decode_context_parallel,
            layout.pipeline_parallel,
            layout.stage_layers,
            layout.engine,
            id(elements),
        )
        if key not in self._requests:
            ranks = tuple(Rank(layout, stage, 0, 0) for stage in cut)
            pieces = memory.cache_pieces(self.spec, context, elements, ranks[0])
            self._requests[key] = memory.request_totals(pieces, ranks)
        return self._requests[key]


_NO_STAGE: Final = Stage(0, 1, 0, {})


def _sharing(layout: Layout) -> tuple[Any, ...]:
    """Return what the shares of weights depend on."""
    joint = layout.expert_parallel or layout.data_parallel_attention
    return (
        layout.tensor_parallel,
        layout.data_parallel if joint else 1,
        layout.expert_parallel,
        layout.data_parallel_attention,
        layout.engine,
    )


def _divisors(number: int) -> list[int]:
    """Return the divisors of a number, the largest first."""
    return [divisor for divisor in range(number, 0, -1) if number % divisor == 0]


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Placement(Described):
    """One way to serve a workload: devices, layout and formats, and how tight it is.

    `needed_bytes` is what the tightest device needs, `usable_bytes` what each has for it, and
    `max_batch_size` the most requests of the context that fit: `None` where they hold nothing.
    """

    spec: ModelSpec
    device: DeviceSpec | None
    layout: Layout
    weights: str | Format | Scheme
    kv: str | Format
    state: StateFormat = "fp32"
    index: str | Format | None = None
    context: int
    batch: int
    usable_bytes: int
    needed_bytes: int
    max_batch_size: int | None

    def __bool__(self) -> bool:
        return self.fits

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.layout.devices

    @property
    def fits(self) -> bool:
        """Whether what is needed is at most what is usable."""
        return self.needed_bytes <= self.usable_bytes

    @property
    def left_bytes(self) -> int:
        """What is left on the tightest device, or 0."""
        return max(0, self.usable_bytes - self.needed_bytes)

    @property
    def short_bytes(self) -> int:
        """What the tightest device is short of, or 0."""
        return max(0, self.needed_bytes - self.usable_bytes)

    @property
    def format_names(self) -> tuple[str, str]:
        """The names of the formats of weights and of keys and values."""
        return formats.name_of(self.weights), formats.name_of(self.kv)

    @cached_property
    def fit(self) -> memory.Fit:
        """The same answer with its working: weights and cache of the tightest device."""
        return memory.fit(
            self.spec,
            device_memory=self.usable_bytes,
            context=self.context,
            batch=self.batch,
            weights=self.weights,
            kv=self.kv,
            state=self.state,
            index=self.index,
            layout=self.layout,
        )

    def __repr__(self) -> str:
        return f"<Placement of {self.spec.name}: {self}>"

    def __str__(self) -> str:
        name = "devices" if self.device is None else self.device.name
        weights, kv = self.format_names
        return f"{self.devices} x {name}, {self.layout}, weights {weights}, kv {kv}"


@attrs.frozen(kw_only=True, repr=False, eq=False)
class DoesNotFit(Described):
    """Nothing that was tried fits. ``bool(...)`` is `False`.

    `closest` is what is short of least on its tightest device; `None` where every layout that was
    tried is refused, and then `refusal` says why the last one was.
    """

    closest: Placement | None
    refusal: str | None = None

    fits: Literal[False] = attrs.field(default=False, init=False, repr=False)

    def __bool__(self) -> Literal[False]:
        return False

    @property
    def short_bytes(self) -> int | None:
        """What the tightest device of the closest try is short of."""
        return None if self.closest is None else self.closest.short_bytes

    @property
    def reason(self) -> str:
        """One sentence: what is short, and by how much."""
        if self.closest is None:
            return f"nothing was possible: {self.refusal or 'nothing was tried'}"
        return f"closest is {self.closest}: {self.closest.fit.reason}"


class Plan(Sequence[Placement]):
    """Placements that serve a workload, best first; a sequence and a table.

    `columns` gives the table as lists, `to_markdown` as text; notebooks show the best rows.
    ``bool(plan)`` says whether there is any; `shortfall` is what is short where there is none.
    """

    def __init__(
        self, rows: Sequence[tuple[Any, ...]], make: Any, shortfall: DoesNotFit | None
    ) -> None:
        self._rows, self._make, self.shortfall = rows, make, shortfall

    @overload
    def __getitem__(self, index: int) -> Placement: ...
    @overload
    def __getitem__(self, index: slice) -> list[Placement]: ...
    def __getitem__(self, index: int | slice) -> Placement | list[Placement]:
        if isinstance(index, slice):
            return [self._make(*row) for row in self._rows[index]]
        placement: Placement = self._make(*self._rows[index])
        return placement

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def best(self) -> Placement | DoesNotFit:
        """The first placement, or what is short."""
        if len(self):
            return self[0]
        return DoesNotFit(closest=None) if self.shortfall is None else self.shortfall

    def columns(self) -> dict[str, list[Any]]:
        """Return the table as one list for each column, best row first."""
        return {one.name: one.array.tolist() for one in self.table().columns}

    def table(self, limit: int | None = None) -> Table:
        """Return the best `limit` rows, or all of them, as a table."""
        chosen = self[:limit]
        notes = () if len(chosen) == len(self) else (f"{len(self) - len(chosen)} more",)
        if isinstance(self.best, DoesNotFit):
            notes = (self.best.reason,)
        values = zip(*map(_row, chosen), strict=True) if chosen else [()] * len(COLUMNS)
        return Table(
            tuple(
                labels(name, own) if unit is None else column(name, own, unit)
                for (name, unit), own in zip(COLUMNS.items(), values, strict=True)
            ),
            notes,
        )

    def to_markdown(self, limit: int = 20) -> str:
        """Return the best `limit` rows as a Markdown table."""
        return self.table(limit).to_markdown(None)

    def __repr__(self) -> str:
        return f"<Plan of {len(self)} placements, best: {self.best if len(self) else None}>"

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


#: The columns of a plan's table with their units; `None` stands for a text.
COLUMNS: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        "device": None,
        "devices": "",
        "layout": None,
        "weights": None,
        "kv": None,
        "needed_bytes": Bytes.symbol,
        "left_bytes": Bytes.symbol,
        "max_batch_size": "requests",
    }
)


def _row(placement: Placement) -> tuple[Any, ...]:
    weights, kv = placement.format_names
    return (
        "-" if placement.device is None else placement.device.name,
        placement.devices,
        str(placement.layout),
        weights,
        kv,
        placement.needed_bytes,
        placement.left_bytes,
        placement.max_batch_size,
    )


def plan(
    spec: ModelSpec,
    *,
    context: Int,
    batch: Int = 1,
    devices: str | DeviceSpec | Iterable[str | DeviceSpec] | None = None,
    counts: Iterable[Int] = COUNTS,
    layouts: Iterable[Layout] | None = None,
    weights: str | Format | Scheme | Iterable[str | Format | Scheme] = "bf16",
    kv: str | Format | Iterable[str | Format] = "bf16",
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    share: float = 1.0,
    reserved_bytes: Int = 0,
    engine: str | Engine | None = None,
    order: Order = "devices",
) -> Plan:
    """Return all (device, layout, formats) that hold `batch` requests of `context` tokens, ranked.

    `devices` are catalogued names or your own specs, by default the whole catalogue; `counts` how
    many of one kind are tried, with every layout that the model allows on them, unless `layouts`
    are given; `weights` and `kv` one format or several.

    `order` ranks by ``"devices"``: fewest devices, then widest weights, then widest keys and
    values, then the least memory bought; by ``"memory"``: the least memory bought, then as before;
    or by ``"batch"``: the largest batch, then as before. Ties go to the simpler layout and to what
    leaves more.

    A plan without rows says what is short in `Plan.shortfall`.

    >>> from llmcalc import load_model, planning
    >>> table = planning.plan(
    ...     load_model("Llama-3.1-70B"), context=8192, batch=16,
    ...     devices=["H100-SXM-80GB", "H200-SXM-141GB"], counts=[1, 2, 4],
    ...     weights=["bf16", "fp8"],
    ... )
    >>> print(table[0])
    1 x H200-SXM-141GB, one device, weights fp8, kv bf16
    >>> table[0].max_batch_size, len(table)
    (29, 45)
    """
    search = _Search(spec, context, batch, state, index)
    named = hardware.names() if devices is None else several(devices, "devices")
    chosen = [hardware.get(device, "devices") for device in named]
    usable = [
        memory.usable_bytes(device.memory_bytes, share=share, reserved_bytes=reserved_bytes)
        for device in chosen
    ]
    choice(order, "order", ("devices", "memory", "batch"))
    storages = several(weights, "weights")
    keys = several(kv, "kv")
    widths = {id(storage): search.width(storage) for storage in storages}
    cached = {id(key): search.request_width(key) for key in keys}
    options = search.options(search.candidates(counts, layouts, engine), storages, keys)
    rows: list[tuple[Any, ...]] = []
    rank: tuple[float, ...]
    for number, option in enumerate(options):
        layout = option.layout
        kinds = sum(
            degree > 1
            for degree in (
                layout.tensor_parallel,
                layout.pipeline_parallel,
                layout.data_parallel,
                layout.decode_context_parallel,
            )
        )
        kinds += layout.expert_parallel + layout.data_parallel_attention
        wide = -widths[id(option.weights)], -cached[id(option.kv)]
        count = layout.devices
        for at, available in enumerate(usable):
            if option.needed <= available:
                bought = chosen[at].memory_bytes * count
                most = option.most(available)
                tie = (kinds, option.needed - available, number, at)
                if order == "devices":
                    rank = (count, *wide, bought)
                elif order == "memory":
                    rank = (bought, *wide, count)
                else:
                    rank = (float("-inf") if most is None else -most, *wide, bought)
                rows.append((*rank, *tie, most))
    rows.sort(key=lambda row: row[:-1])

    def make(*row: Any) -> Placement:
        option, at, most = options[row[-3]], row[-2], row[-1]
        return search.placement(option, chosen[at], usable[at], most)

    shortfall = None
    if not rows:
        shortfall = search.shortfall(options, list(zip(chosen, usable, strict=True)))
    return Plan(rows, make, shortfall)


@attrs.frozen
class _Option:
    """A layout with formats: what each stage's tightest device needs, whatever the device."""

    layout: Layout
    weights: Any
    kv: Any
    needed: int
    stages: tuple[tuple[int, int], ...]

    def most(self, usable: int) -> int | None:
        """Return the most requests that fit; the weights do."""
        limits = [(usable - held) // request for held, request in self.stages if request]
        return min(limits) * self.layout.data_parallel if limits else None


class _Search:
    """The workload of a question, and what its candidates need."""

    def __init__(
        self,
        spec: ModelSpec,
        context: Int,
        batch: Int,
        state: StateFormat,
        index: str | Format | None,
    ) -> None:
        self.spec = spec
        self.context = whole_number(context, "context")
        self.batch = whole_number(batch, "batch")
        self.state, self.index = state, index
        self.ledgers = _Ledgers(spec)
        self._schemes: dict[int, Any] = {}
        self._elements: dict[int, Any] = {}

    def candidates(
        self,
        counts: Iterable[Int],
        layouts: Iterable[Layout] | None,
        engine: str | Engine | None,
    ) -> Iterator[tuple[Layout, tuple[Stage, ...]]]:
        """Give the layouts to try, with their stages."""
        if layouts is None:
            for count in counts:
                devices = whole_number(count, "counts", minimum=1)
                yield from self.ledgers.layouts(devices, engine)
            return
        for layout in layouts:
            if not isinstance(layout, Layout):
                raise InvalidValueError("layouts", layout, "must be Layouts")
            try:
                ranks = layout.first_ranks(self.spec)
                memory.Weights(self.spec, formats.scheme("bf16", self.spec), ranks[0])
            except LlmcalcError as refused:
                self.ledgers.refusal = str(refused)
            else:
                yield layout, layout.stages(self.spec)

    def scheme(self, weights: Any) -> Scheme:
        """Return the format of each tensor."""
        if id(weights) not in self._schemes:
            self._schemes[id(weights)] = formats.scheme(weights, self.spec)
        scheme: Scheme = self._schemes[id(weights)]
        return scheme

    def elements(self, kv: Any) -> Any:
        """Return the format of each role."""
        if id(kv) not in self._elements:
            self._elements[id(kv)] = memory.cache_formats(kv, self.state, self.index)
        return self._elements[id(kv)]

    def width(self, weights: Any) -> int:
        """Return the bytes of the whole model: what makes one format wider than another."""
        return memory.weight_bytes(self.spec, weights=self.scheme(weights)).total

    def request_width(self, kv: Any) -> int:
        """Return the bytes of a whole request."""
        held = memory.kv_cache_bytes(
            self.spec, context=self.context, kv=kv, state=self.state, index=self.index
        )
        return held.total

    def options(
        self,
        candidates: Iterable[tuple[Layout, tuple[Stage, ...]]],
        weights: Iterable[Any],
        kv: Iterable[Any],
    ) -> list[_Option]:
        """Return what the layouts need in these formats, unless they are refused in them."""
        found = []
        for layout, cut in candidates:
            number = -(-self.batch // layout.data_parallel)
            for storage in weights:
                totals = self.ledgers.weights(layout, cut, self.scheme(storage))
                for key in kv if totals else ():
                    elements = self.elements(key)
                    requests = self.ledgers.requests(layout, cut, self.context, elements)
                    stages = tuple({*zip(totals, requests, strict=True)})
                    needed = max(held + number * request for held, request in stages)
                    found.append(_Option(layout, storage, key, needed, stages))
        return found

    def placement(
        self, option: _Option, device: DeviceSpec | None, usable: int, most: int | None
    ) -> Placement:
        """Return an option on a device."""
        return Placement(
            spec=self.spec,
            device=device,
            layout=option.layout,
            weights=option.weights,
            kv=option.kv,
            state=self.state,
            index=self.index,
            context=self.context,
            batch=self.batch,
            usable_bytes=usable,
            needed_bytes=option.needed,
            max_batch_size=most,
        )

    def shortfall(
        self, options: Sequence[_Option], devices: Sequence[tuple[DeviceSpec | None, int]]
    ) -> DoesNotFit:
        """Return the option that is short of least."""
        if not options or not devices:
            return DoesNotFit(closest=None, refusal=self.ledgers.refusal)
        device, usable = max(devices, key=lambda pair: pair[1])
        option = min(options, key=lambda option: option.needed)
        held = max(weights for weights, _ in option.stages)
        most = option.most(usable) if held <= usable else 0
        return DoesNotFit(closest=self.placement(option, device, usable, most))


def _one_device(
    device: str | DeviceSpec | Int, share: float, reserved: Int
) -> tuple[DeviceSpec | None, int]:
    """Return a device and the memory that can be used of it."""
    found = hardware.get(device) if isinstance(device, str | DeviceSpec) else None
    size = whole_number(device, "device") if found is None else found.memory_bytes
    return found, memory.usable_bytes(size, share=share, reserved_bytes=reserved)


def fewest_devices(
    spec: ModelSpec,
    *,
    device: str | DeviceSpec | Int,
    context: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    batch: Int = 1,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    share: float = 1.0,
    reserved_bytes: Int = 0,
    engine: str | Engine | None = None,
    max_devices: Int = 64,
) -> Placement | DoesNotFit:
    """Return the fewest devices that hold the workload, in the layout that leaves most.

    `device` is a name, a spec, or bytes of memory. Every number up to `max_devices` is tried with
    every layout that the model allows.

    >>> from llmcalc import load_model, planning
    >>> answer = planning.fewest_devices(
    ...     load_model("DeepSeek-V3"), device="H100-SXM-80GB", context=32768, batch=8,
    ...     weights="fp8", kv="bf16",
    ... )
    >>> print(answer)
    9 x H100-SXM-80GB, pp9, weights fp8, kv bf16
    """
    search = _Search(spec, context, batch, state, index)
    found, usable = _one_device(device, share, reserved_bytes)
    most = whole_number(max_devices, "max_devices", minimum=1)
    whole = search.width(weights)
    closest: list[_Option] = []
    for count in range(1, most + 1):
        # The ranks of a layout hold the whole model at least.
        if count * usable < whole and count < most:
            continue
        options = search.options(search.ledgers.layouts(count, engine), [weights], [kv])
        closest += options
        fitting = [option for option in options if option.needed <= usable]
        if fitting:
            best = min(fitting, key=lambda option: option.needed)
            return search.placement(best, found, usable, best.most(usable))
    return search.shortfall(closest, [(found, usable)])


def smallest_tensor_parallel(
    spec: ModelSpec,
    *,
    device: str | DeviceSpec | Int,
    context: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    batch: Int = 1,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    share: float = 1.0,
    reserved_bytes: Int = 0,
    engine: str | Engine | None = None,
    max_devices: Int = 64,
) -> Placement | DoesNotFit:
    """Return the smallest degree of tensor parallelism that holds the workload.

    The arguments are those of `fewest_devices`; degrees that the model does not allow are passed
    over.

    >>> from llmcalc import load_model, planning
    >>> answer = planning.smallest_tensor_parallel(
    ...     load_model("Llama-3.1-70B"), device="H100-SXM-80GB", context=8192, batch=8,
    ...     weights="bf16", kv="bf16",
    ... )
    >>> answer.layout.tensor_parallel, answer.max_batch_size
    (2, 11)
    """
    search = _Search(spec, context, batch, state, index)
    found, usable = _one_device(device, share, reserved_bytes)
    search.width(weights)
    tried: list[_Option] = []
    for degree in range(1, whole_number(max_devices, "max_devices", minimum=1) + 1):
        layout = Layout(tensor_parallel=degree, engine=engine)
        candidates = search.candidates((), (layout,), engine)
        for option in search.options(candidates, [weights], [kv]):
            if option.needed <= usable:
                return search.placement(option, found, usable, option.most(usable))
            tried.append(option)
    return search.shortfall(tried, [(found, usable)])


def widest_format(
    spec: ModelSpec,
    *,
    device: str | DeviceSpec | Int,
    context: Int,
    kv: str | Format,
    weights: Iterable[str | Format | Scheme] = WIDTHS,
    batch: Int = 1,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    share: float = 1.0,
    reserved_bytes: Int = 0,
    layout: Layout | None = None,
) -> Placement | DoesNotFit:
    """Return the widest of several formats of the weights in which the workload fits a layout.

    The widest is the one in which the whole model takes most bytes.

    >>> from llmcalc import load_model, planning
    >>> answer = planning.widest_format(
    ...     load_model("Llama-3.1-70B"), device="H100-SXM-80GB", context=8192, kv="fp8",
    ...     weights=["bf16", "fp8", "awq-int4-g128"],
    ... )
    >>> answer.weights, answer.max_batch_size
    ('fp8', 11)
    """
    search = _Search(spec, context, batch, state, index)
    found, usable = _one_device(device, share, reserved_bytes)
    storages = several(weights, "weights")
    chosen = Layout() if layout is None else layout
    cut = tuple(rank.stage for rank in chosen.first_ranks(spec))
    widths = {id(storage): search.width(storage) for storage in storages}
    options = search.options([(chosen, cut)], storages, [kv])
    fitting = [option for option in options if option.needed <= usable]
    if not fitting:
        return search.shortfall(options, [(found, usable)])
    best = max(fitting, key=lambda option: widths[id(option.weights)])
    return search.placement(best, found, usable, best.most(usable))
