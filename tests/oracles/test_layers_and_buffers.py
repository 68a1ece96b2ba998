"""Parameters of one layer, and buffers, as measured on the modules of transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llmcalc import huggingface, load_model, memory
from tests.truth import rows

SUPPORTED = set(huggingface.supported())

ROWS = [
    pytest.param(row, id=row["model_type"])
    for row in rows("default_configs")
    if row["model_type"] in SUPPORTED
]

#: Types whose layers are not those that the module lists, and why.
OTHER_LAYERS: dict[str, str] = {
    "hrm_text": "two stacks of layers, whose indices both begin at 0",
    "longcat_flash": "a layer of the module is two of the spec",
    "rwkv": "the norm of the embedding is in the first layer of the module",
    "zamba": "the weights of the shared block are in the first layer of the module that uses it",
    "zamba2": "as in zamba",
}


def _of_every_layer(row: dict[str, Any]) -> list[int]:
    """Return the parameters of each layer of the module."""
    sizes = {
        index: group["per_layer_total"]
        for group in row["layer_groups"]
        for index in group["layers"]
    }
    return [sizes[index] for index in sorted(sizes)]


@pytest.mark.parametrize("row", [row for row in ROWS if row.id not in OTHER_LAYERS])
def test_every_layer_has_the_parameters_of_the_modules(row: dict[str, Any]) -> None:
    spec = load_model(row["config"])
    one = memory.layer_parameters(spec).by(1)
    layers = [one.get(run.label, 0) for run in spec.layers for _ in range(run.count)]
    assert layers == _of_every_layer(row)


@pytest.mark.parametrize("row", ROWS)
def test_layers_and_what_stands_outside_them_are_the_whole(row: dict[str, Any]) -> None:
    spec = load_model(row["config"])
    one = memory.layer_parameters(spec).by(1)
    inside = sum(run.count * one.get(run.label, 0) for run in spec.layers)
    outside = sum(
        math.prod(value for value, _ in (*tensor.row_factors, *tensor.column_factors))
        for tensor in spec.ledger.tensors
        if not tensor.times
    )
    assert memory.parameters(spec).total == outside + inside


@pytest.mark.parametrize("row", ROWS)
def test_buffers_are_those_of_the_module(row: dict[str, Any]) -> None:
    assert memory.buffers(load_model(row["config"])).total == row["n_buffer_elements"]
