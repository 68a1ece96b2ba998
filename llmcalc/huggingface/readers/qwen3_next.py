"""Qwen3-Next and Qwen3.5: the gated delta rule, and gated attention in every fourth layer.

* `gated_delta`: the gated delta rule of their fields.
"""

from __future__ import annotations

from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import experts, shared_expert
from llmcalc.huggingface.reading import (
    FULL,
    LINEAR,
    assemble,
    attention,
    biases,
    each_once,
    feed_forward,
    head_norms,
    layer_indices,
    layer_kinds,
    num_predicted,
    pre_norm,
    rms_norm,
    rotary,
)
from llmcalc.spec.attention import Attention
from llmcalc.spec.experts import Experts
from llmcalc.spec.model import Layer, ModelSpec, Part
from llmcalc.spec.multi_token import MultiToken
from llmcalc.spec.parts import Norm
from llmcalc.spec.recurrent import GatedDelta

__all__ = ["gated_delta", "qwen3_5", "qwen3_next"]


def qwen3_next(config: Config, name: str) -> ModelSpec:
    """Read a Qwen3-Next: the gated delta rule, and gated attention in every fourth layer.

    Source: ``models/qwen3_next/configuration_qwen3_next.py``, ``modeling_qwen3_next.py``.
    """
    config.ignore("use_sliding_window")
    layers = config.num_layers()
    several, step = config.count("num_experts") > 0, config.size("decoder_sparse_step")
    dense = layer_indices(config, "mlp_only_layers") or ()
    sparse = [several and index not in dense and (index + 1) % step == 0 for index in range(layers)]
    return _read(config, name, sparse)


def qwen3_5(config: Config, name: str) -> ModelSpec:
    """Read the language model of a Qwen3.5, dense or with experts in every layer.

    Source: ``models/qwen3_5/modeling_qwen3_5.py``, ``models/qwen3_5_moe/modeling_qwen3_5_moe.py``.
    """
    sparse = config.model_type == "qwen3_5_moe_text"
    return _read(config, name, [sparse] * config.num_layers())


def _read(config: Config, name: str, sparse: list[bool]) -> ModelSpec:
    """Read a model whose layers have experts or not, as `sparse` says."""
    further = "mtp_num_hidden_layers"
    config.rename("num_nextn_predict_layers", further)
    norm = rms_norm(config)
    kinds = layer_kinds(config, len(sparse), (LINEAR, FULL))
    if kinds is None:
        interval = config.extra_size("full_attention_interval") or 4
        kinds = [FULL if (index + 1) % interval == 0 else LINEAR for index in range(len(sparse))]

    def make(plan: tuple[str, bool]) -> Layer:
        kind, has_experts = plan
        mixer: Part = gated_delta(config, norm) if kind == LINEAR else _attention(config)
        inner: Part = _routed(config) if has_experts else feed_forward(config)
        return pre_norm(norm, mixer, inner)

    plan = zip(kinds, sparse, strict=True)
    count = num_predicted(config, further)
    modules: tuple[MultiToken, ...] = ()
    if count:
        has_experts = config.model_type != "qwen3_5_text" and config.count("num_experts") > 0
        layers = (make((FULL, has_experts)),) * count
        modules = (MultiToken(count=1, layers=layers, norm=norm),)
    return assemble(config, name, each_once(plan, make), final_norm=norm, multi_token=modules)


def _attention(config: Config) -> Attention:
    return attention(
        config,
        positions=rotary(config, fraction=0.25),
        output_gate="element",
        gate_bias=config.flag("attention_bias"),
        **head_norms(config),
        **biases(config),
    )


def _routed(config: Config) -> Experts:
    return experts(config, "num_experts", shared=shared_expert(config), shared_gate=True)


def gated_delta(config: Config, norm: Norm) -> GatedDelta:
    """Compose a gated delta rule of the fields of Qwen3-Next and its kin."""
    return GatedDelta(
        key_heads=config.size("linear_num_key_heads"),
        value_heads=config.size("linear_num_value_heads"),
        key_dim=config.size("linear_key_head_dim"),
        value_dim=config.size("linear_value_head_dim"),
        kernel=config.size("linear_conv_kernel_dim"),
        norm=norm,
    )
