"""Readers of dense models: attention and a feed-forward in every layer.

A reader takes a `Config` and the model's name and returns a `ModelSpec`. Each is written from the
modelling source of transformers, which it names.
"""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    assemble,
    attention,
    feed_forward,
    head_dim,
    layer_kinds,
    pre_norm,
    rms_norm,
    rotary,
)
from llmcalc.spec.attention import Attention
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.parts import Embedding, Norm
from llmcalc.spec.spans import Full, Span, Window

__all__ = ["gpt2", "llama", "mistral", "qwen2"]


def llama(config: Config, name: str) -> ModelSpec:
    """Read a Llama (transformers, ``models/llama/modeling_llama.py``)."""
    bias = config.flag("attention_bias")
    norm = rms_norm(config)
    layer = pre_norm(
        norm,
        attention(config, positions=rotary(config), query_key_value_bias=bias, output_bias=bias),
        feed_forward(config, bias=config.flag("mlp_bias")),
    )
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)


def mistral(config: Config, name: str) -> ModelSpec:
    """Read a Mistral: every layer has the window, null for none (``modeling_mistral.py``)."""
    window = config.optional_size("sliding_window")
    span = Full() if window is None else Window(window)
    norm = rms_norm(config)
    layer = pre_norm(
        norm, attention(config, span=span, positions=rotary(config)), feed_forward(config)
    )
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)


def qwen2(config: Config, name: str) -> ModelSpec:
    """Read a Qwen2, which has biases on queries, keys and values.

    Its window is off unless ``use_sliding_window``, and then only from layer
    ``max_window_layers`` on (``models/qwen2/configuration_qwen2.py``, ``modeling_qwen2.py``).
    """
    norm = rms_norm(config)
    positions = rotary(config)
    inner = feed_forward(config)
    spans = qwen_spans(config)
    layers = {
        span: pre_norm(
            norm,
            attention(config, span=span, positions=positions, query_key_value_bias=True),
            inner,
        )
        for span in dict.fromkeys(spans)
    }
    return assemble(config, name, (layers[span] for span in spans), final_norm=norm)


def qwen_spans(config: Config) -> list[Span]:
    """Return the span of every layer of a Qwen2 or one of its kin."""
    layers = config.num_layers()
    window = config.optional_size("sliding_window") if config.flag("use_sliding_window") else None
    first = config.get("max_window_layers")
    if type(first) is not int:
        raise InvalidValueError("max_window_layers", first, "must be an integer")
    kinds = layer_kinds(config, layers, ("full_attention", "sliding_attention"))
    if kinds is None:
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return [
        Window(window) if kind == "sliding_attention" and window is not None else Full()
        for kind in kinds
    ]


def gpt2(config: Config, name: str) -> ModelSpec:
    """Read a GPT-2 (``models/gpt2/modeling_gpt2.py``)."""
    if config.flag("add_cross_attention"):
        raise InvalidValueError("add_cross_attention", True, "must be false in a decoder")
    embed = config.required_size("hidden_size")
    heads = config.required_size("num_attention_heads")
    inner = config.optional_size("n_inner")
    norm = Norm(kind="layer", eps=config.number("layer_norm_epsilon"))
    mixer = Attention(
        query_heads=heads,
        kv_heads=heads,
        head_dim=head_dim(embed, heads),
        query_bias=True,
        key_bias=True,
        value_bias=True,
        output_bias=True,
    )
    plain = feed_forward(
        config,
        inner_dim=4 * embed if inner is None else inner,
        gated=False,
        bias=True,
        activation_field="activation_function",
    )
    table = Embedding(
        vocab_size=config.required_size("vocab_size"),
        learned_positions=config.required_size("max_position_embeddings"),
    )
    layer = pre_norm(norm, mixer, plain)
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm, embedding=table)
