"""Small models run for real: what their caches hold, and the FLOPs that PyTorch counts.

* `measure`: what a run measures.
* `counted_flops`, `cache_bytes`: what the library says of the same.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from llmcalc import ModelSpec, memory, roofline
from tests.modules import new_module

BATCH, TOKENS = 2, 24

#: What a module calls its cache: in its result, and among its arguments.
_CACHES = ("past_key_values", "cache_params", "state")


class Measured(NamedTuple):
    """Bytes and FLOPs of a prefill and of a decode step after it, `None` where there is none."""

    prefill_flops: int
    decode_flops: int | None
    prefill_cache: int | None
    decode_cache: int | None


def measure(config: Any) -> Measured:
    """Run a model in float32 on random tokens: a prefill without cache, one with, and a step.

    Raises whatever the module raises for a configuration that it cannot run.
    """
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    module = new_module(config, **eager).eval().requires_grad_(False)
    tokens = torch.randint(5, min(config.vocab_size, 60), (BATCH, TOKENS))
    with torch.no_grad():
        prefill_flops, _ = _counted(module, input_ids=tokens, use_cache=False)
        result = module(input_ids=tokens, use_cache=True)
        name = next((name for name in _CACHES if getattr(result, name, None) is not None), None)
        if name is None:
            return Measured(prefill_flops, None, None, None)
        cache = result[name]
        prefill_cache = _bytes(cache)
        argument = name if name in inspect.signature(module.forward).parameters else _CACHES[0]
        step: dict[str, Any] = {"input_ids": tokens[:, :1], argument: cache, "use_cache": True}
        decode_flops, result = _counted(module, **step)
        return Measured(prefill_flops, decode_flops, prefill_cache, _bytes(result[name]))


def counted_flops(spec: ModelSpec, new: int, past: int) -> int:
    """Return the FLOPs of a step of `BATCH` requests, by the convention of transformers."""
    flops = roofline.flops(
        spec, batch=BATCH, new=new, past=past, logits="all", convention="transformers"
    )
    return int(flops.total)


def cache_bytes(spec: ModelSpec, context: int) -> int:
    """Return the bytes that `BATCH` requests hold in float32, as transformers holds them."""
    held = memory.kv_cache_bytes(
        spec, context=context, batch=BATCH, kv="fp32", state="fp32", policy="transformers"
    )
    return int(held.total)


def _counted(module: Any, **arguments: Any) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = module(**arguments)
    return counter.get_total_flops(), result


def _bytes(cache: Any) -> int:
    """Return the bytes of all tensors of numbers in a cache; what counts positions is none."""
    found: dict[int, torch.Tensor] = {}
    waiting, seen = [cache], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                found[id(value)] = value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            waiting += vars(value).values()
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())
