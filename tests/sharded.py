"""A decoder that is really spread over processes, by ``torch.distributed.tensor``.

Each process is one rank. PyTorch splits weights and caches; what it gives each rank is written to
a file, with how far the logits are from those of the whole decoder.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.multiprocessing.spawn import spawn

from llmcalc.models.caches import Pass
from llmcalc.models.tiny_decoder import KVCache, TinyDecoder
from llmcalc.spec import ModelSpec

#: The dimension that tensor parallelism splits, after Megatron-LM: projections into heads and into
#: the inner width by rows, those back by columns, tables and head by the vocabulary.
SPLIT = {"fc1": 0, "gate": 0, "fc2": 1, "W_q": 0, "W_o": 1, "token_embedding": 0} | {
    "W_k": 0,
    "W_v": 0,
    "output_projection": 0,
}

#: What reads the hidden state after a matrix split by columns has its whole bias on every rank.
WHOLE_BIAS = {"W_o", "fc2"}


class ShardedDecoder(TinyDecoder):
    """One rank of a decoder: a stage of its layers, its weights spread over `mesh`.

    The mesh has one axis for ranks with KV heads of their own and one for their copies.
    """

    def __init__(self, spec: ModelSpec, mesh: DeviceMesh, stage: int, stages: int) -> None:
        super().__init__(spec, attention="reference", generator=torch.Generator().manual_seed(0))
        self.mesh, self.stage, self.last = mesh, stage, stage == stages - 1
        each = spec.num_layers // stages
        for layer in range(spec.num_layers):
            if layer // each != stage:
                self.layers[layer] = nn.Module()  # the layers of other stages are not here
        self.turns = self._rotary_tables(*self._positions, 32) if self._positions else None
        self.own = range(stage * each, (stage + 1) * each)
        if stage:
            self.pos_embedding = None
            if not spec.head.tied:
                self.add_module("token_embedding", nn.Module())
        if not self.last:
            self.norm = None
            self.add_module("output_projection", nn.Module())
        for name, weight in list(self.named_parameters()):
            path, _, kind = name.rpartition(".")
            part = path.rpartition(".")[2]
            placements: list[Any] = [Replicate(), Replicate()]
            if part in SPLIT and not (kind == "bias" and part in WHOLE_BIAS):
                placements = [Shard(SPLIT[part])] * 2
                if part in {"W_k", "W_v"}:
                    placements[1] = Replicate()
            spread = distribute_tensor(weight.data, mesh, placements)
            setattr(self.get_submodule(path), kind, nn.Parameter(spread))

        for layer in self.own:
            attention: Any = self.layers[layer].attention
            attention._attend = partial(self._attend, attention._attend)

    def _attend(self, attend: Any, q: Any, keys: Any, values: Any, step: Pass) -> Any:
        """Attend with the queries of a KV head, which its copies gather from each other."""
        return attend(q.redistribute(placements=[Shard(2), Replicate()]), keys, values, step)

    def new_cache(self, *, batch: int = 1, capacity: int) -> KVCache:
        """Return the cache of the rank's layers, spread over the ranks by heads."""
        shape = (capacity, batch, *self._heads[0])
        keys, values = (
            [
                distribute_tensor(torch.zeros(shape), self.mesh, [Shard(2), Replicate()])
                for _ in self.own
            ]
            for _ in range(2)
        )
        return KVCache(keys, values, (0,) * batch)

    def step(self, ids: Tensor, cache: KVCache) -> Tensor | None:
        """Run the rank's stage: from the ids or the stage before it, to the next or the logits."""
        step = Pass(cache, (ids.shape[1],), explicit=True)
        step.begin(ids.device)
        neighbour = self.mesh.size()
        if self.stage:
            x: Any = torch.empty(ids.shape[1], self.spec.embed_dim)
            dist.recv(x, dist.get_rank() - neighbour)
            x = distribute_tensor(x, self.mesh, [Replicate()] * 2)
        else:
            # The lookup in a table split twice is more than DTensor can do: the table is gathered.
            table: Any = self.token_embedding.weight
            found = nn.functional.embedding(ids, table.full_tensor())
            whole = distribute_tensor(found, self.mesh, [Replicate()] * 2)
            x = whole[0]
            if self.pos_embedding is not None:
                x = x + self.pos_embedding.weight[step.start : step.end]
        if self.turns is not None:
            cos, sin = (turn[step.start : step.end, None, None] for turn in self.turns)
            step.turn = cos, sin
        for number, layer in enumerate(self.own):
            x = self.layers[layer](x, step, number)
        cache.lengths = step.ends
        if not self.last:
            dist.send(x.full_tensor().contiguous(), dist.get_rank() + neighbour)
            return None
        x = x if self.norm is None else self.norm(x)
        head = self.output_projection
        weight = self.token_embedding.weight if self.spec.head.tied else head.weight
        logits: Any = nn.functional.linear(x, weight, head.bias)
        gathered: Tensor = logits.full_tensor()
        return gathered


def _rank(rank: int, cases: list[dict[str, Any]], ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    results = [_measure(rank, ranks, **case) for case in cases]
    dist.barrier()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()


def _measure(
    rank: int, ranks: int, *, sizes: dict[str, Any], stages: int, tokens: int
) -> dict[str, Any]:
    """Return the bytes of a rank's weights and cache, and the error of its logits."""
    spec = ModelSpec.dense(**sizes)
    tensor = ranks // stages
    heads = min(tensor, sizes["num_kv_heads"])
    grid = init_device_mesh(
        "cpu", (stages, heads, tensor // heads), mesh_dim_names=("stage", "heads", "copies")
    )
    ids = torch.arange(tokens)[None] % sizes["vocab_size"]
    whole = TinyDecoder(
        spec, attention="reference", generator=torch.Generator().manual_seed(0)
    ).eval()
    decoder = ShardedDecoder(spec, grid["heads", "copies"], rank // tensor, stages).eval()
    cache = decoder.new_cache(capacity=tokens)
    with torch.no_grad(), implicit_replication():
        expected = whole(ids)[0]
        read = (ids[:, : tokens - 2], ids[:, tokens - 2 : tokens - 1], ids[:, tokens - 1 :])
        parts = [decoder.step(part, cache) for part in read]
    error = None
    if decoder.last:
        error = float((torch.cat([p for p in parts if p is not None]) - expected).abs().max())
    weights: list[Any] = list(decoder.parameters())
    held: list[Any] = [*cache.keys, *cache.values]
    return {
        "weights": sum(weight.to_local().nbytes for weight in weights),
        "cache": sum(store.to_local().nbytes for store in held),
        "error": error,
    }


def measure(cases: list[dict[str, Any]], ranks: int, folder: Path) -> list[list[dict[str, Any]]]:
    """Run the cases on so many processes; return the results of each rank."""
    spawn(_rank, (cases, ranks, str(folder)), nprocs=ranks)  # type: ignore[no-untyped-call]
    return [
        json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)
    ]
