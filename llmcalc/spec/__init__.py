"""What a model is: axes, items, parts, and `ModelSpec`, composed of frozen classes of sizes."""

from llmcalc.spec.attention import Attention, LatentAttention, Rotary
from llmcalc.spec.axes import Axis
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.items import Cache, Item, Linear, Mix, Scale, Table
from llmcalc.spec.ledger import Entry, Ledger, StoredTensor
from llmcalc.spec.model import Block, Layer, LayerRun, ModelSpec, ParallelBlock
from llmcalc.spec.parts import Embedding, Head, Norm
from llmcalc.spec.spans import Full, Window

__all__ = [
    "Attention",
    "Axis",
    "Block",
    "Cache",
    "Embedding",
    "Entry",
    "Experts",
    "FeedForward",
    "Full",
    "Head",
    "Item",
    "LatentAttention",
    "Layer",
    "LayerRun",
    "Ledger",
    "Linear",
    "Mix",
    "ModelSpec",
    "Norm",
    "ParallelBlock",
    "Rotary",
    "Scale",
    "StoredTensor",
    "Table",
    "Window",
]
