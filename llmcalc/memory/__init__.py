r"""Memory: parameters, weight bytes, KV cache, and what fits on a device.

Counting:

* `parameters`: parameters of the whole model.
* `layer_parameters`: parameters of one layer of each kind.
* `active_parameters`: those that one token passes through.
* `buffers`: what is stored with the parameters and is none.
* `multi_token_parameters`: those of modules that predict further tokens.
* `weight_bytes`: bytes of the weights on one device.
* `kv_cache_bytes`: bytes that requests hold between steps on one device.

What fits on a device:

* `fit`: whether a batch of requests fits, with what is left or missing, and the working.
* `max_batch_size`: the most requests of a context length that fit.
* `max_context`: the longest context that a batch of requests can have.
* `needed_bytes`: what weights and requests take on the tightest device.
* `usable_bytes`: what of a device's memory there is for them.

Textbook formulas, for one look or for a check by hand:

* `gqa_kv_bytes`: the KV cache of grouped-query attention.

Conventions: figures are per device, of the rank that holds most unless `rank` names another one.
`layout` says how a model is spread over devices (`llmcalc.layouts`); ``tensor_parallel=n`` is
short for ``layout=Layout(tensor_parallel=n)``. Under tensor parallelism every rank holds an equal
share of the heads, of the inner width and of the vocabulary (the first ranks one row more where
it does not divide); norms, position tables and the biases of row-split matrices are replicated,
and KV heads too where there are more ranks than heads. A `batch` is that of the whole layout:
data parallelism distributes it. Nothing is subtracted for activations, fragmentation or the
engine's own use. GB is 10**9 bytes, GiB is 2**30.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.memory.caches import kv_cache_bytes
    from llmcalc.memory.counting import (
        active_parameters,
        buffers,
        layer_parameters,
        multi_token_parameters,
        parameters,
    )
    from llmcalc.memory.fitting import Fit, fit
    from llmcalc.memory.formulas import gqa_kv_bytes
    from llmcalc.memory.limits import (
        ContextLimit,
        max_batch_size,
        max_context,
        needed_bytes,
        usable_bytes,
    )
    from llmcalc.memory.weights import weight_bytes

__all__ = [
    "ContextLimit",
    "Fit",
    "active_parameters",
    "buffers",
    "fit",
    "gqa_kv_bytes",
    "kv_cache_bytes",
    "layer_parameters",
    "max_batch_size",
    "max_context",
    "multi_token_parameters",
    "needed_bytes",
    "parameters",
    "usable_bytes",
    "weight_bytes",
]

exports(
    __name__,
    {
        "caches": ("kv_cache_bytes",),
        "counting": (
            "active_parameters",
            "buffers",
            "layer_parameters",
            "multi_token_parameters",
            "parameters",
        ),
        "fitting": ("Fit", "fit"),
        "formulas": ("gqa_kv_bytes",),
        "limits": (
            "ContextLimit",
            "max_batch_size",
            "max_context",
            "needed_bytes",
            "usable_bytes",
        ),
        "weights": ("weight_bytes",),
    },
    globals(),
)
