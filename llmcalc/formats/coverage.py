"""Schemes: which tensors a quantisation covers, and which stay wide.

* `Scheme`: which format each stored tensor of a model has.
* `Uniform`: every tensor has the same.
* `Coverage`: the matrices that rules cover are in their formats, everything else is wide.
* `Rule`: a format and the modules that have it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import attrs

from llmcalc.boundary import instance_of
from llmcalc.described import Described, FrozenMapping
from llmcalc.errors import InvalidValueError
from llmcalc.formats.blocks import Format
from llmcalc.formats.modules import ROUTERS, Patterns, module_names
from llmcalc.spec.ledger import StoredTensor

__all__ = ["Coverage", "Rule", "Scheme", "Uniform"]

#: What is usually left wide: the head. Embeddings, norms, routers and vectors always are, and so
#: are the weights of an indexer's heads, as in the files of DeepSeek-V3.2-Exp and GLM-5-FP8.
HEAD: Final = ("lm_head",)

#: The routed experts, under the names that published models give them.
EXPERTS: Final = ("mlp.experts", "block_sparse_moe.experts")


class Scheme(Described):
    """Which format each stored tensor of a model has: what `scheme` returns.

    `name` is what messages call it. `formats_of` is what subclasses say, of a tensor's facts alone:
    a scheme has no memory. What it says of a model is kept with the model, unless its class is
    written without `attrs`: then it has no hash, for it may change.
    """

    __slots__ = ()

    name: str

    def __hash__(self) -> int:
        if "__attrs_attrs__" not in vars(type(self)):
            raise TypeError(f"unhashable type: {type(self).__name__!r}")
        return super().__hash__()

    @property
    def uniform(self) -> Format | None:
        """The format of every tensor, where all have the same."""
        return None

    def formats_of(
        self, tensor: StoredTensor, layers: Collection[int] | None = None
    ) -> tuple[tuple[Format, int], ...]:
        """Return the formats that the tensor has in `layers`, and in how many of them each.

        `layers` are the numbers of the layers in question, by default all that have the tensor.
        A tensor that stands outside the layers, or is stored once for all of them, counts once.
        """
        raise NotImplementedError

    def format_of(self, tensor: StoredTensor, layer: int | None = None) -> Format:
        """Return the format of the tensor in one layer, by default in the first that has it."""
        return self.formats_of(tensor, None if layer is None else (layer,))[0][0]


@attrs.frozen(repr=False, eq=False)
class Uniform(Scheme):
    """Every tensor in one format."""

    format: Format

    @property
    def name(self) -> str:  # type: ignore[override]  # the format's own
        """The format's name."""
        return self.format.name

    @property
    def uniform(self) -> Format:
        """The format."""
        return self.format

    def formats_of(
        self, tensor: StoredTensor, layers: Collection[int] | None = None
    ) -> tuple[tuple[Format, int], ...]:
        """Return the format, for all layers."""
        if layers is not None:
            return ((self.format, len(layers) if tensor.times else 1),)
        return ((self.format, tensor.times[0][0] if tensor.times else 1),)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Rule(Described):
    """The format of the matrices that `targets` name: patterns of modules, or ``"Linear"`` for all.

    >>> from llmcalc import formats
    >>> from llmcalc.formats import Rule
    >>> Rule(format=formats.get("mxfp4"), targets=("mlp.experts",)).targets
    ('mlp.experts',)
    """

    format: Format = attrs.field(validator=instance_of(Format))
    targets: tuple[str, ...] = ("Linear",)


def _numbered(layers: Mapping[str, Iterable[int]]) -> Mapping[str, tuple[int, ...]]:
    """Return the numbers of the layers by their label, which nobody can change."""
    return FrozenMapping({label: tuple(numbers) for label, numbers in layers.items()})


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Coverage(Scheme):
    """The matrices of linear layers that a rule covers are in its format; the rest is `wide`.

    The first rule that has the module among its targets counts. Embeddings, norms, vectors,
    convolutions, routers and the weights of an indexer's heads are wide, and so is what `ignore`
    names; patterns are those of `llmcalc.formats.modules.Patterns`. `layers` gives the layers'
    numbers by their label, which patterns with numbers need where `formats_of` is not told them.

    >>> from llmcalc import ModelSpec, formats, memory
    >>> from llmcalc.formats import Coverage, Rule
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
    ...     embed_dim=64, inner_dim=128, vocab_size=100,
    ... )
    >>> own = Coverage(
    ...     name="own", wide=formats.get("bf16"), rules=(Rule(format=formats.get("fp8-channel")),),
    ...     ignore=("lm_head", "self_attn"),
    ... )
    >>> memory.weight_bytes(spec, weights=own).by()["feed_forward"]
    51712
    """

    name: str
    wide: Format = attrs.field(validator=instance_of(Format))
    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = HEAD
    layers: Mapping[str, tuple[int, ...]] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_numbered), repr=False
    )
    _ignored: Patterns = attrs.field(init=False, eq=False, repr=False)
    _targets: tuple[Patterns | None, ...] = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_ignored", Patterns(self.ignore, "ignore"))
        targets = tuple(
            None if "Linear" in rule.targets else Patterns(rule.targets, "targets")
            for rule in self.rules
        )
        object.__setattr__(self, "_targets", targets)

    def formats_of(
        self, tensor: StoredTensor, layers: Collection[int] | None = None
    ) -> tuple[tuple[Format, int], ...]:
        """Return the formats that the tensor has in the layers, and in how many of them each."""
        number = 1
        if tensor.times:
            number = tensor.times[0][0] if layers is None else len(layers)
        if not tensor.is_matrix or _stays_wide(tensor):
            return ((self.wide, number),)
        if not tensor.times:
            return ((self._choose(module_names(tensor, None)), number),)
        if not self._by_layer:
            return ((self._choose(module_names(tensor, 0)), number),)
        if layers is None:
            layers = () if self.layers is None else self.layers.get(tensor.label, ())
            if len(layers) != number:
                raise InvalidValueError(
                    "layers", self.layers, "must give the numbers of the layers of each label"
                )
        return counted(self._choose(module_names(tensor, layer)) for layer in layers)

    @property
    def _by_layer(self) -> bool:
        return self._ignored.by_layer or any(
            patterns is not None and patterns.by_layer for patterns in self._targets
        )

    def _choose(self, modules: tuple[str, ...]) -> Format:
        if self._ignored.match(modules):
            return self.wide
        for rule, patterns in zip(self.rules, self._targets, strict=True):
            if patterns is None or patterns.match(modules):
                return rule.format
        return self.wide


def counted(formats: Iterable[Format]) -> tuple[tuple[Format, int], ...]:
    """Return the formats, each once, and how often each was given."""
    counts: dict[Format, int] = {}
    for format in formats:
        counts[format] = counts.get(format, 0) + 1
    return tuple(counts.items())


def _stays_wide(tensor: StoredTensor) -> bool:
    """Return whether the matrix is a router, or gives the weights of an indexer's heads."""
    routes = tensor.group == "experts" and tensor.role in ROUTERS
    return routes or (tensor.group == "attention" and tensor.role == "index_weights")
