"""Conventions: which tokens pass, which pairs and slots count, what is read.

* `Conventions`: those of a step, as one value that products, traffic and exchanges share.
* `conventions`: the arguments of a call, checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from llmcalc.boundary import choice, flag_argument, tile_size
from llmcalc.folds import transformers
from llmcalc.folds.counts import EXPERT_READS, TOKENS, Count, ExpertReads
from llmcalc.spec.axes import Axis
from llmcalc.spec.items import Cache, Conv, Linear, Mix
from llmcalc.spec.spans import Span

if TYPE_CHECKING:
    from llmcalc.boundary import Int

__all__ = ["Conventions", "conventions"]


class Conventions(NamedTuple):
    """What a step computes and reads, where that is a matter of convention.

    With `all_logits` logits are computed for all tokens, with `absorbed` latent attention reads
    latents as they are cached, with `transformers` items are computed as transformers computes
    them. `standard` attention writes its scores; with `tile` its keys are read again for every
    tile of so many tokens. `experts` says how many distinct experts are read.
    """

    causal: bool = True
    all_logits: bool = False
    absorbed: bool = False
    transformers: bool = False
    standard: bool = False
    experts: ExpertReads = "expected"
    tile: int | None = None

    @property
    def computed(self) -> tuple[bool, bool, bool, bool]:
        """Those that matter to what is computed: the first four."""
        return self[:4]

    def tokens(self, item: Linear, all_replicas: bool = False) -> Count:
        """Return the tokens that pass through a matrix."""
        if item.tokens in {"cached", "latent"} and not self.absorbed:
            span = transformers.at_hand(item.span) if self.transformers else item.span
            return Count("present", "tokens", span, all_replicas)
        return self.logits(all_replicas) if item.tokens == "logits" else self.new(all_replicas)

    def new(self, all_replicas: bool = False) -> Count:
        """Return the new tokens."""
        return Count("tokens", "tokens", None, True) if all_replicas else TOKENS

    def logits(self, all_replicas: bool = False) -> Count:
        """Return the tokens that give logits."""
        kind = "tokens" if self.all_logits else "logits"
        return Count(kind, "tokens", None, all_replicas)

    def pairs(self, item: Mix) -> Count:
        """Return the pairs of queries and keys that are computed."""
        if self.transformers:
            kind, span = transformers.pairs(item)
            return Count(kind, "pairs", span)
        return Count("pairs" if self.causal else "rectangle", "pairs", item.span)

    def widths(self, item: Mix) -> tuple[Axis, Axis]:
        """Return the widths of queries and keys, and of values, as attention reads them."""
        if self.absorbed and item.absorbed is not None:
            return item.absorbed
        return item.query_key, item.value

    def outputs(self, item: Conv) -> Count:
        """Return the outputs of a convolution."""
        return Count("outputs", "outputs", item) if self.transformers else TOKENS

    def active(self, item: Linear) -> int | None:
        """Return how many experts each token passes through."""
        return transformers.active(item) if self.transformers else item.active

    def attended(self, span: Span) -> Count:
        """Return the slots that attention reads: its keys again for every tile."""
        if self.tile is None or self.standard:
            return Count("fetched" if self.causal else "unmasked", span.slot_name, span)
        kind = "tiled" if self.causal else "unmasked tiled"
        return Count(kind, f"{span.slot_name}, by tiles of {self.tile}", (span, self.tile))

    def read(self, cache: Cache) -> Count:
        """Return the slots of a cache that are read."""
        # Where latents are expanded, a matrix product reads them, and attention its result.
        # A recurrence, a convolution and what compresses keys read their states once.
        expanded = cache.role == "latent" and not self.absorbed
        if expanded or cache.role in {"state", "conv"}:
            return Count("fetched", cache.span.slot_name, cache.span)
        return self.attended(cache.span)


def conventions(
    *,
    causal: bool = True,
    logits: str = "last",
    mla: str = "expanded",
    attention: str = "flash",
    experts: ExpertReads = "expected",
    query_tile: Int | None = None,
    convention: Literal["model", "transformers"] = "model",
) -> Conventions:
    """Return the conventions that the arguments of a call state, checked."""
    flag_argument(causal, "causal")
    choice(logits, "logits", ("last", "all"))
    choice(attention, "attention", ("flash", "standard"))
    choice(mla, "mla", ("expanded", "absorbed"))
    choice(experts, "experts", EXPERT_READS)
    choice(convention, "convention", ("model", "transformers"))
    return Conventions(
        causal=causal,
        all_logits=logits == "all",
        absorbed=mla == "absorbed",
        transformers=convention == "transformers",
        standard=attention == "standard",
        experts=experts,
        tile=tile_size(query_tile, "query_tile"),
    )
