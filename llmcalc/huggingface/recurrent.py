"""Readers of recurrent models, and of hybrids of recurrence and attention.

A reader takes a `Config` and the model's name and returns a `ModelSpec`. Each is written from the
modelling source of transformers, which it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import MOST_LAYERS, Config
from llmcalc.huggingface.experts import dense_first, experts, mlp_kinds, shared_expert
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    activation,
    assemble,
    attention,
    each_once,
    feed_forward,
    head_dim,
    layer_kinds,
    num_predicted,
    pre_norm,
    rms_norm,
    rotary,
    window_span,
)
from llmcalc.spec.attention import Attention, LatentAttention, Rotary
from llmcalc.spec.axes import Axis
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.items import Scale
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import Block, Layer, ModelSpec, Part
from llmcalc.spec.multi_token import MultiToken
from llmcalc.spec.parallel import ParallelBlock
from llmcalc.spec.parts import Embedding, Norm
from llmcalc.spec.recurrent import (
    ChannelMix,
    GatedDelta,
    GatedLinearRecurrence,
    LinearAttention,
    Mamba,
    Mamba2,
    MatrixMemory,
    ShortConvolution,
    TimeMix,
)
from llmcalc.spec.shared import SharedBlock
from llmcalc.spec.spans import Full, Window

__all__ = [
    "bailing_hybrid",
    "bamba",
    "delta",
    "falcon_h1",
    "granitemoehybrid",
    "hrm_text",
    "jamba",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "lfm3",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "xlstm",
    "zamba",
    "zamba2",
]

#: Kinds of layers in ``layer_types``.
LINEAR: Final = "linear_attention"
CONV: Final = "conv"
HYBRID: Final = "hybrid"


def mamba(config: Config, name: str) -> ModelSpec:
    """Read a Mamba or a Falcon Mamba, whose inner norms have no parameters.

    Source: ``models/mamba/modeling_mamba.py``, ``models/falcon_mamba/modeling_falcon_mamba.py``.
    """
    norm = rms_norm(config, "layer_norm_epsilon")
    inner = config.extra_size("intermediate_size")
    part = Mamba(
        channels=_expanded(config, "expand") if inner is None else inner,
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
    part = _mamba2(
        config,
        inner=_expanded(config, "expand"),
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


def bamba(config: Config, name: str) -> ModelSpec:
    """Read a Bamba: attention in the listed layers (``models/bamba/modeling_bamba.py``)."""
    norm = rms_norm(config)
    full = _indices(config, "attn_layer_indices") or ()
    plan = [FULL if index in full else LINEAR for index in range(config.num_layers())]
    inner = feed_forward(config, bias=config.flag("mlp_bias"))

    def make(kind: str) -> Layer:
        if kind == LINEAR:
            return pre_norm(norm, _ibm_mamba2(config), inner)
        return pre_norm(norm, _attention(config, positions=rotary(config, fraction=0.5)), inner)

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def falcon_h1(config: Config, name: str) -> ModelSpec:
    """Read a Falcon-H1: Mamba 2 and attention side by side (``modeling_falcon_h1.py``)."""
    norm = rms_norm(config)
    inner = config.optional_size("mamba_d_ssm")
    recurrent = _mamba2(
        config,
        inner=_expanded(config, "mamba_expand") if inner is None else inner,
        norm=norm if config.optional_flag("mamba_rms_norm") else None,
        bias=config.optional_flag("mamba_proj_bias"),
        output_bias=config.optional_flag("projectors_bias"),
    )
    attends = _attention(config, positions=rotary(config))
    mixers = ParallelBlock(norm=norm, blocks=(Block(part=recurrent), Block(part=attends)))
    inner_part = feed_forward(config, bias=config.flag("mlp_bias"))
    layer = Layer(blocks=(mixers, Block(part=inner_part, norm=norm)))
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)


def granitemoehybrid(config: Config, name: str) -> ModelSpec:
    """Read a Granite 4: every layer has a shared feed-forward, and experts if there are any.

    Source: ``models/granitemoehybrid/modeling_granitemoehybrid.py``.
    """
    norm = rms_norm(config)
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (LINEAR, FULL)) or [LINEAR] * layers
    shared = shared_expert(config, "shared_intermediate_size")
    inner: Part = shared
    if config.count("num_local_experts"):
        inner = experts(config, "num_local_experts", "intermediate_size", shared=shared)

    turned = config.get("position_embedding_type") == "rope"
    positions = rotary(config) if turned else None

    def make(kind: str) -> Layer:
        if kind == LINEAR:
            return pre_norm(norm, _ibm_mamba2(config), inner)
        return pre_norm(norm, _attention(config, positions=positions), inner)

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def jamba(config: Config, name: str) -> ModelSpec:
    """Read a Jamba: attention and experts in every so many layers (``modeling_jamba.py``)."""
    norm = rms_norm(config)
    several = config.count("num_experts") > 1
    is_full = _every(config, "attn_layer_period", "attn_layer_offset")
    has_experts = _every(config, "expert_layer_period", "expert_layer_offset")
    plan = [
        (is_full(index), several and has_experts(index)) for index in range(config.num_layers())
    ]

    def make(kind: tuple[bool, bool]) -> Layer:
        full, sparse = kind
        inner: Part = feed_forward(config)
        if sparse:
            inner = experts(config, "num_experts", "intermediate_size")
        mixer = attention(config) if full else _mamba(config, norm=norm)
        return pre_norm(norm, mixer, inner)

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def nemotron_h(config: Config, name: str) -> ModelSpec:
    """Read a Nemotron-H: every layer is one part, by a list or a pattern of letters.

    Source: ``models/nemotron_h/configuration_nemotron_h.py``, ``modeling_nemotron_h.py``.
    """
    for old, field in (
        ("mamba_n_groups", "n_groups"),
        ("mamba_d_conv", "conv_kernel"),
        ("mamba_expand", "expand"),
        ("mamba_conv_bias", "use_conv_bias"),
        ("mamba_chunk_size", "chunk_size"),
    ):
        config.prefer(old, field)
    config.ignore("norm_eps", "num_hidden_layers", "partial_rotary_factor", "rope_theta")
    norm = rms_norm(config, "layer_norm_epsilon")
    bias = config.flag("use_bias")

    def plain(width: int, *, bias: bool = False) -> FeedForward:
        return feed_forward(
            config, inner_dim=width, gated=False, bias=bias, activation_field="mlp_hidden_act"
        )

    def shared() -> FeedForward:
        width = config.required_count("moe_shared_expert_intermediate_size")
        inner = width or config.required_size("intermediate_size")
        return plain(inner, bias=config.flag("mlp_bias"))

    def make(kind: str) -> Layer:
        if kind == LINEAR:
            heads, head = config.size("mamba_num_heads"), config.size("mamba_head_dim")
            return pre_norm(
                norm,
                _mamba2(
                    config,
                    inner=heads * head,
                    heads="mamba_num_heads",
                    head_dim="mamba_head_dim",
                    state_dim="ssm_state_size",
                    groups="n_groups",
                    kernel="conv_kernel",
                    chunk="chunk_size",
                    conv_bias=config.flag("use_conv_bias"),
                    act="mamba_hidden_act",
                    norm=norm,
                    bias=bias,
                    output_bias=bias,
                ),
            )
        if kind == FULL:
            return pre_norm(norm, attention(config))
        mlp_bias = config.flag("mlp_bias")
        if kind == "mlp":
            return pre_norm(norm, plain(config.required_size("intermediate_size"), bias=mlp_bias))
        return pre_norm(
            norm,
            Experts(
                num_experts=config.size("n_routed_experts"),
                balanced_choices=config.size("n_routed_experts"),
                experts_per_token=config.size("num_experts_per_tok"),
                expert=plain(config.required_size("moe_intermediate_size")),
                shared=shared(),
                latent_dim=config.optional_size("moe_latent_size"),
                latent_bias=mlp_bias,
            ),
        )

    layers = each_once(_nemotron_plan(config), make)
    modules: tuple[MultiToken, ...] = ()
    if count := num_predicted(config):
        kinds = _nemotron_further(config)
        modules = (MultiToken(count=count, layers=tuple(each_once(kinds, make)), norm=norm),)
    return assemble(config, name, layers, final_norm=norm, may_tie=False, multi_token=modules)


#: The kinds of layers of a Nemotron-H, by the letters of its patterns.
_NEMOTRON: Final = {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}


def _nemotron_plan(config: Config) -> list[str]:
    """Return the kind of every layer; ``num_hidden_layers`` is ignored where a list is given."""
    kinds = config.get("layers_block_type")
    if kinds is None and "hybrid_override_pattern" in config:
        return _nemotron_pattern(config, "hybrid_override_pattern")
    if kinds is None:
        return list(_NEMOTRON.values())
    return _nemotron_list(config, "layers_block_type")


def _nemotron_further(config: Config) -> list[str]:
    """Return the kinds of the layers of each module that predicts a further token."""
    usual = [FULL, "moe"]
    given = config.get("mtp_layers_block_type")
    kinds = usual if given is None else _nemotron_list(config, "mtp_layers_block_type")
    if kinds == usual and "mtp_hybrid_override_pattern" in config:
        return _nemotron_pattern(config, "mtp_hybrid_override_pattern")
    return kinds


def _nemotron_pattern(config: Config, field: str) -> list[str]:
    pattern: Any = config.get(field)
    if (
        not isinstance(pattern, str | list | tuple)
        or not pattern
        or not all(isinstance(letter, str) and letter in _NEMOTRON for letter in pattern)
    ):
        raise InvalidValueError(field, pattern, f"must be made of {', '.join(_NEMOTRON)}")
    _check_layers(field, pattern)
    return [_NEMOTRON[letter] for letter in pattern]


def _nemotron_list(config: Config, field: str) -> list[str]:
    kinds = config.get(field)
    if not isinstance(kinds, list | tuple) or not kinds:
        raise InvalidValueError(field, kinds, "must list the kind of every layer")
    _check_layers(field, kinds)
    return layer_kinds(config, len(kinds), tuple(_NEMOTRON.values()), field) or []


def zamba(config: Config, name: str) -> ModelSpec:
    """Read a Zamba: one transformer block before some of its Mamba layers.

    With an untied head transformers ties nothing else either: each use has a block of its own.
    Source: ``models/zamba/configuration_zamba.py``, ``modeling_zamba.py``.
    """
    norm = rms_norm(config)
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (LINEAR, HYBRID), "layers_block_type")
    if plan is None:
        period, offset = config.size("attn_layer_period"), config.count("attn_layer_offset")
        plan = [
            HYBRID if index == 2 or (index > 2 and (index - 3) % period == offset) else LINEAR
            for index in range(layers)
        ]
    recurrent = _mamba(config, heads=config.size("n_mamba_heads"), act="hidden_mamba_act")
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
    norm = rms_norm(config)
    plan = layer_kinds(config, config.num_layers(), (LINEAR, HYBRID), "layers_block_type")
    if plan is None:
        plan = _ZAMBA2_PLAN
        if config.num_layers() != len(plan):
            rule = f"must be {len(plan)} without layers_block_type"
            raise InvalidValueError("num_hidden_layers", config.num_layers(), rule)
    blocks = config.size("num_mem_blocks")
    uses = [index for index, kind in enumerate(plan) if kind == HYBRID]
    if "hybrid_layer_ids" in config and config.get("hybrid_layer_ids") != uses:
        rule = "must be the indices of the hybrid layers in layers_block_type"
        raise InvalidValueError("hybrid_layer_ids", config.get("hybrid_layer_ids"), rule)
    numbers = {layer: use % blocks for use, layer in enumerate(uses)}
    tied = config.flag("tie_word_embeddings")
    bias = config.flag("add_bias_linear")
    inner = config.optional_size("intermediate_size")
    width = config.required_size("hidden_size")
    part = _mamba2(
        config,
        inner=_expanded(config, "mamba_expand"),
        heads="n_mamba_heads",
        head_dim="mamba_headdim",
        groups="mamba_ngroups",
        chunk="chunk_size",
        conv_bias=True,
        act=None,
        norm=norm,
        bias=bias,
        output_bias=bias,
    )
    mixer = Block(part=part, norm=norm)

    def make(number: int | None) -> Layer:
        if number is None:
            return Layer(blocks=(mixer,))
        shared = SharedBlock(
            key=f"shared {number + 1}" if tied else None,
            input_dim=_double_width(config),
            attention=_wide_attention(config),
            feed_forward=feed_forward(config, inner_dim=inner or 4 * width, bias=bias),
            norm=norm,
            adapter_rank=config.size("adapter_rank"),
            attention_adapters=config.flag("use_shared_attention_adapter"),
            spare_adapters=0 if tied else len(range(number, len(uses), blocks)) - 1,
        )
        return Layer(blocks=(shared, mixer))

    layers = each_once([numbers.get(index) for index in range(len(plan))], make)
    return assemble(config, name, layers, final_norm=norm)


_ZAMBA2_PLAN: Final = [
    LINEAR,
    *([LINEAR] * 5 + [HYBRID]) * 7,
    *[LINEAR] * 4,
    HYBRID,
    *[LINEAR] * 3,
    HYBRID,
    *[LINEAR] * 2,
]


def qwen3_next(config: Config, name: str) -> ModelSpec:
    """Read a Qwen3-Next: the gated delta rule, and gated attention in every fourth layer.

    Source: ``models/qwen3_next/configuration_qwen3_next.py``, ``modeling_qwen3_next.py``.
    """
    config.ignore("use_sliding_window")
    layers = config.num_layers()
    several, step = config.count("num_experts") > 0, config.size("decoder_sparse_step")
    dense = _indices(config, "mlp_only_layers") or ()
    sparse = [several and index not in dense and (index + 1) % step == 0 for index in range(layers)]
    return _qwen_delta(config, name, sparse)


def qwen3_5(config: Config, name: str) -> ModelSpec:
    """Read the language model of a Qwen3.5, dense or with experts in every layer.

    Source: ``models/qwen3_5/modeling_qwen3_5.py``, ``models/qwen3_5_moe/modeling_qwen3_5_moe.py``.
    """
    sparse = config.model_type == "qwen3_5_moe_text"
    return _qwen_delta(config, name, [sparse] * config.num_layers())


def _qwen_delta(config: Config, name: str, sparse: list[bool]) -> ModelSpec:
    further = "mtp_num_hidden_layers"
    config.rename("num_nextn_predict_layers", further)
    norm = rms_norm(config)
    kinds = layer_kinds(config, len(sparse), (LINEAR, FULL))
    if kinds is None:
        interval = config.extra_size("full_attention_interval") or 4
        kinds = [FULL if (index + 1) % interval == 0 else LINEAR for index in range(len(sparse))]

    def make(kind: tuple[str, bool]) -> Layer:
        mixer, has_experts = kind
        bias = config.flag("attention_bias")
        inner: Part
        if has_experts:
            inner = experts(
                config,
                "num_experts",
                shared=shared_expert(config),
                shared_gate=True,
            )
        else:
            inner = feed_forward(config)
        part: Part
        if mixer == LINEAR:
            part = delta(config, norm)
        else:
            part = attention(
                config,
                positions=rotary(config, fraction=0.25),
                query_key_value_bias=bias,
                output_bias=bias,
                query_norm=norm,
                key_norm=norm,
                output_gate="element",
                gate_bias=bias,
            )
        return pre_norm(norm, part, inner)

    plan = zip(kinds, sparse, strict=True)
    count = num_predicted(config, further)
    modules: tuple[MultiToken, ...] = ()
    if count:
        has_experts = config.model_type != "qwen3_5_text" and config.count("num_experts") > 0
        layers = (make((FULL, has_experts)),) * count
        modules = (MultiToken(count=1, layers=layers, norm=norm),)
    return assemble(config, name, each_once(plan, make), final_norm=norm, multi_token=modules)


def olmo_hybrid(config: Config, name: str) -> ModelSpec:
    """Read an OLMo Hybrid, whose attention layers have their norms after the parts.

    Source: ``models/olmo_hybrid/configuration_olmo_hybrid.py``, ``modeling_olmo_hybrid.py``.
    """
    norm = rms_norm(config)
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (LINEAR, FULL))
    if plan is None:
        plan = [FULL if index % 4 == 3 else LINEAR for index in range(layers)]
        if FULL not in plan:
            plan[-1] = FULL
    if len(set(plan)) == 1:
        raise InvalidValueError("layer_types", plan[0], "must not be the kind of every layer")
    embed, heads = config.required_size("hidden_size"), config.required_size("num_attention_heads")
    key_heads = config.optional_size("linear_num_key_heads") or heads
    key = config.optional_size("linear_key_head_dim") or 3 * embed // (4 * key_heads)
    inner = feed_forward(config)

    def make(kind: str) -> Layer:
        if kind == LINEAR:
            part = GatedDelta(
                key_heads=key_heads,
                value_heads=config.optional_size("linear_num_value_heads") or heads,
                key_dim=key,
                value_dim=config.optional_size("linear_value_head_dim") or 2 * key,
                kernel=config.size("linear_conv_kernel_dim"),
                norm=norm,
            )
            return pre_norm(norm, part, inner)
        mixer = _attention(config, query_norm=norm, key_norm=norm, norm_axes="heads")
        return Layer(blocks=tuple(Block(part=part, post_norm=norm) for part in (mixer, inner)))

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def kimi_linear(config: Config, name: str) -> ModelSpec:
    """Read a Kimi Linear: Kimi delta attention, and latent attention without positions.

    A sub-dictionary ``linear_attn_config`` goes before the flat fields.
    Source: ``models/kimi_linear/configuration_kimi_linear.py``, ``modeling_kimi_linear.py``.
    """
    config.ignore("head_dim", "qk_head_dim")
    layers = config.num_layers()
    config.unfold(
        "linear_attn_config",
        {
            "head_dim": "linear_head_dim",
            "num_heads": "linear_num_heads",
            "short_conv_kernel_size": "linear_conv_kernel_dim",
            "full_attn_layers": "full_attn_layers",
            "kda_layers": "kda_layers",
        },
    )
    kinds = layer_kinds(config, layers, (LINEAR, FULL))
    if kinds is None and "full_attn_layers" in config and "kda_layers" in config:
        kinds = _kimi_plan(config, layers)
    if kinds is None:
        kinds = [FULL if index and index % 4 == 0 else LINEAR for index in range(layers)]
    first = "first_k_dense_replace" if "first_k_dense_replace" in config else 1
    return _kimi(
        config,
        name,
        list(zip(kinds, mlp_kinds(config, first), strict=True)),
        _kimi_delta(
            config,
            heads=config.size("linear_num_heads"),
            head=(head := config.size("linear_head_dim")),
            kernel=config.size("linear_conv_kernel_dim"),
            decay_dim=head,
        ),
        _latent(config, query_latent_dim=config.optional_size("q_lora_rank")),
    )


def _kimi_plan(config: Config, layers: int) -> list[str]:
    """Return the kind of every layer from two lists of its numbers, which begin with 1."""
    full = _indices(config, "full_attn_layers") or ()
    linear = _indices(config, "kda_layers") or ()
    if sorted((*full, *linear)) != list(range(1, layers + 1)):
        rule = f"must give each of the layers 1 to {layers}, together with full_attn_layers, once"
        raise InvalidValueError("kda_layers", linear, rule)
    return [FULL if number in full else LINEAR for number in range(1, layers + 1)]


def bailing_hybrid(config: Config, name: str) -> ModelSpec:
    """Read a Ling 3: Kimi delta attention, and latent attention with a gate for each head.

    A saved config gives ``head_dim`` another meaning, and ``linear_head_dim`` what it was.
    Source: ``models/bailing_hybrid/configuration_bailing_hybrid.py``,
    ``modeling_bailing_hybrid.py``.
    """
    config.ignore("qk_head_dim")
    layers = config.num_layers()
    kinds = layer_kinds(config, layers, (LINEAR, FULL))
    if kinds is None:
        size = config.size("layer_group_size")
        kinds = [FULL if (index + 1) % size == 0 else LINEAR for index in range(layers)]
    fields = (
        ("linear_num_heads", "num_attention_heads"),
        ("linear_head_dim", "head_dim"),
        ("linear_conv_kernel_dim", "short_conv_kernel_size"),
    )
    heads, head, kernel = (config.extra_size(own) or config.size(other) for own, other in fields)
    return _kimi(
        config,
        name,
        list(zip(kinds, mlp_kinds(config, "first_k_dense_replace"), strict=True)),
        _kimi_delta(config, heads=heads, head=head, kernel=kernel, decay_dim=0),
        _latent(config, positions=rotary(config), output_gate=True),
    )


def _kimi(
    config: Config,
    name: str,
    plan: list[tuple[str, bool]],
    delta: GatedDelta,
    latent: LatentAttention,
) -> ModelSpec:
    norm = rms_norm(config)

    def make(kind: tuple[str, bool]) -> Layer:
        mixer, has_experts = kind
        inner: Part = feed_forward(config)
        if has_experts:
            inner = experts(
                config,
                "num_experts",
                top_k="num_experts_per_token",
                shared_count="num_shared_experts",
                balanced=True,
            )
        return pre_norm(norm, delta if mixer == LINEAR else latent, inner)

    return assemble(
        config,
        name,
        each_once(plan, make),
        final_norm=norm,
        max_positions="model_max_length",
        may_tie=False,
    )


def _kimi_delta(
    config: Config, *, heads: int, head: int, kernel: int, decay_dim: int
) -> GatedDelta:
    return GatedDelta(
        key_heads=heads,
        value_heads=heads,
        key_dim=head,
        value_dim=head,
        kernel=kernel,
        norm=rms_norm(config),
        decay_dim=decay_dim,
    )


def _latent(
    config: Config,
    *,
    query_latent_dim: int | None = None,
    positions: Rotary | None = None,
    output_gate: bool = False,
) -> LatentAttention:
    return LatentAttention(
        query_heads=config.required_size("num_attention_heads"),
        nope_dim=config.size("qk_nope_head_dim"),
        rope_dim=config.size("qk_rope_head_dim"),
        value_dim=config.size("v_head_dim"),
        latent_dim=config.size("kv_lora_rank"),
        query_latent_dim=query_latent_dim,
        norm=rms_norm(config),
        bias=config.flag("attention_bias"),
        rotary=positions,
        output_gate="head" if output_gate else None,
    )


def minimax(config: Config, name: str) -> ModelSpec:
    """Read a MiniMax-01: lightning attention in every other layer (``modeling_minimax.py``)."""
    norm = rms_norm(config)
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (LINEAR, FULL)) or _attention_types(config, layers)
    if plan is None:
        plan = [LINEAR if index % 2 else FULL for index in range(layers)]
    config.pass_over("postnorm", "rotary_dim", "shared_moe_mode")
    shared = config.given("shared_intermediate_size")
    if shared not in (None, 0, [0]):
        raise InvalidValueError("shared_intermediate_size", shared, "must be 0: no shared expert")
    inner = experts(config, "num_local_experts", "intermediate_size")
    heads, width = config.required_size("num_attention_heads"), config.optional_size("head_dim")
    linear = LinearAttention(
        heads=heads,
        head_dim=width or head_dim(config.required_size("hidden_size"), heads, rounded=True),
        norm=norm,
        chunk=config.size("block_size"),
        activation=activation(config, "hidden_act"),
    )

    def make(kind: str) -> Layer:
        if kind == LINEAR:
            return pre_norm(norm, linear, inner)
        full = attention(config, span=window_span(config), positions=rotary(config))
        # The cache of transformers keeps what the window hides.
        full = attrs.evolve(full, transformers_cache=(full.kv_heads, Full()))
        return pre_norm(norm, full, inner)

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def _attention_types(config: Config, layers: int) -> list[str] | None:
    """Return the kind of every layer as the models' own configs list it: 1 for full attention."""
    given: Any = config.given("attn_type_list")
    if given is None:
        return None
    if not isinstance(given, list | tuple) or len(given) != layers:
        raise InvalidValueError("attn_type_list", given, f"must list 0 or 1 for {layers} layers")
    if any(type(kind) is not int or kind not in {0, 1} for kind in given):
        raise InvalidValueError("attn_type_list", given, "must list 0 or 1")
    return [FULL if kind else LINEAR for kind in given]


def recurrent_gemma(config: Config, name: str) -> ModelSpec:
    """Read a RecurrentGemma: a repeated pattern of recurrences and attention with a window.

    Source: ``models/recurrent_gemma/modeling_recurrent_gemma.py``.
    """
    config.ignore("final_w_init_variance_scale")
    norm = rms_norm(config)
    layers = config.num_layers()
    embed, heads = config.required_size("hidden_size"), config.required_size("num_attention_heads")
    pattern = config.get("block_types")
    known = ("recurrent", "attention")
    if (
        not isinstance(pattern, list | tuple)
        or not pattern
        or not set(map(str, pattern)) <= {*known}
    ):
        raise InvalidValueError("block_types", pattern, f"must list {' and '.join(known)} blocks")
    plan = [pattern[index % len(pattern)] for index in range(layers)]
    inner = config.required_size("intermediate_size") // 2
    width = config.optional_size("lru_width") or embed
    if width % heads:
        raise InvalidValueError(
            "lru_width", width, f"must be a multiple of num_attention_heads ({heads})"
        )
    dense = feed_forward(config, inner_dim=inner, bias=True, activation_field="hidden_activation")

    def make(kind: str) -> Layer:
        part: Part
        if kind == "recurrent":
            part = GatedLinearRecurrence(
                heads=heads,
                head_dim=width // heads,
                kernel=config.size("conv1d_width"),
                activation=activation(config, "hidden_activation"),
            )
        else:
            part = attention(
                config,
                span=Window(config.size("attention_window_size")),
                positions=rotary(config, fraction=0.5),
                query_key_value_bias=config.flag("attention_bias"),
                output_bias=True,
            )
        return pre_norm(norm, part, dense)

    return assemble(config, name, each_once(plan, make), final_norm=norm, max_positions=None)


def lfm2(config: Config, name: str) -> ModelSpec:
    """Read an LFM2: short convolutions, and attention in some layers.

    Source: ``models/lfm2/configuration_lfm2.py``, ``modeling_lfm2.py``.
    """
    config.prefer("block_ff_dim", "intermediate_size")
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (CONV, FULL))
    if plan is None:
        full = _indices(config, "full_attn_idxs")
        plan = [FULL if full is None or index in full else CONV for index in range(layers)]
    inner = config.required_size("intermediate_size")
    if config.flag("block_auto_adjust_ff_dim"):
        inner = 2 * inner // 3
        if config.get("block_ffn_dim_multiplier") is not None:
            multiple = config.size("block_multiple_of")
            inner = int(config.number("block_ffn_dim_multiplier") * inner)
            inner = -(-inner // multiple) * multiple
    return _lfm2(config, name, plan, [False] * layers, inner)


def lfm2_moe(config: Config, name: str) -> ModelSpec:
    """Read an LFM2 with experts in all but the first layers (``modeling_lfm2_moe.py``)."""
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (CONV, FULL))
    if plan is None:
        raise InvalidValueError("layer_types", None, "must list the kind of every layer")
    sparse = dense_first(config, "num_dense_layers")
    return _lfm2(config, name, plan, sparse, config.required_size("intermediate_size"))


def _lfm2(
    config: Config, name: str, kinds: list[str], sparse: list[bool], inner_dim: int
) -> ModelSpec:
    config.prefer("tie_embedding", "tie_word_embeddings")
    norm = rms_norm(config, "norm_eps")

    def make(kind: tuple[str, bool]) -> Layer:
        mixer, has_experts = kind
        part: Part
        if mixer == CONV:
            part = ShortConvolution(
                kernel=config.size("conv_L_cache"), bias=config.flag("conv_bias")
            )
        else:
            part = attention(config, positions=rotary(config), query_norm=norm, key_norm=norm)
        inner: Part = FeedForward(inner_dim=inner_dim, gated=True, activation="silu")
        if has_experts:
            width = config.required_size("moe_intermediate_size")
            number = config.required_size("num_experts")
            inner = Experts(
                num_experts=number,
                balanced_choices=number if config.flag("use_expert_bias") else None,
                experts_per_token=config.required_size("num_experts_per_tok"),
                expert=FeedForward(inner_dim=width, gated=True, activation="silu"),
            )
        return pre_norm(norm, part, inner)

    plan = zip(kinds, sparse, strict=True)
    return assemble(config, name, each_once(plan, make), final_norm=norm)


def lfm3(config: Config, name: str) -> ModelSpec:
    """Read an LFM3: short convolutions, and gated attention, with or without a window.

    Source: ``models/lfm3/configuration_lfm3.py``, ``modeling_lfm3.py``.
    """
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (CONV, FULL, SLIDING))
    if plan is None:
        every = {0: SLIDING, 2: FULL}
        plan = [every.get(index % 4, CONV) if index else CONV for index in range(layers)]
    norm = rms_norm(config, "norm_eps")
    post_norm = norm if config.flag("use_sandwich_norm") else None
    positions = {
        FULL: rotary(config, kind=FULL, theta=1_000_000.0, fraction=0.5),
        SLIDING: rotary(config, kind=SLIDING, theta=10_000.0, fraction=1.0),
    }
    inner = FeedForward(
        inner_dim=config.required_size("intermediate_size"), gated=True, activation="silu"
    )

    def make(kind: str) -> Layer:
        part: Part
        if kind == CONV:
            part = ShortConvolution(
                kernel=config.size("conv_L_cache"), bias=config.flag("conv_bias")
            )
        else:
            part = _attention(
                config,
                span=window_span(config) if kind == SLIDING else Full(),
                positions=positions[kind],
                query_norm=norm,
                key_norm=norm,
                output_gate="head" if config.flag("use_attention_gate") else None,
            )
        return Layer(
            blocks=tuple(Block(part=p, norm=norm, post_norm=post_norm) for p in (part, inner))
        )

    return assemble(config, name, each_once(plan, make), final_norm=norm)


def rwkv(config: Config, name: str) -> ModelSpec:
    """Read an RWKV-4, which normalises its embeddings (``models/rwkv/modeling_rwkv.py``)."""
    norm = Norm(kind="layer", eps=config.number("layer_norm_epsilon"))
    width = config.required_size("hidden_size")
    channels = config.optional_size("attention_hidden_size") or width
    inner = config.optional_size("intermediate_size") or 4 * width
    layer = pre_norm(norm, TimeMix(channels=channels), ChannelMix(inner_dim=inner))
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=norm,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), norm=norm),
        max_positions=None,
    )


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


def hrm_text(config: Config, name: str) -> ModelSpec:
    """Read an HRM: two stacks of layers, each gone through several times.

    A saved config gives the layers of all uses, and those of a stack in
    ``num_layers_per_stack``. Source: ``models/hrm_text/configuration_hrm_text.py``,
    ``modeling_hrm_text.py``.
    """
    config.ignore("num_hidden_layers")
    stack = config.get("num_layers_per_stack")
    layers = config.num_layers("num_hidden_layers" if stack is None else "num_layers_per_stack")
    high, low = config.size("H_cycles"), config.size("L_cycles")
    norm = Norm(kind="rms", elementwise=False, eps=config.number("rms_norm_eps"))
    bias = config.flag("attention_bias")
    parts = (
        _attention(
            config,
            num_kv_heads=config.required_size("num_attention_heads"),
            positions=rotary(config),
            output_gate="element",
            gate_bias=bias,
        ),
        feed_forward(config, bias=config.flag("mlp_bias")),
    )
    blocks = pre_norm(norm, *parts).blocks
    lower, upper = (Layer(blocks=blocks, uses=uses) for uses in (high * low, high))
    return assemble(
        config,
        name,
        [lower] * layers + [upper] * layers,
        final_norm=norm,
        beside=(_FirstState(),),
    )


@attrs.frozen
class _FirstState:
    """The state that the lower stack of an HRM begins with."""

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the vector."""
        yield Entry(("other", ""), None, Scale(name="first_state", axes=(embed,)))


def _attention(config: Config, **options: Any) -> Attention:
    """Compose attention whose four projections have a bias by one flag."""
    bias = config.flag("attention_bias")
    return attention(config, query_key_value_bias=bias, output_bias=bias, **options)


def _double_width(config: Config) -> int:
    """Return the width of a Zamba's hidden state beside its token embeddings."""
    return _wide(config, "attention_hidden_size") or 2 * config.required_size("hidden_size")


def _wide(config: Config, field: str) -> int | None:
    """Return a width of a Zamba's attention, `None` where nothing but the double width says it."""
    return config.limit(field) if config.knows(field) else None


def _wide_attention(config: Config) -> Attention:
    """Compose the attention of a Zamba, whose heads share the double width."""
    double, heads = (
        2 * config.required_size("hidden_size"),
        config.required_size("num_attention_heads"),
    )
    return attention(config, width=_wide(config, "attention_head_dim") or double // heads)


def _mamba(
    config: Config, *, norm: Norm | None = None, heads: int | None = None, act: str = "hidden_act"
) -> Mamba:
    return Mamba(
        channels=_expanded(config, "mamba_expand"),
        state_dim=config.size("mamba_d_state"),
        kernel=config.size("mamba_d_conv"),
        time_step_rank=_time_step_rank(config, "mamba_dt_rank"),
        bias=config.flag("mamba_proj_bias"),
        conv_bias=config.flag("mamba_conv_bias"),
        norm=norm,
        heads=heads,
        activation=activation(config, act),
    )


def _ibm_mamba2(config: Config) -> Mamba2:
    bias = config.optional_flag("mamba_proj_bias")
    return _mamba2(
        config,
        inner=_expanded(config, "mamba_expand"),
        norm=rms_norm(config),
        bias=bias,
        output_bias=bias,
    )


def _mamba2(
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


def delta(config: Config, norm: Norm) -> GatedDelta:
    """Compose a gated delta rule of the fields of Qwen3-Next and its kin."""
    return GatedDelta(
        key_heads=config.size("linear_num_key_heads"),
        value_heads=config.size("linear_num_value_heads"),
        key_dim=config.size("linear_key_head_dim"),
        value_dim=config.size("linear_value_head_dim"),
        kernel=config.size("linear_conv_kernel_dim"),
        norm=norm,
    )


def _expanded(config: Config, factor: str) -> int:
    """Return the width times a factor."""
    return config.size(factor) * config.required_size("hidden_size")


def _time_step_rank(config: Config, field: str) -> int:
    """Return the rank of the time step: ``"auto"`` is a sixteenth of the width."""
    if config.get(field) == "auto":
        return -(-config.required_size("hidden_size") // 16)
    return config.size(field)


def _every(config: Config, period: str, offset: str) -> Callable[[int], bool]:
    """Return which layers a period and an offset pick."""
    step, first = config.size(period), config.count(offset)
    if first >= step:
        raise InvalidValueError(offset, first, f"must be below {period} ({step})")
    return lambda index: index % step == first


def _indices(config: Config, field: str) -> frozenset[int] | None:
    """Return a list of layers, `None` where it is null."""
    given = config.get(field)
    if given is None:
        return None
    if not isinstance(given, list | tuple) or any(type(index) is not int for index in given):
        raise InvalidValueError(field, given, "must be a list of integers")
    return frozenset(given)


def _check_layers(field: str, plan: Any) -> None:
    if len(plan) > MOST_LAYERS:
        raise InvalidValueError(field, f"{len(plan)} layers", f"must be at most {MOST_LAYERS}")
