"""Inputs of every layer beside the hidden state, and several hidden states side by side (Gemma).

* `PerLayerEmbedding`: a table that gives every layer an input of its own.
* `PerLayerInput`: what a layer does with it.
* `Streams`: several hidden states that each layer predicts and corrects (AltUp).
* `StreamProjections`: how the streams begin and end.
* `LowRank`: a linear map through a few elements (LAuReL).
* `LayerFactor`: one factor of a layer's result, which is no parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, get_args

import attrs

from llmcalc.boundary import instance_of, one_of, size
from llmcalc.described import Described
from llmcalc.spec.axes import Axis
from llmcalc.spec.feed_forward import Activation, learned_activation
from llmcalc.spec.items import Item, Linear, Product, Scale, Table
from llmcalc.spec.ledger import Entry
from llmcalc.spec.part import Group, Part
from llmcalc.spec.parts import Norm

__all__ = [
    "LayerFactor",
    "LowRank",
    "PerLayerEmbedding",
    "PerLayerInput",
    "StreamProjections",
    "Streams",
]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class PerLayerEmbedding(Described):
    """A table with one input of `width` elements for each of `layers` layers, at each token.

    The embedded token is projected to as many elements, normed and added.

    >>> from llmcalc.spec import Axis, Norm, PerLayerEmbedding
    >>> table = PerLayerEmbedding(vocab_size=100, layers=2, width=8, norm=Norm(kind="rms"))
    >>> [entry.name for entry in table.entries(Axis("embed", 64))][0]
    ('embeddings', '', 'per_layer_token')
    """

    vocab_size: int = attrs.field(validator=size)
    layers: int = attrs.field(validator=size)
    width: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the table, the projection and its norm."""
        layers, width = Axis("layers", self.layers), Axis("per_layer", self.width)
        vocab = Axis("vocab", self.vocab_size)
        table = Table(name="per_layer_token", rows=vocab, row=(layers, width))
        yield Entry(("embeddings", ""), None, table)
        projection = Linear(name="per_layer_projection", into=(embed,), out=((layers, width),))
        yield Entry(("other", ""), None, projection)
        for item in self.norm.items("per_layer_norm", (width,)):
            yield Entry(("norms", ""), None, item)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class PerLayerInput(Part):
    """A layer's own input of `width` elements, gated by the hidden state and brought to its width.

    >>> from llmcalc.spec import Axis, PerLayerInput
    >>> part = PerLayerInput(width=8, activation="gelu_tanh")
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['per_layer_gate', 'per_layer_up']
    """

    group: ClassVar[Group] = "other"

    width: int = attrs.field(validator=size)
    activation: Activation = attrs.field(validator=one_of(*get_args(Activation)))

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the two projections, and what is learned between them."""
        yield from learned_activation(self.activation)
        width = Axis("per_layer", self.width)
        yield Linear(name="per_layer_gate", into=(embed,), out=((width,),))
        yield Linear(name="per_layer_up", into=(width,), out=((embed,),))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class LowRank(Part):
    """A linear map through `rank` elements.

    >>> from llmcalc.spec import Axis, LowRank
    >>> [item.name for item in LowRank(rank=8).items(Axis("embed", 64))]
    ['low_rank_down', 'low_rank_up']
    """

    group: ClassVar[Group] = "other"

    rank: int = attrs.field(validator=size)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the two projections."""
        rank = Axis("rank", self.rank)
        yield Linear(name="low_rank_down", into=(embed,), out=((rank,),))
        yield Linear(name="low_rank_up", into=(rank,), out=((embed,),))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class LayerFactor(Part):
    """One factor of a layer's result, kept in a buffer.

    >>> from llmcalc.spec import Axis, LayerFactor
    >>> [(item.name, item.buffer) for item in LayerFactor().items(Axis("embed", 64))]
    [('layer_factor', True)]
    """

    group: ClassVar[Group] = "other"

    def items(self, embed: Axis) -> Iterator[Item]:  # noqa: ARG002  # a part's signature
        """Emit the factor."""
        yield Scale(name="layer_factor", axes=(Axis("factor", 1),), buffer=True)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Streams(Part):
    """`count` hidden states, of which a layer computes one: it predicts all, then corrects them.

    A router reads the one that is computed, before and after; its result gives the coefficients
    of both steps. `norm` is the router's.

    Source: Baykal et al., "Alternating Updates for Efficient Transformers" (2023), section 3.

    >>> from llmcalc.spec import Axis, Norm, Streams
    >>> part = Streams(count=4, norm=Norm(kind="rms"))
    >>> [item.name for item in part.items(Axis("embed", 64))][:2]
    ['streams.router_norm.weight', 'streams.router']
    """

    group: ClassVar[Group] = "other"

    count: int = attrs.field(validator=size)
    norm: Norm = attrs.field(validator=instance_of(Norm))

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the router, the coefficients and what is done with them."""
        streams = Axis("streams", self.count)
        yield from self.norm.items("streams.router_norm", (embed,), of="streams")
        yield Linear(name="streams.router", of="streams", into=(embed,), out=((streams,),))
        pairs = Axis("stream_pairs", self.count**2)
        yield Linear(name="streams.predict", of="streams", into=(streams,), out=((pairs,),))
        yield Linear(name="streams.correct", of="streams", into=(streams,), out=((streams,),))
        yield Scale(name="streams.scale", of="streams", axes=(embed,))
        # Every stream is predicted from every other, and the router is used a second time.
        uses = Axis("stream_pairs", self.count**2 + self.count)
        yield Product(name="streams.mix", of="streams", axes=(uses, embed))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class StreamProjections(Described):
    """The matrices that make `count` hidden states of the embedded token, and one of them again.

    >>> from llmcalc.spec import Axis, StreamProjections
    >>> [entry.name[2] for entry in StreamProjections(count=4).entries(Axis("embed", 64))]
    ['streams.begin', 'streams.end']
    """

    count: int = attrs.field(validator=size)

    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the projections, which the first stream has no need of."""
        more = Axis("streams", self.count - 1)
        if more.size:
            yield Entry(
                ("other", ""),
                None,
                Linear(name="streams.begin", of="streams", into=(embed,), out=((more, embed),)),
            )
            yield Entry(
                ("other", ""),
                None,
                Linear(name="streams.end", of="streams", into=(embed,), out=((more, embed),)),
                after=True,
            )
