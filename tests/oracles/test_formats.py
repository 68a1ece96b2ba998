"""Formats against what others store: block structs, file sizes, published counts, libraries."""

from __future__ import annotations

import json
from typing import Any

import gguf
import pytest
import torch

from llmcalc import ModelSpec, formats, load_model, memory
from llmcalc.formats import Format
from tests.truth import DATA

SIZES: dict[str, dict[str, Any]] = json.loads((DATA / "llama_cpp_sizes.json").read_text())


@pytest.mark.parametrize(
    "kind", [kind for kind in gguf.GGML_QUANT_SIZES if kind.name in formats.names()]
)
def test_a_gguf_block_has_the_bytes_that_its_library_states(
    kind: gguf.GGMLQuantizationType,
) -> None:
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    if kind.name == "Q8_1":
        size = 36  # ggml-common.h; the library has the block as it was before 2024
    format = formats.get(kind.name)
    assert (format.block_elements, format.block_bytes) == (elements, size)
    assert sum(part for part, _ in format.block_parts) == size


def test_every_block_type_of_gguf_is_known() -> None:
    plain = {"F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64"}
    assert {kind.name for kind in gguf.GGML_QUANT_SIZES} - plain <= set(formats.names())


def sizes() -> list[tuple[str, str, float, float]]:
    """Title, mix, published figure, and what half of its last digit may hide."""
    found = []
    for title, table in SIZES.items():
        for mix, value in table["values"].items():
            digits = 0.00006 if title.startswith("bits") else 0.018
            found.append((title, mix, value, digits))
    return found


@pytest.mark.parametrize(("title", "mix", "value", "digits"), sizes())
def test_a_mix_of_llama_cpp_is_as_large_as_its_files(
    title: str, mix: str, value: float, digits: float
) -> None:
    spec = load_model(SIZES[title]["model"])
    total = memory.weight_bytes(spec, weights=mix).total
    if title.startswith("bits"):
        assert 8 * total / memory.parameters(spec).total == pytest.approx(value, abs=digits)
    else:  # files have metadata besides, a few megabytes
        assert total / 1e9 == pytest.approx(value, abs=digits)


def test_deepseek_v3_has_the_scales_that_its_checkpoint_has() -> None:
    spec = load_model("deepseek-ai/DeepSeek-V3")
    stored = memory.weight_bytes(spec, weights="checkpoint")
    scales = sum(term.value for term in stored.terms if term.path[-1].endswith(".scales"))
    # 41 540 496 are published: of 61 layers and one that predicts a second token, which has
    # an attention and a mixture like any other.
    attention = (12 * 56) + (192 * 12) + (5 * 56) + (256 * 4) + (56 * 128)
    mixture = 257 * 3 * 16 * 56
    assert scales == 4 * (41_540_496 - attention - mixture)


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(("rows", "columns"), [(256, 512), (384, 128), (1536, 256)])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_gptq_or_awq_matrix_has_the_tensors_of_its_library(
    rows: int, columns: int, bits: int, group: int
) -> None:
    # AutoGPTQ: qweight (in * bits / 32, out), qzeros (in / g, out * bits / 32), scales (in / g,
    # out), g_idx (in). AutoAWQ: qweight (in, out * bits / 32), and no g_idx.
    int32, half = torch.int32, torch.float16
    groups = columns // group
    qzeros = torch.zeros(groups, rows * bits // 32, dtype=int32)
    scales = torch.zeros(groups, rows, dtype=half)
    gptq = torch.zeros(columns * bits // 32, rows, dtype=int32)
    awq = torch.zeros(columns, rows * bits // 32, dtype=int32)
    order = torch.zeros(columns, dtype=int32)
    name = f"gptq-int{bits}-g{group}"
    assert formats.get(name).bytes(rows=rows, columns=columns) == nbytes(
        gptq, qzeros, scales, order
    )
    name = f"awq-int{bits}-g{group}"
    assert formats.get(name).bytes(rows=rows, columns=columns) == nbytes(awq, qzeros, scales)


def test_three_bits_fill_three_words_for_32_values() -> None:
    # AutoGPTQ: qweight (in / 32 * 3, out), qzeros (in / g, out / 32 * 3).
    qweight = torch.zeros(512 // 32 * 3, 256, dtype=torch.int32)
    qzeros = torch.zeros(4, 256 // 32 * 3, dtype=torch.int32)
    rest = torch.zeros(4, 256, dtype=torch.float16), torch.zeros(512, dtype=torch.int32)
    expected = nbytes(qweight, qzeros, *rest)
    assert formats.get("gptq-int3-g128").bytes(rows=256, columns=512) == expected


#: Rows, columns, and the bytes of what bitsandbytes 0.50.2 `quantize_4bit` returns and the tensors
#: of `QuantState.as_dict(packed=True)`, without and with double quantisation.
BITSANDBYTES = [
    (64, 64, 2368, 3204),
    (100, 24, 1416, 2330),
    (512, 1024, 294976, 271552),
    (1000, 257, 144628, 133668),
]


@pytest.mark.parametrize(("rows", "columns", "single", "double"), BITSANDBYTES)
def test_a_matrix_of_bitsandbytes_has_the_tensors_of_its_state(
    rows: int, columns: int, single: int, double: int
) -> None:
    assert formats.get("nf4-single").bytes(rows=rows, columns=columns) == single
    # The offset, a float32, is in the state's JSON text in a file, and a tensor on a device.
    assert formats.get("nf4").bytes(rows=rows, columns=columns) == double + 4
    assert formats.get("llm-int8").bytes(rows=rows, columns=columns) == rows * columns + 4 * rows


def test_bits_of_an_element_are_those_that_papers_state() -> None:
    def bits(name: str) -> float:
        return 8 * formats.get(name).bytes(rows=8192, columns=8192) / 8192**2

    assert bits("mxfp4") == 4.25  # OCP MX 1.0
    assert bits("mxfp6") == 6.25
    assert bits("mxfp8") == 8.25
    assert bits("nvfp4") == pytest.approx(4.5)  # NVIDIA: 4.5 with a scale for 16
    assert bits("nf4") == pytest.approx(4.127, abs=0.001)  # QLoRA: 0.127 bits for constants
    assert bits("nf4-single") == pytest.approx(4.5, abs=0.001)  # QLoRA: 0.5 bits
    assert bits("fp8-block128") == 8 + 32 / 128**2
    assert bits("Q4_K") == 4.5  # llama.cpp, pull request 1684
    assert bits("Q6_K") == 6.5625


def test_gpt_oss_is_as_large_as_its_checkpoint() -> None:
    # huggingface.co/openai/gpt-oss-20b: model.safetensors.index.json, total_size.
    spec = load_model("openai/gpt-oss-20b")
    assert memory.weight_bytes(spec, weights="checkpoint").total == 13_761_264_768


def test_layers_that_a_config_names_stay_wide() -> None:
    # As in Meta's FP8 checkpoints: attention, and the feed-forward of the first and last layers.
    named = [f"model.layers.{layer}.self_attn" for layer in range(2)]
    named += ["model.layers.0.mlp", "lm_head"]
    spec = config(quant_method="fbgemm_fp8", modules_to_not_convert=named)
    stored = memory.weight_bytes(spec, weights="checkpoint").regroup(lambda path: path[-1])
    size = 4096 * 14336
    assert stored["q.weight"] == 2 * 2 * 4096**2
    assert stored["up.weight bf16"] == 2 * size
    assert stored["up.weight fp8 per row"] == size
    assert stored["up.weight fp8 per row.scales"] == 4 * 14336


def test_deepseek_v4_has_its_experts_in_four_bits() -> None:
    spec = load_model("deepseek-ai/DeepSeek-V4-Flash")
    scheme = formats.scheme("checkpoint", spec)
    kinds = {t.path[-1]: scheme.format_of(t).name for t in spec.ledger.tensors if t.active}
    assert set(kinds.values()) == {"mxfp4"}
    others = {scheme.format_of(t).name for t in spec.ledger.tensors if not t.active}
    assert others == {"bf16", "fp8 128x128"}


def config(**quantization: Any) -> ModelSpec:
    return load_model(
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "num_hidden_layers": 2,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "vocab_size": 128256,
            "torch_dtype": "bfloat16",
            "quantization_config": quantization,
        }
    )


ELEMENTS = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
ROWS = 4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096
COLUMNS = 6 * 4096 + 14336
MATRICES = 7

LINEAR = {"targets": ["Linear"]}
CHANNEL_FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
GROUP_INT4 = {
    "num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True,
}  # fmt: skip

#: What a ``quantization_config`` says, and the bytes of one layer's matrices.
CONFIGS: list[tuple[dict[str, Any], int]] = [
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ELEMENTS + ELEMENTS // 4096),
    ({"quant_method": "fp8"}, ELEMENTS + 4 * MATRICES),
    ({"quant_method": "fp8", "activation_scheme": "static"}, ELEMENTS + 8 * MATRICES),
    ({"quant_method": "fbgemm_fp8"}, ELEMENTS + 4 * ROWS),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True},
        ELEMENTS // 2 + ELEMENTS // 128 * 2 + ELEMENTS // 256 + 4 * COLUMNS,
    ),
    (
        {"quant_method": "gptq", "bits": 8, "group_size": -1},
        ELEMENTS + 3 * ROWS + 4 * COLUMNS,
    ),
    (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
        ELEMENTS // 2 + ELEMENTS // 128 * 2 + ELEMENTS // 256,
    ),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        ELEMENTS // 2 + ELEMENTS // 64 + ELEMENTS // 4096 + (4 + 1024 + 64) * MATRICES,
    ),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ELEMENTS + 4 * ROWS),
    (
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"group_0": {**LINEAR, "weights": CHANNEL_FP8}},
            "ignore": ["lm_head"],
        },
        ELEMENTS + 2 * ROWS,
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {**LINEAR, "weights": GROUP_INT4}},
            "ignore": ["re:.*lm_head"],
        },
        ELEMENTS // 2 + ELEMENTS // 128 * 2 + 16 * MATRICES,
    ),
    (
        # A scale of one byte for 32 values, as compressed-tensors 0.15 writes it.
        {
            "quant_method": "compressed-tensors",
            "format": "mxfp8-quantized",
            "config_groups": {
                "group_0": {
                    **LINEAR,
                    "weights": {
                        "num_bits": 8,
                        "type": "float",
                        "strategy": "group",
                        "group_size": 32,
                        "symmetric": True,
                        "scale_dtype": "torch.uint8",
                    },
                }
            },
            "ignore": ["lm_head"],
        },
        ELEMENTS + ELEMENTS // 32,
    ),
    (
        {
            "quant_method": "modelopt",
            "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]},
        },
        ELEMENTS // 2 + ELEMENTS // 16 + 8 * MATRICES,
    ),
    (
        {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True},
        ELEMENTS // 2 + ELEMENTS // 128 * 2 + ELEMENTS // 256 + 4 * COLUMNS,
    ),
]


@pytest.mark.parametrize(("quantization", "expected"), CONFIGS)
def test_a_quantization_config_gives_the_bytes_of_its_tensors(
    quantization: dict[str, Any], expected: int
) -> None:
    stored = memory.weight_bytes(config(**quantization), weights="checkpoint")
    groups = stored.by()
    assert groups["attention"] + groups["feed_forward"] == 2 * expected
    wide = 2 * 128256 * 4096 * 2 + (2 * 2 + 1) * 4096 * 2
    assert groups["embeddings"] + groups["head"] + groups["norms"] == wide


def test_formats_know_nothing_of_the_whole_but_its_parts() -> None:
    own = Format(name="own", block_elements=4, block_bytes=3)
    spec = config(quant_method="fp8")
    assert formats.scheme(own, spec).uniform == own
