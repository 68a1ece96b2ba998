"""Modules that predict further tokens: a model's own drafts for speculative decoding.

* `MultiToken`: modules after the last layer, each with layers of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs

from llmcalc.boundary import instance_of, one_of, size
from llmcalc.described import Described
from llmcalc.spec.axes import Axis
from llmcalc.spec.items import Item, Linear, Table
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import Beside, Layer
from llmcalc.spec.part import Group
from llmcalc.spec.parts import Norm

__all__ = ["MultiToken"]

#: The label of all entries.
_LABEL = "multi-token"


@attrs.frozen(kw_only=True, repr=False, eq=False)
class MultiToken(Described):
    """`count` modules, each of which predicts one token further from the last hidden state.

    A module normalises the embedding of the token before and the hidden state, joins both by a
    matrix, and passes the result through its `layers` and a norm before the head, which is the
    model's, as the embedding is. That last norm is one of ``"each"`` module, ``"one"`` of all, or
    ``"none"``. `beside` is what each module has besides.

    Source: DeepSeek-AI, "DeepSeek-V3 Technical Report" (2024), section 2.2.

    >>> from llmcalc.spec import Axis, Block, FeedForward, Layer, MultiToken, Norm
    >>> part = FeedForward(inner_dim=128, gated=True, activation="silu")
    >>> modules = MultiToken(
    ...     count=1, layers=(Layer(blocks=(Block(part=part),)),), norm=Norm(kind="rms")
    ... )
    >>> [entry.name[2] for entry in modules.entries(Axis("embed", 64))]
    ['embedding_norm.weight', 'hidden_norm.weight', 'join', 'gate', 'up', 'down', 'norm.weight']
    """

    count: int = attrs.field(validator=size)
    layers: tuple[Layer, ...]
    norm: Norm = attrs.field(validator=instance_of(Norm))
    last_norm: Literal["each", "one", "none"] = attrs.field(
        default="each", validator=one_of("each", "one", "none")
    )
    beside: tuple[Beside, ...] = ()

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit what the modules hold, without the embedding and the head of the model."""
        for name in ("embedding_norm", "hidden_norm"):
            yield from self._norm(name, embed, self.count)
        join = Linear(name="join", into=(Axis("sources", 2), embed), out=((embed,),))
        yield Entry(("other", _LABEL), self.count, join)
        times: dict[Layer, int] = {}
        for layer in self.layers:
            times[layer] = times.get(layer, 0) + self.count
        for layer, count in times.items():
            for block in layer.blocks:
                yield from block.entries(_LABEL, count, embed)
        if self.last_norm != "none":
            yield from self._norm("norm", embed, self.count if self.last_norm == "each" else 1)
        for extra in self.beside:
            for entry in extra.entries(embed):
                yield attrs.evolve(entry, path=(entry.path[0], _LABEL), count=self.count)

    def copies(self, embed: Axis, vocab: Axis) -> Iterator[Entry]:
        """Emit the copies of the model's token table and head that some checkpoints hold."""
        items: dict[Group, Item] = {
            "embeddings": Table(name="token", rows=vocab, row=(embed,)),
            "head": Linear(name="output", into=(embed,), out=((vocab,),), tokens="logits"),
        }
        for group, item in items.items():
            yield Entry((group, _LABEL), self.count, item)

    def _norm(self, name: str, embed: Axis, count: int) -> Iterator[Entry]:
        for item in self.norm.items(name, (embed,)):
            yield Entry(("norms", _LABEL), count, item)
