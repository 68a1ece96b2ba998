"""A ``config.json`` as readers see it: typed, checked, with the defaults of its model class.

* `Config`: one configuration; its getters name the field, the value and the rule when they refuse.
* `read_json`: the mapping in a ``config.json`` file.

A null field is not an absent field: null stays `None`, an absent field takes the default of the
model class (from ``defaults/<model_type>.json``, which names its source). Sizes that every
published config states are required, so that no other model is silently put in their place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Final

from llmcalc.boundary import LARGEST_SIZE
from llmcalc.errors import InvalidValueError, LlmcalcError, shown
from llmcalc.spec.checkpoint import QuantizedCheckpoint

__all__ = ["Config", "read_json"]

#: A config.json is a few kilobytes; what is larger than this is not one.
LARGEST_FILE: Final = 8 * 2**20

#: What is larger does not fit a float, or is none of a model's multipliers and bases.
LARGEST_NUMBER: Final = 1e300

#: No decoder has more layers than this; the limit keeps per-layer plans small.
MOST_LAYERS: Final = 10_000

#: Fields of any configuration that say nothing about the decoder's shape: bookkeeping of the
#: library that wrote the file, and settings of training, tokenization and generation.
_BOOKKEEPING: Final = frozenset(
    (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_experts_implementation",
        "_name_or_path",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "compression_config",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "n_ctx",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_scores",
        "prefix",
        "pretraining_tp",
        "pruned_heads",
        "quantization_config",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "text_config",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "typical_p",
        "unsloth_version",
        "use_bfloat16",
    )
)

_FORMATS: Final = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float64": "fp64",
    "float": "fp32",
    "half": "fp16",
}

_DEFAULTS_FOLDER: Final = os.path.join(os.path.dirname(__file__), "defaults")  # noqa: PTH118, PTH120


class Config:
    """One configuration of a known model type.

    `values` is the mapping of the ``config.json``. With `nested`, the configuration stands inside
    a multimodal one, which may leave out everything that is the class default, sizes too.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        *,
        model_type: str,
        nested: bool = False,
        section: str | None = None,
    ) -> None:
        with open(  # noqa: PTH123  # pathlib costs more to import than this reader takes
            os.path.join(_DEFAULTS_FOLDER, f"{model_type}.json"),  # noqa: PTH118
            encoding="utf-8",
        ) as file:
            known = json.load(file)
        self.model_type = model_type
        self._values = values
        self._nested = nested
        fields, aliases = known["fields"], known["aliases"]
        if section is not None:
            fields, aliases = fields.get(section) or {}, {}
        self._defaults: dict[str, object] = fields
        self._aliases: dict[str, str] = aliases
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return any(spelling in self._values for spelling in self._spellings(name))

    def knows(self, name: str) -> bool:
        """Return whether the file gives the field, or the model class has a default for it."""
        return name in self or any(key in self._defaults for key in self._spellings(name))

    def _spellings(self, name: str) -> tuple[str, ...]:
        """Give the field's own name, then its other ones."""
        own = self._aliases.get(name, name)
        return (own, *(alias for alias, field in self._aliases.items() if field == own))

    def get(self, name: str) -> object:
        """Return the field as it is given, or else the default of the model class."""
        return self._find(name, required=False)

    def _find(self, name: str, *, required: bool) -> object:
        own = self._aliases.get(name, name)
        spellings = self._spellings(name)
        self._read.update(spellings)
        given = [key for key in spellings if key in self._values]
        for other in given[1:]:
            if self._values[other] != self._values[given[0]]:
                raise InvalidValueError(
                    other,
                    self._values[other],
                    f"contradicts {given[0]} ({shown(self._values[given[0]])}), "
                    "which is the same field",
                )
        if given:
            return self._values[given[0]]
        if required and not self._nested:
            raise LlmcalcError(
                f"{own}: is missing; the config.json of a {self.model_type} must state it"
            )
        for key in spellings:
            if key in self._defaults:
                return self._defaults[key]
        raise LlmcalcError(f"{own}: is missing, and {self.model_type} has no default for it")

    def ignore(self, *names: str) -> None:
        """Know fields that the model class writes, and derives from others when it reads."""
        self._read.update(names)

    def required_size(self, name: str) -> int:
        """Return a size that the file itself must state."""
        return self._size(name, self._find(name, required=True))

    def size(self, name: str) -> int:
        """Return a size; absent, it is the default of the model class."""
        return self._size(name, self.get(name))

    def optional_size(self, name: str) -> int | None:
        """Return a size, or `None` where the field is null."""
        value = self.get(name)
        return None if value is None else self._size(name, value)

    def extra_size(self, name: str) -> int | None:
        """Return a size that the model class may have no field for, but uses where it is given."""
        return self.optional_size(name) if self.knows(name) else None

    def _size(self, name: str, value: object) -> int:
        if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
            raise InvalidValueError(
                self._aliases.get(name, name), value, "must be an integer from 1 to 2**48"
            )
        return value

    def count(self, name: str) -> int:
        """Return a number of things, which may be none."""
        return self._count(name, self.get(name))

    def required_count(self, name: str) -> int:
        """Return a number that the file itself must state, and that may be zero."""
        return self._count(name, self._find(name, required=True))

    def _count(self, name: str, value: object) -> int:
        if type(value) is not int or not 0 <= value <= LARGEST_SIZE:
            raise InvalidValueError(
                self._aliases.get(name, name), value, "must be an integer from 0 to 2**48"
            )
        return value

    def limit(self, name: str) -> int | None:
        """Return a limit or a size, `None` where the field is null or zero."""
        return None if self.get(name) is None else self.count(name) or None

    def overridden(self, values: Mapping[str, object]) -> Config:
        """Return the configuration with other values of some fields."""
        return Config({**self._values, **values}, model_type=self.model_type, nested=self._nested)

    def pass_over(self, *names: str) -> None:
        """Mark fields that repeat what other ones say, and that the model does not read."""
        self._read.update(names)

    def given(self, name: str) -> object:
        """Return a field that the model class has no field for, `None` where it is not given."""
        return self.get(name) if name in self else None

    def integer(self, name: str, default: int) -> int:
        """Return an integer that the model class has no field for; not given, it is `default`."""
        value = default if name not in self else self.get(name)
        if type(value) is not int:
            raise InvalidValueError(name, value, "must be an integer")
        return value

    def num_layers(self, name: str = "num_hidden_layers") -> int:
        """Return the number of layers."""
        layers = self.required_size(name)
        if layers > MOST_LAYERS:
            raise InvalidValueError(name, layers, f"must be at most {MOST_LAYERS}")
        return layers

    def flag(self, name: str) -> bool:
        """Return a flag."""
        value = self.get(name)
        if type(value) is not bool:
            raise InvalidValueError(self._aliases.get(name, name), value, "must be true or false")
        return value

    def optional_flag(self, name: str) -> bool:
        """Return a flag that may be null, which is false."""
        return self.get(name) is not None and self.flag(name)

    def rename(self, old: str, name: str) -> None:
        """Let `old`, where the file gives it, stand for the field `name`; null is not given."""
        self._read.add(old)
        value = self._values.get(old)
        if value is None:
            return
        given = self._values.get(name, value)
        if given != value:
            raise InvalidValueError(
                old, value, f"contradicts {name} ({shown(given)}), which is the same field"
            )
        self._values = {**self._values, name: value}

    def prefer(self, old: str, name: str) -> None:
        """Let `old`, where the file gives it, stand for the field `name`, whatever that says."""
        self._read.add(old)
        if old in self._values:
            self._values = {**self._values, name: self._values[old]}

    def unfold(self, section: str, fields: Mapping[str, str]) -> None:
        """Let the entries of a nested mapping, where the file gives it, stand for `fields`."""
        self._read.add(section)
        nested = self._values.get(section, {})
        if not isinstance(nested, Mapping):
            raise InvalidValueError(section, nested, "must be an object")
        given = {fields[entry]: nested[entry] for entry in fields if entry in nested}
        self._values = {**self._values, **given}

    def text(self, name: str) -> str:
        """Return a string."""
        value = self.get(name)
        if type(value) is not str:
            raise InvalidValueError(self._aliases.get(name, name), value, "must be a string")
        return value

    def number(self, name: str) -> float:
        """Return a positive number."""
        value = self.get(name)
        if (type(value) is not int and type(value) is not float) or not 0 < value < LARGEST_NUMBER:
            raise InvalidValueError(
                self._aliases.get(name, name), value, "must be a positive number"
            )
        return float(value)

    def mapping(self, name: str) -> Mapping[str, object] | None:
        """Return a nested mapping, or `None` where the field is null."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise InvalidValueError(name, value, "must be an object or null")
        return value

    def section(self, name: str) -> Config:
        """Return a nested object as a configuration of its own; null is the default one."""
        values = self.mapping(name) or {}
        return Config(values, model_type=self.model_type, nested=True, section=name)

    def checkpoint_format(self) -> str | QuantizedCheckpoint | None:
        """Return the format of the checkpoint's weights, `None` where the file does not say."""
        self._read.update(("dtype", "torch_dtype", "expert_dtype"))
        value = self._values.get("dtype", self._values.get("torch_dtype"))
        known = None
        if value is not None:
            known = _FORMATS.get(value.removeprefix("torch.")) if isinstance(value, str) else None
            if known is None:
                raise InvalidValueError(
                    "torch_dtype", value, f"must be one of {', '.join(_FORMATS)}"
                )
        quantization = self._values.get("quantization_config")
        if quantization is None:
            quantization = self._values.get("compression_config")
        if quantization is None:
            return known
        if isinstance(quantization, Mapping) and "expert_dtype" in self._values:
            # DeepSeek-V4 states the format of its experts beside, not in, the rest.
            quantization = {"expert_dtype": self._values["expert_dtype"], **quantization}
        try:
            text = json.dumps(quantization, default=repr)
        except (ValueError, TypeError, RecursionError) as problem:
            raise InvalidValueError(
                "quantization_config", quantization, f"is not JSON: {problem}"
            ) from problem
        return QuantizedCheckpoint(wide=known, quantization=text)

    def in_its_words(self, error: InvalidValueError) -> InvalidValueError:
        """Return the error of a part as one of the fields that the part was made of."""
        if error.field.partition(":")[0] in self._values or self.knows(error.field):
            return error
        read = {name: value for name, value in self._values.items() if name in self._read}
        sizes = {name: value for name, value in read.items() if type(value) is int}
        same = [name for name, value in sizes.items() if value == error.value and value > 1]
        if same:
            from difflib import SequenceMatcher

            near = max(same, key=lambda name: SequenceMatcher(None, name, error.field).ratio())
            return InvalidValueError(near, error.value, error.rule)
        if not sizes or type(error.value) is not int or error.value < 2**32:
            return error
        # What follows from several fields breaks a rule because of the largest of them.
        largest = max(sizes, key=lambda name: sizes[name])
        rule = f"makes {error.field} {shown(error.value)}, which {error.rule}"
        return InvalidValueError(largest, sizes[largest], rule)

    def was_read(self, name: str) -> bool:
        """Return whether a reader asked for the field, or passed over it."""
        return name in self._read

    def unread(self) -> tuple[str, ...]:
        """Return the given fields that neither the reader nor the model class knows."""
        known = self._read | _BOOKKEEPING | self._defaults.keys() | self._aliases.keys()
        return tuple(sorted(self._values.keys() - known))


def read_json(path: str) -> Mapping[str, object]:
    """Return the mapping in a ``config.json``; `path` is the file or the folder that has it."""
    if os.path.isdir(path):  # noqa: PTH112
        path = os.path.join(path, "config.json")  # noqa: PTH118
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            text = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise InvalidValueError("source", path, f"cannot be read: {reason}") from problem
    if len(text) > LARGEST_FILE:
        raise InvalidValueError("source", path, f"is larger than {LARGEST_FILE} bytes")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise InvalidValueError("source", path, f"is not JSON: {problem}") from problem
    if not isinstance(values, dict):
        raise InvalidValueError("source", path, "must hold a JSON object")
    return values
