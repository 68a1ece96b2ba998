"""Readers of mixtures of experts.

A reader takes a `Config` and the model's name and returns a `ModelSpec`. Each is written from the
modelling source of transformers, which it names. They share:

* `mixture`: a model whose layers have experts, or a dense feed-forward, by a plan.
* `experts`: the mixture of experts of the usual fields.
* `shared_expert`: the expert that all tokens share.
* `further`: the modules that predict further tokens, of the usual fields.
* `dense_first`, `mlp_kinds`: plans of the layers that have experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

import attrs

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
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
    predicted,
    rms_norm,
    rotary,
    window_kinds,
    window_span,
)
from llmcalc.spec.attention import Attention, Indexer, Rotary
from llmcalc.spec.convolved import (
    ConvolvedAttention,
    InputScale,
    OutputConvolution,
    RelativeAttention,
    ResidualScale,
    SeparateNorms,
    StreamQueries,
)
from llmcalc.spec.experts import AttentionExperts, Experts, RouterNetwork
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import Block, Layer, ModelSpec, Part
from llmcalc.spec.multi_token import MultiToken
from llmcalc.spec.parallel import ParallelBlock
from llmcalc.spec.parts import Embedding, Norm
from llmcalc.spec.retrieved import MaskedAttention, RetrievedExperts
from llmcalc.spec.spans import Chunk, Full, Span, TopK, Window

__all__ = [
    "ALL_EXPERTS",
    "inkling2_text",
    "inkling_text",
    "zaya",
    "always_silu",
    "beam",
    "minimax_m3_vl_text",
    "laguna",
    "kolibri1",
    "flex_olmo",
    "afmoe",
    "aria_text",
    "cohere2_moe",
    "dbrx",
    "deepseek",
    "dense_first",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "experts",
    "doge",
    "flint",
    "further",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "granitemoe_swa",
    "hunyuan_v1_moe",
    "hy_v3",
    "jetmoe",
    "llama4_text",
    "mellum",
    "mimo_v2_flash",
    "minimax_m2",
    "mixtral",
    "mixture",
    "mlp_kinds",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "shared_expert",
    "solar_open",
    "step3p5",
]


def experts(
    config: Config,
    number: str,
    inner: str = "moe_intermediate_size",
    *,
    top_k: str = "num_experts_per_tok",
    shared_count: str | None = None,
    shared_bias: bool = False,
    bias: bool = False,
    balanced: bool = False,
    **options: Any,
) -> Experts:
    """Compose a mixture of experts; `number`, `inner`, `top_k`, `shared_count` are fields.

    Shared experts that a field counts are one feed-forward of all their widths. In a `balanced`
    mixture each expert's score has an offset in a buffer (``e_score_correction_bias``). `options`
    are further ones of `Experts`.
    """
    width = config.required_size(inner)
    expert = feed_forward(config, inner_dim=width, bias=bias)
    if shared_count is not None:
        shared_width = width * config.count(shared_count)
        options["shared"] = feed_forward(config, inner_dim=shared_width, bias=shared_bias)
    if balanced:
        idle = options.get("no_op_experts") or 0
        options.setdefault("balanced_choices", config.required_size(number) + idle)
    return Experts(
        num_experts=config.required_size(number),
        experts_per_token=config.required_size(top_k),
        expert=expert,
        **options,
    )


def shared_expert(config: Config, field: str = "shared_expert_intermediate_size") -> FeedForward:
    """Compose the expert that all tokens share, whose width may be zero."""
    return feed_forward(config, inner_dim=config.required_count(field))


#: What is said of a model whose ``num_experts_per_tok`` is null.
ALL_EXPERTS: Final = "num_experts_per_tok is null: every token is taken to pass through all experts"

#: What composes the layer of a kind of attention, with experts or without.
_Make: TypeAlias = Callable[[tuple[str, bool]], Layer]


def further(config: Config, kind: str = FULL) -> Callable[[_Make], tuple[MultiToken, ...]]:
    """Return what makes DeepSeek's modules for further tokens: one layer with experts each."""

    def make_modules(make: _Make) -> tuple[MultiToken, ...]:
        count = num_predicted(config)
        return predicted([make((kind, True))] * count, rms_norm(config)) if count else ()

    return make_modules


def mixture(
    config: Config,
    name: str,
    routed: Callable[[], Experts],
    *,
    sparse: Iterable[bool] | None = None,
    dense: Callable[[], Part] | None = None,
    kinds: Iterable[str] | None = None,
    mixer: Callable[[str], Part],
    norm: Norm | None = None,
    layer: Callable[..., Layer] = pre_norm,
    predicts: Callable[[_Make], tuple[MultiToken, ...]] | None = None,
    head_bias: bool = False,
    **options: Any,
) -> ModelSpec:
    """Compose a model whose layers differ in two ways, each pair composed once.

    `kinds` are the kinds of attention layers, which `mixer` makes; `sparse` says which layers
    have experts, which `routed` makes, instead of what `dense` makes: by default all. `layer`
    composes a layer of a norm and two parts; `predicts` makes the modules that predict
    further tokens, with what composes a layer of either kind. `options` are further ones of
    `assemble`.
    """
    norm = norm or rms_norm(config)
    layers = config.num_layers()
    make_dense: Callable[[], Part] = dense or (lambda: feed_forward(config))

    def make(pair: tuple[str, bool]) -> Layer:
        kind, has_experts = pair
        return layer(norm, mixer(kind), routed() if has_experts else make_dense())

    plan = zip(kinds or [FULL] * layers, sparse or [True] * layers, strict=True)
    if predicts is not None:
        options["multi_token"] = predicts(make)
    return assemble(
        config,
        name,
        each_once(plan, make),
        final_norm=norm,
        head_bias=head_bias,
        **options,
    )


def always_silu(part: Experts) -> Experts:
    """Return the experts with the activation that the model uses whatever ``hidden_act`` says."""
    return attrs.evolve(part, expert=attrs.evolve(part.expert, activation="silu"))


def dense_first(config: Config, field: str = "first_k_dense_replace") -> list[bool]:
    """Return which layers have experts: all but the first few, counted by the field."""
    first = config.count(field)
    return [index >= first for index in range(config.num_layers())]


def mlp_kinds(config: Config, first_dense: int | str, *, longer: bool = False) -> list[bool]:
    """Return which layers have experts, from ``mlp_layer_types``; null is all but the first few.

    `first_dense` is how many these are, or the field that says so; `longer` is that of
    `layer_kinds`.
    """
    layers = config.num_layers()
    kinds = layer_kinds(config, layers, ("dense", "sparse"), "mlp_layer_types", longer=longer)
    if kinds is not None:
        return [kind == "sparse" for kind in kinds]
    first = config.count(first_dense) if isinstance(first_dense, str) else first_dense
    return [index >= first for index in range(layers)]


def _attention(config: Config, **options: Any) -> Attention:
    """Compose attention whose heads, without a ``head_dim``, share the width, rounded down."""
    width = config.extra_size("head_dim")
    if width is None:
        heads = config.required_size("num_attention_heads")
        width = head_dim(config.required_size("hidden_size"), heads, rounded=True)
    return attention(config, width=width, **options)


def _sandwich(norm: Norm, *parts: Part) -> Layer:
    """Return a layer of blocks with a norm before and after each part."""
    return Layer(blocks=tuple(Block(part=part, norm=norm, post_norm=norm) for part in parts))


def _span(config: Config, kind: str) -> Span:
    """Return the span of a kind of layer; a null window is none, and is read where it is used."""
    return window_span(config) if kind == SLIDING else Full()


def _head_norms(config: Config, **options: Any) -> dict[str, Any]:
    """Return the options of attention with a norm of each query and key."""
    norm = rms_norm(config)
    return {"query_norm": norm, "key_norm": norm, **options}


def _biases(config: Config) -> dict[str, Any]:
    """Return the options of attention whose four projections have a bias by a flag."""
    bias = config.flag("attention_bias")
    return {"query_key_value_bias": bias, "output_bias": bias}


def mixtral(config: Config, name: str) -> ModelSpec:
    """Read a Mixtral (``models/mixtral/modeling_mixtral.py``)."""
    return mixture(
        config,
        name,
        lambda: experts(config, "num_local_experts", "intermediate_size"),
        mixer=lambda _: _attention(config, span=window_span(config), positions=rotary(config)),
    )


def phimoe(config: Config, name: str) -> ModelSpec:
    """Read a Phi-3.5-MoE: LayerNorm, and biases by flags.

    The router of transformers picks two experts whatever the config says
    (``models/phimoe/modeling_phimoe.py``).
    """
    return mixture(
        config,
        name,
        lambda: experts(config, "num_local_experts", "intermediate_size", active_in_transformers=2),
        mixer=lambda _: _attention(
            config, span=window_span(config), positions=rotary(config), **_biases(config)
        ),
        norm=Norm(kind="layer", eps=config.number("rms_norm_eps")),
        head_bias=config.flag("lm_head_bias"),
    )


def granitemoe(config: Config, name: str) -> ModelSpec:
    """Read a Granite MoE, with or without a shared expert.

    Source: ``models/granitemoe/modeling_granitemoe.py``, ``models/granitemoeshared``.
    """
    return mixture(
        config,
        name,
        lambda: _granite_experts(config),
        mixer=lambda _: _attention(config, positions=rotary(config), **_biases(config)),
    )


def granitemoe_swa(config: Config, name: str) -> ModelSpec:
    """Read a Granite MoE with windows and sinks, every fourth layer full from the first on.

    A layer whose ``layer_rope_theta`` is zero or null has no positions
    (``models/granitemoe_swa/modeling_granitemoe_swa.py``).
    """
    return mixture(
        config,
        name,
        lambda: _granite_experts(config),
        kinds=window_kinds(config, lambda index: index % 4 != 0),
        mixer=lambda kind: _attention(
            config,
            span=_span(config, kind),
            positions=rotary(config),
            sinks=True,
            **_biases(config),
        ),
    )


def _granite_experts(config: Config) -> Experts:
    shared = 0 if config.model_type == "granitemoe" else config.count("shared_intermediate_size")
    return experts(
        config,
        "num_local_experts",
        "intermediate_size",
        shared=feed_forward(config, inner_dim=shared) if shared else None,
    )


def olmoe(config: Config, name: str) -> ModelSpec:
    """Read an OLMoE, which normalises all query heads together, and all key heads.

    The norms have the width of the model, whatever a ``head_dim`` says
    (``models/olmoe/modeling_olmoe.py``).
    """
    embed, heads = config.required_size("hidden_size"), config.required_size("num_attention_heads")
    width, derived = config.extra_size("head_dim"), head_dim(embed, heads)
    if width not in {None, derived}:
        rule = f"must be hidden_size ({embed}) / num_attention_heads ({heads})"
        raise InvalidValueError("head_dim", width, rule)
    return mixture(
        config,
        name,
        lambda: experts(config, "num_experts", "intermediate_size"),
        mixer=lambda _: attention(
            config,
            positions=rotary(config),
            norm_axes="heads",
            **_head_norms(config, **_biases(config)),
        ),
    )


def minimax_m2(config: Config, name: str) -> ModelSpec:
    """Read a MiniMax M2, which normalises all heads together.

    Source: ``models/minimax_m2/modeling_minimax_m2.py``.
    """
    return mixture(
        config,
        name,
        lambda: experts(config, "num_local_experts", "intermediate_size", balanced=True),
        mixer=lambda _: _attention(
            config,
            positions=rotary(config, fraction=1.0),
            norm_axes="heads",
            **_head_norms(config),
        ),
    )


def qwen2_moe(config: Config, name: str) -> ModelSpec:
    """Read a Qwen2-MoE: a gated shared expert, and windows in every other layer where in use.

    Source: ``models/qwen2_moe/configuration_qwen2_moe.py``, ``modeling_qwen2_moe.py``.
    """
    # Where windows are not in use, transformers saves a window of zero.
    windows = config.flag("use_sliding_window") and config.get("sliding_window") != 0
    spans = {FULL: Full(), SLIDING: window_span(config) if windows else Full()}
    last = config.count("max_window_layers")
    return mixture(
        config,
        name,
        lambda: experts(
            config,
            "num_experts",
            shared=shared_expert(config),
            shared_gate=True,
        ),
        sparse=_qwen_sparse(config),
        kinds=window_kinds(config, lambda index: windows and index % 2 == 0 and index < last),
        mixer=lambda kind: _attention(
            config,
            span=spans[kind],
            positions=rotary(config),
            query_key_value_bias=config.flag("qkv_bias"),
        ),
    )


def qwen3_moe(config: Config, name: str) -> ModelSpec:
    """Read a Qwen3-MoE: head norms, and windows in all layers where in use.

    Source: ``models/qwen3_moe/configuration_qwen3_moe.py``, ``modeling_qwen3_moe.py``.
    """
    # The language models of Qwen3-VL and Qwen3-Omni have no windows.
    windows = config.model_type == "qwen3_moe" and config.flag("use_sliding_window")
    span = window_span(config) if windows else Full()
    return mixture(
        config,
        name,
        lambda: experts(config, "num_experts"),
        sparse=_qwen_sparse(config),
        mixer=lambda _: _attention(
            config, span=span, positions=rotary(config), **_head_norms(config, **_biases(config))
        ),
    )


def _qwen_sparse(config: Config, default: tuple[int, ...] = ()) -> list[bool]:
    """Return which layers have experts: every n-th, without those that are listed."""
    listed: Any = config.get("mlp_only_layers")
    if listed is None:
        listed = default
    if not isinstance(listed, list | tuple) or not all(type(index) is int for index in listed):
        raise InvalidValueError(
            "mlp_only_layers", listed, "must list indices of layers, or be null"
        )
    step, some = config.size("decoder_sparse_step"), config.count("num_experts") > 0
    only = set(listed)
    return [
        some and index not in only and (index + 1) % step == 0
        for index in range(config.num_layers())
    ]


def flint(config: Config, name: str) -> ModelSpec:
    """Read a Flint: sinks, a shared expert, no positions in full layers.

    Source: ``models/flint/configuration_flint.py``, ``modeling_flint.py``.
    """
    last = config.num_layers() - 1
    return mixture(
        config,
        name,
        lambda: experts(config, "num_experts", shared=shared_expert(config)),
        sparse=_qwen_sparse(config, default=(0, 1)),
        kinds=window_kinds(config, lambda index: index > 1 and index % 4 != 1 and index != last),
        mixer=lambda kind: _attention(
            config,
            span=_span(config, kind),
            positions=rotary(config) if kind == SLIDING else None,
            sinks=True,
            **_head_norms(config, **_biases(config)),
        ),
    )


def mellum(config: Config, name: str) -> ModelSpec:
    """Read a Mellum: head norms, windows and experts as listed, by default all full and sparse.

    Source: ``models/mellum/configuration_mellum.py``, ``modeling_mellum.py``.
    """
    thetas = {FULL: 500_000.0, SLIDING: 10_000.0}
    return mixture(
        config,
        name,
        lambda: experts(config, "num_experts"),
        predicts=lambda make: _mellum_further(config, make),
        sparse=mlp_kinds(config, 0),
        kinds=window_kinds(config, lambda _: False),
        mixer=lambda kind: _attention(
            config,
            span=_span(config, kind),
            positions=rotary(config, kind=kind, theta=thetas[kind]),
            **_head_norms(config, **_biases(config)),
        ),
    )


def _mellum_further(config: Config, make: _Make) -> tuple[MultiToken, ...]:
    """Compose the module that predicts a further token: there is one at most."""
    count = num_predicted(config)
    if count > 1:
        raise InvalidValueError("num_nextn_predict_layers", count, "must be 0 or 1")
    if not count:
        return ()
    kinds = layer_kinds(config, count, (FULL, SLIDING), "mtp_layer_types")
    inner = layer_kinds(config, count, ("dense", "sparse"), "mtp_mlp_layer_types")
    layer = make((kinds[0] if kinds else SLIDING, inner is None or inner[0] == "sparse"))
    return predicted([layer], rms_norm(config))


def doge(config: Config, name: str) -> ModelSpec:
    """Read a Doge: attention that keeps so many positions, maybe experts of one vector each.

    Source: ``models/doge/configuration_doge.py``, ``modeling_doge.py``.
    """
    norm = rms_norm(config)
    window = window_span(config)
    bias = config.flag("attention_bias")
    mixer = MaskedAttention(
        attention=_attention(
            config,
            span=TopK(config.size("keep_window_size")) if window == Full() else window,
            positions=rotary(config),
            **_head_norms(config, **_biases(config)),
        ),
        bias=bias,
    )
    shared = feed_forward(config, bias=config.flag("mlp_bias"))
    inner: Part = shared
    if config.flag("is_moe"):
        inner = RetrievedExperts(
            num_experts=config.size("num_experts"),
            experts_per_token=config.size("num_experts_per_tok"),
            shared=shared,
        )
    layer = Layer(blocks=tuple(Block(part=part, norm=norm, scaled=True) for part in (mixer, inner)))
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)


def glm4_moe(config: Config, name: str) -> ModelSpec:
    """Read a GLM-4.5, or the language model of a GLM-4.5V, which never norms queries and keys.

    Source: ``models/glm4_moe/modeling_glm4_moe.py``, ``models/glm4v_moe/modeling_glm4v_moe.py``.
    """
    normed = config.model_type == "glm4_moe" and config.flag("use_qk_norm")
    norms = _head_norms(config) if normed else {}
    return mixture(
        config,
        name,
        lambda: experts(config, "n_routed_experts", shared_count="n_shared_experts", balanced=True),
        predicts=further(config),
        sparse=dense_first(config),
        mixer=lambda _: _attention(
            config,
            positions=rotary(config, fraction=0.5),
            query_key_value_bias=config.flag("attention_bias"),
            **norms,
        ),
    )


def solar_open(config: Config, name: str) -> ModelSpec:
    """Read a Solar Open: experts in all layers (``models/solar_open/modeling_solar_open.py``)."""
    return mixture(
        config,
        name,
        lambda: experts(config, "n_routed_experts", shared_count="n_shared_experts", balanced=True),
        mixer=lambda _: _attention(
            config,
            positions=rotary(config, fraction=1.0),
            query_key_value_bias=config.flag("attention_bias"),
        ),
    )


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
        mixer=lambda _: attention(config, width=width, positions=rotary(config), **_biases(config)),
        remarks=(ALL_EXPERTS,) if unknown else (),
    )


def _deepseek_sparse(config: Config) -> list[bool]:
    """Return which layers have experts: every n-th from a first one on, unless listed."""
    first = config.count("first_k_dense_replace") if config.knows("first_k_dense_replace") else 1
    every = config.size("moe_layer_freq") if config.knows("moe_layer_freq") else 1
    if config.knows("mlp_layer_types") and config.get("mlp_layer_types") is not None:
        return mlp_kinds(config, first, longer=True)
    return [index >= first and index % every == 0 for index in range(config.num_layers())]


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
        mixer=lambda kind: _attention(
            config,
            span=_span(config, kind),
            positions=rotary(config),
            **_head_norms(config, **_biases(config)),
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
        mixer=lambda kind: _attention(
            config,
            span=_span(config, kind),
            positions=rotary(config) if kind == SLIDING or everywhere else None,
            **_head_norms(config),
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
        mixer=lambda _: _attention(
            config, positions=rotary(config), **_head_norms(config, **_biases(config))
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
        return _attention(
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


def gpt_oss(config: Config, name: str) -> ModelSpec:
    """Read a gpt-oss: sinks, biases of router and experts, windows in every other layer.

    Source: ``models/gpt_oss/configuration_gpt_oss.py``, ``modeling_gpt_oss.py``.
    """
    return mixture(
        config,
        name,
        lambda: always_silu(
            experts(config, "num_local_experts", "intermediate_size", bias=True, router_bias=True)
        ),
        kinds=window_kinds(config, lambda index: index % 2 == 0),
        mixer=lambda kind: _attention(
            config,
            span=_span(config, kind),
            positions=rotary(config),
            sinks=True,
            **_biases(config),
        ),
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
        mixer=lambda _: _attention(
            config, positions=rotary(config), query_key_value_bias=bias, output_bias=bias
        ),
        head_bias=bias,
    )


def hunyuan_v1_moe(config: Config, name: str) -> ModelSpec:
    """Read a Hunyuan MoE: a shared expert, and perhaps another ``moe_topk`` in each layer.

    Source: ``models/hunyuan_v1_moe/modeling_hunyuan_v1_moe.py``.
    """
    norm = rms_norm(config)
    layers = config.num_layers()
    chosen: Any = config.get("moe_topk")
    if not isinstance(chosen, list | tuple):
        chosen = [config.size("moe_topk")] * layers
    chosen = list(chosen[:layers])
    if len(chosen) < layers or not all(type(k) is int and k > 0 for k in chosen):
        raise InvalidValueError(
            "moe_topk", chosen, f"must be a positive integer, or one for each of {layers} layers"
        )
    mixer = _attention(config, positions=rotary(config), **_head_norms(config, **_biases(config)))
    expert = feed_forward(config)
    number = config.required_size("num_experts")

    def make(k: int) -> Layer:
        routed = Experts(num_experts=number, experts_per_token=k, expert=expert, shared=expert)
        return pre_norm(norm, mixer, routed)

    return assemble(config, name, each_once(chosen, make), final_norm=norm)


def llama4_text(config: Config, name: str) -> ModelSpec:
    """Read a Llama 4: chunked attention in most layers, a shared expert beside the routed ones.

    Source: ``models/llama4/configuration_llama4.py``, ``modeling_llama4.py``.
    """
    layers = config.num_layers()
    turned: Any = config.get("no_rope_layers")
    if not turned:
        every = config.size("no_rope_layer_interval")
        turned = [int((index + 1) % every != 0) for index in range(layers)]
    if not isinstance(turned, list | tuple) or len(turned) != layers:
        raise InvalidValueError("no_rope_layers", turned, f"must list 0 or 1 for {layers} layers")
    kinds = layer_kinds(config, layers, ("chunked_attention", FULL))
    if kinds is None:
        kinds = ["chunked_attention" if has_rope else FULL for has_rope in turned]
    sparse: Any = config.get("moe_layers")
    if sparse is None:
        step = config.size("interleave_moe_layer_step")
        sparse = range(step - 1, layers, step)
    elif not isinstance(sparse, list | tuple) or not all(type(i) is int for i in sparse):
        raise InvalidValueError("moe_layers", sparse, "must list indices of layers, or be null")
    sparse = set(sparse)
    chunk = config.optional_size("attention_chunk_size")
    norm, positions = rms_norm(config), rotary(config)
    # The norm of queries and keys has no weights.
    plain = Norm(kind="rms", elementwise=False) if config.flag("use_qk_norm") else None

    def make(plan: tuple[str, bool, bool]) -> Layer:
        kind, has_rope, has_experts = plan
        return pre_norm(
            norm,
            _attention(
                config,
                span=Chunk(chunk) if kind != FULL and chunk is not None else Full(),
                positions=positions if has_rope else None,
                query_norm=plain if has_rope else None,
                key_norm=plain if has_rope else None,
                **_biases(config),
            ),
            experts(
                config,
                "num_local_experts",
                "intermediate_size",
                shared=feed_forward(config),
                active_in_transformers=config.required_size("num_local_experts"),
            )
            if has_experts
            else feed_forward(config, "intermediate_size_mlp"),
        )

    plans = [(kinds[i], bool(turned[i]), i in sparse) for i in range(layers)]
    return assemble(config, name, each_once(plans, make), final_norm=norm)


def aria_text(config: Config, name: str) -> ModelSpec:
    """Read the language model of an Aria, whose experts always use SiLU.

    Source: ``models/aria/modeling_aria.py``.
    """

    def routed() -> Experts:
        part = experts(
            config,
            "moe_num_experts",
            "intermediate_size",
            top_k="moe_topk",
            shared_count="moe_num_shared_experts",
            shared_bias=config.flag("mlp_bias"),
        )
        return always_silu(part)

    return mixture(
        config,
        name,
        routed,
        mixer=lambda _: attention(config, positions=rotary(config), **_biases(config)),
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
        mixer=lambda kind: _attention(
            config,
            span=_span(config, kind),
            positions=rotary(config) if kind == SLIDING else None,
            output_gate="element",
            **_head_norms(config, **_biases(config)),
        ),
        layer=_sandwich,
    )


def cohere2_moe(config: Config, name: str) -> ModelSpec:
    """Read a Cohere2 MoE: parallel blocks after one norm, the first layers dense.

    The norm is an RMSNorm where its epsilon is given, else a LayerNorm without bias; full layers
    have no positions, unless the dense ones are all full (``models/cohere2_moe``).
    """
    first = config.count("first_k_dense_replace") if "first_k_dense_replace" in config else 0
    sparse = mlp_kinds(config, first)
    all_turned = config.count("prefix_dense_sliding_window_pattern") == 1

    def is_window(index: int) -> bool:
        if index < first:
            return (index + 1) % config.size("prefix_dense_sliding_window_pattern") != 0
        return (index - first + 1) % config.size("sliding_window_pattern") != 0

    eps = config.get("rms_norm_eps")
    if eps is None:
        norm = Norm(kind="layer", bias=False, eps=config.number("layer_norm_eps"))
    else:
        norm = rms_norm(config)
    kinds = window_kinds(config, is_window)
    shared = "num_shared_experts" if config.count("num_shared_experts") else None

    def make(plan: tuple[str, bool]) -> Layer:
        kind, has_experts = plan
        has_rope = kind == SLIDING or (all_turned and not has_experts)
        mixer = _attention(
            config,
            span=_span(config, kind),
            positions=rotary(config) if has_rope else None,
            **_biases(config),
        )
        inner: Part = (
            experts(config, "num_experts", "intermediate_size", shared_count=shared)
            if has_experts
            else feed_forward(
                config, inner_dim=config.optional_size("prefix_dense_intermediate_size")
            )
        )
        return Layer(
            blocks=(ParallelBlock(norm=norm, blocks=(Block(part=mixer), Block(part=inner))),)
        )

    plans = zip(kinds, sparse, strict=True)
    return assemble(config, name, each_once(plans, make), final_norm=norm)


def dbrx(config: Config, name: str) -> ModelSpec:
    """Read a DBRX: LayerNorm without bias, sizes in two nested objects.

    Source: ``models/dbrx/modeling_dbrx.py``.
    """
    norm = Norm(kind="layer", bias=False)
    config.pass_over("num_key_value_heads", "head_dim")
    embed, heads = config.required_size("hidden_size"), config.required_size("num_attention_heads")
    inner = config.section("ffn_config")
    function = inner.section("ffn_act_fn")
    mixer = attention(
        config,
        positions=rotary(config),
        width=head_dim(embed, heads),
        num_kv_heads=config.section("attn_config").size("kv_n_heads"),
    )
    routed = Experts(
        num_experts=inner.size("moe_num_experts"),
        experts_per_token=inner.size("moe_top_k"),
        expert=FeedForward(
            inner_dim=inner.size("ffn_hidden_size"),
            gated=True,
            activation=activation(function, "name") if "name" in function else "silu",
        ),
    )
    layer = pre_norm(norm, mixer, routed)
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)


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


def flex_olmo(config: Config, name: str) -> ModelSpec:
    """Read a FlexOlmo: norms follow the blocks (``models/flex_olmo/modeling_flex_olmo.py``)."""

    def layer(norm: Norm, *parts: Part) -> Layer:
        return Layer(blocks=tuple(Block(part=part, post_norm=norm) for part in parts))

    return mixture(
        config,
        name,
        lambda: experts(config, "num_experts", "intermediate_size"),
        mixer=lambda _: _attention(
            config,
            positions=rotary(config),
            norm_axes="heads",
            **_head_norms(config, **_biases(config)),
        ),
        layer=layer,
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
        mixer=lambda kind: _attention(
            config,
            span=_span(config, kind),
            positions=rotary(config) if kind == SLIDING or everywhere else None,
            **_head_norms(config),
        ),
        layer=_sandwich,
    )


def laguna(config: Config, name: str) -> ModelSpec:
    """Read a Laguna: gated attention, perhaps with other numbers of heads in each layer.

    Source: ``models/laguna/configuration_laguna.py``, ``modeling_laguna.py``.
    """
    layers = config.num_layers()
    heads: Any = config.get("num_attention_heads_per_layer")
    if heads is None:
        heads = [config.required_size("num_attention_heads")] * layers
    whole = isinstance(heads, list | tuple) and all(type(number) is int for number in heads)
    if not whole or len(heads) != layers:
        raise InvalidValueError(
            "num_attention_heads_per_layer", heads, f"must list one integer for each of {layers}"
        )
    kinds = layer_kinds(config, layers, (FULL, SLIDING)) or [FULL] * layers
    gating = config.get("gating")
    if not isinstance(gating, bool | str):
        raise InvalidValueError("gating", gating, "must be true, false or a string")
    norm, bias = rms_norm(config), config.flag("attention_bias")
    kv_heads, width = config.required_size("num_key_value_heads"), config.size("head_dim")

    def make(plan: tuple[Any, str, bool]) -> Layer:
        queries, kind, has_experts = plan
        mixer = Attention(
            query_heads=queries,
            kv_heads=kv_heads,
            head_dim=width,
            query_bias=bias,
            key_bias=bias,
            value_bias=bias,
            output_bias=bias,
            rotary=rotary(config, kind=kind, fraction=0.5 if kind == FULL else 1.0),
            span=_span(config, kind),
            query_norm=norm,
            key_norm=norm,
            output_gate="head" if gating in (True, "per-head") else "element",
        )
        if not has_experts:
            return pre_norm(norm, mixer, feed_forward(config))
        shared = shared_expert(config)
        return pre_norm(
            norm, mixer, experts(config, "num_experts", shared=shared, router_correction=True)
        )

    plans = zip(heads, kinds, mlp_kinds(config, 1), strict=True)
    return assemble(config, name, each_once(plans, make), final_norm=norm)


def minimax_m3_vl_text(config: Config, name: str) -> ModelSpec:
    """Read the language model of a MiniMax M3: some layers have an indexer of blocks.

    A query attends the blocks that its indexer picks, counted here as whole
    (``models/minimax_m3_vl/configuration_minimax_m3_vl.py``, ``modeling_minimax_m3_vl.py``).
    """
    # Its own name of the activation is not one of transformers', which takes silu whatever it is.
    config = config.overridden({"hidden_act": "silu"})
    layers = config.num_layers()
    nested = (
        config.section("sparse_attention_config") if "sparse_attention_config" in config else None
    )

    def index_size(field: str, original: str) -> int:
        return (
            config.size(field)
            if nested is None or original not in nested
            else nested.size(original)
        )

    kinds = layer_kinds(config, layers, ("minimax_m3_sparse", FULL))
    if kinds is None and nested is not None and "sparse_attention_freq" in nested:
        chosen = _flags(nested, "sparse_attention_freq", layers)
        kinds = ["minimax_m3_sparse" if sparse else FULL for sparse in chosen]
    sparse = mlp_kinds(config, 0)
    if config.get("mlp_layer_types") is None and config.given("moe_layer_freq") is not None:
        sparse = _flags(config, "moe_layer_freq", layers)
    norm = rms_norm(config)

    def mixer(kind: str) -> Part:
        options: dict[str, Any] = {}
        if kind != FULL:
            options["indexer"] = Indexer(
                heads=index_size("index_n_heads", "sparse_num_index_heads"),
                head_dim=index_size("index_head_dim", "sparse_index_dim"),
                key_norm=norm,
                query_norm=norm,
                weighted=False,
            )
            options["span"] = TopK(
                index_size("index_block_size", "sparse_block_size")
                * index_size("index_topk_blocks", "sparse_topk_blocks")
            )
        return _attention(
            config, positions=rotary(config, fraction=1.0), **_head_norms(config, **options)
        )

    return mixture(
        config,
        name,
        lambda: always_silu(
            experts(
                config,
                "num_local_experts",
                "intermediate_size",
                balanced=True,
                shared=FeedForward(
                    inner_dim=config.count("shared_intermediate_size"),
                    gated=True,
                    activation="silu",
                ),
            )
        ),
        sparse=sparse,
        dense=lambda: FeedForward(
            inner_dim=config.size("dense_intermediate_size"), gated=True, activation="silu"
        ),
        kinds=kinds,
        mixer=mixer,
    )


def _flags(config: Config, field: str, layers: int) -> list[bool]:
    """Return one flag a layer, of a list of zeros and ones."""
    flags: Any = config.get(field)
    if not isinstance(flags, list | tuple) or len(flags) != layers:
        raise InvalidValueError(field, flags, f"must list 0 or 1 for each of {layers} layers")
    return [bool(one) for one in flags]


def beam(config: Config, name: str) -> ModelSpec:
    """Read a Beam: gated attention, sandwich norms; every sixth layer and the last are full.

    Source: ``models/beam/configuration_beam.py``, ``modeling_beam.py``.
    """
    last = config.num_layers() - 1
    positions = config.mapping("rope_parameters")

    def mixer(kind: str) -> Part:
        unturned = kind == FULL and (positions is None or positions.get(kind) is None)
        return _attention(
            config,
            span=_span(config, kind),
            positions=None if unturned else rotary(config, kind=kind),
            output_gate="element",
            head_gate_bias=True,
            **_head_norms(config, **_biases(config)),
        )

    return mixture(
        config,
        name,
        lambda: experts(config, "num_experts", balanced=True),
        sparse=mlp_kinds(config, 3),
        kinds=window_kinds(config, lambda index: (index + 1) % 6 != 0 and index != last),
        mixer=mixer,
        layer=_sandwich,
    )


def _inkling_attention(
    config: Config, kind: str, *, norm: Norm | None, **options: Any
) -> RelativeAttention:
    """Compose the attention of an Inkling, whose windowed layers have fields of their own."""
    windowed = kind == "hybrid_sliding"
    own = "swa_" if windowed else ""
    window = config.size("sliding_window_size")
    return RelativeAttention(
        query_heads=config.size(f"{own}num_attention_heads"),
        kv_heads=config.size(f"{own}num_key_value_heads"),
        head_dim=config.size(f"{own}head_dim"),
        profiles=config.size("d_rel"),
        extent=window if windowed else config.size("rel_extent"),
        kernel=config.size("conv_kernel_size"),
        norm=norm,
        span=Window(window) if windowed else Full(),
        **options,
    )


def inkling2_text(config: Config, name: str) -> ModelSpec:
    """Read the language model of an Inkling 2: its layers read blocks of earlier ones.

    Full layers have inputs of their own for queries, keys and values
    (``models/inkling2/configuration_inkling2.py``, ``modeling_inkling2.py``).
    """
    config.pass_over("number_of_conv_states")
    layers, kernel, norm = config.num_layers(), config.size("conv_kernel_size"), rms_norm(config)
    kinds = layer_kinds(config, layers, ("hybrid", "hybrid_sliding"))
    if kinds is None:
        kinds = ["hybrid" if (i + 1) % 6 == 0 else "hybrid_sliding" for i in range(layers)]
    routed = always_silu(experts(config, "n_routed_experts", balanced=True))

    def make(plan: tuple[str, bool]) -> Layer:
        kind, is_first = plan
        full = kind == "hybrid"
        mixer = _inkling_attention(
            config, kind, norm=None, gated=True, token_sinks=True, dynamic=full
        )
        before = [StreamQueries(name="attention", count=3 if full else 1)]
        blocks = [
            *(Block(part=part) for part in before if not is_first),
            *(Block(part=part) for part in (SeparateNorms(norm=norm),) if full),
            Block(part=mixer, norm=norm),
            Block(part=OutputConvolution(name="attention", kernel=kernel)),
            Block(part=StreamQueries(name="feed_forward", count=1)),
            Block(part=routed, norm=norm),
            Block(part=OutputConvolution(name="feed_forward", kernel=kernel)),
        ]
        return Layer(blocks=tuple(blocks))

    return assemble(
        config,
        name,
        each_once([(kind, index == 0) for index, kind in enumerate(kinds)], make),
        final_norm=norm,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), norm=norm),
        may_tie=False,
        beside=(StreamQueries(name="head", count=1),),
    )


def inkling_text(config: Config, name: str) -> ModelSpec:
    """Read the language model of an Inkling: convolutions, biases by distance, no rotary.

    Windowed layers have heads of their own (``models/inkling/configuration_inkling.py``,
    ``modeling_inkling.py``).
    """
    config = _with_further_fields(config)
    config.pass_over("number_of_conv_states")
    layers, kernel, norm = config.num_layers(), config.size("conv_kernel_size"), rms_norm(config)
    kinds = layer_kinds(config, layers, ("hybrid", "hybrid_sliding"))
    if kinds is None:
        local = config.get("local_layer_ids")
        if local is None:
            local = [index for index in range(layers) if (index + 1) % 6]
        if not isinstance(local, list | tuple) or not all(type(index) is int for index in local):
            raise InvalidValueError("local_layer_ids", local, "must list indices of layers")
        windowed = set(local)
        kinds = ["hybrid_sliding" if index in windowed else "hybrid" for index in range(layers)]
    inner, expert_inner = "intermediate_size", "moe_intermediate_size"
    if config.given("dense_intermediate_size") is not None:
        inner, expert_inner = "dense_intermediate_size", "intermediate_size"

    def layer(norm: Norm, mixer: Part, inner: Part) -> Layer:
        parts = ((mixer, "attention"), (inner, "feed_forward"))
        blocks = [
            (Block(part=part, norm=norm), Block(part=OutputConvolution(name=name, kernel=kernel)))
            for part, name in parts
        ]
        return Layer(blocks=tuple(block for pair in blocks for block in pair))

    return mixture(
        config,
        name,
        lambda: experts(
            config,
            "n_routed_experts",
            expert_inner,
            shared_count="n_shared_experts",
            more_choices=config.count("n_shared_experts") or None,
            router_factor=True,
            balanced=True,
        ),
        dense=lambda: attrs.evolve(feed_forward(config, inner), factor=True),
        sparse=mlp_kinds(config, config.integer("dense_mlp_idx", 0)),
        kinds=kinds,
        predicts=lambda make: _inkling_further(config, make),
        mixer=lambda kind: _inkling_attention(config, kind, norm=norm),
        layer=layer,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), norm=norm),
        may_tie=False,
    )


def _with_further_fields(config: Config) -> Config:
    """Return the configuration with the fields that a whole model keeps in ``mtp_config``."""
    given = config.given("mtp_config")
    if given is None:
        return config
    if not isinstance(given, Mapping):
        raise InvalidValueError("mtp_config", given, "must be an object or null")
    fields = {
        "num_nextn_predict_layers": "num_mtp_layers",
        "chain_hidden_post_norm": "chain_hidden_post_norm",
        "local_layer_ids": "mtp_local_layer_ids",
    }
    more = {own: given[field] for field, own in fields.items() if field in given}
    config = config.overridden({own: more[own] for own in more if own not in config})
    config.pass_over("mtp_config")
    return config


def _inkling_further(config: Config, make: _Make) -> tuple[MultiToken, ...]:
    """Compose the modules that predict further tokens: dense, with one last norm or none."""
    count = num_predicted(config, "num_mtp_layers")
    local = config.get("mtp_local_layer_ids")
    if local is not None and not isinstance(local, list | tuple):
        raise InvalidValueError("mtp_local_layer_ids", local, "must list indices of layers")
    kinds = ["hybrid_sliding" if index in (local or ()) else "hybrid" for index in range(count)]
    chained = config.flag("chain_hidden_post_norm")
    layers = each_once(kinds, lambda kind: make((kind, False)))
    modules = predicted(layers, rms_norm(config), last_norm="none")
    if not modules or not chained:
        return modules
    return (attrs.evolve(modules[0], last_norm="one"), *modules[1:])


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


def step3p5(config: Config, name: str) -> ModelSpec:
    """Read a Step 3.5, or the language model of a Step 3.7: windowed layers have more heads.

    Lists of layers may go on with those that predict further tokens
    (``models/step3p7/configuration_step3p7.py``, ``modeling_step3p7.py``).
    """
    layers = config.num_layers()
    config.pass_over("mtp_layer_types", "mtp_mlp_layer_types", "hidden_act")
    further = 0 if "num_nextn_predict_layers" not in config else num_predicted(config)
    kinds = _step_kinds(config, "layer_types", further, (FULL, SLIDING)) or [FULL] * layers
    sparse = _step_kinds(config, "mlp_layer_types", further, ("dense", "sparse"))
    if sparse is None:
        listed = _step_experts(config, layers)
        sparse = ["sparse" if index in listed else "dense" for index in range(layers)]
    heads = {
        FULL: config.required_size("num_attention_heads"),
        SLIDING: _step_window_heads(config, kinds),
    }
    norm, kv_heads = rms_norm(config), config.size("num_key_value_heads")
    bias, inner_bias = config.flag("attention_bias"), config.flag("mlp_bias")

    def plain(width: int, *, bias: bool) -> FeedForward:
        return FeedForward(
            inner_dim=width,
            gated=True,
            activation="silu",
            input_bias=bias,
            output_bias=bias,
        )

    def make(plan: tuple[str, str]) -> Layer:
        kind, inner = plan
        mixer = Attention(
            query_heads=heads[kind],
            kv_heads=kv_heads,
            head_dim=config.size("head_dim"),
            query_bias=bias,
            key_bias=bias,
            value_bias=bias,
            output_bias=bias,
            rotary=_step_rotary(config, kinds, kind),
            span=_span(config, kind),
            query_norm=norm,
            key_norm=norm,
            output_gate="head",
        )
        if inner == "dense":
            return pre_norm(norm, mixer, plain(config.size("intermediate_size"), bias=inner_bias))
        routed = Experts(
            num_experts=config.size("n_routed_experts"),
            experts_per_token=config.size("num_experts_per_tok"),
            expert=plain(config.size("moe_intermediate_size"), bias=False),
            shared=plain(config.count("share_expert_dim"), bias=inner_bias),
            balanced_choices=config.size("n_routed_experts"),
        )
        return pre_norm(norm, mixer, routed)

    return assemble(
        config,
        name,
        each_once(zip(kinds, sparse, strict=True), make),
        final_norm=norm,
        remarks=_step_remarks(further),
    )


def _step_remarks(further: int) -> tuple[str, ...]:
    return (f"{further} modules that predict further tokens are not counted",) if further else ()


def _step_kinds(
    config: Config, field: str, further: int, allowed: tuple[str, ...]
) -> list[str] | None:
    """Return the kind of every layer, of a list that may also have those of further tokens."""
    layers, given = config.num_layers(), config.get(field)
    if further and isinstance(given, list | tuple) and len(given) == layers + further:
        config = config.overridden({field: given[:layers]})
    return layer_kinds(config, layers, allowed, field)


def _step_experts(config: Config, layers: int) -> frozenset[int]:
    """Return the layers with experts: those of ``moe_layers_enum``, or all but the first three."""
    given: Any = config.given("moe_layers_enum")
    if given is None:
        return frozenset(range(3, layers))
    items = given.split(",") if isinstance(given, str) else given
    if not isinstance(items, list | tuple):
        raise InvalidValueError("moe_layers_enum", given, "must list indices of layers")
    listed = [str(item).strip() for item in items]
    if not all(item.isascii() and item.isdigit() and len(item) < 9 for item in listed if item):
        raise InvalidValueError("moe_layers_enum", given, "must list indices of layers")
    return frozenset(int(item) for item in listed if item)


def _step_window_heads(config: Config, kinds: list[str]) -> int:
    """Return the number of query heads in layers with a window."""
    usual = config.required_size("num_attention_heads")
    heads: Any = config.get("num_sliding_attention_heads")
    if heads is None:
        other = config.given("attention_other_setting") or {}
        if not isinstance(other, Mapping):
            raise InvalidValueError("attention_other_setting", other, "must be an object")
        heads = other.get("num_attention_heads", usual)
    config.pass_over("attention_other_setting")
    if type(heads) is not int or heads < 1:
        raise InvalidValueError("num_sliding_attention_heads", heads, "must be a positive integer")
    windowed = {index for index, kind in enumerate(kinds) if kind == SLIDING}
    given = config.given("per_layer_config")
    if given is not None:
        own = {} if heads == usual else {str(i): {"num_attention_heads": heads} for i in windowed}
        same = {str(i): {"num_attention_heads": heads} for i in windowed}
        if not isinstance(given, Mapping) or {str(k): v for k, v in given.items()} not in (
            own,
            same,
        ):
            rule = f"must give layers with a window {heads} num_attention_heads, and nothing else"
            raise InvalidValueError("per_layer_config", given, rule)
    return heads


def _step_rotary(config: Config, kinds: list[str], kind: str) -> Rotary:
    """Return the rotary embedding of a kind of layer; the fields may list it for every layer."""
    first = kinds.index(kind)
    own: dict[str, Any] = {}
    for field, name in (
        ("rope_theta", "rope_theta"),
        ("partial_rotary_factors", "partial_rotary_factor"),
    ):
        given = config.given(field)
        if isinstance(given, list | tuple) and first < len(given):
            own[name] = given[first]
            config.pass_over(field)
    if own:
        config = config.overridden(own)
    return rotary(config, kind=kind, fraction=1.0)
