"""ZAYA: convolved attention, routers of several matrices, scaled residual sums."""

from __future__ import annotations

import attrs

from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import experts
from llmcalc.huggingface.reading import assemble, each_once, layer_kinds, rms_norm, window_span
from llmcalc.spec.convolved import ConvolvedAttention, InputScale, ResidualScale
from llmcalc.spec.experts import RouterNetwork
from llmcalc.spec.model import Block, Layer, ModelSpec
from llmcalc.spec.spans import Full

__all__ = ["zaya"]


def zaya(config: Config, name: str) -> ModelSpec:
    """Read a ZAYA: convolved attention, routers of several matrices, scaled residual sums.

    The router may choose none of the experts; transformers computes one nevertheless
    (``models/zaya/configuration_zaya.py``, ``modeling_zaya.py``).
    """
    layers, norm = config.num_layers(), rms_norm(config)
    kinds = layer_kinds(config, layers, ("hybrid", "hybrid_sliding")) or ["hybrid"] * layers
    window = window_span(config)
    balanced = config.required_size("num_experts") + 1
    routed = experts(config, "num_experts", more_choices=1, balanced_choices=balanced)

    def make(plan: tuple[str, bool]) -> Layer:
        kind, carries = plan
        mixer = ConvolvedAttention(
            query_heads=config.required_size("num_attention_heads"),
            kv_heads=config.required_size("num_key_value_heads"),
            head_dim=config.size("head_dim"),
            kernels=(config.size("cca_time0"), config.size("cca_time1")),
            bias=config.flag("attention_bias"),
            span=window if kind == "hybrid_sliding" else Full(),
        )
        router = RouterNetwork(width=config.size("router_hidden_size"), norm=norm, carries=carries)
        return Layer(
            blocks=(
                Block(part=mixer, norm=norm),
                Block(part=ResidualScale(name="attention")),
                Block(part=attrs.evolve(routed, router_network=router), norm=norm),
                Block(part=ResidualScale(name="feed_forward")),
            )
        )

    plans = [(kind, index > 0) for index, kind in enumerate(kinds)]
    return assemble(
        config,
        name,
        each_once(plans, make),
        final_norm=norm,
        head_bias=config.flag("lm_head_bias"),
        beside=(InputScale(),),
        remarks=("the router may choose no expert: active parameters are a bound",),
    )
