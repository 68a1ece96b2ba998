"""Randomly altered configurations of every type, held against modules on the meta device."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmcalc import LlmcalcError, ModelSpec, huggingface, load_model, memory
from llmcalc.huggingface.registry import HEADLESS
from tests.altered import altered
from tests.modules import active_of_module, build, module_groups, spec_groups
from tests.truth import rows

pytestmark = pytest.mark.slow

#: Supported types that transformers has a module for.
TYPES = [model_type for model_type in huggingface.supported() if model_type in CONFIG_MAPPING]

#: Configurations of each type that are compared, and the most that are tried for them.
ENOUGH, MOST = 16, 64

#: Types whose layers are not compared one by one, and why.
WITHOUT_LAYERS = {
    "longcat_flash": "each of its layers is two of ours",
    "rwkv": "the norm after its embedding stands in the first layer",
    "zamba": "its shared block stands in the first layer that uses it",
    "zamba2": "its shared blocks stand in the first layers that use them",
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _modules(model_type: str) -> Iterator[tuple[Any, dict[str, Any], Any]]:
    """Give altered configurations that transformers builds: the object, its arguments, the module.

    Every other one starts from the class defaults, the rest from a small model.
    """
    built = 0
    for number in range(MOST):
        rng = Random(f"{model_type} {number}")  # noqa: S311  # drawn anew, the same each time
        arguments = altered(model_type, rng, tiny=number % 2 == 1)
        try:
            config, module = build(model_type, copy.deepcopy(arguments))
        except Exception:  # noqa: BLE001, S112  # whatever it refuses
            continue
        yield config, arguments, module
        built += 1
        if built == ENOUGH:
            return
    pytest.fail(f"only {built} of {MOST} alterations could be built")


def saved(config: Any) -> dict[str, Any]:
    """Return what ``config.json`` says once transformers has saved the configuration."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return values


@pytest.mark.parametrize("model_type", TYPES)
def test_altered_configs_count_as_their_modules_group_by_group(model_type: str) -> None:
    for config, arguments, module in _modules(model_type):
        written = saved(config)
        spec = load_model(written)
        whole, layers = spec_groups(spec)
        module_whole, module_layers = module_groups(module)
        assert whole == module_whole, arguments
        if model_type not in WITHOUT_LAYERS:
            assert layers == module_layers, arguments
        assert memory.active_parameters(spec).total == active_of_module(config, module), arguments
        by_hand = _load_with_required({**arguments, "model_type": model_type}, written)
        assert spec_groups(by_hand) == (whole, layers), arguments


def _load_with_required(given: dict[str, Any], whole: dict[str, Any]) -> ModelSpec:
    """Load a file of few fields, completed by the sizes that every file must state."""
    while True:
        try:
            return load_model(given)
        except LlmcalcError as error:
            missing = re.match(r"(\w+): is missing; the config.json of", str(error))
            if missing is None:
                raise
            given[missing[1]] = whole[missing[1]]


def test_every_type_that_transformers_has_is_compared() -> None:
    measured = {row["model_type"] for row in rows("default_configs") if row["scope"] != "out"}
    assert set(TYPES) == measured | HEADLESS
