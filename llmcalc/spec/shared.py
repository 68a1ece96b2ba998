"""Transformer blocks whose weights several layers share.

* `SharedBlock`: attention and feed-forward that are stored once, and what each use adds.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from llmcalc.boundary import flag, instance_of, size
from llmcalc.spec.attention import Attention
from llmcalc.spec.axes import Axes, Axis
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.items import Item, Linear, Scale, Table
from llmcalc.spec.ledger import Entry
from llmcalc.spec.model import Residual
from llmcalc.spec.part import Group
from llmcalc.spec.parts import Norm

__all__ = ["SharedBlock"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class SharedBlock(Residual):
    """Attention and feed-forward whose weights are stored once under `key`, for all their uses.

    Without a `key` each use stores weights of its own.

    The attention reads `input_dim` elements: the hidden state beside the token embeddings. The
    result of the feed-forward passes through a matrix of each use and is added to what the next
    block reads. With `adapter_rank` each use also has a low-rank addition to gate and up, and
    with `attention_adapters` to queries, keys and values; `spare_adapters` more of them are
    stored with each use and not read.

    Source: Glorioso et al., "Zamba" (2024), section 3; "The Zamba2 Suite" (2024), section 2.

    >>> from llmcalc.spec import Attention, FeedForward, Norm, SharedBlock
    >>> block = SharedBlock(
    ...     key="shared", input_dim=128, norm=Norm(kind="rms"),
    ...     attention=Attention(query_heads=4, kv_heads=4, head_dim=32),
    ...     feed_forward=FeedForward(inner_dim=256, gated=True, activation="gelu"),
    ... )
    >>> [part.group for part in block.parts]
    ['attention', 'feed_forward']
    """

    key: str | None = attrs.field(validator=attrs.validators.optional(instance_of(str)))
    input_dim: int = attrs.field(validator=size)
    attention: Attention = attrs.field(validator=instance_of(Attention))
    feed_forward: FeedForward = attrs.field(validator=instance_of(FeedForward))
    norm: Norm = attrs.field(validator=instance_of(Norm))
    adapter_rank: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))
    attention_adapters: bool = attrs.field(default=False, validator=flag)
    spare_adapters: int = 0

    @property
    def parts(self) -> tuple[Attention, FeedForward]:
        """What the layers share."""
        return self.attention, self.feed_forward

    def entries(self, label: str, count: int, embed: Axis) -> Iterator[Entry]:
        """Emit the shared items, each stored once, and those of each use."""
        wide = Axis("hidden_and_embeddings", self.input_dim)
        norms: list[tuple[Group, str, Axis]] = [
            ("attention", "attention_norm", wide),
            ("feed_forward", "feed_forward_norm", embed),
        ]
        for group, name, axis in norms:
            for item in self.norm.items(name, (axis,)):
                yield Entry(("norms", label), count, self._stored_once(item, group))
        for part in self.parts:
            for item in part.items(embed):
                used: Item = item
                if isinstance(item, Linear) and item.role in {"q", "k", "v"}:
                    used = attrs.evolve(item, into=(wide,))
                yield Entry((part.group, label), count, self._stored_once(used, part.group))
        for group, item in self._adapters(embed, wide):
            yield Entry((group, label), count, item)
        out = Linear(name="shared_to_layer", into=(embed,), out=((embed,),))
        yield Entry(("other", label), count, out)

    def _stored_once(self, item: Item, group: Group) -> Item:
        if self.key is not None and isinstance(item, Linear | Scale):
            return attrs.evolve(item, storage=f"{self.key}.{group}.{item.name}")
        return item

    def _adapters(self, embed: Axis, wide: Axis) -> Iterator[tuple[Group, Item]]:
        if self.adapter_rank is None:
            return
        rank, inner = Axis("rank", self.adapter_rank), Axis("inner", self.feed_forward.inner_dim)
        pairs: list[tuple[Group, str | None, str, Axis, tuple[Axes, ...]]] = [
            ("feed_forward", None, "adapter", embed, ((inner,), (inner,)))
        ]
        if self.attention_adapters:
            pairs.extend(
                ("attention", name, f"{name}.adapter", wide, ((wide,),)) for name in ("q", "k", "v")
            )
        for group, of, name, into, out in pairs:
            first, second = f"{name}_a", f"{name}_b"
            yield group, Linear(name=first, of=of or first, into=(into,), out=((rank,),))
            yield group, Linear(name=second, of=of or second, into=(rank,), out=out)
            if self.spare_adapters:
                rows = Axis("spare_rank", self.spare_adapters * self.adapter_rank)
                spare = Table(name=f"{name}_a.spare", rows=rows, row=(into,), looked_up=0)
                yield group, spare
                for piece in out:
                    yield group, attrs.evolve(spare, name=f"{name}_b.spare", row=piece)
