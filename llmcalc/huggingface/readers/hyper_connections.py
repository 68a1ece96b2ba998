"""What readers of models with hyper-connections share: their layer."""

from __future__ import annotations

from itertools import chain

from llmcalc.spec.hyper import HyperConnection
from llmcalc.spec.model import Block, Layer, Part
from llmcalc.spec.parts import Norm

__all__ = ["hyper_layer"]


def hyper_layer(norm: Norm, mixer: Part, inner: Part, streams: int, *, combines: bool) -> Layer:
    """Return a layer of two blocks with a hyper-connection before each."""
    connections = (
        HyperConnection(name=block, streams=streams, combines=combines)
        for block in ("attention", "feed_forward")
    )
    blocks = (
        (Block(part=connection), Block(part=part, norm=norm))
        for connection, part in zip(connections, (mixer, inner), strict=True)
    )
    return Layer(blocks=tuple(chain.from_iterable(blocks)))
