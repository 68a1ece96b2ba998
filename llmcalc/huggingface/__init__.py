"""Read a Hugging Face ``config.json`` into a `llmcalc.ModelSpec`, without torch or network.

* `load_model`: the model that a config describes.
* `supported`: the model types that can be read (`llmcalc.huggingface.listing`).
* `llmcalc.huggingface.catalogue`: the models that can be read by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

import attrs

from llmcalc.errors import InvalidValueError, LlmcalcError, UnknownNameError
from llmcalc.huggingface import wrappers
from llmcalc.huggingface.config import Config, read_json
from llmcalc.huggingface.registry import READERS, SAME_AS
from llmcalc.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmcalc.huggingface.listing import Supported

__all__ = ["load_model", "supported"]


def supported() -> Supported:
    """Return the values of ``model_type`` that `load_model` reads, with what is known of each.

    >>> from llmcalc import huggingface
    >>> "llama" in huggingface.supported()
    True
    >>> gemma = huggingface.supported()["gemma3_text"]
    >>> gemma.layer_kinds, gemma.cache_kinds
    (('window', 'decoder'), ('kv window', 'kv full'))
    >>> gemma.checked.equal
    ('parameters', 'groups', 'caches', 'flops')
    """
    from llmcalc.huggingface.listing import Supported

    return Supported()


def load_model(
    source: str | os.PathLike[str] | Mapping[str, object], *, name: str | None = None
) -> ModelSpec:
    """Return the model that a ``config.json`` describes.

    `source` is the path of the file, the folder that holds it, the mapping itself, or the name of
    a model: a hub id or a short name of `llmcalc.huggingface.catalogue`, which answers without
    network. With the extra ``hub``, the ``config.json`` of any other hub id is fetched, and
    nothing else. The model's `name` is the config's own, that of the folder or of the catalogue,
    unless given. Fields that say nothing about the shape are passed over; `ModelSpec.notes` lists
    the given fields that are not known at all.

    Raises `llmcalc.LlmcalcError`, naming the field, where the architecture or the name is not
    known, or a field is missing, of the wrong kind or contradicts another one.

    >>> from llmcalc import load_model, memory
    >>> memory.parameters(load_model("llama-3-8b")).total
    8030261248
    >>> spec = load_model({
    ...     "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 22,
    ...     "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632,
    ...     "vocab_size": 32000,
    ... }, name="tinyllama-1.1b")
    >>> memory.parameters(spec).total
    1100048384
    """
    values, place = _values(source)
    for key in values:
        if not isinstance(key, str):
            raise InvalidValueError("source", key, "must have strings for keys")
    given = values.get("_name_or_path")
    title = name or place or (given if isinstance(given, str) and given else None)
    model_type = _model_type(values)
    inner = None
    if model_type not in READERS and model_type not in SAME_AS:
        inner = wrappers.language_model(values, model_type, READERS | SAME_AS)
    if inner is None:
        return _read(Config(values, model_type=_known(model_type)), title or model_type)
    known = _known(inner.model_type, f"{inner.path}.model_type" if inner.path else "model_type")
    config = Config(inner.values, model_type=known, nested=bool(inner.path))
    spec = _read(config, title or model_type)
    remark = f"only {inner.path or 'the language model'} was read"
    remark = f"{remark}: the other parts of {model_type} are left out"
    return attrs.evolve(spec, notes=(remark, *spec.notes))


def _values(
    source: str | os.PathLike[str] | Mapping[str, object],
) -> tuple[Mapping[str, object], str | None]:
    """Return the fields that `source` means, and the name that it gives the model."""
    if isinstance(source, Mapping):
        return source, None
    if not isinstance(source, str | os.PathLike):
        raise InvalidValueError("source", source, "must be a path, a model's name or a mapping")
    path = os.fspath(source)
    if not isinstance(path, str):
        raise InvalidValueError("source", path, "must be a path of text, not of bytes")
    if not isinstance(source, str) or _is_path(path):
        values = read_json(path)
        folder = path if os.path.isdir(path) else os.path.dirname(path)  # noqa: PTH112, PTH120
        given = values.get("_name_or_path")
        if isinstance(given, str) and given:
            return values, given
        return values, os.path.basename(os.path.abspath(folder)) or None  # noqa: PTH100, PTH119
    from llmcalc.huggingface import catalogue, hub

    entry = catalogue.find(path)
    if entry is not None:
        return entry.config, entry.name
    return hub.config(path), path


def _is_path(text: str) -> bool:
    """Whether a string means a file rather than a model's name."""
    try:
        return text.endswith(".json") or text.startswith((".", os.sep)) or os.path.exists(text)  # noqa: PTH110
    except ValueError:  # a null character
        return True


def _model_type(values: Mapping[str, object]) -> str:
    model_type = values.get("model_type")
    if model_type is None:
        raise LlmcalcError("model_type: is missing; a config.json names its architecture there")
    if not isinstance(model_type, str):
        raise InvalidValueError("model_type", model_type, "must be a string")
    return model_type


def _known(model_type: str, field: str = "model_type") -> str:
    read_as = SAME_AS.get(model_type, model_type)
    if read_as not in READERS:
        raise UnknownNameError(field, model_type, supported(), listed_by=f"{__name__}.supported()")
    return read_as


def _read(config: Config, title: str) -> ModelSpec:
    module, _, function = READERS[config.model_type].partition(".")
    reader = getattr(import_module(f"llmcalc.huggingface.readers.{module}"), function)
    try:
        spec: ModelSpec = reader(config, title)
    except InvalidValueError as error:
        named = config.in_its_words(error)
        if named is error:
            raise
        raise named from error
    return spec
