"""Serving: what an engine allocates, the budget it has, and what it prints when it starts.

Cache allocation, side by side under the policies that engines have:

* `allocate`: what one request takes under a policy: ideal, contiguous or paged.
* `policies`: the same under all three.
* `Allocation`: bytes and blocks of a request; tokens, blocks and requests of a pool.
* `CacheGroup`: layers that share a block table.

The budget of a device:

* `budget`: visible memory x utilisation less weights, activations and the rest: the cache pool.
* `Budget`: the terms, and what the pool holds.
* `loaded_weights`: what an engine's weights take once they are loaded.
* `activation_peak`: the most that a step's intermediate results take.
* `Profile`, `profile`, `profiles`: first names of what `llmcalc.engines` has.

Start-up logs:

* `parse_log`: the figures of a log of vLLM, SGLang, TensorRT-LLM or llama.cpp.
* `EngineLog`: these figures, in bytes, and which of them contradict each other.
* `reconcile`: printed against computed, term by term, and what explains a gap.
* `Reconciliation`, `Comparison`, `Identity`, `Figure`: its parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.serving.activations import activation_peak
    from llmcalc.serving.budgets import Budget, budget
    from llmcalc.serving.comparisons import Comparison, Reconciliation
    from llmcalc.serving.engines import Profile, profile, profiles
    from llmcalc.serving.figures import Figure, Identity
    from llmcalc.serving.loading import loaded_weights
    from llmcalc.serving.logs import EngineLog, parse_log
    from llmcalc.serving.paging import Allocation, CacheGroup, allocate, policies
    from llmcalc.serving.reconciling import reconcile

__all__ = [
    "Allocation",
    "Budget",
    "CacheGroup",
    "Comparison",
    "EngineLog",
    "Figure",
    "Identity",
    "Profile",
    "Reconciliation",
    "activation_peak",
    "allocate",
    "budget",
    "loaded_weights",
    "parse_log",
    "policies",
    "profile",
    "profiles",
    "reconcile",
]

exports(
    __name__,
    {
        "activations": ("activation_peak",),
        "budgets": ("Budget", "budget"),
        "comparisons": ("Comparison", "Reconciliation"),
        "engines": ("Profile", "profile", "profiles"),
        "figures": ("Figure", "Identity"),
        "loading": ("loaded_weights",),
        "logs": ("EngineLog", "parse_log"),
        "paging": ("Allocation", "CacheGroup", "allocate", "policies"),
        "reconciling": ("reconcile",),
    },
    globals(),
)
