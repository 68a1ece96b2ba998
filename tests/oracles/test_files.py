"""Files written by the safetensors, gguf and transformers libraries, read from their headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from llmcalc import files, load_model
from llmcalc.files import FileTensor
from tests.truth import rows

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def test_a_safetensors_file_has_the_tensors_that_its_library_wrote(tmp_path: Path) -> None:
    made = {f"t{n}": torch.zeros(3, n + 1).to(dtype) for n, dtype in enumerate(DTYPES)}
    made["scalar"], made["empty"] = torch.tensor(1.5), torch.zeros(0, 4)
    save_file(made, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = {tensor.name: tensor for tensor in files.tensors(tmp_path / "model.safetensors")}
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name] == FileTensor(
            name=name,
            shape=tuple(tensor.shape),
            dtype=DTYPES[tensor.dtype],
            bytes=tensor.nbytes,
            file="model.safetensors",
        )
    total = sum(tensor.nbytes for tensor in made.values())
    assert files.weight_bytes(tmp_path / "model.safetensors").total == total


def test_a_gguf_file_has_the_tensors_that_its_library_wrote(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_array("tokenizer.ggml.tokens", [f"token {n}" for n in range(1000)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 1000)
    writer.add_bool("flag", True)
    writer.add_string("general.name", "x" * 5000)
    sizes = {}
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        name = f"blk.0.{kind.name}.weight"
        if block == 1 or kind.name == "Q8_1":  # gguf has its block as it was before 2024
            continue
        data = np.zeros((3, 2 * size), dtype=np.uint8)
        writer.add_tensor(name, data, raw_dtype=kind)
        sizes[name] = kind.name, (3, 2 * block), 6 * size
    writer.add_tensor("token_embd.weight", np.zeros((5, 7), dtype=np.float16))
    sizes["token_embd.weight"] = "F16", (5, 7), 70
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {t.name: (t.dtype, t.shape, t.bytes) for t in files.tensors(path)}
    assert found == sizes
    read = {t.name: (t.tensor_type.name, t.n_bytes) for t in gguf.GGUFReader(path).tensors}
    assert {name: (dtype, size) for name, (dtype, _, size) in found.items()} == read


def test_a_big_endian_gguf_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("token_embd.weight", np.zeros((5, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    [tensor] = files.tensors(path)
    assert (tensor.shape, tensor.bytes) == ((5, 8), 160)


def test_the_parts_of_a_split_gguf_file_are_read_together(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(
        tmp_path / "model.gguf", "llama", split_max_tensors=2, small_first_shard=False
    )
    for n in range(5):
        writer.add_tensor(f"blk.{n}.attn_q.weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 3
    assert len(files.tensors(parts[0])) == len(files.tensors(tmp_path)) == 5
    parts[1].unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        files.tensors(parts[0])


#: Several attentions, mixtures, recurrences, tied and untied heads, buffers.
TYPES = (
    "llama", "gpt2", "gemma3_text", "qwen3_moe", "deepseek_v3", "gpt_oss", "mamba", "qwen3_next",
    "phi3", "falcon", "bloom", "lfm2",
)  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    row["config"]["model_type"]: row["config"] for row in rows("tiny_measured")
}


def build(model_type: str, fields: dict[str, Any]) -> PreTrainedModel:
    from_config: Any = AutoModelForCausalLM.from_config
    model: PreTrainedModel = from_config(CONFIG_MAPPING[model_type](**fields))
    return model


@pytest.mark.parametrize("model_type", TYPES)
def test_what_transformers_saves_is_what_the_config_describes(
    model_type: str, tmp_path: Path
) -> None:
    fields = {key: value for key, value in TINY[model_type].items() if key != "model_type"}
    build(model_type, fields).save_pretrained(tmp_path, max_shard_size="200KB")
    spec = load_model(json.loads((tmp_path / "config.json").read_text()))
    report = files.compare(tmp_path, spec)
    assert report
    assert not report.differences, report.explain()
    assert not report.other
    written = list(tmp_path.glob("*.safetensors"))
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in written)
    total = sum(path.stat().st_size for path in written)
    assert files.weight_bytes(tmp_path).total == total - headers


def test_a_wider_file_is_told_by_its_group(tmp_path: Path) -> None:
    fields = {key: value for key, value in TINY["llama"].items() if key != "model_type"}
    build("llama", fields).save_pretrained(tmp_path)
    wider = {**TINY["llama"], "intermediate_size": fields["intermediate_size"] + 8}
    report = files.compare(tmp_path, load_model(wider))
    more = 3 * 8 * fields["hidden_size"] * fields["num_hidden_layers"]
    assert not report
    assert report.differences == {"feed_forward": -more}
    assert report.difference == -more
    assert "feed_forward" in report.explain()


def test_a_quantised_file_counts_its_parameters_and_its_scales_apart(tmp_path: Path) -> None:
    spec = load_model({**TINY["llama"], "num_hidden_layers": 1})
    embed = TINY["llama"]["hidden_size"]
    out = "model.layers.0.self_attn.o_proj"
    made = {
        # GPTQ: eight values a word along the columns; zero points along the rows.
        f"{out}.qweight": torch.zeros(embed // 8, embed, dtype=torch.int32),
        f"{out}.qzeros": torch.zeros(1, embed // 8, dtype=torch.int32),
        f"{out}.scales": torch.zeros(1, embed, dtype=torch.float16),
        f"{out}.g_idx": torch.zeros(embed, dtype=torch.int32),
        # compressed-tensors, bitsandbytes and fp8.
        "model.layers.0.mlp.up_proj.weight_packed": torch.zeros(4, 2, dtype=torch.int32),
        "model.layers.0.mlp.up_proj.weight_scale": torch.zeros(4, 1, dtype=torch.bfloat16),
        "model.layers.0.mlp.down_proj.weight": torch.zeros(32, 1, dtype=torch.uint8),
        "model.layers.0.mlp.down_proj.weight.absmax": torch.zeros(1),
        "model.layers.0.mlp.gate_proj.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn),
        "model.layers.0.mlp.gate_proj.weight_scale_inv": torch.zeros(1, 1),
        "model.layers.1.mlp.gate_proj.weight": torch.zeros(4, 4),
    }
    save_file(made, tmp_path / "model.safetensors")
    report = files.compare(tmp_path, spec)
    assert report.file == {"attention": embed * embed, "feed_forward": 64 + 64 + 16}
    assert report.scales == embed // 8 + 2 * embed + 4 + 1 + 1
    assert report.beyond == 16
