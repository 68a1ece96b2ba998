"""llmcalc: the arithmetic of large-language-model inference.

A model is described once, by `ModelSpec`; every quantity is a fold over its ledger:

* `llmcalc.memory`: parameters, weight bytes, KV cache, what fits.
* `llmcalc.roofline`: FLOPs, bytes and arithmetic intensity.
* `llmcalc.serving`: what engines allocate, and their start-up logs.
* `llmcalc.engines`: the engines, by name.
* `llmcalc.plots`: the pictures (extra ``plot``).
* `llmcalc.models`: executable models in PyTorch (extra ``torch``).

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc import (
        breakdown,
        engines,
        errors,
        files,
        formats,
        hardware,
        headers,
        huggingface,
        layouts,
        memory,
        planning,
        plots,
        roofline,
        serving,
        spec,
        tables,
        units,
    )
    from llmcalc.breakdown import Breakdown
    from llmcalc.errors import LlmcalcError
    from llmcalc.hardware import DeviceSpec
    from llmcalc.huggingface import load_model
    from llmcalc.layouts import Layout
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
    "Layout",
    "LlmcalcError",
    "MiB",
    "ModelSpec",
    "TiB",
    "breakdown",
    "engines",
    "errors",
    "files",
    "formats",
    "hardware",
    "headers",
    "huggingface",
    "layouts",
    "load_model",
    "memory",
    "planning",
    "plots",
    "roofline",
    "serving",
    "spec",
    "tables",
    "units",
]

exports(
    __name__,
    {
        "breakdown": ("Breakdown",),
        "engines": (),
        "errors": ("LlmcalcError",),
        "files": (),
        "formats": (),
        "hardware": ("DeviceSpec",),
        "headers": (),
        "huggingface": ("load_model",),
        "layouts": ("Layout",),
        "memory": (),
        "planning": (),
        "plots": (),
        "roofline": (),
        "serving": (),
        "spec": ("ModelSpec",),
        "tables": (),
        "units": ("GB", "KB", "MB", "TB", "GiB", "KiB", "MiB", "TiB"),
    },
    globals(),
)
