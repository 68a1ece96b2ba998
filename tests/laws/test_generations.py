"""Laws of generations: they are their steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import LlmcalcError, ModelSpec, load_model, roofline
from llmcalc.strategies import dense_specs

WIDE: dict[str, Any] = {"weights": "bf16", "kv": "bf16"}


@given(
    spec=dense_specs(),
    prompt=st.integers(1, 60),
    new=st.integers(1, 12),
    batch=st.integers(1, 4),
)
def test_a_generation_is_a_prefill_and_a_step_for_each_further_token(
    spec: ModelSpec, prompt: int, new: int, batch: int
) -> None:
    answer = roofline.generation(spec, "L4", prompt=prompt, new_tokens=new, batch=batch, **WIDE)
    first = roofline.step_time(spec, "L4", batch=batch, new=prompt, past=0, **WIDE).bound_seconds
    later = [
        roofline.step_time(spec, "L4", batch=batch, new=1, past=past, **WIDE).bound_seconds
        for past in range(prompt, prompt + new - 1)
    ]
    assert answer.first_token_seconds == first
    assert answer.token_seconds.tolist() == pytest.approx(later, rel=1e-14)
    assert answer.seconds == pytest.approx(first + sum(later))
    assert answer.tokens_per_second == pytest.approx(batch * new / answer.seconds)
    if new == 1:
        assert answer.mean_token_seconds is None
        assert answer.tokens_per_second_per_user is None
    else:
        assert answer.mean_token_seconds == pytest.approx(sum(later) / len(later))


def test_energy_and_cost_are_time_by_power_and_price() -> None:
    answer = roofline.generation(
        load_model("llama-3-8b"), "H100-SXM-80GB", prompt=100, new_tokens=10, **WIDE
    )
    assert answer.joules(700) == answer.seconds * 700
    assert answer.cost(3.6) == pytest.approx(answer.seconds / 1000)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("prompt", {"prompt": 0, "new_tokens": 1}),
        ("new_tokens", {"prompt": 1, "new_tokens": 0}),
        ("batch", {"prompt": 1, "new_tokens": 1, "batch": 0}),
        ("prompt", {"prompt": 8192, "new_tokens": 2}),
    ],
)
def test_a_bad_workload_is_refused(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(LlmcalcError, match=f"^{field} = "):
        roofline.generation(load_model("llama-3-8b"), "L4", **arguments, **WIDE)


@pytest.mark.parametrize("value", [0, -1, True, "3", float("nan"), float("inf")])
def test_bad_powers_and_prices_are_refused(value: Any) -> None:
    answer = roofline.generation(load_model("gpt2"), "L4", prompt=1, new_tokens=1, **WIDE)
    for question in (answer.joules, answer.cost):
        with pytest.raises(LlmcalcError, match="must be a positive number"):
            question(value)
