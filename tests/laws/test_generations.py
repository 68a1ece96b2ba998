"""Laws of generations: they are their steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcalc import Layout, LlmcalcError, ModelSpec, load_model, roofline
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


@given(
    spec=dense_specs(max_positions=40),
    prompts=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    batches=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    new=st.integers(1, 9),
)
def test_generations_of_arrays_are_those_of_their_elements(
    spec: ModelSpec, prompts: list[int], batches: list[int], new: int
) -> None:
    whole = roofline.generation(
        spec,
        "L4",
        prompt=np.array(prompts),
        batch=np.array(batches)[:, None],
        new_tokens=new,
        **WIDE,
    )
    assert whole.token_seconds.shape == (len(batches), len(prompts), new - 1)
    for i, batch in enumerate(batches):
        for j, prompt in enumerate(prompts):
            one = roofline.generation(
                spec, "L4", prompt=prompt, batch=batch, new_tokens=new, **WIDE
            )
            assert whole.seconds[i, j] == pytest.approx(one.seconds, rel=1e-15)
            assert whole.first_token_seconds[i, j] == one.first_token_seconds
            assert whole.tokens_per_second[i, j] == pytest.approx(one.tokens_per_second, rel=1e-15)
            assert whole.joules(10)[i, j] == pytest.approx(one.joules(10), rel=1e-15)
            if new > 1:
                assert whole.mean_token_seconds[i, j] == pytest.approx(
                    one.mean_token_seconds, rel=1e-15
                )


def test_all_devices_of_a_layout_cost_their_energy_and_price() -> None:
    answer = roofline.generation(
        load_model("llama-3-8b"),
        "H100-SXM-80GB",
        prompt=100,
        new_tokens=10,
        **WIDE,
        layout=Layout(tensor_parallel=2, data_parallel=2),
        batch=4,
    )
    assert answer.joules(700) == answer.seconds * 4 * 700
    assert answer.tokens_per_second_per_device == answer.tokens_per_second / 4
    two = roofline.generation(
        load_model("llama-3-8b"),
        "H100-SXM-80GB",
        prompt=100,
        new_tokens=10,
        **WIDE,
        tensor_parallel=2,
        batch=2,
    )
    assert answer.seconds == two.seconds  # replicas share the requests out
    assert two.devices == 2


def test_latent_attention_has_the_form_that_takes_least() -> None:
    spec = load_model("deepseek-v3")
    common: dict[str, Any] = {**WIDE, "layout": Layout(tensor_parallel=8)}
    work: dict[str, Any] = {"prompt": 2000, "new_tokens": 3, "batch": 64}
    answer = roofline.generation(spec, "H200-SXM-141GB", **work, **common)
    first = roofline.step_time(
        spec, "H200-SXM-141GB", batch=64, new=2000, past=0, **common, mla="expanded"
    )
    later = [
        roofline.step_time(
            spec, "H200-SXM-141GB", batch=64, new=1, past=past, **common, mla="absorbed"
        ).bound_seconds
        for past in (2000, 2001)
    ]
    assert answer.first_token_seconds == first.bound_seconds
    assert answer.token_seconds.tolist() == later
    steps = roofline.run(spec, "H200-SXM-141GB", **work, **common)
    assert steps.seconds() == pytest.approx(answer.seconds)
    for mla in ("expanded", "absorbed"):
        own = roofline.generation(spec, "H200-SXM-141GB", **work, **common, mla=mla)
        assert own.seconds > answer.seconds
