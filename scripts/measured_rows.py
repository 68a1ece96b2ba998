"""Reads measured rows: published times and rates of engines, as measurements of the library.

* `read`: a row as a `Reading`, or the rule by which it is left out.
* `saturated`: the least time of a request at any batch, for rows whose batch is not stated.
* `EXCEPTIONS`: why rows are faster than their bound that are.
* `RULES`: these rules, in the order in which they are asked.
* `kernel`: a row of a single kernel, as a measurement.
* `FAMILIES`, `ENGINES`: the devices of a family; what rows of an engine are like.
* `rows`: the rows of a file.

A row is a mapping with the fields of ``tests/data/perf_rows.jsonl``. Rules look at what a row and
its source state, and at the bound; none looks at what a forecast says of a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import attrs

from llmcalc import DeviceSpec, Layout, ModelSpec, engines, formats, hardware, load_model, memory
from llmcalc.engines import Conventions
from llmcalc.formats import Coverage, Format, Rule, Scheme, Uniform
from llmcalc.huggingface import catalogue
from llmcalc.roofline.efficiency import Work
from llmcalc.roofline.fitting import Group, Measurement
from llmcalc.roofline.forecasts import Run, run

__all__ = [
    "ENGINES",
    "EXCEPTIONS",
    "FAMILIES",
    "RULES",
    "Engine",
    "Reading",
    "family",
    "kernel",
    "read",
    "rows",
    "saturated",
]

#: Devices whose kernels behave alike, by architecture and market.
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "NVIDIA Volta": ("V100-SXM2-16GB", "V100-SXM2-32GB", "V100-PCIe-32GB"),
    "NVIDIA A100": ("A100-PCIe-40GB", "A100-SXM-40GB", "A100-PCIe-80GB", "A100-SXM-80GB", "A30"),
    "NVIDIA GA10x": (
        *("A10", "A10G", "A40", "RTX-A6000", "RTX-A5000"),
        *("RTX-3070", "RTX-3080", "RTX-3080-Ti", "RTX-3090", "RTX-3090-Ti"),
    ),
    "NVIDIA Ada": (
        *("L4", "L40", "L40S", "RTX-4070-Ti", "RTX-4080", "RTX-4090"),
        *("RTX-4000-Ada", "RTX-5000-Ada", "RTX-6000-Ada"),
    ),
    "NVIDIA Hopper": (
        *("H100-PCIe-80GB", "H100-SXM-80GB", "H100-NVL-94GB", "H20-96GB", "H200-SXM-141GB"),
        *("GH200-96GB", "GH200-144GB"),
    ),
    "NVIDIA Blackwell": (
        *("B100", "B200-SXM-180GB", "GB200-186GB", "B300-SXM-288GB", "GB300-288GB"),
    ),
    "NVIDIA GB20x": (
        *("RTX-5060-Ti-16GB", "RTX-5070-Ti", "RTX-5090", "RTX-PRO-6000-Blackwell-Server"),
        "DGX-Spark",
    ),
    "AMD CDNA": ("MI210", "MI250X", "MI250X-die", "MI300X", "MI325X", "MI355X"),
    "Apple": (
        *("Apple-M1-16GB", "Apple-M1-Max-64GB", "Apple-M1-Ultra-128GB", "Apple-M2-Max-96GB"),
        *("Apple-M2-Ultra-192GB", "Apple-M3-Max-128GB", "Apple-M3-Ultra-512GB"),
        *("Apple-M4-Pro-64GB", "Apple-M4-Max-128GB"),
    ),
}


class Engine(NamedTuple):
    """What rows of an engine are like; how it computes a step is in `llmcalc.engines`.

    `starts` are what its rows' engine field starts with. `expands` says whether packed weights are
    brought to 16 bits before large products.
    """

    starts: tuple[str, ...]
    expands: bool = False


#: The engines whose rows are read, by the names of their calibrations. llama.cpp and the exllamas
#: expand quantised weights to fp16; AutoAWQ 0.1.6 multiplies packed weights as they are.
ENGINES: Final[dict[str, Engine]] = {
    "llama.cpp": Engine(("llama.cpp",), expands=True),
    "FasterTransformer": Engine(("FasterTransformer",)),
    "Megatron": Engine(("Megatron",)),
    "gpt-fast": Engine(("gpt-fast",)),
    "exllama": Engine(("exllama v1",), expands=True),
    "exllamav2": Engine(("exllamav2",), expands=True),
    "AutoAWQ": Engine(("AutoAWQ",)),
    "lmdeploy": Engine(("lmdeploy",)),
    "TensorRT-LLM": Engine(("TensorRT-LLM",)),
    "TGI": Engine(("TGI",)),
    "vLLM": Engine(("vLLM", "vllm")),
}

#: Engines that launch their kernels from Python, one after another: the host, which is not
#: stated, sets their time.
_HOST_BOUND: Final = (
    "transformers (pytorch)",
    "text-generation-webui",
    "OpenLLM",
    "PyTorch Lightning",
    "AutoGPTQ",
    "onnx",
    "Optimum Nvidia",
    "DeepSpeed",
    "ctransformers",
    "ctranslate",
    "Nvidia TensorRT-LLM",
)

#: The rules by which rows are left out, in the order in which they are asked.
RULES: Final[dict[str, str]] = {
    "suspect": "the row is flagged as suspect, or has no source",
    "speculative": "tokens were guessed ahead (speculative decoding)",
    "precision": "the precision of the weights is not stated, or names no format",
    "device": "the device is not stated, or so that several devices fit it that differ by more "
    "than 10 % in bandwidth",
    "unknown device": "the device is not in the catalogue",
    "no peak": "the catalogue has no peak rate for the device in the number format",
    "load": "requests arrive or queue without a known number of them at a time",
    "engine": "the engine launches kernels one by one from Python, so that the host, which is not "
    "stated, sets the time; or it is not known how it computes",
    "model": "the model's shape is not known",
    "metric": "the quantity is not a time of the run: its unit is ambiguous, it includes a queue, "
    "or lengths or batch are missing",
    "rounded": "it is printed so coarsely that rounding may be off by more than 5 %",
    "impossible": "it is faster than its bound, so that it was not measured as it says",
    "too large": "weights and caches of the stated batch don't fit the devices, so that the batch "
    "was another one",
}

#: Why rows are faster than their bound that are.
EXCEPTIONS: Final = {
    "B1155": "the precision is not what it says: float32 is as fast as float16 (89.40 and 89.43 "
    "tokens a second), as vLLM ran both in 16 bits",
}

#: What the kind of batch starts with where it is not known how many requests there were at a time.
_LOADS: Final = ("unlimited", "request rate", "max load")

#: How the rows name devices, where the catalogue's names differ.
_DEVICES: Final = {
    "A100-80GB": "A100-SXM-80GB",
    "A100 80GB": "A100-SXM-80GB",
    "A100-40GB": "A100-SXM-40GB",
    "64GB M4 Max": "Apple-M4-Max-128GB",
    "M1": "Apple-M1-16GB",
    "RTX PRO 6000 Blackwell SE": "RTX-PRO-6000-Blackwell-Server",
    "DGX Spark GB10": "DGX-Spark",
    "GB200": "GB200-186GB",
    "B200": "B200-SXM-180GB",
    "H100 SXM5": "H100-SXM-80GB",
    "H100-80GB SXM": "H100-SXM-80GB",
    "A100-80GB SXM": "A100-SXM-80GB",
    "Intel Arc Pro B60": "Arc-Pro-B60",
}

#: Which model a name means, where the catalogue of models has another one.
_MODELS: Final = {
    "Meta-Llama-3-8B": "meta-llama/Meta-Llama-3-8B",
    "Llama-3-8B": "meta-llama/Meta-Llama-3-8B",
    "Llama-3.1-8B-Instruct-FP8": "meta-llama/Llama-3.1-8B",
    "Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "Llama-3.1-405B": "meta-llama/Meta-Llama-3.1-405B",
    "Llama-3.1-405B-Instruct": "meta-llama/Meta-Llama-3.1-405B",
    "Llama-3.1-405B-FP8": "meta-llama/Meta-Llama-3.1-405B",
    "Llama-3.3-70B-Instruct-FP8": "meta-llama/Llama-3.3-70B-Instruct",
    "Llama 7B": "meta-llama/Llama-2-7b-hf",
    "LLaMA 7B": "meta-llama/Llama-2-7b-hf",
    "Llama 13B": "huggyllama/llama-13b",
    "Llama 33B": "huggyllama/llama-30b",
    "WizardLM 33B": "huggyllama/llama-30b",
    "Llama 65B": "huggyllama/llama-65b",
    "LLaMA 70B": "meta-llama/Llama-2-70b-hf",
    "Llama2 7B": "meta-llama/Llama-2-7b-hf",
    "Llama2 13B": "meta-llama/Llama-2-13b-hf",
    "Llama2 70B": "meta-llama/Llama-2-70b-hf",
    "Llama 2 7B Chat": "meta-llama/Llama-2-7b-hf",
    "Llama 2 13B": "meta-llama/Llama-2-13b-hf",
    "Llama-2-7B": "meta-llama/Llama-2-7b-hf",
    "Llama-2-13B": "meta-llama/Llama-2-13b-hf",
    "Llama-2-70B": "meta-llama/Llama-2-70b-hf",
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "Vicuna 7B": "meta-llama/Llama-2-7b-hf",
    "TinyLlama 1B": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "CodeLlama 34B": "codellama/CodeLlama-34b-hf",
    "Phind CodeLlama 34B": "codellama/CodeLlama-34b-hf",
    "DeepSeek 33B": "deepseek-ai/deepseek-coder-33b-base",
    "DeepSeek Coder 33B": "deepseek-ai/deepseek-coder-33b-base",
    "Mistral 7B": "mistralai/Mistral-7B-v0.1",
    "Mistral-7B": "mistralai/Mistral-7B-v0.1",
    "Mistral 7B v0.1 Instruct": "mistralai/Mistral-7B-v0.1",
    "Mixtral-8x7B": "mistralai/Mixtral-8x7B-v0.1",
    "Yi-6B-Chat": "01-ai/Yi-6B",
    "gpt-oss-120b": "openai/gpt-oss-120b",
    "GPT-OSS-120B": "openai/gpt-oss-120b",
    "GPT-OSS-20B": "openai/gpt-oss-20b",
    "Qwen3-235B-A22B": "Qwen/Qwen3-235B-A22B",
}


def _gpt(name: str, layers: int, heads: int, width: int) -> ModelSpec:
    embed = heads * width
    return ModelSpec.dense(
        name=name,
        num_layers=layers,
        num_query_heads=heads,
        num_kv_heads=heads,
        embed_dim=embed,
        inner_dim=4 * embed,
        vocab_size=51200,
        gated=False,
        activation="gelu_tanh",
        norm="layer",
        positions="learned",
        max_positions=2048,
        query_key_value_bias=True,
        attention_output_bias=True,
        feed_forward_bias=True,
        tied_head=True,
    )


#: Shapes that the catalogue of models lacks.
#:
#: GPT-350M to Megatron-530B: FasterTransformer ``docs/gpt_guide.md`` (df4a753), "Performance":
#: layers, heads, size per head, vocabulary; a GPT-2 otherwise. OpenLLaMA 3B: the configuration of
#: openlm-research/open_llama_3b. GPT-J 6B: that of EleutherAI/gpt-j-6b, its blocks in sequence.
_SHAPES: Final[dict[str, Any]] = {
    "GPT-350M": lambda: _gpt("GPT-350M", 24, 16, 64),
    "GPT-1.3B": lambda: _gpt("GPT-1.3B", 24, 32, 64),
    "GPT-6.7B": lambda: _gpt("GPT-6.7B", 32, 32, 128),
    "GPT-20B": lambda: _gpt("GPT-20B", 44, 48, 128),
    "GPT-89B": lambda: _gpt("GPT-89B", 48, 96, 128),
    "GPT-175B": lambda: _gpt("GPT-175B", 96, 96, 128),
    "Megatron-530B": lambda: _gpt("Megatron-530B", 105, 128, 160),
    "OpenLlama 3B": lambda: ModelSpec.dense(
        name="OpenLLaMA-3B",
        num_layers=26,
        num_query_heads=32,
        num_kv_heads=32,
        embed_dim=3200,
        inner_dim=8640,
        vocab_size=32000,
    ),
    "GPT-J 6B": lambda: ModelSpec.dense(
        name="GPT-J-6B",
        num_layers=28,
        num_query_heads=16,
        num_kv_heads=16,
        embed_dim=4096,
        inner_dim=16384,
        vocab_size=50400,
        gated=False,
        activation="gelu_tanh",
        norm="layer",
    ),
}

#: Rows whose model is another than they say: their source, FasterTransformer's guide, prints them
#: in its table "GPT-89B" of 48 layers, below that of GPT-175B, whose name the rows carry.
_RENAMED: Final = {f"B{number}": "GPT-89B" for number in range(1304, 1330)}

#: Links between nodes of eight devices: FasterTransformer's guide states eight 200 Gb/s adapters a
#: node, which rings through all of them use together.
_BETWEEN_NODES: Final = 8 * 25e9


class Reading(NamedTuple):
    """A row that was read: what was measured, whose efficiency it shows, and its kind."""

    row: Mapping[str, Any]
    measurement: Measurement
    group: Group
    kind: str
    model: str


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Give the rows of a file: one a line, below a line with the sources that they number."""
    first, *lines = file.read_text(encoding="utf-8").splitlines()
    sources = json.loads(first)["sources"]
    for line in lines:
        row = json.loads(line)
        yield {**row, "source": sources[row["source"]]}


def family(device: str) -> str | None:
    """Return the family of a device, `None` where it is in none."""
    return next((name for name, members in FAMILIES.items() if device in members), None)


def read(row: Mapping[str, Any], *, for_bound: bool = False) -> Reading | str:
    """Return a row as a measurement, or the name of the rule by which it is left out.

    With `for_bound` rows are read for which a bound can be given, but no forecast: of any engine,
    of the fastest device that fits, and those that are faster than their bound.
    """
    try:
        return _read(row, for_bound=for_bound)
    except _LeftOut as left_out:
        return str(left_out)


class _LeftOut(Exception):  # noqa: N818  # it is no error: it says which rule applies
    """A rule applies; its name is the message."""


def _read(row: Mapping[str, Any], *, for_bound: bool) -> Reading:
    if row.get("suspect") or row["source"].startswith("unsourced"):
        raise _LeftOut("suspect")
    if row.get("speculative_decoding"):
        raise _LeftOut("speculative")
    if row.get("precision") is None or "not stated" in row["precision"]:
        raise _LeftOut("precision")
    device = _device(row["hardware"], fastest=for_bound)
    if row["batch_kind"].startswith(_LOADS):
        raise _LeftOut("load")
    engine = _engine(row, for_bound=for_bound)
    spec = _model(_RENAMED.get(row["id"], row["model"]))
    prompt, new, of, seconds = _timed(row, engine)
    batch = int(row["batch"])
    if spec.max_positions is not None and prompt + new > spec.max_positions + 1:
        spec = _without_limit(spec)  # the row was measured past it
    weights, number = _weights(row["precision"])
    own = engines.get(engine).conventions if engine in ENGINES else Conventions()
    options = own.options(device.peak_flops)
    numbers = own.compute or number
    options["compute"] = next((n for n in numbers if n in device.peak_flops), None)
    if for_bound:  # whatever the engine may have multiplied in
        known = [n for n in ("fp16_fp16acc", *number) if n in device.peak_flops]
        options["compute"] = max(known, key=device.peak_flops.__getitem__, default=None)
    if options["compute"] is None:
        raise _LeftOut("no peak")
    tensor, stages = _split(row, engine)
    layout = None
    if tensor * stages > 1:
        layout = Layout(tensor_parallel=tensor, pipeline_parallel=stages)
    if tensor > 8:
        options["link_bytes_per_second"] = _BETWEEN_NODES
    kv = "fp8" if row.get("kv_precision") == "fp8" else "fp16"
    steps = run(
        spec,
        device,
        prompt=prompt,
        new_tokens=new,
        batch=batch,
        weights=weights,
        kv=kv,
        layout=layout,
        samples=4,
        **options,
    )
    if not _fits(steps, spec, weights, kv, tensor * stages * device.memory_bytes):
        raise _LeftOut("too large")
    kind = _kind(tensor, of, batch)
    # A pipeline of several stages depends on how the host feeds it, which rows don't state.
    pipelined = stages > 1 and steps.micro_batches > 1 and of != "token"
    noise = 0.25 if pipelined and tensor == 1 else 0.06 if kind.endswith("decode") else 0.1
    measurement = Measurement(run=steps, seconds=seconds, of=of, noise=noise)
    if measurement.bound_seconds > seconds and not for_bound:
        raise _LeftOut("impossible")
    name = device.name
    expands = engine in ENGINES and ENGINES[engine].expands
    group = Group(engine, name, family(name), expands)
    return Reading(row, measurement, group, kind, spec.name)


def _kind(tensor: int, of: str, batch: int) -> str:
    if tensor > 1:
        return "tensor-parallel"
    if of == "prefill":
        return "prefill"
    return "single-stream decode" if batch == 1 else "batched decode"


def _device(text: str, *, fastest: bool = False) -> DeviceSpec:
    """Return the device that a row names, or the fastest of several that it may mean."""
    if text.startswith(("CPU", "8-GPU node")) or "GPU kind not stated" in text:
        raise _LeftOut("unknown device" if text.startswith("CPU") else "device")
    if text.startswith("MI250X one"):
        return _half(hardware.get("MI250X"))
    name = re.sub(r"\(.*?\)", "", text).replace("\u2011", "-").strip()
    name = re.sub(r" \d+-Core GPU", "", name)
    with_ram = name
    name = _DEVICES.get(name) or _DEVICES.get(re.sub(r" \d+GB$", "", name)) or name
    for candidate in (name, f"RTX {name}", re.sub(r" \d+GB$", "", name), with_ram):
        for spelled in (candidate, f"RTX {candidate}", candidate.replace("RTX A", "RTX-A")):
            try:
                return hardware.get(spelled)
            except hardware.UnknownDeviceError:
                continue
    fitting = _fitting(name)
    if len(fitting) == 1 or (fitting and fastest):
        return max(fitting, key=lambda one: one.bandwidth_bytes_per_second)
    raise _LeftOut("device" if fitting else "unknown device")


def _fitting(name: str) -> list[DeviceSpec]:
    """Return the devices that a short name may mean; one of them where they are nearly alike."""
    short = re.sub(r" \d+GB$", "", name)
    try:
        hardware.get(short)
    except hardware.UnknownDeviceError as error:
        found = [hardware.get(one) for one in error.suggestions]
    else:
        return [hardware.get(short)]
    key = re.sub(r"[^a-z0-9]", "", short.lower())
    found = [one for one in found if key in re.sub(r"[^a-z0-9]", "", one.name.lower())]
    rates = [one.bandwidth_bytes_per_second for one in found]
    if found and max(rates) <= 1.1 * min(rates):
        return [max(found, key=lambda one: one.bandwidth_bytes_per_second)]
    return found


@cache
def _half(device: DeviceSpec) -> DeviceSpec:
    """Return one of the two dies of a device, which programs see as a device of its own."""
    return attrs.evolve(
        device,
        name=f"{device.name}-die",
        memory_bytes=device.memory_bytes // 2,
        nominal_memory_bytes=None,
        bandwidth_bytes_per_second=device.bandwidth_bytes_per_second // 2,
        peak_flops={name: rate // 2 for name, rate in device.peak_flops.items()},
        link_bytes_per_second_per_direction=None,
        tdp_watts=None,
        sources={},
    )


def _engine(row: Mapping[str, Any], *, for_bound: bool) -> str:
    text: str = row["engine"]
    if for_bound:
        return next((n for n, one in ENGINES.items() if text.startswith(one.starts)), text)
    if text.startswith(_HOST_BOUND) or "eager" in row["precision"]:
        raise _LeftOut("engine")
    for name, engine in ENGINES.items():
        if text.startswith(engine.starts):
            return name
    raise _LeftOut("engine")


@cache
def _model(name: str) -> ModelSpec:
    if name in _SHAPES:
        made: ModelSpec = _SHAPES[name]()
        return made
    short = re.sub(r" \(.*\)$", "", name).rpartition("/")[2]
    for candidate in (_MODELS.get(short, short), name, re.sub("-Instruct(-2507)?$", "", short)):
        if catalogue.find(candidate) is not None:
            return load_model(candidate)
    raise _LeftOut("model")


@cache
def _without_limit(spec: ModelSpec) -> ModelSpec:
    return attrs.evolve(spec, max_positions=None)


_WIDE: Final = ("bf16", "fp16", "fp32")

#: The formats of weights that precisions mean, and the number formats that they may be multiplied
#: in; what starts with "gguf " or "exl2 " is read by `_weights`.
_PRECISIONS: Final[dict[str, tuple[str | Format | Scheme, tuple[str, ...]]]] = {
    "f16": ("fp16", _WIDE),
    "fp16": ("fp16", _WIDE),
    "float16": ("fp16", _WIDE),
    "no quantisation": ("fp16", _WIDE),
    "bf16": ("bf16", _WIDE),
    "bf16 compile": ("bf16", _WIDE),
    "float32": ("fp32", ("tf32", "fp32")),
    "int8 weight-only": (Uniform(formats.get("int8-channel")), _WIDE),
    "awq 4-bit gemm": ("awq-int4-g128", _WIDE),
    "awq 4-bit gemv": ("awq-int4-g128", _WIDE),
    "awq int4": ("awq-int4-g128", _WIDE),
    "gptq g128": ("gptq-int4-g128", _WIDE),
    "gptq 4-bit g128 act=no": ("gptq-int4-g128", _WIDE),
    "gptq 4-bit g128 act=yes": ("gptq-int4-g128", _WIDE),
    "gptq 4-bit g- act=yes": ("gptq-int4-channel", _WIDE),
    "fp8": ("fp8-tensor", ("fp8", *_WIDE)),
    "nvfp4": ("nvfp4", ("fp4", *_WIDE)),
    "mxfp4": ("mxfp4", _WIDE),
}


def _weights(precision: str) -> tuple[str | Format | Scheme, tuple[str, ...]]:
    """Return the format of the weights, and the number formats that they may be multiplied in."""
    text = precision.lower()
    if text.startswith("gguf "):
        return precision.split()[1], ("int8", *_WIDE)
    if match := re.fullmatch(r"exl2 ([0-9.]+) bpw", text):
        return _exl2(float(match[1])), _WIDE
    # Rates without compilation are left out by the engine; their bound is the same.
    found = _PRECISIONS.get(re.sub("^(fp16/)?bf16 eager$", "bf16", text))
    if found is None:
        raise _LeftOut("precision")
    return found


def _exl2_format(bits: float) -> Format:
    """Return a format of so many bits a weight on average, scales included."""
    return Format(name=f"exl2-{bits}", block_elements=16, block_bytes=round(2 * bits))


@cache
def _exl2(bits: float) -> Scheme:
    """Return exllamav2's format: so many bits on average, and 6 in the head."""
    head = Rule(format=_exl2_format(6.0), targets=("re:.*lm_head",))
    rest = Rule(format=_exl2_format(bits), targets=("Linear",))
    return Coverage(name=f"exl2-{bits}", wide=formats.get("fp16"), rules=(head, rest))


def _split(row: Mapping[str, Any], engine: str) -> tuple[int, int]:
    """Return the degrees of tensor and pipeline parallelism."""
    if engine == "llama.cpp":  # it splits by layers, and works on one request at a time
        return 1, int(row["n_gpus"])
    return int(row.get("tp") or 1), int(row.get("pp") or 1)


#: Where no prompt is stated it is a short one, and where no new tokens are, they are few.
_SHORT_PROMPT: Final = 16
_FEW_TOKENS: Final = 128

#: Metrics by what took the time: the mean token, the first one, or all.
_RATES: Final = frozenset({"decode_tok_s", "decode_total_tok_s"})
_TOKEN_TIMES: Final = frozenset({"tpot_ms", "mean_tpot_ms", "median_tpot_ms", "tpot_median_s"})
_FIRST_TIMES: Final = frozenset({"ttft_ms", "ttft_avg_s"})
_THROUGHPUTS: Final = frozenset(
    {
        "output_total_tok_s",
        "output_tok_s_incl_prefill",
        "output_tok_s_incl_prefill_total",
        "output_tok_s_per_gpu",
        "output_tok_s_as_printed",
    }
)


def _timed(row: Mapping[str, Any], engine: str) -> tuple[int, int, Any, float]:
    """Return prompt, new tokens, what took the time, and the time."""
    metric, value = row["metric"], float(row["value"])
    prompt, new, batch = row.get("input_len"), row.get("output_len"), row.get("batch")
    if batch is None or (metric not in _RATES and prompt is None):
        raise _LeftOut("metric")
    if metric in _RATES:
        return (*_generated(row, engine), "token", batch / value)
    if metric == "prefill_tok_s":
        return int(prompt), 1, "prefill", prompt * batch / value
    if metric in _FIRST_TIMES:
        return int(prompt), 1, "prefill", _first_seconds(metric, value, int(batch))
    if new is None:
        raise _LeftOut("metric")
    if metric in _TOKEN_TIMES:
        in_seconds = metric.endswith("_s")  # printed to whole milliseconds
        _check_digits(value, 1e-3 if in_seconds else 0.0)
        return int(prompt), int(new), "token", value if in_seconds else value / 1e3
    if metric == "latency_total_ms":
        return int(prompt), int(new), "all", value / 1e3
    # As printed, a rate of several devices is of all of them, or of each.
    if metric not in _THROUGHPUTS or (metric == "output_tok_s_as_printed" and row["n_gpus"] > 1):
        raise _LeftOut("metric")
    devices = row["n_gpus"] if metric == "output_tok_s_per_gpu" else 1
    return int(prompt), int(new), "all", batch * new / (value * devices)


def _generated(row: Mapping[str, Any], engine: str) -> tuple[int, int]:
    """Return the prompt and the tokens behind a rate of generation."""
    prompt, new = row.get("input_len"), row.get("output_len")
    if row["source"].startswith("github:XiongjieDai"):
        return 0, int(new or 0)  # tgN of llama-bench: N tokens from an empty context
    if row["engine"].startswith("gpt-fast"):
        return int(prompt or 5), 200  # generate.py: 200 tokens after a prompt of a few
    if engine == "exllama":
        return int(prompt or 4), _FEW_TOKENS + 1  # at the start, or at the end of the context
    return int(prompt or _SHORT_PROMPT), int(new or _FEW_TOKENS)


def _first_seconds(metric: str, value: float, batch: int) -> float:
    """Return the time to a first token."""
    if batch > 1:  # it includes the wait for earlier requests
        raise _LeftOut("metric")
    if metric == "ttft_avg_s":
        _check_digits(value, 1e-3)
        return value
    _check_digits(value, 1.0 if value.is_integer() else 0.0)
    return value / 1e3


def _check_digits(value: float, unit: float) -> None:
    if unit / 2 > 0.05 * value:
        raise _LeftOut("rounded")


def _fits(steps: Run, spec: ModelSpec, weights: Any, kv: str, memory_bytes: int) -> bool:
    """Return whether weights and the caches of all requests fit the devices together."""
    context = max(steps.prompt + steps.new_tokens, 1)
    held = memory.weight_bytes(spec, weights=weights).total
    held += memory.kv_cache_bytes(spec, context=context, batch=steps.batch, kv=kv).total
    return held <= memory_bytes


def saturated(row: Mapping[str, Any]) -> tuple[float, float] | str:
    """Return the least seconds of a request at any batch, and the seconds that a row shows.

    For rows of engines that were given all the requests they could take. At a batch without limit
    the weights cost nothing, and what remains are the FLOPs and the cache of each request, in 8
    bits, shared by all devices. Returns the name of a rule for rows that don't state enough.
    """
    try:
        return _saturated(row)
    except _LeftOut as left_out:
        return str(left_out)


def _saturated(row: Mapping[str, Any]) -> tuple[float, float]:
    if row.get("suspect") or not row["batch_kind"].startswith(_LOADS):
        raise _LeftOut("load")
    if row.get("precision") is None or row.get("speculative_decoding"):
        raise _LeftOut("precision")
    device = _device(row["hardware"], fastest=True)
    spec = _model(row["model"])
    _, numbers = _weights(row["precision"])
    known = [name for name in numbers if name in device.peak_flops]
    prompt = round(row.get("input_len") or row.get("mean_input_len") or 0)
    new = round(row.get("output_len") or row.get("mean_output_len") or 0)
    if row["metric"] != "output_total_tok_s" or not prompt or not new:
        raise _LeftOut("metric")
    fastest = max(known, key=device.peak_flops.__getitem__)
    steps = run(
        spec,
        device,
        prompt=prompt,
        new_tokens=new,
        weights="fp8",
        kv="fp8",
        samples=16,
        compute=fastest,
    )
    flops = moved = 0.0
    for step, times in ((steps.prefill, 1.0), (steps.decode, steps.decode_times)):
        if step is not None:
            flops += float(step.flops.total.sum()) * times
            moved += float(step.bytes.by()["cache read"].sum()) * times
    least = max(flops / device.peak(fastest), moved / device.bandwidth_bytes_per_second)
    return least / row["n_gpus"], new / row["value"]


#: The devices of the rows of kernels, by the names of their systems.
_SYSTEMS: Final = {
    "h100_sxm": "H100-SXM-80GB",
    "h200_sxm": "H200-SXM-141GB",
    "a100_sxm": "A100-SXM-80GB",
    "l40s": "L40S",
    "b200_sxm": "B200-SXM-180GB",
    "gb200": "GB200-186GB",
    "rtx_pro_6000_server": "RTX-PRO-6000-Blackwell-Server",
}


def kernel(row: Mapping[str, Any]) -> tuple[Group, Measurement] | None:
    """Return a row of a kernel as a measurement, `None` for those that are not used.

    Used are matrix products and attention over prompts of at least 4096 tokens in bf16, and
    all-reduces. Products that wait for weights of less than twice the on-chip cache are not used,
    since these were read many times over and may have stayed there. Attention of decode steps is
    not either: a fifth of those rows read their cache faster than the memory can.
    """
    device = hardware.get(_SYSTEMS[row["system"]])
    op, group = row["op"], "kernels"
    work: dict[str, Any]
    if op == "gemm" and row["dtype"] == "bfloat16":
        m, n, k = row["m"], row["n"], row["k"]
        # A weight of two bytes is read for 2 m FLOPs.
        if m < device.ridge_point("bf16") and 2 * n * k < 2 * (device.cache_bytes or 0):
            return None
        work = {
            "product_flops": 2.0 * m * n * k,
            "weight_bytes": 2.0 * n * k,
            "activation_bytes": 2.0 * m * (n + k),
        }
    elif op == "prefill_attention" and row["kv_dtype"] == "bfloat16" and row["seq_len"] >= 4096:
        length, width = row["seq_len"], row["head_dim"]
        pairs = row["batch"] * length * (length + 1) / 2
        work = {
            "attention_flops": 4.0 * row["heads"] * width * pairs,
            "cache_bytes": 4.0 * row["kv_heads"] * width * row["batch"] * length,
        }
    elif op in {"custom_all_reduce", "nccl_all_reduce"}:
        # Messages are stored by their elements, of two bytes.
        group = "kernels" if op == "nccl_all_reduce" else "all-reduce in one kernel"
        message = 2.0 * row["message_size_as_stored"]
        work = {"exchanged_by": row["num_gpus"], "message_bytes": message}
    else:
        return None
    return (
        Group(group, device.name, family(device.name)),
        Measurement(
            run=Work.of_kernel(device, compute="bf16", **work),
            seconds=row["latency_ms"] / 1e3,
            noise=0.25,
        ),
    )
