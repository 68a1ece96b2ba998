"""Write the class defaults of transformers' configurations to llmcalc/huggingface/defaults.

A ``config.json`` may leave out what its configuration class has a default for. This script reads
those defaults from the installed transformers, one file a model type, so that they are facts with
a source and not copied by hand:

    python scripts/class_defaults.py llama mistral qwen2 gpt2
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmcalc.huggingface.registry import HEADLESS
from llmcalc.huggingface.wrappers import LANGUAGE_MODELS

TARGET = Path(__file__).parent.parent / "llmcalc" / "huggingface" / "defaults"


def class_fields(cls: Any) -> dict[str, object]:
    """Return the fields of a class that have defaults, in nested configurations too."""
    fields: dict[str, object] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            continue
        section = (getattr(cls, "sub_configs", None) or {}).get(field.name)
        if value is None and dataclasses.is_dataclass(section):
            value = class_fields(section)
        try:
            json.dumps(value)
        except TypeError:
            continue
        # A field that is an alias of another name is written under that name.
        fields[cls.attribute_map.get(field.name, field.name)] = value
    theta = getattr(cls, "default_theta", None)
    if "rope_parameters" in fields and isinstance(theta, int | float):
        fields.setdefault("rope_theta", theta)
    return dict(sorted(fields.items()))


def defaults(model_type: str) -> dict[str, object]:
    """Return the fields of the class with their defaults, and its other spellings of fields."""
    cls = CONFIG_MAPPING[model_type]
    fields = class_fields(cls)
    if model_type in HEADLESS:
        wrappers = [name for name, inner in LANGUAGE_MODELS.items() if inner == model_type]
        for wrapper in wrappers:
            whole = class_fields(CONFIG_MAPPING[wrapper])
            if "tie_word_embeddings" in whole:
                fields["tie_word_embeddings"] = whole["tie_word_embeddings"]
    return {
        "source": f"transformers {transformers.__version__}, {cls.__name__}",
        "aliases": dict(cls.attribute_map),
        "fields": dict(sorted(fields.items())),
    }


def main() -> None:
    """Write one file for each model type named on the command line."""
    TARGET.mkdir(exist_ok=True)
    for model_type in sys.argv[1:]:
        path = TARGET / f"{model_type}.json"
        path.write_text(json.dumps(defaults(model_type), indent=1) + "\n")


if __name__ == "__main__":
    main()
