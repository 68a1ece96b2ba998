r"""The FLOPs of a whole model's step, as a fold over its ledger.

* `flops`: the matrix products of one step, item by item.
* `products`: that fold before the workload is known.

Conventions: one multiply-accumulate is two FLOPs. Matrix products and convolutions are counted, as
PyTorch's counter does, with causal pairs and logits for the last token unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, overload

from llmcalc.breakdown import Breakdown, Factor
from llmcalc.folds import transformers
from llmcalc.folds.breakdowns import largest
from llmcalc.folds.conventions import Conventions, conventions
from llmcalc.folds.counts import Count
from llmcalc.folds.owners import Owner, owners_of
from llmcalc.folds.pieces import Draft, Fold, Piece, Shape
from llmcalc.folds.workloads import Requests
from llmcalc.spec.axes import Axes, Axis
from llmcalc.spec.items import Conv, Linear, Mix, Product, Scan
from llmcalc.spec.kept import kept
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import Ledger, ModelSpec
from llmcalc.units import Flops

if TYPE_CHECKING:
    from llmcalc.boundary import Int, IntArray
    from llmcalc.layouts import Layout

__all__ = ["flops", "products"]

#: A multiply-accumulate is two operations.
_TWO: Final = (2, "FLOP")


@overload
def flops(  # type: ignore[overload-overlap]
    spec: ModelSpec,
    *,
    batch: Int,
    new: Int,
    past: Int,
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    mla: Literal["expanded", "absorbed"] = "expanded",
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
    convention: Literal["model", "transformers"] = "model",
) -> Breakdown[Flops]: ...
@overload
def flops(
    spec: ModelSpec,
    *,
    batch: Int | IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    mla: Literal["expanded", "absorbed"] = "expanded",
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
    convention: Literal["model", "transformers"] = "model",
) -> Breakdown[Flops, IntArray]: ...
def flops(
    spec: ModelSpec,
    *,
    batch: Int | IntArray,
    new: Int | IntArray,
    past: Int | IntArray,
    causal: bool = True,
    logits: Literal["last", "all"] = "last",
    mla: Literal["expanded", "absorbed"] = "expanded",
    tensor_parallel: Int = 1,
    layout: Layout | None = None,
    rank: Int | None = None,
    mixed_with: Sequence[Requests] = (),
    convention: Literal["model", "transformers"] = "model",
) -> Breakdown[Flops, Any]:
    r"""Return the FLOPs of the matrix products of one step, item by item.

    .. math:: \sum_{\text{linears}} 2 \cdot \text{tokens} \cdot \text{in} \cdot \text{out}
              + \sum_{\text{attention}} 2 H (d_{qk} + d_v) \cdot \text{pairs}

    `new` tokens follow `past` ones in each of `batch` requests: ``past=0`` is a prefill, ``new=1``
    a decode step, the rest a chunk. With `causal` a token attends the positions up to its own
    within the layer's span; without, all keys that the step has at hand, as a kernel computes
    that only masks scores, and as PyTorch's counter counts it. `logits` are computed for the
    ``"last"`` token or for ``"all"``. `mla` is the form of latent attention: ``"expanded"``
    computes keys and values from all latents again at every step, ``"absorbed"`` attends to the
    latents as they are cached. Lookups, norms, softmax, activations, rotary embedding and bias
    additions are not counted.

    With a `layout`, or with `tensor_parallel` for short, the figures are those of one device: of
    `rank`, or of the one that computes most (of the pipeline stages, the one that does so at the
    largest workload of the call). `batch` is that of the whole layout. Under
    expert parallelism all ranks get equally many tokens, and the first ranks the remainder.

    `mixed_with` are further requests of the same step, such as the chunk of a prompt that is
    computed together with decode steps.

    `convention` is ``"model"``, what the model's definition needs, or ``"transformers"``, what
    PyTorch's counter counts when transformers' own modules run without optional kernels: full
    squares (whatever `causal` says), padded convolutions, and recurrences as products of chunks.

    >>> from llmcalc import ModelSpec, roofline
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> roofline.flops(llama, batch=1, new=4096, past=0, causal=False, logits="all").total
    70274254897152
    >>> step = roofline.flops(llama, batch=1, new=1, past=1023)
    >>> print(step["head"].explain())
    FLOPs of llama-3-8b: head
      output  2 FLOP x 128256 vocab x 4096 embed x 1 tokens = 1 050 673 152 FLOP
      total 1 050 673 152 FLOP
    """
    how = conventions(causal=causal, logits=logits, mla=mla, convention=convention)
    folds = [
        (
            owner.title,
            products(spec.ledger, owner, how),
            owner.workload(batch, new, past, mixed_with),
        )
        for owner in owners_of(spec, tensor_parallel, layout, rank)
    ]
    return largest(Flops, f"FLOPs of {spec.name}", folds)


def products(ledger: Ledger, owner: Owner, how: Conventions) -> Fold:
    """Return the fold of the FLOPs that a device computes, before the workload is known."""
    return kept(ledger, _products, owner, *how.computed)


def _products(ledger: Ledger, owner: Owner, *computed: *tuple[bool, bool, bool, bool]) -> Fold:
    how = Conventions(*computed)
    if not owner.pipeline and owner.rank is not None:
        return products(ledger, owner.whole, how).on(owner.rank.stage)
    made = _Computed(owner, how)
    pieces: list[Piece] = []
    for entry in ledger.entries:
        if type(entry.item) in _COMPUTED:
            pieces += made.pieces(entry)
    return Fold(pieces)


#: The items that compute something.
_COMPUTED: Final = frozenset({Linear, Mix, Conv, Scan, Product})


class _Computed(NamedTuple):
    """What an owner computes of the items, under conventions."""

    owner: Owner
    how: Conventions

    def pieces(self, entry: Entry) -> list[Piece]:
        """Return what is computed of an item."""
        split = self.owner.split(entry)
        return [draft.piece(2 * draft.size(split), entry, self) for draft in self._drafts(entry)]

    def words(self, piece: Piece) -> Shape:
        """Return how a piece is printed."""
        entry = piece.entry
        draft = next(one for one in self._drafts(entry) if one.part == piece.part)
        path = (*entry.path, entry.item.name + draft.part)
        before = (_TWO, *draft.before)
        return Shape(path, before, draft.sides, self.owner.split(entry), draft.beside)

    def _drafts(self, entry: Entry) -> list[Draft]:
        item, how = entry.item, self.how
        if isinstance(item, Linear):
            return [self._linear(entry, item)]
        if isinstance(item, Mix):
            count, parts = how.pairs(item), (".scores", ".values")
            return [
                Draft("mixing", part, (), (((item.heads, width),),), count)
                for part, width in zip(parts, how.widths(item), strict=True)
            ]
        if isinstance(item, Conv):
            inputs: tuple[Factor, ...] = ((item.into * item.kernel, "inputs"),)
            return [Draft("product", "", (), ((item.channels,),), how.outputs(item), inputs)]
        if isinstance(item, Scan):
            return self._scan(item)
        if isinstance(item, Product):
            before, count = self._passed(entry, item.experts, item.active, how.new)
            return [Draft("product", "", before, ((item.axes,),), count)]
        return []

    def _linear(self, entry: Entry, item: Linear) -> Draft:
        sides: tuple[tuple[Axes, ...], ...] = (item.out, (item.into,))
        if item.experts is None:
            if item.blocks is not None:
                sides = (((item.blocks,),), *sides)
            count = self.how.tokens(item, self.owner.across_replicas(entry))
            return Draft("product", "", (), sides, count)
        before, count = self._passed(
            entry,
            item.experts,
            self.how.active(item),
            lambda everyone: self.how.tokens(item, everyone),
        )
        return Draft("product", "", before, sides, count)

    def _passed(
        self,
        entry: Entry,
        experts: Axis | None,
        active: int | None,
        tokens: Callable[[bool], Count],
    ) -> tuple[tuple[Factor, ...], Count]:
        """Return the experts that each token passes, and the tokens that pass.

        Of whole experts of its own, a rank has the tokens whose choices fall to them.
        """
        everyone = self.owner.across_replicas(entry)
        if experts is None or active is None:
            return (), tokens(everyone)
        own = self.owner.experts(entry, experts)
        if own is None:
            return ((active, "experts per token"),), tokens(everyone)
        of = (experts.size, active, *own)
        return (), Count("assigned", "tokens in experts", of, everyone)

    def _scan(self, item: Scan) -> list[Draft]:
        state = ((item.state,),)
        if not self.how.transformers or item.in_transformers is None:
            products: tuple[Factor, ...] = ((item.products, "products"),)
            return [Draft("product", "", products, state, self.how.new())]
        found = []
        for name, elements, eager in transformers.products(item):
            part, count = f".{name}", Count(name, "products", eager)
            if elements is None:
                found.append(Draft("product", part, (), state, count))
            else:
                found.append(Draft("product", part, ((elements, "elements"),), (), count))
        return found
