"""Randomly altered small models of every type, run for real: their caches and their FLOPs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch

from llmcalc import ModelSpec, load_model
from tests.altered import altered
from tests.modules import new_config
from tests.oracles.test_altered_configs import TYPES, saved
from tests.oracles.test_transformers_caches import WITHOUT_CACHE
from tests.oracles.test_transformers_flops import BY_ROUTER, WITHOUT_DECODE, projected_zeros
from tests.runs import BATCH, TOKENS, Measured, cache_bytes, counted_flops, measure

pytestmark = pytest.mark.slow

#: Models of each type that are run, and the most that are tried for them.
ENOUGH, MOST = 2, 40


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _runs(model_type: str) -> Iterator[tuple[ModelSpec, Measured, dict[str, Any]]]:
    """Give small models that can be run, and what was measured; see `altered`."""
    ran = 0
    for number in range(MOST):
        rng = Random(f"run {model_type} {number}")  # noqa: S311  # drawn anew, the same each time
        arguments = altered(model_type, rng, tiny=True)
        try:
            config = new_config(model_type, copy.deepcopy(arguments))
            written = saved(config)
            measured = measure(config)
        except Exception:  # noqa: BLE001, S112  # whatever it refuses
            continue
        yield load_model(written), measured, arguments
        ran += 1
        if ran == ENOUGH:
            return
    if not ran:
        pytest.fail(f"none of {MOST} alterations could be run")


@pytest.mark.parametrize("model_type", TYPES)
def test_altered_models_hold_and_compute_what_is_measured(model_type: str) -> None:
    for spec, measured, arguments in _runs(model_type):
        if model_type not in BY_ROUTER:
            zeros = projected_zeros(spec, BATCH)
            assert counted_flops(spec, TOKENS, 0) + zeros == measured.prefill_flops, arguments
            if model_type not in WITHOUT_DECODE:
                times = BATCH if model_type == "rwkv" else 1
                assert times * counted_flops(spec, 1, TOKENS) == measured.decode_flops, arguments
        if model_type not in WITHOUT_CACHE or model_type == "dbrx":
            assert cache_bytes(spec, TOKENS) == measured.prefill_cache, arguments
            assert cache_bytes(spec, TOKENS + 1) == measured.decode_cache, arguments
