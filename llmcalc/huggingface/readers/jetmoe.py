"""JetMoE, whose attention is a mixture of experts, too."""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import assemble, feed_forward, pre_norm, rms_norm
from llmcalc.spec.experts import AttentionExperts, Experts
from llmcalc.spec.model import ModelSpec

__all__ = ["jetmoe"]


def jetmoe(config: Config, name: str) -> ModelSpec:
    """Read a JetMoE, whose attention is a mixture of experts, too.

    Source: ``models/jetmoe/modeling_jetmoe.py``.
    """
    norm = rms_norm(config)
    config.pass_over("num_attention_heads")
    width = config.size("kv_channels")
    if width % 2:
        raise InvalidValueError("kv_channels", width, "must be even for rotary positions")
    mixer = AttentionExperts(
        num_experts=config.required_size("num_local_experts"),
        experts_per_token=config.required_size("num_experts_per_tok"),
        kv_heads=config.required_size("num_key_value_heads"),
        head_dim=width,
    )
    routed = Experts(
        num_experts=mixer.num_experts,
        experts_per_token=mixer.experts_per_token,
        expert=feed_forward(config, activation_field="activation_function"),
        output_bias=True,
    )
    layer = pre_norm(norm, mixer, routed)
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)
