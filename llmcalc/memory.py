r"""Memory: parameters, weight bytes, KV cache, and what fits on a device.

Counting:

* `parameters`: parameters of the whole model.
* `layer_parameters`: parameters of one layer of each kind.
* `active_parameters`: those that one token passes through.
* `buffers`: what is stored with the parameters and is none.
* `multi_token_parameters`: those of modules that predict further tokens.
* `weight_bytes`: bytes of the weights on one device.
* `kv_cache_bytes`: bytes that requests hold between steps on one device.

What fits on a device:

* `fit`: whether a batch of requests fits, with what is left or missing, and the working.
* `max_batch_size`: the most requests of a context length that fit.
* `max_context`: the longest context that a batch of requests can have.
* `needed_bytes`: what weights and requests take on the tightest device.
* `usable_bytes`: what of a device's memory there is for them.

Textbook formulas, for one look or for a check by hand:

* `gqa_kv_bytes`: the KV cache of grouped-query attention.

Conventions: figures are per device, of the rank that holds most unless `rank` names another one.
`layout` says how a model is spread over devices (`llmcalc.layouts`); ``tensor_parallel=n`` is
short for ``layout=Layout(tensor_parallel=n)``. Under tensor parallelism every rank holds an equal
share of the heads, of the inner width and of the vocabulary (the first ranks one row more where
it does not divide); norms, position tables and the biases of row-split matrices are replicated,
and KV heads too where there are more ranks than heads. A `batch` is that of the whole layout:
data parallelism deals it out. Nothing is subtracted for activations, fragmentation or the
engine's own use. GB is 10**9 bytes, GiB is 2**30.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypeAlias, cast, overload

import attrs

from llmcalc import formats
from llmcalc.boundary import (
    choice,
    elementwise,
    evaluate,
    flag_argument,
    is_array,
    larger,
    smaller,
    whole_number,
)
from llmcalc.breakdown import Breakdown, Factor, Term
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.formats import Uniform
from llmcalc.layouts import ONE_DEVICE, Layout, Rank, Stage
from llmcalc.spec.axes import WHOLE, Axes, Axis, factors
from llmcalc.spec.items import Cache
from llmcalc.spec.ledger import Entry, Ledger
from llmcalc.spec.model import ModelSpec
from llmcalc.spec.spans import Chunk, Window
from llmcalc.units import Bytes, Params, format_integer, format_quantity

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.formats import Format, Scheme
    from llmcalc.spec.ledger import Place, StoredTensor

    #: The format of recurrent states: one, or one for each of the roles "state" and "conv".
    StateFormat: TypeAlias = str | Format | Mapping[str, str | Format]

__all__ = [
    "ContextLimit",
    "Fit",
    "active_parameters",
    "buffers",
    "fit",
    "gqa_kv_bytes",
    "kv_cache_bytes",
    "layer_parameters",
    "max_batch_size",
    "max_context",
    "multi_token_parameters",
    "needed_bytes",
    "parameters",
    "usable_bytes",
    "weight_bytes",
]


def parameters(
    spec: ModelSpec, *, tied_head: Literal["once", "twice"] = "once"
) -> Breakdown[Params]:
    r"""Return the parameters of the whole model, every stored weight once.

    .. math:: P = \sum_{\text{distinct weights}} \text{count} \prod \text{shape}

    A tied head adds none; with ``tied_head="twice"`` it counts beside the token table, as it does
    in files that store it once more and in the totals published from them. Parameters never depend
    on parallelism or format. Raises `llmcalc.LlmcalcError` for any other `tied_head`.

    >>> from llmcalc import ModelSpec, memory
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
    ...     embed_dim=64, inner_dim=128, vocab_size=100,
    ... )
    >>> print(memory.parameters(spec)["norms"].explain())
    Parameters of tiny: norms
      attention_norm.weight     64 embed x 2 layers = 128 parameters
      feed_forward_norm.weight  64 embed x 2 layers = 128 parameters
      final_norm.weight         64 embed = 64 parameters
      total 320 parameters

    The sums by group are ``.by()``, those by kind of layer ``.by(1)``, where the first is of what
    stands outside the layers; `layer_parameters` gives those of one layer.

    >>> dict(memory.parameters(spec).by(1))
    {'': 12864, 'decoder': 73984}

    >>> from llmcalc import load_model
    >>> qwen = load_model("Qwen3-0.6B")
    >>> memory.parameters(qwen).total, memory.parameters(qwen, tied_head="twice").total
    (596049920, 751632384)
    """
    choice(tied_head, "tied_head", ("once", "twice"))
    title, ledger = f"Parameters of {spec.name}", spec.ledger
    terms: tuple[Term[int], ...] | None = ledger.programs.get("parameters")
    if terms is None:
        terms = ledger.keep("parameters", tuple(map(_parameters, ledger.tensors)))
    if tied_head == "once" or not spec.head.tied:
        return Breakdown(Params, title, terms)
    width = spec.embedding.width
    column = (spec.embed_dim, "embed") if width is None else (width, "embedding")
    vocab = (spec.embedding.vocab_size, "vocab")
    head = Term(("head", "", "output.weight"), (vocab, column))
    return Breakdown(Params, f"{title}, its tied head twice", (*terms, head))


def layer_parameters(spec: ModelSpec) -> Breakdown[Params]:
    r"""Return the parameters of one layer of each kind.

    .. math:: P = P_\text{outside} + \sum_{\text{kinds}} \text{layers} \cdot P_\text{layer}

    The kinds are the labels in `ModelSpec.layers`, which also says where they stand; ``.by(1)``
    gives the sum of each. Weights that several layers share belong to none of them.

    >>> from llmcalc import load_model, memory
    >>> gemma = load_model("gemma-2-9b")
    >>> [(run.label, run.count) for run in gemma.layers[:3]]
    [('window', 1), ('decoder', 1), ('window', 1)]
    >>> dict(memory.layer_parameters(gemma).by(1))
    {'window': 198195200, 'decoder': 198195200}
    >>> memory.parameters(gemma).total == (
    ...     memory.parameters(gemma).by(1)[""] + 21 * 198195200 + 21 * 198195200
    ... )
    True
    """
    terms = [
        Term(tensor.path, tensor.row_factors + tensor.column_factors)
        for tensor in spec.ledger.tensors
        if tensor.times
    ]
    return Breakdown(Params, f"Parameters of one layer of each kind of {spec.name}", terms)


def active_parameters(spec: ModelSpec) -> Breakdown[Params]:
    r"""Return the parameters that one token passes through: of the experts, those it is routed to.

    .. math:: P_\text{active} = P - \sum_{\text{routed}} P_\text{routed}
              \left(1 - \frac{k}{E}\right)

    Everything else counts in full, the embedding tables too.

    >>> from llmcalc import load_model, memory
    >>> mixtral = load_model({
    ...     "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32,
    ...     "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    ...     "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
    ... }, name="mixtral-8x7b")
    >>> memory.parameters(mixtral).total, memory.active_parameters(mixtral).total
    (46702792704, 12879925248)
    """
    terms = [
        Term(
            tensor.path,
            tensor.active_factors + tensor.column_factors + tensor.times,
        )
        for tensor in spec.ledger.tensors
    ]
    return Breakdown(Params, f"Active parameters of {spec.name}", terms)


def buffers(spec: ModelSpec, *, multi_token: bool = False) -> Breakdown[Params]:
    r"""Return the elements that are stored with the parameters without being any.

    No gradient changes them: offsets of experts' scores that training sets by their load, tables
    of the experts of each token, one factor of a layer's result, constants of an activation, and
    the decays of lightning attention. These are the persistent buffers of transformers' modules,
    what their ``state_dict`` has more than the parameters. `parameters`, `active_parameters` and
    `weight_bytes` leave them out, as model cards do; checkpoints hold them, so that the elements
    of all tensors in their files, which the Hugging Face hub shows, count them too. With
    `multi_token` those of the modules that predict further tokens are counted as well.

    >>> from llmcalc import load_model, memory
    >>> deepseek = load_model("deepseek-v3")
    >>> print(memory.buffers(deepseek).explain())
    Buffers of deepseek-ai/DeepSeek-V3
      router_balance  256 experts x 58 layers = 14 848 parameters
      total 14 848 parameters
    >>> memory.parameters(deepseek).total + memory.buffers(deepseek).total
    671026419200
    """
    flag_argument(multi_token, "multi_token")
    ledgers = (spec.ledger, spec.multi_token_ledger) if multi_token else (spec.ledger,)
    tensors = (tensor for ledger in ledgers for tensor in ledger.buffers)
    return Breakdown(Params, f"Buffers of {spec.name}", map(_parameters, tensors))


def multi_token_parameters(spec: ModelSpec, *, copies: bool = False) -> Breakdown[Params]:
    r"""Return the parameters of the modules that predict further tokens (multi-token prediction).

    .. math:: P = n \, (P_\text{layer} + 2 H^2 + 3 H)

    A model that was trained to predict several tokens may keep the modules for them in its
    checkpoint, and an engine may draft with them. `parameters` leaves them out, and so does every
    other function. A module has a layer of its own (DeepSeek-V3: one with experts), a matrix that
    joins the embedding of a token and the hidden state, each of `H` elements, and their norms and
    the result's. `load_model` counts the modules that the config states (for most models
    ``num_nextn_predict_layers``); `ModelSpec.notes` says where it does not.

    The embedding and the head are the model's own. The checkpoints of DeepSeek-V3 and GLM-4.5
    hold a copy of both for each module, those of Qwen3-Next and DeepSeek-V4 none: `copies` counts
    them.

    >>> from llmcalc import load_model, memory
    >>> deepseek = load_model("deepseek-v3")
    >>> memory.multi_token_parameters(deepseek).total
    11610067968
    >>> memory.multi_token_parameters(deepseek, copies=True).total
    13463426048
    """
    flag_argument(copies, "copies")
    tensors = list(spec.multi_token_ledger.tensors)
    if copies:
        embed = Axis("embed", spec.embed_dim)
        for module in spec.multi_token:
            tensors += Ledger(module.copies(embed, spec.embedding.vocab)).tensors
    title = f"Multi-token prediction of {spec.name}"
    return Breakdown(Params, title, map(_parameters, tensors))


def _parameters(tensor: StoredTensor) -> Term[int]:
    """Give the elements of a stored weight."""
    return Term(tensor.path, tensor.row_factors + tensor.column_factors + tensor.times)


def weight_bytes(
    spec: ModelSpec,
    *,
    weights: str | Format | Scheme,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
) -> Breakdown[Bytes]:
    r"""Return the bytes of the weights that one device holds.

    .. math:: \sum_{\text{distinct weights}} \text{count} \cdot
              \text{format.bytes}(\text{rows}_r, \text{columns}_r)

    `weights` is the format of an element, taken for every weight; a quantised format or a mix of
    llama.cpp, which leave some tensors wide; ``"checkpoint"`` for what the model's config states;
    or a scheme of your own (see `llmcalc.formats.scheme`). `rank` is the device; by default
    it is the one that holds most. Raises `llmcalc.LlmcalcError` for an unknown format and
    for a degree that does not divide the heads or the inner width.

    >>> from llmcalc import ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> memory.weight_bytes(llama, weights="bf16").total
    16060522496
    >>> memory.weight_bytes(llama, weights="bf16", tensor_parallel=2).total
    8030527488
    """
    if rank is not None:
        storage = formats.scheme(weights, spec)
        [one] = chosen_ranks(spec, tensor_parallel, layout, rank)
        return Weights(spec, storage, one).breakdown(one)
    placed = _placed(spec, weights, tensor_parallel, layout)
    most = placed.totals.index(max(placed.totals))
    return placed.weights.breakdown(placed.ranks[most])


def chosen_ranks(
    spec: ModelSpec, tensor_parallel: Int, layout: Layout | None, rank: Int | None = None
) -> tuple[Rank, ...]:
    """Return the rank asked for, or else those of which one holds most."""
    place = checked_layout(tensor_parallel, layout)
    return place.first_ranks(spec) if rank is None else (place.rank(rank, spec),)


def checked_layout(tensor_parallel: Int, layout: Layout | None) -> Layout:
    """Return the layout that is asked for, as it is or as a degree of tensor parallelism."""
    degree = whole_number(tensor_parallel, "tensor_parallel", minimum=1)
    if layout is None:
        return ONE_DEVICE if degree == 1 else Layout(tensor_parallel=degree)
    if not isinstance(layout, Layout):
        raise InvalidValueError("layout", layout, "must be a Layout")
    if degree != 1:
        rule = "must not be given beside a layout, which has its own"
        raise InvalidValueError("tensor_parallel", degree, rule)
    return layout


def _check_blocks(
    tensor: StoredTensor, format: Format, rows: int, columns: int, rank: Rank
) -> None:
    """Refuse, as engines do, a share that cuts through the blocks that have one scale."""
    _, height, width = tensor.extents(WHOLE)
    for whole, held, name in ((height, rows, "rows"), (width, columns, "columns")):
        if held == whole:
            continue
        for extra in format.extras:
            block = extra.rows if name == "rows" else extra.columns
            if block is not None and held % block:
                rule = (
                    f"must leave whole blocks of {block} {name}: a rank would hold {held} of "
                    f"{tensor.path[-1]} in {format.name}, which {rank.layout.engine} refuses"
                )
                raise InvalidValueError("tensor_parallel", rank.split(tensor).ranks, rule)


class Weights:
    """The weights on those ranks of a layout that differ from `rank` in nothing but their stage."""

    __slots__ = ("_counted", "_kept", "_once", "_spec", "_storage", "_varied")

    def __init__(self, spec: ModelSpec, storage: Scheme, rank: Rank) -> None:
        self._spec, self._storage = spec, storage
        #: Each tensor and its format; `None` where that depends on the layer.
        self._kept: list[tuple[StoredTensor, Format | None]] = []
        #: Tensors whose format depends on the layer, with one layer's bytes in each format.
        self._varied: list[tuple[StoredTensor, dict[str, int]]] = []
        #: Bytes of one layer by label, and of what is stored once by the places that use it.
        self._counted: dict[tuple[Place, ...], int] = {}
        self._once: dict[tuple[Place, ...], int] = {}
        uniform, engine = storage.uniform, rank.layout.engine
        for tensor in spec.ledger.tensors:
            split, format = rank.split(tensor), uniform
            if format is None:
                kinds = storage.formats_of(tensor)
                if tensor.times and len(kinds) > 1:
                    matrices, rows, columns = tensor.extents(split)
                    each = {
                        kind.name: kind.bytes(rows=rows, columns=columns, matrices=matrices)
                        for kind, _ in kinds
                    }
                    self._varied.append((tensor, each))
                    self._kept.append((tensor, None))
                    continue
                format = kinds[0][0]
            matrices, rows, columns = tensor.extents(split)
            if engine is not None and not format.is_plain:
                _check_blocks(tensor, format, rows, columns, rank)
            self._kept.append((tensor, format))
            sums = self._counted if tensor.times else self._once
            total = format.bytes(rows=rows, columns=columns, matrices=matrices)
            sums[tensor.places] = sums.get(tensor.places, 0) + total

    def total(self, stage: Stage) -> int:
        """Return the bytes of the weights on a stage."""
        total = sum([stage.count(places[0]) * each for places, each in self._counted.items()])
        total += sum([each for places, each in self._once.items() if stage.uses(places)])
        for tensor, each_kind in self._varied:
            for kind, layers in self._storage.formats_of(tensor, stage.numbers_of(tensor)):
                total += (
                    layers * prod([more for more, _ in tensor.times[1:]]) * each_kind[kind.name]
                )
        return total

    def breakdown(self, rank: Rank) -> Breakdown[Bytes]:
        """Return the weights on a rank, which differs from the first one in its stage at most."""
        stage, terms = rank.stage, []
        for tensor, format in self._kept:
            times = stage.times(tensor.places, tensor.times)
            if times is None:
                continue
            rows, columns = tensor.share(rank.split(tensor))
            if format is None:
                found = self._storage.stored(tensor, rows, columns, stage.numbers_of(tensor))
                terms += [Term(path, factors) for path, factors in found]
                continue
            if format.is_plain:
                terms.append(Term(tensor.path, rows + format.row_factors(columns) + times))
                continue
            *group, name = tensor.path
            terms += [
                Term((*group, name + suffix), factors + times)
                for suffix, factors in format.terms(rows, columns, matrices=tensor.stacked)
            ]
        title = f"Weights of {self._spec.name} in {self._storage.name}{rank.title}"
        return Breakdown(Bytes, title, terms)


class _Placed(NamedTuple):
    """The first rank of each stage, their weights, and the bytes of these."""

    ranks: tuple[Rank, ...]
    weights: Weights
    totals: tuple[int, ...]
    #: What the weights are in, whose identity is part of the key that this is kept under.
    storage: Format | Scheme


def _placed(
    spec: ModelSpec,
    weights: str | Format | Scheme,
    tensor_parallel: Int,
    layout: Layout | None,
) -> _Placed:
    """Return the weights on a layout; they are kept with the model."""
    storage = formats.scheme(weights, spec)
    place = checked_layout(tensor_parallel, layout)
    told_apart = storage.format if type(storage) is Uniform else storage
    key = ("weights", id(told_apart), place)
    found = spec.ledger.programs.get(key)
    if found is None:
        ranks = place.first_ranks(spec)
        held = Weights(spec, storage, ranks[0])
        totals = tuple(held.total(rank.stage) for rank in ranks)
        found = spec.ledger.keep(key, _Placed(ranks, held, totals, told_apart))
    return cast("_Placed", found)


@overload
def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context: Int,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes]: ...
@overload
def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context: IntArray,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes, IntArray]: ...
@overload
def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context: Int,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: IntArray,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes, IntArray]: ...
def kv_cache_bytes(
    spec: ModelSpec,
    *,
    context: Int | IntArray,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    policy: Literal["ideal", "transformers"] = "ideal",
) -> Breakdown[Bytes, Any]:
    r"""Return the bytes that `batch` requests of `context` tokens hold on one device.

    .. math:: \sum_{\text{caches}} \text{layers} \cdot \text{batch} \cdot
              \text{slots}(\text{context}) \cdot \text{heads}_r \cdot \text{head_dim} \cdot
              \text{element bytes}

    `context` and `batch` take an integer or an integer array. `kv` is the format of keys and
    values and of the latents that stand for them, or ``"fp8-ds-mla"``, as vLLM and SGLang pack
    latents for sparse attention: the rotated part stays in bfloat16. `index` is the format of a
    sparse indexer's keys (by default `kv`'s; engines take ``"fp8-group128"``), `state` that of
    recurrent states and of the inputs that convolutions keep, or ``{"state": ..., "conv": ...}``
    where these differ. A windowed layer holds at most its window. `rank` is the device; by default
    it is the one that holds most, for each element of an array by itself.

    `policy` is ``"ideal"``, what a serving engine needs to hold, or ``"transformers"``, what the
    caches of transformers 5 hold: a windowed layer one slot less, a convolution all inputs of its
    kernel, and some models more or wider layers than they need.

    >>> from llmcalc import ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> print(memory.kv_cache_bytes(llama, context=1024, kv="bf16").explain())
    KV cache per request
      k  8 kv_heads x 128 head_dim x 1024 tokens x 32 layers x 2 bytes = 67 108 864 B
      v  8 kv_heads x 128 head_dim x 1024 tokens x 32 layers x 2 bytes = 67 108 864 B
      total 134 217 728 B (0.125 GiB)
    """
    elements = cache_formats(kv, state, index)
    ranks = chosen_ranks(spec, tensor_parallel, layout, rank)
    choice(policy, "policy", ("ideal", "transformers"))
    held = _held_in_transformers if policy == "transformers" else _held

    def fold(context: Any, batch: Any) -> Breakdown[Bytes, Any]:
        return _cache_bytes(spec, context, batch, elements, ranks, held=held)

    return evaluate(fold, _total, context=context, batch=batch)


def cache_formats(
    kv: str | Format, state: StateFormat, index: str | Format | None
) -> dict[str, Format]:
    """Give the format of every cache role, and of the part of latents that is rotated."""
    packed = _PACKED.get(kv) if type(kv) is str else None
    if packed is None:
        keys = formats.get(kv, "kv")
        held = dict.fromkeys(("kv", "latent", "rotated", "index"), keys)
    else:
        held = {role: formats.get(name) for role, name in packed.items()}
    if index is not None:
        held["index"] = formats.get(index, "index")
    if isinstance(state, Mapping):
        if set(state) != {"state", "conv"}:
            raise InvalidValueError(
                "state", dict(state), "must be a format, or have one for each of state, conv"
            )
        recurrent, inputs = (formats.get(state[role], "state") for role in ("state", "conv"))
    else:
        recurrent = inputs = formats.get(state, "state")
    return {**held, "state": recurrent, "conv": inputs}


#: Layouts of latents and index keys that are no one format. fp8-ds-mla: 512 values in fp8 with four
#: float32 scales, the rotated part in bfloat16, and index keys with a scale for 128. Sources: vLLM,
#: ``kv_cache_interface.py`` (`MLAAttentionSpec`: 656 bytes a token) and `DeepseekV32IndexerCache`
#: (132 bytes); SGLang, ``memory_pool.py``, `NSATokenToKVPool`.
_PACKED: Final[Mapping[str, Mapping[str, str]]] = {
    "fp8-ds-mla": {"latent": "fp8-group128", "rotated": "bf16", "index": "fp8-group128"},
}


def cache_format(elements: Mapping[str, Format], cache: Cache) -> Format:
    """Return the format that a cache is in, of those that `cache_formats` gives."""
    rotated = cache.role == "latent" and cache.name == "rope"
    found = elements.get("rotated" if rotated else cache.role)
    if found is None:
        rule = f"is a layout of latents, and {cache.name} is a cache of keys or values"
        raise InvalidValueError("kv", next(iter(_PACKED)), rule)
    return found


def _cache_bytes(
    spec: ModelSpec,
    context: Any,
    batch: Any,
    elements: Mapping[str, Format],
    ranks: tuple[Rank, ...],
    *,
    held: HeldSlots | None = None,
) -> Breakdown[Bytes, Any]:
    """Return what the rank holds, or of several the one that holds most, element by element."""
    pieces = cache_pieces(spec, context, elements, ranks[0], held)
    return held_bytes(pieces, batch, ranks)


def held_bytes(
    pieces: list[_CachePiece], batch: Any, ranks: tuple[Rank, ...]
) -> Breakdown[Bytes, Any]:
    """Return what a batch holds in these pieces, on that of the ranks which holds most."""
    batch = ranks[0].requests(batch)
    one = type(batch) is int and batch == 1
    requests: tuple[Factor, ...] = () if one else ((batch, "requests"),)
    counts = [[rank.stage.count(entry.place) for entry, _, _ in pieces] for rank in ranks]
    most: list[Any] = counts[0] if len(ranks) == 1 else _most(pieces, counts)
    terms = [
        Term(entry.name, (*shape, (layers, "layers"), *entry.times[1:], size, *requests))
        if entry.times
        else Term(entry.name, (*shape, size, *requests))
        for (entry, shape, size), layers in zip(pieces, most, strict=True)
        if is_array(layers) or layers
    ]
    title = "KV cache per request" if one else "KV cache"
    return Breakdown(Bytes, f"{title}{ranks[0].title if len(ranks) == 1 else ''}", terms)


#: A cache, the factors of what one layer holds in it without the element's bytes, and these.
_CachePiece: TypeAlias = tuple[Entry, tuple[Factor, ...], Factor]


def cache_pieces(
    spec: ModelSpec,
    context: Any,
    elements: Mapping[str, Format],
    rank: Rank,
    held: HeldSlots | None = None,
) -> list[_CachePiece]:
    """Give what one layer of each kind holds of one request on a rank."""
    split = rank.attention
    pieces = []
    for entry, cache in spec.ledger.caches:
        for shape, slots in (held or _held)(cache, context):
            *outer, inner = shape
            inside = stored(factors(((inner,),), split), cache_format(elements, cache))
            outside = factors((tuple(outer),), split)
            pieces.append((entry, (*outside, *inside[:-1], rank.slots(cache, *slots)), inside[-1]))
    return pieces


def slot_widths(
    spec: ModelSpec, elements: Mapping[str, Format], rank: Rank
) -> Iterator[tuple[Entry, Cache, int]]:
    """Give the bytes of one slot of each cache, in one layer of a rank."""
    pieces = cache_pieces(spec, 1, elements, rank)
    for (entry, cache), (_, shape, size) in zip(spec.ledger.caches, pieces, strict=True):
        yield entry, cache, prod([factor for factor, _ in shape[:-1]]) * size[0]


def _piece_values(pieces: list[_CachePiece]) -> list[Any]:
    """Return the bytes of one layer of each piece."""
    values = []
    for entry, shape, (size, _) in pieces:
        value = size
        for factor, _ in (*shape, *entry.times[1:]):
            value = value * factor
        values.append(value)
    return values


def _most(pieces: list[_CachePiece], counts: list[list[int]]) -> list[Any]:
    """Return the counts of the rank that holds most: arrays, where that depends on the element."""
    values = _piece_values(pieces)
    totals = [sum(n * v for n, v in zip(own, values, strict=True)) for own in counts]
    if not any(map(is_array, totals)):
        return counts[totals.index(max(totals))]
    import numpy as np

    best = np.argmax(np.stack(np.broadcast_arrays(*totals)), axis=0)
    return [np.asarray(own)[best] for own in zip(*counts, strict=True)]


def request_totals(pieces: list[_CachePiece], ranks: tuple[Rank, ...]) -> list[Any]:
    """Return the bytes that one request holds on each of the ranks."""
    sums: dict[Place, Any] = {}
    for (entry, _, _), value in zip(pieces, _piece_values(pieces), strict=True):
        sums[entry.place] = sums[entry.place] + value if entry.place in sums else value
    return [
        sum([rank.stage.count(place) * value for place, value in sums.items()]) for rank in ranks
    ]


#: A shape, and how many slots of it are held as a named factor.
Held: TypeAlias = tuple[Axes, tuple[Any, str]]

#: Gives what is held of a cache at a context.
HeldSlots: TypeAlias = Callable[[Cache, Any], Iterable[Held]]


def _held(cache: Cache, context: Any) -> Iterator[Held]:
    """Give what an engine holds."""
    yield cache.shape, (cache.span.slots(context), cache.span.slot_name)


def _held_in_transformers(cache: Cache, context: Any) -> Iterator[Held]:
    """Give what transformers holds: where nothing else is stated, a window's last slot is not."""
    if cache.in_transformers is not None:
        for shape, span in cache.in_transformers:
            yield shape, (span.slots(context), span.slot_name)
        return
    from llmcalc.eager import at_hand

    span = at_hand(cache.span)
    if isinstance(span, Window | Chunk):
        slots = smaller(context, span.size - 1)
        yield cache.shape, (slots, f"tokens (window {span.size} - 1)")
    else:
        yield cache.shape, (span.slots(context), span.slot_name)


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Fit(Described):
    """Whether a batch fits on one device, and the working. ``bool(fit)`` is ``fit.fits``.

    All figures are bytes on the device that is the tightest: number `rank` of the layout.
    `cache_bytes` is of one request; the device holds that of `requests` of the batch.
    """

    device_memory: int
    cache_bytes: Breakdown[Bytes]
    batch: int
    context: int
    layout: Layout = ONE_DEVICE
    rank: int = 0
    #: Weights and one request's cache on the first rank of each stage, where there are several.
    stages: tuple[tuple[int, int], ...] = attrs.field(default=(), repr=False)
    _held: Weights = attrs.field(repr=False, eq=False)
    _tightest: Rank = attrs.field(repr=False, eq=False)

    def _values(self) -> tuple[Any, ...]:
        return (*super()._values(), self.weight_bytes)

    def __bool__(self) -> bool:
        return self.fits

    @cached_property
    def weight_bytes(self) -> Breakdown[Bytes]:
        """The weights on the device."""
        return self._held.breakdown(self._tightest)

    @cached_property
    def needed_bytes(self) -> int:
        """What the weights and the whole batch need."""
        return self._weights + self.requests * self._request

    @property
    def requests(self) -> int:
        """How many requests of the batch the tightest device holds."""
        return -(-self.batch // self.layout.data_parallel)

    @property
    def fits(self) -> bool:
        """Whether what is needed is at most the device's memory."""
        return self.needed_bytes <= self.device_memory

    @property
    def left_bytes(self) -> int:
        """What is left when the batch is in, or 0."""
        return max(0, self.device_memory - self.needed_bytes)

    @property
    def short_bytes(self) -> int:
        """What is missing for the batch to fit, or 0."""
        return max(0, self.needed_bytes - self.device_memory)

    @property
    def max_batch_size(self) -> int | None:
        """The most such requests that fit on all devices; `None` where they hold nothing."""
        most = None
        for weights, request in self.stages or ((self._weights, self._request),):
            left = self.device_memory - weights
            if left < 0:
                return 0
            if request and (most is None or left // request < most):
                most = left // request
        return None if most is None else most * self.layout.data_parallel

    @cached_property
    def _weights(self) -> int:
        return self._held.total(self._tightest.stage)

    @cached_property
    def _request(self) -> int:
        return self.cache_bytes.total

    @property
    def reason(self) -> str:
        """One sentence: what fits or what does not, and by how much."""
        memory = format_quantity(self.device_memory, Bytes)
        if self.fits:
            return f"fits: {format_quantity(self.left_bytes, Bytes)} of {memory} are left"
        alone = self._weights > self.device_memory
        what = "the weights alone need" if alone else "weights and cache need"
        needed = self._weights if alone else self.needed_bytes
        return (
            f"does not fit: {what} {format_quantity(needed, Bytes)}, the device has {memory}; "
            f"short by {format_quantity(needed - self.device_memory, Bytes)}"
        )

    def explain(self) -> str:
        """Return the working: weights, cache of one request, and the division."""
        left = self.device_memory - self._weights
        most = self.max_batch_size
        if left < 0:
            batch = "max batch size = 0: the weights do not fit"
        elif most is None:
            batch = "max batch size: not limited by memory (requests hold nothing)"
        elif self.layout.devices > self.layout.tensor_parallel:
            replicas = self.layout.data_parallel
            batch = f"max batch size of all {self.layout.devices} devices = {most}"
            if replicas > 1:
                batch += f": {most // replicas} for each of {replicas} replicas"
        else:
            batch = (
                f"max batch size = floor({format_integer(left)} B left / "
                f"{format_integer(self._request)} B per request) "
                f"= {self.max_batch_size}"
            )
        return "\n".join(
            (self.weight_bytes.explain(), self.cache_bytes.explain(), batch, self.reason)
        )


def fit(
    spec: ModelSpec,
    *,
    device_memory: Int,
    context: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> Fit:
    """Return whether `batch` requests of `context` tokens fit on all devices, with the working.

    `device_memory` is in bytes, per device; `batch` is that of the whole layout. A batch that does
    not fit is an answer, not an error: `Fit.reason` says what is missing and `Fit.short_bytes`
    how much.

    >>> from llmcalc import GiB, ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> answer = memory.fit(
    ...     llama, device_memory=80 * GiB, context=1024, batch=8, weights="bf16", kv="bf16"
    ... )
    >>> answer.fits, answer.max_batch_size
    (True, 520)
    >>> memory.fit(
    ...     llama, device_memory=8 * GiB, context=1024, weights="bf16", kv="bf16"
    ... ).short_bytes
    7604805632
    """
    elements = cache_formats(kv, state, index)
    ranks, held, totals, _ = _placed(spec, weights, tensor_parallel, layout)
    tokens = whole_number(context, "context")
    number = whole_number(batch, "batch")
    stages: tuple[tuple[int, int], ...] = ()
    pieces = cache_pieces(spec, tokens, elements, ranks[0])
    rank = ranks[0]
    if len(ranks) > 1:
        stages = tuple(zip(totals, request_totals(pieces, ranks), strict=True))
        needed = [weights + rank.requests(number) * request for weights, request in stages]
        rank = ranks[needed.index(max(needed))]
    return Fit(
        device_memory=whole_number(device_memory, "device_memory"),
        held=held,
        tightest=rank,
        cache_bytes=held_bytes(pieces, 1, (rank,)),
        batch=number,
        context=tokens,
        layout=rank.layout,
        rank=rank.number,
        stages=stages,
    )


@overload
def needed_bytes(
    spec: ModelSpec,
    *,
    context: Int,
    batch: Int = 1,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> int: ...
@overload
def needed_bytes(
    spec: ModelSpec,
    *,
    context: IntArray,
    batch: Int | IntArray = 1,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> IntArray: ...
@overload
def needed_bytes(
    spec: ModelSpec,
    *,
    context: Int,
    batch: IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> IntArray: ...
def needed_bytes(
    spec: ModelSpec,
    *,
    context: Int | IntArray,
    batch: Int | IntArray = 1,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> int | IntArray:
    r"""Return the bytes that weights and requests take on the device that needs most.

    .. math:: \max_{\text{ranks}} \left( \text{weights} + b \cdot \text{cache per request} \right)

    `context` is in tokens a request; `batch` counts the requests of the whole layout. Both take an
    integer or an integer array. `fit` gives the same number with its working.

    >>> from llmcalc import ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> memory.needed_bytes(llama, context=1024, batch=8, weights="bf16", kv="bf16")
    17134264320
    """
    ranks, _, totals, _ = _placed(spec, weights, tensor_parallel, layout)
    elements = cache_formats(kv, state, index)

    def fold(context: Any, batch: Any) -> list[Any]:
        held = request_totals(cache_pieces(spec, context, elements, ranks[0]), ranks)
        requests = ranks[0].requests(batch)
        return [own + requests * one for own, one in zip(totals, held, strict=True)]

    stages: list[Any] = evaluate(fold, max, context=context, batch=batch)
    most, *others = stages
    for needed in others:
        most = larger(most, needed)
    return cast("int | IntArray", most)


def usable_bytes(device_memory: Int, *, share: float = 1.0, reserved_bytes: Int = 0) -> int:
    """Return what of a device's memory a `share` leaves, less `reserved_bytes`, but at least 0.

    The share is a decimal number, above 0 and at most 1: 0.9 means nine tenths, not the nearest
    binary fraction.

    >>> from llmcalc import GiB, memory
    >>> memory.usable_bytes(80 * GiB, share=0.9, reserved_bytes=2 * GiB) / GiB
    70.0
    """
    part: object = share
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1:
        raise InvalidValueError("share", part, "must be a number above 0 and at most 1")
    reserved = whole_number(reserved_bytes, "reserved_bytes")
    size = whole_number(device_memory, "device_memory")
    from fractions import Fraction

    return max(0, int(size * Fraction(repr(float(part)))) - reserved)


@overload
def max_batch_size(
    spec: ModelSpec,
    *,
    device_memory: Int,
    context: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> int | None: ...
@overload
def max_batch_size(
    spec: ModelSpec,
    *,
    device_memory: IntArray,
    context: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> IntArray: ...
@overload
def max_batch_size(
    spec: ModelSpec,
    *,
    device_memory: Int,
    context: IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> IntArray: ...
def max_batch_size(
    spec: ModelSpec,
    *,
    device_memory: Int | IntArray,
    context: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> int | IntArray | None:
    r"""Return the most requests of `context` tokens that fit beside the weights.

    .. math:: b = \left\lfloor \frac{\text{device memory} - \text{weights}}
                                    {\text{cache per request}} \right\rfloor

    With a layout it is that of the tightest device, times the data-parallel replicas. 0 where not
    even one fits (`fit` says why), `None` where requests hold nothing, so that memory
    never binds. Array arguments give an array; where one of its elements is `None` it is an
    object array.

    >>> from llmcalc import GiB, ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> memory.max_batch_size(
    ...     llama, device_memory=80 * GiB, context=4096, weights="bf16", kv="bf16"
    ... )
    130
    """
    if is_array(device_memory) or is_array(context):
        return _max_batch_sizes(
            spec,
            device_memory,
            context,
            weights=weights,
            kv=kv,
            state=state,
            index=index,
            tensor_parallel=tensor_parallel,
            layout=layout,
        )
    return fit(
        spec,
        device_memory=device_memory,  # type: ignore[arg-type]  # arrays went the other way
        context=context,  # type: ignore[arg-type]
        weights=weights,
        kv=kv,
        state=state,
        index=index,
        tensor_parallel=tensor_parallel,
        layout=layout,
    ).max_batch_size


def _max_batch_sizes(
    spec: ModelSpec,
    device_memory: Int | IntArray,
    context: Int | IntArray,
    *,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat,
    index: str | Format | None,
    tensor_parallel: Int,
    layout: Layout | None,
) -> IntArray:
    import numpy as np

    ranks, _, totals, _ = _placed(spec, weights, tensor_parallel, layout)
    elements = cache_formats(kv, state, index)

    def fold(device_memory: Any, context: Any) -> tuple[list[Any], list[Any]]:
        left = [device_memory - total for total in totals]
        return left, request_totals(cache_pieces(spec, context, elements, ranks[0]), ranks)

    replicas = ranks[0].layout.data_parallel

    def bound(amounts: tuple[list[int], list[int]]) -> int:
        return max(*totals, *(replicas * left for left in amounts[0]), *amounts[1])

    amounts = evaluate(fold, bound, device_memory=device_memory, context=context)
    left, request = np.array(amounts[0]), np.array(amounts[1])
    most = np.maximum(left, 0) // np.maximum(request, 1)
    # A stage that holds nothing of a request does not limit their number.
    sizes: IntArray = np.where(request == 0, most.max(initial=0), most).min(axis=0) * replicas
    fits = (left >= 0).all(axis=0)
    sizes = np.where(fits, sizes, 0)
    unlimited = fits & (request == 0).all(axis=0)
    if unlimited.any():
        sizes = sizes.astype(np.object_)
        sizes[unlimited] = None
    return sizes


class ContextLimit(int):
    """A context length in tokens that says what limits it.

    `limited_by` is ``"memory"``, or ``"positions"`` where memory would hold more than the model's
    `max_positions`.

    >>> from llmcalc.memory import ContextLimit
    >>> limit = ContextLimit(8192, "positions")
    >>> limit + 0, limit.limited_by
    (8192, 'positions')
    """

    limited_by: Literal["memory", "positions"]

    def __new__(cls, tokens: int, limited_by: Literal["memory", "positions"]) -> Self:  # noqa: D102
        limit = super().__new__(cls, tokens)
        limit.limited_by = limited_by
        return limit

    def __getnewargs__(self) -> tuple[int, Literal["memory", "positions"]]:  # type: ignore[override]
        return int(self), self.limited_by


@overload
def max_context(
    spec: ModelSpec,
    *,
    device_memory: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> ContextLimit | None: ...
@overload
def max_context(
    spec: ModelSpec,
    *,
    device_memory: IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> IntArray: ...
@overload
def max_context(
    spec: ModelSpec,
    *,
    device_memory: Int,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: IntArray,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> IntArray: ...
def max_context(
    spec: ModelSpec,
    *,
    device_memory: Int | IntArray,
    weights: str | Format | Scheme,
    kv: str | Format,
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    batch: Int | IntArray = 1,
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
) -> ContextLimit | IntArray | None:
    """Return the longest context, in tokens, that each of `batch` requests can have.

    The answer is an integer whose `limited_by` says what limits it: ``"memory"``, or
    ``"positions"`` where it is capped at the model's `max_positions`. 0 where not even one token
    fits; `None` where neither binds. Array arguments give an array, without `limited_by`; where
    one of its elements is `None` it is an object array.

    >>> from llmcalc import GiB, ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256, max_positions=8192,
    ... )
    >>> limit = memory.max_context(
    ...     llama, device_memory=80 * GiB, batch=8, weights="bf16", kv="bf16"
    ... )
    >>> limit, limit.limited_by
    (8192, 'positions')
    >>> limit = memory.max_context(
    ...     llama, device_memory=80 * GiB, batch=80, weights="bf16", kv="bf16"
    ... )
    >>> limit, limit.limited_by
    (6660, 'memory')
    """
    elements = cache_formats(kv, state, index)
    ranks, _, totals, _ = _placed(spec, weights, tensor_parallel, layout)

    def longest(device_memory: int, batch: int) -> ContextLimit | None:
        def fits(tokens: int) -> bool:
            requests = request_totals(cache_pieces(spec, tokens, elements, ranks[0]), ranks)
            return all(
                total + ranks[0].requests(batch) * request <= device_memory
                for total, request in zip(totals, requests, strict=True)
            )

        return _longest_context(spec, batch, fits)

    return elementwise(longest, device_memory=device_memory, batch=batch)


def _longest_context(
    spec: ModelSpec, batch: int, fits: Callable[[int], bool]
) -> ContextLimit | None:
    """Return the largest context that fits, by bisection: the cache never shrinks as it grows."""
    if not fits(0):
        return ContextLimit(0, "memory")
    if spec.max_positions is not None and fits(spec.max_positions):
        return ContextLimit(spec.max_positions, "positions")
    most_slots = [cache.span.most_slots for _, cache in spec.ledger.caches]
    bounded = [slots for slots in most_slots if slots is not None]
    if not batch or len(bounded) == len(most_slots):
        too_many = max(bounded, default=0)
        if not batch or fits(too_many):
            return None
    else:
        too_many = 1
        while fits(too_many):
            too_many *= 2
    enough = 0
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if fits(middle):
            enough = middle
        else:
            too_many = middle
    return ContextLimit(enough, "memory")


def gqa_kv_bytes(
    *,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    context: int,
    batch: int,
    element_bytes: int,
) -> int:
    r"""Return the KV cache of grouped-query attention in every layer, in bytes.

    .. math:: 2 \cdot \text{layers} \cdot \text{kv heads} \cdot \text{head dim} \cdot
              \text{context} \cdot \text{batch} \cdot \text{element bytes}

    The 2 is for keys and values. Multi-head attention has as many KV heads as query heads,
    multi-query attention one. Source: Pope et al., "Efficiently Scaling Transformer Inference"
    (2022), section 3.3.

    >>> from llmcalc import memory
    >>> memory.gqa_kv_bytes(
    ...     num_layers=32, num_kv_heads=8, head_dim=128, context=1024, batch=1, element_bytes=2
    ... )
    134217728
    """
    product = 2
    for field, value in (
        ("num_layers", num_layers),
        ("num_kv_heads", num_kv_heads),
        ("head_dim", head_dim),
        ("context", context),
        ("batch", batch),
        ("element_bytes", element_bytes),
    ):
        product *= whole_number(value, field)
    return product


def _total(breakdown: Breakdown[Any, int]) -> int:
    return breakdown.total


def stored(columns: tuple[Factor, ...], storage: Format) -> tuple[Factor, ...]:
    """Give the factors whose product is the bytes of one cache slot; the last one is the bytes."""
    if storage.is_plain:
        return storage.row_factors(columns)
    return ((storage.slot_bytes(prod(size for size, _ in columns)), "bytes"),)
