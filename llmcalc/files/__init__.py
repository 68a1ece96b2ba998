"""Weights as they are in files: safetensors and GGUF, read from their headers alone.

* `tensors`: names, shapes, element types and bytes of all tensors.
* `FileTensor`: one of these.
* `weight_bytes`: their bytes, as a breakdown.
* `compare`: how they differ from those of a description.
* `Comparison`: the difference.

A path is a ``.safetensors`` file, the ``.json`` index of a sharded one, a ``.gguf`` file (the
first of several, too), or a folder with any of these. No tensor is ever read. A header that is
not one is refused with a `llmcalc.LlmcalcError` before anything of its size is allocated: lengths
beyond the file, negative, overlapping or missing ranges, names given twice, deep or huge JSON.

`llmcalc.headers` reads the headers. Each name is imported from its module when it is first asked
for.
"""

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.files.comparing import Comparison, compare
    from llmcalc.files.weighing import weight_bytes
    from llmcalc.headers import FileTensor, tensors

__all__ = ["Comparison", "FileTensor", "compare", "tensors", "weight_bytes"]

exports(
    __name__,
    {
        "comparing": ("Comparison", "compare"),
        "weighing": ("FileTensor", "tensors", "weight_bytes"),
    },
    globals(),
)
