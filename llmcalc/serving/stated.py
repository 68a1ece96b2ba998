"""What a start-up log states of a start, as arguments of a budget.

* `Stated`: the layout and the formats of a log.
* `model_of`, `engine_of`: the model and the engine of a log.
* `printed_terms`: the terms that are not known of an engine, as a log prints them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Final

from llmcalc import formats
from llmcalc.engines.engine import Engine, numbers_of
from llmcalc.engines.registry import get, of_version, with_pool
from llmcalc.errors import LlmcalcError
from llmcalc.huggingface import catalogue, load_model
from llmcalc.layouts import Layout
from llmcalc.serving.logs import EngineLog
from llmcalc.spec.checkpoint import QuantizedCheckpoint
from llmcalc.spec.model import ModelSpec

__all__ = ["Stated", "engine_of", "model_of", "printed_terms"]

#: What engines call number formats.
_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "f32": "fp32",
}

#: What engines call caches with scales beside their values. Source: vLLM,
#: ``v1/kv_cache_interface.py``.
_CACHES: Final = {
    "fp8_ds_mla": "fp8-ds-mla",
    "fp8_per_token_head": "fp8-channel",
    "int8_per_token_head": "int8-channel",
    "nvfp4": "nvfp4",
}


def model_of(log: EngineLog, model: str | ModelSpec | None = None) -> ModelSpec:
    """Return the model that a log names, unless another one is given."""
    if isinstance(model, ModelSpec):
        return model
    if model is not None:
        return load_model(model)
    if log.model is None:
        raise LlmcalcError("model = None: the log names none; say which model it is of")
    # A name in a log is no reason to read a file or to ask the hub.
    name = log.model.rstrip("/")
    entry = catalogue.find(name) or catalogue.find(name.rpartition("/")[2])
    if entry is None:
        raise catalogue.unknown(name)
    return load_model(entry.name)


def engine_of(log: EngineLog, engine: str | Engine | None = None) -> tuple[Engine, str]:
    """Return the engine of the log's version, unless another one is given, and a note.

    For a version that is not known it is the last one before it, without what was measured of
    that version, and a note that says so.
    """
    if engine is not None:
        return with_pool(engine), ""
    known = of_version(log.engine, log.version)
    stated = numbers_of(log.version or "")
    if not stated or known.version_numbers == stated:
        return known, ""
    note = f"{log.engine} {log.version} was not measured: its caches are laid out as {known} does"
    return known, note


class Stated:
    """What a log states, with what its engine takes where the log is silent.

    `dtype` is the format of the model's own numbers, if it is not the log's.
    """

    log: EngineLog
    spec: ModelSpec
    #: The engine that wrote the log.
    writer: Engine
    dtype: str

    def __init__(self, log: EngineLog, spec: ModelSpec, dtype: str | None = None) -> None:
        self.log, self.spec = log, spec
        self.writer = get(log.engine)
        self.dtype = dtype or _DTYPES.get(str(log.settings.get("dtype")), "bf16")

    def _degree(self, name: str) -> int:
        value = self.log.settings.get(name)
        return value if isinstance(value, int) and value > 0 else 1

    @property
    def layout(self) -> Layout:
        """How the model is spread over devices."""
        log, writer = self.log, self.writer
        tensor, data = self._degree("tensor_parallel"), self._degree("data_parallel")
        routed = any(tensor.routed for tensor in self.spec.ledger.tensors)
        if writer.log.counts_all_ranks:
            data = data if log.settings.get("data_parallel_attention") == "True" else 1
            tensor = tensor // data if data <= tensor else tensor
        expert = log.settings.get("expert_parallel") == "True" or self._degree("expert_ranks") > 1
        rules = writer.placement
        follows = rules is not None and rules.replicas_share_experts and routed and data > 1
        return Layout(
            tensor_parallel=tensor,
            pipeline_parallel=self._degree("pipeline_parallel"),
            data_parallel=data,
            data_parallel_attention=data > 1 and (routed or writer.log.counts_all_ranks),
            expert_parallel=routed and expert and tensor * data > 1,
            decode_context_parallel=self._degree("decode_context_parallel"),
            engine=writer.family if follows else None,
        )

    def rank(self, layout: Layout) -> int | None:
        """Return the rank whose figures the log's are: of several stages, the tightest one's."""
        if layout.pipeline_parallel == 1:
            return None
        stage = re.search(r"PP(\d+)", self.log.tightest_rank or "")
        if stage is None or int(stage[1]) >= layout.pipeline_parallel:
            return 0
        return int(stage[1]) * layout.tensor_parallel

    @property
    def states_weights(self) -> bool:
        """Whether the log says in which format the weights are."""
        return self.writer.log.states_weights or self._file_type is not None

    @property
    def weights(self) -> str:
        """The format of the weights."""
        if self._file_type is not None:
            return self._file_type
        stated = str(self.log.settings.get("quantization", "None"))
        quantised = isinstance(self.spec.checkpoint, QuantizedCheckpoint)
        if stated == "fp8" and not quantised:
            return "fp8-tensor"  # quantised while loading
        if stated not in {"None", "none", "auto"} or quantised:
            return "checkpoint"
        return self.dtype

    @cached_property
    def _file_type(self) -> str | None:
        """The format or mix of a GGUF file, by its name here; `None` if the log doesn't say.

        Source: llama.cpp, ``llama_model_ftype_name``.
        """
        stated = str(self.log.settings.get("file_type", "")).strip()
        plain = {"all F32": "fp32", "F16": "fp16", "BF16": "bf16", "MXFP4 MoE": "MXFP4_MOE",
                 "Q2_K - Medium": "Q2_K"}  # fmt: skip
        if stated in plain:
            return plain[stated]
        name, _, rest = stated.partition(" ")
        if rest.startswith("mix"):
            name = f"{name[:-1]}M"
        size = re.match(r"- (Small|Medium|Large)\b", rest)
        name += f"_{size[1][0]}" if size else ""
        return name if name in formats.scheme_names() else None

    @property
    def kv(self) -> str:
        """The format of keys and values."""
        settings = self.log.settings
        stated = str(settings.get("kv_dtype", settings.get("kv_format", "auto")))
        packed = _CACHES.get(str(settings.get("kv_layout")), _CACHES.get(stated))
        if packed is not None:
            return packed
        if stated.startswith(("fp8", "float8")):
            return "fp8"
        if stated in _DTYPES:
            return _DTYPES[stated]
        return self.dtype if stated in {"auto", "None"} else stated.upper()

    @property
    def state(self) -> str:
        """The format of recurrent states."""
        stated = _DTYPES.get(str(self.log.settings.get("state_dtype")))
        own = self.writer.state_format
        return stated or (self.dtype if own == "model" else own)


def printed_terms(
    known: Engine, log: EngineLog, layout: Layout
) -> Iterator[tuple[str, int | None]]:
    """Give the terms that are not known of an engine, as the log prints them; `None` if it doesn't.

    Newer versions print weights and what is outside the framework as one, and graphs among the
    activations.
    """
    asked = known.pool.asked
    both = log.count("activation_and_graphs")
    if "activation_bytes" in asked and known.activation is None:
        yield "activation_bytes", log.count("activation") if both is None else both
    outside = known.non_torch_on(layout.tensor_parallel, layout.pipeline_parallel)
    if "non_torch_bytes" in asked and outside is None:
        consumed, weights = log.count("consumed"), log.count("weights")
        outside = log.count("non_torch")
        if outside is None and consumed is not None and weights is not None:
            outside = max(0, consumed - weights)
        yield "non_torch_bytes", outside
    if known.graphs_subtracted:
        yield "graph_bytes", (log.count("graphs_estimated") or 0) if both is None else 0
