"""Weights of a `TinyDecoder`, from and to files.

* `load_weights`: from a safetensors file, or from what ``torch.save(state_dict)`` wrote.
* `save_weights`: to one of the two, by the file's ending.

A file is never trusted: safetensors holds nothing but tensors, and other files are read with
``weights_only=True``, which runs no code from them.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor

from llmcalc.errors import InvalidValueError, LlmcalcError, MissingExtraError
from llmcalc.models.tiny_decoder import TinyDecoder

__all__ = ["load_weights", "save_weights"]

_SAFETENSORS: Final = ".safetensors"


def load_weights(decoder: TinyDecoder, path: str | os.PathLike[str]) -> TinyDecoder:
    """Copy the weights in a file into `decoder`, and return it.

    A file that ends in ``.safetensors`` is read as such, any other as a state dict that
    ``torch.save`` wrote. The values are converted to the decoder's type. Raises
    `llmcalc.LlmcalcError`, and changes nothing, for a file that cannot be read and for one whose
    keys or shapes differ from the decoder's: the message lists them.

    >>> import os, tempfile, torch
    >>> from llmcalc import ModelSpec
    >>> from llmcalc.models.tiny_decoder import TinyDecoder
    >>> from llmcalc.models.weights import load_weights, save_weights
    >>> spec = ModelSpec.assignment_decoder(
    ...     vocab_size=10, d_model=8, d_ff=16, num_layers=1, max_seq_len=8
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.safetensors")
    ...     save_weights(TinyDecoder(spec), path)
    ...     decoder = load_weights(TinyDecoder(spec), path)
    """
    name = os.fspath(path)
    given = _read(name)
    own = decoder.state_dict()
    differences = [
        *(f"missing {key}" for key in own.keys() - given.keys()),
        *(f"unexpected {key}" for key in given.keys() - own.keys()),
        *(
            f"{key} has shape {tuple(given[key].shape)}, not {tuple(tensor.shape)}"
            for key, tensor in own.items()
            if key in given and given[key].shape != tensor.shape
        ),
        *(
            f"{key} holds {tensor.dtype}, not floating-point numbers"
            for key, tensor in given.items()
            if key in own and not tensor.is_floating_point()
        ),
        *(
            f"{key} holds no plain array ({tensor.layout} on {tensor.device})"
            for key, tensor in given.items()
            if key in own and (tensor.layout != torch.strided or tensor.is_meta)
        ),
    ]
    if differences:
        raise InvalidValueError("path", name, "does not match: " + "; ".join(sorted(differences)))
    decoder.load_state_dict(given)
    return decoder


def save_weights(decoder: TinyDecoder, path: str | os.PathLike[str]) -> None:
    """Write the weights of `decoder`, as safetensors where `path` ends in ``.safetensors``."""
    name = os.fspath(path)
    state = {key: tensor.contiguous() for key, tensor in decoder.state_dict().items()}
    try:
        if name.endswith(_SAFETENSORS):
            _require_safetensors()
            from safetensors.torch import save_file

            save_file(state, name)
        else:
            torch.save(state, name)
    except (OSError, RuntimeError) as problem:
        raise InvalidValueError("path", name, f"cannot be written: {problem}") from problem


def _require_safetensors() -> None:
    if find_spec("safetensors") is None:
        raise MissingExtraError("reading and writing safetensors files", "safetensors", "torch")


def _read(name: str) -> dict[str, Tensor]:
    """Return the tensors in a file; every way in which a file can be bad is one error."""
    problems: tuple[type[Exception], ...] = (
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        MemoryError,
        pickle.UnpicklingError,
    )
    try:
        if name.endswith(_SAFETENSORS):
            _require_safetensors()
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            problems = (*problems, SafetensorError)
            values: object = load_file(name)
        else:
            values = torch.load(name, map_location="cpu", weights_only=True)
    except problems as problem:
        if isinstance(problem, LlmcalcError):
            raise
        # The first sentence; PyTorch goes on with advice to trust the file.
        reason = re.split(r"\n|\. ", str(problem))[0] or type(problem).__name__
        raise InvalidValueError("path", name, f"cannot be read as weights: {reason}") from problem
    if not isinstance(values, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in values.items()
    ):
        raise InvalidValueError("path", name, "must hold a mapping from names to tensors")
    return dict(values)
