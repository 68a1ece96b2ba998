"""Hyper-connections: several hidden states side by side, mixed around every block.

* `HyperConnection`: what mixes them into the input of a block, and its result into them.
* `HyperHead`: what makes one hidden state of them at the end.
* `GatedStreams`: like both, with low-rank gates for every element.
* `NGramEmbedding`: looked-up vectors of the last tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from llmcalc.boundary import flag, instance_of, size
from llmcalc.described import Described
from llmcalc.spec.axes import Axis
from llmcalc.spec.items import Cache, Conv, Item, Linear, Product, Scale, Table
from llmcalc.spec.ledger import Entry
from llmcalc.spec.part import Group, Part
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Constant

__all__ = ["GatedStreams", "HyperConnection", "HyperHead", "NGramEmbedding"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class HyperConnection(Part):
    """The weights with which a block reads `streams` hidden states and adds its result to them.

    The weights of a token come from all of its hidden states. With `combines` there are weights
    among the hidden states, too. `name` is that of the block.

    Source: Xie et al., "mHC: Manifold-Constrained Hyper-Connections" (2025).

    >>> from llmcalc.spec import Axis, HyperConnection
    >>> part = HyperConnection(name="attention", streams=4, combines=False)
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['attention_streams', 'attention_streams.base', 'attention_streams.scale']
    """

    group: ClassVar[Group] = "other"

    name: str = attrs.field(validator=instance_of(str))
    streams: int = attrs.field(validator=size)
    combines: bool = attrs.field(validator=flag)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the projection to the weights, and what is done with them."""
        streams, name = Axis("streams", self.streams), f"{self.name}_streams"
        number = self.streams * (2 + self.streams if self.combines else 2)
        weights = Axis("stream_weights", number)
        yield Linear(name=name, into=(streams, embed), out=((weights,),))
        yield Scale(name=f"{name}.base", of=name, axes=(weights,))
        yield Scale(name=f"{name}.scale", of=name, axes=(Axis("kinds", 3 if self.combines else 2),))
        if self.combines:
            pairs = Axis("stream_pairs", self.streams**2)
            yield Product(name=f"{name}.mix", of=name, axes=(pairs, embed))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class HyperHead(Described):
    """The weights that make one hidden state of `streams` after the last layer.

    >>> from llmcalc.spec import Axis, HyperHead
    >>> [entry.name[2] for entry in HyperHead(streams=4).entries(Axis("embed", 64))]
    ['head_streams', 'head_streams.base', 'head_streams.scale']
    """

    streams: int = attrs.field(validator=size)

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the projection to the weights."""
        streams, weights = Axis("streams", self.streams), Axis("stream_weights", self.streams)
        items = (
            Linear(name="head_streams", into=(streams, embed), out=((weights,),)),
            Scale(name="head_streams.base", of="head_streams", axes=(weights,)),
            Scale(name="head_streams.scale", of="head_streams", axes=(Axis("kinds", 1),)),
        )
        for item in items:
            yield Entry(("other", ""), None, item, after=True)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class GatedStreams(Part):
    """Gates for every element of `streams` hidden states, whose mean a block reads.

    The gates come through `rank` elements. With `injects` a weight for each hidden state says how
    much of the block's result is added to it; without, it stands after the last layer.

    Source: transformers, ``models/qwen4_exp/modeling_qwen4_exp.py``.

    >>> from llmcalc.spec import Axis, Norm
    >>> from llmcalc.spec.hyper import GatedStreams
    >>> part = GatedStreams(name="attention", streams=4, rank=8, norm=Norm(kind="rms"))
    >>> [item.name for item in part.items(Axis("embed", 64))][1:]
    ['attention_streams.down', 'attention_streams.up', 'attention_streams.inject']
    """

    group: ClassVar[Group] = "other"

    name: str = attrs.field(validator=instance_of(str))
    streams: int = attrs.field(validator=size)
    rank: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))
    injects: bool = attrs.field(default=True, validator=flag)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the norm and the projections."""
        streams, rank, of = (
            Axis("streams", self.streams),
            Axis("rank", self.rank),
            f"{self.name}_streams",
        )
        wide = (streams, embed)
        yield from self.norm.items(f"{of}.norm", wide, of=of)
        yield Linear(name=f"{of}.down", of=of, into=wide, out=((rank,),))
        yield Linear(name=f"{of}.up", of=of, into=(rank,), out=(wide,))
        if self.injects:
            yield Linear(name=f"{of}.inject", of=of, into=wide, out=((streams,),))

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the items once, beside the layers."""
        for item in self.items(embed):
            yield Entry(("other", ""), None, item, after=True)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class NGramEmbedding(Part):
    """Looked-up vectors of the last tokens, added to `streams` hidden states through a convolution.

    Each token reads a row of `rows` for each of `heads`, side by side `embed_dim` elements.

    Source: transformers, ``models/qwen4_exp/modeling_qwen4_exp.py``.
    """

    group: ClassVar[Group] = "other"
    usual_label: ClassVar[str] = "ngram"

    rows: int = attrs.field(validator=size)
    heads: int = attrs.field(validator=size)
    embed_dim: int = attrs.field(validator=size)
    context: int = attrs.field(validator=size)
    kernel: int = attrs.field(validator=size)
    streams: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the table, the projections, the convolution and what it keeps."""
        wide = (Axis("streams", self.streams), embed)
        looked_up = Axis("ngram_embedding", self.embed_dim)
        row = Axis("ngram_head_dim", self.embed_dim // self.heads)
        rows = Axis("ngrams", self.rows)
        yield Table(name="ngram", rows=rows, row=(row,), looked_up=self.heads)
        yield Linear(name="ngram_key", into=(looked_up,), out=(wide,))
        yield Linear(name="ngram_value", into=(looked_up,), out=((embed,),))
        for name in ("key", "query", "conv"):
            yield from self.norm.items(f"ngram_{name}_norm", wide)
        yield Conv(name="ngram_conv", channels=wide, kernel=self.kernel)
        inputs = Axis("inputs", (self.kernel - 1) * self.context)
        yield Cache(name="ngram_conv", role="conv", shape=(inputs, *wide), span=Constant())
        tokens = Axis("tokens", self.context - 1)
        yield Cache(
            name="ngram_tokens", role="state", shape=(tokens,), span=Constant(), reader="ngram"
        )
