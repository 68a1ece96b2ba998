"""Write docs/reference/engine-logs.md: what engines printed when they started, and what we compute.

    python -m scripts.engine_logs

Each row of tests/data/engine_logs.jsonl is compared with the model that it names: the loaded
weights, the cache bytes of a token, the concurrency that the printed pool gives, and the pool that
the engine's profile gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from llmcalc import Layout, ModelSpec, engines, load_model, memory, serving
from llmcalc.engines import Engine
from llmcalc.huggingface import catalogue
from llmcalc.serving import Budget
from llmcalc.spec import QuantizedCheckpoint
from llmcalc.units import GiB
from tests.truth import rows

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "reference" / "engine-logs.md"

#: Models of rows that name them in other words, or only their shape, which gives their cache.
MODELS: Final = {
    "(fp16 arm; 28,671 B/token: Qwen2.5-1.5B shape)": "Qwen/Qwen2.5-1.5B",
    "Alpaca-2 7B (Llama-2 7B shape)": "meta-llama/Llama-2-7b-hf",
    "deepseek-ai/DeepSeek-R1 on Gaudi (TP8?)": "deepseek-ai/DeepSeek-R1",
    "DeepSeek (fixture name DEEPSEEK_MEMORY_LINES)": "deepseek-ai/DeepSeek-V3",
    "DeepSeek-R1-Distill-Llama-8B class (131,053 B/token)": "DeepSeek-R1-Distill-Llama-8B",
    "Llama-3.1-8B class on TPU v5e-8 (131072 B/token)": "meta-llama/Llama-3.1-8B",
    "Nemotron LLM (32L x 8 x 128)": "meta-llama/Llama-3.1-8B",
    "Qwen3-235B-A22B-FP8": "Qwen/Qwen3-235B-A22B-FP8",
    "Qwen3-30B-A3B (kvcached study)": "Qwen/Qwen3-30B-A3B",
    "Qwen3-8B-shape (36L x 8 x 128)": "Qwen/Qwen3-8B",
    "Qwen3-VL (SageMaker HyperPod note)": "Qwen/Qwen3-1.7B",
    "Qwen3-VL-2B class": "Qwen/Qwen3-1.7B",
    "not named (163,900 B/token: Qwen3-14B shape)": "Qwen/Qwen3-14B",
    "not named (204,800 B/token: phi-4 14B shape, bnb 4-bit via Unsloth)": "microsoft/phi-4",
    "not named (262144 B/token: Qwen3-32B shape; RedHatAI)": "Qwen/Qwen3-32B",
    "not named (57328 B/token: Qwen2.5-7B shape)": "Qwen/Qwen2.5-7B",
    "not named (57337 B/token: Qwen2.5-7B shape)": "Qwen/Qwen2.5-7B",
    "not named (NSCC; 266.5 kB/token: 64L x 8 kv x 128 bf16)": "Qwen/Qwen2.5-32B",
    "qwen3-next-80b W4A16": "Qwen/Qwen3-Next-80B-A3B-Instruct",
}

#: Degrees that a row leaves open.
RANKS: Final = {"A109": 8, "A146": 8}

#: Contexts that the tokens are of, where the row states another one.
CONTEXTS: Final = {"A131": 131072}

#: Layouts of the cache that a row leaves to its engine.
CACHES: Final = {"A100": "fp8-ds-mla"}

#: Copies of a recurrent state that a request has, where it is not one.
STATES: Final = {"A131": 2, "A132": 2}

#: Models that also read images: the catalogue has their language model alone.
MULTIMODAL: Final = frozenset(
    (
        "google/gemma-3-12b-it", "ibm-granite/granite-vision-3.3-2b",
        "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
        "Qwen3-VL-2B class", "Qwen3-VL (SageMaker HyperPod note)",
    )
)  # fmt: skip

#: Why a figure is further off than 2 %, or why there is none, by row.
CAUSES: Final = {
    "A009": "the vision tower (SigLIP, 417 M parameters) and what it computes are not counted",
    "A016": "the vision tower (SigLIP, 400 M parameters) and its projector are not counted",
    "A071": "the vision tower is not counted; its activations and a smaller step are not stated",
    "A084": "the pool is one worker's, the tokens are those of the one with the least memory",
    "A109": "taken as eight ranks; the layout is not stated",
    "A121": "1 GiB of the weights is kept on the host, as the row says",
    "A127": "weights include buffers for two adapters (LoRA) of rank 16",
    "A131": "two states a request; the printed tokens are those of a context of 131 072",
    "A132": "two states a request: prefix caching keeps one at a block's end",
    "A144": "the model is not named, and its tokens are not what the pool holds",
    "A146": "taken as eight ranks; the layout is not stated",
    "A188": "the vision tower (SigLIP-2) is not counted",
    "A194": "the checkpoint as it was first published, with 16 KV heads: each of the 8 twice",
    "A201": "Unsloth's own choice of layers that stay wide",
}

#: Why nothing is compared, by row.
NOTHING: Final = {
    "A085": "the number of devices is not stated",
    "A090": "the vision model is not in the catalogue",
    "A098": "only a pool is printed",
    "A099": "only a pool is printed",
    "A102": "the row reports a wrong check of the engine",
    "A174": "the format of weights and cache is not stated",
    "A190": "which modules are in which of two formats is not stated",
    "A211": "approximate, and without a pool",
    "A212": "in what its experts are held is not stated: more than 4 bits, less than 8",
}


@attrs.frozen(kw_only=True)
class Compared:
    """A row, and of each of its figures what is printed and what is computed."""

    row: dict[str, Any]
    model: str | None
    figures: dict[str, tuple[float, float]]
    uniform: bool = False

    @property
    def group(self) -> str:
        """Controlled, multimodal (apart), or field."""
        if self.row["model"] in MULTIMODAL:
            return "multimodal"
        return "controlled" if self.row["set"] == "controlled" else "field"

    def miss(self, name: str) -> float | None:
        """Return the relative difference of one figure."""
        if name not in self.figures:
            return None
        printed, computed = self.figures[name]
        return computed / printed - 1


def compared() -> list[Compared]:
    """Return every row with its comparisons."""
    return [_compare(row) for row in rows("engine_logs")]


def _compare(row: dict[str, Any]) -> Compared:
    if row["id"] in CONTEXTS:
        row = row | {"max_model_len": CONTEXTS[row["id"]]}
    name = MODELS.get(row["model"], row["model"])
    entry = catalogue.find(name)
    if entry is None or row["id"] in NOTHING:
        return Compared(row=row, model=None, figures={})
    spec = load_model(entry.name)
    answer = _budget(row, spec)
    figures = dict(_figures(row, spec, answer))
    uniform = sum(group.count for group in answer.allocation.groups) == 1
    return Compared(row=row, model=entry.name, figures=figures, uniform=uniform)


def profile_of(row: dict[str, Any]) -> Engine:
    """Return the engine of a row; without measured terms where none is of its version."""
    written = row["engine"]
    families = {engines.get(name).family for name in serving.profiles()}
    family = next(name for name in families if engines.get(name).title in written)
    version = re.search(r"v?(\d+\.\d+)", written)
    if version is not None:
        return engines.of_version(family, version[1])
    # No term of another version is borrowed: nothing is compared with these zeros.
    return engines.get(family).without_measurements()


def _format(row: dict[str, Any], spec: ModelSpec) -> str:
    """Return the format of the weights."""
    dtype = _dtype(row)
    if row["id"] == "A201":
        return "nf4"
    if row.get("quant") == "fp8" and row["set"] == "controlled":
        return "fp8-tensor"  # quantised while loading
    if row["model"].startswith("Qwen3-30B-A3B ("):
        return dtype
    return "checkpoint" if isinstance(spec.checkpoint, QuantizedCheckpoint) else dtype


def _dtype(row: dict[str, Any]) -> str:
    names = {"float16": "fp16", "fp16": "fp16", "float32": "fp32"}
    return names.get(row.get("dtype", "bfloat16"), "bf16")


def _kv(row: dict[str, Any]) -> str:
    if row["id"] in CACHES:
        return CACHES[row["id"]]
    return "fp8" if str(row.get("kv_dtype", "")).startswith("fp8") else _dtype(row)


def _budget(row: dict[str, Any], spec: ModelSpec) -> Budget:
    known = profile_of(row)
    controlled = row["set"] == "controlled"
    # What the row does not state is given as 0: nothing is compared with it.
    rest = {} if controlled else {"activation_bytes": 0, "non_torch_bytes": 0}
    stages = row.get("pp") or 1
    return serving.budget(
        spec,
        visible_bytes=round((row.get("gpu_total_gib") or 79.19) * GiB),
        share=row.get("util"),
        context=row.get("max_model_len") or 8192,
        weights=_format(row, spec),
        kv=_kv(row),
        state="bf16",
        index="fp8-group128",
        state_blocks=STATES.get(row["id"], 1),
        dtype=_dtype(row),
        engine=known,
        layout=Layout(tensor_parallel=_ranks(row), pipeline_parallel=stages),
        rank=0 if stages > 1 else None,
        block_tokens=row.get("block_size"),
        batched_tokens=row.get("max_num_batched_tokens") if controlled else None,
        sequences=row.get("max_num_seqs") if controlled else None,
        graph_bytes=0,
        **rest,
    )


def _ranks(row: dict[str, Any]) -> int:
    return row.get("tp") or RANKS.get(row["id"], 1)


def _figures(
    row: dict[str, Any], spec: ModelSpec, answer: Budget
) -> Iterator[tuple[str, tuple[float, float]]]:
    allocation = answer.allocation
    if row.get("weights_gib"):
        offloaded = row.get("cpu_offload_gib", 0)
        yield "weights", (row["weights_gib"], answer.weight_bytes / GiB - offloaded)
    pool, context = row.get("kv_gib"), row.get("max_model_len")
    if row.get("k_gb"):
        pool = row["k_gb"] + row["v_gb"]
    tokens = row.get("kv_tokens")
    if tokens is None and row.get("gpu_blocks"):
        tokens = row["gpu_blocks"] * (row.get("block_size") or 16)
    staged = (row.get("pp") or 1) > 1
    uniform = sum(group.count for group in allocation.groups) == 1
    width = allocation.bytes["ideal"].total / allocation.context
    if row.get("kv_needed_gib") and context:
        # The engine's own check is over the layers of all stages.
        yield "token", (row["kv_needed_gib"] * GiB / context, _whole_width(row, spec))
    elif pool and tokens and uniform and not staged:
        yield "token", (pool * GiB / tokens, width)
    if row.get("max_concurrency") and context:
        if pool and not staged:
            yield (
                "concurrency",
                (
                    row["max_concurrency"],
                    allocation.concurrency(round(pool * GiB)) or 0.0,
                ),
            )
        elif tokens and uniform:
            yield "concurrency", (row["max_concurrency"], tokens / context)
    elif not uniform and pool and tokens and context and not staged:
        yield (
            "concurrency",
            (
                tokens / context,
                allocation.concurrency(round(pool * GiB)) or 0.0,
            ),
        )
    if row["set"] == "controlled" and answer.engine.activation is not None:
        yield "pool", (row["kv_gib"], answer.pool_bytes / GiB)


def _whole_width(row: dict[str, Any], spec: ModelSpec) -> float:
    context = row["max_model_len"]
    return memory.kv_cache_bytes(spec, context=context, kv=_kv(row)).total / context


def summary(found: list[Compared]) -> dict[str, tuple[int, float, float]]:
    """Return count, mean and worst relative difference of each figure on the controlled rows."""
    totals = {}
    for name in ("weights", "token", "concurrency", "pool"):
        misses = [
            abs(miss)
            for one in found
            if one.group == "controlled" and (miss := one.miss(name)) is not None
        ]
        totals[name] = (len(misses), sum(misses) / len(misses), max(misses))
    return totals


#: The columns of the tables: a figure's name, what the column is called, and its digits.
COLUMNS: Final = (
    ("weights", "weights, GiB", 2),
    ("token", "cache bytes a token", 0),
    ("concurrency", "concurrency", 2),
    ("pool", "pool, GiB", 2),
)

TITLES: Final = {
    "controlled": "Controlled runs: fully stated, on H100",
    "multimodal": "Models with a vision tower",
    "field": "From public issues and files",
}


def files() -> dict[Path, str]:
    """Return the page and its text."""
    found = compared()
    totals = summary(found)
    lines = [
        "# Engine logs",
        "",
        "What engines printed when they started (the first figure of each pair), and what llmcalc",
        "computes (the second one), for each row of `tests/data/engine_logs.jsonl`; the rows name",
        "their sources. Figures are per device. Weights are `serving.loaded_weights`; cache bytes",
        "of a token are compared where all layers share one block table; concurrency is that of",
        "the printed pool under the `paged` policy of the engine's version; the pool is",
        "`serving.budget`'s, with every term from the version's profile. This page is written by",
        "`python -m scripts.engine_logs`.",
        "",
        "On the controlled runs of text models:",
        "",
        "| figure | runs | mean difference | largest |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {title} | {totals[name][0]} | {100 * totals[name][1]:.2f} % "
        f"| {100 * totals[name][2]:.2f} % |"
        for name, title, _ in COLUMNS
    ]
    for group, title in TITLES.items():
        lines += ["", f"## {title}", "", *_table([one for one in found if one.group == group])]
    return {PAGE: "\n".join(lines) + "\n"}


def _table(found: list[Compared]) -> Iterator[str]:
    yield (
        "| row | engine | model | layout | " + " | ".join(c for _, c, _ in COLUMNS) + " | remark |"
    )
    yield "| --- | --- | --- | --- |" + " ---: |" * len(COLUMNS) + " --- |"
    for one in found:
        row = one.row
        degrees = [f"{name}{row[name]}" for name in ("tp", "pp") if (row.get(name) or 1) > 1]
        cells = [row["id"], row["engine"], one.model or row["model"], " ".join(degrees)]
        cells += [_cell(one, name, digits) for name, _, digits in COLUMNS]
        yield "| " + " | ".join([*cells, _remark(one)]) + " |"


def _cell(one: Compared, name: str, digits: int) -> str:
    miss = one.miss(name)
    if miss is None:
        return ""
    printed, computed = one.figures[name]
    return f"{printed:.{digits}f} / {computed:.{digits}f} ({100 * miss:+.2f} %)"


def _remark(one: Compared) -> str:
    cause = CAUSES.get(one.row["id"], "")
    if one.figures:
        return cause
    return NOTHING.get(one.row["id"]) or (
        "its shape is not in the catalogue" if one.model is None else "no figure to compare"
    )


def main() -> None:
    """Write the page."""
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
