r"""The budget of a device: what an engine subtracts from its memory until the cache pool is left.

* `budget`: visible memory x utilisation less weights, activations and the rest: the cache pool.
* `Budget`: the terms, and what the pool holds.
* `loaded_weights`: what an engine's weights take once they are loaded.
* `activation_peak`: the most that a step's intermediate results take.

.. math:: \text{pool} = \text{visible} \cdot \text{utilisation} - \text{weights} -
          \text{activation peak} - \text{non-torch} - \text{graphs}

Each term is the caller's, or follows from a profile (`llmcalc.serving.profile`). Other engines
take their share elsewhere: SGLang's static fraction covers weights and pool, TensorRT-LLM's is one
of what is free when everything else is in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

import attrs

from llmcalc import formats, hardware, memory
from llmcalc.boundary import whole_number
from llmcalc.breakdown import Breakdown, Factor, Term
from llmcalc.described import Described
from llmcalc.engines.pools import Used
from llmcalc.engines.registry import DEFAULT
from llmcalc.errors import InvalidValueError
from llmcalc.formats import Format, Scheme
from llmcalc.hardware import DeviceSpec
from llmcalc.layouts import Layout
from llmcalc.serving.engines import ActivationRule, Profile, check_share, profile
from llmcalc.serving.paging import Allocation, allocate, held_caches
from llmcalc.spec.items import Linear
from llmcalc.spec.model import ModelSpec
from llmcalc.units import Bytes, MiB, format_quantity

if TYPE_CHECKING:
    from llmcalc.memory import StateFormat

__all__ = ["Budget", "activation_peak", "budget", "loaded_weights"]

#: Matrices that engines store as one, by the names of their parts.
_FUSED = (
    ("q", "k", "v"),
    ("gate", "up"),
    ("shared.gate", "shared.up"),
    ("q_a", "kv_a"),
    ("qkv", "gate"),
)


def loaded_weights(
    spec: ModelSpec,
    *,
    weights: str | Format | Scheme,
    dtype: str | Format = "bf16",
    engine: str | Profile = DEFAULT,
    tensor_parallel: int = 1,
    layout: Layout | None = None,
    rank: int | None = None,
) -> Breakdown[Bytes]:
    """Return what the weights take on one device once an engine has loaded them.

    Beside the weights themselves (`llmcalc.memory.weight_bytes`) these are rows that pad the
    vocabulary, the tables of rotary positions in the model's `dtype`, the copies of latent
    attention's expansion that its absorbed form reads, what kernels for mxfp4 experts hold beyond
    the file's tensors, and what the framework's allocator rounds up: it takes segments of 2 MiB,
    and what is left of one is lost where that is at most 1 MiB.

    >>> from llmcalc import load_model, serving
    >>> llama = load_model("meta-llama/Llama-3.1-8B")
    >>> dict(serving.loaded_weights(llama, weights="bf16").by())
    {'weights': 16060522496, 'rotary tables': 33554432}

    Source: vLLM's rotary_embedding (one table of cosines and sines for each kind of position),
    vocab_parallel_embedding and mla/common; PyTorch, ``c10/cuda/CUDACachingAllocator.cpp``.
    """
    known = profile(engine)
    place = memory.checked_layout(tensor_parallel, layout)
    number = None if rank is None else whole_number(rank, "rank")
    element = formats.get(dtype, "dtype")
    key = ("loaded weights", *_told_apart(weights, element, known), place, number)
    found = spec.ledger.programs.get(key)
    if found is None:
        stored = memory.weight_bytes(spec, weights=weights, layout=place, rank=number)
        terms = _loaded(spec, stored, element, known, place.tensor_parallel)
        loaded = Breakdown(Bytes, f"Loaded weights of {spec.name}", terms)
        found = spec.ledger.keep(key, (loaded, weights, element))
    return cast("Breakdown[Bytes]", found[0])


def _told_apart(
    weights: str | Format | Scheme, element: Format, known: Profile
) -> tuple[object, ...]:
    """Return what loaded weights depend on, beside their place.

    What has no name is told apart as an object, which lives as long as what is kept.
    """
    named = weights if type(weights) is str else id(weights)
    return named, id(element), known.vocab_multiple, known.pool_rule, known.mxfp4_kernels


def _loaded_stages(
    spec: ModelSpec, weights: str | Format | Scheme, element: Format, known: Profile, layout: Layout
) -> tuple[Breakdown[Bytes], ...]:
    """Return the loaded weights on the first rank of each stage, kept together."""
    key = ("loaded stages", *_told_apart(weights, element, known), layout)
    found = spec.ledger.programs.get(key)
    if found is None:
        loaded = tuple(
            loaded_weights(
                spec, weights=weights, dtype=element, engine=known, layout=layout, rank=rank
            )
            for rank in _first_ranks(layout)
        )
        found = spec.ledger.keep(key, (loaded, weights, element))
    return cast("tuple[Breakdown[Bytes], ...]", found[0])


def _first_ranks(layout: Layout) -> range:
    return range(0, layout.pipeline_parallel * layout.tensor_parallel, layout.tensor_parallel)


def _loaded(
    spec: ModelSpec, stored: Breakdown[Bytes], element: Format, known: Profile, degree: int
) -> Iterator[Term[int]]:
    """Give what weights take, and what engines add to them."""
    for term in stored.terms:
        yield Term(("weights", *term.path), term.factors)
    yield from _vocabulary_padding(stored, known.vocab_multiple, degree, spec)
    if known.pool.holds_rotary_tables:
        yield from _rotary_tables(spec, element)
    if not known.pool.loads_as_allocated:
        return
    yield from _absorbed_copies(stored, spec, element)
    kernels = list(_kernels(stored, known))
    for kernel in kernels:
        held = (sum(kernel.tensors) - kernel.stored, "bytes")
        times = (kernel.experts, "experts"), (kernel.layers, "layers")
        yield Term(("kernels", kernel.label, kernel.name), (held, *times))
    yield from _rounded_up(stored, kernels)


def _vocabulary_padding(
    stored: Breakdown[Bytes], multiple: int, degree: int, spec: ModelSpec
) -> Iterator[Term[int]]:
    rows = spec.embedding.vocab.size
    padded = -(-rows // multiple) * multiple
    padded = -(-padded // degree)
    for term in stored.terms:
        for value, name in term.factors:
            if name == "vocab" and padded > value:
                others = term.value // value
                yield Term(
                    ("vocabulary padding", *term.path),
                    ((padded - value, "rows"), (others, "bytes")),
                )


def _rotary_tables(spec: ModelSpec, element: Format) -> Iterator[Term[int]]:
    if spec.max_positions is None:
        return
    tables = {}
    for run in spec.layers:
        for part in run.layer.parts:
            rotary = getattr(part, "rotary", None)
            if rotary is None:
                continue
            latent = getattr(part, "rope_dim", None)
            width = latent or round(getattr(part, "head_dim", 0) * rotary.fraction)
            tables[rotary.theta, rotary.scaling, width] = width
    for number, width in enumerate(tables.values()):
        if width:
            yield Term(
                ("rotary tables", "", f"table {number + 1}" if len(tables) > 1 else "table"),
                (
                    (spec.max_positions, "positions"),
                    (element.bytes(rows=1, columns=width), "bytes"),
                ),
            )


def _absorbed_copies(
    stored: Breakdown[Bytes], spec: ModelSpec, element: Format
) -> Iterator[Term[int]]:
    shares = {term.path: term for term in stored.terms}
    for tensor in spec.ledger.tensors:
        if tensor.path[0] != "attention" or tensor.path[-1] != "kv_b.weight":
            continue
        term = shares.get(tensor.path)
        if term is not None:
            elements = prod(value for value, name in term.factors if name != "bytes")
            yield Term(
                ("absorbed copies", *tensor.path[1:]),
                ((elements, "elements"), (element.bytes(rows=1, columns=1), "bytes")),
            )


class _Kernel(NamedTuple):
    """What kernels make of the mxfp4 experts of one kind of layer, or of one of its matrices.

    `stored` are the bytes of the tensors of the file that `tensors` stand in for, of one expert and
    layer; `paths` are theirs.
    """

    label: str
    name: str
    experts: int
    layers: int
    stored: int
    tensors: tuple[int, ...]
    paths: tuple[tuple[str, ...], ...]


#: Which matrix of the kernels an expert's matrix is, or is a part of.
_MATRICES: Final = {"gate": "gate and up", "up": "gate and up", "down": "down"}

#: Rows and groups of the scales that triton_kernels rounds up to (``HopperMXScaleLayout``).
_SCALE_ROWS, _SCALE_GROUPS = 256, 2


def _kernels(stored: Breakdown[Bytes], known: Profile) -> Iterator[_Kernel]:
    """Give the matrices of mxfp4 experts as kernels hold them: values, scales twice, wide biases.

    Gate and up are one matrix. The scales of the file are kept beside those of the kernels, and
    biases are in fp32. Source: vLLM, ``convert_to_mxfp4_moe_kernel_format``; triton_kernels,
    ``HopperMXValueLayout``, ``HopperMXScaleLayout``.
    """
    rules = known.mxfp4_kernels
    if rules is None:
        return
    kinds: dict[tuple[str, str], list[tuple[Term[int], dict[str, int]]]] = {}
    for term in stored.terms:
        matrix = _MATRICES.get(term.path[-1].partition(".")[0])
        sizes = {name: value for value, name in term.factors}
        if term.path[0] == "experts" and matrix is not None and "experts" in sizes:
            kinds.setdefault((term.path[1], matrix), []).append((term, sizes))
    for (label, matrix), parts in kinds.items():
        weights = [(term, sizes) for term, sizes in parts if sizes.get("bytes") == 17]
        if not weights:
            continue
        experts, layers = weights[0][1]["experts"], weights[0][1].get("layers", 1)
        columns = 32 * weights[0][1]["blocks of 32 elements"]
        if matrix == "down":  # the contracted axis is the inner one
            rows, columns = weights[0][1]["embed"], _up(columns, rules.inner_multiple)
        else:
            rows = sum(_up(sizes["inner"], rules.inner_multiple) for _, sizes in weights)
        values = _up(rows, rules.row_multiple) * _up(columns, rules.contracted_multiple) // 2
        scales = _up(rows, _SCALE_ROWS) * _up(columns // 32, _SCALE_GROUPS)
        biases = 4 * rows if len(parts) > len(weights) else 0
        yield _Kernel(
            label=label,
            name=matrix,
            experts=experts,
            layers=layers,
            stored=sum(term.value for term, _ in parts) // (experts * layers),
            tensors=(values, scales, rows * columns // 32, biases),
            paths=tuple(term.path for term, _ in parts),
        )


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _rounded_up(stored: Breakdown[Bytes], kernels: list[_Kernel]) -> Iterator[Term[int]]:
    """Give what is lost of the allocator's segments; it matters for tensors of 10 MiB or more."""
    sizes: dict[tuple[str, str, str], tuple[int, int]] = {}
    replaced = {path for kernel in kernels for path in kernel.paths}
    for kernel in kernels:
        for number, each in enumerate(kernel.tensors):
            key = "experts", kernel.label, f"{kernel.name} {number}"
            sizes[key] = kernel.experts * each, kernel.layers
    for term in stored.terms:
        if term.path in replaced:
            continue
        group, label, name = term.path[0], term.path[1], term.path[-1]
        layers = prod(value for value, factor in term.factors if factor == "layers")
        if not layers:
            continue
        base = name.removesuffix(".weight")
        for parts in _FUSED:
            if base in parts and name.endswith(".weight"):
                base = "+".join(parts)
                break
        else:
            base = name
        key = group, label, base
        size, _ = sizes.get(key, (0, layers))
        sizes[key] = size + term.value // layers, layers
    for key, (size, layers) in sizes.items():
        lost = -size % (2 * MiB)
        if size >= 10 * MiB and 0 < lost <= MiB:
            yield Term(("allocator rounding", *key[1:]), ((lost, "bytes"), (layers, "tensors")))


def activation_peak(
    spec: ModelSpec,
    *,
    engine: str | Profile = DEFAULT,
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
    was fitted to are the profile's (`llmcalc.serving.ActivationRule`); it covers attention,
    feed-forward layers and experts of text models, not vision towers. Raises
    `llmcalc.LlmcalcError` where the profile has no rule.

    >>> from llmcalc import GiB, load_model, serving
    >>> peak = serving.activation_peak(load_model("Qwen/Qwen2.5-7B"))
    >>> round(peak.total / GiB, 2)  # vLLM 0.19 prints 2.21
    2.21
    >>> peak = serving.activation_peak(load_model("Mixtral-8x7B-v0.1"), tensor_parallel=2)
    >>> round(peak.total / GiB, 2)  # vLLM 0.19 prints 1.21
    1.21
    """
    known = profile(engine)
    rule = known.activation
    if rule is None:
        raise InvalidValueError(
            "engine", known.name, "has no rule for activations: give activation_bytes"
        )
    tokens = whole_number(
        known.batched_tokens if batched_tokens is None else batched_tokens, "batched_tokens"
    )
    where = memory.checked_layout(tensor_parallel, layout)
    stages = where.pipeline_parallel
    rows = whole_number(known.sequences if sequences is None else sequences, "sequences")
    block = known.block_tokens if block_tokens is None else block_tokens
    element = formats.get(dtype, "dtype").bytes(rows=1, columns=1)
    hidden = (spec.embed_dim, "hidden")
    size = (element, "bytes")
    counted = {
        "tokens": tokens,
        "expanded": rule.expanded_tokens(
            rows,
            None if context is None else whole_number(context, "context"),
            whole_number(block, "block_tokens", minimum=1),
        ),
    }
    widest: list[tuple[str, _Part]] = []
    most = 0
    kept: list[Term[int]] = []
    for label, wide, buffers in _layers(spec, where, rule, weights):
        total = sum([counted[part.grows_with] * part.width for part in wide])
        if total > most:
            most, widest = total, [(label, part) for part in wide]
        if buffers is not None:
            found = Term(
                ("experts", label, "buffers"), ((tokens, "tokens"), *buffers.factors, size)
            )
            kept = [max([*kept, found], key=lambda term: term.value)]
    kept += [
        # hidden state and residual, kept for the next stage
        Term(
            ("pipeline", "", "handed on"),
            ((2, "tensors"), (tokens, "tokens"), hidden, (element, "bytes")),
        )
    ] * (stages > 1)
    layer_terms = [
        *(
            Term(
                ("layer", label, part.name),
                ((counted[part.grows_with], "tokens"), *part.factors, size),
            )
            for label, part in widest
        ),
        Term(
            ("layer", "", "hidden"),
            ((tokens, "tokens"), (rule.layer_hidden, "times"), hidden, (element, "bytes")),
        ),
        Term(("layer", "", "workspace"), ((rule.layer_constant_bytes, "bytes"),)),
    ]
    peak = Breakdown(Bytes, "Activation peak, in the widest layer", layer_terms + kept)
    if not _is_last(where, rank):
        return peak
    vocab = (spec.embedding.vocab.size, "vocab")
    chosen = min(rows, tokens)
    sampling = [
        Term(("sampler", "", "hidden"), ((tokens, "tokens"), hidden, (element, "bytes"))),
        Term(("sampler", "", "last hidden"), ((chosen, "rows"), hidden, (element, "bytes"))),
        Term(("sampler", "", "logits"), ((chosen, "rows"), vocab, (element, "bytes"))),
        Term(
            ("sampler", "", "fp32 copies"),
            ((chosen, "rows"), vocab, (rule.sampler_logit_bytes, "bytes")),
        ),
        Term(("sampler", "", "buffers"), ((rule.sampler_rows, "rows"), vocab, (4, "bytes"))),
        Term(("sampler", "", "workspace"), ((rule.sampler_constant_bytes, "bytes"),)),
    ]
    other = Breakdown(Bytes, "Activation peak, in the sampler", sampling + kept)
    return other if other.total > peak.total else peak


def _is_last(layout: Layout, rank: int | None) -> bool:
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
    """Return the intermediate results of each kind of layer, per device; kept with the model."""
    named = weights if type(weights) is str else id(weights)
    ranks, whole = layout.tensor_parallel, layout.expert_parallel
    key = ("activations", named, ranks, whole, rule.layer_inner, rule.keeps_expert_buffers)
    found = spec.ledger.programs.get(key)
    if found is None:
        # An expert that stands whole on one rank gets its tokens from several.
        made = tuple(_made(spec, ranks, 1 if whole else ranks, rule, formats.scheme(weights, spec)))
        found = spec.ledger.keep(key, (made, weights))
    return cast("tuple[_Layer, ...]", found[0])


def _made(
    spec: ModelSpec, ranks: int, expert_ranks: int, rule: ActivationRule, storage: Scheme
) -> Iterator[_Layer]:
    parts: dict[tuple[str, str], dict[str, Linear]] = {}
    for entry in spec.ledger.entries:
        if isinstance(entry.item, Linear):
            parts.setdefault(entry.path, {})[entry.item.name] = entry.item
    transient = {
        tensor.path[:2]
        for tensor in spec.ledger.tensors
        if tensor.routed and storage.format_of(tensor).name in _OWN_BUFFERS
    }
    for path, linears in parts.items():
        wide: list[_Part] = []
        kept = None
        inner = 0
        for name, item in linears.items():
            size = prod(axis.size for axis in item.into)
            if name in {"down", "shared.down"} and item.active is None:
                inner += -(-size // ranks)
            elif name == "down":
                width = -(-size // expert_ranks)
                both = width * (2 if "gate" in linears else 1)
                out = prod(axis.size for axis in item.out[0])
                several = (item.active or 0, "experts")
                if rule.keeps_expert_buffers and path not in transient:
                    total = max(width, out) + max(both, out)
                    kept = _part("buffers", "tokens", several, (total, "wide"))
                else:
                    total = max(both, out) + width
                    wide.append(_part("experts", "tokens", several, (total, "wide")))
            elif name == "kv_b":
                heads = (-(-item.out[0][0].size // ranks), "heads")
                each = (sum(piece[-1].size for piece in item.out), "wide")
                wide.append(_part("expanded cache", "expanded", heads, each))
        if inner:
            wide.append(_part("inner", "tokens", (rule.layer_inner * inner, "wide")))
        if wide or kept:
            yield _Layer(path[1], tuple(wide), kept)


#: Formats whose experts run in kernels that allocate their buffers themselves, and free them.
_OWN_BUFFERS: Final = frozenset({"mxfp4"})


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Budget(Described):
    """What an engine subtracts from a device's memory, and the cache pool that is left.

    All terms are bytes on one device. `allocation` is what one request of the longest context
    takes of the pool. ``bool(budget)`` is whether that request fits.
    """

    engine: Profile
    visible_bytes: int
    share: float
    weights: Breakdown[Bytes]
    activation: Breakdown[Bytes]
    non_torch_bytes: int
    graph_bytes: int
    allocation: Allocation

    def __bool__(self) -> bool:
        return self.fits

    @property
    def weight_bytes(self) -> int:
        """What the loaded weights take."""
        return self.weights.total

    @property
    def activation_bytes(self) -> int:
        """The peak of intermediate results."""
        return self.activation.total

    @property
    def requested_bytes(self) -> int:
        """What the engine may use: of the visible memory its share."""
        return self.engine.pool.requested_bytes(self.visible_bytes, self.share)

    @property
    def _used(self) -> Used:
        return Used(
            self.weight_bytes, self.activation_bytes, self.non_torch_bytes, self.graph_bytes
        )

    @property
    def pool_bytes(self) -> int:
        """The cache pool; negative where the rest does not fit."""
        return self.engine.pool.pool_bytes(self.visible_bytes, self.share, self._used)

    @property
    def blocks(self) -> int | None:
        """The blocks of the pool; `None` where it has none."""
        return self.allocation.pool_blocks(max(0, self.pool_bytes))

    @property
    def tokens(self) -> int | None:
        """The tokens that the pool holds, as the engine counts them."""
        return self.allocation.tokens(max(0, self.pool_bytes))

    @property
    def concurrency(self) -> float | None:
        """How many requests of the longest context the pool holds, as a fraction."""
        return self.allocation.concurrency(max(0, self.pool_bytes))

    @property
    def fits(self) -> bool:
        """Whether at least one request of the longest context fits, as engines demand."""
        return self.short_bytes == 0

    @property
    def short_bytes(self) -> int:
        """What is missing for one request of the longest context, or 0."""
        return max(0, self.allocation.request_bytes - self.pool_bytes)

    @property
    def reason(self) -> str:
        """One sentence: what the pool holds, or what is missing."""
        if self.fits:
            return (
                f"fits: the pool of {format_quantity(self.pool_bytes, Bytes)} holds "
                f"{self.concurrency:.2f} requests of {self.allocation.context} tokens"
                if self.concurrency is not None
                else "fits: requests hold nothing"
            )
        return (
            f"does not fit: a request of {self.allocation.context} tokens needs "
            f"{format_quantity(self.allocation.request_bytes, Bytes)}, the pool has "
            f"{format_quantity(self.pool_bytes, Bytes)}; "
            f"short by {format_quantity(self.short_bytes, Bytes)}"
        )

    def explain(self) -> str:
        """Return the working: memory, each term, the pool and what it holds."""
        visible = format_quantity(self.visible_bytes, Bytes)
        rows = self.engine.pool.working(self.visible_bytes, self.share, self._used)
        width = max(len(name) for name, _ in rows)
        lines = [f"Budget of {self.engine.name} on {visible}"]
        lines += [f"  {name:<{width}}  {text}" for name, text in rows]
        if self.blocks is not None:
            lines.append(f"  {'blocks':<{width}}  {self.blocks}")
        if self.tokens is not None:
            lines.append(f"  {'tokens':<{width}}  {self.tokens}")
        lines.append(self.reason)
        return "\n".join(lines)


def budget(
    spec: ModelSpec,
    *,
    context: int,
    weights: str | Format | Scheme,
    kv: str | Format,
    device: str | DeviceSpec | None = None,
    visible_bytes: int | None = None,
    engine: str | Profile = DEFAULT,
    share: float | None = None,
    dtype: str | Format = "bf16",
    state: StateFormat = "fp32",
    index: str | Format | None = None,
    block_tokens: int | None = None,
    state_blocks: int = 1,
    batched_tokens: int | None = None,
    sequences: int | None = None,
    tensor_parallel: int = 1,
    layout: Layout | None = None,
    rank: int | None = None,
    weight_bytes: int | None = None,
    activation_bytes: int | None = None,
    non_torch_bytes: int | None = None,
    graph_bytes: int | None = None,
) -> Budget:
    """Return an engine's budget on one device: each term, the cache pool and what it holds.

    `context` is the longest request (``max_model_len``). Memory is `visible_bytes`, or what the
    runtime shows of `device`, of which the engine takes its `share`
    (``gpu_memory_utilization``). A step's `batched_tokens` and `sequences` are by default the
    engine's for such a device. A term that is given, such as `activation_bytes`, is taken as it
    is; one that is not follows from the profile, and where the profile does not know it, the
    error says which to give. Figures are those of one device: `rank`, or else the one that a
    layout's engine waits for, because it holds fewest requests.

    >>> from llmcalc import load_model, serving
    >>> answer = serving.budget(
    ...     load_model("meta-llama/Llama-3.1-8B"), device="H100-SXM-80GB", share=0.95,
    ...     context=8192, weights="bf16", kv="bf16",
    ... )
    >>> print(answer.explain())  # vLLM 0.19 printed 58.11 GiB and 476 016 tokens
    Budget of vllm-0.19 on 85 029 615 042 B (79.19 GiB)
      visible x 0.95   80 778 134 289 B (75.23 GiB)
      weights          -16 094 076 928 B (-14.989 GiB)
      activation peak  -2 023 837 696 B (-1.8848 GiB)
      non-torch        -268 435 456 B (-0.25 GiB)
      graphs           0 B
      cache pool       62 391 784 209 B (58.107 GiB)
      blocks           29750
      tokens           476000
    fits: the pool of 62 391 784 209 B (58.107 GiB) holds 58.11 requests of 8192 tokens
    """
    known = profile(engine)
    place = memory.checked_layout(tensor_parallel, layout)
    if visible_bytes is None:
        if device is None:
            raise InvalidValueError("visible_bytes", None, "give it, or a device")
        found = hardware.get(device)
        visible_bytes, named = found.runtime_memory_bytes or found.memory_bytes, found.name
    elif device is not None:
        raise InvalidValueError("visible_bytes", visible_bytes, "give it or a device, not both")
    else:
        visible_bytes, named = whole_number(visible_bytes, "visible_bytes", minimum=1), ""
    step = known.step(visible_bytes, named)
    batched_tokens = step[0] if batched_tokens is None else batched_tokens
    sequences = step[1] if sequences is None else sequences
    share = check_share(known.share if share is None else share, "share")
    measured = {
        "activation_bytes": activation_bytes,
        "non_torch_bytes": non_torch_bytes,
        "graph_bytes": graph_bytes,
    }
    _check_known(known, place, measured)
    non_torch, graphs = (
        whole_number(own if stated is None else stated, name)
        for name, stated, own in (
            ("non_torch_bytes", non_torch_bytes, _non_torch(known, place)),
            ("graph_bytes", graph_bytes, 0),
        )
    )
    peaks: dict[bool, Breakdown[Bytes]] = {}  # of the last stage, and of any other one
    requests: dict[int | None, Allocation] = {}  # by the rank that they are on

    def activation_on(rank: int | None) -> Breakdown[Bytes]:
        if activation_bytes is not None or "activation_bytes" not in known.pool.asked:
            given = 0 if activation_bytes is None else activation_bytes
            return _given("Activation peak", given, "activation_bytes")
        last = _is_last(place, rank)
        if last not in peaks:
            peaks[last] = activation_peak(
                spec,
                engine=known,
                weights=weights,
                batched_tokens=batched_tokens,
                sequences=sequences,
                context=context,
                block_tokens=block_tokens,
                dtype=dtype,
                layout=place,
                rank=rank,
            )
        return peaks[last]

    def allocation_on(rank: int | None) -> Allocation:
        return allocate(
            spec,
            context=context,
            kv=kv,
            state=state,
            index=index,
            policy=known.pool.policy,
            engine=known,
            block_tokens=block_tokens,
            state_blocks=state_blocks,
            batched_tokens=batched_tokens,
            layout=place,
            rank=rank,
        )

    def budget_on(rank: int | None, loaded: Breakdown[Bytes], as_on: int | None) -> Budget:
        activation = activation_on(rank)
        if as_on not in requests:
            requests[as_on] = allocation_on(as_on)
        return Budget(
            engine=known,
            visible_bytes=visible_bytes,
            share=share,
            weights=loaded,
            activation=activation,
            non_torch_bytes=non_torch,
            graph_bytes=graphs,
            allocation=requests[as_on],
        )

    one = rank is not None or place.pipeline_parallel == 1
    if weight_bytes is not None:
        given = _given("Loaded weights", weight_bytes, "weight_bytes")
        loaded = (given,) * (1 if one else place.pipeline_parallel)
    elif one:
        loaded = (
            loaded_weights(
                spec, weights=weights, dtype=dtype, engine=known, layout=place, rank=rank
            ),
        )
    else:
        loaded = _loaded_stages(spec, weights, formats.get(dtype, "dtype"), known, place)
    if one:
        return budget_on(rank, loaded[0], rank)
    ranks = _first_ranks(place)
    alike = tuple(range(len(ranks)))
    if known.pool.policy == "paged":
        # Requests take as much on stages whose layers are alike.
        alike = held_caches(spec, memory.cache_formats(kv, state, index), place, None).alike
    stages = [budget_on(ranks[n], loaded[n], ranks[first]) for n, first in enumerate(alike)]

    def held(number: int) -> tuple[bool, float]:
        pool = stages[number].pool_bytes
        return pool >= 0, stages[number].allocation.concurrency(max(0, pool)) or 0

    number = min(range(len(stages)), key=held)
    if alike[number] == number:
        return stages[number]
    return attrs.evolve(stages[number], allocation=allocation_on(ranks[number]))


def _given(title: str, value: int, field: str) -> Breakdown[Bytes]:
    number = whole_number(value, field)
    return Breakdown(Bytes, title, [Term(("given", "", field), ((number, "bytes"),))])


def _non_torch(known: Profile, layout: Layout) -> int | None:
    """Return what was measured outside the framework; `None` where that is not known."""
    if "non_torch_bytes" not in known.pool.asked:
        return 0
    return known.non_torch_on(layout.tensor_parallel, layout.pipeline_parallel)


def _check_known(known: Profile, layout: Layout, given: Mapping[str, int | None]) -> None:
    """Refuse a budget with terms that are neither given nor known, and say how to give them all."""
    unknown = {
        "activation_bytes": "activation_bytes" in known.pool.asked and known.activation is None,
        "non_torch_bytes": _non_torch(known, layout) is None,
        "graph_bytes": known.graphs_subtracted,
    }
    missing = [name for name, value in given.items() if value is None and unknown[name]]
    if missing:
        ranks = f" for {layout.tensor_parallel} ranks" * (layout.tensor_parallel > 1)
        printed = known.log.words
        words = ", ".join(
            f"{name} ({printed[name]})" if name in printed else name for name in missing
        )
        rule = f"was not measured{ranks}: give {words}"
        if printed:
            rule += "; the words in brackets are those of the engine's start-up log"
        raise InvalidValueError("engine", known.name, rule)
