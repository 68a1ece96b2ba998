"""Roofline: FLOPs, bytes, arithmetic intensity and the least time of a step.

One attention call, as textbook formulas (`llmcalc.roofline.attention`): `attention_flops`,
`attention_bytes`, `attention_intensity`.

Whole models, as folds over the ledger:

* `flops`: the matrix products of one step, item by item (`llmcalc.roofline.products`).
* `bytes_moved`: what a step reads and writes, item by item (`llmcalc.roofline.traffic`).
* `step_time`: the least time of a step on a device, and what bounds it
  (`llmcalc.roofline.times`).
* `Requests`: requests of another kind in the same step; `experts_touched`: how many experts are
  read (`llmcalc.roofline.counts`).
* `collectives`: what the devices of a layout exchange (`llmcalc.roofline.communication`).
* `generation`: the least time of a prompt and its new tokens (`llmcalc.roofline.generations`).
* `sweep`, `frontier`: steps for every device, layout and format, as a `Sweep`, a labelled table
  (`llmcalc.roofline.sweeps`).
"""

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.roofline.attention import (
        Algorithm,
        attention_bytes,
        attention_flops,
        attention_intensity,
    )
    from llmcalc.roofline.communication import Collective, collectives
    from llmcalc.roofline.counts import ExpertReads, Requests, experts_touched
    from llmcalc.roofline.generations import Generation, generation
    from llmcalc.roofline.products import flops
    from llmcalc.roofline.sweeps import Sweep, frontier, sweep
    from llmcalc.roofline.times import ItemTime, StepTime, step_time
    from llmcalc.roofline.traffic import bytes_moved

__all__ = [
    "Algorithm",
    "Collective",
    "ExpertReads",
    "Generation",
    "ItemTime",
    "Requests",
    "StepTime",
    "Sweep",
    "attention_bytes",
    "attention_flops",
    "attention_intensity",
    "bytes_moved",
    "collectives",
    "experts_touched",
    "flops",
    "frontier",
    "generation",
    "step_time",
    "sweep",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "attention": ("Algorithm", "attention_bytes", "attention_flops", "attention_intensity"),
        "communication": ("Collective", "collectives"),
        "counts": ("ExpertReads", "Requests", "experts_touched"),
        "generations": ("Generation", "generation"),
        "products": ("flops",),
        "sweeps": ("Sweep", "frontier", "sweep"),
        "times": ("ItemTime", "StepTime", "step_time"),
        "traffic": ("bytes_moved",),
    },
    globals(),
)
