"""What a model is: axes, items, parts, and `ModelSpec`, composed of frozen classes of sizes."""

from llmcalc.spec.attention import Attention, Indexer, LatentAttention, Rotary
from llmcalc.spec.axes import Axis
from llmcalc.spec.experts import AttentionExperts, Experts
from llmcalc.spec.feed_forward import FeedForward, HeadTransform
from llmcalc.spec.hyper import HyperConnection, HyperHead
from llmcalc.spec.items import Cache, Conv, EagerScan, Item, Linear, Mix, Scale, Scan, Table
from llmcalc.spec.ledger import Entry, Ledger, StoredTensor
from llmcalc.spec.model import Beside, Block, Layer, LayerRun, ModelSpec, ParallelBlock, Part, runs
from llmcalc.spec.parts import Embedding, Head, Norm
from llmcalc.spec.per_layer import (
    LowRank,
    PerLayerEmbedding,
    PerLayerInput,
    StreamProjections,
    Streams,
)
from llmcalc.spec.recurrent import (
    ChannelMix,
    GatedDelta,
    GatedLinearRecurrence,
    LinearAttention,
    Mamba,
    Mamba2,
    MatrixMemory,
    ShortConvolution,
    TimeMix,
)
from llmcalc.spec.retrieved import MaskedAttention, RetrievedExperts
from llmcalc.spec.shared import SharedBlock
from llmcalc.spec.spans import Chunk, Constant, Full, Span, TopK, Window

__all__ = [
    "Attention",
    "AttentionExperts",
    "Axis",
    "Beside",
    "Block",
    "Cache",
    "ChannelMix",
    "Chunk",
    "Constant",
    "Conv",
    "EagerScan",
    "Embedding",
    "Entry",
    "Experts",
    "FeedForward",
    "Full",
    "GatedDelta",
    "GatedLinearRecurrence",
    "Head",
    "HeadTransform",
    "HyperConnection",
    "HyperHead",
    "Indexer",
    "Item",
    "LatentAttention",
    "Layer",
    "LayerRun",
    "Ledger",
    "Linear",
    "LinearAttention",
    "LowRank",
    "Mamba",
    "Mamba2",
    "MatrixMemory",
    "MaskedAttention",
    "Mix",
    "ModelSpec",
    "Norm",
    "ParallelBlock",
    "Part",
    "PerLayerEmbedding",
    "PerLayerInput",
    "RetrievedExperts",
    "Rotary",
    "Scale",
    "Scan",
    "SharedBlock",
    "ShortConvolution",
    "Span",
    "StoredTensor",
    "StreamProjections",
    "Streams",
    "Table",
    "TimeMix",
    "TopK",
    "Window",
    "runs",
]
