"""Searches: the least that serves a workload, or what is short.

* `fewest_devices`: the fewest devices of one kind.
* `smallest_tensor_parallel`: the smallest degree of tensor parallelism.
* `widest_format`: the widest of some formats of the weights; by default those of `WIDTHS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from llmcalc.boundary import several, whole_number
from llmcalc.folds.storage import Formats
from llmcalc.hardware import DeviceSpec
from llmcalc.layouts import Layout, chosen
from llmcalc.planning.needs import Option, Question, offer
from llmcalc.planning.placements import Answer
from llmcalc.planning.possible import layouts_on
from llmcalc.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmcalc.boundary import Int
    from llmcalc.engines.engine import Engine
    from llmcalc.folds.storage import StateFormat
    from llmcalc.formats import Format, Scheme

__all__ = ["WIDTHS", "fewest_devices", "smallest_tensor_parallel", "widest_format"]

#: The formats that `widest_format` tries, where nothing else is said.
WIDTHS: Final = ("fp32", "bf16", "fp8", "int4")


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
) -> Answer:
    """Return the fewest devices that hold the workload, in the layout that leaves most.

    `batch` requests of `context` tokens are those of all devices together. `device` is a name, a
    spec, or bytes of memory, of which there is `share` less `reserved_bytes`. Every number up to
    `max_devices` is tried with every layout that the model and the `engine` allow. Raises
    `llmcalc.LlmcalcError` for what is unknown or no number; what does not fit is an answer.

    >>> from llmcalc import load_model, planning
    >>> answer = planning.fewest_devices(
    ...     load_model("DeepSeek-V3"), device="H100-SXM-80GB", context=32768, batch=8,
    ...     weights="fp8", kv="bf16",
    ... )
    >>> print(answer)
    9 x H100-SXM-80GB, pp9, weights fp8, kv bf16
    """
    question = Question(spec, context, batch, [Formats.given(weights, kv, state, index)])
    one = offer(device, share, reserved_bytes)
    most = whole_number(max_devices, "max_devices", minimum=1)
    whole = question.choices[0].weight_bytes
    tried: list[Option] = []
    for count in range(1, most + 1):
        # The ranks of a layout hold the whole model at least.
        if count * one.usable < whole and count < most:
            continue
        options = question.options(layouts_on(spec, count, engine))
        fitting = [option for option in options if option.fits(one)]
        if fitting:
            return question.demand.placement(min(fitting, key=lambda option: option.needed), one)
        tried += options
    return question.shortfall(tried, [one])


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
) -> Answer:
    """Return the smallest degree of tensor parallelism that holds the workload.

    The arguments are those of `fewest_devices`, and so is what it raises; degrees that the model
    does not allow are passed over.

    >>> from llmcalc import load_model, planning
    >>> answer = planning.smallest_tensor_parallel(
    ...     load_model("Llama-3.1-70B"), device="H100-SXM-80GB", context=8192, batch=8,
    ...     weights="bf16", kv="bf16",
    ... )
    >>> answer.layout.tensor_parallel, answer.max_batch_size
    (2, 11)
    """
    question = Question(spec, context, batch, [Formats.given(weights, kv, state, index)])
    one = offer(device, share, reserved_bytes)
    most = whole_number(max_devices, "max_devices", minimum=1)
    degrees = (Layout(tensor_parallel=n, engine=engine) for n in range(1, most + 1))
    tried: list[Option] = []
    for layout in question.allowed(degrees):
        for option in question.options([layout]):
            if option.fits(one):
                return question.demand.placement(option, one)
            tried.append(option)
    return question.shortfall(tried, [one])


def widest_format(
    spec: ModelSpec,
    *,
    device: str | DeviceSpec | Int,
    context: Int,
    kv: str | Format,
    weights: str | Format | Scheme | Iterable[str | Format | Scheme] = WIDTHS,
    batch: Int = 1,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    share: float = 1.0,
    reserved_bytes: Int = 0,
    layout: Layout | None = None,
) -> Answer:
    """Return the widest of several formats of the weights in which the workload fits a layout.

    The widest is the one in which the whole model takes most bytes; of those that take as many it
    is the first. `device`, `share` and `reserved_bytes` are those of `fewest_devices`. Raises
    `llmcalc.LlmcalcError` for what is unknown, and for a `layout` that `Layout.check` refuses.

    >>> from llmcalc import load_model, planning
    >>> answer = planning.widest_format(
    ...     load_model("Llama-3.1-70B"), device="H100-SXM-80GB", context=8192, kv="fp8",
    ...     weights=["bf16", "fp8", "awq-int4-g128"],
    ... )
    >>> answer.weights, answer.max_batch_size
    ('fp8', 11)
    """
    place = chosen(1, layout)
    place.first_ranks(spec)  # refuses what the layout's own rules do
    given = [Formats.given(one, kv, state, index) for one in several(weights, "weights")]
    question = Question(spec, context, batch, given)
    one = offer(device, share, reserved_bytes)
    options = question.options([place])
    fitting = [option for option in options if option.fits(one)]
    if not fitting:
        return question.shortfall(options, [one])
    best = max(fitting, key=lambda option: option.choice.weight_bytes)
    return question.demand.placement(best, one)
