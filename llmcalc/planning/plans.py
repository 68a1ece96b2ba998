"""Plans: all that serves a workload, ranked, as a table.

* `plan`: devices, layouts and formats in which a workload fits, best first.
* `Plan`: its answer: placements, a table of them, and what is short where there are none.
* `COLUMNS`: the columns of the table, with their units.
* `COUNTS`: how many devices are tried, where nothing else is said.
* `Order`: what a plan is ranked by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, overload

import attrs

from llmcalc import hardware
from llmcalc.boundary import choice, several
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.folds.storage import Formats
from llmcalc.hardware import DeviceSpec
from llmcalc.layouts import Layout
from llmcalc.planning.needs import Demand, Offer, Option, Question, offer
from llmcalc.planning.placements import Answer, DoesNotFit, Placement
from llmcalc.planning.possible import layouts_on, number_of_devices
from llmcalc.spec.model import ModelSpec, check_spec
from llmcalc.tables import Table, column, labels
from llmcalc.units import Bytes

if TYPE_CHECKING:
    from llmcalc.boundary import Int
    from llmcalc.engines.engine import Engine
    from llmcalc.folds.storage import StateFormat
    from llmcalc.formats import Format, Scheme

__all__ = ["COLUMNS", "COUNTS", "Order", "Plan", "plan"]

#: How many devices are tried, where nothing else is said.
COUNTS: Final = (1, 2, 4, 8, 16)

#: What a plan is ranked by; `plan` says what each means.
Order: TypeAlias = Literal["devices", "memory", "batch"]

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

#: So many placements are shown of a plan that is printed.
_SHOWN: Final = 3


@attrs.frozen(repr=False, eq=False)
class Plan(Described, Sequence[Placement]):
    """Placements that serve a workload, best first; a sequence and a table.

    `columns` gives the table as lists, `to_markdown` as text; notebooks show the best rows.
    ``bool(plan)`` says whether there is any; `shortfall` is what is short where there is none.
    Two plans are equal when their placements are, and what is short.

    >>> from llmcalc import load_model, planning
    >>> planning.plan(load_model("Llama-3.1-8B"), context=8192, devices="L4", counts=[1, 2])
    <Plan of 5 placements, best first:
      1 x L4, one device, weights bf16, kv bf16; fits, largest batch 7
      2 x L4, pp2, weights bf16, kv bf16; fits, largest batch 30
      2 x L4, tp2, weights bf16, kv bf16; fits, largest batch 30
      2 more>
    """

    _demand: Demand
    _rows: tuple[tuple[Option, Offer], ...]
    shortfall: DoesNotFit | None = None

    def _values(self) -> tuple[object, ...]:
        rows = [(row.layout, row.choice.formats, row.needed, one) for row, one in self._rows]
        return self._demand, rows, self.shortfall

    def __hash__(self) -> int:
        return hash((self._demand, len(self), self.shortfall))

    @overload
    def __getitem__(self, index: int) -> Placement: ...
    @overload
    def __getitem__(self, index: slice) -> list[Placement]: ...
    def __getitem__(self, index: int | slice) -> Placement | list[Placement]:
        if isinstance(index, slice):
            return [self._demand.placement(*row) for row in self._rows[index]]
        return self._demand.placement(*self._rows[index])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def best(self) -> Answer:
        """The first placement, or what is short."""
        if self._rows:
            return self[0]
        return DoesNotFit(closest=None) if self.shortfall is None else self.shortfall

    def columns(self) -> dict[str, list[str | int | None]]:
        """Return the table as one list for each column of `COLUMNS`, best row first."""
        return {one.name: one.array.tolist() for one in self.table().columns}

    def table(self, limit: int | None = None) -> Table:
        """Return the best `limit` rows, or all of them, as a table.

        >>> from llmcalc import load_model, planning
        >>> plan = planning.plan(load_model("Llama-3.1-8B"), context=8192, devices="L4")
        >>> plan.table(3)["max_batch_size"]
        array([ 7, 30, 30])
        """
        chosen = self[:limit]
        notes = () if len(chosen) == len(self) else (f"{len(self) - len(chosen)} more",)
        if isinstance(self.best, DoesNotFit):
            notes = (self.best.reason,)
        values = zip(*map(_row, chosen), strict=True) if chosen else [()] * len(COLUMNS)
        return Table(
            tuple(
                labels(name, [str(text) for text in own])
                if unit is None
                else column(name, own, unit)
                for (name, unit), own in zip(COLUMNS.items(), values, strict=True)
            ),
            notes,
        )

    def to_markdown(self, limit: int = 20) -> str:
        """Return the best `limit` rows as a Markdown table."""
        return self.table(limit).to_markdown(None)

    def __repr__(self) -> str:
        if not self:
            reason = None if self.shortfall is None else self.shortfall.reason
            return f"<Plan without placements: {reason or 'nothing was tried'}>"
        shown = [f"{one}; {one.limit}" for one in self[:_SHOWN]]
        more = len(self) - len(shown)
        lines = [*shown, f"{more} more"] if more else shown
        number = f"{len(self)} placements" if len(self) > 1 else "1 placement"
        return "\n  ".join([f"<Plan of {number}, best first:", *lines]) + ">"

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


def _row(placement: Placement) -> tuple[str | int | None, ...]:
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
    counts: Int | Iterable[Int] | None = None,
    layouts: Layout | Iterable[Layout] | None = None,
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

    `devices` are catalogued names or your own specs, by default the whole catalogue. `counts` are
    how many of one kind are tried, by default `COUNTS`, with every layout that the model and the
    `engine` allow on them; or `layouts` are given instead, which have an engine each. `weights` and
    `kv` are one format or several. Of each device's memory a `share` is taken, less
    `reserved_bytes`.

    `order` ranks by ``"devices"``: fewest devices, then widest weights, then widest keys and
    values, then the least memory bought; by ``"memory"``: the least memory bought, then as before;
    or by ``"batch"``: the largest batch, then as before. Ties go to the simpler layout and to what
    leaves more, and then to what was given first.

    A plan without rows says what is short in `Plan.shortfall`. Raises `llmcalc.LlmcalcError` for
    what is unknown or no number; layouts that the model does not allow are passed over.

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
    check_spec(spec)
    choice(order, "order", ("devices", "memory", "batch"))
    kinds = hardware.names() if devices is None else several(devices, "devices")
    found = [hardware.get(kind, "devices") for kind in kinds]
    offers = [offer(device, share, reserved_bytes) for device in found]
    keys = several(kv, "kv")
    formats = [
        Formats.given(one, key, state, index) for one in several(weights, "weights") for key in keys
    ]
    question = Question(spec, context, batch, formats)
    if layouts is None:
        numbers = COUNTS if counts is None else several(counts, "counts")
        allowed = _of_counts(spec, numbers, engine)
    elif counts is not None:
        raise InvalidValueError("counts", counts, "has no effect beside layouts: give one of them")
    else:
        allowed = list(question.allowed(_given(several(layouts, "layouts"), engine)))
    options = question.options(allowed)
    rows = []
    for number, option in enumerate(options):
        ways = _ways(option.layout)
        for place, one in enumerate(offers):
            if option.fits(one):
                left = one.usable - option.needed
                rank = _rank(order, option, one, found[place].memory_bytes)
                rows.append(((*rank, ways, -left, number, place), (option, one)))
    rows.sort(key=itemgetter(0))
    return Plan(
        question.demand,
        tuple([row for _, row in rows]),
        None if rows else question.shortfall(options, offers),
    )


def _of_counts(spec: ModelSpec, counts: Iterable[Int], engine: str | Engine | None) -> list[Layout]:
    """Return every layout of a model on each number of devices."""
    numbers = [number_of_devices(count, "counts") for count in counts]
    return [layout for number in numbers for layout in layouts_on(spec, number, engine)]


def _given(layouts: tuple[Layout, ...], engine: str | Engine | None) -> tuple[Layout, ...]:
    """Return the layouts that are given, checked."""
    own = Layout(engine=engine).engine
    for layout in layouts:
        if not isinstance(layout, Layout):
            raise InvalidValueError("layouts", layout, "must be Layouts")
        if own is not None and layout.engine != own:
            rule = "must be that of each of the layouts, which have their own"
            raise InvalidValueError("engine", own, rule)
    return layouts


def _rank(order: Order, option: Option, one: Offer, memory: int) -> tuple[float, ...]:
    """Return what an option on devices of so much memory is ranked by: the less the better."""
    devices, choice = option.layout.devices, option.choice
    bought = memory * devices
    wide = -choice.weight_bytes, -choice.request_bytes
    if order == "devices":
        return (devices, *wide, bought)
    if order == "memory":
        return (bought, *wide, devices)
    most = option.stages.most_requests(one.usable)
    return (float("-inf") if most is None else -most, *wide, bought)


def _ways(layout: Layout) -> int:
    """Return in how many ways a layout is parallel."""
    degrees = (
        layout.tensor_parallel,
        layout.pipeline_parallel,
        layout.data_parallel,
        layout.decode_context_parallel,
    )
    kinds = sum([degree > 1 for degree in degrees])
    return kinds + layout.expert_parallel + layout.data_parallel_attention
