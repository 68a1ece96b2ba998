"""Roofline: FLOPs, bytes, arithmetic intensity and the least time of a step.

One attention call, as textbook formulas (`llmcalc.roofline.attention`): `attention_flops`,
`attention_bytes`, `attention_intensity`.

Whole models, as folds over the ledger:

* `flops`: the matrix products of one step, item by item (`llmcalc.roofline.products`).
* `bytes_moved`: what a step reads and writes, item by item (`llmcalc.roofline.traffic`).
* `step_time`: the least time of a step on a device, and what bounds it
  (`llmcalc.roofline.times`).
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
    from llmcalc.roofline.products import flops
    from llmcalc.roofline.times import ItemTime, StepTime, step_time
    from llmcalc.roofline.traffic import ExpertReads, bytes_moved, experts_touched

__all__ = [
    "Algorithm",
    "ExpertReads",
    "ItemTime",
    "StepTime",
    "attention_bytes",
    "attention_flops",
    "attention_intensity",
    "bytes_moved",
    "experts_touched",
    "flops",
    "step_time",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "attention": ("Algorithm", "attention_bytes", "attention_flops", "attention_intensity"),
        "products": ("flops",),
        "times": ("ItemTime", "StepTime", "step_time"),
        "traffic": ("ExpertReads", "bytes_moved", "experts_touched"),
    },
    globals(),
)
