"""Mixtures whose router's scores have an offset for each expert, which balances their load.

GLM-4.5, ERNIE 4.5, Hunyuan 3, MiniMax M2 and others have DeepSeek's mixture with the usual
attention; the DeepSeeks themselves are in `llmcalc.huggingface.readers.deepseek`.
"""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import (
    dense_first,
    experts,
    further,
    mixture,
    mlp_kinds,
    shared_expert,
)
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    attention,
    biases,
    feed_forward,
    head_dim,
    head_norms,
    num_predicted,
    predicted,
    rms_norm,
    rotary,
    sandwich,
    span_of,
    window_kinds,
)
from llmcalc.spec.experts import Experts
from llmcalc.spec.model import Layer, ModelSpec, Part
from llmcalc.spec.multi_token import MultiToken
from llmcalc.spec.spans import Full, Window

__all__ = [
    "afmoe",
    "bailing_moe",
    "beam",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "glm4_moe",
    "hy_v3",
    "kolibri1",
    "mimo_v2_flash",
    "minimax_m2",
    "solar_open",
]


def minimax_m2(config: Config, name: str) -> ModelSpec:
    """Read a MiniMax M2, which normalises all heads together.

    Source: ``models/minimax_m2/modeling_minimax_m2.py``.
    """
    return mixture(
        config,
        name,
        lambda: experts(config, "num_local_experts", "intermediate_size", balanced=True),
        mixer=lambda _: attention(
            config,
            positions=rotary(config, fraction=1.0),
            norm_axes="heads",
            **head_norms(config),
        ),
    )


def glm4_moe(config: Config, name: str) -> ModelSpec:
    """Read a GLM-4.5, or the language model of a GLM-4.5V, which never norms queries and keys.

    Source: ``models/glm4_moe/modeling_glm4_moe.py``, ``models/glm4v_moe/modeling_glm4v_moe.py``.
    """
    normed = config.model_type == "glm4_moe" and config.flag("use_qk_norm")
    norm = rms_norm(config) if normed else None
    return mixture(
        config,
        name,
        lambda: experts(config, "n_routed_experts", shared_count="n_shared_experts", balanced=True),
        predicts=further(config),
        sparse=dense_first(config),
        mixer=lambda _: attention(
            config,
            positions=rotary(config, fraction=0.5),
            query_key_value_bias=config.flag("attention_bias"),
            query_norm=norm,
            key_norm=norm,
        ),
    )


def solar_open(config: Config, name: str) -> ModelSpec:
    """Read a Solar Open: experts in all layers (``models/solar_open/modeling_solar_open.py``)."""
    return mixture(
        config,
        name,
        lambda: experts(config, "n_routed_experts", shared_count="n_shared_experts", balanced=True),
        mixer=lambda _: attention(
            config,
            positions=rotary(config, fraction=1.0),
            query_key_value_bias=config.flag("attention_bias"),
        ),
    )


def dots1(config: Config, name: str) -> ModelSpec:
    """Read a dots.llm1, with windows from layer ``max_window_layers`` on.

    Source: ``models/dots1/configuration_dots1.py``, ``modeling_dots1.py``.
    """
    return mixture(
        config,
        name,
        lambda: experts(config, "n_routed_experts", shared_count="n_shared_experts", balanced=True),
        sparse=dense_first(config),
        kinds=window_kinds(
            config,
            lambda index: (
                config.get("sliding_window") is not None
                and index >= config.count("max_window_layers")
            ),
        ),
        mixer=lambda kind: attention(
            config,
            span=span_of(config, kind),
            positions=rotary(config),
            **head_norms(config),
            **biases(config),
        ),
    )


def exaone_moe(config: Config, name: str) -> ModelSpec:
    """Read a K-EXAONE: every fourth layer is full and has no positions.

    Source: ``models/exaone_moe/configuration_exaone_moe.py``, ``modeling_exaone_moe.py``.
    """
    everywhere = config.get("sliding_window") is None
    return mixture(
        config,
        name,
        lambda: experts(config, "num_experts", shared_count="num_shared_experts", balanced=True),
        predicts=lambda make: _joined_once([make((FULL, False))] * num_predicted(config), config),
        sparse=mlp_kinds(config, "first_k_dense_replace"),
        kinds=window_kinds(
            config, lambda index: (index + 1) % config.size("sliding_window_pattern") != 0
        ),
        mixer=lambda kind: attention(
            config,
            span=span_of(config, kind),
            positions=rotary(config) if kind == SLIDING or everywhere else None,
            **head_norms(config),
        ),
    )


def _joined_once(layers: list[Layer], config: Config) -> tuple[MultiToken, ...]:
    """Return one module of all layers, which read what is joined once."""
    if not layers:
        return ()
    return (MultiToken(count=1, layers=tuple(layers), norm=rms_norm(config)),)


def hy_v3(config: Config, name: str) -> ModelSpec:
    """Read a Hunyuan 3: without shared experts, one is as wide as a dense layer.

    Source: ``models/hy_v3/configuration_hy_v3.py``, ``modeling_hy_v3.py``.
    """

    def routed() -> Experts:
        bias = config.flag("mlp_bias")
        width = config.required_size("moe_intermediate_size") * config.count("num_shared_experts")
        shared = feed_forward(config, inner_dim=width or None, bias=bias)
        return experts(config, "num_experts", shared=shared, balanced=True)

    return mixture(
        config,
        name,
        routed,
        predicts=further(config),
        sparse=mlp_kinds(config, 1),
        dense=lambda: feed_forward(config, bias=config.flag("mlp_bias")),
        mixer=lambda _: attention(
            config, positions=rotary(config), **head_norms(config), **biases(config)
        ),
    )


def mimo_v2_flash(config: Config, name: str) -> ModelSpec:
    """Read a MiMo V2 Flash: windowed layers have sinks, and twice the KV heads.

    The original ``sliding_window_size`` does not count the query's own position
    (``models/mimo_v2_flash/configuration_mimo_v2_flash.py``, ``modeling_mimo_v2_flash.py``).
    """
    before = config.extra_size("sliding_window_size")
    window = Window(config.size("sliding_window") if before is None else before + 1)
    kv_heads = config.required_size("num_key_value_heads")

    def mixer(kind: str) -> Part:
        windowed = kind == SLIDING
        return attention(
            config,
            span=window if windowed else Full(),
            positions=rotary(config, kind=kind, fraction=0.334),
            query_key_value_bias=config.flag("attention_bias"),
            num_kv_heads=kv_heads * 2 if windowed else kv_heads,
            value_dim=config.size("v_head_dim"),
            sinks=windowed,
        )

    return mixture(
        config,
        name,
        lambda: experts(config, "n_routed_experts", balanced=True),
        sparse=mlp_kinds(config, 1),
        kinds=window_kinds(config, lambda index: index > 0 and (index + 1) % 6 != 0),
        mixer=mixer,
    )


def ernie4_5_moe(config: Config, name: str) -> ModelSpec:
    """Read an ERNIE 4.5 MoE, whose router has a trained correction.

    Every n-th layer has experts, between a first and a last one
    (``models/ernie4_5_moe/modeling_ernie4_5_moe.py``).
    """
    layers = config.num_layers()
    step, start = config.size("moe_layer_interval"), config.count("moe_layer_start_index")
    end = config.get("moe_layer_end_index")
    if type(end) is not int or end < -1:
        raise InvalidValueError("moe_layer_end_index", end, "must be an integer of at least -1")
    last = layers - 1 if end == -1 else end
    bias = config.optional_flag("use_bias")
    return mixture(
        config,
        name,
        lambda: experts(
            config,
            "moe_num_experts",
            top_k="moe_k",
            shared_count="moe_num_shared_experts"
            if config.count("moe_num_shared_experts")
            else None,
            shared_bias=bias,
            router_correction=True,
        ),
        predicts=lambda make: predicted(
            [make((FULL, False))] * num_predicted(config), rms_norm(config), last_norm="none"
        ),
        sparse=[(i + 1) % step == 0 and start <= i <= last for i in range(layers)],
        dense=lambda: feed_forward(config, bias=bias),
        mixer=lambda _: attention(
            config, positions=rotary(config), query_key_value_bias=bias, output_bias=bias
        ),
        head_bias=bias,
    )


def afmoe(config: Config, name: str) -> ModelSpec:
    """Read a Trinity: gated attention, sandwich norms, a trained correction of the router.

    Full layers, every fourth, have no positions (``models/afmoe/configuration_afmoe.py``,
    ``modeling_afmoe.py``).
    """
    return mixture(
        config,
        name,
        lambda: experts(
            config, "num_experts", shared_count="num_shared_experts", router_correction=True
        ),
        sparse=dense_first(config, "num_dense_layers"),
        kinds=window_kinds(
            config, lambda index: (index + 1) % config.size("global_attn_every_n_layers") != 0
        ),
        mixer=lambda kind: attention(
            config,
            span=span_of(config, kind),
            positions=rotary(config) if kind == SLIDING else None,
            output_gate="element",
            **head_norms(config),
            **biases(config),
        ),
        layer=sandwich,
    )


def kolibri1(config: Config, name: str) -> ModelSpec:
    """Read a Kolibri 1: sandwich norms; full layers, every fifth, have no positions.

    Source: ``models/kolibri1/configuration_kolibri1.py``, ``modeling_kolibri1.py``.
    """
    everywhere = config.get("sliding_window") is None
    return mixture(
        config,
        name,
        lambda: experts(
            config,
            "num_experts",
            shared=shared_expert(config),
            balanced=True,
        ),
        kinds=window_kinds(config, lambda index: (index + 1) % 5 != 0),
        mixer=lambda kind: attention(
            config,
            span=span_of(config, kind),
            positions=rotary(config) if kind == SLIDING or everywhere else None,
            **head_norms(config),
        ),
        layer=sandwich,
    )


def beam(config: Config, name: str) -> ModelSpec:
    """Read a Beam: gated attention, sandwich norms; every sixth layer and the last are full.

    Source: ``models/beam/configuration_beam.py``, ``modeling_beam.py``.
    """
    last = config.num_layers() - 1
    positions = config.mapping("rope_parameters")

    def mixer(kind: str) -> Part:
        unturned = kind == FULL and (positions is None or positions.get(kind) is None)
        return attention(
            config,
            span=span_of(config, kind),
            positions=None if unturned else rotary(config, kind=kind),
            output_gate="element",
            head_gate_bias=True,
            **head_norms(config),
            **biases(config),
        )

    return mixture(
        config,
        name,
        lambda: experts(config, "num_experts", balanced=True),
        sparse=mlp_kinds(config, 3),
        kinds=window_kinds(config, lambda index: (index + 1) % 6 != 0 and index != last),
        mixer=mixer,
        layer=sandwich,
    )


def bailing_moe(config: Config, name: str) -> ModelSpec:
    """Read a Ling or Ring, of the first or the second generation.

    Source: ``modeling_bailing_moe.py`` in inclusionAI/Ling-lite, ``modeling_bailing_moe_v2.py`` in
    inclusionAI/Ling-mini-2.0.
    """
    bias = config.flag("use_bias")
    norm = rms_norm(config) if config.flag("use_qk_norm") else None
    width = config.optional_size("head_dim")
    if width is None:
        width = head_dim(
            config.required_size("hidden_size"), config.required_size("num_attention_heads")
        )
    config.pass_over("intermediate_size")
    inner = config.required_size("moe_intermediate_size")
    shared = config.optional_size("moe_shared_expert_intermediate_size") or inner
    number = config.count("num_shared_experts")

    def routed() -> Experts:
        return experts(
            config,
            "num_experts",
            shared=feed_forward(config, inner_dim=shared * number, bias=bias) if number else None,
            bias=bias,
            balanced=config.flag("moe_router_enable_expert_bias"),
        )

    return mixture(
        config,
        name,
        routed,
        sparse=dense_first(config),
        dense=lambda: feed_forward(config, bias=bias),
        mixer=lambda _: attention(
            config,
            width=width,
            positions=rotary(config, fraction=1.0),
            query_key_value_bias=config.flag("use_qkv_bias"),
            output_bias=bias,
            query_norm=norm,
            key_norm=norm,
        ),
    )
