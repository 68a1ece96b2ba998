"""Read a Hugging Face ``config.json`` into a `llmcalc.ModelSpec`, without torch or network.

* `load_model`: the model that a config describes.
* `supported`: the model types that can be read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import attrs

from llmcalc.errors import InvalidValueError, LlmcalcError, UnknownNameError
from llmcalc.huggingface.config import Config, read_json
from llmcalc.huggingface.registry import READERS
from llmcalc.spec.model import ModelSpec

__all__ = ["load_model", "supported"]


def supported() -> tuple[str, ...]:
    """Return the values of ``model_type`` that `load_model` reads.

    >>> from llmcalc import huggingface
    >>> "llama" in huggingface.supported()
    True
    """
    return tuple(sorted(READERS))


def load_model(
    source: str | os.PathLike[str] | Mapping[str, Any], *, name: str | None = None
) -> ModelSpec:
    """Return the model that a ``config.json`` describes.

    `source` is the path of the file, the folder that holds it, or the mapping itself. The model's
    `name` is the config's own, or that of the folder, unless given. Fields that say nothing about
    the shape are passed over; `ModelSpec.notes` lists the given fields that are not known at all.

    Raises `llmcalc.LlmcalcError`, naming the field, where the architecture is not known, or a
    field is missing, of the wrong kind or contradicts another one.

    >>> from llmcalc import load_model, memory
    >>> spec = load_model({
    ...     "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 22,
    ...     "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632,
    ...     "vocab_size": 32000,
    ... }, name="tinyllama-1.1b")
    >>> memory.parameters(spec).total
    1100048384
    """
    if isinstance(source, Mapping):
        values, folder = source, None
    elif isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        values = read_json(path)
        folder = os.path.basename(  # noqa: PTH119
            os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path))  # noqa: PTH100, PTH112, PTH120
        )
    else:
        raise InvalidValueError("source", source, "must be a path or a mapping")
    for key in values:
        if not isinstance(key, str):
            raise InvalidValueError("source", key, "must have strings for keys")
    given = values.get("_name_or_path")
    title = name or (given if isinstance(given, str) and given else None) or folder
    model_type = _model_type(values)
    inner = values.get("text_config")
    if model_type not in READERS and isinstance(inner, Mapping):
        return _read_language_model(values, inner, title or model_type)
    return _read(Config(values, model_type=_known(model_type)), title or model_type)


def _model_type(values: Mapping[str, Any]) -> str:
    model_type = values.get("model_type")
    if model_type is None:
        raise LlmcalcError("model_type: is missing; a config.json names its architecture there")
    if not isinstance(model_type, str):
        raise InvalidValueError("model_type", model_type, "must be a string")
    return model_type


def _known(model_type: str) -> str:
    if model_type not in READERS:
        raise UnknownNameError("model_type", model_type, READERS)
    return model_type


def _read(config: Config, title: str) -> ModelSpec:
    module, _, function = READERS[config.model_type].partition(".")
    reader = getattr(import_module(f"llmcalc.huggingface.{module}"), function)
    spec: ModelSpec = reader(config, title)
    return spec


def _read_language_model(
    values: Mapping[str, Any], inner: Mapping[str, Any], title: str
) -> ModelSpec:
    """Read the language model of a model that has other parts, too."""
    model_type = _known(_model_type(inner))
    # The wrapper states once what holds for all of its parts.
    shared = {
        field: values[field]
        for field in ("tie_word_embeddings", "dtype", "torch_dtype", "quantization_config")
        if field in values
    }
    spec = _read(Config({**shared, **inner}, model_type=model_type, nested=True), title)
    remark = f"only text_config was read: the other parts of {values['model_type']} are left out"
    return attrs.evolve(spec, notes=(remark, *spec.notes))
