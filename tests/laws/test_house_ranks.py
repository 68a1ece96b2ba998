"""The third law of the house: parallelism changes who computes and holds, not what.

Over the ranks of a layout everything sums to the whole plus what is replicated and the padding
that is named; memory and roofline agree on who holds what; where a rank has a part of a sum, the
ranks exchange it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Final

import attrs
import pytest

from llmcalc import Breakdown, Layout, LlmcalcError, ModelSpec, memory, roofline
from llmcalc.spec import (
    Attention,
    Block,
    Constant,
    Experts,
    FeedForward,
    Full,
    Layer,
    Linear,
    MaskedAttention,
    Norm,
    RetrievedExperts,
    Table,
    TopK,
    runs,
)
from llmcalc.spec.axes import is_split
from llmcalc.spec.ledger import Entry
from tests import house

LAYOUTS: Final = {
    **house.LAYOUTS,
    "dp2": Layout(data_parallel=2),
    "tp8": Layout(tensor_parallel=8),
    "tp2 pp2 dp3 ep": Layout(
        tensor_parallel=2, pipeline_parallel=2, data_parallel=3, expert_parallel=True
    ),
    "dp3 ep": Layout(data_parallel=3, expert_parallel=True),
    "dp-attention ep": Layout(
        tensor_parallel=2, data_parallel=2, data_parallel_attention=True, expert_parallel=True
    ),
    "vllm tp2 dp2 ep": Layout(
        tensor_parallel=2, data_parallel=2, expert_parallel=True, engine="vllm"
    ),
}

#: So many tokens that every expert is read by somebody, whoever picks.
EVERYTHING: Final[dict[str, Any]] = {"batch": 1024, "new": 64, "past": 3, "experts": "most"}

PAIRS: Final = [(name, where) for name in house.MODELS for where in LAYOUTS]


def allowed(name: str, where: str, weights: str = "bf16") -> tuple[ModelSpec, Layout]:
    spec, layout = house.model(name), LAYOUTS[where]
    try:
        layout.check(spec)
        memory.weight_bytes(spec, weights=weights, layout=layout)
        memory.kv_cache_bytes(spec, context=1, kv="bf16", layout=layout)
    except LlmcalcError:
        pytest.skip("the model does not allow the layout")
    return spec, layout


def by_path(answers: Iterable[Breakdown[Any, Any]]) -> Counter[tuple[str, ...]]:
    """Return the sum of the terms of each path, which make up the total."""
    found: Counter[tuple[str, ...]] = Counter()
    for answer in answers:
        own: Counter[tuple[str, ...]] = Counter()
        for term in answer.terms:
            own[term.path] += term.value
        assert sum(own.values()) == pytest.approx(answer.total, rel=1e-12)
        found.update(own)
    return found


# Sums over ranks ----------------------------------------------------------------------------


def copies(found: int, whole: int) -> Fraction:
    return Fraction(found, whole) if whole else Fraction(1 if not found else 0)


@pytest.mark.parametrize(("name", "where"), PAIRS)
def test_ranks_hold_whole_copies_of_every_weight_and_cache(name: str, where: str) -> None:
    spec, layout = allowed(name, where)
    ranks = range(layout.devices)
    padded = layout.placement.vocab_multiple
    tensors = {tensor.path: tensor for tensor in spec.ledger.tensors}
    whole = by_path([memory.weight_bytes(spec, weights="bf16")])
    held = by_path(
        memory.weight_bytes(spec, weights="bf16", layout=layout, rank=rank) for rank in ranks
    )
    assert held.keys() == whole.keys()
    each = layout.devices // layout.pipeline_parallel
    for path, size in held.items():
        axes = [axis for side in (*tensors[path].rows, *tensors[path].columns) for axis in side]
        vocab = [axis.size for axis in axes if axis.name == "vocab"]
        full = whole[path]
        if vocab and not tensors[path].routed:
            full = full // vocab[0] * (-(-vocab[0] // padded) * padded)
        number = copies(size, full)
        places = 1 if tensors[path].shared is None else layout.pipeline_parallel
        # Of several results that one matrix has, some may be whole where others are shared out.
        assert number.denominator == 1 or len(tensors[path].rows) > 1, path
        assert 1 <= number <= each * places, path
        if not any(is_split(axis) or axis.name == "experts" for axis in axes):
            assert number % each == 0, path  # whole on every rank
    context: dict[str, Any] = {"context": 4096, "batch": 12, "kv": "bf16"}
    whole = by_path([memory.kv_cache_bytes(spec, **context)])
    held = by_path(
        memory.kv_cache_bytes(spec, layout=layout, rank=rank, **context) for rank in ranks
    )
    assert held.keys() == whole.keys()
    for path, size in held.items():
        number = copies(size, whole[path])
        assert number.denominator == 1, path
        assert 1 <= number <= layout.tensor_parallel, path


@pytest.mark.parametrize(("name", "where"), PAIRS)
def test_ranks_compute_everything_once_or_all_alike(name: str, where: str) -> None:
    """A product is shared out, or every rank of a replica computes it; nobody computes more."""
    spec, layout = allowed(name, where)
    items = {entry.name: entry.item for entry in spec.ledger.entries}
    most = layout.tensor_parallel
    if layout.data_parallel_attention:  # what attention is not is computed by all together
        most *= layout.data_parallel
    steps: tuple[dict[str, Any], ...] = (
        {"batch": 12, "new": 1, "past": 3000},
        {"batch": 6, "new": 130, "past": 0},
    )
    for step in steps:
        whole = by_path([roofline.flops(spec, **step)])
        done = by_path(
            roofline.flops(spec, layout=layout, rank=rank, **step) for rank in range(layout.devices)
        )
        assert done.keys() == whole.keys()
        for path, flops in done.items():
            item = items.get(path)
            pieces = item.out if isinstance(item, Linear) else ()
            padded = any(axis.name == "vocab" for side in pieces for axis in side)
            number = copies(flops, whole[path])
            whole_copies = number.denominator == 1 or len(pieces) > 1
            assert whole_copies or (padded and layout.placement.vocab_multiple > 1), path
            assert 1 <= number <= (most + 1 if padded else most), path


@pytest.mark.parametrize("weights", ["Q4_K_M", "awq-int4-g128", "checkpoint"])
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", house.MODELS)
def test_stages_hold_the_layers_that_a_format_has(name: str, stages: int, weights: str) -> None:
    """Each layer is on one stage, in its own format; what is stored once is where it is used."""
    spec, layout = house.model(name), Layout(pipeline_parallel=stages)
    try:
        whole = by_path([memory.weight_bytes(spec, weights=weights)])
        held = [
            by_path([memory.weight_bytes(spec, weights=weights, layout=layout, rank=rank)])
            for rank in range(stages)
        ]
    except LlmcalcError:
        pytest.skip("the model does not allow the format or the layout")
    shared = [tensor.path for tensor in spec.ledger.tensors if tensor.shared is not None]
    for path, size in whole.items():
        sizes = [one[path] for one in held]
        if any(starts(path, known) for known in shared):
            assert {*sizes} <= {0, size}, path
            assert max(sizes) == size, path
        else:
            assert sum(sizes) == size, path
    assert {path for one in held for path in one} == {*whole}


# Memory and roofline ------------------------------------------------------------------------


def stored_alone(spec: ModelSpec) -> Iterator[tuple[Entry, str]]:
    """Give what stores weights of its own that a step multiplies with, and their names."""
    for entry, tensor in spec.ledger.weight_reads:
        item: Any = entry.item
        if not isinstance(item, Table) and getattr(item, "storage", None) is None:
            yield entry, tensor.path[-1]


@pytest.mark.parametrize("weights", ["bf16", "fp8-block128", "Q4_K_M"])
@pytest.mark.parametrize(("name", "where"), PAIRS)
def test_a_step_that_touches_everything_reads_what_a_rank_holds(
    name: str, where: str, weights: str
) -> None:
    spec, layout = allowed(name, where, weights)
    uses = {(*entry.path, tensor): entry.uses for entry, tensor in stored_alone(spec)}
    looked_up = {entry.name for entry in spec.ledger.entries if isinstance(entry.item, Table)}
    for rank in {0, layout.devices // 2, layout.devices - 1}:
        held = by_path([memory.weight_bytes(spec, weights=weights, layout=layout, rank=rank)])
        moved = roofline.bytes_moved(
            spec, weights=weights, kv="bf16", layout=layout, rank=rank, **EVERYTHING
        )
        read = by_path([moved["weights"]]) if "weights" in moved.by() else Counter()
        matched = set()
        for path, size in held.items():
            alone = next((known for known in uses if starts(path, known)), None)
            if alone is not None:
                assert read["weights", *path] == size * uses[alone], path
                matched.add(("weights", *path))
        # What is left are lookups, and weights that several items store as one.
        for path in read.keys() - matched:
            name_of_weight = path[1:]
            shared = not any(starts(name_of_weight, known) for known in uses)
            assert shared or name_of_weight in looked_up, path
    assert uses


def starts(path: tuple[str, ...], known: tuple[str, ...]) -> bool:
    """Whether a term is of a weight: it may have a format or what stands beside in its name."""
    *place, name = path
    *own, start = known
    return place == own and (name == start or name.startswith((f"{start} ", f"{start}.")))


def test_a_tied_head_reads_what_its_rank_holds_of_the_token_table() -> None:
    spec = house.model("google/gemma-2-9b")
    for layout in (Layout(tensor_parallel=4), Layout(tensor_parallel=2, pipeline_parallel=2)):
        for rank in range(layout.devices):
            held = memory.weight_bytes(spec, weights="bf16", layout=layout, rank=rank).by()
            moved = roofline.bytes_moved(
                spec, weights="bf16", kv="bf16", layout=layout, rank=rank, **EVERYTHING
            )
            read = by_path([moved])["weights", "head", "", "output.weight"]
            is_last = layout.place(rank)[1] == layout.pipeline_parallel - 1
            assert read == (held["embeddings"] if is_last else 0)


@pytest.mark.parametrize(("name", "where"), PAIRS)
def test_a_step_reads_and_writes_the_caches_that_a_rank_holds(name: str, where: str) -> None:
    spec, layout = allowed(name, where)
    spans = {entry.name: cache.span for entry, cache in spec.ledger.caches}
    for rank in {0, layout.devices // 2, layout.devices - 1}:
        held = by_path(
            [
                memory.kv_cache_bytes(
                    spec, context=4097, batch=12, kv="bf16", layout=layout, rank=rank
                )
            ]
        )
        moved = by_path(
            [
                roofline.bytes_moved(
                    spec, batch=12, new=1, past=4096, weights="bf16", kv="bf16", layout=layout,
                    rank=rank, mla="absorbed",
                )
            ]
        )  # fmt: skip
        read = {path[1:] for path in moved if path[0] == "cache read" and path[1:] in spans}
        written = {path[1:] for path in moved if path[0] == "cache written"}
        assert {*held} == read == written
        for path, size in held.items():
            if isinstance(spans[path], Full | Constant):
                assert moved["cache read", *path] == size, path


# Experts that are looked up -----------------------------------------------------------------

SHARED: Final = FeedForward(inner_dim=128, gated=True, activation="silu")
DOGE: Final = attrs.evolve(
    house.model("meta-llama/Llama-3.1-8B"),
    embed_dim=256,
    layers=runs(
        [
            Layer(
                blocks=(
                    Block(part=Attention(query_heads=8, kv_heads=4, head_dim=32)),
                    Block(
                        part=RetrievedExperts(num_experts=100, experts_per_token=7, shared=SHARED)
                    ),
                )
            )
        ]
        * 4
    ),
)

TOKENS: Final = 40

#: The paths of the tables of experts, and of their products.
TABLES: Final = [("experts", "decoder-experts", name) for name in ("expert_in", "expert_out")]
PRODUCTS: Final = ("experts", "decoder-experts", "experts")


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        (Layout(tensor_parallel=4), 1),
        (Layout(tensor_parallel=4, expert_parallel=True), 4),
        (Layout(data_parallel=4, expert_parallel=True), 4),
        (Layout(tensor_parallel=2, data_parallel=3, expert_parallel=True), 6),
        (Layout(tensor_parallel=2, pipeline_parallel=2, expert_parallel=True), 2),
        (Layout(tensor_parallel=2, data_parallel=2, data_parallel_attention=True), 1),
        (
            Layout(
                tensor_parallel=2, data_parallel=2, data_parallel_attention=True,
                expert_parallel=True,
            ),
            4,
        ),
    ],
    ids=str,
)  # fmt: skip
def test_experts_that_are_looked_up_are_dealt_out_with_their_lookups_and_products(
    layout: Layout, ranks: int
) -> None:
    """`ranks` share the experts; where one has all of them, its copies compute the same."""
    step: dict[str, Any] = {"batch": TOKENS, "new": 1, "past": 8}
    devices = range(layout.devices)
    held = [
        by_path([memory.weight_bytes(DOGE, weights="bf16", layout=layout, rank=n)]) for n in devices
    ]
    moved = [
        by_path(
            [roofline.bytes_moved(DOGE, weights="bf16", kv="bf16", layout=layout, rank=n, **step)]
        )
        for n in devices
    ]
    done = [by_path([roofline.flops(DOGE, layout=layout, rank=n, **step)]) for n in devices]
    row, layers = 256 * 2, 4
    # Every replica's tokens are computed by its own ranks, unless all ranks share the experts.
    by_all = layout.tensor_parallel if ranks == 1 else 1
    if layout.data_parallel_attention and ranks == 1:
        by_all = layout.devices
    for table in TABLES:
        sizes = [one[table] for one in held]
        assert (
            sum(sizes) == 100 * row * layers * layout.devices // layout.pipeline_parallel // ranks
        )
        read = sum(one["weights", *table] for one in moved)
        assert read == TOKENS * 7 * row * layers * by_all
    flops = sum(one[PRODUCTS] for one in done)
    assert flops == 2 * 2 * 256 * 7 * TOKENS * layers * by_all
    for one, other in zip(moved, done, strict=True):
        # Who looks rows up multiplies them.
        assert one["weights", *TABLES[0]] * 4 == other[PRODUCTS] * 2


def exchanged(spec: ModelSpec, layout: Layout) -> list[tuple[Any, ...]]:
    found = roofline.collectives(spec, batch=TOKENS, new=1, past=8, layout=layout)
    return [(one.kind, one.path, one.ranks, one.count, one.message_bytes) for one in found]


def test_results_of_experts_that_are_looked_up_are_exchanged_as_those_of_all_experts() -> None:
    hidden = TOKENS * 256 * 2
    apart, dealt, over, both = (
        [one for one in exchanged(DOGE, layout) if one[1][:2] == PRODUCTS[:2]]
        for layout in (
            Layout(tensor_parallel=4),
            Layout(tensor_parallel=4, expert_parallel=True),
            Layout(data_parallel=4, expert_parallel=True),
            Layout(tensor_parallel=2, data_parallel=2, expert_parallel=True),
        )
    )
    # The shared feed-forward is split like any other, and experts add to the same sum.
    shared = ("all-reduce", (*PRODUCTS[:2], "shared.down"), 4, 4, hidden)
    assert apart == [shared]
    assert dealt == [shared]
    # A token goes to as many ranks as there can be, there and back.
    assert over == [("all-to-all", PRODUCTS, 4, 8, 4 * hidden // 4)]
    assert both == [
        ("all-reduce", (*PRODUCTS[:2], "shared.down"), 2, 4, hidden // 2),
        ("all-to-all", PRODUCTS, 4, 8, 4 * hidden // 4),
        ("all-gather", PRODUCTS, 2, 4, hidden // 2),
    ]


# Partial sums -------------------------------------------------------------------------------


def parts_of_sums(spec: ModelSpec, layout: Layout) -> Iterator[tuple[str, str]]:
    """Give the groups and labels in which the first rank has a part of a sum.

    It holds fewer columns than a matrix has, or, of experts, a part of what is summed over them.
    """
    for tensor in spec.ledger.tensors:
        item = tensor.item
        if not isinstance(item, Linear) or tensor.is_bias or tensor.group == "head":
            continue
        split = layout.first_ranks(spec)[0].split(tensor)
        whole_matrices, _, whole = tensor.extents(attrs.evolve(split, ranks=1, whole_experts=False))
        matrices, _, held = tensor.extents(split)
        dealt = item.routed and matrices < whole_matrices and item.role == "down"
        if held < whole or dealt:
            yield tensor.group, tensor.label


@pytest.mark.parametrize("where", ["tp2", "tp8", "tp4 pp2", "tp2 ep", "tp16 dcp2"])
@pytest.mark.parametrize("name", house.MODELS)
def test_where_a_rank_has_a_part_of_a_sum_ranks_reduce_it(name: str, where: str) -> None:
    spec, layout = allowed(name, where)
    found = roofline.collectives(spec, batch=3, new=1, past=99, layout=layout)
    reduced = {one.path[:2] for one in found if one.kind == "all-reduce"}
    joint = {
        entry.path
        for step in spec.ledger.steps
        if step.adds_up and any(entry.path in reduced for entry in step.entries)
        for entry in step.entries
    }
    assert {*parts_of_sums(spec, layout)} <= reduced | joint
    # Nothing is reduced of which every rank has all: norms over ranks and lookups aside.
    normed = {
        entry.path for entry in spec.ledger.entries if getattr(entry.item, "vectors", None) == ()
    }
    embedded = {("embeddings", "")}
    assert reduced <= {*parts_of_sums(spec, layout)} | normed | embedded


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_heads_that_every_rank_has_are_summed_by_each(kv_heads: int, ranks: int) -> None:
    """Of the mask of Doge, and of a norm of all KV heads, there is a part where heads are split."""
    attention = Attention(
        query_heads=8, kv_heads=kv_heads, head_dim=32, key_norm=Norm(kind="rms"),
        norm_axes="heads", span=TopK(64),
    )  # fmt: skip
    layers = runs([Layer(blocks=(Block(part=MaskedAttention(attention=attention)),))])
    spec = attrs.evolve(DOGE, layers=layers)
    found = roofline.collectives(spec, batch=3, new=1, past=99, tensor_parallel=ranks)
    names = {one.path[-1] for one in found if one.kind == "all-reduce"}
    assert ("mask" in names) == (ranks > 1 and kv_heads > 1)
    assert ("k_norm.weight" in names) == (ranks > 1 and kv_heads > 1)
    assert ("o" in names) == (ranks > 1)


def test_experts_that_are_looked_up_are_reduced_where_nothing_else_is() -> None:
    """Without a width of its own the shared feed-forward leaves no sum that they could add to."""
    part = RetrievedExperts(
        num_experts=100, experts_per_token=7, shared=attrs.evolve(SHARED, inner_dim=0)
    )
    spec = attrs.evolve(DOGE, layers=runs([Layer(blocks=(Block(part=part),))] * 3))
    path, hidden = ("experts", "experts", "experts"), TOKENS * 256 * 2
    for layout, expected in (
        (Layout(tensor_parallel=4), []),
        (Layout(tensor_parallel=4, expert_parallel=True), [("all-reduce", path, 4, 3, hidden)]),
    ):
        assert [one for one in exchanged(spec, layout) if one[1][0] == "experts"] == expected


@pytest.mark.parametrize(
    "where", ["dp-attention", "dp-attention ep", "tp2 dp2 ep", "tp2 pp2 dp3 ep", "dp3 ep"]
)
@pytest.mark.parametrize("name", house.MODELS)
def test_where_replicas_have_parts_of_a_sum_they_exchange_it(name: str, where: str) -> None:
    """Tokens that replicas compute together come from all of them, and the results go back."""
    spec, layout = allowed(name, where)
    found = roofline.collectives(spec, batch=12, new=1, past=99, layout=layout)
    kinds: dict[tuple[str, str], set[str]] = {}
    for one in found:
        kinds.setdefault((one.path[0], one.path[1]), set()).add(one.kind)
    rank = layout.first_ranks(spec)[0]
    for step in spec.ledger.steps:
        together = {
            entry.path for entry in step.entries
            if isinstance(entry.item, Linear)
            and rank.across_replicas(entry.group, routed=entry.item.routed)
        }  # fmt: skip
        done = set().union(*(kinds.get(entry.path, set()) for entry in step.entries))
        if together:
            assert done >= {"all-gather", "reduce-scatter"} or "all-to-all" in done, together


def test_dense_layers_and_experts_of_one_block_are_reduced_once() -> None:
    expert = FeedForward(inner_dim=64, gated=True, activation="silu")
    part = Experts(num_experts=8, experts_per_token=2, expert=expert, shared=SHARED)
    spec = attrs.evolve(DOGE, layers=runs([Layer(blocks=(Block(part=part),))] * 3))
    for layout in (Layout(tensor_parallel=2), Layout(tensor_parallel=2, expert_parallel=True)):
        found = [one for one in exchanged(spec, layout) if one[1][0] == "experts"]
        assert [(one[0], *one[2:]) for one in found] == [("all-reduce", 2, 3, TOKENS * 256 * 2)]
