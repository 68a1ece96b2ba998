"""Readers of models with multi-head latent attention.

A reader takes a `Config` and the model's name and returns a `ModelSpec`. Each is written from the
modelling source of transformers, which it names. They share `latent_attention`, the attention of
the usual fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Final

import attrs

from llmcalc.boundary import LARGEST_SIZE
from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.experts import (
    ALL_EXPERTS,
    always_silu,
    deepseek,
    dense_first,
    experts,
    further,
    mixture,
    mlp_kinds,
)
from llmcalc.huggingface.reading import (
    FULL,
    SLIDING,
    assemble,
    each_once,
    feed_forward,
    head_dim,
    layer_kinds,
    num_predicted,
    pre_norm,
    predicted,
    rms_norm,
    rotary,
)
from llmcalc.spec.attention import Indexer, LatentAttention
from llmcalc.spec.compressed import CompressedAttention, Compressor
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.hyper import HyperConnection, HyperHead
from llmcalc.spec.model import Block, Layer, ModelSpec, Part
from llmcalc.spec.parallel import ParallelBlock
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Full, Span, TopK, Window

__all__ = [
    "deepseek_v4",
    "dots3_note_text",
    "hy_v4",
    "axk1",
    "axk2",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "latent_attention",
    "longcat_flash",
    "minicpm3",
]


def latent_attention(
    config: Config, *, value_dim: int | None = None, **options: Any
) -> LatentAttention:
    """Compose latent attention from the usual fields; `options` are further ones of the part.

    A null ``q_lora_rank`` is a full projection of queries. `value_dim` stands for ``v_head_dim``.
    """
    config.pass_over("qk_head_dim", "head_dim")
    return LatentAttention(
        query_heads=config.required_size("num_attention_heads"),
        nope_dim=config.required_size("qk_nope_head_dim"),
        rope_dim=config.required_size("qk_rope_head_dim"),
        value_dim=config.required_size("v_head_dim") if value_dim is None else value_dim,
        latent_dim=config.required_size("kv_lora_rank"),
        query_latent_dim=config.optional_size("q_lora_rank"),
        norm=Norm(kind="rms", eps=1e-6),
        bias=config.flag("attention_bias"),
        rotary=rotary(config),
        **options,
    )


def _routed(config: Config, **options: Any) -> Experts:
    """Compose the experts of DeepSeek's fields, from version 3 on."""
    options = {"balanced": True, **options}
    return experts(config, "n_routed_experts", shared_count="n_shared_experts", **options)


def deepseek_v2(config: Config, name: str) -> ModelSpec:
    """Read a DeepSeek V2; a null ``num_experts_per_tok`` gives no active parameters.

    The language models of DeepSeek-OCR and of the smallest DeepSeek-VL2 have usual attention, with
    ``use_mla`` false (``modeling_deepseekv2.py`` in deepseek-ai/DeepSeek-OCR).
    Source: ``models/deepseek_v2/modeling_deepseek_v2.py``.
    """
    if config.given("use_mla") is False:
        config.pass_over("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")
        config.pass_over("v_head_dim", "qk_head_dim", "head_dim")
        return deepseek(config, name)
    bias = config.flag("mlp_bias")
    unknown = config.get("num_experts_per_tok") is None
    return mixture(
        config,
        name,
        lambda: _routed(
            config,
            top_k="n_routed_experts" if unknown else "num_experts_per_tok",
            shared_bias=bias,
            balanced=False,
        ),
        sparse=dense_first(config),
        dense=lambda: feed_forward(config, bias=bias),
        mixer=lambda _: latent_attention(config),
        remarks=(ALL_EXPERTS,) if unknown else (),
    )


def deepseek_v3(config: Config, name: str) -> ModelSpec:
    """Read a DeepSeek V3 or R1 (``models/deepseek_v3/modeling_deepseek_v3.py``)."""
    return mixture(
        config,
        name,
        lambda: _routed(config),
        predicts=further(config),
        sparse=dense_first(config),
        mixer=lambda _: latent_attention(config),
    )


def glm4_moe_lite(config: Config, name: str) -> ModelSpec:
    """Read a GLM-4.7 Flash (``models/glm4_moe_lite/configuration_glm4_moe_lite.py``)."""
    return mixture(
        config,
        name,
        lambda: _routed(config),
        predicts=further(config),
        sparse=mlp_kinds(config, 1),
        mixer=lambda _: latent_attention(config),
    )


def deepseek_v32(config: Config, name: str) -> ModelSpec:
    """Read a DeepSeek V3.2, where every layer has an indexer.

    Source: ``models/deepseek_v32/configuration_deepseek_v32.py``, ``modeling_deepseek_v32.py``.
    """
    return _indexed(config, name, ["full"] * config.num_layers())


def glm_moe_dsa(config: Config, name: str) -> ModelSpec:
    """Read a GLM-5, where some layers may use the choice of an earlier layer's indexer.

    Source: ``models/glm_moe_dsa/configuration_glm_moe_dsa.py``, ``modeling_glm_moe_dsa.py``.
    """
    layers = config.num_layers()
    kinds = layer_kinds(config, layers, ("full", "shared"), "indexer_types")
    if kinds is None and config.given("index_topk_pattern") is not None:
        pattern: Any = config.given("index_topk_pattern")
        if isinstance(pattern, str):
            pattern = [{"F": "full", "S": "shared"}.get(letter) for letter in pattern]
        if (
            not isinstance(pattern, list | tuple)
            or len(pattern) != layers
            or not all(kind in ("full", "shared") for kind in pattern)
        ):
            raise InvalidValueError(
                "index_topk_pattern", pattern, f"must give F or S for each of {layers} layers"
            )
        kinds = list(pattern)
    if kinds is None:
        every = config.integer("index_topk_freq", 1)
        offset = config.integer("index_skip_topk_offset", 2)
        kinds = [
            "shared" if max(index - offset + 1, 0) % max(every, 1) else "full"
            for index in range(layers)
        ]
    return _indexed(config, name, kinds)


def _indexed(config: Config, name: str, kinds: list[str]) -> ModelSpec:
    """Compose a model with sparse attention; the kind of a layer says whether it has an indexer."""
    config.rename("num_experts", "n_routed_experts")
    config.required_size("q_lora_rank")
    indexer = _indexer(config)
    span = TopK(config.size("index_topk"))
    return mixture(
        config,
        name,
        lambda: _routed(config),
        predicts=further(config, "full"),
        sparse=mlp_kinds(config, "first_k_dense_replace"),
        kinds=kinds,
        mixer=lambda kind: latent_attention(
            config, span=span, indexer=indexer if kind == "full" else None
        ),
    )


def _indexer(config: Config) -> Indexer:
    """Compose the indexer of DeepSeek's fields."""
    return Indexer(
        heads=config.size("index_n_heads"),
        head_dim=config.size("index_head_dim"),
        key_norm=Norm(kind="layer", eps=1e-6),
    )


def minicpm3(config: Config, name: str) -> ModelSpec:
    """Read a MiniCPM3 or a Youtu: latent attention and a dense feed-forward.

    Source: ``models/minicpm3/configuration_minicpm3.py``, ``modeling_minicpm3.py``,
    ``models/youtu``.
    """
    norm = rms_norm(config)
    value = config.optional_size("v_head_dim")
    if value is None and config.model_type == "minicpm3":
        embed = config.required_size("hidden_size")
        value = head_dim(embed, config.required_size("num_attention_heads"))
    layer = pre_norm(
        norm,
        latent_attention(config, value_dim=value),
        feed_forward(config, bias=config.model_type == "minicpm3" and config.flag("mlp_bias")),
    )
    return assemble(config, name, [layer] * config.num_layers(), final_norm=norm)


def longcat_flash(config: Config, name: str) -> ModelSpec:
    """Read a LongCat Flash, whose layers have two attentions, two feed-forwards and experts.

    Each half is a layer here, as transformers counts them in ``num_hidden_layers``; the experts
    stand beside the first feed-forward. Some experts pass their input on
    (``models/longcat_flash/modeling_longcat_flash.py``).
    """
    halves = config.given("num_hidden_layers")
    if "num_layers" not in config and halves is not None:
        layers = config.num_layers() // 2
    else:
        layers = config.num_layers("num_layers")
        if halves is not None and halves != 2 * layers:
            rule = f"must be twice num_layers ({layers}): each has two attentions"
            raise InvalidValueError("num_hidden_layers", halves, rule)
    nope, rope = config.required_size("qk_nope_head_dim"), config.required_size("qk_rope_head_dim")
    width = config.optional_size("qk_head_dim")
    if width is not None and width != nope + rope:
        raise InvalidValueError(
            "qk_head_dim", width, f"must be qk_nope_head_dim ({nope}) + qk_rope_head_dim ({rope})"
        )
    config.required_size("q_lora_rank")
    idle = 0 if config.get("zero_expert_num") is None else config.count("zero_expert_num")
    norm = rms_norm(config)
    mixer = Block(part=latent_attention(config), norm=norm)
    dense = Block(part=feed_forward(config, "ffn_hidden_size"))
    routed = experts(
        config,
        "n_routed_experts",
        "expert_ffn_hidden_size",
        top_k="moe_topk",
        no_op_experts=idle or None,
        balanced=True,
        router_bias=config.given("router_bias") is not None and config.flag("router_bias"),
    )
    halves = (
        Layer(blocks=(mixer, ParallelBlock(norm=norm, blocks=(dense, Block(part=routed))))),
        Layer(blocks=(mixer, Block(part=dense.part, norm=norm))),
    )
    remark = (
        f"{idle} of the experts that a router may pick pass their input on: active parameters are "
        "a bound, and the gate and up matrices that transformers stores for them are counted"
    )
    return assemble(
        config, name, halves * layers, final_norm=norm, remarks=(remark,) if idle else ()
    )


def axk1(config: Config, name: str) -> ModelSpec:
    """Read an A.X K1, where a norm follows the experts (``models/axk1/modeling_axk1.py``)."""
    config.required_size("q_lora_rank")

    def layer(norm: Norm, mixer: Part, inner: Part) -> Layer:
        after = norm if isinstance(inner, Experts) else None
        return Layer(
            blocks=(Block(part=mixer, norm=norm), Block(part=inner, norm=norm, post_norm=after))
        )

    return mixture(
        config,
        name,
        lambda: _routed(config),
        sparse=_axk_sparse(config),
        mixer=lambda _: latent_attention(config),
        layer=layer,
    )


def axk2(config: Config, name: str) -> ModelSpec:
    """Read an A.X K2: an indexer, gated norms but before dense layers, gated attention.

    Source: ``models/axk2/configuration_axk2.py``, ``modeling_axk2.py``.
    """
    config.required_size("q_lora_rank")
    gated = attrs.evolve(rms_norm(config), gate_rank=config.size("gated_norm_rank"))

    def layer(norm: Norm, mixer: Part, inner: Part) -> Layer:
        before = gated if isinstance(inner, Experts) else norm
        return Layer(blocks=(Block(part=mixer, norm=gated), Block(part=inner, norm=before)))

    return mixture(
        config,
        name,
        lambda: _routed(config),
        sparse=_axk_sparse(config),
        mixer=lambda _: latent_attention(
            config,
            span=TopK(config.size("index_topk")),
            indexer=_indexer(config),
            output_gate="latent",
        ),
        layer=layer,
    )


def _axk_sparse(config: Config) -> list[bool]:
    """Return which layers have experts: every n-th from a first one on, unless listed."""
    first = config.integer("first_k_dense_replace", 1)
    every = config.integer("moe_layer_freq", 1)
    if every < 1:
        raise InvalidValueError("moe_layer_freq", every, "must be at least 1")
    from_first = mlp_kinds(config, max(first, 0), longer=True)
    if config.get("mlp_layer_types") is not None:
        return from_first
    return [sparse and index % every == 0 for index, sparse in enumerate(from_first)]


def hy_v4(config: Config, name: str) -> ModelSpec:
    """Read a Hunyuan 4: gated latent attention with sinks, indexers, hyper-connections.

    Every fourth layer has an indexer, whose choice those after it use, too
    (``models/hy_v4/configuration_hy_v4.py``, ``modeling_hy_v4.py``).
    """
    config.required_size("q_lora_rank")
    layers, streams = config.num_layers(), config.size("hc_mult")
    kinds = layer_kinds(config, layers, ("full", "shared"), "indexer_types")
    if kinds is None:
        kinds = ["full" if i == 0 or (i - 1) % 4 == 0 else "shared" for i in range(layers)]
    indexer, span = _indexer(config), TopK(config.size("index_topk"))

    return mixture(
        config,
        name,
        lambda: always_silu(_routed(config)),
        sparse=mlp_kinds(config, 1),
        kinds=kinds,
        mixer=lambda kind: latent_attention(
            config,
            span=span,
            indexer=indexer if kind == "full" else None,
            sinks=True,
            output_gate="element",
        ),
        layer=lambda norm, mixer, inner: _hyper_layer(norm, mixer, inner, streams, combines=False),
        beside=(HyperHead(streams=streams),),
    )


def _hyper_layer(norm: Norm, mixer: Part, inner: Part, streams: int, *, combines: bool) -> Layer:
    """Return a layer of two blocks with a hyper-connection before each."""
    connections = (
        HyperConnection(name=block, streams=streams, combines=combines)
        for block in ("attention", "feed_forward")
    )
    blocks = (
        (Block(part=connection), Block(part=part, norm=norm))
        for connection, part in zip(connections, (mixer, inner), strict=True)
    )
    return Layer(blocks=tuple(chain.from_iterable(blocks)))


def dots3_note_text(config: Config, name: str) -> ModelSpec:
    """Read the language model of a Dots 3 Note: windowed layers have sizes of their own.

    These are in ``per_layer_config``, or in fields that begin with ``swa_``
    (``models/dots3_note/configuration_dots3_note.py``, ``modeling_dots3_note.py``).
    """
    layers = config.num_layers()
    indexed: Any = True if "per_layer_config" not in config else None
    if "use_dsa" in config:
        indexed = config.get("use_dsa")
    windows = config.get("use_sliding_window") if "use_sliding_window" in config else True
    kinds = layer_kinds(config, layers, (FULL, SLIDING, "indexed_attention"))
    full = "indexed_attention" if indexed is None or indexed else FULL
    if kinds is None:
        kinds = [SLIDING if windows and i > 1 and i % 4 != 1 else full for i in range(layers)]
    elif indexed is not None:
        kinds = [kind if kind == SLIDING else full for kind in kinds]
    window = config.optional_size("sliding_window")
    if window is None:
        window = config.integer("sliding_window_size", 512)
    spans: dict[str, Span] = {
        FULL: Full(),
        SLIDING: Window(window),
        "indexed_attention": TopK(config.size("index_topk")),
    }
    norm, own, shared = rms_norm(config), _own_fields(config, kinds), _dots3_shared(config)

    def make(plan: tuple[str, bool, tuple[tuple[str, Any], ...]]) -> Layer:
        kind, has_experts, fields = plan
        sizes = config.overridden(dict(fields))
        sizes.required_size("q_lora_rank")
        mixer = latent_attention(
            sizes,
            span=spans[kind],
            indexer=_indexer(config) if kind == "indexed_attention" else None,
            rope_norm=norm,
            output_gate="head",
        )
        routed = experts(config, "n_routed_experts", shared=shared, balanced=True)
        return pre_norm(norm, mixer, routed if has_experts else feed_forward(config))

    plans = zip(kinds, _dots3_sparse(config), own, strict=True)
    return assemble(config, name, each_once(plans, make), final_norm=norm)


#: The fields that a layer of a Dots 3 may have of its own, with those of windowed layers.
_DOTS3_SIZES: Final = {
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "kv_lora_rank": 1024,
    "qk_nope_head_dim": 192,
    "v_head_dim": 128,
}


def _own_fields(config: Config, kinds: list[str]) -> list[tuple[tuple[str, int], ...]]:
    """Return the fields that each layer has of its own, and their values."""
    if "per_layer_config" not in config:
        sizes = {name: config.integer(f"swa_{name}", size) for name, size in _DOTS3_SIZES.items()}
        width = config.integer("swa_head_dim", 256) - sizes["qk_nope_head_dim"]
        sizes["qk_rope_head_dim"] = config.integer("swa_qk_rope_head_dim", width)
        return [tuple(sizes.items()) if kind == SLIDING else () for kind in kinds]
    own: dict[int, tuple[tuple[str, int], ...]] = {}
    for index, fields in (config.mapping("per_layer_config") or {}).items():
        if not str(index).isdecimal() or not isinstance(fields, Mapping):
            raise InvalidValueError(
                "per_layer_config", {index: fields}, "must give an object for indices of layers"
            )
        read = [key for key in (*_DOTS3_SIZES, "qk_rope_head_dim") if key in fields]
        if not all(type(fields[key]) is int for key in read):
            raise InvalidValueError("per_layer_config", fields, "must give integers")
        own[int(index)] = tuple((key, fields[key]) for key in read)
    return [own.get(index, ()) for index in range(len(kinds))]


def _dots3_shared(config: Config) -> FeedForward:
    """Compose the shared experts, which have a width of their own."""
    width = config.extra_size("moe_shared_expert_intermediate_size")
    if width is None:
        width = config.count("shared_experts_intermediate_size")
    return feed_forward(config, inner_dim=width * config.size("n_shared_experts"))


def _dots3_sparse(config: Config) -> list[bool]:
    """Return which layers have experts; ``moe_layer_freq`` may list them."""
    listed = config.given("moe_layer_freq")
    if config.get("mlp_layer_types") is not None or not isinstance(listed, list | tuple):
        return _axk_sparse(config)
    layers, first = config.num_layers(), config.integer("first_k_dense_replace", 1)
    if len(listed) < layers:
        raise InvalidValueError("moe_layer_freq", listed, f"must list 0 or 1 for {layers} layers")
    return [index >= first and bool(listed[index]) for index in range(layers)]


_WINDOWED: Final = "sliding_attention"
_SPARSE: Final = "compressed_sparse_attention"
_HEAVY: Final = "heavily_compressed_attention"
_RATIOS: Final = {0: _WINDOWED, 4: _SPARSE, 128: _HEAVY}


def deepseek_v4(config: Config, name: str) -> ModelSpec:
    """Read a DeepSeek V4: windows and compressed positions, hyper-connections.

    The first layers look up the experts of a token in a table
    (``models/deepseek_v4/configuration_deepseek_v4.py``, ``modeling_deepseek_v4.py``).
    """
    config.pass_over("qk_rope_head_dim", "expert_dtype", "rope_scaling")
    layers, streams, norm = config.num_layers(), config.size("hc_mult"), rms_norm(config)
    rates = _compress_rates(config)

    def mixer(kind: str) -> Part:
        index: dict[str, int] = {}
        if kind == _SPARSE:
            index = {
                "index_heads": config.size("index_n_heads"),
                "index_dim": config.size("index_head_dim"),
                "index_top": config.size("index_topk"),
            }
        return CompressedAttention(
            query_heads=config.required_size("num_attention_heads"),
            head_dim=config.size("head_dim"),
            query_latent_dim=config.size("q_lora_rank"),
            window=config.size("sliding_window"),
            output_groups=config.size("o_groups"),
            output_rank=config.size("o_lora_rank"),
            norm=norm,
            compressor=None
            if kind == _WINDOWED
            else Compressor(ratio=rates[kind], overlaps=kind == _SPARSE, norm=norm),
            **index,
        )

    shared = feed_forward(
        config, inner_dim=config.size("moe_intermediate_size"), bias=config.flag("mlp_bias")
    )
    tokens = config.required_size("vocab_size")
    return mixture(
        config,
        name,
        lambda: experts(config, "n_routed_experts", shared=shared, balanced=True),
        dense=lambda: experts(config, "n_routed_experts", shared=shared, token_rows=tokens),
        sparse=_routed_by_score(config, layers),
        kinds=_compressed_kinds(config, layers),
        predicts=lambda make: predicted(
            each_once(_further_kinds(config, layers), lambda kind: make((kind, True))),
            norm,
            beside=(HyperHead(streams=streams),),
        ),
        mixer=mixer,
        layer=lambda norm, mixer, inner: _hyper_layer(norm, mixer, inner, streams, combines=True),
        beside=(HyperHead(streams=streams),),
    )


def _compress_rates(config: Config) -> dict[str, int]:
    """Return how many positions make one, for each kind of layer that compresses."""
    given: Mapping[str, Any] = config.mapping("compress_rates") or {_SPARSE: 4, _HEAVY: 128}
    rates: dict[str, int] = {}
    for kind, original in ((_SPARSE, "compress_rate_csa"), (_HEAVY, "compress_rate_hca")):
        rate = config.given(original)
        if rate is None:
            rate = given.get(kind)
        if type(rate) is not int or not 0 < rate <= LARGEST_SIZE:
            raise InvalidValueError(
                "compress_rates", rate, f"must be a positive integer for {kind}"
            )
        rates[kind] = rate
    return rates


def _routed_by_score(config: Config, layers: int) -> list[bool]:
    """Return which layers have a router's scores; the others look the experts of a token up."""
    kinds: Any = config.get("mlp_layer_types")
    first: Any = config.given("num_hash_layers")
    if kinds is None:
        first = 3 if first is None else config.count("num_hash_layers")
        return [index >= first for index in range(layers)]
    known = ("hash_moe", "moe")
    if not isinstance(kinds, list | tuple) or len(kinds) < layers:
        raise InvalidValueError(
            "mlp_layer_types", kinds, f"must list the kind of all {layers} layers"
        )
    for kind in kinds[:layers]:
        if kind not in known:
            raise InvalidValueError("mlp_layer_types", kind, f"must be one of {', '.join(known)}")
    return [kind == "moe" for kind in kinds[:layers]]


def _further_kinds(config: Config, layers: int) -> list[str]:
    """Return the kind of the layers that predict further tokens, listed after the others."""
    count = num_predicted(config)
    ratios: Any = config.given("compress_ratios") if config.get("layer_types") is None else None
    listed = [_RATIOS[ratio] for ratio in (ratios or ())[layers : layers + count]]
    return listed + [_WINDOWED] * (count - len(listed))


def _compressed_kinds(config: Config, layers: int) -> list[str]:
    """Return the kind of every layer of a DeepSeek V4; a list may be longer than the model."""
    kinds: Any = config.get("layer_types")
    ratios: Any = config.given("compress_ratios")
    known = _RATIOS
    if kinds is None and ratios is not None:
        if not isinstance(ratios, list | tuple) or any(
            type(ratio) is not int or ratio not in known for ratio in ratios
        ):
            raise InvalidValueError("compress_ratios", ratios, "must list 0, 4 or 128")
        kinds = [known[ratio] for ratio in ratios]
    if kinds is None:
        return [_SPARSE if i > 1 and i % 2 else _HEAVY for i in range(layers)]
    if not isinstance(kinds, list | tuple) or len(kinds) < layers:
        raise InvalidValueError("layer_types", kinds, f"must list the kind of all {layers} layers")
    for kind in kinds[:layers]:
        if kind not in known.values():
            raise InvalidValueError(
                "layer_types", kind, f"must be one of {', '.join(known.values())}"
            )
    return list(kinds[:layers])
