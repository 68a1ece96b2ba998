"""Attention: multi-head, grouped-query and multi-query, with its options.

* `Attention`: the projections, the cache and the mixing of one attention part.
* `LatentAttention`: multi-head latent attention (MLA).
* `Indexer`: what picks the positions that sparse attention attends.
* `Rotary`: rotary position embedding, which has no parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import attrs

from llmcalc.boundary import flag, instance_of, one_of, size
from llmcalc.described import Described
from llmcalc.errors import InvalidValueError
from llmcalc.spec.axes import Axes, Axis
from llmcalc.spec.items import Cache, EagerMix, Item, Linear, Mix, Scale, Turned
from llmcalc.spec.part import Group, Part
from llmcalc.spec.parts import Norm
from llmcalc.spec.spans import Compressed, Full, Span

__all__ = ["Attention", "Indexer", "LatentAttention", "Rotary"]

_optional = attrs.validators.optional


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Rotary(Described):
    """Rotary position embedding over the head, or over the first `fraction` of it.

    `theta` is the base of the frequencies; `scaling` names a scheme that changes them
    (``"llama3"``, ``"yarn"`` ...), `None` for none. None of them changes any count.
    """

    theta: float = 10000.0
    scaling: str | None = None
    fraction: float = 1.0


def _turned(rotary: Rotary | None, width: int) -> Turned | None:
    """Return how positions are turned in so many elements of each head."""
    return None if rotary is None else Turned(rotary.theta, rotary.scaling, width)


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Indexer(Described):
    """The indexer of sparse attention: it scores all positions, of which a query attends a few.

    `heads` small queries score one key of `head_dim` that is cached for each position. The
    queries are made from the latent of the attention's queries, where there is one. The scores of
    a position are summed with weights that the token gives; without `weighted` each head picks
    for itself. With `pooled` the mean of the keys of so many positions is scored. The part's span
    says how many positions are attended.

    Source: DeepSeek-AI, "DeepSeek-V3.2" (2025), section 2.1.
    """

    heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    key_norm: Norm = attrs.field(validator=instance_of(Norm))
    query_norm: Norm | None = attrs.field(default=None, validator=_optional(instance_of(Norm)))
    weighted: bool = attrs.field(default=True, validator=flag)
    pooled: int | None = attrs.field(default=None, validator=_optional(size))

    def items(self, embed: Axis, source: Axis) -> Iterator[Item]:
        """Emit projections, the cache of keys and the scoring; queries are made from `source`."""
        heads, head = Axis("index_heads", self.heads), Axis("index_dim", self.head_dim)
        yield Linear(name="index_q", into=(source,), out=((heads, head),))
        yield Linear(name="index_k", into=(embed,), out=((head,),))
        if self.query_norm is not None:
            yield from self.query_norm.items("index_q_norm", (head,), (heads,))
        yield from self.key_norm.items("index_k_norm", (head,))
        if self.weighted:
            yield Linear(name="index_weights", into=(embed,), out=((heads,),))
        yield Cache(name="index_k", role="index", shape=(head,), span=Full())
        score = Axis("index_score", 1 if self.weighted else 0)
        yield Mix(
            name="index",
            heads=heads,
            query_key=head,
            value=score,
            span=Full() if self.pooled is None else Compressed(self.pooled),
            in_transformers=None if self.pooled is None else EagerMix(skips=True),
        )


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Attention(Part):
    """Softmax attention of `query_heads` queries over `kv_heads` keys and values.

    `query_heads` == `kv_heads` is multi-head, `kv_heads` == 1 multi-query, between them
    grouped-query attention. `head_dim` need not be the width divided by the heads. Scores are
    scaled by 1 / sqrt(head_dim). Without `output`, the heads' results are the part's result.

    Options: values of another width (`value_dim`); norms of queries and keys, each head apart or
    ``"heads"`` all as one vector (`norm_axes`); a learned sink score for each head (`sinks`); a
    gate on the result, a projection with one output for each element or for each head
    (`output_gate`), with one bias a head (`head_gate_bias`); a norm before the output projection
    (`output_norm`); values that are the keys before their norm (`value_is_key`); heads in pairs
    whose results are subtracted, each over its own and the other's values (`differential`, with
    four vectors for the weight); a layer that reads another layer's cache, and has no keys and
    values of its own (`shares_cache`); an indexer that picks what a `TopK` span attends
    (`indexer`); scores that fall with the distance (`alibi`). `fused` says that files store
    queries, keys and values as one matrix, which changes no count. `transformers_cache` gives the
    heads and the span that transformers holds where that is more than an engine holds.

    >>> from llmcalc.spec import Attention, Axis
    >>> part = Attention(query_heads=4, kv_heads=2, head_dim=16)
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['q', 'k', 'v', 'k', 'v', 'attention', 'o']
    """

    group: ClassVar[Group] = "attention"

    query_heads: int = attrs.field(validator=size)
    kv_heads: int = attrs.field(validator=size)
    head_dim: int = attrs.field(validator=size)
    query_bias: bool = attrs.field(default=False, validator=flag)
    key_bias: bool = attrs.field(default=False, validator=flag)
    value_bias: bool = attrs.field(default=False, validator=flag)
    output: bool = attrs.field(default=True, validator=flag)
    output_bias: bool = attrs.field(default=False, validator=flag)
    rotary: Rotary | None = attrs.field(default=None, validator=_optional(instance_of(Rotary)))
    span: Span = attrs.field(default=Full())
    value_dim: int | None = attrs.field(default=None, validator=_optional(size))
    query_norm: Norm | None = attrs.field(default=None, validator=_optional(instance_of(Norm)))
    key_norm: Norm | None = attrs.field(default=None, validator=_optional(instance_of(Norm)))
    norm_axes: Literal["head", "heads"] = attrs.field(
        default="head", validator=one_of("head", "heads")
    )
    sinks: bool = attrs.field(default=False, validator=flag)
    output_gate: Literal["element", "head"] | None = attrs.field(
        default=None, validator=_optional(one_of("element", "head"))
    )
    gate_bias: bool = attrs.field(default=False, validator=flag)
    head_gate_bias: bool = attrs.field(default=False, validator=flag)
    output_norm: Norm | None = attrs.field(default=None, validator=_optional(instance_of(Norm)))
    value_is_key: bool = attrs.field(default=False, validator=flag)
    shares_cache: bool = attrs.field(default=False, validator=flag)
    indexer: Indexer | None = attrs.field(default=None, validator=_optional(instance_of(Indexer)))
    differential: bool = attrs.field(default=False, validator=flag)
    alibi: bool = attrs.field(default=False, validator=flag)
    fused: bool = attrs.field(default=False, validator=flag)
    transformers_cache: tuple[int, Span] | None = None

    @property
    def label(self) -> str:
        """What tells layers of this kind from others."""
        return "decoder" if self.span == Full() else type(self.span).__name__.lower()

    def __attrs_post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            raise InvalidValueError(
                "kv_heads", self.kv_heads, f"must divide query_heads ({self.query_heads})"
            )
        turned = self.rotary
        # Proportional scaling pairs all elements, and turns some of the pairs by nothing.
        whole = turned is not None and (turned.fraction == 1 or turned.scaling == "proportional")
        if whole and self.head_dim % 2:
            raise InvalidValueError("head_dim", self.head_dim, "must be even for rotary positions")
        if self.differential and self.kv_heads % 2:
            raise InvalidValueError("kv_heads", self.kv_heads, "must be even for pairs of heads")
        if self.output_bias and not self.output:
            raise InvalidValueError("output_bias", True, "needs an output projection (output)")

    def check_width(self, embed_dim: int) -> None:
        """Refuse a width that the part's result does not have."""
        result = self.query_heads * (self.value_dim or self.head_dim)
        if not self.output and result != embed_dim:
            raise InvalidValueError(
                "embed_dim",
                embed_dim,
                f"must be that of all heads ({result}) without an output projection",
            )

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, caches and mixing."""
        queries = Axis("query_heads", self.query_heads)
        keys = Axis("kv_heads", self.kv_heads)
        head = Axis("head_dim", self.head_dim)
        value = head if self.value_dim is None else Axis("value_dim", self.value_dim)
        for name, out, bias in self._projections(queries, keys, head, value):
            yield Linear(
                name=name, into=(embed,), out=(out,), bias=bias, merged="qkv", fused=self.fused
            )
        yield from self._before_mixing(embed, queries, keys, head)
        for name, width in (("k", head), ("v", value)):
            yield Cache(
                name=name,
                role="kv",
                shape=(keys, width),
                span=self.span,
                in_transformers=self._in_transformers(width),
                held=not self.shares_cache,
            )
        turned, eager = None, None
        if self.rotary is not None:
            turned = _turned(self.rotary, round(self.head_dim * self.rotary.fraction))
        if self.transformers_cache is not None:
            eager = EagerMix(span=self.transformers_cache[1])
        for name in ("attention", "attention_again") if self.differential else ("attention",):
            yield Mix(
                name=name,
                heads=queries,
                query_key=head,
                value=value,
                span=self.span,
                turned=turned,
                in_transformers=eager,
            )
        if self.output_gate is not None:
            gates = (queries,) if self.output_gate == "head" else (queries, value)
            yield Linear(name="gate", into=(embed,), out=(gates,), bias=self.gate_bias)
        if self.output_norm is not None:
            yield from self.output_norm.items("output_norm", (queries, value))
        if self.output:
            yield Linear(name="o", into=(queries, value), out=((embed,),), bias=self.output_bias)

    def _projections(
        self, queries: Axis, keys: Axis, head: Axis, value: Axis
    ) -> Iterator[tuple[str, Axes, bool]]:
        """Give the name, the result and the bias of what makes queries, keys and values."""
        yield "q", (queries, head), self.query_bias
        if not self.shares_cache:
            yield "k", (keys, head), self.key_bias
            if not self.value_is_key:
                yield "v", (keys, value), self.value_bias

    def _in_transformers(self, width: Axis) -> tuple[tuple[Axes, Span], ...] | None:
        if self.transformers_cache is None:
            return None
        heads, span = self.transformers_cache
        return (((Axis("kv_heads", heads), width), span),)

    def _before_mixing(self, embed: Axis, queries: Axis, keys: Axis, head: Axis) -> Iterator[Item]:
        """Emit what stands between projections and mixing."""
        for name, norm, heads in (
            ("q_norm", self.query_norm, queries),
            ("k_norm", self.key_norm, keys),
        ):
            if norm is None:
                continue
            if self.norm_axes == "head":
                yield from norm.items(name, (head,), (heads,))
            else:
                yield from norm.items(name, (heads, head))
        if self.sinks:
            yield Scale(name="sinks", axes=(queries,))
        if self.indexer is not None:
            yield from self.indexer.items(embed, embed)
        if self.differential:
            yield Scale(name="difference", axes=(Axis("vectors", 4), head))
        if self.head_gate_bias:
            yield Scale(name="gate_bias", axes=(queries,))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class LatentAttention(Part):
    """Multi-head latent attention: keys and values are computed from one latent for all heads.

    A token caches its latent of `latent_dim` elements and a rotary key of `rope_dim`. A head's
    query and key have `nope_dim` elements that the latent gives and the `rope_dim` rotary ones; its
    value has `value_dim`. With `query_latent_dim` queries come from a latent of their own, without
    from one full projection. `bias` is that of the projections down to the latents and of the
    output. With an `indexer` the positions to attend are picked; a layer whose `span` is `TopK`
    without one uses the choice of another layer. `sinks` is a learned sink score for each head,
    `rope_norm` a norm of the rotary key. `output_gate` weighs the heads' results, by a projection
    of the input with one output for each head or for each element, or for each element by the
    projection that gives the queries, which then reads the queries' latent before and after its
    norm (``"latent"``).

    Source: DeepSeek-AI, "DeepSeek-V2" (2024), section 2.1.

    >>> from llmcalc.spec import Axis, LatentAttention, Norm
    >>> part = LatentAttention(
    ...     query_heads=4, nope_dim=16, rope_dim=8, value_dim=16, latent_dim=32,
    ...     query_latent_dim=None, norm=Norm(kind="rms"),
    ... )
    >>> [item.name for item in part.items(Axis("embed", 64))]
    ['q', 'kv_a', 'kv_a_norm.weight', 'kv_b', 'latent', 'rope', 'attention', 'o']
    """

    group: ClassVar[Group] = "attention"

    query_heads: int = attrs.field(validator=size)
    nope_dim: int = attrs.field(validator=size)
    rope_dim: int = attrs.field(validator=size)
    value_dim: int = attrs.field(validator=size)
    latent_dim: int = attrs.field(validator=size)
    query_latent_dim: int | None = attrs.field(validator=_optional(size))
    norm: Norm = attrs.field(validator=instance_of(Norm))
    bias: bool = attrs.field(default=False, validator=flag)
    rotary: Rotary | None = attrs.field(default=None, validator=_optional(instance_of(Rotary)))
    span: Span = attrs.field(default=Full())
    indexer: Indexer | None = attrs.field(default=None, validator=_optional(instance_of(Indexer)))
    rope_norm: Norm | None = attrs.field(default=None, validator=_optional(instance_of(Norm)))
    sinks: bool = attrs.field(default=False, validator=flag)
    output_gate: Literal["head", "element", "latent"] | None = attrs.field(
        default=None, validator=_optional(one_of("head", "element", "latent"))
    )

    @property
    def label(self) -> str:
        """What tells layers of this kind from others."""
        return "latent" if self.indexer is None else "indexed latent"

    def __attrs_post_init__(self) -> None:
        reads = self.indexer is not None or self.output_gate == "latent"
        if reads and self.query_latent_dim is None:
            raise InvalidValueError(
                "query_latent_dim", None, "must be given where an indexer or a gate reads it"
            )

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit projections, caches and mixing."""
        heads = Axis("query_heads", self.query_heads)
        nope, rope = Axis("nope_dim", self.nope_dim), Axis("rope_dim", self.rope_dim)
        value, latent = Axis("value_dim", self.value_dim), Axis("latent", self.latent_dim)
        query_key = Axis("query_key_dim", self.nope_dim + self.rope_dim)
        if self.query_latent_dim is None:
            yield Linear(name="q", into=(embed,), out=((heads, query_key),))
        else:
            compressed = Axis("query_latent", self.query_latent_dim)
            yield Linear(
                name="q_a", into=(embed,), out=((compressed,),), bias=self.bias, merged="qkv_a"
            )
            yield from self.norm.items("q_a_norm", (compressed,))
            if self.output_gate == "latent":
                both = Axis("query_latent", 2 * self.query_latent_dim)
                yield Linear(name="q_gate", into=(both,), out=((heads, query_key), (heads, value)))
            else:
                yield Linear(name="q_b", into=(compressed,), out=((heads, query_key),))
            if self.indexer is not None:
                yield from self.indexer.items(embed, compressed)
        down: tuple[Axes, ...] = ((latent,), (rope,))
        yield Linear(name="kv_a", into=(embed,), out=down, bias=self.bias, merged="qkv_a")
        yield from self.norm.items("kv_a_norm", (latent,))
        if self.rope_norm is not None:
            yield from self.rope_norm.items("rope_norm", (rope,))
        yield Linear(
            name="kv_b",
            into=(latent,),
            out=((heads, nope), (heads, value)),
            tokens="latent",
            span=self.span,
        )
        if self.sinks:
            yield Scale(name="sinks", axes=(heads,))
        yield Cache(name="latent", role="latent", shape=(latent,), span=self.span)
        yield Cache(name="rope", role="latent", shape=(rope,), span=self.span, turned=True)
        cached = Axis("latent_and_rope", self.latent_dim + self.rope_dim)
        yield Mix(
            name="attention",
            heads=heads,
            query_key=query_key,
            value=value,
            span=self.span,
            absorbed=(cached, latent),
            turned=_turned(self.rotary, self.rope_dim),
        )
        if self.output_gate in {"head", "element"}:
            gates = (heads,) if self.output_gate == "head" else (heads, value)
            yield Linear(name="gate", into=(embed,), out=(gates,))
        yield Linear(name="o", into=(heads, value), out=((embed,),), bias=self.bias)
