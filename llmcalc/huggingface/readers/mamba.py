"""Mamba and Mamba 2, and the parts of them that hybrids share.

* `mamba_part`, `mamba2_part`: one Mamba of the usual fields.
* `expanded`: the width of a Mamba that is a multiple of the model's.
"""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import activation, assemble, pre_norm, rms_norm
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.parts import Norm
from llmcalc.spec.recurrent import Mamba, Mamba2

__all__ = ["expanded", "mamba", "mamba2", "mamba2_part", "mamba_part"]


def mamba(config: Config, name: str) -> ModelSpec:
    """Read a Mamba or a Falcon Mamba, whose inner norms have no parameters.

    Source: ``models/mamba/modeling_mamba.py``, ``models/falcon_mamba/modeling_falcon_mamba.py``.
    """
    norm = rms_norm(config, "layer_norm_epsilon")
    inner = config.extra_size("intermediate_size")
    part = Mamba(
        channels=expanded(config, "expand") if inner is None else inner,
        state_dim=config.required_size("state_size"),
        kernel=config.size("conv_kernel"),
        time_step_rank=_time_step_rank(config, "time_step_rank"),
        bias=config.flag("use_bias"),
        conv_bias=config.flag("use_conv_bias"),
        activation=activation(config, "hidden_act"),
    )
    layers = [pre_norm(norm, part)] * config.num_layers()
    return assemble(config, name, layers, final_norm=norm, max_positions=None)


def mamba2(config: Config, name: str) -> ModelSpec:
    """Read a Mamba 2 (``models/mamba2/modeling_mamba2.py``)."""
    norm = rms_norm(config, "layer_norm_epsilon")
    bias = config.flag("use_bias")
    part = mamba2_part(
        config,
        inner=expanded(config, "expand"),
        heads="num_heads",
        head_dim="head_dim",
        state_dim="state_size",
        groups="n_groups",
        kernel="conv_kernel",
        chunk="chunk_size",
        conv_bias=config.flag("use_conv_bias"),
        norm=norm,
        bias=bias,
        output_bias=bias,
    )
    layers = [pre_norm(norm, part)] * config.num_layers()
    return assemble(config, name, layers, final_norm=norm, max_positions=None)


def mamba_part(
    config: Config, *, norm: Norm | None = None, heads: int | None = None, act: str = "hidden_act"
) -> Mamba:
    """Compose a Mamba of a hybrid's fields, perhaps of several heads, or with inner norms."""
    return Mamba(
        channels=expanded(config, "mamba_expand"),
        state_dim=config.size("mamba_d_state"),
        kernel=config.size("mamba_d_conv"),
        time_step_rank=_time_step_rank(config, "mamba_dt_rank"),
        bias=config.flag("mamba_proj_bias"),
        conv_bias=config.flag("mamba_conv_bias"),
        norm=norm,
        heads=heads,
        activation=activation(config, act),
    )


def mamba2_part(
    config: Config,
    *,
    inner: int,
    norm: Norm | None,
    bias: bool,
    output_bias: bool,
    conv_bias: bool | None = None,
    heads: str = "mamba_n_heads",
    head_dim: str = "mamba_d_head",
    state_dim: str = "mamba_d_state",
    groups: str = "mamba_n_groups",
    kernel: str = "mamba_d_conv",
    chunk: str = "mamba_chunk_size",
    act: str | None = "hidden_act",
) -> Mamba2:
    """Compose a Mamba 2 of `inner` elements; the strings are fields."""
    number = config.size(heads)
    if inner % number:
        raise InvalidValueError(heads, number, f"must divide the inner width ({inner})")
    if config.knows(head_dim) and config.get(head_dim) != "auto":
        width = config.size(head_dim)
        if width * number != inner:
            embed = config.required_size("hidden_size")
            rule = f"must be the inner width ({inner}) divided by {heads} ({number})"
            raise InvalidValueError(head_dim, width, f"{rule}; hidden_size is {embed}")
    return Mamba2(
        heads=number,
        head_dim=inner // number,
        state_dim=config.size(state_dim),
        groups=config.size(groups),
        kernel=config.size(kernel),
        chunk=config.size(chunk),
        bias=bias,
        output_bias=output_bias,
        conv_bias=config.optional_flag("mamba_conv_bias") if conv_bias is None else conv_bias,
        norm=norm,
        activation="silu" if act is None else activation(config, act),
    )


def expanded(config: Config, factor: str) -> int:
    """Return the width times a factor."""
    return config.size(factor) * config.required_size("hidden_size")


def _time_step_rank(config: Config, field: str) -> int:
    """Return the rank of the time step: ``"auto"`` is a sixteenth of the width."""
    if config.get(field) == "auto":
        return -(-config.required_size("hidden_size") // 16)
    return config.size(field)
