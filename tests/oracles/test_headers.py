"""GGUF metadata written by the gguf library, read from the header and by the library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llmcalc import headers

VALUES: dict[str, Any] = {
    "uint8": 200,
    "int8": -5,
    "uint16": 60000,
    "int16": -30000,
    "uint32": 4 * 10**9,
    "int32": -(2**31),
    "uint64": 2**63,
    "int64": -(2**63),
    "float32": 1e-5,
    "float64": 1e300,
    "bool": True,
    "string": "Llama ψ",
}


@pytest.mark.parametrize("order", [gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG])
def test_the_metadata_is_what_its_library_wrote(tmp_path: Path, order: gguf.GGUFEndian) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    for kind, value in VALUES.items():
        getattr(writer, f"add_{kind}")(f"own.{kind}", value)
    writer.add_head_count_kv([8, 8, 4])
    writer.add_array("own.floats", [0.5, -2.0])
    writer.add_array("own.flags", [True, False])
    writer.add_array("tokenizer.ggml.tokens", [f"token {n}" for n in range(1000)])
    writer.add_tensor("token_embd.weight", np.zeros((5, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with headers.open_file(path) as file:
        found = headers.read_gguf(file)
    read = gguf.GGUFReader(path).fields
    theirs = {name: field.contents() for name, field in read.items() if "GGUF." not in name}
    assert list(found.metadata) == list(theirs)
    tokens = found.metadata["tokenizer.ggml.tokens"]
    assert tokens == headers.Skipped(kind="array of string", length=1000)
    assert len(theirs.pop("tokenizer.ggml.tokens")) == 1000
    for name, value in theirs.items():
        kept = found.metadata[name]
        assert (list(kept) if isinstance(kept, tuple) else kept) == value, name
    assert found.metadata["llama.attention.head_count_kv"] == (8, 8, 4)
    assert found.metadata["own.string"] == VALUES["string"]
