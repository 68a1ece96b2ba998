"""Roofline: FLOPs, bytes, arithmetic intensity and the least time of a step.

One attention call, as textbook formulas (`llmcalc.roofline.attention`): `attention_flops`,
`attention_bytes`, `attention_intensity`.

Whole models, as folds over the ledger:

* `flops`: the matrix products of one step, item by item (`llmcalc.roofline.products`).
* `bytes_moved`: what a step reads and writes, item by item (`llmcalc.roofline.traffic`).
* `step_time`: the least time of a step on a device, and what bounds it
  (`llmcalc.roofline.times`).
* `Requests`: requests of another kind in the same step (`llmcalc.folds.workloads`).
* `experts_touched`: how many experts are read (`llmcalc.roofline.experts`).
* `collectives`: what the devices of a layout exchange (`llmcalc.roofline.communication`).
* `generation`: the least time of a prompt and its new tokens (`llmcalc.roofline.generations`).
* `sweep`, `frontier`: steps for every device, layout and format, as a `Sweep`, a labelled table
  (`llmcalc.roofline.sweeps`).

From these bounds to forecasts:

* `Efficiency`: what share of a device an engine uses, and the time that a step then takes
  (`llmcalc.roofline.efficiency`); those of engines that were calibrated
  (`llmcalc.roofline.efficiencies`).
* `forecast`: the most likely time of a generation; `run`: its steps
  (`llmcalc.roofline.forecasts`).
* `Measurement`: a measured time; `fit`: an efficiency from a few of them
  (`llmcalc.roofline.fitting`).
"""

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.folds.counts import ExpertReads
    from llmcalc.folds.workloads import Requests
    from llmcalc.roofline.attention import (
        Algorithm,
        attention_bytes,
        attention_flops,
        attention_intensity,
    )
    from llmcalc.roofline.communication import Collective, collectives
    from llmcalc.roofline.efficiencies import Calibration
    from llmcalc.roofline.efficiency import Efficiency
    from llmcalc.roofline.experts import experts_touched
    from llmcalc.roofline.fitting import Fit, Measurement, fit
    from llmcalc.roofline.forecasts import Forecast, Run, forecast, run
    from llmcalc.roofline.generations import Generation, generation
    from llmcalc.roofline.products import flops
    from llmcalc.roofline.sweeps import Sweep, frontier, sweep
    from llmcalc.roofline.times import ItemTime, StepTime, step_time
    from llmcalc.roofline.traffic import bytes_moved

__all__ = [
    "Algorithm",
    "Calibration",
    "Collective",
    "Efficiency",
    "ExpertReads",
    "Fit",
    "Forecast",
    "Generation",
    "ItemTime",
    "Measurement",
    "Requests",
    "Run",
    "StepTime",
    "Sweep",
    "attention_bytes",
    "attention_flops",
    "attention_intensity",
    "bytes_moved",
    "collectives",
    "experts_touched",
    "fit",
    "flops",
    "forecast",
    "frontier",
    "generation",
    "run",
    "step_time",
    "sweep",
]

exports(
    __name__,
    {
        "attention": ("Algorithm", "attention_bytes", "attention_flops", "attention_intensity"),
        "communication": ("Collective", "collectives"),
        "efficiencies": ("Calibration",),
        "efficiency": ("Efficiency",),
        "experts": ("ExpertReads", "experts_touched"),
        "fitting": ("Fit", "Measurement", "fit"),
        "forecasts": ("Forecast", "Run", "forecast", "run"),
        "generations": ("Generation", "generation"),
        "products": ("flops",),
        "sweeps": ("Sweep", "frontier", "sweep"),
        "times": ("ItemTime", "StepTime", "step_time", "Requests"),
        "traffic": ("bytes_moved",),
    },
    globals(),
)
