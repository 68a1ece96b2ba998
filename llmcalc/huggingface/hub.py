"""A ``config.json`` from the Hugging Face hub (extra ``hub``).

* `config`: the configuration of a model on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmcalc.errors import (
    LONGEST_MESSAGE,
    InvalidValueError,
    MissingExtraError,
    fitting,
    shown,
)
from llmcalc.huggingface import catalogue
from llmcalc.huggingface.config import read_json

__all__ = ["config"]


def config(name: str) -> Mapping[str, object]:
    """Return the ``config.json`` of the model `name` on the hub; nothing else is fetched.

    Raises `llmcalc.LlmcalcError` without the extra, without network, and for a model that the hub
    does not have or does not show.
    """
    unknown = catalogue.unknown(name)
    if name.count("/") != 1 or not all(name.split("/")) or len(name) > 200:
        raise unknown
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ModuleNotFoundError as problem:
        needed = "huggingface_hub", "hub"
        hints = [*(f" (near: {one})" for one in unknown.suggestions[:1]), ""]
        texts = [f"{shown(name, 60)}{hint} is not in the catalogue; fetching it" for hint in hints]
        room = LONGEST_MESSAGE - len(str(MissingExtraError("", *needed)))
        raise MissingExtraError(fitting(texts, room), *needed) from problem
    try:
        path = hf_hub_download(name, "config.json")
    except HFValidationError as problem:
        raise unknown from problem
    except (HfHubHTTPError, OSError, ValueError) as problem:
        reason = str(problem).strip().partition("\n")[0] or type(problem).__name__
        rule = f"its config.json cannot be fetched from the hub: {reason}"
        raise InvalidValueError("source", name, rule) from problem
    return read_json(path)
