"""What a model is: axes, items, parts, and `ModelSpec`, composed of frozen classes of sizes."""

from llmcalc.spec.attention import Attention, LatentAttention, Rotary
from llmcalc.spec.axes import Axis
from llmcalc.spec.experts import Experts
from llmcalc.spec.feed_forward import FeedForward
from llmcalc.spec.items import Cache, Conv, Item, Linear, Mix, Scale, Scan, Table
from llmcalc.spec.ledger import Entry, Ledger, StoredTensor
from llmcalc.spec.model import Block, Layer, LayerRun, ModelSpec, ParallelBlock, Part, runs
from llmcalc.spec.parts import Embedding, Head, Norm
from llmcalc.spec.spans import Chunk, Constant, Full, Span, TopK, Window

__all__ = [
    "Attention",
    "Axis",
    "Block",
    "Cache",
    "Chunk",
    "Constant",
    "Conv",
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
    "Part",
    "Rotary",
    "Scale",
    "Scan",
    "Span",
    "StoredTensor",
    "Table",
    "TopK",
    "Window",
    "runs",
]
