"""Dense models whose code stands in their own repository on the hub, not in transformers.

Each reader is written from the modelling source in the repository that it names, and held against
the total that the hub shows for the repository's files, or that its authors published. Those that
differ from Llama in a few options are rows of `llmcalc.huggingface.readers.llama.DIALECTS`.
"""

from __future__ import annotations

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.reading import (
    assemble,
    attention,
    feed_forward,
    head_dim,
    pre_norm,
    rms_norm,
    rotary,
)
from llmcalc.spec.attention import Rotary
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.parts import Norm

__all__ = ["baichuan", "chatglm", "phi3small", "qwen"]


def baichuan(config: Config, name: str) -> ModelSpec:
    """Read a Baichuan: without a position limit it has ALiBi, as the 13B has.

    Source: ``modeling_baichuan.py`` in baichuan-inc/Baichuan2-7B-Base and Baichuan2-13B-Base.
    """
    norm, alibi = rms_norm(config), "max_position_embeddings" not in config
    config.pass_over("model_max_length")
    mixer = attention(
        config,
        width=head_dim(
            config.required_size("hidden_size"), config.required_size("num_attention_heads")
        ),
        num_kv_heads=config.required_size("num_attention_heads"),
        positions=None if alibi else rotary(config),
        alibi=alibi,
    )
    layer = pre_norm(norm, mixer, feed_forward(config))
    return assemble(
        config,
        name,
        [layer] * config.num_layers(),
        final_norm=norm,
        max_positions=None if alibi else "max_position_embeddings",
    )


def qwen(config: Config, name: str) -> ModelSpec:
    """Read the first Qwen: its ``intermediate_size`` is that of gate and up together.

    Source: ``modeling_qwen.py`` in Qwen/Qwen-7B.
    """
    embed, heads = config.required_size("hidden_size"), config.required_size("num_attention_heads")
    width, both = config.size("kv_channels"), config.required_size("intermediate_size")
    if width * heads != embed:
        rule = f"must be hidden_size ({embed}) divided by num_attention_heads ({heads})"
        raise InvalidValueError("kv_channels", width, rule)
    if both % 2:
        raise InvalidValueError("intermediate_size", both, "must be even: gate and up share it")
    config.pass_over("rotary_pct", "seq_length")
    norm, bias = rms_norm(config, "layer_norm_epsilon"), not config.flag("no_bias")
    mixer = attention(
        config,
        width=width,
        num_kv_heads=heads,
        positions=rotary(config, theta_field="rotary_emb_base"),
        query_key_value_bias=True,
        output_bias=bias,
    )
    plain = FeedForward(
        inner_dim=both // 2, gated=True, activation="silu", input_bias=bias, output_bias=bias
    )
    layers = [pre_norm(norm, mixer, plain)] * config.num_layers()
    return assemble(config, name, layers, final_norm=norm)


def chatglm(config: Config, name: str) -> ModelSpec:
    """Read a ChatGLM2 or 3, or a GLM-4-9B; the first ChatGLM has other fields.

    Source: ``modeling_chatglm.py`` in THUDM/chatglm3-6b.
    """
    if "inner_hidden_size" in config:
        return _first_chatglm(config, name)
    # The table has the padded vocabulary, whatever vocab_size says.
    padded = config.required_size("padded_vocab_size")
    config = config.overridden({"vocab_size": padded})
    config.pass_over("padded_vocab_size", "rope_ratio", "original_rope", "num_hidden_layers")
    heads = config.required_size("num_attention_heads")
    few = config.flag("multi_query_attention")
    bias, width = config.flag("add_bias_linear"), config.required_size("kv_channels")
    eps = config.number("layernorm_epsilon")
    norm = Norm(kind="rms" if config.flag("rmsnorm") else "layer", eps=eps)
    mixer = attention(
        config,
        width=width,
        num_kv_heads=config.size("multi_query_group_num") if few else heads,
        positions=Rotary(fraction=0.5),
        query_key_value_bias=bias or config.flag("add_qkv_bias"),
        output_bias=bias,
    )
    plain = FeedForward(
        inner_dim=config.required_size("ffn_hidden_size"),
        gated=True,
        activation="silu",
        input_bias=bias,
        output_bias=bias,
    )
    return assemble(
        config,
        name,
        [pre_norm(norm, mixer, plain)] * config.num_layers("num_layers"),
        final_norm=norm if config.flag("post_layer_norm") else None,
        max_positions="seq_length",
    )


def _first_chatglm(config: Config, name: str) -> ModelSpec:
    """Read the first ChatGLM, with LayerNorm and plain feed-forwards.

    Source: ``modeling_chatglm.py`` in THUDM/chatglm-6b.
    """
    tied = config.given("tie_word_embeddings") is not False
    config = config.overridden({"tie_word_embeddings": tied})
    config.pass_over("position_encoding_2d")
    heads = config.required_size("num_attention_heads")
    norm = Norm(kind="layer", eps=config.number("layernorm_epsilon"))
    mixer = attention(
        config,
        width=head_dim(config.required_size("hidden_size"), heads),
        num_kv_heads=heads,
        positions=Rotary(),
        query_key_value_bias=True,
        output_bias=True,
    )
    plain = FeedForward(
        inner_dim=config.required_size("inner_hidden_size"),
        gated=False,
        activation="gelu_tanh",
        input_bias=True,
        output_bias=True,
    )
    if config.given("pre_seq_len") is not None:
        raise InvalidValueError("pre_seq_len", config.get("pre_seq_len"), "must be null")
    return assemble(
        config,
        name,
        [pre_norm(norm, mixer, plain)] * config.num_layers("num_layers"),
        final_norm=norm,
        max_positions="max_sequence_length",
    )


def phi3small(config: Config, name: str) -> ModelSpec:
    """Read a Phi-3-small: LayerNorm, biases, an activation of two halves.

    Source: ``modeling_phi3_small.py`` in microsoft/Phi-3-small-8k-instruct.
    """
    if config.get("hidden_act") != "gegelu":
        raise InvalidValueError("hidden_act", config.get("hidden_act"), "must be 'gegelu'")
    norm = Norm(kind="layer", eps=config.number("layer_norm_epsilon"))
    mixer = attention(
        config,
        width=head_dim(
            config.required_size("hidden_size"), config.required_size("num_attention_heads")
        ),
        positions=rotary(config, theta_field="rope_embedding_base"),
        query_key_value_bias=True,
        output_bias=True,
    )
    plain = FeedForward(
        inner_dim=config.required_size("ff_intermediate_size"),
        gated=True,
        activation="quick_gelu",
        input_bias=True,
        output_bias=True,
    )
    remark = "block-sparse attention is counted as full attention"
    return assemble(
        config,
        name,
        [pre_norm(norm, mixer, plain)] * config.num_layers(),
        final_norm=norm,
        remarks=(remark,),
    )
