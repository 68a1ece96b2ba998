"""What a model is: axes, items, parts, and `ModelSpec`, composed of frozen classes of sizes.

Each name is imported from its module when it is first asked for.
"""

from typing import TYPE_CHECKING

from llmcalc.lazy import exports

if TYPE_CHECKING:
    from llmcalc.spec.attention import Attention, Indexer, LatentAttention, Rotary
    from llmcalc.spec.axes import Axis
    from llmcalc.spec.checkpoint import QuantizedCheckpoint
    from llmcalc.spec.compressed import CompressedAttention, Compressor
    from llmcalc.spec.convolved import (
        ConvolvedAttention,
        InputScale,
        OutputConvolution,
        RelativeAttention,
        ResidualScale,
        SeparateNorms,
        StreamQueries,
    )
    from llmcalc.spec.crossed import CrossAttention
    from llmcalc.spec.experts import AttentionExperts, Experts, RouterNetwork
    from llmcalc.spec.feed_forward import FeedForward, HeadTransform
    from llmcalc.spec.hyper import HyperConnection, HyperHead
    from llmcalc.spec.items import (
        Cache,
        Conv,
        EagerMix,
        EagerScan,
        Item,
        Linear,
        Mix,
        Product,
        Scale,
        Scan,
        Table,
        Turned,
    )
    from llmcalc.spec.ledger import Entry, ResidualStep, StoredTensor
    from llmcalc.spec.model import (
        Beside,
        Block,
        Layer,
        LayerRun,
        Ledger,
        ModelSpec,
        Predictor,
        Residual,
        runs,
    )
    from llmcalc.spec.multi_token import MultiToken
    from llmcalc.spec.parallel import ParallelBlock
    from llmcalc.spec.part import Group, Part
    from llmcalc.spec.parts import Embedding, Head, Norm
    from llmcalc.spec.per_layer import (
        LayerFactor,
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
    from llmcalc.spec.spans import (
        Chunk,
        Compressed,
        Constant,
        Full,
        Remainder,
        Span,
        TopK,
        Window,
    )

__all__ = [
    "Attention",
    "AttentionExperts",
    "Axis",
    "Beside",
    "Block",
    "Cache",
    "ChannelMix",
    "Chunk",
    "Compressed",
    "CompressedAttention",
    "Compressor",
    "Constant",
    "Conv",
    "ConvolvedAttention",
    "CrossAttention",
    "EagerMix",
    "EagerScan",
    "Embedding",
    "Entry",
    "Experts",
    "FeedForward",
    "Full",
    "GatedDelta",
    "GatedLinearRecurrence",
    "Group",
    "Head",
    "HeadTransform",
    "HyperConnection",
    "HyperHead",
    "Indexer",
    "InputScale",
    "Item",
    "LatentAttention",
    "Layer",
    "LayerFactor",
    "LayerRun",
    "Ledger",
    "Linear",
    "LinearAttention",
    "LowRank",
    "Mamba",
    "Mamba2",
    "MaskedAttention",
    "MatrixMemory",
    "Mix",
    "ModelSpec",
    "MultiToken",
    "Norm",
    "OutputConvolution",
    "ParallelBlock",
    "Part",
    "PerLayerEmbedding",
    "PerLayerInput",
    "Predictor",
    "Product",
    "QuantizedCheckpoint",
    "RelativeAttention",
    "Remainder",
    "Residual",
    "ResidualScale",
    "ResidualStep",
    "RetrievedExperts",
    "Rotary",
    "RouterNetwork",
    "Scale",
    "Scan",
    "SeparateNorms",
    "SharedBlock",
    "ShortConvolution",
    "Span",
    "StoredTensor",
    "StreamProjections",
    "StreamQueries",
    "Streams",
    "Table",
    "TimeMix",
    "TopK",
    "Turned",
    "Window",
    "runs",
]

exports(
    __name__,
    {
        "attention": (
            "Attention",
            "Indexer",
            "LatentAttention",
            "Rotary",
        ),
        "axes": ("Axis",),
        "checkpoint": ("QuantizedCheckpoint",),
        "compressed": (
            "CompressedAttention",
            "Compressor",
        ),
        "convolved": (
            "ConvolvedAttention",
            "InputScale",
            "OutputConvolution",
            "RelativeAttention",
            "ResidualScale",
            "SeparateNorms",
            "StreamQueries",
        ),
        "crossed": ("CrossAttention",),
        "experts": (
            "AttentionExperts",
            "Experts",
            "RouterNetwork",
        ),
        "feed_forward": (
            "FeedForward",
            "HeadTransform",
        ),
        "hyper": (
            "HyperConnection",
            "HyperHead",
        ),
        "items": (
            "Cache",
            "Conv",
            "EagerMix",
            "EagerScan",
            "Item",
            "Linear",
            "Mix",
            "Product",
            "Scale",
            "Scan",
            "Table",
            "Turned",
        ),
        "ledger": (
            "Entry",
            "ResidualStep",
            "StoredTensor",
        ),
        "model": (
            "Beside",
            "Block",
            "Layer",
            "LayerRun",
            "Ledger",
            "ModelSpec",
            "Predictor",
            "runs",
            "Residual",
        ),
        "multi_token": ("MultiToken",),
        "parallel": ("ParallelBlock",),
        "part": ("Group", "Part"),
        "parts": (
            "Embedding",
            "Head",
            "Norm",
        ),
        "per_layer": (
            "LayerFactor",
            "LowRank",
            "PerLayerEmbedding",
            "PerLayerInput",
            "StreamProjections",
            "Streams",
        ),
        "recurrent": (
            "ChannelMix",
            "GatedDelta",
            "GatedLinearRecurrence",
            "LinearAttention",
            "Mamba",
            "Mamba2",
            "MatrixMemory",
            "ShortConvolution",
            "TimeMix",
        ),
        "retrieved": (
            "MaskedAttention",
            "RetrievedExperts",
        ),
        "shared": ("SharedBlock",),
        "spans": (
            "Chunk",
            "Compressed",
            "Constant",
            "Full",
            "Remainder",
            "Span",
            "TopK",
            "Window",
        ),
    },
    globals(),
)
