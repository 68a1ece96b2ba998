"""Laws of efficiencies and of forecasts: never below the bound, and the bound itself at best."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmcalc import DeviceSpec, Layout, LlmcalcError, ModelSpec, hardware, load_model, roofline
from llmcalc.roofline import Efficiency, Measurement, StepTime, efficiencies, fit, fitting, forecast
from llmcalc.roofline.efficiency import Work
from llmcalc.roofline.fitting import Group, fit_groups
from llmcalc.roofline.forecasts import _pipeline_gain
from llmcalc.spec import Attention, Block, Chunk, Full, Residual, Span, TopK, Window
from llmcalc.strategies import dense_specs

H100 = "H100-SXM-80GB"
WIDE: dict[str, Any] = {"weights": "bf16", "kv": "bf16"}

#: Models of other kinds than the strategy gives: mixtures, latent, windowed and recurrent ones.
OTHERS = ("mixtral-8x7b", "DeepSeek-V2-Lite", "gemma-2-9b", "mamba-130m-hf", "gpt-oss-20b")

shares = st.floats(0.05, 1)
costs = st.floats(0, 1e-3)
EFFICIENCIES = st.builds(
    Efficiency,
    compute=shares,
    product_seconds=costs,
    bandwidth=shares,
    kernel_seconds=costs,
    attention_compute=shares,
    attention_tile=st.floats(0, 100),
    cache_bandwidth=shares,
    activation_passes=st.floats(0, 5),
    score_passes=st.floats(0, 5),
    expansion_bytes=st.floats(0, 8),
    step_seconds=costs,
    link=shares,
    collective_seconds=costs,
    sharpness=st.sampled_from([1.0, 1.5, 4.0, 30.0, math.inf]),
    overlap=st.floats(0, 1),
    stage_overlap=st.floats(0, 1),
)
SPECS = st.one_of(dense_specs(), st.sampled_from(OTHERS).map(load_model))
WORKLOADS = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 300),
        "new": st.sampled_from([1, 2, 7, 64, 900]),
        "past": st.integers(0, 3000),
    }
)


def step_of(spec: ModelSpec, workload: dict[str, Any], **options: Any) -> StepTime:
    return roofline.step_time(spec, H100, **workload, **{**WIDE, **options})


def everything(step: StepTime) -> Any:
    """Return the bound and the time of what is exchanged."""
    return step.bound_seconds + step.communication_seconds


@given(SPECS, WORKLOADS, st.sampled_from(["flash", "standard"]))
def test_an_efficiency_without_losses_is_the_bound(
    spec: ModelSpec, workload: dict[str, Any], attention: Any
) -> None:
    step = step_of(spec, workload, attention=attention)
    assert Efficiency().seconds(step) == pytest.approx(step.bound_seconds, rel=1e-12)


@pytest.mark.parametrize("ranks", [2, 4])
def test_an_efficiency_without_losses_adds_what_is_exchanged(ranks: int) -> None:
    workload = {"batch": 3, "new": 5, "past": np.array([10, 2000])}
    step = step_of(load_model("llama-3-8b"), workload, tensor_parallel=ranks)
    assert Efficiency().seconds(step) == pytest.approx(everything(step), rel=1e-12)


@given(SPECS, WORKLOADS, EFFICIENCIES, st.sampled_from(["bf16", "fp8", "awq-int4-g128"]))
def test_a_forecast_is_never_below_the_bound(
    spec: ModelSpec, workload: dict[str, Any], efficiency: Efficiency, weights: str
) -> None:
    step = step_of(spec, workload, weights=weights)
    assert efficiency.seconds(step) >= step.bound_seconds * (1 - 1e-12)


#: On one device, and on one of two that cut experts or deal them out.
PLACED = st.one_of(
    st.tuples(SPECS, st.none()),
    st.tuples(
        st.sampled_from(OTHERS).map(load_model),
        st.just(Layout(tensor_parallel=2)),
    ),
    st.tuples(
        st.sampled_from(("mixtral-8x7b", "DeepSeek-V2-Lite", "gpt-oss-20b")).map(load_model),
        st.just(Layout(tensor_parallel=2, expert_parallel=True)),
    ),
)


def spanned(spec: ModelSpec, span: Span) -> ModelSpec:
    """Return a model whose full attention attends a span."""

    def block(one: Residual) -> Residual:
        if not isinstance(one, Block) or not isinstance(one.part, Attention):
            return one
        if one.part.span != Full():
            return one
        return attrs.evolve(one, part=attrs.evolve(one.part, span=span))

    layers = [
        attrs.evolve(run, layer=attrs.evolve(run.layer, blocks=tuple(map(block, run.layer.blocks))))
        for run in spec.layers
    ]
    return attrs.evolve(spec, layers=tuple(layers))


@given(
    PLACED,
    st.sampled_from([None, Window(96), Chunk(96), TopK(96)]),
    WORKLOADS,
    EFFICIENCIES,
    st.sampled_from(["bf16", "awq-int4-g128"]),
    st.sampled_from(["flash", "standard"]),
    st.sampled_from(["batch", "new", "past"]),
    st.integers(1, 200),
)
@example(
    # One more is the first one of a chunk.
    (load_model("llama-3-8b"), None),
    Chunk(4096),
    {"batch": 64, "new": 96, "past": 4000},
    Efficiency(attention_tile=100),
    "bf16",
    "flash",
    "new",
    1,
)
def test_more_work_never_takes_less_time(
    placed: tuple[ModelSpec, Layout | None],
    span: Span | None,
    workload: dict[str, Any],
    efficiency: Efficiency,
    weights: str,
    attention: str,
    more: str,
    by: int,
) -> None:
    if isinstance(span, Chunk) and more == "past":
        more = "new"  # after the end of a chunk there is less to read
    spec, layout = placed
    model = spec if span is None else spanned(spec, span)
    options = {"weights": weights, "attention": attention, "layout": layout}
    less, larger = (
        efficiency.seconds(step_of(model, one, **options))
        for one in (workload, {**workload, more: workload[more] + by})
    )
    assert larger >= less * (1 - 1e-12)


@given(SPECS, st.integers(1, 300), st.integers(0, 3000), EFFICIENCIES, st.floats(1, 100))
def test_only_requests_of_several_tokens_fill_tiles(
    spec: ModelSpec, batch: int, past: int, efficiency: Efficiency, tile: float
) -> None:
    # Where times are summed, none of them hides another.
    none = attrs.evolve(efficiency, attention_tile=0.0, sharpness=1.0)
    tiled = attrs.evolve(none, attention_tile=tile)

    def more(new: int, **options: Any) -> Any:
        step = step_of(spec, {"batch": batch, "new": new, "past": past}, **options)
        return tiled.seconds(step) - none.seconds(step)

    assert more(1) == 0
    alone = more(2)
    assert (alone > 0) == ("mamba" not in spec.name)
    # And one that decodes in the step of a chunk does not take part.
    mixed = more(2, mixed_with=[roofline.Requests(batch=70, new=1, past=5000)])
    assert mixed == pytest.approx(alone, rel=1e-6)


#: A span that no request gets to the end of.
UNREACHED = (Window(2**40), Chunk(2**40), TopK(2**40))


@pytest.mark.parametrize("span", UNREACHED, ids=repr)
@settings(max_examples=25)
@given(
    st.one_of(dense_specs(), st.just(load_model("llama-3-8b"))),
    WORKLOADS,
    EFFICIENCIES,
    st.sampled_from(["flash", "standard"]),
)
@example(
    load_model("llama-3-8b"),
    {"batch": 64, "new": 16, "past": 4300},
    Efficiency(attention_tile=8),
    "flash",
)
@example(
    load_model("llama-3-8b"),
    {"batch": 64, "new": 16, "past": 4300},
    Efficiency(compute=0.7, bandwidth=0.85, sharpness=4),
    "flash",
)
def test_a_span_that_is_never_reached_changes_no_time(
    span: Span,
    spec: ModelSpec,
    workload: dict[str, Any],
    efficiency: Efficiency,
    attention: str,
) -> None:
    full, other = (
        step_of(one, workload, attention=attention) for one in (spec, spanned(spec, span))
    )
    assert efficiency.parts(other) == pytest.approx(efficiency.parts(full), rel=1e-12)


@pytest.mark.parametrize("span", UNREACHED, ids=repr)
@pytest.mark.parametrize("engine", efficiencies.engines())
def test_a_span_that_is_never_reached_changes_no_forecast(engine: str, span: Span) -> None:
    spec = load_model("llama-3-8b")
    given_: dict[str, Any] = {"engine": engine, "at_least": "engine", "batch": 8, **WIDE}
    if "chunk" not in efficiencies.conventions(engine, "A100-SXM-80GB"):
        given_["chunk"] = 500
    full, other = (
        forecast(one, "A100-SXM-80GB", prompt=4300, new_tokens=9, **given_)
        for one in (spec, spanned(spec, span))
    )
    assert other.seconds == pytest.approx(full.seconds, rel=1e-12)
    assert other.token_seconds == pytest.approx(full.token_seconds, rel=1e-12)
    shipped = efficiencies.get(engine).efficiency
    workload = {"batch": 64, "new": 16, "past": 4300}
    assert shipped.seconds(step_of(spanned(spec, span), workload)) == pytest.approx(
        shipped.seconds(step_of(spec, workload)), rel=1e-12
    )


@given(st.integers(33, 3000))
@example(512)
def test_experts_that_are_dealt_out_are_expanded_like_those_that_are_cut(tokens: int) -> None:
    mixtral = load_model("mixtral-8x7b")

    def expanded(layout: Layout) -> Any:
        step = step_of(
            mixtral,
            {"batch": 1, "new": tokens, "past": 0},
            weights="awq-int4-g128",
            layout=layout,
        )
        return Efficiency(expansion_bytes=4).parts(step)["expanded weights"]

    cut = expanded(Layout(tensor_parallel=2))
    dealt_out = expanded(Layout(tensor_parallel=2, expert_parallel=True))
    # Either rank holds half of the weights, and as many of the experts that are touched.
    assert dealt_out == pytest.approx(cut, rel=1e-9)
    whole = expanded(Layout())
    assert whole / 2 <= cut < 0.51 * whole  # what is not cut is in both
    if tokens == 512:
        # All matrices are packed but the head and the routers, of 46.6 billion elements.
        elements = 32 * (2 * 4096 * (4096 + 1024) + 8 * 3 * 4096 * 14336)
        assert whole == pytest.approx(4 * elements / hardware.get(H100).bandwidth_bytes_per_second)


@given(PLACED, WORKLOADS)
def test_nothing_is_expanded_where_nothing_is_packed(
    placed: tuple[ModelSpec, Layout | None], workload: dict[str, Any]
) -> None:
    spec, layout = placed
    step = step_of(spec, workload, layout=layout)
    assert Efficiency(expansion_bytes=4).parts(step)["expanded weights"] == 0


@given(SPECS, WORKLOADS, EFFICIENCIES)
def test_the_parts_of_a_forecast_sum_to_it(
    spec: ModelSpec, workload: dict[str, Any], efficiency: Efficiency
) -> None:
    step = step_of(spec, workload)
    parts = efficiency.parts(step)
    assert sum(parts.values()) == pytest.approx(efficiency.seconds(step), rel=1e-12)
    assert all(part >= 0 for part in parts.values())


@given(SPECS, EFFICIENCIES)
def test_arrays_give_what_numbers_give(spec: ModelSpec, efficiency: Efficiency) -> None:
    batch, new, past = np.array([[1], [40]]), np.array([1, 5, 200]), 33
    whole = efficiency.seconds(step_of(spec, {"batch": batch, "new": new, "past": past}))
    assert whole.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            workload = {"batch": int(batch[i, 0]), "new": int(new[j]), "past": past}
            one = efficiency.seconds(step_of(spec, workload))
            assert whole[i, j] == pytest.approx(one, rel=1e-12)


@given(WORKLOADS, EFFICIENCIES, st.integers(2, 9))
def test_without_fixed_costs_a_device_that_is_faster_in_everything_takes_less_by_as_much(
    workload: dict[str, Any], efficiency: Efficiency, times: int
) -> None:
    scaling = attrs.evolve(
        efficiency, product_seconds=0, kernel_seconds=0, step_seconds=0, collective_seconds=0
    )
    slow = hardware.get(H100)
    fast = DeviceSpec(
        name="faster",
        memory_bytes=slow.memory_bytes,
        bandwidth_bytes_per_second=times * slow.bandwidth_bytes_per_second,
        peak_flops={name: times * rate for name, rate in slow.peak_flops.items()},
    )
    spec = load_model("llama-3-8b")
    before, after = (
        scaling.seconds(roofline.step_time(spec, one, **workload, **WIDE)) for one in (slow, fast)
    )
    assert before == pytest.approx(times * after, rel=1e-9)


@given(
    st.integers(1, 16),
    st.integers(1, 64),
    st.one_of(st.floats(0, 20), st.just(math.inf)),
    st.one_of(st.integers(1, 20), st.just(math.inf)),
)
def test_pipelining_gains_at_most_what_the_stages_allow(
    stages: int, micro_batches: int, queued: float, in_flight: float
) -> None:
    def share(micro_batches: int, queued: float, in_flight: float) -> float:
        return 1 - _pipeline_gain(stages, micro_batches, queued, in_flight)

    mine = share(micro_batches, queued, in_flight)
    ideal = (micro_batches + stages - 1) / (micro_batches * stages)
    assert ideal - 1e-9 <= mine <= 1 + 1e-9
    assert share(micro_batches, math.inf, math.inf) == pytest.approx(ideal)
    # Nothing works at the same time where one micro-batch is under way at most.
    assert share(micro_batches, queued, 1) == share(1, queued, in_flight) == 1
    # A longer queue, more of them under way and less to do never take longer.
    assert share(micro_batches, queued + 0.3, in_flight) <= mine + 1e-9
    assert share(micro_batches, queued, in_flight + 1) <= mine + 1e-9
    assert mine * micro_batches <= share(micro_batches + 1, queued, in_flight) * (micro_batches + 1)


def test_a_queue_that_holds_less_than_a_stage_keeps_stages_from_working_at_once() -> None:
    # Worked by hand for four stages. The queue holds half of one: the host is through with a
    # micro-batch when half of the last stage is left, 3.5 after its start; so each of eight starts
    # 3.5 after the one before it, and the last one ends after 7 x 3.5 + 4 of 32.
    assert _pipeline_gain(4, 8, 0.5, math.inf) == pytest.approx(1 - 28.5 / 32)
    # It holds one and a quarter: pairs start 3.75 after each other.
    assert _pipeline_gain(4, 8, 1.25, math.inf) == pytest.approx(1 - (3 * 3.75 + 1 + 4) / 32)
    # Four may be under way in six stages: four start one after the other, every six.
    assert _pipeline_gain(6, 8, math.inf, 4) == pytest.approx(1 - (6 + 3 + 6) / 48)


def test_packed_weights_take_launches_from_the_queue() -> None:
    # 20 layers a stage of 45 launches, and of 52 where seven products of a layer are expanded:
    # of 1024 the latter are too many.
    llama = load_model("meta-llama/Meta-Llama-3-70B")
    layout = Layout(pipeline_parallel=4)
    wide, packed = (
        roofline.run(
            llama, H100, prompt=4096, new_tokens=1, weights=weights, kv="fp16", layout=layout,
            chunk=512, in_flight=4, queue=1024, layer_launches=45,
        )
        for weights in ("fp16", "Q4_K_M")
    )  # fmt: skip
    assert wide.pipeline_gain == _pipeline_gain(4, 8, 1024 / (45 * 20), 4)
    gain = _pipeline_gain(4, 8, 1024 / (52 * 20), 4)
    assert packed.pipeline_gain == pytest.approx(gain, abs=1e-3)  # the head is one more
    assert packed.pipeline_gain < 0.3
    assert wide.pipeline_gain > 0.4
    with pytest.raises(LlmcalcError, match=r"^layer_launches = None"):
        roofline.run(
            llama, H100, prompt=4096, new_tokens=1, **WIDE, layout=layout, chunk=512, queue=1024
        )


@settings(deadline=None, max_examples=15)
@given(
    SPECS.filter(lambda spec: (spec.max_positions or 9999) > 1200),
    EFFICIENCIES,
    st.integers(1, 900),
    st.integers(1, 40),
)
def test_a_forecast_of_a_generation_is_that_of_its_steps(
    spec: ModelSpec, efficiency: Efficiency, prompt: int, new: int
) -> None:
    answer = forecast(
        spec, H100, efficiency=efficiency, prompt=prompt, new_tokens=new, batch=3, **WIDE
    )
    prefill = efficiency.seconds(step_of(spec, {"batch": 3, "new": prompt, "past": 0}))
    later = [
        efficiency.seconds(
            step_of(spec, {"batch": 3, "new": 1, "past": prompt + number, "mla": "absorbed"})
        )
        for number in range(new - 1)
    ]
    assert answer.first_token_seconds == pytest.approx(prefill, rel=1e-9)
    assert answer.token_seconds == pytest.approx(later, rel=1e-9)
    assert answer.seconds == pytest.approx(prefill + sum(later), rel=1e-9)
    assert answer.seconds >= answer.bound_seconds * (1 - 1e-12)
    assert answer.tokens_per_second == pytest.approx(3 * new / answer.seconds)
    assert answer.tokens_per_second_per_device == answer.tokens_per_second
    if new > 1:
        mean = float(np.mean(later))
        assert answer.mean_token_seconds == pytest.approx(mean)
        assert answer.tokens_per_second_per_user == pytest.approx(1 / mean)
    else:
        assert answer.mean_token_seconds is answer.tokens_per_second_per_user is None


@given(st.integers(1, 2000), st.integers(1, 700))
def test_the_chunks_of_a_prompt_are_the_prompt(prompt: int, chunk: int) -> None:
    spec = load_model("llama-3-8b")
    steps = roofline.run(spec, H100, prompt=prompt, new_tokens=1, chunk=chunk, **WIDE)
    whole = roofline.run(spec, H100, prompt=prompt, new_tokens=1, **WIDE)
    assert steps.prefill is not None
    assert whole.prefill is not None
    count = -(-prompt // chunk)
    assert steps.micro_batches == count
    heads = 2 * 4096 * 128256 * (count - 1)  # each chunk computes the logits of its last token
    assert steps.prefill.flops.total.sum() == whole.prefill.flops.total.sum() + heads


def test_a_step_for_every_so_many_tokens_stands_for_all() -> None:
    spec = load_model("llama-3-8b")
    every, some = (
        roofline.run(spec, H100, prompt=100, new_tokens=1001, samples=samples, **WIDE)
        for samples in (None, 10)
    )
    mine = Efficiency(bandwidth=0.7, kernel_seconds=4e-6, cache_bandwidth=0.5)
    assert some.decode_seconds(mine) == pytest.approx(every.decode_seconds(mine), rel=1e-4)
    assert some.seconds() == pytest.approx(every.seconds(), rel=1e-4)


def test_stages_work_at_the_same_time_on_micro_batches_and_the_bound_allows_for_all() -> None:
    spec = load_model("llama-3-8b")
    options: dict[str, Any] = {"prompt": 4096, "new_tokens": 3, **WIDE}
    layout = Layout(pipeline_parallel=4)
    one = roofline.run(spec, H100, chunk=512, **options)
    four = roofline.run(spec, H100, chunk=512, layout=layout, **options)
    assert four.devices == four.stages == 4
    assert four.prefill_seconds() == pytest.approx(one.prefill_seconds() / 4)
    assert four.decode_seconds() == pytest.approx(one.decode_seconds())  # of a single request
    lossless = Efficiency()
    gained = four.prefill_seconds(lossless) / one.prefill_seconds(lossless)
    assert gained == pytest.approx((8 + 3) / (8 * 4), rel=0.01)  # and what stages send
    batched = roofline.run(spec, H100, batch=6, micro_batch_tokens=4096, layout=layout, **options)
    # Six requests are not shared out by four; three of them are as few as halving allows.
    assert batched.micro_batches == batched.prefill_times == 2


def made_up(efficiency: Efficiency, spec: str = "llama-3-8b") -> list[Measurement]:
    """Return times that an efficiency would give, without an error."""
    model, found = load_model(spec), []
    for batch, new, past in ((1, 1, 20), (1, 1, 8000), (32, 1, 2000), (1, 64, 0), (1, 2048, 0)):
        step = roofline.step_time(model, "A100-SXM-80GB", batch=batch, new=new, past=past, **WIDE)
        found.append(Measurement(run=step, seconds=efficiency.seconds(step), noise=0.01))
    return found


def test_a_fit_finds_what_measurements_without_errors_were_made_with() -> None:
    general = efficiencies.get("general").efficiency
    true = attrs.evolve(general, bandwidth=0.7, compute=0.5, kernel_seconds=9e-6)
    found = fit(made_up(true))
    assert max(map(abs, found.relative_errors)) < 0.01
    # And it carries over to a model that it has not seen.
    for measurement in made_up(true, "Qwen/Qwen2.5-32B"):
        forecasted = measurement.forecast_seconds(found.efficiency)
        assert forecasted == pytest.approx(measurement.seconds, rel=0.1)


def test_a_fit_to_little_stays_close_to_where_it_starts() -> None:
    prior = efficiencies.get("llama.cpp", "RTX-3090")
    measurement = made_up(attrs.evolve(prior.efficiency, bandwidth=0.5))[0]
    near, far = (fit([measurement], prior=prior, spread=spread) for spread in (0.05, 2.0))
    assert abs(far.relative_errors[0]) < abs(near.relative_errors[0])
    start = prior.efficiency.bandwidth
    assert far.efficiency.bandwidth < near.efficiency.bandwidth < start
    # Nothing was measured of links, so nothing is known better.
    assert far.efficiency.link == pytest.approx(prior.efficiency.link, rel=1e-6)


def test_a_single_bad_measurement_moves_a_fit_little() -> None:
    true = attrs.evolve(efficiencies.get("general").efficiency, bandwidth=0.6)
    good = made_up(true)
    bad = attrs.evolve(good[1], seconds=20 * good[1].seconds)
    found = fit([good[0], *good[2:], good[1], bad])
    assert max(abs(error) for error in found.relative_errors[:-1]) < 0.05


def test_groups_that_were_not_measured_lie_between_what_they_share_with_others() -> None:
    slow, quick = (
        attrs.evolve(efficiencies.get("general").efficiency, bandwidth=share)
        for share in (0.45, 0.92)
    )
    # One model alone does not tell a low bandwidth from a high cost of kernels.
    models = ("llama-3-8b", "Qwen/Qwen2.5-32B")
    pairs = [(Group("slow", "A", "x"), one) for model in models for one in made_up(slow, model)]
    pairs += [(Group("quick", "A", "x"), one) for model in models for one in made_up(quick, model)]
    fits = fit_groups(pairs)
    assert np.abs(fits.relative_errors).max() < 0.05
    shares_ = [
        fits.efficiency(group).bandwidth
        for group in (Group("slow", "B", "x"), Group("new"), Group("quick", "B", "x"))
    ]
    assert shares_ == sorted(shares_)
    assert shares_[0] == pytest.approx(0.45, abs=0.15)
    # Without the measurements of one, it is what the others say.
    without = fits.without(np.arange(len(pairs) // 2))
    assert without.efficiency(Group("slow", "A", "x")).bandwidth > 0.7


@pytest.mark.parametrize("kernel", ["product", "attention", "all-reduce"])
def test_kernels_can_be_fitted_too(kernel: str) -> None:
    device = hardware.get("H100-SXM-80GB")
    work: dict[str, Any] = {
        "product": {"product_flops": 2.0**40, "weight_bytes": 2.0**27, "activation_bytes": 1e8},
        "attention": {"attention_flops": 2.0**40, "cache_bytes": 2.0**27},
        "all-reduce": {"exchanged_by": 8, "message_bytes": 2.0**27},
    }[kernel]
    measurement = Measurement(
        run=Work.of_kernel(device, compute="bf16", **work), seconds=5e-3, noise=0.01
    )
    assert 0 < measurement.bound_seconds < measurement.seconds
    assert abs(fit([measurement], spread=2).relative_errors[0]) < 0.05


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"compute": 0}, "compute"),
        ({"bandwidth": 1.01}, "bandwidth"),
        ({"link": True}, "link"),
        ({"kernel_seconds": -1e-6}, "kernel_seconds"),
        ({"step_seconds": math.nan}, "step_seconds"),
        ({"activation_passes": math.inf}, "activation_passes"),
        ({"sharpness": 0.5}, "sharpness"),
        ({"overlap": 1.5}, "overlap"),
        ({"stage_overlap": -1}, "stage_overlap"),
    ],
)
def test_a_parameter_outside_its_range_is_an_error(values: dict[str, Any], field: str) -> None:
    with pytest.raises(LlmcalcError, match=f"^{field} = "):
        Efficiency(**values)


def test_an_engine_or_device_that_is_not_calibrated_is_an_error_that_names_what_is() -> None:
    with pytest.raises(LlmcalcError, match=r"engine = 'llama\.c'.*did you mean 'llama\.cpp'"):
        efficiencies.get("llama.c")
    with pytest.raises(LlmcalcError, match=r"RTX-3090.*at_least='family'"):
        efficiencies.get("llama.cpp", "RTX-4090")
    with pytest.raises(LlmcalcError, match="at_least='engine'"):
        efficiencies.get("llama.cpp", "Gaudi-2")
    with pytest.raises(LlmcalcError, match="is of no device"):
        efficiencies.get("general", "RTX-4090")
    with pytest.raises(LlmcalcError, match="at_least"):
        efficiencies.get("llama.cpp", "RTX-4090", at_least="anything")  # type: ignore[arg-type]
    with pytest.raises(LlmcalcError, match="engine"):
        efficiencies.conventions("nothing", "RTX-4090")


def test_a_fallback_happens_only_when_asked_for_and_says_which_it_was() -> None:
    def level(device: str | None, at_least: Any) -> str:
        return efficiencies.get("llama.cpp", device, at_least=at_least).level

    assert level("RTX-3090", "engine") == "device"
    assert level("L40S", "engine") == "kernels"
    assert level("RTX-4090", "engine") == level("RTX-4090", "family") == "family"
    assert level("Gaudi-2", "engine") == level(None, "device") == "engine"
    assert efficiencies.get("general").level == "general"
    for engine in efficiencies.engines():
        assert efficiencies.devices(engine)
        known = efficiencies.get(engine)
        assert known.engine == engine
        assert known.device is None


def test_a_forecast_needs_an_engine_or_an_efficiency_and_not_both() -> None:
    spec = load_model("llama-3-8b")
    mine = Efficiency(bandwidth=0.8)
    given_: dict[str, Any] = {"prompt": 10, "new_tokens": 2, **WIDE}
    cases: list[dict[str, Any]] = [{}, {"engine": "vLLM", "efficiency": mine}]
    for both in cases:
        with pytest.raises(LlmcalcError, match="engine"):
            forecast(spec, H100, **both, **given_)
    with pytest.raises(LlmcalcError, match="efficiency"):
        forecast(spec, H100, efficiency=0.8, **given_)  # type: ignore[arg-type]
    assert forecast(spec, H100, efficiency=mine, **given_).calibration.level == "own"
    calibration = efficiencies.get("vLLM")
    assert forecast(spec, H100, efficiency=calibration, **given_).efficiency is (
        calibration.efficiency
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": 0, "new_tokens": 0}, "prompt = 0"),
        ({"prompt": 8000, "new_tokens": 300}, "at most 8192 positions"),
        ({"prompt": 5, "new_tokens": 5, "batch": 0}, "batch = 0"),
        ({"prompt": 5, "new_tokens": 5, "chunk": 0}, "chunk = 0"),
        ({"prompt": 5, "new_tokens": 5, "samples": 0}, "samples = 0"),
    ],
)
def test_a_run_that_is_none_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LlmcalcError, match=message):
        roofline.run(load_model("llama-3-8b"), H100, **values, **WIDE)


def test_measurements_that_are_none_are_errors() -> None:
    step = step_of(load_model("llama-3-8b"), {"batch": 1, "new": 1, "past": 1})
    prefill = roofline.run(load_model("llama-3-8b"), H100, prompt=5, new_tokens=1, **WIDE)
    for values, message in (
        ({"run": step, "seconds": 0}, "seconds = 0"),
        ({"run": step, "seconds": 1.0, "noise": -1}, "noise = -1"),
        ({"run": step, "seconds": 1.0, "of": "some"}, "of = 'some'"),
        ({"run": 5, "seconds": 1.0}, "run = 5"),
        ({"run": prefill, "seconds": 1.0, "of": "token"}, "of = 'token'"),
    ):
        with pytest.raises(LlmcalcError, match=message):
            Measurement(**values)
    with pytest.raises(LlmcalcError, match="at least one Measurement"):
        fit([])
    good = Measurement(run=step, seconds=1.0)
    with pytest.raises(LlmcalcError, match="prior"):
        fit([good], prior=0.8)  # type: ignore[arg-type]
    with pytest.raises(LlmcalcError, match="spread"):
        fit([good], spread=0)
    with pytest.raises(LlmcalcError, match="must not be empty"):
        fitting.fit_groups([])
    with pytest.raises(LlmcalcError, match="no figure for a link"):
        Work.of_kernel(
            hardware.get("Apple-M3-Max-128GB"),
            compute="fp32",
            exchanged_by=2,
            message_bytes=1.0,
        )


@pytest.mark.parametrize("name", ["vllm", "VLLM", "vLLM", "tensorrt-llm", "Llama.cpp"])
def test_engines_are_known_in_whatever_case_they_are_written(name: str) -> None:
    found = efficiencies.get(name)
    assert found.engine in efficiencies.engines()
    assert found.engine.casefold() == name.casefold()


@pytest.mark.parametrize("name", ["vlm", "", 3, None])
def test_an_engine_that_is_not_known_is_refused(name: Any) -> None:
    with pytest.raises(LlmcalcError, match=r"^engine = "):
        efficiencies.get(name)
