r"""Planning: which devices, how many, in which layout and which formats.

* `plan`: all of them that serve a workload, ranked: a `Plan`, which is a table (`COLUMNS`).
* `fewest_devices`: the fewest devices of one kind that do.
* `smallest_tensor_parallel`: the smallest degree of tensor parallelism that does.
* `widest_format`: the widest of some formats of the weights that does.
* `Placement`: one way to serve a workload; `DoesNotFit`: what is short, and by how much; an
  `Answer` is either of them.
* `possible_layouts`: the layouts that a number of devices allows for a model.

What is tried where nothing else is said: `COUNTS` of devices, and the formats `WIDTHS`. What a plan
is ranked by is an `Order`.

The largest batch and the longest context of a layout are `llmcalc.memory.max_batch_size` and
`llmcalc.memory.max_context`. All answers are exact: what is found fits on every rank, and one
device, degree or format less does not.

Conventions: `context` is in tokens a request and `batch` counts the requests of the whole layout.
Of each device's memory a `share` is taken, less `reserved_bytes` for activations and the engine's
own use; by default all of it. `llmcalc.serving.budget` says what an engine takes. All sizes are
bytes. A model is given as a `ModelSpec`, an engine by any name of `llmcalc.engines` in any case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.planning.placements import Answer, DoesNotFit, Placement
    from llmcalc.planning.plans import COLUMNS, COUNTS, Order, Plan, plan
    from llmcalc.planning.possible import possible_layouts
    from llmcalc.planning.searches import (
        WIDTHS,
        fewest_devices,
        smallest_tensor_parallel,
        widest_format,
    )

__all__ = [
    "COLUMNS",
    "COUNTS",
    "WIDTHS",
    "Answer",
    "DoesNotFit",
    "Order",
    "Placement",
    "Plan",
    "fewest_devices",
    "plan",
    "possible_layouts",
    "smallest_tensor_parallel",
    "widest_format",
]

exports(
    __name__,
    {
        "placements": ("Answer", "DoesNotFit", "Placement"),
        "plans": ("COLUMNS", "COUNTS", "Order", "Plan", "plan"),
        "possible": ("possible_layouts",),
        "searches": ("WIDTHS", "fewest_devices", "smallest_tensor_parallel", "widest_format"),
    },
    globals(),
)
