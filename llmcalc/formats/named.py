"""Schemes by name.

* `scheme`: a scheme by its name, a format's name or what a checkpoint states.
* `name_of`: the name that tables give a format or a scheme.
* `scheme_names`: the names of schemes that leave some tensors wide.
"""

from __future__ import annotations

from typing import Final

from llmcalc.errors import InvalidValueError, UnknownNameError
from llmcalc.formats import checkpoint, llama_cpp
from llmcalc.formats.blocks import PLAIN, Format, find, get, names
from llmcalc.formats.coverage import EXPERTS, Coverage, Rule, Scheme, Uniform
from llmcalc.spec.checkpoint import QuantizedCheckpoint
from llmcalc.spec.kept import kept
from llmcalc.spec.model import Ledger, ModelSpec, check_spec

__all__ = ["name_of", "scheme", "scheme_names"]

#: Formats that are for the experts of a mixture alone, as those of gpt-oss are.
_FOR_EXPERTS: Final = frozenset({"mxfp4", "mxfp4-hopper"})


def scheme(weights: str | Format | Scheme, spec: ModelSpec) -> Scheme:
    """Return which format each tensor of the model has.

    `weights` is the name of an element type (``"bf16"``, ``"fp8"`` ...) or a `Format`, which every
    tensor then has; the name of a quantised format or of a llama.cpp mix (``"awq-int4-g128"``,
    ``"Q4_K_M"`` ...), which leaves embeddings, head, norms and routers as wide as is usual;
    ``"checkpoint"`` for what the model's config states; or a `Scheme`.

    >>> from llmcalc import ModelSpec, formats
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
    ...     embed_dim=64, inner_dim=128, vocab_size=100,
    ... )
    >>> awq = formats.scheme("awq-int4-g128", spec)
    >>> for tensor in spec.ledger.tensors[:3]:
    ...     print(tensor.path[2], awq.format_of(tensor).name)
    token bf16
    attention_norm.weight bf16
    q.weight awq-int4-g128
    """
    check_spec(spec)
    if type(weights) is str:
        if weights in PLAIN:
            return Uniform(get(weights))
        # Resolving which modules a scheme covers takes longer than an answer does.
        return kept(spec.ledger, _named, weights)
    if isinstance(weights, Format):
        return Uniform(weights)
    if isinstance(weights, Scheme):
        return weights
    raise InvalidValueError("weights", weights, "must be a format's or a scheme's name, or either")


def name_of(format: str | Format | Scheme) -> str:
    """Return the name of a format or of a scheme; one that is given by name has that name.

    >>> from llmcalc import formats
    >>> formats.name_of("Q4_K_M"), formats.name_of(formats.get("bf16"))
    ('Q4_K_M', 'bf16')
    """
    return format if isinstance(format, str) else format.name


def scheme_names() -> tuple[str, ...]:
    """Return the names of schemes that leave some tensors wide.

    >>> from llmcalc import formats
    >>> "Q4_K_M" in formats.scheme_names()
    True
    """
    quantised = (name for name in names() if name not in PLAIN and name[0].islower())
    return ("checkpoint", *quantised, *llama_cpp.MIXES)


def _named(ledger: Ledger, name: str) -> Scheme:
    if name == "checkpoint":
        return checkpoint.scheme(ledger.spec)
    if name in llama_cpp.MIXES:
        return llama_cpp.mix(ledger, name)
    format = find(name)
    if format is None:
        raise UnknownNameError(
            "weights",
            name,
            {*names(), *scheme_names()},
            listed_by="llmcalc.formats.names() and llmcalc.formats.scheme_names()",
        )
    only_experts = name in _FOR_EXPERTS and any(tensor.routed for tensor in ledger.tensors)
    rule = Rule(format=format, targets=EXPERTS if only_experts else ("Linear",))
    return Coverage(name=name, wide=_wide_format(ledger.spec), rules=(rule,))


def _wide_format(spec: ModelSpec) -> Format:
    """Return the format of what is not quantised: what the config states, or else bf16."""
    stated = spec.checkpoint
    if isinstance(stated, QuantizedCheckpoint):
        stated = stated.wide
    return get(stated or "bf16", "checkpoint")
