"""The whole model: layers of residual blocks between an embedding and a head.

* `Block`: a residual step: norm, part, sum.
* `Layer`: the blocks of one layer.
* `LayerRun`: the same layer several times in a row; `runs` makes them from a list of layers.
* `Residual`: the base of all residual steps.
* `Beside`: what stands beside the layers.
* `Predictor`: modules after the layers that predict further tokens.
* `Ledger`: the items of a model, each with how often it occurs; every quantity is a fold over it.
* `ModelSpec`: the model; `ModelSpec.dense`, `ModelSpec.assignment` and
  `ModelSpec.assignment_decoder` compose the usual ones from sizes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cached_property, partial
from itertools import chain, groupby
from typing import Any, Literal, Protocol
from weakref import ref

import attrs

from llmcalc.boundary import choice, flag, instance_of, size, size_or_zero, whole_number
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.spec.attention import Attention, Rotary
from llmcalc.spec.axes import Axis
from llmcalc.spec.checkpoint import QuantizedCheckpoint
from llmcalc.spec.feed_forward import Activation, FeedForward
from llmcalc.spec.items import Cache, Scale
from llmcalc.spec.ledger import (
    Entry,
    ResidualStep,
    StoredTensor,
    distinct,
    is_buffer,
    stored_shapes,
)
from llmcalc.spec.part import Part
from llmcalc.spec.parts import Embedding, Head, Norm

__all__ = [
    "Beside",
    "Block",
    "Layer",
    "LayerRun",
    "Ledger",
    "ModelSpec",
    "Part",
    "Predictor",
    "Residual",
    "runs",
]

_optional_norm = attrs.validators.optional(instance_of(Norm))


class Residual(Described, ABC):
    """A residual step of a layer: `Block`, `ParallelBlock` or `SharedBlock`."""

    __slots__ = ()

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The parts of the step, in order."""

    @property
    def adds_up(self) -> bool:
        """Whether the results of its parts are added before anything else reads them."""
        return False

    @abstractmethod
    def entries(self, label: str, count: int, embed: Axis) -> Iterator[Entry]:
        """Emit the entries of `count` layers of width `embed` that have the label."""


class Beside(Protocol):
    """What stands beside the layers, once: it emits entries of groups of its own."""

    @abstractmethod
    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit the entries in a model of width `embed`."""


class Predictor(Protocol):
    """Modules after the layers that predict further tokens: `MultiToken`."""

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The layers of each module, in order."""

    @abstractmethod
    def entries(self, embed: Axis) -> Iterator[Entry]:
        """Emit what the modules hold, without the embedding and the head of the model."""

    @abstractmethod
    def copies(self, embed: Axis, vocab: Axis) -> Iterator[Entry]:
        """Emit the copies of the model's token table and head that some checkpoints hold."""


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Block(Residual):
    """A residual step: ``x + post_norm(part(norm(x)))``, each norm where there is one.

    `sum_norm` normalises the sum: ``sum_norm(x + part(x))``. With `scaled` each element of ``x``
    has a trained factor in it.
    """

    part: Part
    norm: Norm | None = attrs.field(default=None, validator=_optional_norm)
    post_norm: Norm | None = attrs.field(default=None, validator=_optional_norm)
    sum_norm: Norm | None = attrs.field(default=None, validator=_optional_norm)
    scaled: bool = attrs.field(default=False, validator=flag)

    @property
    def parts(self) -> tuple[Part]:
        """The one part."""
        return (self.part,)

    def entries(self, label: str, count: int, embed: Axis) -> Iterator[Entry]:
        """Emit the block's items, under the group of the part and of the norms."""
        group = self.part.group
        if self.norm is not None:
            for item in self.norm.items(f"{group}_norm", (embed,)):
                yield Entry(("norms", label), count, item)
        for item in self.part.items(embed):
            yield Entry((group, label), count, item)
        if self.post_norm is not None:
            for item in self.post_norm.items(f"{group}_post_norm", (embed,)):
                yield Entry(("norms", label), count, item)
        if self.scaled:
            yield Entry(("other", label), count, Scale(name=f"{group}_residual", axes=(embed,)))
        if self.sum_norm is not None:
            for item in self.sum_norm.items(f"{group}_sum_norm", (embed,)):
                yield Entry(("norms", label), count, item)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Layer(Described):
    """One layer: its residual blocks in order.

    A looped model goes `uses` times through it: each use computes and caches, none stores more. A
    layer that a request of text alone skips has none, and stores its weights nevertheless.
    """

    blocks: tuple[Residual, ...]
    uses: int = attrs.field(default=1, validator=size_or_zero)

    @property
    def parts(self) -> Iterator[Part]:
        """The parts of all blocks, in order."""
        for block in self.blocks:
            yield from block.parts


@attrs.frozen(kw_only=True, repr=False, eq=False)
class LayerRun(Described):
    """`count` equal layers in a row, under one label."""

    count: int = attrs.field(validator=size)
    label: str
    layer: Layer = attrs.field(validator=instance_of(Layer))


def runs(layers: Iterable[Layer]) -> tuple[LayerRun, ...]:
    """Return the layers run-length encoded, each kind under a label made of its parts' labels.

    Where no part has a label, it is made of their groups.

    >>> from llmcalc.spec import Attention, Block, Layer, Window, runs
    >>> full = Attention(query_heads=4, kv_heads=2, head_dim=16)
    >>> local = Attention(query_heads=4, kv_heads=2, head_dim=16, span=Window(8))
    >>> kinds = [Layer(blocks=(Block(part=part),)) for part in (local, full)]
    >>> [(run.label, run.count) for run in runs([kinds[0], kinds[0], kinds[1]])]
    [('window', 2), ('decoder', 1)]
    """
    kinds: list[Layer] = []
    numbers = [_number(layer, kinds) for layer in layers]
    same: dict[str, int] = {}
    labels: list[str] = []
    for layer in kinds:
        parts = tuple(layer.parts)
        words = [part.label for part in parts if part.label] or [part.group for part in parts]
        label = "-".join(dict.fromkeys(words))
        same[label] = same.get(label, 0) + 1
        labels.append(label if same[label] == 1 else f"{label} {same[label]}")
    return tuple(
        [
            LayerRun(count=len(list(run)), label=labels[number], layer=kinds[number])
            for number, run in groupby(numbers)
        ]
    )


def _number(layer: Layer, kinds: list[Layer]) -> int:
    """Return the number of a layer's kind; a new one is added.

    Readers give equal layers as one object, which is found without comparing any.
    """
    for number, kind in enumerate(kinds):
        if kind is layer:
            return number
    if layer not in kinds:
        kinds.append(layer)
    return kinds.index(layer)


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class ModelSpec(Described):
    """A decoder, described by sizes. Every quantity of it is a fold over its `ledger`.

    `max_positions` is the longest context that the model was made for, `None` where nothing
    limits it. `beside` is what the model has once, beside its layers. `multi_token` are modules
    that predict further tokens, which a step of the model itself does not use: they have a ledger
    of their own. `checkpoint` names the format of the published weights where the config states
    it, or says how they are quantised. `notes` says what a reader left out or did not read.

    >>> from llmcalc import ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> memory.parameters(llama).total
    8030261248
    """

    name: str = attrs.field(validator=instance_of(str))
    embed_dim: int = attrs.field(validator=size)
    embedding: Embedding = attrs.field(validator=instance_of(Embedding))
    layers: tuple[LayerRun, ...]
    final_norm: Norm | None = attrs.field(validator=attrs.validators.optional(instance_of(Norm)))
    head: Head = attrs.field(validator=instance_of(Head))
    max_positions: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))
    beside: tuple[Beside, ...] = ()
    multi_token: tuple[Predictor, ...] = ()
    checkpoint: str | QuantizedCheckpoint | None = None
    notes: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        modules = (layer for module in self.multi_token for layer in module.layers)
        for layer in chain((run.layer for run in self.layers), modules):
            for part in layer.parts:
                part.check_width(self.embed_dim)
        kinds: dict[str, Layer] = {}
        for run in self.layers:
            if kinds.setdefault(run.label, run.layer) != run.layer:
                raise InvalidValueError("label", run.label, "must name one kind of layer only")
        if self.head.tied and self.embedding.more_rows is not None:
            rule = "must be None with a tied head, which has a result for every row"
            raise InvalidValueError("more_rows", self.embedding.more_rows, rule)
        learned = self.embedding.learned_positions
        if learned is not None and (self.max_positions is None or self.max_positions > learned):
            raise InvalidValueError(
                "max_positions",
                self.max_positions,
                f"must be at most the {learned} learned positions",
            )

    def __repr__(self) -> str:
        kinds: dict[str, int] = {}
        for run in self.layers:
            kinds[run.label] = kinds.get(run.label, 0) + run.count
        layers = ", ".join([f"{count} {label}" for label, count in kinds.items()])
        sizes = f"width {self.embed_dim}, vocabulary {self.embedding.vocab_size}"
        return f"<ModelSpec {self.name}: {self.num_layers} layers ({layers}), {sizes}>"

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return sum(run.count for run in self.layers)

    @cached_property
    def ledger(self) -> Ledger:
        """The items of the model, each with how often it occurs."""
        before, after, steps = self._outside(), self._after(), tuple(self._steps())
        inside = chain.from_iterable(step.entries for step in steps)
        return Ledger(self, chain(before, inside, after), steps)

    @cached_property
    def multi_token_ledger(self) -> Ledger:
        """The items of the modules that predict further tokens."""
        embed = Axis("embed", self.embed_dim)
        return Ledger(self, chain.from_iterable(part.entries(embed) for part in self.multi_token))

    def _outside(self) -> Iterator[Entry]:
        """Give what stands before the layers, or beside them."""
        embed = Axis("embed", self.embed_dim)
        for item in self.embedding.items(embed):
            yield Entry(("embeddings", ""), None, item)
        if self.embedding.norm is not None:
            for item in self.embedding.norm.items("embedding_norm", (embed,)):
                yield Entry(("norms", ""), None, item)
        for extra in self.beside:
            yield from extra.entries(embed)

    def _after(self) -> Iterator[Entry]:
        """Give what stands after the layers."""
        embed = Axis("embed", self.embed_dim)
        if self.final_norm is not None:
            for item in self.final_norm.items("final_norm", (embed,)):
                yield Entry(("norms", ""), None, item, after=True)
        for item in self.head.items(embed, self.embedding.vocab):
            yield Entry(("head", ""), None, item, after=True)

    def _steps(self) -> Iterator[ResidualStep]:
        """Give the residual steps of each kind of layer, each with its entries.

        Equal layers are counted together, wherever they stand.
        """
        embed = Axis("embed", self.embed_dim)
        counts: dict[str, tuple[Layer, int]] = {}
        for run in self.layers:
            layer, count = counts.get(run.label, (run.layer, 0))
            counts[run.label] = layer, count + run.count
        for label, (layer, count) in counts.items():
            for block in layer.blocks:
                entries = tuple(block.entries(label, count, embed))
                if layer.uses != 1:
                    entries = tuple([attrs.evolve(one, uses=layer.uses) for one in entries])
                yield ResidualStep(entries, block.adds_up)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields alone: what was found out about the model is found out again."""
        return {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}

    @classmethod
    def dense(
        cls,
        *,
        name: str,
        num_layers: int,
        num_query_heads: int,
        num_kv_heads: int,
        embed_dim: int,
        inner_dim: int,
        vocab_size: int,
        head_dim: int | None = None,
        gated: bool = True,
        activation: Activation = "silu",
        norm: Literal["rms", "layer"] | None = "rms",
        norm_eps: float = 1e-5,
        positions: Literal["rotary", "learned", "none"] = "rotary",
        rotary_theta: float = 10000.0,
        max_positions: int | None = None,
        query_key_value_bias: bool = False,
        attention_output: bool = True,
        attention_output_bias: bool = False,
        feed_forward_bias: bool = False,
        tied_head: bool = False,
        head_bias: bool = False,
    ) -> ModelSpec:
        """Return a dense decoder; by default a Llama: RMSNorm, rotary, gated, no biases, untied.

        Every layer is ``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``; a norm
        stands before the head. `head_dim` is ``embed_dim / num_query_heads`` unless given.
        Learned positions need `max_positions`, the rows of their table. Raises
        `llmcalc.LlmcalcError` for sizes that contradict each other.

        >>> from llmcalc import ModelSpec, memory
        >>> gpt2 = ModelSpec.dense(
        ...     name="gpt2", num_layers=12, num_query_heads=12, num_kv_heads=12, embed_dim=768,
        ...     inner_dim=3072, vocab_size=50257, gated=False, activation="gelu_tanh",
        ...     norm="layer", positions="learned", max_positions=1024, query_key_value_bias=True,
        ...     attention_output_bias=True, feed_forward_bias=True, tied_head=True,
        ... )
        >>> memory.parameters(gpt2).total
        124439808
        """
        embed = whole_number(embed_dim, "embed_dim", minimum=1)
        heads = whole_number(num_query_heads, "num_query_heads", minimum=1)
        if head_dim is None and embed % heads:
            raise InvalidValueError(
                "num_query_heads", heads, f"must divide embed_dim ({embed}) without a head_dim"
            )
        choice(positions, "positions", ("rotary", "learned", "none"))
        if positions == "learned" and max_positions is None:
            raise InvalidValueError("max_positions", None, "learned positions need their number")
        make_norm = None if norm is None else Norm(kind=norm, eps=norm_eps)
        attention = Attention(
            query_heads=heads,
            kv_heads=whole_number(num_kv_heads, "num_kv_heads", minimum=1),
            head_dim=embed // heads if head_dim is None else head_dim,
            query_bias=query_key_value_bias,
            key_bias=query_key_value_bias,
            value_bias=query_key_value_bias,
            output=attention_output,
            output_bias=attention_output_bias,
            rotary=Rotary(theta=rotary_theta) if positions == "rotary" else None,
        )
        feed_forward = FeedForward(
            inner_dim=whole_number(inner_dim, "inner_dim", minimum=1),
            gated=gated,
            activation=activation,
            input_bias=feed_forward_bias,
            output_bias=feed_forward_bias,
        )
        blocks = (
            Block(part=attention, norm=make_norm),
            Block(part=feed_forward, norm=make_norm),
        )
        return cls(
            name=name,
            embed_dim=embed,
            embedding=Embedding(
                vocab_size=vocab_size,
                learned_positions=max_positions if positions == "learned" else None,
            ),
            layers=(LayerRun(count=num_layers, label="decoder", layer=Layer(blocks=blocks)),),
            final_norm=make_norm,
            head=Head(tied=tied_head, bias=head_bias),
            max_positions=max_positions,
        )

    @classmethod
    def assignment(
        cls,
        *,
        name: str,
        num_layers: int,
        num_query_heads: int,
        num_kv_heads: int,
        embed_dim: int,
        inner_dim: int,
        vocab_size: int,
    ) -> ModelSpec:
        """Return the model that the course assignment counts, which is not a Llama.

        An ungated feed-forward with both biases, attention without the output projection, no
        norms, no position parameters, an untied head.

        >>> from llmcalc import ModelSpec, memory
        >>> model = ModelSpec.assignment(
        ...     name="assignment", num_layers=32, num_query_heads=32, num_kv_heads=8,
        ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
        ... )
        >>> memory.parameters(model).total
        5614665728
        """
        return cls.dense(
            name=name,
            num_layers=num_layers,
            num_query_heads=num_query_heads,
            num_kv_heads=num_kv_heads,
            embed_dim=embed_dim,
            inner_dim=inner_dim,
            vocab_size=vocab_size,
            gated=False,
            activation="relu",
            norm=None,
            positions="none",
            attention_output=False,
            feed_forward_bias=True,
        )

    @classmethod
    def assignment_decoder(
        cls, *, vocab_size: int, d_model: int, d_ff: int, num_layers: int, max_seq_len: int
    ) -> ModelSpec:
        """Return the small decoder that the course assignment asks to implement.

        One attention head as wide as the model, LayerNorm, a ReLU feed-forward with biases,
        learned positions, an untied output projection with bias.

        >>> from llmcalc import ModelSpec, memory
        >>> model = ModelSpec.assignment_decoder(
        ...     vocab_size=1000, d_model=256, d_ff=1024, num_layers=2, max_seq_len=2048
        ... )
        >>> memory.parameters(model).total
        2615272
        """
        return cls.dense(
            name="assignment-decoder",
            num_layers=num_layers,
            num_query_heads=1,
            num_kv_heads=1,
            embed_dim=d_model,
            inner_dim=d_ff,
            vocab_size=vocab_size,
            gated=False,
            activation="relu",
            norm="layer",
            positions="learned",
            max_positions=max_seq_len,
            feed_forward_bias=True,
            head_bias=True,
        )


class Ledger:
    """The entries of one model; `tensors` are its distinct stored weights.

    `buffers` are stored with them and are no parameters. `caches` are the caches that a request
    holds; `cache_reads` also those that a layer reads and another one holds. `steps` are the
    residual steps of its layers. `spec` is the model; `kept` is what folds found out about it
    before any workload is known (`llmcalc.spec.kept`).

    >>> from llmcalc import ModelSpec
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
    ...     embed_dim=64, inner_dim=128, vocab_size=100,
    ... )
    >>> for entry in spec.ledger.entries[:3]:
    ...     print(entry.name, entry.count)
    ('embeddings', '', 'token') None
    ('norms', 'decoder', 'attention_norm.weight') 2
    ('attention', 'decoder', 'q') 2
    """

    def __init__(
        self, spec: ModelSpec, entries: Iterable[Entry], steps: Iterable[ResidualStep] = ()
    ) -> None:
        # The model has its ledger. Without a cycle both go at once when nobody asks about them.
        self._spec: Callable[[], ModelSpec | None] = ref(spec)
        self._fields = spec.__getstate__()
        self.entries: tuple[Entry, ...] = tuple(entries)
        self.steps: tuple[ResidualStep, ...] = tuple(steps)
        self.kept: dict[tuple[Hashable, ...], Any] = {}

    @property
    def spec(self) -> ModelSpec:
        """The model; an equal one where that of the ledger is gone."""
        found = self._spec()
        if found is None:
            found = ModelSpec(**self._fields)
            self._spec = partial(_same, found)
        return found

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a ledger is not pickled: pickle its ModelSpec")

    @cached_property
    def _stored(self) -> tuple[tuple[Entry, StoredTensor], ...]:
        """What each entry stores, as if it stored a weight of its own."""
        return tuple(
            [
                (entry, StoredTensor(entry, *shape))
                for entry in self.entries
                for shape in stored_shapes(entry.item)
            ]
        )

    @cached_property
    def weight_reads(self) -> tuple[tuple[Entry, StoredTensor], ...]:
        """Every weight that a step reads, each use of it apart."""
        return tuple([pair for pair in self._stored if not is_buffer(pair[0].item)])

    @cached_property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The distinct stored weights."""
        return tuple(distinct(self.weight_reads))

    @cached_property
    def buffers(self) -> tuple[StoredTensor, ...]:
        """What is stored beside the weights, and is no parameter."""
        return tuple(distinct([pair for pair in self._stored if is_buffer(pair[0].item)]))

    @cached_property
    def cache_reads(self) -> tuple[tuple[Entry, Cache], ...]:
        """The caches that layers read."""
        return tuple([(e, e.item) for e in self.entries if isinstance(e.item, Cache)])

    @cached_property
    def caches(self) -> tuple[tuple[Entry, Cache], ...]:
        """The caches that a request holds."""
        return tuple([pair for pair in self.cache_reads if pair[1].held])

    @cached_property
    def layer_numbers(self) -> dict[str, tuple[int, ...]]:
        """The numbers of the layers, from 0, by their label."""
        numbers: dict[str, tuple[int, ...]] = {}
        start = 0
        for run in self.spec.layers:
            own = range(start, start + run.count)
            numbers[run.label] = (*numbers.get(run.label, ()), *own)
            start += run.count
        return numbers

    def numbers_of(self, tensor: StoredTensor) -> tuple[int, ...] | None:
        """Return the numbers of the layers that store a tensor, `None` outside of them."""
        return self.layer_numbers.get(tensor.label) if tensor.layered else None


def _same(spec: ModelSpec) -> ModelSpec:
    return spec


def check_spec(spec: object) -> None:
    """Refuse what is no model; of a name it says how to get the model."""
    if not isinstance(spec, ModelSpec):
        rule = "must be a ModelSpec, as llmcalc.load_model returns it"
        raise InvalidValueError("spec", spec, rule)
