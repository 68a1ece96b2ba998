r"""How long a generation takes on an engine: its steps, and their time under an `Efficiency`.

* `run`: the steps that an engine makes of a batch of equal requests.
* `Run`: these steps, their bound, and their time under an efficiency.
* `forecast`: the times of a generation under a calibrated efficiency, or one of your own.
* `Forecast`: its answer: first token, later tokens, rates, and what it rests on.

A prompt is read in one step, or in chunks; each further token takes a step of its own. Pipeline
stages pass a step on one after another; where a prompt comes in several chunks, or a batch in
several micro-batches, stages work on several of them at once.
"""

from __future__ import annotations

from functools import cached_property
from math import floor, inf
from typing import TYPE_CHECKING, Any

import attrs

from llmcalc import hardware
from llmcalc.boundary import whole_number
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.hardware import DeviceSpec
from llmcalc.layouts import Layout
from llmcalc.roofline.efficiencies import Calibration, Fallback, conventions, get
from llmcalc.roofline.efficiency import Efficiency, Work
from llmcalc.roofline.generations import decoding
from llmcalc.roofline.times import StepTime, step_time
from llmcalc.spec.model import ModelSpec, check_spec
from llmcalc.units import Seconds, TokensPerSecond, format_quantity

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    from llmcalc.boundary import Int
    from llmcalc.engines.engine import Engine
    from llmcalc.formats import Format, Scheme

__all__ = ["Forecast", "Run", "forecast", "run"]


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Run(Described):
    """The steps of `batch` requests of `prompt` tokens that generate `new_tokens` each.

    `prefill` holds the steps that read the prompt and give the first token, as arrays, each of
    them `prefill_times` over; `decode` those of further tokens, each `decode_times` over. Either
    is `None` where there is none. They pass so many `stages`; the prefill does so in
    `micro_batches`, of which the stages work on several at once: that could make up for the share
    `pipeline_gain` of its time. `devices` serve the batch together.
    """

    batch: int
    prompt: int
    new_tokens: int
    prefill: StepTime | None
    prefill_times: float
    decode: StepTime | None
    decode_times: float
    devices: int
    stages: int
    micro_batches: float
    pipeline_gain: float

    def __repr__(self) -> str:
        bound = format_quantity(self.seconds(), Seconds)
        tokens = f"{self.prompt} + {self.new_tokens} tokens"
        return f"<Run of {self.batch} x {tokens} on {self.place}: at least {bound}>"

    @property
    def place(self) -> str:
        """The devices, in words."""
        step = self.prefill or self.decode
        return f"{self.devices} devices" if step is None else f"{self.devices} x {step.device.name}"

    def prefill_seconds(self, efficiency: Efficiency | None = None) -> float:
        """Return the time to the first token: the bound, or the forecast of an efficiency."""
        if self.prefill is None:
            return 0.0
        if efficiency is None:
            at_once = min(self.stages, self.micro_batches)
            return float(self.prefill.bound_seconds.sum()) * self.prefill_times / at_once
        seconds = float(efficiency.seconds(self.prefill).sum()) * self.prefill_times
        return seconds * (1 - efficiency.stage_overlap * self.pipeline_gain)

    def token_seconds(self, efficiency: Efficiency | None = None) -> NDArray[floating[Any]]:
        """Return the time of each further token, along the growing context.

        The bound lets every stage work on a request of its own.
        """
        import numpy as np

        if self.decode is None:
            return np.zeros(0)
        if efficiency is None:
            at_once = min(self.stages, self.batch)
            return np.asarray(self.decode.bound_seconds, float) / at_once
        return np.asarray(efficiency.seconds(self.decode), float)

    def decode_seconds(self, efficiency: Efficiency | None = None) -> float:
        """Return the time of all further tokens."""
        return float(self.token_seconds(efficiency).sum()) * self.decode_times

    def seconds(self, efficiency: Efficiency | None = None) -> float:
        """Return the time of all tokens."""
        return self.prefill_seconds(efficiency) + self.decode_seconds(efficiency)


def run(
    spec: ModelSpec,
    device: str | DeviceSpec,
    *,
    prompt: Int,
    new_tokens: Int,
    batch: Int = 1,
    weights: str | Format | Scheme,
    kv: str | Format,
    layout: Layout | None = None,
    chunk: Int | None = None,
    micro_batch_tokens: Int | None = None,
    in_flight: Int | None = None,
    queue: Int | None = None,
    layer_launches: Int | None = None,
    samples: Int | None = None,
    **options: Any,
) -> Run:
    """Return the steps that an engine makes of a batch of equal requests.

    The prompt is read in steps of `chunk` tokens, by default in one; with `micro_batch_tokens`
    pipeline stages halve the batch until a micro-batch has no more tokens than that. Without a
    prompt every new token is a step, the first one from an empty context.

    Stages have at most `in_flight` micro-batches between them at once. Where one host launches the
    kernels of all stages, in order, it waits for a device that has `queue` launches before it;
    a layer takes `layer_launches`, and one more for each product whose weights are expanded.

    `samples` steps stand for all of `new_tokens`, evenly spread. `options` are further arguments
    of `llmcalc.roofline.step_time`; without `mla` among them, latent attention is expanded for the
    prompt and absorbed for further tokens.

    >>> from llmcalc import load_model, roofline
    >>> steps = roofline.run(
    ...     load_model("llama-3-8b"), "H100-SXM-80GB", prompt=4096, new_tokens=257,
    ...     weights="bf16", kv="bf16",
    ... )
    >>> round(steps.seconds(), 3), round(steps.seconds(roofline.Efficiency(bandwidth=0.8)), 3)
    (1.252, 1.538)
    """
    import numpy as np

    check_spec(spec)
    tokens = whole_number(prompt, "prompt")
    new = whole_number(new_tokens, "new_tokens")
    requests = whole_number(batch, "batch", minimum=1)
    if tokens + new == 0:
        raise InvalidValueError("prompt", prompt, "or new_tokens must be at least 1")
    limit = spec.max_positions
    if limit is not None and tokens + new > limit + 1:  # the last token is never read
        raise InvalidValueError(
            "prompt", tokens, f"and {new} new tokens must be at most {limit} positions"
        )
    own = Layout() if layout is None else layout
    given = {"weights": weights, "kv": kv, "layout": layout, **options}
    stages = own.pipeline_parallel
    most = inf if in_flight is None else whole_number(in_flight, "in_flight", minimum=1)
    waiting = None if queue is None else whole_number(queue, "queue", minimum=1)
    each = 0 if queue is None else whole_number(layer_launches, "layer_launches", minimum=1)
    prefill, times, micro_batches = None, 1.0, 1.0
    if tokens:
        width = tokens if chunk is None else whole_number(chunk, "chunk", minimum=1)
        past = np.arange(0, tokens, width)
        part = requests
        if micro_batch_tokens is not None and stages > 1:
            widest = whole_number(micro_batch_tokens, "micro_batch_tokens", minimum=1)
            part = _micro_batch(requests, tokens, stages, widest)
        times = requests / part
        micro_batches = times * len(past)
        prefill = step_time(
            spec, device, batch=part, new=np.minimum(width, tokens - past), past=past, **given
        )
    gain = 0.0
    if prefill is not None and stages > 1 and micro_batches > 1:
        expanded = 0 if waiting is None else Work.of(prefill).expansions
        launches = (each * spec.num_layers + expanded) / stages
        queued = inf if waiting is None else waiting / launches
        gain = _pipeline_gain(stages, round(micro_batches), queued, most)
    steps = new - 1 if tokens else new
    decode, points = None, steps
    if steps > 0:
        if samples is not None:
            points = min(steps, whole_number(samples, "samples", minimum=1))
        past = tokens + ((np.arange(points) + 0.5) * steps / points).astype(np.int64)
        decode = step_time(spec, device, batch=requests, new=1, past=past, **decoding(given))
    return Run(
        batch=requests,
        prompt=tokens,
        new_tokens=new,
        prefill=prefill,
        prefill_times=times,
        decode=decode,
        decode_times=steps / points if points > 0 else 1.0,
        devices=own.devices,
        stages=stages,
        micro_batches=micro_batches,
        pipeline_gain=gain,
    )


def _pipeline_gain(stages: int, micro_batches: int, queued: float, in_flight: float) -> float:
    """Return which share of their time stages save that work on several micro-batches at once.

    In units of a stage of one micro-batch. A micro-batch starts when the one before it has left
    the first stage, when one less than `in_flight` are under way, and when the host is through
    with launching the one before it: when the last device has no more than `queued` stages' worth
    of launches before it.
    """
    starts: list[float] = []
    whole = floor(min(queued, micro_batches))
    for number in range(micro_batches):
        waits = [0.0]
        if number >= 1:
            waits.append(starts[-1] + 1)
        if number > whole:
            waits.append(starts[number - 1 - whole] + stages - (queued - whole))
        if number >= in_flight:
            waits.append(starts[number - int(in_flight)] + stages)
        starts.append(max(waits))
    return 1 - (starts[-1] + stages) / (micro_batches * stages)


def _micro_batch(requests: int, tokens: int, stages: int, most: int) -> int:
    """Return the requests of a micro-batch, as FasterTransformer deals a batch out.

    Source: FasterTransformer ``utils/nccl_utils.cc`` (``getLocalBatchSize``).
    """
    part = requests // stages if requests % stages == 0 else requests
    while part * tokens > most and part % 2 == 0:
        part //= 2
    return part


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Forecast(Described):
    """The times of a `run` under the efficiency of a `calibration`; see `forecast`."""

    run: Run
    calibration: Calibration

    def __repr__(self) -> str:
        rate = format_quantity(self.tokens_per_second, TokensPerSecond)
        first = format_quantity(self.first_token_seconds, Seconds)
        by = self.calibration.engine or "an efficiency of its own"
        return f"<Forecast for {by} on {self.run.place}: {rate}, the first token after {first}>"

    @property
    def efficiency(self) -> Efficiency:
        """The efficiency that the times are of."""
        return self.calibration.efficiency

    @cached_property
    def first_token_seconds(self) -> float:
        """The time to the first token."""
        return self.run.prefill_seconds(self.efficiency)

    @cached_property
    def token_seconds(self) -> NDArray[floating[Any]]:
        """The time of every further token, along the growing context."""
        return self.run.token_seconds(self.efficiency)

    @property
    def mean_token_seconds(self) -> float | None:
        """The mean time of a further token; `None` where there is none."""
        return float(self.token_seconds.mean()) if len(self.token_seconds) else None

    @property
    def seconds(self) -> float:
        """The time of all tokens."""
        return self.first_token_seconds + float(self.token_seconds.sum()) * self.run.decode_times

    @property
    def bound_seconds(self) -> float:
        """The least time that all tokens could take; never more than `seconds`."""
        return self.run.seconds()

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all requests, by the time of all."""
        return self.run.batch * self.run.new_tokens / self.seconds

    @property
    def tokens_per_second_per_device(self) -> float:
        """New tokens of all requests, by the time of all and the number of devices."""
        return self.tokens_per_second / self.run.devices

    @property
    def tokens_per_second_per_user(self) -> float | None:
        """New tokens of one request by the time of further tokens; `None` where there is none."""
        mean = self.mean_token_seconds
        return None if mean is None else 1 / mean


def forecast(
    spec: ModelSpec,
    device: str | DeviceSpec,
    *,
    engine: str | Engine | None = None,
    efficiency: Efficiency | Calibration | None = None,
    at_least: Fallback = "device",
    prompt: Int,
    new_tokens: Int,
    batch: Int = 1,
    weights: str | Format | Scheme,
    kv: str | Format,
    layout: Layout | None = None,
    **options: Any,
) -> Forecast:
    """Return how long a generation takes, not at least but most likely.

    Name an `engine` (`llmcalc.engines`) whose calibration on this device is taken, with its
    conventions (how it reads prompts, whether attention is fused, in which number format it
    multiplies; `options` override them); or give an `efficiency` of your own, which
    `llmcalc.roofline.fit` makes from a few measurements. Where the engine is not calibrated on the
    device, this is an error that names what is known, unless `at_least` allows a coarser
    calibration (`llmcalc.roofline.efficiencies` has the order); the forecast's `calibration.level`
    says which one was taken. `options` are those of `run`. How well such forecasts do is on the
    page [Forecasts](../reference/forecasts.md).

    >>> from llmcalc import load_model, roofline
    >>> answer = roofline.forecast(
    ...     load_model("llama-3-8b"), "RTX-6000-Ada", engine="llama.cpp", prompt=512,
    ...     new_tokens=128, weights="Q4_K_M", kv="fp16",
    ... )
    >>> answer.calibration.level, answer.seconds > answer.bound_seconds
    ('device', True)
    """
    chip = hardware.get(device)
    if (engine is None) == (efficiency is None):
        raise InvalidValueError("engine", engine, "or an efficiency must be given, and not both")
    if engine is not None:
        found = get(engine, chip, at_least=at_least)
        options = {**conventions(engine, chip), **options}
    elif isinstance(efficiency, Calibration):
        found = efficiency
    elif isinstance(efficiency, Efficiency):
        found = Calibration.own(efficiency)
    else:
        raise InvalidValueError("efficiency", efficiency, "must be an Efficiency or a Calibration")
    steps = run(
        spec,
        chip,
        prompt=whole_number(prompt, "prompt", minimum=1),
        new_tokens=whole_number(new_tokens, "new_tokens", minimum=1),
        batch=batch,
        weights=weights,
        kv=kv,
        layout=layout,
        **options,
    )
    return Forecast(run=steps, calibration=found)
