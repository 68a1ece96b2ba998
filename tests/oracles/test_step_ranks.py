"""FLOPs and exchanges of ranks, against a decoder that is cut up by hand and run rank by rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from llmcalc import ModelSpec, roofline
from llmcalc.models.tiny_decoder import TinyDecoder

SIZES: dict[str, Any] = {
    "num_layers": 3,
    "num_query_heads": 8,
    "num_kv_heads": 4,
    "embed_dim": 32,
    "inner_dim": 48,
    "vocab_size": 40,
    "positions": "none",
}
GATED = ModelSpec.dense(name="gated", **SIZES)
PLAIN = ModelSpec.dense(name="plain", **SIZES, gated=False, activation="relu", norm="layer")
FEW_KV_HEADS = ModelSpec.dense(name="few KV heads", **(SIZES | {"num_kv_heads": 2}))


class Ranks:
    """A decoder's weights over `number` ranks, after Megatron-LM; exchanges are written down."""

    def __init__(self, decoder: TinyDecoder, spec: ModelSpec, number: int) -> None:
        self.weights, self.spec, self.number = decoder.state_dict(), spec, number
        self.gated = any(".gate." in name for name in self.weights)
        self.exchanged: list[tuple[str, int]] = []

    def rows(self, name: str, rank: int, copies: int = 1) -> Tensor:
        """Return a rank's rows of a weight; so many ranks have the same."""
        weight: Tensor = self.weights[name]
        return weight.chunk(self.number // copies, 0)[rank // copies]

    def columns(self, name: str, rank: int) -> Tensor:
        weight: Tensor = self.weights[name]
        return weight.chunk(self.number, 1)[rank]

    def all_reduce(self, partial: list[Tensor]) -> Tensor:
        self.exchanged.append(("all-reduce", partial[0].numel()))
        total = partial[0]
        for more in partial[1:]:
            total = total + more
        return total

    def all_gather(self, pieces: list[Tensor]) -> Tensor:
        whole = torch.cat(pieces, -1)
        self.exchanged.append(("all-gather", whole.numel()))
        return whole

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        width = (self.spec.embed_dim,)
        if bias is None:
            return functional.rms_norm(x, width, weight, eps=1e-5)
        return functional.layer_norm(x, width, weight, bias, eps=1e-5)

    def lookup(self, ids: Tensor, rank: int) -> Tensor:
        """Return the rows of the rank's part of the table, and zeros for those it lacks."""
        table = self.rows("token_embedding.weight", rank)
        own = ids - rank * len(table)
        there = (own >= 0) & (own < len(table))
        return table[own.clamp(0, len(table) - 1)] * there[:, None]

    def attend(self, layer: int, x: Tensor, rank: int) -> Tensor:
        name, copies = f"layers.{layer}.attention", max(1, self.number // self._kv_heads)
        q, k, v = (
            (x @ self.rows(f"{name}.W_{part}.weight", rank, shared).T).view(len(x), -1, 4)
            for part, shared in (("q", 1), ("k", copies), ("v", copies))
        )
        group = q.shape[1] // k.shape[1]
        k, v = (part.repeat_interleave(group, 1).transpose(0, 1) for part in (k, v))
        scores = q.transpose(0, 1) @ k.transpose(1, 2) / 2.0
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        mixed = (weights @ v).transpose(0, 1).flatten(1)
        result: Tensor = mixed @ self.columns(f"{name}.W_o.weight", rank).T
        return result

    @property
    def _kv_heads(self) -> int:
        return len(self.weights["layers.0.attention.W_k.weight"]) // 4

    def feed_forward(self, layer: int, x: Tensor, rank: int) -> Tensor:
        name = f"layers.{layer}.feed_forward"
        inner = x @ self.rows(f"{name}.fc1.weight", rank).T
        if self.gated:
            inner = functional.silu(x @ self.rows(f"{name}.gate.weight", rank).T) * inner
        else:
            inner = inner.relu()
        return inner @ self.columns(f"{name}.fc2.weight", rank).T

    def __call__(self, ids: Tensor) -> Tensor:
        ranks = range(self.number)
        x = self.all_reduce([self.lookup(ids, rank) for rank in ranks])
        for layer in range(self.spec.num_layers):
            for norm, part in (("norm1", self.attend), ("norm2", self.feed_forward)):
                read = self.norm(f"layers.{layer}.{norm}", x)
                x = x + self.all_reduce([part(layer, read, rank) for rank in ranks])
        x = self.norm("norm", x)
        return self.all_gather(
            [x @ self.rows("output_projection.weight", rank).T for rank in ranks]
        )


@pytest.mark.parametrize("number", [2, 4, 8])
@pytest.mark.parametrize("spec", [GATED, PLAIN, FEW_KV_HEADS], ids=lambda spec: str(spec.name))
def test_ranks_compute_and_exchange_what_the_formulas_say(spec: ModelSpec, number: int) -> None:
    generator = torch.Generator().manual_seed(0)
    decoder = TinyDecoder(spec, generator=generator).double().eval()
    ids = torch.arange(11) % 40
    ranks = Ranks(decoder, spec, number)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = ranks(ids)
    with torch.no_grad():
        expected = decoder(ids[None])[0]
    assert float((logits - expected).abs().max()) < 1e-12

    step: dict[str, Any] = {"batch": 1, "new": 11, "past": 0, "causal": False, "logits": "all"}
    each = [
        roofline.flops(spec, **step, tensor_parallel=number, rank=rank).total
        for rank in range(number)
    ]
    assert counter.get_total_flops() == sum(each)
    time = roofline.step_time(
        spec,
        "H100-SXM-80GB",
        **step,
        tensor_parallel=number,
        weights="fp32",
        kv="fp32",
        activations="fp32",
    )
    found = [(c.kind, c.message_bytes / 4) for c in time.collectives for _ in range(c.count)]
    assert sorted(found) == sorted(ranks.exchanged)
