"""DeepSeek up to V3.2, and the models with its multi-head latent attention.

GLM-4.7 Flash and GLM-5, MiniCPM3 and Youtu are among them. What models with other parts beside
share with these:

* `latent_attention`, `sparse_indexer`, `routed_experts`: the parts of DeepSeek's fields.
"""

from __future__ import annotations

from typing import Final, Literal, TypedDict, Unpack

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import (
    dense_first,
    experts,
    further,
    mixture,
    mlp_kinds,
)
from llmcalc.huggingface.reading import (
    assemble,
    attention,
    biases,
    feed_forward,
    head_dim,
    layer_kinds,
    pre_norm,
    rms_norm,
    rotary,
)
from llmcalc.spec.attention import Indexer, LatentAttention
from llmcalc.spec.experts import Experts
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Span, TopK

__all__ = [
    "deepseek",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "latent_attention",
    "minicpm3",
    "routed_experts",
    "sparse_indexer",
]

#: What is said of a model whose ``num_experts_per_tok`` is null.
ALL_EXPERTS: Final = "num_experts_per_tok is null: every token is taken to pass through all experts"


class LatentOptions(TypedDict, total=False):
    """Options of `LatentAttention` that `latent_attention` passes on."""

    span: Span
    indexer: Indexer | None
    rope_norm: Norm
    sinks: bool
    output_gate: Literal["head", "element", "latent"]


def latent_attention(
    config: Config, *, value_dim: int | None = None, **options: Unpack[LatentOptions]
) -> LatentAttention:
    """Compose latent attention from the usual fields.

    A null ``q_lora_rank`` is a full projection of queries. `value_dim` stands for ``v_head_dim``.
    """
    config.pass_over("qk_head_dim", "head_dim")
    return LatentAttention(
        query_heads=config.required_size("num_attention_heads"),
        nope_dim=config.required_size("qk_nope_head_dim"),
        rope_dim=config.required_size("qk_rope_head_dim"),
        value_dim=config.required_size("v_head_dim") if value_dim is None else value_dim,
        latent_dim=config.required_size("kv_lora_rank"),
        query_latent_dim=config.optional_size("q_lora_rank"),
        norm=Norm(kind="rms", eps=1e-6),
        bias=config.flag("attention_bias"),
        rotary=rotary(config),
        **options,
    )


def sparse_indexer(config: Config) -> Indexer:
    """Compose the indexer of DeepSeek's fields, from version 3.2 on."""
    return Indexer(
        heads=config.size("index_n_heads"),
        head_dim=config.size("index_head_dim"),
        key_norm=Norm(kind="layer", eps=1e-6),
    )


def routed_experts(config: Config) -> Experts:
    """Compose the experts of DeepSeek's fields, from version 3 on."""
    return experts(config, "n_routed_experts", shared_count="n_shared_experts", balanced=True)


def deepseek(config: Config, name: str) -> ModelSpec:
    """Read a DeepSeek MoE, or the language model of a DeepSeek OCR 2: usual attention.

    Source: ``modeling_deepseek.py`` in deepseek-ai/deepseek-moe-16b-base,
    ``models/deepseek_ocr2/configuration_deepseek_ocr2.py``, ``modeling_deepseek_ocr2.py``.
    """
    bias = config.flag("mlp_bias")
    width = head_dim(config.required_size("hidden_size"), config.size("num_attention_heads"))
    unknown = config.get("num_experts_per_tok") is None
    return mixture(
        config,
        name,
        lambda: experts(
            config,
            "n_routed_experts",
            top_k="n_routed_experts" if unknown else "num_experts_per_tok",
            shared_count="n_shared_experts",
            shared_bias=bias,
        ),
        sparse=_deepseek_sparse(config),
        dense=lambda: feed_forward(config, bias=bias),
        mixer=lambda _: attention(config, width=width, positions=rotary(config), **biases(config)),
        remarks=(ALL_EXPERTS,) if unknown else (),
    )


def _deepseek_sparse(config: Config) -> list[bool]:
    """Return which layers have experts: every n-th from a first one on, unless listed."""
    first = config.count("first_k_dense_replace") if config.knows("first_k_dense_replace") else 1
    every = config.size("moe_layer_freq") if config.knows("moe_layer_freq") else 1
    if config.knows("mlp_layer_types") and config.get("mlp_layer_types") is not None:
        return mlp_kinds(config, first, longer=True)
    return [index >= first and index % every == 0 for index in range(config.num_layers())]


def deepseek_v2(config: Config, name: str) -> ModelSpec:
    """Read a DeepSeek V2; a null ``num_experts_per_tok`` gives no active parameters.

    The language models of DeepSeek-OCR and of the smallest DeepSeek-VL2 have usual attention, with
    ``use_mla`` false (``modeling_deepseekv2.py`` in deepseek-ai/DeepSeek-OCR).
    Source: ``models/deepseek_v2/modeling_deepseek_v2.py``.
    """
    if config.given("use_mla") is False:
        config.pass_over("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")
        config.pass_over("v_head_dim", "qk_head_dim", "head_dim")
        return deepseek(config, name)
    bias = config.flag("mlp_bias")
    unknown = config.get("num_experts_per_tok") is None
    return mixture(
        config,
        name,
        lambda: experts(
            config,
            "n_routed_experts",
            top_k="n_routed_experts" if unknown else "num_experts_per_tok",
            shared_count="n_shared_experts",
            shared_bias=bias,
        ),
        sparse=dense_first(config),
        dense=lambda: feed_forward(config, bias=bias),
        mixer=lambda _: latent_attention(config),
        remarks=(ALL_EXPERTS,) if unknown else (),
    )


def deepseek_v3(config: Config, name: str) -> ModelSpec:
    """Read a DeepSeek V3 or R1 (``models/deepseek_v3/modeling_deepseek_v3.py``)."""
    return mixture(
        config,
        name,
        lambda: routed_experts(config),
        predicts=further(config),
        sparse=dense_first(config),
        mixer=lambda _: latent_attention(config),
    )


def glm4_moe_lite(config: Config, name: str) -> ModelSpec:
    """Read a GLM-4.7 Flash (``models/glm4_moe_lite/configuration_glm4_moe_lite.py``)."""
    return mixture(
        config,
        name,
        lambda: routed_experts(config),
        predicts=further(config),
        sparse=mlp_kinds(config, 1),
        mixer=lambda _: latent_attention(config),
    )


def deepseek_v32(config: Config, name: str) -> ModelSpec:
    """Read a DeepSeek V3.2, where every layer has an indexer.

    Source: ``models/deepseek_v32/configuration_deepseek_v32.py``, ``modeling_deepseek_v32.py``.
    """
    return _indexed(config, name, ["full"] * config.num_layers())


def glm_moe_dsa(config: Config, name: str) -> ModelSpec:
    """Read a GLM-5, where some layers may use the choice of an earlier layer's indexer.

    Source: ``models/glm_moe_dsa/configuration_glm_moe_dsa.py``, ``modeling_glm_moe_dsa.py``.
    """
    layers = config.num_layers()
    kinds = layer_kinds(config, layers, ("full", "shared"), "indexer_types")
    if kinds is None:
        kinds = _indexer_pattern(config, layers)
    if kinds is None:
        every = config.integer("index_topk_freq", 1)
        offset = config.integer("index_skip_topk_offset", 2)
        kinds = [
            "shared" if max(index - offset + 1, 0) % max(every, 1) else "full"
            for index in range(layers)
        ]
    return _indexed(config, name, kinds)


def _indexer_pattern(config: Config, layers: int) -> list[str] | None:
    """Return which layers have an indexer, from a list or a string of a letter each."""
    pattern = config.given("index_topk_pattern")
    if pattern is None:
        return None
    if isinstance(pattern, str):
        pattern = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
    if (
        not isinstance(pattern, list | tuple)
        or len(pattern) != layers
        or not all(kind in ("full", "shared") for kind in pattern)
    ):
        raise InvalidValueError(
            "index_topk_pattern", pattern, f"must give F or S for each of {layers} layers"
        )
    return list(pattern)


def _indexed(config: Config, name: str, kinds: list[str]) -> ModelSpec:
    """Compose a model with sparse attention; the kind of a layer says whether it has an indexer."""
    config.rename("num_experts", "n_routed_experts")
    config.required_size("q_lora_rank")
    indexer = sparse_indexer(config)
    span = TopK(config.size("index_topk"))
    return mixture(
        config,
        name,
        lambda: routed_experts(config),
        predicts=further(config, "full"),
        sparse=mlp_kinds(config, "first_k_dense_replace"),
        kinds=kinds,
        mixer=lambda kind: latent_attention(
            config, span=span, indexer=indexer if kind == "full" else None
        ),
    )


def minicpm3(config: Config, name: str) -> ModelSpec:
    """Read a MiniCPM3 or a Youtu: latent attention and a dense feed-forward.

    Source: ``models/minicpm3/configuration_minicpm3.py``, ``modeling_minicpm3.py``,
    ``models/youtu``.
    """
    norm = rms_norm(config)
    value = config.optional_size("v_head_dim")
    if value is None and config.model_type == "minicpm3":
        embed = config.required_size("hidden_size")
        value = head_dim(embed, config.required_size("num_attention_heads"))
    layer = pre_norm(
        norm,
        latent_attention(config, value_dim=value),
        feed_forward(config, bias=config.model_type == "minicpm3" and config.flag("mlp_bias")),
    )
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)
