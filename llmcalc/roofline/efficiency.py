r"""From the bound of a step to a forecast: what share of its device an engine gets to use.

* `Efficiency`: the shares and the fixed costs, and the time that a step takes under them.
* `Work`: what of a step an efficiency looks at; its `Products` and its `Attention` calls.

A step's bound says what no engine can beat; an `Efficiency` says by how much one misses it. It
is kept apart from the bound: `llmcalc.roofline.times` knows nothing of it, and the efficiency
that every parameter's default makes is the bound itself.

With peak rate :math:`P`, bandwidth :math:`B`, link :math:`K`, and for each matrix product its
FLOPs :math:`F`, weight bytes :math:`W` and how many layers :math:`L` have it

.. math::
    t_\text{product} = \Big\| \frac{F}{c P} + L\,\tau,\ \frac{W}{b B} \Big\|_s
                       + \frac{\epsilon E}{b B}
    \qquad
    t_\text{attention} = \Big\| \frac{F + \rho\,F_1}{c_a P},\ \frac{C}{b_a B} \Big\|_s

where :math:`\|x, y\|_s = (x^s + y^s)^{1/s}` (`sharpness`), :math:`c`, :math:`b`, :math:`c_a` and
:math:`b_a` are shares of the peak and of the bandwidth, :math:`\tau` is what a product takes to
fill and to drain (so that small products reach a smaller share), :math:`E` are packed weights that
are first brought to 16 bits, :math:`C` cache bytes, and :math:`F_1` the FLOPs of the query that
attends the most keys, in each request that has several new tokens: a kernel computes them in tiles,
and :math:`\rho` queries more than there are. A step of one token fills no tile. Activation bytes
move `activation_passes` times besides, scores `score_passes` times; each product and each attention
call costs `kernel_seconds`, each step `step_seconds`; and an exchange between :math:`n` ranks takes
:math:`\lambda (1 + \log_2 n) / 2` before its bytes go over the share `link` of the link. So the
share of the bandwidth that a read of so many bytes reaches is :math:`b\, W / (W + b B \kappa)` with
:math:`\kappa` seconds of fixed cost.

All terms are sums of non-negative parts, and shares are at most 1: a forecast is never below the
bound, and more work never takes less time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import attrs

from llmcalc.boundary import is_array, larger, smaller
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.folds.counts import TOKENS, Count

if TYPE_CHECKING:
    from numpy import integer
    from numpy.typing import NDArray

    from llmcalc.boundary import Field, Figure
    from llmcalc.folds.breakdowns import FoldBreakdown
    from llmcalc.folds.pieces import Kind, Operation, Piece
    from llmcalc.hardware import DeviceSpec
    from llmcalc.roofline.times import StepTime

    Indices: TypeAlias = NDArray[integer[Any]]

__all__ = ["Attention", "Efficiency", "Products", "Work"]

#: Products of more tokens than this bring packed weights to 16 bits first, where an engine does.
#: Source: llama.cpp ``ggml-cuda/mmq.cuh`` (``MMQ_MAX_BATCH_SIZE``); exllama and AutoAWQ have such
#: a limit too.
EXPANDED_FROM: Final = 32

#: Weights of fewer bytes than this are packed. Formats of 8 bits are mostly multiplied as they are.
_PACKED_BELOW: Final = 0.95


def _share(_: object, attribute: Field, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidValueError(attribute.name, value, "must be a share, above 0 and at most 1")


def _cost(_: object, attribute: Field, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        raise InvalidValueError(attribute.name, value, "must be a number of at least 0")


def _overlap(_: object, attribute: Field, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidValueError(attribute.name, value, "must be from 0 to 1")


def _exponent(_: object, attribute: Field, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise InvalidValueError(attribute.name, value, "must be a number of at least 1")


def _field(default: float, validator: Callable[[object, Field, object], None]) -> float:
    return attrs.field(default=default, validator=validator)


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Efficiency(Described):
    """How much of a device an engine uses; without arguments, all of it.

    Shares of what the vendor promises, each above 0 and at most 1:

    `compute`, `attention_compute`
        The peak rate that large matrix products reach, and that attention's reach.
    `bandwidth`, `cache_bandwidth`
        The memory bandwidth at which weights and activations are read, and caches are.
    `link`
        The link's rate that exchanges between devices reach.

    Fixed costs and extra work, each at least 0:

    `product_seconds`
        What a matrix product takes to fill and to drain, beside the time of its FLOPs.
    `kernel_seconds`
        What every matrix product and every attention call costs besides, however small.
    `step_seconds`
        What every step costs besides: scheduling, sampling, the host.
    `collective_seconds`
        The latency of an exchange between two devices.
    `attention_tile`
        How many queries' worth of FLOPs attention computes beyond those that there are, in each
        request of several new tokens.
    `activation_passes`, `score_passes`
        How often activations, and the scores of attention that is not fused, move, in units of
        what `llmcalc.roofline.bytes_moved` counts for them.
    `expansion_bytes`
        The bytes moved for each packed weight that is brought to 16 bits before a large product.

    And how parts combine:

    `sharpness`
        The exponent with which compute and memory time of one item add up: infinite for the
        longer of the two, 1 for their sum.
    `overlap`
        From 0, items run one after another, to 1, all compute overlaps with all reads.
    `stage_overlap`
        How much of the possible gain pipeline stages make that work on several micro-batches at
        once, from 0 to 1.

    Raises `llmcalc.LlmcalcError` for a value outside its range.

    >>> from llmcalc import load_model, roofline
    >>> step = roofline.step_time(
    ...     load_model("llama-3-8b"), "H100-SXM-80GB", batch=1, new=1, past=4095,
    ...     weights="bf16", kv="bf16",
    ... )
    >>> round(roofline.Efficiency().seconds(step) / step.bound_seconds, 12)
    1.0
    >>> mine = roofline.Efficiency(bandwidth=0.85, cache_bandwidth=0.8, kernel_seconds=3e-6)
    >>> round(1e3 * mine.seconds(step), 2)
    6.24
    """

    compute: float = _field(1.0, _share)
    product_seconds: float = _field(0.0, _cost)
    bandwidth: float = _field(1.0, _share)
    kernel_seconds: float = _field(0.0, _cost)
    attention_compute: float = _field(1.0, _share)
    attention_tile: float = _field(0.0, _cost)
    cache_bandwidth: float = _field(1.0, _share)
    activation_passes: float = _field(0.0, _cost)
    score_passes: float = _field(0.0, _cost)
    expansion_bytes: float = _field(0.0, _cost)
    step_seconds: float = _field(0.0, _cost)
    link: float = _field(1.0, _share)
    collective_seconds: float = _field(0.0, _cost)
    sharpness: float = _field(math.inf, _exponent)
    overlap: float = _field(1.0, _overlap)
    stage_overlap: float = _field(1.0, _overlap)

    def seconds(self, step: StepTime) -> Any:
        """Return how long a step takes: a float, or an array for array arguments.

        It is never less than the step's `bound_seconds` and the time of what it exchanges.
        """
        work = Work.of(step)
        return work.whole(sum(part_seconds(self, work).values()))

    def parts(self, step: StepTime) -> Mapping[str, Any]:
        """Return what the seconds of a step are made of; they sum to `seconds`.

        >>> from llmcalc import load_model, roofline
        >>> step = roofline.step_time(
        ...     load_model("llama-3-8b"), "RTX-4090", batch=1, new=1, past=511,
        ...     weights="fp16", kv="fp16",
        ... )
        >>> mine = roofline.Efficiency(bandwidth=0.9, kernel_seconds=5e-6, step_seconds=2e-4)
        >>> for name, seconds in mine.parts(step).items():
        ...     print(f"{name:<22}{1e3 * seconds:7.3f} ms")
        products and attention 16.612 ms
        expanded weights        0.000 ms
        activations             0.000 ms
        kernels                 1.285 ms
        step                    0.200 ms
        exchanges               0.000 ms
        """
        work = Work.of(step)
        return {name: work.whole(part) for name, part in part_seconds(self, work).items()}


class Products(NamedTuple):
    """Matrix products: FLOPs, weight bytes, layers, and packed weights brought to 16 bits.

    `at` numbers the point of the work that each belongs to; `None` is one product at every point.
    """

    at: Indices | None
    flops: Figure
    bytes: Figure
    layers: Any
    packed: Figure


class Attention(NamedTuple):
    """Attention calls: FLOPs, those of one query more in a tile, and cache bytes.

    `query_flops` are of the requests that fill tiles: those of several new tokens.
    """

    at: Indices | None
    flops: Figure
    query_flops: Figure
    bytes: Figure


class Work(NamedTuple):
    """What of a step an efficiency looks at, at each of so many `points`, one after another.

    Figures are numbers, or arrays with one for every point. `other_bytes` are weights that are
    read and not multiplied; `steps` is 1 where a point is a whole step, and 0 where it is a
    kernel; `latencies` weighs each exchange by its ranks, and `given_latency` is what the step
    itself charges for them. `shape` is that of the step's arguments.
    """

    shape: tuple[int, ...] | None
    points: int
    products: tuple[Products, ...]
    attention: tuple[Attention, ...]
    other_bytes: Figure
    activation_bytes: Figure
    score_bytes: Figure
    kernels: Figure
    steps: Figure
    latencies: Figure
    given_latency: Figure
    sent_bytes: Figure
    link: Figure
    peak: Figure
    bandwidth: Figure

    @classmethod
    def of(cls, step: StepTime) -> Work:
        """Return the work of a step."""
        return _Reading(step).all()

    @classmethod
    def of_kernel(
        cls,
        device: DeviceSpec,
        *,
        compute: str,
        product_flops: float = 0.0,
        weight_bytes: float = 0.0,
        activation_bytes: float = 0.0,
        attention_flops: float = 0.0,
        cache_bytes: float = 0.0,
        exchanged_by: int = 0,
        message_bytes: float = 0.0,
    ) -> Work:
        """Return the work of a single kernel: a matrix product, an attention call, an all-reduce.

        A product multiplies `weight_bytes` and reads and writes `activation_bytes`, in the number
        format `compute`; attention reads `cache_bytes`; an all-reduce sums `message_bytes` over
        `exchanged_by` devices. Raises `llmcalc.LlmcalcError` where no link is known.

        >>> from llmcalc import hardware
        >>> from llmcalc.roofline.efficiency import Work
        >>> product = Work.of_kernel(
        ...     hardware.get("H100-SXM-80GB"), compute="bf16", product_flops=2 * 4096**3,
        ...     weight_bytes=2 * 4096**2, activation_bytes=4 * 4096**2,
        ... )
        >>> len(product.products), product.kernels
        (1, 1)
        """
        link = device.link_bytes_per_second_per_direction
        if link is None:
            link = device.host_link_bytes_per_second_per_direction
        if exchanged_by > 1 and link is None:
            raise InvalidValueError("device", device.name, "has no figure for a link")
        products = (Products(None, product_flops, weight_bytes, 1, 0.0),) if product_flops else ()
        attention = (Attention(None, attention_flops, 0.0, cache_bytes),) if attention_flops else ()
        exchanged = exchanged_by > 1
        return cls(
            shape=None,
            points=1,
            products=products,
            attention=attention,
            other_bytes=0.0,
            activation_bytes=activation_bytes,
            score_bytes=0.0,
            kernels=len(products) + len(attention),
            steps=0,
            latencies=_rounds("all-reduce", exchanged_by) if exchanged else 0.0,
            given_latency=0.0,
            sent_bytes=2 * (1 - 1 / exchanged_by) * message_bytes if exchanged else 0.0,
            link=float(link or 1),
            peak=float(device.peak(compute)),
            bandwidth=float(device.bandwidth_bytes_per_second),
        )

    @property
    def expansions(self) -> int:
        """How many matrix products bring packed weights to 16 bits first, in all layers."""
        import numpy as np

        return sum(one.layers for one in self.products if np.any(np.asarray(one.packed) > 0))

    def without_expansion(self) -> Work:
        """Return the work of an engine that multiplies packed weights as they are."""
        products = tuple(one._replace(packed=0.0) for one in self.products)
        return self._replace(products=products)

    def whole(self, values: Figure) -> Figure:
        """Return a figure of every point in the shape of the step's arguments."""
        import numpy as np

        if self.shape is None:
            return float(values)
        return np.broadcast_to(values, (self.points,)).reshape(self.shape)

    @classmethod
    def joined(cls, works: Sequence[Work]) -> Work:
        """Return several works as one, with their points one after another."""
        import numpy as np

        starts = np.cumsum([0, *(work.points for work in works)])

        def items(pick: Callable[[Work], tuple[Any, ...]], kind: Any) -> tuple[Any, ...]:
            found: list[list[Any]] = []
            for work, start in zip(works, starts, strict=False):
                for item in pick(work):
                    at = start + np.arange(work.points)
                    flat = [np.broadcast_to(value, (work.points,)) for value in item[1:]]
                    found.append([at, *flat])
            if not found:
                return ()
            columns = [np.concatenate(column) for column in zip(*found, strict=True)]
            return (kind(columns[0], *(column.astype(float) for column in columns[1:])),)

        flat = {
            name: np.concatenate(
                [np.broadcast_to(getattr(work, name), (work.points,)) for work in works]
            ).astype(float)
            for name in cls._fields[4:]
        }
        products = items(lambda work: work.products, Products)
        attention = items(lambda work: work.attention, Attention)
        return cls(None, int(starts[-1]), products, attention, **flat)


class _Reading:
    """Gathers what a step is made of by the operations that it is timed by."""

    def __init__(self, step: StepTime) -> None:
        self.step, self.work, self.moved = step, step.work, step.moved
        self.shape = self.work.values.shape
        self.points = math.prod(self.shape or ())

    def all(self) -> Work:
        """Return the work."""
        step, moved = self.step, self.moved
        products, attention = tuple(self._products()), tuple(self._attention())
        multiplied = {piece.operation for piece in self.work.fold.pieces if piece.kind == "product"}
        weights = moved.fold.grouped(
            lambda piece: piece.kind == "weights" and piece.operation not in multiplied
        )
        exchanged = step.collectives
        return Work(
            shape=self.shape,
            points=self.points,
            products=products,
            attention=tuple(call for call, _ in attention),
            other_bytes=self._flat(moved.of(weights.get(True, ()))),
            activation_bytes=self._flat(moved.of(moved.fold.of("activations"))),
            score_bytes=self._flat(moved.of(moved.fold.of("scores"))),
            kernels=sum(one.layers for one in products) + sum(layers for _, layers in attention),
            steps=1,
            latencies=sum(one.count * _rounds(one.kind, one.ranks) for one in exchanged),
            given_latency=step.collective_latency_seconds * sum(one.count for one in exchanged),
            sent_bytes=self._flat(sum(one.sent_bytes for one in exchanged)),
            link=step.link_bytes_per_second or 1.0,
            peak=float(step.peak_flops),
            bandwidth=float(step.device.bandwidth_bytes_per_second),
        )

    def _products(self) -> Iterator[Products]:
        """Give the matrix products, each with the weights that it multiplies."""
        read: dict[Operation, list[Piece]] = {}
        for piece in self.moved.fold.pieces:
            if piece.kind == "weights":
                read.setdefault(piece.operation, []).append(piece)
        for operation, pieces in self._of_work("product").items():
            weights = read.get(operation, [])
            yield Products(
                None,
                self._summed(pieces, self.work),
                self._summed(weights, self.moved),
                pieces[0].layers * pieces[0].uses,
                self._brought(weights, pieces[-1].per),
            )

    def _brought(self, weights: list[Piece], count: Count) -> Figure:
        """Return the packed weights that are brought to 16 bits, where there are enough tokens."""
        import numpy as np

        elements = [piece.elements for piece in weights]
        size = sum([piece.size for piece in weights])
        if not elements or size >= _PACKED_BELOW * sum(elements):
            return self._flat(0.0)
        if count.kind == "assigned":  # of the tokens whose choices fall to the rank
            count = TOKENS._replace(all_replicas=count.all_replicas)
        wide = self._flat(self._count(count)) > EXPANDED_FROM
        brought: Figure = 0.0
        for piece, number in zip(weights, elements, strict=True):
            brought = brought + number * self._flat(self._count(piece.per))
        return np.where(wide, brought, 0.0) if self.shape is not None else brought * bool(wide)

    def _attention(self) -> Iterator[tuple[Attention, int]]:
        """Give the attention calls of each kind of layer, and in how many layers they are.

        States are read like caches, in calls that compute nothing.
        """
        mixed: dict[Operation, list[Piece]] = {}
        cached: dict[Operation, list[Piece]] = {}
        for operation, pieces in self._of_work("mixing").items():
            mixed.setdefault(operation[:2], []).extend(pieces)
        for piece in self.moved.fold.pieces:
            if piece.kind in {"cache read", "cache written"}:
                cached.setdefault(piece.operation[:2], []).append(piece)
        for place in dict.fromkeys((*mixed, *cached)):
            pieces = mixed.get(place, [])
            more: Figure = 0.0
            for piece in pieces:
                widest = Count("widest", "keys", piece.per.of)
                more = more + piece.size * self._flat(self._count(widest))
            layers = pieces[0].layers * pieces[0].uses if pieces else 0
            flops, size = self._summed(pieces, self.work), cached.get(place, [])
            yield Attention(None, flops, more, self._summed(size, self.moved)), layers

    def _of_work(self, kind: Kind) -> dict[Operation, list[Piece]]:
        """Return what is computed, by the operation that it belongs to."""
        found: dict[Operation, list[Piece]] = {}
        for piece in self.work.fold.pieces:
            if piece.kind == kind:
                found.setdefault(piece.operation, []).append(piece)
        return found

    def _summed(self, pieces: list[Piece], of: FoldBreakdown[Any, Any]) -> Figure:
        numbers = {count: number for number, count in enumerate(of.fold.counts)}
        return self._flat(of.of(tuple([(numbers[piece.per], piece.size) for piece in pieces])))

    def _count(self, count: Count) -> Any:
        """Return a count of all requests, in the shape of all arguments."""
        values = self.work.workload.values((count,), sum)
        return values.total(((0, 1),))

    def _flat(self, value: Figure) -> Figure:
        """Return a figure as a float, or where it is an array as one for every point."""
        import numpy as np

        if np.ndim(value) == 0:
            return float(value)
        return np.broadcast_to(np.asarray(value, float), self.shape or ()).reshape(-1)


def _rounds(kind: str, ranks: int) -> float:
    """Return how many latencies of two ranks an exchange takes; it grows with their logarithm."""
    return 1.0 if kind == "send" else (1 + math.log2(ranks)) / 2


def part_seconds(e: Any, work: Work) -> dict[str, Figure]:
    """Return the parts of the time of every point of a work, by their names.

    `e` has the parameters of an `Efficiency`, as numbers; or as arrays with a value for every
    point, and then ``e.at(points)`` gives those of some of them.
    """
    serial: Figure = 0.0
    compute_seconds: Figure = 0.0
    memory_seconds: Figure = work.other_bytes / (work.bandwidth * e.bandwidth)
    expanded: Figure = 0.0

    def of(values: Figure, at: Indices | None) -> Figure:
        return values if at is None or not is_array(values) else values[at]

    def summed(values: Figure, at: Indices | None) -> Figure:
        if at is None:
            return values
        import numpy as np

        return np.bincount(at, values, minlength=work.points)

    for one in work.products:
        mine = e if one.at is None else e.at(one.at)
        compute = one.flops / (of(work.peak, one.at) * mine.compute)
        compute = compute + one.layers * mine.product_seconds
        rate = of(work.bandwidth, one.at) * mine.bandwidth
        memory = one.bytes / rate
        serial = serial + summed(_norm(compute, memory, e.sharpness), one.at)
        expanded = expanded + summed(one.packed * mine.expansion_bytes / rate, one.at)
        compute_seconds = compute_seconds + summed(compute, one.at)
        memory_seconds = memory_seconds + summed(memory, one.at)
    for call in work.attention:
        mine = e if call.at is None else e.at(call.at)
        compute = call.flops + mine.attention_tile * call.query_flops
        compute = compute / (of(work.peak, call.at) * mine.attention_compute)
        memory = call.bytes / (of(work.bandwidth, call.at) * mine.cache_bandwidth)
        serial = serial + summed(_norm(compute, memory, e.sharpness), call.at)
        compute_seconds = compute_seconds + summed(compute, call.at)
        memory_seconds = memory_seconds + summed(memory, call.at)
    serial = serial + work.other_bytes / (work.bandwidth * e.bandwidth)
    parallel = _norm(compute_seconds, memory_seconds, e.sharpness)
    moved = e.activation_passes * work.activation_bytes + e.score_passes * work.score_bytes
    return {
        "products and attention": (1 - e.overlap) * serial + e.overlap * parallel,
        "expanded weights": expanded,
        "activations": moved / (work.bandwidth * e.bandwidth),
        "kernels": work.kernels * e.kernel_seconds,
        "step": work.steps * e.step_seconds,
        "exchanges": larger(work.given_latency, work.latencies * e.collective_seconds)
        + work.sent_bytes / (work.link * e.link),
    }


def _norm(a: Figure, b: Figure, exponent: float) -> Figure:
    """Return the norm of two times that are at least 0."""
    most = larger(a, b)
    if exponent == math.inf:
        return most
    return most * (1 + _ratio(smaller(a, b), most) ** exponent) ** (1 / exponent)


def _ratio(a: Figure, b: Figure) -> Figure:
    """Return a / b of numbers that are at least 0, and 0 where both are."""
    return a / (b + (b == 0))
