"""Executable models in PyTorch (extra ``torch``), built from the specs that the formulas read.

* `tiny_decoder`: `TinyDecoder`, a dense decoder with KV-cached generation.
* `caches`: its `KVCache`, and one forward pass.
* `executed`: which specs it executes.
* `layers`: the layers of a decoder.
* `sampling`: how a next token is chosen from logits.
* `weights`: weights files, read and written.
* `modes`: evaluation against expected logits, cached against uncached, benchmark.

PyTorch is imported under this package only.
"""

from __future__ import annotations

from importlib.util import find_spec

from llmcalc.errors import MissingExtraError

if find_spec("torch") is None:
    raise MissingExtraError("llmcalc.models", "PyTorch", "torch")
