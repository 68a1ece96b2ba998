"""What weights take once an engine has loaded them.

* `loaded_weights`: the weights, and what engines add to them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from llmcalc import formats
from llmcalc.boundary import whole_number
from llmcalc.breakdown import Breakdown, Term
from llmcalc.engines.registry import DEFAULT, with_pool
from llmcalc.folds.owners import Owner
from llmcalc.folds.pieces import Piece
from llmcalc.folds.storage import Formats, weights_held
from llmcalc.layouts import Layout, Rank, chosen
from llmcalc.memory.placed import owner_of, placed
from llmcalc.spec.axes import Axis, extent
from llmcalc.spec.items import Linear, Mix
from llmcalc.spec.kept import kept
from llmcalc.spec.ledger import StoredTensor
from llmcalc.spec.model import Ledger, ModelSpec, check_spec
from llmcalc.units import Bytes, MiB

if TYPE_CHECKING:
    from llmcalc.engines import Engine
    from llmcalc.engines.engine import Mxfp4Kernels
    from llmcalc.formats import Format, Scheme

__all__ = ["loaded_weights"]


def loaded_weights(
    spec: ModelSpec,
    *,
    weights: str | Format | Scheme,
    dtype: str | Format = "bf16",
    engine: str | Engine = DEFAULT,
    tensor_parallel: int = 1,
    layout: Layout | None = None,
    rank: int | None = None,
) -> Breakdown[Bytes]:
    """Return what the weights take on one device once an engine has loaded them.

    Beside the weights themselves (`llmcalc.memory.weight_bytes`) these are rows that pad the
    vocabulary, the tables of rotary positions in the model's `dtype`, the copies of latent
    attention's expansion that its absorbed form reads, what kernels for mxfp4 experts hold beyond
    the file's tensors, and what the framework's allocator rounds up: it takes segments of 2 MiB,
    and what is left of one is lost where that is at most 1 MiB.

    >>> from llmcalc import load_model, serving
    >>> llama = load_model("meta-llama/Llama-3.1-8B")
    >>> dict(serving.loaded_weights(llama, weights="bf16").by())
    {'weights': 16060522496, 'rotary tables': 33554432}

    Source: vLLM's rotary_embedding (one table of cosines and sines for each kind of position),
    vocab_parallel_embedding and mla/common; PyTorch, ``c10/cuda/CUDACachingAllocator.cpp``.
    """
    check_spec(spec)
    known, place = with_pool(engine), chosen(tensor_parallel, layout)
    number = None if rank is None else whole_number(rank, "rank")
    return kept(spec.ledger, _loaded, known, place, number, weights, dtype)


def loaded_on_stages(
    spec: ModelSpec,
    weights: str | Format | Scheme,
    dtype: str | Format,
    engine: Engine,
    layout: Layout,
) -> tuple[Breakdown[Bytes], ...]:
    """Return the loaded weights on the first rank of each stage."""
    return kept(spec.ledger, _loaded_on_stages, engine, layout, weights, dtype)


def _loaded_on_stages(
    ledger: Ledger,
    engine: Engine,
    layout: Layout,
    weights: str | Format | Scheme,
    dtype: str | Format,
) -> tuple[Breakdown[Bytes], ...]:
    return tuple(
        kept(ledger, _loaded, engine, layout, rank, weights, dtype)
        for rank in first_rank_numbers(layout)
    )


def first_rank_numbers(layout: Layout) -> range:
    """Return the numbers of the first rank of each stage."""
    return range(0, layout.pipeline_parallel * layout.tensor_parallel, layout.tensor_parallel)


def _loaded(  # noqa: PLR0917  # what is kept has positional arguments
    ledger: Ledger,
    engine: Engine,
    layout: Layout,
    number: int | None,
    weights: str | Format | Scheme,
    dtype: str | Format,
) -> Breakdown[Bytes]:
    element = formats.get(dtype, "dtype")
    pieces = _stored(ledger, layout, number, weights)
    title = f"Loaded weights of {ledger.spec.name}"
    return Breakdown(Bytes, title, list(_terms(ledger, pieces, element, engine, layout)))


def _stored(
    ledger: Ledger, layout: Layout, number: int | None, weights: str | Format | Scheme
) -> tuple[Piece, ...]:
    """Return the weights of a rank, or of the one that holds most, as they are stored."""
    if number is None:
        held = placed(ledger.spec, Formats(weights, "bf16"), 1, layout)
        rank: Rank = held.ranks[held.totals.index(max(held.totals))]
        return held.weights.on(rank.stage).pieces
    scheme = formats.scheme(weights, ledger.spec)
    rank = layout.rank(number, ledger.spec)
    owner: Owner = owner_of(layout, rank)
    return kept(ledger, weights_held, owner, scheme).on(rank.stage).pieces


def _terms(
    ledger: Ledger,
    pieces: tuple[Piece, ...],
    element: Format,
    engine: Engine,
    layout: Layout,
) -> Iterator[Term[int]]:
    """Give what weights take, and what engines add to them."""
    for piece in pieces:
        for path, factors in piece.terms(()):
            yield Term(("weights", *path), factors)
    yield from _vocabulary_padding(ledger, pieces, engine.vocab_multiple, layout.tensor_parallel)
    if engine.pool.holds_rotary_tables:
        yield from _rotary_tables(ledger, element)
    if not engine.pool.loads_as_allocated:
        return
    yield from _absorbed_copies(pieces, element)
    kernels = list(_kernels(pieces, engine.mxfp4_kernels))
    for kernel in kernels:
        held = (sum(kernel.tensors) - kernel.stored, "bytes")
        times = (kernel.experts, "experts"), (kernel.layers, "layers")
        yield Term(("kernels", kernel.label, kernel.name), (held, *times))
    yield from _rounded_up(pieces, kernels)


def _vocabulary_padding(
    ledger: Ledger, pieces: tuple[Piece, ...], multiple: int, degree: int
) -> Iterator[Term[int]]:
    """Give the rows that fill the vocabulary up to a multiple."""
    rows = -(-ledger.spec.embedding.vocab.size // multiple) * multiple
    padded = -(-rows // degree)
    for piece in pieces:
        tensor, words = piece.tensor, piece.words
        axis = None if tensor is None else _vocabulary(tensor)
        if axis is None:
            continue
        held = extent(((axis,),), words.split)
        more = padded - held
        if more > 0:
            row = piece.size // held
            yield Term(("vocabulary padding", *piece.path), ((more, "rows"), (row, "bytes")))


def _vocabulary(tensor: StoredTensor) -> Axis | None:
    """Return the axis of the vocabulary, if the tensor has it."""
    for side in (tensor.rows, tensor.columns):
        for piece in side:
            for axis in piece:
                if axis.name == "vocab":
                    return axis
    return None


def _rotary_tables(ledger: Ledger, element: Format) -> Iterator[Term[int]]:
    """Give a table of cosines and sines for each way in which positions are turned."""
    positions = ledger.spec.max_positions
    if positions is None:
        return
    found = [entry.item.turned for entry in ledger.entries if isinstance(entry.item, Mix)]
    tables = dict.fromkeys(turned for turned in found if turned is not None)
    for number, turned in enumerate(tables, 1):
        if turned.width:
            name = f"table {number}" if len(tables) > 1 else "table"
            width = element.bytes(rows=1, columns=turned.width)
            factors = ((positions, "positions"), (width, "bytes"))
            yield Term(("rotary tables", "", name), factors)


def _absorbed_copies(pieces: tuple[Piece, ...], element: Format) -> Iterator[Term[int]]:
    """Give the copies of what expands latents, which attention to latents multiplies with."""
    width = element.bytes(rows=1, columns=1)
    for piece in pieces:
        tensor = piece.tensor
        if tensor is None or not tensor.is_matrix or not isinstance(tensor.item, Linear):
            continue
        if tensor.item.tokens == "latent":
            factors = ((piece.elements, "elements"), (width, "bytes"))
            yield Term(("absorbed copies", *piece.path[1:]), factors)


class _Kernel(NamedTuple):
    """What kernels make of the mxfp4 experts of one kind of layer, or of one of its matrices.

    `stored` are the bytes of the tensors of the file that `tensors` stand in for, of one expert and
    layer; `places` are those of their pieces.
    """

    label: str
    name: str
    experts: int
    layers: int
    stored: int
    tensors: tuple[int, ...]
    places: tuple[int, ...]


#: What the matrices of the kernels are called: the first ones of an expert are one.
_MATRICES: Final = {"made": "gate and up", "read": "down"}

#: Rows and groups of the scales that triton_kernels rounds up to (``HopperMXScaleLayout``), and the
#: elements that have one scale.
_SCALE_ROWS, _SCALE_GROUPS, _SCALED = 256, 2, 32


def _kernels(pieces: tuple[Piece, ...], rules: Mxfp4Kernels | None) -> Iterator[_Kernel]:
    """Give the matrices of mxfp4 experts as kernels hold them: values, scales twice, wide biases.

    Gate and up are one matrix. The scales of the file are kept beside those of the kernels, and
    biases are in fp32. Source: vLLM, ``convert_to_mxfp4_moe_kernel_format``; triton_kernels,
    ``HopperMXValueLayout``, ``HopperMXScaleLayout``.
    """
    if rules is None:
        return
    kinds: dict[tuple[str, Literal["made", "read"]], list[tuple[int, Piece, StoredTensor]]] = {}
    for place, piece in enumerate(pieces):
        tensor = piece.tensor
        if tensor is None or not isinstance(tensor.item, Linear) or not tensor.item.routed:
            continue
        if tensor.item.inner is not None:
            key = tensor.label, tensor.item.inner
            kinds.setdefault(key, []).append((place, piece, tensor))
    for (label, inner), parts in kinds.items():
        weights = [(piece, tensor) for _, piece, tensor in parts if _has_kernels(piece, tensor)]
        if not weights:
            continue
        sizes = [tensor.extents(piece.words.split) for piece, tensor in weights]
        experts, rows, columns = sizes[0]
        columns = _up(columns, _SCALED)
        if inner == "read":  # the contracted axis is the inner one
            columns = _up(columns, rules.inner_multiple)
        else:
            rows = sum(_up(width, rules.inner_multiple) for _, width, _ in sizes)
        values = _up(rows, rules.row_multiple) * _up(columns, rules.contracted_multiple) // 2
        scales = _up(rows, _SCALE_ROWS) * _up(columns // _SCALED, _SCALE_GROUPS)
        biases = 4 * rows if len(parts) > len(weights) else 0
        layers = weights[0][0].layers
        yield _Kernel(
            label=label,
            name=_MATRICES[inner],
            experts=experts,
            layers=layers,
            stored=sum(piece.size for _, piece, _ in parts) // (experts * layers),
            tensors=(values, scales, rows * columns // _SCALED, biases),
            places=tuple(place for place, _, _ in parts),
        )


def _has_kernels(piece: Piece, tensor: StoredTensor) -> bool:
    """Whether it is a matrix of experts in a format that has kernels of its own."""
    return tensor.is_matrix and piece.format is not None and _is_mxfp4(piece.format)


def _is_mxfp4(format: Format) -> bool:
    """Whether the kernels of a format are those that `Mxfp4Kernels` rounds up for."""
    return format.expert_kernels == "mxfp4"


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _rounded_up(pieces: tuple[Piece, ...], kernels: list[_Kernel]) -> Iterator[Term[int]]:
    """Give what is lost of the allocator's segments; it matters for tensors of 10 MiB or more."""
    sizes: dict[tuple[Hashable, ...], tuple[tuple[str, ...], int, int]] = {}
    replaced = {place for kernel in kernels for place in kernel.places}
    key: tuple[Hashable, ...]
    for kernel in kernels:
        for number, each in enumerate(kernel.tensors):
            name: tuple[str, ...] = kernel.label, f"{kernel.name} {number}"
            key = "experts", kernel.label, kernel.name, number
            sizes[key] = name, kernel.experts * each, kernel.layers
    for place, piece in enumerate(pieces):
        if place in replaced:
            continue
        merged = _merged(piece)
        for number, (path, factors) in enumerate(piece.terms((), 1)):
            key, name = (place, number), path[1:]
            if merged is not None and not number:
                key, name = (*piece.operation[:2], merged), (path[1], merged)
            _, begun, _ = sizes.get(key, (name, 0, 0))
            sizes[key] = name, begun + Term[int](path, factors).value, piece.layers
    for name, size, layers in sizes.values():
        lost = -size % (2 * MiB)
        if size >= 10 * MiB and 0 < lost <= MiB:
            yield Term(("allocator rounding", *name), ((lost, "bytes"), (layers, "tensors")))


def _merged(piece: Piece) -> str | None:
    """Return the matrix that engines store this one in with others, if they do."""
    tensor = piece.tensor
    if tensor is None or not tensor.is_matrix or piece.numbers is not None:
        return None
    if not isinstance(tensor.item, Linear) or tensor.item.merged is None:
        return None
    return tensor.item.merged
