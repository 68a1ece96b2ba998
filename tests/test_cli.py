"""The command line: its figures, its JSON, its errors, and what it does not import."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from llmcalc import ModelSpec, hardware, load_model, roofline
from llmcalc.__main__ import main
from llmcalc.models.modes import TOLERANCE
from llmcalc.models.tiny_decoder import TinyDecoder
from llmcalc.models.weights import load_weights

SIZES = ("--vocab-size", "23", "--d-model", "8", "--d-ff", "16", "--num-layers", "2")
TINY = (*SIZES, "--max-seq-len", "64")
SPEC = ModelSpec.assignment_decoder(vocab_size=23, d_model=8, d_ff=16, num_layers=2, max_seq_len=64)

TINYLLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 5632,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}

Output = pytest.CaptureFixture[str]


def answer(capsys: Output, *argv: str, status: int = 0) -> Any:
    """Run with ``--json``, and return what was printed."""
    assert main([*argv, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def text(capsys: Output, *argv: str, status: int = 0) -> str:
    """Run, and return what was printed."""
    assert main(list(argv)) == status
    return capsys.readouterr().out


def cells(printed: str, first_header: str) -> list[list[str]]:
    """Return the rows of the table that begins with a header; columns are two spaces apart."""
    lines = iter(printed.splitlines())
    for line in lines:
        if line.strip().startswith(first_header):
            break
    next(lines)
    table = []
    for line in lines:
        if not line.strip():
            break
        table.append([cell.strip() for cell in line.split("  ") if cell.strip()])
    return table


def process(*argv: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own."""
    start = ["-m", "llmcalc"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *start, *argv], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def weights(tmp_path: Path, capsys: Output) -> str:
    """A file with the weights of a tiny decoder."""
    path = str(tmp_path / "tiny.pt")
    text(capsys, "decoder", "init", path, *TINY)
    return path


def written(folder: Path, values: object) -> str:
    """Write JSON to a file, and return its path."""
    path = folder / "values.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return str(path)


# ---- fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "parameters", "weights_gib", "batches"),
    [
        (("--assignment",), 5_614_665_728, "10.458", (556, 278, 139)),
        ((), 8_030_261_248, "14.958", (520, 260, 130)),
    ],
)
def test_fit_prints_the_assignments_table_by_default(
    capsys: Output,
    flags: tuple[str, ...],
    parameters: int,
    weights_gib: str,
    batches: tuple[int, ...],
) -> None:
    caches = ("0.125", "0.250", "0.500")
    contexts = (1024, 2048, 4096)
    values = answer(capsys, "fit", *flags)
    assert values["parameters"] == parameters
    assert values["device_memory_bytes"] == 80 * 2**30
    assert [row["context"] for row in values["rows"]] == list(contexts)
    assert [row["max_batch_size"] for row in values["rows"]] == list(batches)
    assert [row["kv_cache_bytes"] for row in values["rows"]] == [2**27, 2**28, 2**29]
    assert {f"{row['weight_bytes'] / 2**30:.3f}" for row in values["rows"]} == {weights_gib}
    for row in values["rows"]:
        used = row["weight_bytes"] + row["max_batch_size"] * row["kv_cache_bytes"]
        assert 0 <= row["left_bytes"] == 80 * 2**30 - used < row["kv_cache_bytes"]
    grouped = f"{parameters:,}".replace(",", " ")
    assert cells(text(capsys, "fit", *flags), "tensor parallel") == [
        ["1", str(context), grouped, weights_gib, cache, str(batch)]
        for context, cache, batch in zip(contexts, caches, batches, strict=True)
    ]


def test_fit_prints_the_assignments_tensor_parallel_table(capsys: Output) -> None:
    argv = ("fit", "--assignment", "--tp", "2", "4", "8", "--context", "1024")
    printed = cells(text(capsys, *argv), "tensor parallel")
    assert [(row[0], row[3], row[5]) for row in printed] == [
        ("2", "5.229", "1196"),
        ("4", "2.615", "2476"),
        ("8", "1.307", "5036"),
    ]
    # What is not the table's: the parameters are the whole model's at every degree.
    assert {row[2] for row in printed} == {"5 614 665 728"}
    values = answer(capsys, *argv)
    assert [row["max_batch_size"] for row in values["rows"]] == [1196, 2476, 5036]
    assert [row["kv_cache_bytes"] for row in values["rows"]] == [2**26, 2**25, 2**24]


def test_fit_shows_the_working_of_the_cache_by_default_and_of_the_weights_on_request(
    capsys: Output,
) -> None:
    line = "k  8 kv_heads x 128 head_dim x 2048 tokens x 32 layers x 2 bytes = 134 217 728 B"
    default = text(capsys, "fit", "--context", "2048")
    assert line in default
    assert (
        "max batch size = floor(69 838 823 424 B left / 268 435 456 B per request) = 260" in default
    )
    assert "inner" not in default
    full = text(capsys, "fit", "--context", "2048", "--explain")
    assert line in full
    assert "total 8 030 261 248 parameters" in full
    assert "total 16 060 522 496 B (14.958 GiB)" in full


def test_fit_gives_the_working_as_factors_whose_product_is_the_number(capsys: Output) -> None:
    for row in answer(capsys, "fit", "--tp", "2")["rows"]:
        for kind, total in (("kv_cache", "kv_cache_bytes"), ("weights", "weight_bytes")):
            terms = row["working"][kind]
            for term in terms:
                assert math.prod(factor["value"] for factor in term["factors"]) == term["bytes"]
            assert sum(term["bytes"] for term in terms) == row[total]


def test_what_does_not_fit_is_a_batch_of_0_with_its_reason(capsys: Output) -> None:
    argv = ("fit", "--memory", "8GiB", "--context", "1024")
    printed = text(capsys, *argv)
    assert cells(printed, "tensor parallel")[0][-1] == "0"
    assert "does not fit: the weights alone need 16 060 522 496 B" in printed
    (row,) = answer(capsys, *argv)["rows"]
    assert (row["max_batch_size"], row["fits"], row["left_bytes"]) == (0, False, 0)
    assert row["short_bytes"] == 16_060_522_496 + 2**27 - 8 * 2**30


def test_a_request_that_holds_nothing_has_no_largest_batch(capsys: Output) -> None:
    argv = ("fit", "--context", "0")
    assert answer(capsys, *argv)["rows"][0]["max_batch_size"] is None
    assert cells(text(capsys, *argv), "tensor parallel")[0][-1] == "not limited"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("80GiB", 80 * 2**30),
        ("80GB", 80 * 10**9),
        ("80 GB", 80 * 10**9),
        ("1.5TiB", 3 * 2**39),
        ("3KB", 3000),
        ("3MB", 3 * 10**6),
        ("3KiB", 3072),
        ("3MiB", 3 * 2**20),
        ("0.1TB", 10**11),
        ("17179869184B", 2**34),
    ],
)
def test_memory_is_read_exactly(capsys: Output, size: str, expected: int) -> None:
    assert answer(capsys, "fit", "--memory", size)["device_memory_bytes"] == expected


@pytest.mark.parametrize("size", ["80", "80G", "80gb", "80 gib", "-80GiB", "GiB", "0.3B", "1e3GB"])
def test_memory_without_a_clear_unit_is_refused(capsys: Output, size: str) -> None:
    assert "--memory" in refusal(capsys, "fit", f"--memory={size}")


def test_a_devices_memory_is_that_of_the_catalogue(capsys: Output) -> None:
    values = answer(capsys, "fit", "--device", "h100 sxm 80gb")
    assert values["device"] == "H100-SXM-80GB"
    assert values["device_memory_bytes"] == hardware.get("H100-SXM-80GB").memory_bytes
    assert "H100-SXM-80GB" in text(capsys, "fit", "--device", "h100 sxm 80gb")


def test_sizes_that_are_given_replace_those_of_llama(capsys: Output) -> None:
    sizes = (
        *("--num-layers", "2", "--num-query-heads", "4", "--num-kv-heads", "2"),
        *("--embed-dim", "64", "--inner-dim", "128", "--vocab-size", "100"),
    )
    # Embeddings 6400, head 6400, norms 320, attention 24 576, feed-forward 49 152.
    values = answer(capsys, "fit", *sizes)
    assert values["parameters"] == 86_848
    assert values["model"] == "model"
    # Wider heads: 2 layers of (2 * 4 + 2 * 2) heads * 16 more * 64.
    wider = answer(capsys, "fit", *sizes, "--head-dim", "32")
    assert wider["parameters"] == 86_848 + 24_576
    assert wider["rows"][0]["kv_cache_bytes"] == 2 * values["rows"][0]["kv_cache_bytes"]
    assert answer(capsys, "fit")["model"] == "llama-3-8b"


def test_formats_change_the_bytes_that_they_name(capsys: Output) -> None:
    (full,) = answer(capsys, "fit", "--context", "1024")["rows"]
    (weights,) = answer(capsys, "fit", "--context", "1024", "--weights", "fp8")["rows"]
    (kv,) = answer(capsys, "fit", "--context", "1024", "--kv", "fp8")["rows"]
    assert (2 * weights["weight_bytes"], weights["kv_cache_bytes"]) == (
        full["weight_bytes"],
        full["kv_cache_bytes"],
    )
    assert (kv["weight_bytes"], 2 * kv["kv_cache_bytes"]) == (
        full["weight_bytes"],
        full["kv_cache_bytes"],
    )


def test_a_config_is_read_from_its_file_and_from_its_folder(capsys: Output, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINYLLAMA), encoding="utf-8")
    for source in (path, tmp_path):
        values = answer(capsys, "fit", "--config", str(source))
        assert values["parameters"] == 1_100_048_384
        assert values["max_positions"] == 2048
    note = "note: the model was made for 2048 positions, not 4096"
    assert note in text(capsys, "fit", "--config", str(path))
    assert note not in text(capsys, "fit", "--config", str(path), "--context", "2048")


# ---- intensity ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "prefill", "decode"),
    [
        ("assignment", "71.310", "0.998"),
        ("standard", "57.444", "0.993"),
        ("flash", "517.000", "1.009"),
    ],
)
def test_intensity_prints_prefill_and_decode(
    capsys: Output, algorithm: str, prefill: str, decode: str
) -> None:
    argv = ("intensity", "--algorithm", algorithm, "--context", "1024", "--batch", "1")
    table = cells(text(capsys, *argv), "algorithm")
    assert [(row[1], row[-1]) for row in table] == [("prefill", prefill), ("decode", decode)]
    for row in answer(capsys, *argv)["rows"]:
        assert row["intensity"] == row["flops"] / row["bytes"]
        assert f"{row['intensity']:.3f}" == (prefill if row["phase"] == "prefill" else decode)


def test_intensity_passes_every_argument_to_the_formulas(capsys: Output) -> None:
    shape: dict[str, int] = {"head_dim": 64, "query_heads": 8}
    values = answer(
        capsys,
        *("intensity", "--context", "512", "--batch", "4", "--decode-context", "256"),
        *("--head-dim", "64", "--query-heads", "8", "--kv-heads", "2", "--element-bytes", "1"),
        *("--softmax-flops", "7", "--causal", "--shared-kv"),
    )
    for row, call, shared in zip(
        values["rows"],
        ({"queries": 512, "keys": 512, "batch": 1}, {"queries": 1, "keys": 256, "batch": 4}),
        (False, True),
        strict=True,
    ):
        assert {name: row[name] for name in call} == call
        flops = roofline.attention_flops(**call, **shape, causal=True, softmax_flops=7)
        moved = roofline.attention_bytes(
            **call,
            **shape,
            kv_heads=2,
            element_bytes=1,
            algorithm="standard",
            causal=True,
            shared_kv=shared,
        )
        assert (row["flops"], row["bytes"]) == (flops, moved)


def test_sharing_the_cache_is_a_choice_and_by_default_the_algorithms_convention(
    capsys: Output,
) -> None:
    def moved(*flags: str) -> int:
        argv = ("intensity", "--algorithm", "assignment", "--batch", "8", "--context", "1")
        row = answer(capsys, *argv, *flags)["rows"][-1]
        assert (row["phase"], row["batch"]) == ("decode", 8)
        return int(row["bytes"])

    assert moved() == moved("--shared-kv") == 2 * (2049 * 128 + 3 * 1024 * 8)
    assert moved("--no-shared-kv") == 8 * 2 * (2049 * 128 + 3 * 1024)


def test_a_devices_ridge_point_says_what_binds(capsys: Output) -> None:
    argv = (
        *("intensity", "--device", "H100-SXM-80GB", "--algorithm", "flash"),
        *("--batch", "1", "--context", "512", "1024"),
    )
    printed = text(capsys, *argv)
    assert [row[-1] for row in cells(printed, "algorithm")] == ["memory", "compute", "memory"]
    assert "ridge point of H100-SXM-80GB, bf16: 295.2 FLOP/byte" in printed
    ridge = answer(capsys, *argv, "--format", "fp8")["ridge"]
    assert ridge == {
        "device": "H100-SXM-80GB",
        "format": "fp8",
        "flop_per_byte": hardware.get("H100-SXM-80GB").ridge_point("fp8"),
    }


@pytest.mark.parametrize("name", ["picture.png", "picture.svg", "without ending"])
def test_intensity_writes_its_picture_where_it_says(
    capsys: Output, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    argv = ("intensity", "--plot", str(path), "--device", "H100-SXM-80GB")
    assert f"written: {path}" in text(capsys, *argv, "--algorithm", "standard", "flash")
    start = path.read_bytes()[:200]
    assert start.startswith(b"<?xml" if name.endswith("svg") else b"\x89PNG")
    assert answer(capsys, *argv)["plot"] == str(path)


def test_the_picture_shows_prefill_and_decode(capsys: Output, tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    argv = ("intensity", "--plot", str(path), "--decode-context", "333", "--batch", "8", "1")
    more = ("--causal", "--shared-kv", "--query-heads", "8", "--kv-heads", "2")
    text(capsys, *argv, *more, "--head-dim", "64", "--element-bytes", "1", "--device", "L4")
    drawn = path.read_text(encoding="utf-8")
    # Matplotlib writes each text as a comment beside its glyphs.
    for title in ("Causal prefill attention", "Decode attention at context 333"):
        assert f"<!-- {title}" in drawn
    assert drawn.count("8 query heads, 2 KV heads, head_dim 64, 1 byte an element") == 2
    assert drawn.count("<!-- ridge of L4, bf16: 403 FLOP/byte -->") == 2
    assert "<!-- standard, one KV shared -->" in drawn


# ---- decoder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_init_writes_the_weights_of_its_seed(capsys: Output, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"decoder.{ending}"
    values = answer(capsys, "decoder", "init", str(path), "--seed", "5", *TINY)
    expected = TinyDecoder(SPEC, generator=torch.Generator().manual_seed(5))
    count = sum(weight.numel() for weight in expected.parameters())
    assert values == {"file": str(path), "parameters": count, "seed": 5}
    state = load_weights(TinyDecoder(SPEC), path).state_dict()
    for name, weight in expected.state_dict().items():
        assert torch.equal(state[name], weight)


def test_the_default_decoder_is_the_assignments(capsys: Output, tmp_path: Path) -> None:
    values = answer(capsys, "decoder", "init", str(tmp_path / "decoder.pt"))
    assert values["parameters"] == 2_615_272


def test_evaluate_tells_right_logits_from_wrong_ones(
    capsys: Output, tmp_path: Path, weights: str
) -> None:
    decoder = load_weights(TinyDecoder(SPEC), weights).eval()
    with torch.inference_mode():
        logits = decoder(torch.tensor([[3, 1, 4]]))[0].tolist()
    wrong = [*logits[-1][:-1], logits[-1][-1] + 0.01]
    cases = [
        {"prompt": [3, 1, 4], "expected_logits": logits},
        {"prompt": [3, 1, 4], "expected_logits": logits[-1]},
    ]
    argv = ("decoder", "evaluate", weights)
    values = answer(capsys, *argv, written(tmp_path, cases), *TINY)
    assert (values["cases"], values["passed"], values["pass_rate"]) == (2, 2, 1.0)
    assert values["worst_difference"] <= 1e-6

    path = written(tmp_path, [*cases, {"prompt": [3, 1, 4], "expected_logits": wrong}])
    values = answer(capsys, *argv, path, *TINY, status=1)
    assert [result["passed"] for result in values["results"]] == [True, True, False]
    assert values["worst_difference"] == pytest.approx(0.01, rel=1e-3)
    printed = text(capsys, *argv, path, *TINY, status=1)
    assert [row[1] for row in cells(printed, "case")] == ["pass", "pass", "FAIL"]
    assert "passed 2 of 3 (66.7%), worst difference 0.01" in printed


def test_logits_that_are_no_numbers_fail_and_are_null_in_json(
    capsys: Output, tmp_path: Path, weights: str
) -> None:
    path = written(tmp_path, [{"prompt": [1], "expected_logits": [math.nan] * 23}])
    values = answer(capsys, "decoder", "evaluate", weights, path, *TINY, status=1)
    assert values["worst_difference"] is None


def test_kv_evaluate_compares_random_prompts_and_those_of_cases(
    capsys: Output, tmp_path: Path, weights: str
) -> None:
    argv = ("decoder", "kv-evaluate", weights)
    more = ("--new-tokens", "5", "--prefill-chunk-size", "3", *TINY)
    values = answer(capsys, *argv, "--prompt-lengths", "1", "7", *more, "--dtype", "float64")
    assert (values["cases"], values["passed"]) == (2, 2)
    assert values["worst_difference"] <= 1e-12
    assert {result["tolerance"] for result in values["results"]} == {TOLERANCE}

    path = written(tmp_path, [{"prompt": [2, 3, 4, 5], "expected_logits": [0.0]}])
    assert "passed 1 of 1 (100.0%)" in text(capsys, *argv, path, *more)


def test_kv_evaluate_fails_where_a_difference_is_not_tolerated(
    capsys: Output, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncached = TinyDecoder.forward

    def broken(decoder: TinyDecoder, *arguments: Any, **options: Any) -> Any:
        return uncached(decoder, *arguments, **options) + 0.5

    monkeypatch.setattr(TinyDecoder, "forward", broken)
    argv = ("decoder", "kv-evaluate", weights, "--new-tokens", "2", *TINY)
    assert "FAIL" in text(capsys, *argv, status=1)
    assert answer(capsys, *argv, "--tolerance", "1")["passed"] == 3


BENCHMARK = ("--prompt-lengths", "3", "9", "--new-tokens", "4", "--repeats", "2", *TINY)


def test_benchmark_shows_progress_apart_from_its_result(capsys: Output, weights: str) -> None:
    assert main(["decoder", "benchmark", "--json", "--weights", weights, *BENCHMARK]) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert values["repeats"] == 2
    assert [(row["prompt_length"], row["new_tokens"]) for row in values["rows"]] == [(3, 4), (9, 4)]
    for row in values["rows"]:
        assert row["speedup"] == row["uncached_seconds"] / row["cached_seconds"] > 0
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["prompt 3", "prompt 9"]


def test_benchmark_times_the_weights_that_it_is_given(capsys: Output, weights: str) -> None:
    assert "does not match" in refusal(capsys, "decoder", "benchmark", "--weights", weights)


def test_the_decoder_runs_in_one_thread_unless_told(capsys: Output, tmp_path: Path) -> None:
    argv = ("decoder", "init", str(tmp_path / "decoder.pt"), *TINY)
    text(capsys, *argv, "--threads", "2")
    assert torch.get_num_threads() == 2
    text(capsys, *argv)
    assert torch.get_num_threads() == 1


def test_benchmark_prints_a_row_for_each_prompt_length(capsys: Output) -> None:
    printed = text(capsys, "decoder", "benchmark", *BENCHMARK)
    assert [row[:2] for row in cells(printed, "prompt")] == [["3", "4"], ["9", "4"]]
    assert "medians of 2 runs" in printed


def test_benchmark_takes_the_assignments_prompt_lengths_by_default(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def generate(decoder: TinyDecoder, ids: torch.Tensor, *_: int, **__: bool) -> torch.Tensor:
        seen.append(tuple(ids.shape))
        return ids

    monkeypatch.setattr(TinyDecoder, "generate", generate)
    values = answer(capsys, "decoder", "benchmark")
    lengths = [10, 50, 100, 500, 1000]
    assert [row["prompt_length"] for row in values["rows"]] == lengths
    assert sorted(set(seen)) == [(1, length) for length in lengths]


def test_a_benchmark_is_drawn_from_its_json_or_by_running_it(
    capsys: Output, tmp_path: Path
) -> None:
    values = answer(capsys, "decoder", "benchmark", *BENCHMARK)
    path = tmp_path / "latency.png"
    argv = ("decoder", "plot", str(path))
    drawn = answer(capsys, *argv, "--benchmark", written(tmp_path, values))
    assert drawn == {**values, "plot": str(path)}
    assert path.read_bytes().startswith(b"\x89PNG")
    path.unlink()
    assert f"written: {path}" in text(capsys, *argv, *BENCHMARK)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_decoder_can_be_read_from_a_config(capsys: Output, tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 23,
        "max_position_embeddings": 32,
    }
    source, path = written(tmp_path, config), str(tmp_path / "decoder.safetensors")
    text(capsys, "decoder", "init", path, "--config", source)
    values = answer(
        capsys,
        *("decoder", "kv-evaluate", path, "--config", source, "--new-tokens", "3"),
        *("--prompt-lengths", "5"),
    )
    assert values["passed"] == 1


# ---- errors ------------------------------------------------------------------------------------


def refusal(capsys: Output, *argv: str) -> str:
    """Run what must fail: status 2, nothing on standard output, one line on standard error."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("llmcalc: error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    return captured.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("fit", "--bogus"), "--bogus"),
        (("fit", "--mem", "80GiB"), "--mem"),
        (("bogus",), "'bogus'"),
        (("decoder", "bogus"), "'bogus'"),
        (("decoder", "evaluate"), "WEIGHTS"),
        (("fit", "--context"), "--context"),
        (("fit", "--context", "1.5"), "1.5"),
        (("fit", "--context", "-1"), "context = -1"),
        (("fit", "--context", "9" * 5000), "--context"),
        (("fit", "--context", str(2**63)), "--context"),
        (("fit", "--tp", "3"), "tensor_parallel = 3: must divide query_heads (32)"),
        (("fit", "--tp", "0"), "tensor_parallel = 0"),
        (("fit", "--num-query-heads", "31"), "num_query_heads = 31"),
        (("fit", "--num-layers", "0"), "= 0"),
        (("fit", "--weights", "bf61"), "did you mean 'bf16'"),
        (("fit", "--weights", "checkpoint"), "checkpoint"),
        (("fit", "--kv", "bf61"), "kv = 'bf61'"),
        (("fit", "--device", "a100 sxm"), "could be 'A100-SXM-40GB' or 'A100-SXM-80GB'"),
        (("fit", "--device", "L4", "--memory", "80GiB"), "not allowed with"),
        (("fit", "--config", "nowhere.json"), "nowhere.json"),
        (("fit", "--config", "x", "--num-layers", "3"), "--num-layers: not allowed"),
        (("fit", "--config", "x", "--assignment"), "--assignment: not allowed"),
        (("fit", "--assignment", "--head-dim", "64"), "--head-dim: not allowed"),
        (("intensity", "--algorithm", "fast"), "'fast'"),
        (("intensity", "--context", "0"), "keys = 0"),
        (("intensity", "--batch", "0"), "batch = 0"),
        (("intensity", "--query-heads", "3", "--kv-heads", "2"), "kv_heads = 2"),
        (("intensity", "--algorithm", "assignment", "--causal"), "the full square"),
        (("intensity", "--device", "nothing"), "device = 'nothing'"),
        (("intensity", "--device", "A100-SXM-80GB", "--format", "fp8"), "no peak"),
        (("intensity", "--plot", "picture.txt"), "must end in one of"),
        (("intensity", "--plot", "nowhere/picture.png"), "folder that exists"),
        (("decoder", "init", "nowhere/decoder.pt", *TINY), "nowhere/decoder.pt"),
        (("decoder", "init", "d.pt", "--seed", "-1"), "--seed"),
        (("decoder", "init", "d.pt", "--d-model", "100000000000"), "PyTorch: "),
        (("decoder", "init", "d.pt", "--threads", "0"), "threads = 0"),
        (("decoder", "init", "d.pt", "--threads", str(2**40)), "threads = "),
        (("decoder", "init", "d.pt", "--config", "x", "--d-ff", "8"), "--d-ff: not allowed"),
        (("decoder", "evaluate", "nowhere.pt", "cases.json"), "nowhere.pt"),
        (("decoder", "kv-evaluate", "nowhere.safetensors"), "nowhere.safetensors"),
        (("decoder", "kv-evaluate", "w", "c", "--seed", "1"), "--seed: not allowed"),
        (("decoder", "benchmark", *TINY), "prompt_lengths = 1000"),
        (("decoder", "benchmark", *BENCHMARK, "--repeats", "0"), "repeats = 0"),
        (("decoder", "benchmark", *BENCHMARK, "--new-tokens", "0"), "new_tokens = 0"),
        (("decoder", "benchmark", *BENCHMARK, "--batch", "0"), "batch = 0"),
        (("decoder", "plot", "picture.txt"), "must end in one of"),
        (("decoder", "plot", "p.png", "--benchmark", "nowhere.json"), "nowhere.json"),
        (("decoder", "plot", "p.png", "--benchmark", "x", "--batch", "1"), "--batch: not allowed"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    capsys: Output,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refusal(capsys, *argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"prompt": [1]}',
        '[{"prompt": [1], "expected_logits": [[1.0], 2]}]',
        '[{"prompt": [1, 2], "expected_logits": [[1.0, 2.0], [1.0]]}]',
        '[{"prompt": [1], "expected_logits": [' + "9" * 400 + "]}]",
        '[{"prompt": [1], "expected_logits": [1.0]}]',
        '[{"prompt": [23], "expected_logits": [1.0]}]',
        '[{"prompt": [' + "9" * 40 + '], "expected_logits": [1.0]}]',
        '[{"prompt": [1], "expected_logits": [1.0], "tolerance": -1}]',
    ],
)
def test_bad_cases_are_one_line(capsys: Output, tmp_path: Path, weights: str, content: str) -> None:
    path = written(tmp_path, content)
    refusal(capsys, "decoder", "evaluate", weights, path, *TINY)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[" * 100_000,
        "[]",
        '{"rows": []}',
        '{"rows": [1]}',
        '{"rows": [{"prompt_length": 1}]}',
        '{"rows": [{"prompt_length": "1", "cached_seconds": 1, "uncached_seconds": 1}]}',
        '{"rows": [{"prompt_length": 1, "cached_seconds": NaN, "uncached_seconds": 1}]}',
        '{"rows": [{"prompt_length": 1, "cached_seconds": 1, "uncached_seconds": "1"}]}',
    ],
)
def test_a_bad_benchmark_is_one_line_and_draws_nothing(
    capsys: Output, tmp_path: Path, content: str
) -> None:
    picture = tmp_path / "p.png"
    path = written(tmp_path, content)
    refusal(capsys, "decoder", "plot", str(picture), "--benchmark", path)
    assert not picture.exists()


@pytest.mark.parametrize("tolerance", ["nan", "-1", "inf", "x"])
def test_a_bad_tolerance_is_one_line(capsys: Output, weights: str, tolerance: str) -> None:
    argv = ("decoder", "kv-evaluate", weights, *TINY, "--new-tokens", "1")
    assert "tolerance" in refusal(capsys, *argv, f"--tolerance={tolerance}")


def test_broken_files_are_one_line(capsys: Output, tmp_path: Path, weights: str) -> None:
    path = written(tmp_path, "{")
    assert path in refusal(capsys, "fit", "--config", path)
    assert path in refusal(capsys, "decoder", "kv-evaluate", path, *TINY)
    # The file is of another model.
    assert "does not match" in refusal(capsys, "decoder", "kv-evaluate", weights)


def test_a_table_without_tabulate_says_which_extra_and_json_needs_none(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tabulate", None)
    assert "pip install 'llmcalc-inference[cli]'" in refusal(capsys, "fit")
    assert answer(capsys, "fit")["parameters"] == 8_030_261_248


def test_a_module_that_is_missing_inside_the_library_is_not_called_an_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llmcalc.roofline", None)
    monkeypatch.delattr("llmcalc.roofline", raising=False)
    with pytest.raises(ImportError):
        main(["intensity"])


@pytest.mark.parametrize(
    ("package", "extra", "argv"),
    [
        ("torch", "torch", ("decoder", "init", "d.pt")),
        ("safetensors", "torch", ("decoder", "init", "d.safetensors", *TINY)),
        ("matplotlib", "plot", ("intensity", "--plot", "p.png")),
        ("matplotlib", "plot", ("decoder", "plot", "p.png")),
    ],
)
def test_what_needs_a_package_that_is_missing_says_which_extra(
    package: str, extra: str, argv: tuple[str, ...]
) -> None:
    code = (
        "import sys; from importlib.machinery import PathFinder; find = PathFinder.find_spec; "
        f"PathFinder.find_spec = lambda name, *more: None if name == {package!r} "
        "else find(name, *more); from llmcalc.__main__ import main; sys.exit(main())"
    )
    done = process(*argv, code=code)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"pip install 'llmcalc-inference[{extra}]'" in done.stderr


def test_fit_and_intensity_import_neither_torch_nor_numpy_nor_matplotlib() -> None:
    code = (
        "import sys; from llmcalc.__main__ import main; "
        "assert main(['fit', '--json']) == main(['intensity', '--json']) == 0; "
        "print(sorted({'torch', 'numpy', 'matplotlib', 'tabulate'} & {*sys.modules}), "
        "file=sys.stderr)"
    )
    done = process(code=code)
    assert (done.returncode, done.stderr) == (0, "[]\n")


# ---- the program -------------------------------------------------------------------------------


def test_alone_it_prints_help(capsys: Output) -> None:
    printed = text(capsys)
    for command in ("fit", "intensity", "decoder"):
        assert command in printed
    assert "kv-evaluate" in text(capsys, "decoder")


def test_the_version_is_that_of_the_distribution(capsys: Output) -> None:
    from importlib.metadata import version

    assert text(capsys, "--version") == f"llmcalc-inference {version('llmcalc-inference')}\n"


@pytest.mark.parametrize(
    "command",
    [
        ("fit",),
        ("intensity",),
        *(("decoder", name) for name in ("init", "evaluate", "kv-evaluate", "benchmark", "plot")),
    ],
)
def test_every_command_has_help_and_json(capsys: Output, command: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_as_a_process_it_answers_and_refuses() -> None:
    done = process("fit", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"][0]["max_batch_size"] == 520
    done = process("fit", "--tp", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "llmcalc: error: tensor_parallel = 3: must divide query_heads (32)\n"


def test_names_that_the_terminal_cannot_print_are_escaped(tmp_path: Path) -> None:
    path = written(tmp_path, TINYLLAMA | {"_name_or_path": "modèle"})
    code = (
        "import io, sys; from llmcalc.__main__ import main; "
        "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='ascii'); sys.exit(main())"
    )
    done = process("fit", "--config", path, code=code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mod\\xe8le" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_an_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = printing_to(full)
    assert done.returncode == 2
    assert done.stderr.startswith("llmcalc: error: ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_stops_reading_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = printing_to(pipe)
    assert (done.returncode, done.stderr) == (1, "")


def printing_to(output: IO[str]) -> subprocess.CompletedProcess[str]:
    """Run `fit` with a standard output of its own."""
    return subprocess.run(
        [sys.executable, "-m", "llmcalc", "fit"],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )


def test_step_is_the_librarys_item_by_item(capsys: Output, tmp_path: Path) -> None:
    llama = ModelSpec.dense(
        name="llama-3-8b",
        num_layers=32,
        num_query_heads=32,
        num_kv_heads=8,
        embed_dim=4096,
        inner_dim=14336,
        vocab_size=128256,
    )
    workload: dict[str, Any] = {"batch": 32, "new": 1, "past": 4095}
    expected = roofline.step_time(
        llama, "A100-SXM-80GB", **workload, weights="fp8", kv="bf16", tensor_parallel=2
    )
    argv = ("step", "--device", "a100 sxm 80gb", "--batch", "32", "--weights", "fp8", "--tp", "2")
    found = answer(capsys, *argv)
    for name in ("seconds", "bound_seconds", "bound", "communication_seconds", "intensity"):
        assert found[name] == getattr(expected, name)
    assert found["flops"] == expected.flops.total
    assert found["bytes"] == expected.bytes.total
    assert [item["seconds"] for item in found["items"]] == [i.seconds for i in expected.items]
    assert text(capsys, *argv).rstrip() == expected.explain()
    picture = tmp_path / "step.png"
    text(capsys, *argv, "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_step_takes_a_config_and_says_what_it_was_not_made_for(
    capsys: Output, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINYLLAMA))
    printed = text(capsys, "step", "--config", str(config), "--past", "4096")
    assert "the model was made for 2048 positions, not 4097" in printed
    assert main(["step", "--device", "T4"]) == 2
    assert "T4 has no peak for this format" in capsys.readouterr().err


def test_sweep_has_a_row_for_each_combination_and_names_what_is_refused(capsys: Output) -> None:
    argv = (
        *("sweep", "--device", "H100-SXM-80GB", "T4", "--tp", "1", "3"),
        *("--weights", "bf16", "fp8", "--batch", "1", "500", "--past", "4095", "9"),
    )
    found = answer(capsys, *argv)
    assert len(found["rows"]) == 2 * 2 * 2
    assert {row["device"] for row in found["rows"]} == {"H100-SXM-80GB"}
    assert len(found["refused"]) == 6
    assert found["units"]["seconds"] == "s"
    [row] = [
        row
        for row in found["rows"]
        if (row["weights"], row["batch"], row["past"]) == ("bf16", 500, 4095)
    ]
    assert row["fits"] is False
    spec = load_model("llama-3-8b")
    step = roofline.step_time(
        spec, "H100-SXM-80GB", batch=500, new=1, past=4095, weights="bf16", kv="bf16"
    )
    assert math.isclose(row["seconds"], step.seconds, rel_tol=1e-12)
    printed = text(capsys, *argv)
    rows = cells(printed, "device")
    assert len(rows) == 8
    assert rows[0][0] == "H100-SXM-80GB"
    assert printed.count("refused: ") == 6
    assert "must divide query_heads (32)" in printed
    assert main(["sweep", "--device", "H100"]) == 2
    assert "devices = 'H100': could be" in capsys.readouterr().err
