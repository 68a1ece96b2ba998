"""Qwen4-Exp: its language model, with several hidden states and an indexer over blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Final

from llmcalc.errors import InvalidValueError
from llmcalc.huggingface.config import Config
from llmcalc.huggingface.readers.mixture import experts
from llmcalc.huggingface.readers.qwen3_next import gated_delta
from llmcalc.huggingface.reading import (
    LINEAR,
    assemble,
    attention,
    each_once,
    feed_forward,
    layer_kinds,
    rms_norm,
    rotary,
)
from llmcalc.spec.attention import Attention, Indexer
from llmcalc.spec.hyper import GatedStreams, NGramEmbedding
from llmcalc.spec.model import Block, Layer, ModelSpec, Part
from llmcalc.spec.spans import TopK

__all__ = ["qwen4_exp"]

_INDEXED: Final = "indexed_attention"

#: More tables than this are not read: each needs a search for a prime.
_MOST_TABLES: Final = 10_000


def qwen4_exp(config: Config, name: str) -> ModelSpec:
    """Read the language model of a Qwen4-Exp: several hidden states, and an indexer over blocks.

    Source: ``models/qwen4_exp/configuration_qwen4_exp.py``, ``modeling_qwen4_exp.py``.
    """
    config.ignore("number_of_conv_states")
    layers = config.num_layers()
    plan = layer_kinds(config, layers, (LINEAR, "full_attention", _INDEXED))
    if plan is None:
        interval = config.extra_size("full_attention_interval") or 4
        plan = [LINEAR if (index + 1) % interval else _INDEXED for index in range(layers)]
    norm, streams = rms_norm(config), config.size("hc_count")
    if streams < 2:
        raise InvalidValueError("hc_count", streams, "must be at least 2")
    rank = config.size("hc_lowrank")
    inner = experts(
        config,
        "num_experts",
        shared=feed_forward(config, "shared_expert_intermediate_size"),
        shared_gate=True,
    )
    tables = dict(_tables(config, plan))

    def make(kind: tuple[str, NGramEmbedding | None]) -> Layer:
        mixer, table = kind
        parts: list[Part] = [
            *(() if table is None else (table,)),
            GatedStreams(name="mixer", streams=streams, rank=rank, norm=norm),
            gated_delta(config, norm) if mixer == LINEAR else _indexed(config),
            GatedStreams(name="experts", streams=streams, rank=rank, norm=norm),
            inner,
        ]
        return Layer(blocks=tuple(Block(part=part) for part in parts))

    kinds = [(kind, tables.get(number)) for number, kind in enumerate(plan, 1)]
    last = GatedStreams(name="head", streams=streams, rank=rank, norm=norm, injects=False)
    return assemble(config, name, each_once(kinds, make), final_norm=None, beside=(last,))


def _indexed(config: Config) -> Attention:
    norm, bias = rms_norm(config), config.flag("attention_bias")
    budget, ratio = config.size("indexer_budget"), config.size("indexer_compress_ratio")
    if budget % ratio:
        rule = f"must be a multiple of indexer_compress_ratio ({ratio})"
        raise InvalidValueError("indexer_budget", budget, rule)
    if config.size("indexer_kv_heads") != 1:
        raise InvalidValueError("indexer_kv_heads", config.get("indexer_kv_heads"), "must be 1")
    return attention(
        config,
        span=TopK(budget),
        positions=rotary(config, fraction=1.0),
        query_key_value_bias=bias,
        output_bias=bias,
        query_norm=norm,
        key_norm=norm,
        output_gate="element",
        gate_bias=bias,
        indexer=Indexer(
            heads=config.size("indexer_n_heads"),
            head_dim=config.size("indexer_head_dim"),
            key_norm=norm,
            query_norm=norm,
            weighted=False,
            pooled=ratio,
        ),
    )


def _tables(config: Config, plan: list[str]) -> Iterator[tuple[int, NGramEmbedding]]:
    """Give the table of n-grams of each layer that has one, by its number from 1.

    Every head has a prime number of rows, each the next prime after the last one's.
    """
    numbers = config.get("ple_layer_ids")
    if numbers is None:
        return
    if not isinstance(numbers, list | tuple) or not all(
        type(number) is int and 1 <= number <= len(plan) and plan[number - 1] == LINEAR
        for number in numbers
    ):
        rule = "must list layers with linear attention, counted from 1"
        raise InvalidValueError("ple_layer_ids", numbers, rule)
    layers = sorted(set(numbers))
    if not layers:
        return
    context = config.size("ngram_size")
    heads = (context - 1) * config.size("heads_per_ngram")
    width = config.optional_size("ple_embed_dim") or config.required_size("hidden_size")
    if not heads or width % heads or heads * len(layers) > _MOST_TABLES:
        rule = f"must be a multiple of the n-gram heads ({heads}), with at most {_MOST_TABLES}"
        raise InvalidValueError("ple_embed_dim", width, rule)
    multiple = config.size("make_ngram_vocab_size_divisible_by")
    primes = (n for n in count(config.size("ngram_vocab_size_base")) if _is_prime(n))
    for number in layers:
        rows = sum(next(primes) for _ in range(heads))
        yield (
            number,
            NGramEmbedding(
                rows=-(-rows // multiple) * multiple,
                heads=heads,
                embed_dim=width,
                context=context,
                kernel=config.size("ple_conv_kernel_size"),
                streams=config.size("hc_count"),
                norm=rms_norm(config),
            ),
        )


def _is_prime(number: int) -> bool:
    """Whether a number below 2**64 is prime (Miller and Rabin, with bases that decide it)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if number < 2 or any(number % base == 0 for base in bases):
        return number in bases
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        power = pow(base, odd, number)
        if power in {1, number - 1}:
            continue
        if all((power := power * power % number) != number - 1 for _ in range(twos - 1)):
            return False
    return True
