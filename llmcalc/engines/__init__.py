"""Engines: what is known of the engines that serve models, each under one name.

What a layout follows, how a budget comes about and what a forecast knows hang on an `Engine`,
which every one of these takes by its name, in whatever case it is written:

* `get`: an engine by its name; `names`: the names.
* `Engine`: its placement, its cache pool, its calibration, each with sources; build your own.
* `DEFAULT`: the engine of every question that names none.
* `canonical`: a name as it is listed.
* `versions`, `of_version`: the known versions of an engine, and what to take for another one.
* `placement_of`, `with_pool`, `with_calibration`: what layouts, budgets and forecasts need of an
  engine, or a refusal.

Its rules:

* `Placement`: how it spreads a model over devices.
* `PoolRule`: how it comes to its cache pool: `OfVisible`, `OfFree`, `OfRest`, `Cells`.
* `Used`: what a device holds beside the pool.
* `ActivationRule`, `Mxfp4Kernels`: what it allocates for steps, and for experts.
* `Conventions`: how it computes a step.
* `LogWords`: what the figures of its start-up log mean.

Each engine has a module of its own, and measured numbers are in ``llmcalc/data/engines.json``.
The page [Add an engine](../how-to/add-an-engine.md) adds one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.engines.engine import (
        ActivationRule,
        Conventions,
        Engine,
        LogWords,
        Mxfp4Kernels,
    )
    from llmcalc.engines.placement import Placement
    from llmcalc.engines.pools import Cells, OfFree, OfRest, OfVisible, PoolRule, Used
    from llmcalc.engines.registry import (
        DEFAULT,
        canonical,
        get,
        names,
        of_version,
        placement_of,
        versions,
        with_calibration,
        with_pool,
    )

__all__ = [
    "DEFAULT",
    "ActivationRule",
    "Cells",
    "Conventions",
    "Engine",
    "LogWords",
    "Mxfp4Kernels",
    "OfFree",
    "OfRest",
    "OfVisible",
    "Placement",
    "PoolRule",
    "Used",
    "with_calibration",
    "canonical",
    "get",
    "names",
    "of_version",
    "placement_of",
    "versions",
    "with_pool",
]

exports(
    __name__,
    {
        "engine": ("ActivationRule", "Conventions", "Engine", "LogWords", "Mxfp4Kernels"),
        "placement": ("Placement",),
        "pools": ("Cells", "OfFree", "OfRest", "OfVisible", "PoolRule", "Used"),
        "registry": (
            "DEFAULT",
            "with_calibration",
            "canonical",
            "get",
            "names",
            "of_version",
            "placement_of",
            "versions",
            "with_pool",
        ),
    },
    globals(),
)
