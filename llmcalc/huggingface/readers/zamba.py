"""Zamba and Zamba 2: Mamba layers, and transformer blocks that several of them share."""

from __future__ import annotations

from typing import Final

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mamba import expanded, mamba2_part, mamba_part
from llmcalc.huggingface.reading import (
    LINEAR,
    assemble,
    attention,
    each_once,
    feed_forward,
    layer_kinds,
    rms_norm,
)
from llmcalc.spec.attention import Attention
from llmcalc.spec.model import Block, Layer, ModelSpec
from llmcalc.spec.recurrent import Mamba2
from llmcalc.spec.shared import SharedBlock

__all__ = ["zamba", "zamba2"]

_HYBRID: Final = "hybrid"

#: The layers of a Zamba 2 that lists none.
_ZAMBA2_PLAN: Final = [
    LINEAR,
    *([LINEAR] * 5 + [_HYBRID]) * 7,
    *[LINEAR] * 4,
    _HYBRID,
    *[LINEAR] * 3,
    _HYBRID,
    *[LINEAR] * 2,
]


def zamba(config: Config, name: str) -> ModelSpec:
    """Read a Zamba: one transformer block before some of its Mamba layers.

    With an untied head transformers ties nothing else either: each use has a block of its own.
    Source: ``models/zamba/configuration_zamba.py``, ``modeling_zamba.py``.
    """
    norm = rms_norm(config)
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (LINEAR, _HYBRID), "layers_block_type")
    if plan is None:
        period, offset = config.size("attn_layer_period"), config.count("attn_layer_offset")
        plan = [
            _HYBRID if index == 2 or (index > 2 and (index - 3) % period == offset) else LINEAR
            for index in range(layers)
        ]
    recurrent = mamba_part(config, heads=config.size("n_mamba_heads"), act="hidden_mamba_act")
    mixer = Block(part=recurrent, norm=norm)

    def make(kind: str) -> Layer:
        if kind == LINEAR:
            return Layer(blocks=(mixer,))
        shared = SharedBlock(
            key="shared" if config.flag("tie_word_embeddings") else None,
            input_dim=_double_width(config),
            attention=_wide_attention(config),
            feed_forward=feed_forward(config),
            norm=norm,
        )
        return Layer(blocks=(shared, mixer))

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def zamba2(config: Config, name: str) -> ModelSpec:
    """Read a Zamba 2: shared transformer blocks in turn, with adapters for each use.

    Source: ``models/zamba2/configuration_zamba2.py``, ``modeling_zamba2.py``.
    """
    config.ignore("kv_channels", "num_query_groups")
    norm, layers = rms_norm(config), config.num_layers()
    uses = _zamba2_uses(config)
    blocks = config.size("num_mem_blocks")
    numbers = {layer: use % blocks for use, layer in enumerate(uses)}
    tied = config.flag("tie_word_embeddings")
    bias = config.flag("add_bias_linear")
    inner = config.optional_size("intermediate_size") or 4 * config.required_size("hidden_size")
    mixer = Block(part=_zamba2_mamba(config), norm=norm)

    def make(number: int | None) -> Layer:
        if number is None:
            return Layer(blocks=(mixer,))
        shared = SharedBlock(
            key=f"shared {number + 1}" if tied else None,
            input_dim=_double_width(config),
            attention=_wide_attention(config),
            feed_forward=feed_forward(config, inner_dim=inner, bias=bias),
            norm=norm,
            adapter_rank=config.size("adapter_rank"),
            attention_adapters=config.flag("use_shared_attention_adapter"),
            spare_adapters=0 if tied else len(range(number, len(uses), blocks)) - 1,
        )
        return Layer(blocks=(shared, mixer))

    plan = [numbers.get(index) for index in range(layers)]
    return assemble(config, name, each_once(plan, make), final_norm=norm)


def _zamba2_uses(config: Config) -> list[int]:
    """Return the layers with a shared block before their Mamba."""
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (LINEAR, _HYBRID), "layers_block_type")
    if plan is None:
        plan = _ZAMBA2_PLAN
        if layers != len(plan):
            rule = f"must be {len(plan)} without layers_block_type"
            raise InvalidValueError("num_hidden_layers", layers, rule)
    uses = [index for index, kind in enumerate(plan) if kind == _HYBRID]
    if "hybrid_layer_ids" in config and config.get("hybrid_layer_ids") != uses:
        rule = "must be the indices of the hybrid layers in layers_block_type"
        raise InvalidValueError("hybrid_layer_ids", config.get("hybrid_layer_ids"), rule)
    return uses


def _zamba2_mamba(config: Config) -> Mamba2:
    bias = config.flag("add_bias_linear")
    return mamba2_part(
        config,
        inner=expanded(config, "mamba_expand"),
        heads="n_mamba_heads",
        head_dim="mamba_headdim",
        groups="mamba_ngroups",
        chunk="chunk_size",
        conv_bias=True,
        act=None,
        norm=rms_norm(config),
        bias=bias,
        output_bias=bias,
    )


def _double_width(config: Config) -> int:
    """Return the width of a Zamba's hidden state beside its token embeddings."""
    return _wide(config, "attention_hidden_size") or 2 * config.required_size("hidden_size")


def _wide(config: Config, field: str) -> int | None:
    """Return a width of a Zamba's attention, `None` where nothing but the double width says it."""
    return config.limit(field) if config.knows(field) else None


def _wide_attention(config: Config) -> Attention:
    """Compose the attention of a Zamba, whose heads share the double width."""
    double = 2 * config.required_size("hidden_size")
    heads = config.required_size("num_attention_heads")
    return attention(config, width=_wide(config, "attention_head_dim") or double // heads)
