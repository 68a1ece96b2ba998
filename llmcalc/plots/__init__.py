"""Pictures of what the library computes (extra ``plot``).

Steps (`llmcalc.plots.steps`):

* `roofline`: what a device reaches at most against arithmetic intensity, and where the kinds of
  items of a step are.
* `time_breakdown`: the time of each item or kind of item, of computing and of moving bytes.

Sweeps (`llmcalc.plots.sweeps`):

* `step_times`: the time of steps against batch, context or tokens.
* `throughput`: tokens per second against them.
* `frontier`: throughput against interactivity.

Memory (`llmcalc.plots.memories`):

* `memory_stack`: weights, cache and what is free against context.

Attention, against the ridge point of a device (`llmcalc.plots.attention`):

* `prefill_intensity`: arithmetic intensity of prefill attention against context.
* `decode_intensity`: arithmetic intensity of decode attention against batch size.

Measurements (`llmcalc.plots.measurements`):

* `latency`: generation time with and without cache against prompt length.
* `LatencyRow`: what `latency` reads of a measurement.

Each function draws on the Axes it is given, or on one of a new figure, and returns it:
``ax.figure.savefig("plot.png")`` writes it to a file. Nothing is shown, and pyplot, which keeps
figures alive, is not used; matplotlib is imported when a picture is first drawn. Colours are
those of Okabe and Ito, "Color universal design" (2008), and lines differ in their marks as well,
so that they are told apart without colours.
"""

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.plots.attention import decode_intensity, prefill_intensity
    from llmcalc.plots.measurements import LatencyRow, latency
    from llmcalc.plots.memories import memory_stack
    from llmcalc.plots.steps import roofline, time_breakdown
    from llmcalc.plots.sweeps import frontier, step_times, throughput

__all__ = [
    "LatencyRow",
    "decode_intensity",
    "frontier",
    "latency",
    "memory_stack",
    "prefill_intensity",
    "roofline",
    "step_times",
    "throughput",
    "time_breakdown",
]

exports(
    __name__,
    {
        "attention": ("decode_intensity", "prefill_intensity"),
        "measurements": ("LatencyRow", "latency"),
        "memories": ("memory_stack",),
        "steps": ("roofline", "time_breakdown"),
        "sweeps": ("frontier", "step_times", "throughput"),
    },
    globals(),
)
