"""The mixes that llama.cpp names: which block format each tensor of a GGUF file has.

* `MIXES`: the names, with the block format that most tensors of the mix have.
* `mix`: the scheme of a mix for one model.

The rules are those of ``llama_tensor_get_type_impl`` in llama.cpp's ``src/llama-quant.cpp``
(commit 007dbbf): a tensor's format depends on its role, on its layer's number, on the query heads
that share a KV head and on the number of experts. Vectors, convolutions and routers are float32.

Queries, keys and values that are stored as one matrix have the format that llama.cpp gave them
until it sorted tensors into categories (``tensor_get_category``, 2026), and published files have.
Since then they have that of a value matrix: the same in most mixes to a thousandth of the file,
but wider in Q2_K and narrower in Q5_K_M.

Not modelled: the rules of Falcon's architecture alone; the second matrix of a latent attention,
which llama.cpp stores as two.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import attrs

from llmcalc.described import FrozenMapping
from llmcalc.errors import InvalidValueError
from llmcalc.formats.blocks import Format, get
from llmcalc.formats.coverage import Scheme, counted
from llmcalc.formats.modules import ROUTERS
from llmcalc.spec.axes import extent
from llmcalc.spec.items import Linear, Mix, Table
from llmcalc.spec.ledger import StoredTensor
from llmcalc.spec.model import Ledger

__all__ = ["MIXES", "mix"]

#: The mixes, and what most of their tensors have (``llama_ftype_get_default_type``). Names without
#: a size letter are those of the middle size, as for ``llama-quantize``. Four mixes are different
#: where an importance matrix is given; some need one, and the rest do not ask.
MIXES: Final[Mapping[str, str]] = {
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "Q1_0": "Q1_0",
    "Q4_0": "Q4_0",
    "Q4_1": "Q4_1",
    "Q5_0": "Q5_0",
    "Q5_1": "Q5_1",
    "Q8_0": "Q8_0",
    "Q2_K": "Q2_K",
    "Q2_K_S": "Q2_K",
    "Q3_K": "Q3_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q4_K": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K",
    "IQ1_S": "IQ1_S",
    "IQ1_M": "IQ1_M",
    "IQ2_XXS": "IQ2_XXS",
    "IQ2_XS": "IQ2_XS",
    "IQ2_S": "IQ2_XS",
    "IQ2_M": "IQ2_S",
    "IQ3_XXS": "IQ3_XXS",
    "IQ3_XS": "IQ3_S",
    "IQ3_S": "IQ3_S",
    "IQ3_M": "IQ3_S",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
    "TQ1_0": "TQ1_0",
    "TQ2_0": "TQ2_0",
    "MXFP4_MOE": "MXFP4",
    "Q4_0-imatrix": "Q4_0",
    "Q5_0-imatrix": "Q5_0",
    "IQ4_NL-imatrix": "IQ4_NL",
    "IQ4_XS-imatrix": "IQ4_XS",
}

_SAME_AS: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

#: What a row that is not whole blocks is stored in instead (``tensor_type_fallback``).
_FALLBACK: Final = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

#: The mixes of two bits or less, which share their rules.
_TINY: Final = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"))
_TWO_BITS: Final = frozenset(("IQ2_S", "IQ2_M"))

#: The mixes whose attention output is wider in a mixture of eight experts.
_WIDE_OUTPUT_OF_EIGHT: Final = frozenset(
    (
        *("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"),
        *("IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M"),
        *("IQ4_NL", "IQ4_XS", "IQ4_NL-imatrix", "IQ4_XS-imatrix"),
    )
)

#: Files that are not quantised.
_FLOATS: Final = frozenset(("fp32", "fp16", "bf16"))

_TOKEN_TABLES: Final = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_K"),
}


def use_more_bits(number: int, count: int) -> bool:
    """Return whether a layer is among the first or last eighth, or every third between them."""
    eighth = count // 8
    return number < eighth or number >= 7 * count // 8 or (number - eighth) % 3 == 2


@attrs.frozen(kw_only=True)
class _Facts:
    """What the rules ask of a model."""

    mix: str
    default: str
    layers: int
    attention_layers: int
    heads_per_kv_head: int
    experts: int
    tied: bool


def _value(facts: _Facts, number: int) -> str:
    """Give the format of a value matrix; `number` counts the layers that have one."""
    mix, chosen, gqa = facts.mix, facts.default, facts.heads_per_kv_head
    if mix in _TINY:
        if gqa >= 4 or facts.experts >= 4:
            return "Q4_K"
        return "IQ3_S" if mix in _TWO_BITS else "Q2_K"
    if mix == "Q2_K":
        chosen = "Q4_K" if gqa >= 4 else "Q3_K"
    elif mix == "IQ3_M" or (mix in {"Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"} and gqa >= 4):
        chosen = "Q4_K"
    elif mix == "Q3_K_M":
        chosen = "Q5_K" if number < 2 else "Q4_K"
    elif mix == "Q3_K_L" or (mix.startswith("IQ4") and gqa >= 4):
        chosen = "Q5_K"
    elif mix in {"Q4_K_M", "Q5_K_M"} and use_more_bits(number, facts.attention_layers):
        chosen = "Q6_K"
    elif mix == "Q4_K_S" and number < 4:
        chosen = "Q5_K"
    # llama.cpp's "70B": eighty layers with shared KV heads.
    if facts.layers == 80 and gqa > 1 and chosen in {"Q3_K", "Q4_K"}:
        chosen = "Q5_K"
    return "Q8_0" if facts.experts == 8 else chosen


def _key(facts: _Facts, _number: int) -> str:
    if facts.mix in _TINY:
        return "Q4_K" if facts.experts == 8 else facts.default
    if facts.experts == 8:
        return "Q8_0"
    return _query(facts, _number)


def _query(facts: _Facts, _number: int) -> str:
    return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(facts.mix, facts.default)


def _fused(facts: _Facts, _number: int) -> str:
    """Give the format of queries, keys and values that are one matrix."""
    chosen = {
        **dict.fromkeys(("Q3_K_M", "Q3_K_L", "IQ3_M"), "Q4_K"),
        "Q4_K_M": "Q5_K",
        "Q5_K_M": "Q6_K",
    }
    return chosen.get(facts.mix, facts.default)


def _output(facts: _Facts, _number: int) -> str:
    """Give the format of the attention's output projection."""
    mix = facts.mix
    if facts.experts == 8:
        return "Q5_K" if mix in _TINY or mix in _WIDE_OUTPUT_OF_EIGHT else facts.default
    chosen = {
        "IQ1_S": "IQ2_XXS",
        "IQ1_M": "IQ2_XXS",
        "IQ2_S": "IQ3_S",
        "IQ2_M": "IQ3_S",
        "Q2_K": "Q3_K",
        "IQ3_XXS": "IQ3_S",
        "Q3_K_M": "Q4_K",
        "Q3_K_L": "Q5_K",
        "IQ3_M": "Q4_K",
    }
    return chosen.get(mix, facts.default)


def _down(facts: _Facts, number: int) -> str:
    """Give the format of a feed-forward's last matrix.

    `number` is that of the layer, which mixes of two bits or less count by such matrices.
    """
    mix, layers = facts.mix, facts.layers
    first_eighth = number < layers // 8
    more = use_more_bits(number, layers)
    chosen = facts.default
    if mix in _TINY:
        if first_eighth:
            chosen = "IQ3_S" if mix in _TWO_BITS else "Q2_K"
    elif mix == "Q2_K":
        chosen = "Q3_K"
    elif mix == "Q3_K_M":
        chosen = "Q5_K" if number < layers // 16 else "Q4_K"
    elif mix == "Q3_K_L":
        chosen = "Q5_K"
    elif mix == "IQ3_M":
        if first_eighth or (facts.experts == 8 and more):
            chosen = "Q4_K"
    elif mix == "Q2_K_S":
        if first_eighth:
            chosen = "Q4_K"
    elif mix in {"Q4_K_M", "Q5_K_M"} and more:
        chosen = "Q6_K"
    elif mix in {"IQ4_NL", "IQ4_XS", "Q4_K_S"} and first_eighth:
        chosen = "Q5_K"
    elif mix in {"Q4_0-imatrix", "Q5_0-imatrix"} and first_eighth:
        chosen = "Q4_1" if mix == "Q4_0-imatrix" else "Q5_1"
    return chosen


def _gate_or_up(facts: _Facts, number: int) -> str:
    middle = facts.layers // 8 <= number < 7 * facts.layers // 8
    return "IQ3_XXS" if facts.mix == "IQ3_XS" and middle else facts.default


_ROLES: Final[Mapping[tuple[str, str | None], Callable[[_Facts, int], str]]] = {
    ("attention", "q"): _query,
    ("attention", "k"): _key,
    ("attention", "v"): _value,
    ("attention", "o"): _output,
    **{
        (group, f"{shared}{name}"): role
        for group in ("feed_forward", "experts")
        for shared in ("", "shared.")
        for name, role in (("gate", _gate_or_up), ("up", _gate_or_up), ("down", _down))
    },
}


@attrs.frozen(kw_only=True, repr=False, eq=False)
class _Mix(Scheme):
    """The mix of a model.

    `numbers` are those of its layers by their label; `values` those that have a value matrix, in
    order; `downs` those that have a last matrix of a feed-forward or of experts, or of shared
    experts (`True`).
    """

    name: str
    facts: _Facts
    numbers: Mapping[str, tuple[int, ...]] = attrs.field(repr=False)
    values: tuple[int, ...] = attrs.field(repr=False)
    downs: tuple[tuple[int, bool], ...] = attrs.field(repr=False)

    def formats_of(
        self, tensor: StoredTensor, layers: Collection[int] | None = None
    ) -> tuple[tuple[Format, int], ...]:
        """Return the formats that the tensor has in the layers, and in how many of them each."""
        known = self.numbers.get(tensor.label, ()) if tensor.times else ()
        layers = known if layers is None or not tensor.times else layers
        if tensor.times and not (len(known) == tensor.layers and {*layers} <= {*known}):
            raise InvalidValueError("weights", self.name, "is the mix of another model")
        group, name = tensor.group, tensor.role
        number = len(layers) if tensor.times else 1
        if group == "embeddings" and name == "token":
            return ((self._fitting(tensor, self._token_table(tensor)), number),)
        if not tensor.is_matrix or (group == "experts" and name in ROUTERS):
            return ((get("fp32"), number),)
        if group == "head" and name == "output":
            return ((self._fitting(tensor, self._head(tensor)), number),)
        role = _ROLES.get((group, name))
        if isinstance(tensor.item, Linear) and tensor.item.fused:
            role = _fused
        fixed = self.name == "MXFP4_MOE" or self.facts.default in _FLOATS
        if role is None or fixed or not tensor.times:
            return ((self._fitting(tensor, self._other(tensor)), number),)
        places: Iterable[int] = layers
        if role is _value:
            places = [bisect(self.values, layer) - 1 for layer in layers]
        elif role is _down and self.name in _TINY:
            places = [bisect(self.downs, (layer, name == "shared.down")) - 1 for layer in layers]
        return counted(self._fitting(tensor, role(self.facts, place)) for place in places)

    def _other(self, tensor: StoredTensor) -> str:
        if self.name == "MXFP4_MOE":
            return "MXFP4" if tensor.active is not None else "Q8_0"
        return self.facts.default

    def _token_table(self, tensor: StoredTensor) -> str:
        if self.facts.tied:
            return self._head(tensor)
        if self.name == "MXFP4_MOE":
            return "Q8_0"
        return _TOKEN_TABLES.get(self.name, self.facts.default)

    def _head(self, tensor: StoredTensor) -> str:
        default = self.facts.default
        if default in _FLOATS:
            return default
        if self.name == "MXFP4_MOE" or _width(tensor) % get(default).block_elements:
            return "Q8_0"
        if self.name in _TINY or self.name == "IQ3_XXS":
            return "Q5_K"
        return "Q8_0" if default == "Q8_0" else "Q6_K"

    @staticmethod
    def _fitting(tensor: StoredTensor, name: str) -> Format:
        """Give the format, or the one that stands in where rows are not whole blocks."""
        format = get(name)
        if _width(tensor) % format.block_elements and name in _FALLBACK:
            format = get(_FALLBACK[name])
        return get("fp16") if _width(tensor) % format.block_elements else format


def _width(tensor: StoredTensor) -> int:
    return extent(tensor.columns)


def mix(ledger: Ledger, name: str) -> Scheme:
    """Return the scheme of a mix for a model.

    >>> from llmcalc import ModelSpec, memory
    >>> llama = ModelSpec.dense(
    ...     name="llama-3-8b", num_layers=32, num_query_heads=32, num_kv_heads=8,
    ...     embed_dim=4096, inner_dim=14336, vocab_size=128256,
    ... )
    >>> memory.weight_bytes(llama, weights="Q4_K_M").total
    4912898048
    """
    numbers = ledger.layer_numbers
    layered = [tensor for tensor in ledger.tensors if tensor.is_matrix and tensor.times]
    with_values = sorted(
        layer
        for tensor in layered
        if _ROLES.get((tensor.group, tensor.role)) is _value
        for layer in numbers[tensor.label]
    )
    downs = sorted(
        (layer, tensor.role == "shared.down")
        for tensor in layered
        if _ROLES.get((tensor.group, tensor.role)) is _down
        for layer in numbers[tensor.label]
    )
    proper = _SAME_AS.get(name, name)
    facts = _Facts(
        mix=proper,
        default=MIXES[proper],
        layers=ledger.spec.num_layers,
        attention_layers=len(with_values),
        heads_per_kv_head=_heads_per_kv_head(ledger),
        experts=max(map(_experts, ledger.tensors), default=1),
        tied=ledger.spec.head.tied,
    )
    return _Mix(
        name=proper,
        facts=facts,
        numbers=FrozenMapping(numbers),
        values=tuple(with_values),
        downs=tuple(downs),
    )


def _heads_per_kv_head(ledger: Ledger) -> int:
    """Return how many query heads share a KV head in the first attention; 1 without KV heads."""
    for entry in ledger.entries:
        item = entry.item
        if isinstance(item, Mix) and item.heads.name == "query_heads":
            for reader, cache in ledger.cache_reads:
                if reader.operation == entry.operation:
                    heads = [axis.size for axis in cache.shape if axis.name == "kv_heads"]
                    return item.heads.size // heads[0] if heads else 1
    return 1


def _experts(tensor: StoredTensor) -> int:
    """Return how many experts the tensor is of, 1 where it is of none."""
    item = tensor.item
    if isinstance(item, Linear) and item.experts is not None:
        return item.experts.size
    if isinstance(item, Table) and item.routed and item.looked_up:
        return item.rows.size
    return 1
