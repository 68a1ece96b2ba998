"""Dense models from before Llama: GPT-2 and its kin, models with ALiBi.

They have as many KV heads as query heads, or one, and plain feed-forwards.
"""

from __future__ import annotations

import attrs

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    FULL,
    FUSED,
    SLIDING,
    activation,
    assemble,
    each_once,
    feed_forward,
    head_dim,
    pre_norm,
    rotary,
    window_kinds,
    window_span,
)
from llmcalc.spec.attention import Attention, Rotary
from llmcalc.spec.feed_forward import FeedForward, HeadTransform
from llmcalc.spec.model import Block, Layer, ModelSpec
from llmcalc.spec.parallel import ParallelBlock
from llmcalc.spec.parts import Embedding, Norm
from llmcalc.spec.spans import Full, Span, Window

__all__ = [
    "biogpt",
    "bloom",
    "ctrl",
    "falcon",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox_japanese",
    "gptj",
    "modernbert",
    "mpt",
    "openai_gpt",
    "opt",
    "xglm",
]


def gpt2(config: Config, name: str) -> ModelSpec:
    """Read a GPT-2 (``models/gpt2/modeling_gpt2.py``)."""
    return _gpt2(config, name, kv_heads=None)


def gpt_bigcode(config: Config, name: str) -> ModelSpec:
    """Read a StarCoder: a GPT-2 with one KV head.

    Source: ``models/gpt_bigcode/configuration_gpt_bigcode.py``, ``modeling_gpt_bigcode.py``.
    """
    config.ignore("num_key_value_heads")
    return _gpt2(config, name, kv_heads=1 if config.flag("multi_query") else None)


def _gpt2(config: Config, name: str, *, kv_heads: int | None) -> ModelSpec:
    if config.flag("add_cross_attention"):
        raise InvalidValueError("add_cross_attention", True, "must be false in a decoder")
    norm = _layer_norm(config)
    layer = pre_norm(
        norm, _attention(config, bias=True, kv_heads=kv_heads), _four_times(config, "n_inner")
    )
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=norm,
        embedding=_learned_positions(config),
    )


def gpt_neo(config: Config, name: str) -> ModelSpec:
    """Read a GPT-Neo: biases after attention alone, windows in every second layer.

    Source: ``models/gpt_neo/configuration_gpt_neo.py``, ``modeling_gpt_neo.py``.
    """
    norm = _layer_norm(config)
    inner = _four_times(config, "intermediate_size")
    spans: dict[str, Span] = {"global": Full(), "local": Window(config.size("window_size"))}

    def layer(kind: str) -> Layer:
        mixer = _attention(config, bias=False, output_bias=True, span=spans[kind])
        if kind == "local":
            mixer = attrs.evolve(mixer, transformers_cache=(mixer.kv_heads, Full()))
        return pre_norm(norm, mixer, inner)

    return assemble(
        config,
        name,
        each_once(_gpt_neo_kinds(config), layer),
        final_norm=norm,
        embedding=_learned_positions(config),
    )


def _gpt_neo_kinds(config: Config) -> list[str]:
    """Expand ``attention_types``: pairs of a list of kinds and how often it comes."""
    config.ignore("attention_layers")
    layers = config.num_layers()
    types = config.get("attention_types")
    if types is None:
        types = [[["global", "local"], 12]]
    rule = f"must be pairs of kinds ('global', 'local') and their repeats, for {layers} layers"
    kinds: list[str] = []
    for pair in types if isinstance(types, list | tuple) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InvalidValueError("attention_types", types, rule)
        names, times = pair
        if (
            not isinstance(names, list | tuple)
            or type(times) is not int
            or len(names) * times > layers
            or not all(kind in ("global", "local") for kind in names)
        ):
            raise InvalidValueError("attention_types", types, rule)
        kinds += list(names) * times
    if len(kinds) != layers:
        raise InvalidValueError("attention_types", types, rule)
    return kinds


def gptj(config: Config, name: str) -> ModelSpec:
    """Read a GPT-J or CodeGen: attention and feed-forward side by side.

    Source: ``models/gptj/modeling_gptj.py``, ``models/codegen/modeling_codegen.py``.
    """
    embed, heads = config.required_size("hidden_size"), config.required_size("num_attention_heads")
    turned = config.optional_size("rotary_dim")
    width = head_dim(embed, heads)
    positions = Rotary(fraction=1.0 if turned is None else min(1.0, turned / width))
    norm = _layer_norm(config)
    layer = _parallel(
        norm,
        _attention(config, bias=False, positions=positions),
        _four_times(config, "n_inner"),
    )
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm, head_bias=True)


def bloom(config: Config, name: str) -> ModelSpec:
    """Read a BLOOM: ALiBi, a norm after the embedding (``models/bloom/modeling_bloom.py``)."""
    config.rename("n_embed", "hidden_size")
    norm = _layer_norm(config)
    layer = pre_norm(
        norm,
        _attention(config, bias=True, alibi=True),
        FeedForward(
            inner_dim=4 * config.required_size("hidden_size"),
            gated=False,
            activation="gelu_tanh",
            input_bias=True,
            output_bias=True,
        ),
    )
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=norm,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), norm=norm),
        max_positions=None,
    )


def mpt(config: Config, name: str) -> ModelSpec:
    """Read an MPT: ALiBi, no biases, not even in norms (``models/mpt/modeling_mpt.py``)."""
    norm = _layer_norm(config, bias=False)
    layer = pre_norm(
        norm,
        _attention(config, bias=False, alibi=True),
        FeedForward(
            inner_dim=4 * config.required_size("hidden_size"), gated=False, activation="gelu"
        ),
    )
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=norm,
        max_positions="max_seq_len",
    )


def falcon(config: Config, name: str) -> ModelSpec:
    """Read a Falcon: one KV head, as many as query heads, or (new architecture) some.

    Source: ``models/falcon/configuration_falcon.py``, ``modeling_falcon.py``.
    """
    config.rename("n_embed", "hidden_size")
    embed = config.required_size("hidden_size")
    new = config.optional_flag("new_decoder_architecture")
    alibi = config.optional_flag("alibi")
    if new:
        kv_heads = config.optional_size("num_kv_heads")
    else:
        kv_heads = 1 if config.optional_flag("multi_query") else None
    bias = config.optional_flag("bias")
    mixer = _attention(
        config,
        bias=bias,
        kv_heads=kv_heads,
        positions=None if alibi else rotary(config),
        alibi=alibi,
    )
    if new:
        # Its keys and values are repeated for all query heads before they are cached.
        mixer = attrs.evolve(mixer, transformers_cache=(mixer.query_heads, Full()))
    inner = config.optional_size("ffn_hidden_size")
    plain = feed_forward(
        config,
        inner_dim=4 * embed if inner is None else inner,
        gated=False,
        bias=bias,
        activation_field="activation",
    )
    norm = _layer_norm(config)
    norms = config.get("num_ln_in_parallel_attn")
    if norms is not None and type(norms) is not int:
        raise InvalidValueError("num_ln_in_parallel_attn", norms, "must be an integer or null")
    if not config.optional_flag("parallel_attn"):
        layer = pre_norm(norm, mixer, plain)
    elif norms == 2 or (norms is None and new):
        own = (Block(part=mixer, norm=norm), Block(part=plain, norm=norm))
        layer = Layer(blocks=(ParallelBlock(blocks=own),))
    else:
        layer = _parallel(norm, mixer, plain)
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)


def opt(config: Config, name: str) -> ModelSpec:
    """Read an OPT: two more positions than it says, maybe a narrower embedding.

    Source: ``models/opt/configuration_opt.py``, ``modeling_opt.py``.
    """
    bias = config.flag("enable_bias")
    norm = Norm(kind="layer", elementwise=config.flag("layer_norm_elementwise_affine"))
    parts = (
        _attention(config, bias=bias),
        feed_forward(
            config, "ffn_dim", gated=False, bias=bias, activation_field="activation_function"
        ),
    )
    before = config.flag("do_layer_norm_before")
    layer = (
        pre_norm(norm, *parts)
        if before
        else Layer(blocks=tuple(Block(part=part, sum_norm=norm) for part in parts))
    )
    width = config.optional_size("word_embed_proj_dim")
    if width == config.required_size("hidden_size"):
        width = None
    final = before and not config.flag("_remove_final_layer_norm")
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=norm if final else None,
        embedding=_learned_positions(config, more=2, width=width),
        head_width=width,
    )


def biogpt(config: Config, name: str) -> ModelSpec:
    """Read a BioGPT: two more positions than it says (``models/biogpt/modeling_biogpt.py``)."""
    norm = Norm(kind="layer")
    layer = pre_norm(
        norm, _attention(config, bias=True), feed_forward(config, gated=False, bias=True)
    )
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=norm,
        embedding=_learned_positions(config, more=2),
    )


def xglm(config: Config, name: str) -> ModelSpec:
    """Read an XGLM: sinusoidal positions (``models/xglm/modeling_xglm.py``)."""
    if config.flag("add_cross_attention"):
        raise InvalidValueError("add_cross_attention", True, "must be false in a decoder")
    norm = Norm(kind="layer")
    layer = pre_norm(
        norm,
        _attention(config, bias=True),
        feed_forward(
            config, "ffn_dim", gated=False, bias=True, activation_field="activation_function"
        ),
    )
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=norm,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), sinusoidal=True),
    )


def ctrl(config: Config, name: str) -> ModelSpec:
    """Read a CTRL: sinusoidal positions, a head with bias (``models/ctrl/modeling_ctrl.py``)."""
    norm = Norm(kind="layer", eps=1e-6)
    plain = FeedForward(
        inner_dim=config.required_size("dff"),
        gated=False,
        activation="relu",
        input_bias=True,
        output_bias=True,
    )
    layer = pre_norm(norm, _attention(config, bias=True), plain)
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=_layer_norm(config),
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), sinusoidal=True),
        head_bias=True,
    )


def openai_gpt(config: Config, name: str) -> ModelSpec:
    """Read the first GPT: norms after each sum (``models/openai/modeling_openai.py``)."""
    norm = _layer_norm(config)
    parts = (
        _attention(config, bias=True),
        feed_forward(
            config,
            inner_dim=4 * config.required_size("hidden_size"),
            gated=False,
            bias=True,
            activation_field="afn",
        ),
    )
    layer = Layer(blocks=tuple(Block(part=part, sum_norm=norm) for part in parts))
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=None,
        embedding=_learned_positions(config),
    )


def gpt_neox_japanese(config: Config, name: str) -> ModelSpec:
    """Read a Japanese GPT-NeoX: no biases but one after the last attention.

    Source: ``models/gpt_neox_japanese/modeling_gpt_neox_japanese.py``.
    """
    norm = Norm(kind="layer", eps=config.number("layer_norm_eps"))
    positions = rotary(
        config, theta_field="rotary_emb_base", fraction_field="rotary_pct", fraction=1.0
    )
    width = config.size("intermediate_multiple_size") * config.required_size("hidden_size")
    plain = feed_forward(config, inner_dim=width, gated=False)

    def layer(is_last: bool) -> Layer:
        mixer = _attention(config, bias=False, output_bias=is_last, positions=positions)
        return pre_norm(norm, mixer, plain)

    layers = config.num_layers()
    kinds = [index == layers - 1 for index in range(layers)]
    return assemble(config, name, each_once(kinds, layer), final_norm=norm)


def modernbert(config: Config, name: str) -> ModelSpec:
    """Read a ModernBERT decoder: norms but for the first, a head with a matrix of its own.

    Source: ``models/modernbert_decoder/configuration_modernbert_decoder.py``,
    ``modeling_modernbert_decoder.py``.
    """
    norm = Norm(kind="layer", bias=config.flag("norm_bias"), eps=config.number("norm_eps"))
    every = config.extra_size("global_attn_every_n_layers") or 3
    kinds = window_kinds(config, lambda index: index % every != 0)
    spans: dict[str, Span] = {FULL: Full(), SLIDING: _modernbert_span(config)}
    positions = {
        FULL: rotary(config, kind=FULL, theta_field="global_rope_theta", theta=160_000.0),
        SLIDING: rotary(config, kind=SLIDING, theta_field="local_rope_theta", theta=10_000.0),
    }
    bias = config.flag("attention_bias")
    inner = feed_forward(config, bias=config.flag("mlp_bias"), activation_field="hidden_activation")

    def layer(key: tuple[str, bool]) -> Layer:
        kind, is_first = key
        mixer = _attention(config, bias=bias, positions=positions[kind], span=spans[kind])
        return Layer(
            blocks=(
                Block(part=mixer, norm=None if is_first else norm),
                Block(part=inner, norm=norm),
            )
        )

    keys = [(kind, index == 0) for index, kind in enumerate(kinds)]
    return assemble(
        config,
        name,
        each_once(keys, layer),
        final_norm=norm,
        embedding=Embedding(vocab_size=config.required_size("vocab_size"), norm=norm),
        head_bias=config.flag("decoder_bias"),
        beside=(
            HeadTransform(
                activation=activation(config, "classifier_activation"),
                norm=norm,
                bias=config.flag("classifier_bias"),
            ),
        ),
    )


def _modernbert_span(config: Config) -> Span:
    """Return the window: half of ``local_attention``, unless ``sliding_window`` is given."""
    if "sliding_window" in config and config.get("sliding_window") != -1:
        return window_span(config)
    both = config.optional_size("local_attention")
    if both == 1:
        raise InvalidValueError("local_attention", both, "must be at least 2: half is behind")
    return Full() if both is None else Window(both // 2)


def _attention(
    config: Config,
    *,
    bias: bool,
    output_bias: bool | None = None,
    kv_heads: int | None = None,
    positions: Rotary | None = None,
    span: Span = Full(),  # noqa: B008  # frozen
    alibi: bool = False,
) -> Attention:
    """Compose attention whose heads are together as wide as the model; it has no other fields."""
    heads = config.required_size("num_attention_heads")
    return Attention(
        query_heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim(config.required_size("hidden_size"), heads),
        query_bias=bias,
        key_bias=bias,
        value_bias=bias,
        output_bias=bias if output_bias is None else output_bias,
        rotary=positions,
        span=span,
        alibi=alibi,
        fused=config.model_type in FUSED,
    )


def _four_times(config: Config, field: str) -> FeedForward:
    """Compose a plain feed-forward, four times as wide as the model where the field is null."""
    inner = config.optional_size(field)
    return feed_forward(
        config,
        inner_dim=4 * config.required_size("hidden_size") if inner is None else inner,
        gated=False,
        bias=True,
        activation_field="activation_function",
    )


def _layer_norm(config: Config, *, bias: bool | None = None) -> Norm:
    return Norm(kind="layer", bias=bias, eps=config.number("layer_norm_epsilon"))


def _parallel(norm: Norm, *parts: Attention | FeedForward) -> Layer:
    """Return a layer of parts that read one normed input."""
    blocks = tuple(Block(part=part) for part in parts)
    return Layer(blocks=(ParallelBlock(norm=norm, blocks=blocks),))


def _learned_positions(config: Config, *, more: int = 0, width: int | None = None) -> Embedding:
    """Return the tables of tokens and of positions, `more` of them than the config says."""
    return Embedding(
        vocab_size=config.required_size("vocab_size"),
        learned_positions=config.required_size("max_position_embeddings") + more,
        width=width,
    )
