"""What a step's intermediate results take, as an engine measures it when it starts.

* `activation_peak`: the most that a step's intermediate results take.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from llmcalc import formats
from llmcalc.boundary import whole_number
from llmcalc.breakdown import Breakdown, Factor, Term
from llmcalc.engines.registry import DEFAULT, with_pool
from llmcalc.errors import InvalidValueError
from llmcalc.layouts import Layout, chosen
from llmcalc.spec.axes import extent
from llmcalc.spec.items import Linear
from llmcalc.spec.kept import kept
from llmcalc.spec.model import Ledger, ModelSpec, check_spec
from llmcalc.units import Bytes

if TYPE_CHECKING:
    from llmcalc.engines import ActivationRule, Engine
    from llmcalc.formats import Format, Scheme

__all__ = ["activation_peak"]


def activation_peak(
    spec: ModelSpec,
    *,
    engine: str | Engine = DEFAULT,
    weights: str | Format | Scheme = "bf16",
    batched_tokens: int | None = None,
    sequences: int | None = None,
    context: int | None = None,
    block_tokens: int | None = None,
    dtype: str | Format = "bf16",
    tensor_parallel: int = 1,
    layout: Layout | None = None,
    rank: int | None = None,
) -> Breakdown[Bytes]:
    """Return the most that the intermediate results of an engine's profiling step take.

    The step has `batched_tokens` tokens of which `sequences` give logits. The larger one of two
    peaks counts: that of the widest layer, and that of the sampler, which a pipeline has on its
    last stage; its stages also keep what they hand on, and mixtures the buffers of their experts.
    Latent attention expands as much of its cache as a step may read, which `context` (the longest
    one) and `block_tokens` bound; without a `context` it is the most that the engine ever does.
    `weights` matters where the kernels of a format have buffers of their own. The rule and what it
    was fitted to are the engine's (`llmcalc.engines.ActivationRule`); it covers attention,
    feed-forward layers and experts of text models, not vision towers. Raises
    `llmcalc.LlmcalcError` where the engine has no rule, and for a feed-forward of which no matrix
    states that it makes or reads the inner result.

    >>> from llmcalc import GiB, load_model, serving
    >>> peak = serving.activation_peak(load_model("Qwen/Qwen2.5-7B"))
    >>> round(peak.total / GiB, 2)  # vLLM 0.19 prints 2.21
    2.21
    >>> peak = serving.activation_peak(load_model("Mixtral-8x7B-v0.1"), tensor_parallel=2)
    >>> round(peak.total / GiB, 2)  # vLLM 0.19 prints 1.21
    1.21
    """
    check_spec(spec)
    known = with_pool(engine)
    rule = known.activation
    if rule is None:
        raise InvalidValueError(
            "engine", known.name, "has no rule for activations: give activation_bytes"
        )
    where = chosen(tensor_parallel, layout)
    step = _Step(
        rule=rule,
        tokens=whole_number(
            known.batched_tokens if batched_tokens is None else batched_tokens, "batched_tokens"
        ),
        rows=whole_number(known.sequences if sequences is None else sequences, "sequences"),
        hidden=(spec.embed_dim, "hidden"),
        vocab=(spec.embedding.vocab.size, "vocab"),
        element=(formats.get(dtype, "dtype").bytes(rows=1, columns=1), "bytes"),
    )
    block = known.block_tokens if block_tokens is None else block_tokens
    expanded = rule.expanded_tokens(
        step.rows,
        None if context is None else whole_number(context, "context"),
        whole_number(block, "block_tokens", minimum=1),
    )
    layers = _layers(spec, where, rule, weights)
    held = step.held(layers, stages=where.pipeline_parallel)
    widest = step.widest(layers, expanded)
    peak = Breakdown(Bytes, "Activation peak, in the widest layer", widest + held)
    if not is_last(where, rank):
        return peak
    other = Breakdown(Bytes, "Activation peak, in the sampler", step.sampling() + held)
    return other if other.total > peak.total else peak


class _Step(NamedTuple):
    """A profiling step: its tokens, the rows that give logits, and the model's sizes."""

    rule: ActivationRule
    tokens: int
    rows: int
    hidden: Factor
    vocab: Factor
    element: Factor

    def held(self, layers: tuple[_Layer, ...], *, stages: int) -> list[Term[int]]:
        """Return what is kept from layer to layer: buffers of experts, and what is handed on."""
        tokens, found = (self.tokens, "tokens"), None
        for layer in layers:
            if layer.kept is not None:
                factors = (tokens, *layer.kept.factors, self.element)
                term = Term[int](("experts", layer.label, "buffers"), factors)
                found = term if found is None or term.value > found.value else found
        held = [] if found is None else [found]
        if stages > 1:  # hidden state and residual, kept for the next stage
            factors = ((2, "tensors"), tokens, self.hidden, self.element)
            held.append(Term(("pipeline", "", "handed on"), factors))
        return held

    def widest(self, layers: tuple[_Layer, ...], expanded: int) -> list[Term[int]]:
        """Return what the layer computes at once that computes most."""
        counted = {"tokens": self.tokens, "expanded": expanded}
        most, found = 0, None
        for layer in layers:
            total = sum([counted[part.grows_with] * part.width for part in layer.wide])
            if total > most:
                most, found = total, layer
        terms = []
        for part in () if found is None else found.wide:
            path = ("layer", "" if found is None else found.label, part.name)
            count = (counted[part.grows_with], "tokens")
            terms.append(Term[int](path, (count, *part.factors, self.element)))
        times = (self.rule.layer_hidden, "times")
        hidden = ((self.tokens, "tokens"), times, self.hidden, self.element)
        terms.append(Term(("layer", "", "hidden"), hidden))
        constant = ((self.rule.layer_constant_bytes, "bytes"),)
        terms.append(Term(("layer", "", "workspace"), constant))
        return terms

    def sampling(self) -> list[Term[int]]:
        """Return what the sampler needs."""
        rule, rows = self.rule, (min(self.rows, self.tokens), "rows")
        parts: dict[str, tuple[Factor, ...]] = {
            "hidden": ((self.tokens, "tokens"), self.hidden, self.element),
            "last hidden": (rows, self.hidden, self.element),
            "logits": (rows, self.vocab, self.element),
            "fp32 copies": (rows, self.vocab, (rule.sampler_logit_bytes, "bytes")),
            "buffers": ((rule.sampler_rows, "rows"), self.vocab, (4, "bytes")),
            "workspace": ((rule.sampler_constant_bytes, "bytes"),),
        }
        return [Term(("sampler", "", name), factors) for name, factors in parts.items()]


def is_last(layout: Layout, rank: int | None) -> bool:
    """Whether a rank is of the last stage, which samples; without a rank that is the one meant."""
    return rank is None or layout.place(rank)[1] == layout.pipeline_parallel - 1


class _Part(NamedTuple):
    """Intermediate results but for the element's bytes: `factors`, whose product is `width`.

    There are so many for each of the step's tokens, or of the cached ones that are expanded.
    """

    name: str
    grows_with: Literal["tokens", "expanded"]
    width: int
    factors: tuple[Factor, ...]


def _part(name: str, grows_with: Literal["tokens", "expanded"], *factors: Factor) -> _Part:
    return _Part(name, grows_with, prod(size for size, _ in factors), factors)


class _Layer(NamedTuple):
    """A kind of layer: what it is called, what it computes at once, and what it keeps."""

    label: str
    wide: tuple[_Part, ...]
    kept: _Part | None


def _layers(
    spec: ModelSpec, layout: Layout, rule: ActivationRule, weights: str | Format | Scheme
) -> tuple[_Layer, ...]:
    """Return the intermediate results of each kind of layer, per device."""
    ranks = layout.tensor_parallel
    # An expert that stands whole on one rank gets its tokens from several.
    experts = 1 if layout.expert_parallel else ranks
    return kept(spec.ledger, _found, ranks, experts, rule, weights)


def _found(
    ledger: Ledger,
    ranks: int,
    expert_ranks: int,
    rule: ActivationRule,
    weights: str | Format | Scheme,
) -> tuple[_Layer, ...]:
    parts: dict[tuple[str, str], list[Linear]] = {}
    for entry in ledger.entries:
        if isinstance(entry.item, Linear):
            parts.setdefault(entry.path, []).append(entry.item)
    storage = formats.scheme(weights, ledger.spec)
    # Experts in these formats run in kernels that allocate their buffers themselves.
    transient = {
        tensor.path[:2]
        for tensor in ledger.tensors
        if tensor.routed and storage.format_of(tensor).expert_kernels is not None
    }
    found = []
    for path, linears in parts.items():
        if path[0] in _INNER and not any(item.inner for item in linears):
            unknown = f"must be given: no matrix of {' '.join(path)} states its inner width"
            raise InvalidValueError("activation_bytes", None, unknown)
        keeps = rule.keeps_expert_buffers and path not in transient
        layer = _Layer(path[1], *_of_layer(linears, ranks, expert_ranks, rule, keeps=keeps))
        if layer.wide or layer.kept:
            found.append(layer)
    return tuple(found)


#: The groups whose layers have an inner result, which a step's results are as wide as.
_INNER: Final = frozenset({"feed_forward", "experts"})


def _of_layer(
    linears: list[Linear],
    ranks: int,
    expert_ranks: int,
    rule: ActivationRule,
    *,
    keeps: bool,
) -> tuple[tuple[_Part, ...], _Part | None]:
    """Return what matrices of one kind of layer compute at once, and what is kept of it."""
    wide: list[_Part] = []
    buffers, inner = None, 0
    made = sum([item.routed and item.inner == "made" for item in linears])
    for item in linears:
        size = extent((item.into,))
        if item.inner == "read" and not item.routed:
            inner += -(-size // ranks)
        elif item.inner == "read":
            width = -(-size // expert_ranks)
            both, out = width * made, extent(item.out)
            several = (item.active or 0, "experts")
            if keeps:
                total = max(width, out) + max(both, out)
                buffers = _part("buffers", "tokens", several, (total, "wide"))
            else:
                total = max(both, out) + width
                wide.append(_part("experts", "tokens", several, (total, "wide")))
        elif item.tokens == "latent":
            heads = (-(-item.out[0][0].size // ranks), "heads")
            each = (sum(piece[-1].size for piece in item.out), "wide")
            wide.append(_part("expanded cache", "expanded", heads, each))
    if inner:
        wide.append(_part("inner", "tokens", (rule.layer_inner * inner, "wide")))
    return tuple(wide), buffers
