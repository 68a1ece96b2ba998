"""Mixtral, and the mixtures whose router alone picks the experts.

Those that balance their experts' load by an offset of each score are in
`llmcalc.huggingface.readers.balanced_mixtures`.
"""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import (
    Make,
    always_silu,
    experts,
    mixture,
    mlp_kinds,
    shared_expert,
)
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    activation,
    assemble,
    attention,
    biases,
    each_once,
    feed_forward,
    head_dim,
    head_norms,
    layer_indices,
    layer_kinds,
    num_predicted,
    pre_norm,
    predicted,
    rms_norm,
    rotary,
    span_of,
    window_kinds,
    window_span,
)
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import Block, Layer, ModelSpec, Part
from llmcalc.spec.multi_token import MultiToken
from llmcalc.spec.parallel import ParallelBlock
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Full

__all__ = [
    "aria_text",
    "cohere2_moe",
    "dbrx",
    "flex_olmo",
    "flint",
    "gpt_oss",
    "granitemoe",
    "granitemoe_swa",
    "hunyuan_v1_moe",
    "mellum",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
]


def mixtral(config: Config, name: str) -> ModelSpec:
    """Read a Mixtral (``models/mixtral/modeling_mixtral.py``)."""
    return mixture(
        config,
        name,
        lambda: experts(config, "num_local_experts", "intermediate_size"),
        mixer=lambda _: attention(config, span=window_span(config), positions=rotary(config)),
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
        mixer=lambda _: attention(
            config, span=window_span(config), positions=rotary(config), **biases(config)
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
        mixer=lambda _: attention(config, positions=rotary(config), **biases(config)),
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
        mixer=lambda kind: attention(
            config,
            span=span_of(config, kind),
            positions=rotary(config),
            sinks=True,
            **biases(config),
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
            **head_norms(config),
            **biases(config),
        ),
    )


def flex_olmo(config: Config, name: str) -> ModelSpec:
    """Read a FlexOlmo: norms follow the blocks (``models/flex_olmo/modeling_flex_olmo.py``)."""

    def layer(norm: Norm, *parts: Part) -> Layer:
        return Layer(blocks=tuple(Block(part=part, post_norm=norm) for part in parts))

    return mixture(
        config,
        name,
        lambda: experts(config, "num_experts", "intermediate_size"),
        mixer=lambda _: attention(
            config,
            positions=rotary(config),
            norm_axes="heads",
            **head_norms(config),
            **biases(config),
        ),
        layer=layer,
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
        mixer=lambda kind: attention(
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
        mixer=lambda _: attention(
            config, span=span, positions=rotary(config), **head_norms(config), **biases(config)
        ),
    )


def _qwen_sparse(config: Config, default: frozenset[int] = frozenset()) -> list[bool]:
    """Return which layers have experts: every n-th, without those that are listed."""
    listed = layer_indices(config, "mlp_only_layers")
    dense = default if listed is None else listed
    step, some = config.size("decoder_sparse_step"), config.count("num_experts") > 0
    return [
        some and index not in dense and (index + 1) % step == 0
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
        sparse=_qwen_sparse(config, default=frozenset((0, 1))),
        kinds=window_kinds(config, lambda index: index > 1 and index % 4 != 1 and index != last),
        mixer=lambda kind: attention(
            config,
            span=span_of(config, kind),
            positions=rotary(config) if kind == SLIDING else None,
            sinks=True,
            **head_norms(config),
            **biases(config),
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
        mixer=lambda kind: attention(
            config,
            span=span_of(config, kind),
            positions=rotary(config, kind=kind, theta=thetas[kind]),
            **head_norms(config),
            **biases(config),
        ),
    )


def _mellum_further(config: Config, make: Make) -> tuple[MultiToken, ...]:
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
        mixer=lambda kind: attention(
            config,
            span=span_of(config, kind),
            positions=rotary(config),
            sinks=True,
            **biases(config),
        ),
    )


def hunyuan_v1_moe(config: Config, name: str) -> ModelSpec:
    """Read a Hunyuan MoE: a shared expert, and perhaps another ``moe_topk`` in each layer.

    Source: ``models/hunyuan_v1_moe/modeling_hunyuan_v1_moe.py``.
    """
    norm = rms_norm(config)
    layers = config.num_layers()
    given = config.get("moe_topk")
    if not isinstance(given, list | tuple):
        given = [config.size("moe_topk")] * layers
    chosen = list(given[:layers])
    if len(chosen) < layers or not all(type(k) is int and k > 0 for k in chosen):
        raise InvalidValueError(
            "moe_topk", chosen, f"must be a positive integer, or one for each of {layers} layers"
        )
    mixer = attention(config, positions=rotary(config), **head_norms(config), **biases(config))
    expert = feed_forward(config)
    number = config.required_size("num_experts")

    def make(k: int) -> Layer:
        routed = Experts(num_experts=number, experts_per_token=k, expert=expert, shared=expert)
        return pre_norm(norm, mixer, routed)

    return assemble(config, name, each_once(chosen, make), final_norm=norm)


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
        mixer=lambda _: attention(config, positions=rotary(config), **biases(config)),
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
        mixer = attention(
            config,
            span=span_of(config, kind),
            positions=rotary(config) if has_rope else None,
            **biases(config),
        )
        inner: Part
        if has_experts:
            inner = experts(config, "num_experts", "intermediate_size", shared_count=shared)
        else:
            dense = config.optional_size("prefix_dense_intermediate_size")
            inner = feed_forward(config, inner_dim=dense)
        block = ParallelBlock(norm=norm, blocks=(Block(part=mixer), Block(part=inner)))
        return Layer(blocks=(block,))

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
