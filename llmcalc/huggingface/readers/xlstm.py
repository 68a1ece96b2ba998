"""xLSTM-7B: mLSTM and a gated feed-forward in every layer."""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import assemble, pre_norm, rms_norm
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.parts import Norm
from llmcalc.spec.recurrent import MatrixMemory

__all__ = ["xlstm"]


def xlstm(config: Config, name: str) -> ModelSpec:
    """Read an xLSTM-7B: mLSTM and a gated feed-forward in every layer.

    Source: ``models/xlstm/configuration_xlstm.py``, ``modeling_xlstm.py``.
    """
    width = config.required_size("hidden_size")
    if config.optional_size("embedding_dim") not in {None, width}:
        rule = f"must be hidden_size ({width}) or null"
        raise InvalidValueError("embedding_dim", config.get("embedding_dim"), rule)
    blocks = config.get("num_blocks")
    layers = config.num_layers("num_hidden_layers" if blocks is None else "num_blocks")
    config.ignore("num_hidden_layers")
    bias, heads = config.flag("use_bias"), config.size("num_heads")
    norm = Norm(kind="rms", bias=bias, eps=config.number("norm_eps"))
    widths = {}
    for field in ("qk_dim_factor", "v_dim_factor"):
        whole = int(width * config.number(field))
        if not whole or whole % heads:
            rule = f"must make the width ({whole}) a multiple of num_heads ({heads})"
            raise InvalidValueError(field, config.get(field), rule)
        widths[field] = whole // heads
    multiple = config.size("ffn_round_up_to_multiple_of")
    inner = int((width * config.number("ffn_proj_factor") + multiple - 1) // multiple * multiple)
    layer = pre_norm(
        norm,
        MatrixMemory(
            heads=heads,
            key_dim=widths["qk_dim_factor"],
            value_dim=widths["v_dim_factor"],
            norm=Norm(kind="layer", bias=bias, eps=config.number("norm_eps")),
            chunk=config.size("chunk_size"),
            piece=config.size("max_inference_chunksize"),
            bias=bias,
        ),
        FeedForward(
            inner_dim=inner, gated=True, activation="silu", input_bias=bias, output_bias=bias
        ),
    )
    return assemble(
        config,
        name,
        [layer] * layers,
        final_norm=rms_norm(config, "norm_eps"),
        max_positions=None,
        may_tie=False,
    )
