"""Laws of formats and schemes: what must hold for any shape, any name, any config."""

from __future__ import annotations

import time
from contextlib import suppress
from math import prod
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmcalc import LlmcalcError, ModelSpec, formats, load_model, memory
from llmcalc.errors import UnknownNameError
from llmcalc.formats import Coverage, Extra, Format, Rule, Scheme
from llmcalc.formats.modules import Patterns
from llmcalc.layouts import Layout
from llmcalc.strategies import dense_specs

NAMES = st.sampled_from(formats.names())
SCHEMES = st.sampled_from(
    [name for name in formats.scheme_names() if name != "checkpoint"] + ["bf16", "fp8"]
)
SIDES = st.integers(1, 600)

#: Formats of one family, at the same block and coverage, from narrow to wide.
FAMILIES = [
    ("int4", "int8", "fp16", "fp32", "fp64"),
    ("fp8", "bf16", "tf32"),
    ("mxfp4", "mxfp6", "mxfp8"),
    tuple(f"gptq-int{bits}-g128" for bits in (1, 2, 4, 8)),
    tuple(f"awq-int{bits}-g64" for bits in (1, 2, 4, 8)),
    tuple(f"w{bits}a16-g32" for bits in (1, 2, 4, 8)),
    ("Q4_0", "Q5_0", "Q8_0"),
    ("Q4_1", "Q5_1"),
    ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"),
    ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ3_S", "IQ4_XS"),
]
MIXES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16", "F32")


@given(NAMES, SIDES, SIDES, st.integers(1, 8))
def test_bytes_are_the_product_of_the_terms_factors(
    name: str, rows: int, columns: int, matrices: int
) -> None:
    format = formats.get(name)
    terms = format.terms(
        ((matrices, "experts"), (rows, "rows")), ((columns, "columns"),), matrices=1
    )
    total = sum(prod(size for size, _ in factors) for _, factors in terms)
    assert total == format.bytes(rows=rows, columns=columns, matrices=matrices)
    assert total == matrices * format.bytes(rows=rows, columns=columns)


@given(NAMES, SIDES, SIDES, st.booleans())
def test_a_larger_matrix_never_takes_less(name: str, rows: int, columns: int, down: bool) -> None:
    format = formats.get(name)
    larger = format.bytes(rows=rows + down, columns=columns + (not down))
    assert larger >= format.bytes(rows=rows, columns=columns) > 0


@given(NAMES, SIDES, SIDES, st.integers(1, 5))
def test_a_split_matrix_never_takes_less_than_the_whole(
    name: str, rows: int, columns: int, parts: int
) -> None:
    format = formats.get(name)
    whole = format.bytes(rows=rows, columns=columns * parts)
    assert parts * format.bytes(rows=rows, columns=columns) >= whole
    whole = format.bytes(rows=rows * parts, columns=columns)
    assert parts * format.bytes(rows=rows, columns=columns) >= whole


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family[0])
@given(rows=SIDES, columns=SIDES)
def test_a_wider_format_of_a_family_never_takes_less(
    family: tuple[str, ...], rows: int, columns: int
) -> None:
    needed = [formats.get(name).bytes(rows=rows, columns=columns) for name in family]
    assert needed == sorted(needed)


@given(st.integers(1, 20), st.integers(1, 20))
def test_a_bit_more_never_takes_less_where_words_are_full(rows: int, columns: int) -> None:
    # Three bits are packed 32 values to three words, four bits eight to one.
    for name in ("gptq-int{}-g128", "awq-int{}-g32", "w{}a16-g64"):
        needed = [
            formats.get(name.format(bits)).bytes(rows=32 * rows, columns=32 * columns)
            for bits in range(1, 9)
        ]
        assert needed == sorted(needed)


@given(dense_specs())
def test_a_wider_format_of_a_family_never_needs_less_memory(spec: ModelSpec) -> None:
    for family in (*FAMILIES[:6], ("fp8-tensor", "fp8-channel")):
        totals = [memory.weight_bytes(spec, weights=name).total for name in family]
        assert totals == sorted(totals)


def test_a_wider_mix_of_llama_cpp_never_needs_less() -> None:
    for name in ("meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x22B-v0.1", "Qwen/Qwen3-0.6B"):
        spec = load_model(name)
        totals = [memory.weight_bytes(spec, weights=mix).total for mix in MIXES]
        assert totals == sorted(totals)


def test_llama_cpp_counts_last_matrices_where_it_has_two_bits_or_less() -> None:
    deepseek = load_model("deepseek-v3")
    scheme = formats.scheme("IQ2_XXS", deepseek)
    wide = {
        tensor.path[0] + " " + tensor.path[2]: sum(
            count for form, count in scheme.formats_of(tensor) if form.name == "Q2_K"
        )
        for tensor in deepseek.ledger.tensors
        if tensor.path[2].endswith("down.weight")
    }
    # An eighth of 61: three dense layers, then experts and shared experts of two.
    assert wide == {
        "feed_forward down.weight": 3, "experts down.weight": 2, "experts shared.down.weight": 2
    }  # fmt: skip


def test_one_matrix_of_queries_keys_and_values_has_one_format() -> None:
    phi = load_model("microsoft/phi-4")
    for mix in MIXES:
        scheme = formats.scheme(mix, phi)
        kinds = {
            tuple(form.name for form, _ in scheme.formats_of(tensor))
            for tensor in phi.ledger.tensors
            if tensor.path[2] in {"q.weight", "k.weight", "v.weight"}
        }
        [kind] = kinds
        assert len(kind) == 1


@given(dense_specs(), SCHEMES)
def test_a_schemes_formats_add_up_to_the_weights(spec: ModelSpec, name: str) -> None:
    scheme = formats.scheme(name, spec)
    total = 0
    for tensor in spec.ledger.tensors:
        rows = prod(size for size, _ in tensor.row_factors)
        columns = prod(size for size, _ in tensor.column_factors)
        kinds = scheme.formats_of(tensor)
        assert sum(count for _, count in kinds) == prod(count for count, _ in tensor.times)
        assert scheme.format_of(tensor) == kinds[0][0]
        total += sum(count * form.bytes(rows=rows, columns=columns) for form, count in kinds)
    assert memory.weight_bytes(spec, weights=name).total == total
    assert memory.weight_bytes(spec, weights=scheme).total == total


@given(dense_specs(), SCHEMES, st.data())
def test_stages_of_a_pipeline_share_out_a_schemes_layers(
    spec: ModelSpec, name: str, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, spec.num_layers))
    layout = Layout(pipeline_parallel=stages)
    whole = memory.weight_bytes(spec, weights=name).by()
    parts: dict[str, int] = {}
    for rank in range(stages):
        for group, total in (
            memory.weight_bytes(spec, weights=name, layout=layout, rank=rank).by().items()
        ):
            parts[group] = parts.get(group, 0) + total
    for group in ("attention", "feed_forward"):
        assert parts[group] == whole[group]


@given(NAMES, st.integers(1, 512))
def test_a_cache_slot_takes_a_row_without_what_is_shared(name: str, width: int) -> None:
    format = formats.get(name)
    try:
        slot = format.slot_bytes(width)
    except LlmcalcError:
        assert any(extra.rows != 1 for extra in format.extras)
        return
    shared = sum(e.bytes for e in format.extras if e.rows is None and e.columns is None)
    if not format.flat and format.pad == (1, 1):
        assert slot + shared == format.bytes(rows=1, columns=width)


def test_scales_of_a_cache_are_counted() -> None:
    llama = load_model("meta-llama/Llama-3.1-8B")
    plain = memory.kv_cache_bytes(llama, context=1000, kv="int8").total
    blocks = memory.kv_cache_bytes(llama, context=1000, kv="Q8_0").total
    grouped = memory.kv_cache_bytes(llama, context=1000, kv="fp8-group128").total
    assert blocks * 32 == plain * 34
    assert grouped * 128 == plain * 132
    with pytest.raises(LlmcalcError, match="format of weights"):
        memory.kv_cache_bytes(llama, context=1, kv="gptq-int4-g128")


@given(st.text(max_size=60))
@example("gptq-int9-g128")
@example("gptq-int4-g0")
@example("awq-int4-g" + "9" * 30)
@example("Q4_k_m")
@example("W4A16")
def test_an_unknown_name_is_an_error_with_suggestions(name: str) -> None:
    spec = load_model("meta-llama/Llama-3.1-8B")
    known = {*formats.names(), *formats.scheme_names()}
    if name in known:
        return
    for call in (formats.get, lambda weights: memory.weight_bytes(spec, weights=weights)):
        with suppress(UnknownNameError):  # gptq-int4-g77 is a name that is not listed
            call(name)


@pytest.mark.parametrize("name", ["Q4_K_M", "gptq-int4-g128", "fp8-chanel", "awq-int4-g12x"])
def test_a_misspelt_scheme_suggests_the_right_one(name: str) -> None:
    spec = load_model("meta-llama/Llama-3.1-8B")
    with pytest.raises(LlmcalcError, match="did you mean"):
        memory.weight_bytes(spec, weights=name + "~")


def test_a_block_must_be_the_sum_of_its_parts() -> None:
    with pytest.raises(LlmcalcError, match=r"2 \+ 15"):
        Format(
            name="own",
            block_elements=32,
            block_bytes=18,
            block_parts=((2, "scale"), (15, "values")),
        )
    with pytest.raises(LlmcalcError, match="rows"):
        Extra("scales", 2, rows=0, columns=1)


def test_coverage_is_data() -> None:
    spec = load_model("openai/gpt-oss-20b")
    wide, narrow = formats.get("bf16"), formats.get("int8")
    own = Coverage(
        name="own",
        wide=wide,
        rules=(Rule(format=narrow, targets=("self_attn.o_proj", "re:.*experts.*down_proj")),),
        layers=None,
    )
    assert isinstance(own, Scheme)
    covered = {t.path[2] for t in spec.ledger.tensors if own.format_of(t) == narrow}
    assert covered == {"o.weight", "down.weight"}


HOSTILE_CONFIGS: list[Any] = [
    {},
    {"quant_method": "no such"},
    {"quant_method": 3},
    {"quant_method": "fp8", "weight_block_size": [128]},
    {"quant_method": "fp8", "weight_block_size": [0, 128]},
    {"quant_method": "fp8", "weight_block_size": "128x128"},
    {"quant_method": "fp8", "modules_to_not_convert": "lm_head"},
    {"quant_method": "fp8", "modules_to_not_convert": [1]},
    {"quant_method": "fp8", "modules_to_not_convert": ["re:(a+)+$"]},
    {"quant_method": "fp8", "modules_to_not_convert": ["re:" + ".*a" * 50]},
    {"quant_method": "fp8", "modules_to_not_convert": ["*" + "a*" * 50]},
    {"quant_method": "fp8", "modules_to_not_convert": ["re:["]},
    {"quant_method": "fp8", "modules_to_not_convert": ["a" * 10_000]},
    {"quant_method": "gptq"},
    {"quant_method": "gptq", "bits": 0},
    {"quant_method": "gptq", "bits": 2.5},
    {"quant_method": "gptq", "bits": 64},
    {"quant_method": "gptq", "bits": 4, "group_size": 0},
    {"quant_method": "gptq", "bits": 4, "group_size": True},
    {"quant_method": "gptq", "bits": 4, "dynamic": [1]},
    {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*": {"bits": 8}}},
    {"quant_method": "awq", "bits": 4, "zero_point": "yes"},
    {"quant_method": "bitsandbytes"},
    {"quant_method": "bitsandbytes", "load_in_4bit": 1},
    {"quant_method": "modelopt"},
    {"quant_method": "modelopt", "quant_algo": "W1A1"},
    {"quant_method": "compressed-tensors"},
    {"quant_method": "compressed-tensors", "config_groups": [1]},
    {"quant_method": "compressed-tensors", "config_groups": {"a": 1}},
    {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {}}}},
    {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 5}}}},
    {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": {"weights": {"num_bits": 8, "strategy": "star"}}},
    },
    [1],
    "fp8",
]


@pytest.mark.parametrize("quantization", HOSTILE_CONFIGS, ids=str)
def test_a_quantization_config_that_lies_is_refused_when_it_is_asked_for(
    quantization: Any,
) -> None:
    spec = load_model(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "vocab_size": 100,
            "quantization_config": quantization,
        }
    )
    assert memory.parameters(spec).total > 0
    start = time.perf_counter()
    with pytest.raises(LlmcalcError):
        memory.weight_bytes(spec, weights="checkpoint")
    assert time.perf_counter() - start < 1


@given(st.lists(st.text(alphabet="ab.*:re0123()|[]\\+?{}^$", max_size=30), max_size=5))
@example(["re:.*.*.*.*.*b$"])
def test_any_pattern_is_matched_or_refused_at_once(patterns: list[str]) -> None:
    start = time.perf_counter()
    with suppress(LlmcalcError):
        Patterns(patterns, "ignore").match(("model.layers.10.mlp.experts.0.gate_proj" + "a" * 20,))
    assert time.perf_counter() - start < 0.5
