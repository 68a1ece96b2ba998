"""Readers of dense models from before Llama: GPT-2 and its kin, models with ALiBi.

They have as many KV heads as query heads, or one, and plain feed-forwards. A reader takes a
`Config` and the model's name and returns a `ModelSpec`. Each is written from the modelling source
of transformers, which it names.
"""

from __future__ import annotations

from typing import Any

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    assemble,
    each_once,
    feed_forward,
    head_dim,
    pre_norm,
    rotary,
)
from llmcalc.spec.attention import Attention, Rotary
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import Block, Layer, ModelSpec, ParallelBlock
from llmcalc.spec.parts import Embedding, Norm
from llmcalc.spec.spans import Full, Span, Window

__all__ = ["bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "mpt", "opt"]


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
    types: Any = config.get("attention_types")
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
    """Read a GPT-J: attention and feed-forward side by side (``models/gptj/modeling_gptj.py``)."""
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
        _attention(config, bias=True),
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
        _attention(config, bias=False),
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
    kv_heads = config.optional_size("num_kv_heads")
    if not new:
        kv_heads = 1 if config.optional_flag("multi_query") else None
    bias = config.optional_flag("bias")
    mixer = _attention(
        config,
        bias=bias,
        kv_heads=kv_heads,
        positions=None if config.optional_flag("alibi") else rotary(config),
    )
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


def _attention(
    config: Config,
    *,
    bias: bool,
    output_bias: bool | None = None,
    kv_heads: int | None = None,
    positions: Rotary | None = None,
    span: Span = Full(),  # noqa: B008  # frozen
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
