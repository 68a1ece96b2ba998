"""Llama, and the dense models that differ from it in a few options.

* `llama`: Llama and all that `DIALECTS` describes by its differences from it.
* `Dialect`: how a model can differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias

import attrs

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    assemble,
    attention,
    each_once,
    feed_forward,
    head_dim,
    num_predicted,
    pre_norm,
    predicted,
    rms_norm,
    rotary,
    sandwich,
    window_kinds,
    window_span,
)
from llmcalc.spec.attention import Attention, Rotary
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import Block, Layer, ModelSpec
from llmcalc.spec.parallel import ParallelBlock
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Full, Span, Window

__all__ = ["DIALECTS", "Dialect", "llama"]

#: What one layer attends, and how it tells positions.
Kind: TypeAlias = tuple[Span, Rotary | None]

#: What gives every layer's kind.
Plan: TypeAlias = Callable[[Config], list[Kind]]


def _uniform(fraction: float | None = None) -> Plan:
    """Return the plan of full attention in every layer."""
    return lambda config: [(Full(), rotary(config, fraction=fraction))] * config.num_layers()


def _windowed(fraction: float | None = None) -> Plan:
    """Return the plan of a window in every layer, null for none."""

    def plan(config: Config) -> list[Kind]:
        return [(window_span(config), rotary(config, fraction=fraction))] * config.num_layers()

    return plan


def _mixed(is_window: Callable[[int], bool]) -> Plan:
    """Return the plan of ``layer_types``; where it is null, a layer's index tells its kind."""
    return lambda config: _by_kind(config, window_kinds(config, is_window))


def _by_kind(
    config: Config,
    kinds: list[str],
    full_rotary: bool = True,
    theta: float | None = None,
    sliding_theta: str = "rope_theta",
) -> list[Kind]:
    """Give what is behind the names of the kinds; each may have rotary parameters of its own.

    `theta` is the class default of full layers, `sliding_theta` the field of those with a window.
    """
    full = rotary(config, kind=FULL, theta=theta) if full_rotary else None
    known: dict[str, Kind] = {FULL: (Full(), full)}
    if SLIDING in kinds:
        positions = rotary(config, kind=SLIDING, theta_field=sliding_theta)
        known[SLIDING] = window_span(config), positions
    return [known[kind] for kind in kinds]


def _patterned(config: Config, default: int) -> list[str]:
    """Every ``sliding_window_pattern``-th layer is full, unless ``layer_types`` is given."""
    config.ignore("_sliding_window_pattern")
    every = config.extra_size("sliding_window_pattern") or default
    return window_kinds(config, lambda index: (index + 1) % every != 0)


def _cohere2(config: Config) -> list[Kind]:
    """Full layers have no positions (``models/cohere2/configuration_cohere2.py``)."""
    return _by_kind(config, _patterned(config, 4), full_rotary=False)


def _exaone4(config: Config) -> list[Kind]:
    """Without a window all layers are full; with one, full layers have no positions.

    Source: ``models/exaone4/configuration_exaone4.py``, ``modeling_exaone4.py``.
    """
    if config.optional_size("sliding_window") is None:
        kinds = window_kinds(config, lambda _: False)
        return [(Full(), rotary(config))] * len(kinds)
    every = config.get("sliding_window_pattern") if config.get("layer_types") is None else 1
    if type(every) is not int or every < 1:
        raise InvalidValueError(
            "sliding_window_pattern", every, "must be an integer of at least 1 without layer_types"
        )
    kinds = window_kinds(config, lambda index: (index + 1) % every != 0)
    return _by_kind(config, kinds, full_rotary=False)


def _gemma3(config: Config) -> list[Kind]:
    """Six to one; read bidirectionally, half of the window is on either side.

    Source: ``models/gemma3/configuration_gemma3.py``.
    """
    kinds = _patterned(config, 6)
    plan = _by_kind(config, kinds, theta=1_000_000.0, sliding_theta="rope_local_base_freq")
    if config.optional_flag("use_bidirectional_attention"):
        return [
            (Window(span.size // 2 + 1) if isinstance(span, Window) else span, positions)
            for span, positions in plan
        ]
    return plan


def _ministral(config: Config) -> list[Kind]:
    """Give every layer a window, unless ``layer_types`` says otherwise."""
    return _by_kind(config, window_kinds(config, lambda _: True))


def _gpt_neox(config: Config) -> list[Kind]:
    """Give every layer full attention; the rotary fields have older names here."""
    positions = rotary(
        config, theta_field="rotary_emb_base", fraction_field="rotary_pct", fraction=0.25
    )
    return [(Full(), positions)] * config.num_layers()


def _qwen(config: Config) -> list[Kind]:
    """No window unless ``use_sliding_window``, and then only from ``max_window_layers`` on.

    Source: ``models/qwen2/configuration_qwen2.py``.
    """
    windows = config.optional_flag("use_sliding_window")
    kinds = window_kinds(config, lambda index: windows and _is_after(config, index))
    positions = rotary(config)
    spans: dict[str, Span] = {SLIDING: window_span(config) if windows else Full(), FULL: Full()}
    return [(spans[kind], positions) for kind in kinds]


def _is_after(config: Config, index: int) -> bool:
    """Whether a layer is not among the first ``max_window_layers``."""
    first = config.get("max_window_layers")
    if type(first) is not int:
        raise InvalidValueError("max_window_layers", first, "must be an integer")
    return index >= first


def _smollm3(config: Config) -> list[Kind]:
    """Every ``no_rope_layer_interval``-th layer has no positions; a window only where they lack.

    Source: ``models/smollm3/configuration_smollm3.py``.
    """
    layers = config.num_layers()
    turned = config.get("no_rope_layers")
    if turned is None:
        every = config.size("no_rope_layer_interval")
        turned = [int((index + 1) % every != 0) for index in range(layers)]
    if (
        not isinstance(turned, list | tuple)
        or len(turned) != layers
        or not all(isinstance(flag, int) for flag in turned)
    ):
        raise InvalidValueError(
            "no_rope_layers", turned, f"must be integers, one for each of {layers} layers"
        )
    window = config.optional_size("sliding_window")
    if not config.flag("use_sliding_window"):
        window = None
    kinds = window_kinds(config, lambda index: window is not None and not turned[index])
    positions = rotary(config)
    local = Full() if window is None else Window(window)
    return [
        (local if kind == SLIDING else Full(), positions if flag else None)
        for kind, flag in zip(kinds, turned, strict=True)
    ]


def _layer_norm(field: str, *, bias: bool | None = None) -> Callable[[Config], Norm]:
    return lambda config: Norm(kind="layer", bias=bias, eps=config.number(field))


def _plain_norm(_config: Config) -> Norm:
    """Return OLMo's norm, which has no parameters."""
    return Norm(kind="layer", elementwise=False)


def _plain_rms_norm(config: Config) -> Norm:
    """Return nanochat's norm, which has no parameters either."""
    return attrs.evolve(rms_norm(config), elementwise=False)


def _minicpm(config: Config) -> list[Kind]:
    """Refuse the mixtures of experts that have the same model type."""
    number = config.given("num_experts")
    if number:
        raise InvalidValueError("num_experts", number, "must be null: mixtures are not read")
    return _uniform()(config)


def _epsilon(field: str) -> Callable[[Config], Norm]:
    return lambda config: rms_norm(config, field)


class Dialect(NamedTuple):
    """How a model differs from a Llama; a string is the config's flag that decides.

    `bias` is that of queries, keys and values; `output_bias` that of the output projection, by
    default the same one. `norms` is where a block's norms stand, and `post_norms` the flag that
    makes a sandwich of them; `query_key_norm` is over what queries and keys are normed. `plan`
    gives every layer's kind. With `result_is_embed` the heads must together be as wide as the
    model. ``head_dim`` is read with `own_head_dim`; where it is not given, the heads share the
    width, rounded down unless they `must_divide` it. ``num_key_value_heads`` is read with
    `own_kv_heads`. With `predicts` the model may have modules that predict further tokens.
    """

    bias: str | bool = "attention_bias"
    output_bias: str | bool | None = None
    feed_forward_bias: str | bool = False
    head_bias: bool = False
    gated: bool = True
    activation: str = "hidden_act"
    norm: Callable[[Config], Norm] = rms_norm
    norms: Literal["pre", "post", "sandwich"] = "pre"
    post_norms: str | None = None
    parallel: str | bool = False
    parallel_norms: Literal["shared", "own"] = "shared"
    query_key_norm: Literal["head", "heads"] | None = None
    query_key_norms: str | bool = True
    query_key_norm_bias: bool = True
    inner_norms: bool = False
    sinks: bool = False
    differential: bool = False
    plan: Plan = _uniform()
    own_head_dim: bool = True
    must_divide: bool = False
    own_kv_heads: bool = True
    result_is_embed: str | bool = False
    predicts: bool = False


_LAYER_NORM: Final = _layer_norm("layer_norm_eps")

#: Every model type that `llama` reads; ``models/<type>/modeling_<type>.py`` is the source.
DIALECTS: Final[dict[str, Dialect]] = {
    "apertus": Dialect(gated=False, query_key_norm="head"),
    "arcee": Dialect(must_divide=True, gated=False, feed_forward_bias="mlp_bias"),
    "bitnet": Dialect(inner_norms=True, result_is_embed=True),
    "cohere": Dialect(
        norm=_layer_norm("layer_norm_eps", bias=False),
        parallel=True,
        query_key_norm="heads",
        query_key_norms="use_qk_norm",
    ),
    "cohere2": Dialect(
        norm=_layer_norm("layer_norm_eps", bias=False), parallel=True, plan=_cohere2
    ),
    "cohere_compass_text": Dialect(
        norm=_layer_norm("layer_norm_eps", bias=False), parallel=True, plan=_mixed(lambda _: False)
    ),
    "cosmos3_edge_text": Dialect(gated=False, feed_forward_bias="mlp_bias"),
    "cwm": Dialect(
        must_divide=True,
        bias=False,
        feed_forward_bias="mlp_bias",
        plan=_mixed(lambda index: index % 4 != 0),
    ),
    "diffllama": Dialect(differential=True),
    "emu3_text_model": Dialect(feed_forward_bias="mlp_bias"),
    "ernie4_5": Dialect(bias="use_bias", feed_forward_bias="use_bias"),
    # modeling_exaone.py in LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct
    "exaone": Dialect(
        bias=False,
        norm=_epsilon("layer_norm_epsilon"),
        activation="activation_function",
        must_divide=True,
    ),
    "exaone4": Dialect(bias=False, norms="post", query_key_norm="head", plan=_exaone4),
    "gemma": Dialect(),
    "gemma2": Dialect(
        must_divide=True,
        activation="hidden_activation",
        norms="sandwich",
        plan=_mixed(lambda index: index % 2 == 0),
    ),
    "gemma3_text": Dialect(
        must_divide=True,
        activation="hidden_activation",
        norms="sandwich",
        query_key_norm="head",
        plan=_gemma3,
    ),
    "glm": Dialect(
        output_bias=False,
        plan=_uniform(0.5),
    ),
    "glm4": Dialect(
        output_bias=False,
        norms="sandwich",
        plan=_uniform(0.5),
    ),
    "glm4v_text": Dialect(
        bias=True, output_bias=False, norms="sandwich", plan=_uniform(1.0), own_head_dim=False
    ),
    "glm_ocr_text": Dialect(bias=False, norms="sandwich", plan=_uniform(1.0)),
    "gpt_neox": Dialect(
        feed_forward_bias=True,
        gated=False,
        norm=_LAYER_NORM,
        parallel="use_parallel_residual",
        parallel_norms="own",
        plan=_gpt_neox,
        own_head_dim=False,
        must_divide=True,
        own_kv_heads=False,
    ),
    "granite": Dialect(feed_forward_bias="mlp_bias"),
    "granite4_vision_text": Dialect(feed_forward_bias="mlp_bias"),
    "granite_docling_text": Dialect(feed_forward_bias="mlp_bias"),
    "granite_swa": Dialect(
        feed_forward_bias="mlp_bias", sinks=True, plan=_mixed(lambda index: index % 4 != 0)
    ),
    "helium": Dialect(output_bias=False, feed_forward_bias="mlp_bias", result_is_embed=True),
    "hunyuan_v1_dense": Dialect(query_key_norm="head"),
    "hunyuan_vl_text": Dialect(query_key_norm="head"),
    "hyperclovax": Dialect(
        must_divide=True, feed_forward_bias="mlp_bias", post_norms="use_post_norm"
    ),
    # modeling_internlm2.py in internlm/internlm2-7b
    "internlm2": Dialect(bias="bias", must_divide=True),
    "internlm3": Dialect(must_divide=True, feed_forward_bias="mlp_bias"),
    "iquestcoder": Dialect(must_divide=True, feed_forward_bias="mlp_bias"),
    "jais2": Dialect(must_divide=True, gated=False, feed_forward_bias="mlp_bias", norm=_LAYER_NORM),
    "llama": Dialect(must_divide=True, feed_forward_bias="mlp_bias"),
    # modeling_mimo.py in XiaomiMiMo/MiMo-7B-Base: its attention is Qwen2's
    "mimo": Dialect(bias=True, output_bias=False, plan=_qwen, predicts=True),
    # modeling_minicpm.py in openbmb/MiniCPM-2B-sft-bf16
    "minicpm": Dialect(must_divide=True, plan=_minicpm),
    "ministral": Dialect(bias=False, plan=_ministral),
    "ministral3": Dialect(bias=False, plan=_windowed()),
    "mistral": Dialect(bias=False, plan=_windowed()),
    "nanochat": Dialect(gated=False, norm=_plain_rms_norm, query_key_norm="head"),
    "nemotron": Dialect(
        feed_forward_bias="mlp_bias",
        gated=False,
        norm=_layer_norm("norm_eps"),
        plan=_uniform(0.5),
    ),
    "olmo": Dialect(norm=_plain_norm),
    "olmo2": Dialect(norms="post", query_key_norm="heads"),
    "olmo3": Dialect(
        norms="post", query_key_norm="heads", plan=_mixed(lambda index: (index + 1) % 4 != 0)
    ),
    "paddleocr_vl_text": Dialect(bias="use_bias", feed_forward_bias="use_bias"),
    "persimmon": Dialect(
        bias=True,
        feed_forward_bias=True,
        gated=False,
        norm=_LAYER_NORM,
        query_key_norm="head",
        query_key_norms="qk_layernorm",
        plan=_uniform(0.5),
        own_head_dim=False,
        must_divide=True,
        own_kv_heads=False,
    ),
    "phi": Dialect(
        bias=True,
        feed_forward_bias=True,
        head_bias=True,
        gated=False,
        norm=_LAYER_NORM,
        parallel=True,
        query_key_norm="head",
        query_key_norms="qk_layernorm",
        plan=_uniform(0.5),
        result_is_embed="qk_layernorm",
    ),
    "phi3": Dialect(bias=False, plan=_windowed(1.0)),
    "qwen2": Dialect(bias=True, output_bias=False, plan=_qwen),
    "qwen2_5_omni_text": Dialect(bias=True, output_bias=False, plan=_qwen),
    "qwen2_5_vl_text": Dialect(
        bias=True, output_bias=False, plan=_qwen, own_head_dim=False, must_divide=True
    ),
    "qwen2_vl_text": Dialect(
        bias=True, output_bias=False, plan=_qwen, own_head_dim=False, must_divide=True
    ),
    "qwen3": Dialect(query_key_norm="head", plan=_qwen),
    "qwen3_vl_text": Dialect(query_key_norm="head"),
    "seed_oss": Dialect(output_bias="attention_out_bias", feed_forward_bias="mlp_bias"),
    "smollm3": Dialect(feed_forward_bias="mlp_bias", plan=_smollm3),
    "stablelm": Dialect(
        bias="use_qkv_bias",
        output_bias=False,
        norm=_LAYER_NORM,
        parallel="use_parallel_residual",
        query_key_norm="heads",
        query_key_norms="qk_layernorm",
        query_key_norm_bias=False,
        plan=_uniform(0.25),
        own_head_dim=False,
        must_divide=True,
    ),
    "starcoder2": Dialect(
        bias="use_bias",
        feed_forward_bias="use_bias",
        gated=False,
        norm=_layer_norm("norm_epsilon"),
        plan=_windowed(),
    ),
    "vaultgemma": Dialect(
        must_divide=True, activation="hidden_activation", plan=_mixed(lambda index: index % 2 == 0)
    ),
}


def llama(config: Config, name: str) -> ModelSpec:
    """Read a Llama, or one of `DIALECTS` (``models/llama/modeling_llama.py``)."""
    dialect = DIALECTS[config.model_type]
    norm = dialect.norm(config)
    inner = feed_forward(
        config,
        gated=dialect.gated,
        bias=_has(config, dialect.feed_forward_bias),
        activation_field=dialect.activation,
        inner_norm=norm if dialect.inner_norms else None,
    )

    def layer(kind: Kind) -> Layer:
        return _layer(config, dialect, norm, _attention(config, dialect, norm, kind), inner)

    kinds = dialect.plan(config)
    further = num_predicted(config) if dialect.predicts else 0
    return assemble(
        config,
        name,
        each_once(kinds, layer),
        final_norm=norm,
        head_bias=dialect.head_bias,
        multi_token=predicted([layer(kinds[-1])] * further, norm) if further else (),
    )


def _has(config: Config, option: str | bool) -> bool:
    """Whether an option of a dialect is on; a string is the flag that says so."""
    if not isinstance(option, str):
        return option
    return config.knows(option) and config.optional_flag(option)


def _attention(config: Config, dialect: Dialect, norm: Norm, kind: Kind) -> Attention:
    span, positions = kind
    bias = _has(config, dialect.bias)
    both: Norm | None = None
    if dialect.query_key_norm is not None and _has(config, dialect.query_key_norms):
        both = norm if dialect.query_key_norm_bias else attrs.evolve(norm, bias=False)
    heads = config.required_size("num_attention_heads")
    mixer = attention(
        config,
        width=_head_dim(config, dialect),
        num_kv_heads=None if dialect.own_kv_heads else heads,
        span=span,
        positions=positions,
        query_key_value_bias=bias,
        output_bias=bias if dialect.output_bias is None else _has(config, dialect.output_bias),
        query_norm=both,
        key_norm=both,
        norm_axes="head" if both is None else dialect.query_key_norm or "head",
        output_norm=norm if dialect.inner_norms else None,
        sinks=dialect.sinks,
        differential=dialect.differential,
    )
    embed = config.required_size("hidden_size")
    if _has(config, dialect.result_is_embed) and heads * mixer.head_dim != embed:
        rule = f"must be hidden_size ({embed}) divided by num_attention_heads ({heads})"
        raise InvalidValueError("head_dim", mixer.head_dim, rule)
    return mixer


def _head_dim(config: Config, dialect: Dialect) -> int:
    """Return the width of a head: its field, or that of the model divided by the heads."""
    heads = config.required_size("num_attention_heads")
    width = config.extra_size("head_dim") if dialect.own_head_dim else None
    if width is not None:
        return width
    return head_dim(config.required_size("hidden_size"), heads, rounded=not dialect.must_divide)


def _layer(
    config: Config, dialect: Dialect, norm: Norm, mixer: Attention, inner: FeedForward
) -> Layer:
    """Compose a layer of both parts, with norms where the dialect has them."""
    if _has(config, dialect.parallel):
        own = dialect.parallel_norms == "own"
        blocks = tuple(Block(part=part, norm=norm if own else None) for part in (mixer, inner))
        return Layer(blocks=(ParallelBlock(norm=None if own else norm, blocks=blocks),))
    norms = dialect.norms
    if dialect.post_norms is not None and _has(config, dialect.post_norms):
        norms = "sandwich"
    if norms == "pre":
        return pre_norm(norm, mixer, inner)
    if norms == "sandwich":
        return sandwich(norm, mixer, inner)
    return Layer(blocks=tuple(Block(part=part, post_norm=norm) for part in (mixer, inner)))
