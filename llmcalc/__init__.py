"""llmcalc: the arithmetic of large-language-model inference.

A model is described once, by `ModelSpec`; every quantity is a fold over its ledger:

* `llmcalc.memory`: parameters, weight bytes, KV cache, what fits.
* `llmcalc.roofline`: FLOPs, bytes and arithmetic intensity.
* `llmcalc.plots`: the pictures (extra ``plot``).
* `llmcalc.models`: executable models in PyTorch (extra ``torch``).

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcalc import (
        breakdown,
        errors,
        formats,
        hardware,
        huggingface,
        memory,
        plots,
        roofline,
        spec,
        units,
    )
    from llmcalc.breakdown import Breakdown
    from llmcalc.errors import LlmcalcError
    from llmcalc.hardware import DeviceSpec
    from llmcalc.huggingface import load_model
    from llmcalc.spec import ModelSpec
    from llmcalc.units import GB, KB, MB, TB, GiB, KiB, MiB, TiB

__all__ = [
    "GB",
    "KB",
    "MB",
    "TB",
    "Breakdown",
    "DeviceSpec",
    "GiB",
    "KiB",
    "LlmcalcError",
    "MiB",
    "ModelSpec",
    "TiB",
    "breakdown",
    "errors",
    "formats",
    "hardware",
    "huggingface",
    "load_model",
    "memory",
    "plots",
    "roofline",
    "spec",
    "units",
]

#: Where each public name that is not a module of its own comes from.
_HOMES = {
    "Breakdown": "breakdown",
    "DeviceSpec": "hardware",
    "LlmcalcError": "errors",
    "ModelSpec": "spec",
    "load_model": "huggingface",
    **dict.fromkeys(("GB", "KB", "MB", "TB", "GiB", "KiB", "MiB", "TiB"), "units"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        return import_module(f"{__name__}.{name}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
