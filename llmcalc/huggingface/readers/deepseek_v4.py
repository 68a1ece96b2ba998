"""DeepSeek V4: windows and compressed positions, hyper-connections."""

from __future__ import annotations

from typing import Final

from llmcalc.boundary import LARGEST_SIZE
from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.hyper_connections import hyper_layer
from llmcalc.huggingface.readers.mixture import experts, mixture
from llmcalc.huggingface.reading import each_once, feed_forward, num_predicted, predicted, rms_norm
from llmcalc.spec.compressed import CompressedAttention, Compressor
from llmcalc.spec.hyper import HyperHead
from llmcalc.spec.model import ModelSpec

__all__ = ["deepseek_v4"]

_WINDOWED: Final = "sliding_attention"
_SPARSE: Final = "compressed_sparse_attention"
_HEAVY: Final = "heavily_compressed_attention"

#: The kinds of layers, by how many positions one cached key stands for.
_RATIOS: Final = {0: _WINDOWED, 4: _SPARSE, 128: _HEAVY}


def deepseek_v4(config: Config, name: str) -> ModelSpec:
    """Read a DeepSeek V4: windows and compressed positions, hyper-connections.

    The first layers look up the experts of a token in a table
    (``models/deepseek_v4/configuration_deepseek_v4.py``, ``modeling_deepseek_v4.py``).
    """
    config.pass_over("qk_rope_head_dim", "expert_dtype", "rope_scaling", "compress_ratios")
    layers, streams, norm = config.num_layers(), config.size("hc_mult"), rms_norm(config)
    rates = _compress_rates(config)
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
        mixer=lambda kind: _mixer(config, kind, rates),
        layer=lambda norm, mixer, inner: hyper_layer(norm, mixer, inner, streams, combines=True),
        beside=(HyperHead(streams=streams),),
    )


def _mixer(config: Config, kind: str, rates: dict[str, int]) -> CompressedAttention:
    """Compose the attention of a kind of layer; some kinds compress, and one has an indexer."""
    norm = rms_norm(config)
    sparse = kind == _SPARSE
    compressor = None
    if kind != _WINDOWED:
        compressor = Compressor(ratio=rates[kind], overlaps=sparse, norm=norm)
    return CompressedAttention(
        query_heads=config.required_size("num_attention_heads"),
        head_dim=config.size("head_dim"),
        query_latent_dim=config.size("q_lora_rank"),
        window=config.size("sliding_window"),
        output_groups=config.size("o_groups"),
        output_rank=config.size("o_lora_rank"),
        norm=norm,
        compressor=compressor,
        index_heads=config.size("index_n_heads") if sparse else None,
        index_dim=config.size("index_head_dim") if sparse else None,
        index_top=config.size("index_topk") if sparse else None,
    )


def _compress_rates(config: Config) -> dict[str, int]:
    """Return how many positions make one, for each kind of layer that compresses."""
    given = config.mapping("compress_rates") or {_SPARSE: 4, _HEAVY: 128}
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
    kinds, given = config.get("mlp_layer_types"), config.given("num_hash_layers")
    if kinds is None:
        first = 3 if given is None else config.count("num_hash_layers")
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
    listed = _listed_ratios(config) if config.get("layer_types") is None else None
    further = (listed or [])[layers : layers + count]
    return further + [_WINDOWED] * (count - len(further))


def _compressed_kinds(config: Config, layers: int) -> list[str]:
    """Return the kind of every layer of a DeepSeek V4; a list may be longer than the model."""
    known = _RATIOS.values()
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = _listed_ratios(config)
    if kinds is None:
        return [_SPARSE if i > 1 and i % 2 else _HEAVY for i in range(layers)]
    if not isinstance(kinds, list | tuple) or len(kinds) < layers:
        raise InvalidValueError("layer_types", kinds, f"must list the kind of all {layers} layers")
    for kind in kinds[:layers]:
        if kind not in known:
            raise InvalidValueError("layer_types", kind, f"must be one of {', '.join(known)}")
    return list(kinds[:layers])


def _listed_ratios(config: Config) -> list[str] | None:
    """Return the kinds that ``compress_ratios`` lists, `None` where it is not given."""
    ratios = config.given("compress_ratios")
    if ratios is None:
        return None
    if not isinstance(ratios, list | tuple) or any(
        type(ratio) is not int or ratio not in _RATIOS for ratio in ratios
    ):
        raise InvalidValueError("compress_ratios", ratios, "must list 0, 4 or 128")
    return [_RATIOS[ratio] for ratio in ratios]
