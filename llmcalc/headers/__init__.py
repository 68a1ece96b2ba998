"""Headers of weights files: what tensors safetensors and GGUF files have, none of which is read.

* `tensors`: the tensors of a file, of a model in several files, or of a folder.
* `FileTensor`: a tensor as a header lists it.
* `open_file`: a local file, opened for its header.
* `OpenFile`, `Stream`: a file from anywhere; three methods are all that is asked of it.
* `read_safetensors`, `read_gguf`: the header of one such file.
* `GgufHeader`, `Skipped`: the header of a GGUF file, with its metadata.

Each name is imported from its module when it is first asked for.
"""

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.headers.file_tensors import FileTensor
    from llmcalc.headers.gguf import GgufHeader, Skipped, read_gguf
    from llmcalc.headers.local import open_file, tensors
    from llmcalc.headers.opened import OpenFile, Stream
    from llmcalc.headers.safetensors import read_safetensors

__all__ = [
    "FileTensor",
    "GgufHeader",
    "OpenFile",
    "Skipped",
    "Stream",
    "open_file",
    "read_gguf",
    "read_safetensors",
    "tensors",
]

exports(
    __name__,
    {
        "file_tensors": ("FileTensor",),
        "gguf": ("GgufHeader", "Skipped", "read_gguf"),
        "local": ("open_file", "tensors"),
        "opened": ("OpenFile", "Stream"),
        "safetensors": ("read_safetensors",),
    },
    globals(),
)
