"""Names of modules: what a config calls the tensors of a description, and patterns of such names.

* `module_names`: the names that published models give the module of a stored tensor.
* `ROUTERS`: the roles of matrices that choose experts.
* `Patterns`: names, globs and regular expressions, as configs list modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from llmcalc.errors import InvalidValueError
from llmcalc.spec.ledger import StoredTensor

__all__ = ["ROUTERS", "Patterns", "module_names"]

#: What the modules of a group are called inside a layer.
_PARENTS: Final = {
    "attention": ("self_attn", "attn", "attention"),
    "recurrent": ("linear_attn", "mixer", "mamba", "temporal_block", "conv"),
    "feed_forward": ("mlp", "feed_forward", "ffn"),
    "experts": ("mlp", "block_sparse_moe", "feed_forward", "ffn"),
}

#: The roles of matrices that choose experts.
ROUTERS: Final = frozenset({"router", "router.down", "router.1", "router.2"})

#: What single modules are called by their role, where it is not the role itself and ``_proj``.
_MODULES: Final = {
    ("attention", "kv_a"): ("kv_a_proj_with_mqa",),
    ("attention", "q_b"): ("q_b_proj", "wq_b"),
    ("attention", "q_a"): ("q_a_proj", "wq_a"),
    ("attention", "o"): ("o_proj", "wo", "dense", "out_proj", "c_proj"),
    ("attention", "index_q"): ("indexer.wq_b",),
    ("attention", "index_k"): ("indexer.wk",),
    ("attention", "index_weights"): ("indexer.weights_proj",),
    ("recurrent", "qkv"): ("in_proj_qkvz", "in_proj_qkv", "qkv_proj"),
    ("recurrent", "in"): ("in_proj",),
    ("recurrent", "out"): ("out_proj",),
    ("recurrent", "o"): ("out_proj", "o_proj"),
    ("recurrent", "gate"): ("in_proj_z", "gate_proj"),
    ("recurrent", "beta"): ("in_proj_ba", "in_proj_b"),
    ("experts", "router"): ("gate", "router", "router.gate"),
    ("experts", "gate"): ("experts.0.gate_proj", "experts.0.w1", "experts.gate_up_proj"),
    ("experts", "up"): ("experts.0.up_proj", "experts.0.w3", "experts.gate_up_proj"),
    ("experts", "down"): ("experts.0.down_proj", "experts.0.w2", "experts.down_proj"),
    ("experts", "shared.weigh"): ("shared_expert_gate",),
}

_SHARED: Final = ("shared_experts", "shared_expert", "shared_mlp")


def module_names(tensor: StoredTensor, layer: int | None) -> tuple[str, ...]:
    """Return the names that published models give the module, most usual first.

    >>> from llmcalc import ModelSpec
    >>> from llmcalc.formats.modules import module_names
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=2, num_query_heads=4, num_kv_heads=2,
    ...     embed_dim=64, inner_dim=128, vocab_size=100,
    ... )
    >>> [module_names(tensor, 1)[0] for tensor in spec.ledger.tensors[2:4]]
    ['model.layers.1.self_attn.q_proj', 'model.layers.1.self_attn.k_proj']
    """
    group, name = tensor.group, tensor.role or tensor.item.name
    if group == "head" and name == "output":
        return ("lm_head", "model.lm_head")
    if group == "embeddings" and name == "token":
        return ("model.embed_tokens",)
    place = "model" if layer is None else f"model.layers.{layer}"
    parents = _PARENTS.get(group, (group,))
    if group == "experts" and name.startswith("shared.") and (group, name) not in _MODULES:
        inner = tuple(f"{shared}.{name[7:]}_proj" for shared in _SHARED)
    else:
        inner = _MODULES.get((group, name), (f"{name}_proj", name))
    return tuple([f"{place}.{parent}.{module}" for parent in parents for module in inner])


#: Names of a multimodal model's language model, which the description has without them.
_WRAPPERS: Final = ("language_model.model.", "model.language_model.", "language_model.")

#: More than this is no pattern that a config has; it bounds how long a match can take.
_LONGEST: Final = 1000
_MOST_REPEATS: Final = 5

#: So many names are looked for one by one; of more, all parts of a module's name are looked up.
_FEW: Final = 8

_A_LAYER: Final = re.compile(r"(?:^|\.)[0-9]+(?:\.|$)")


class Patterns:
    """Modules as configs list them; a module matches by its name or by any of its parents'.

    A plain name is part of the module's dotted name, whole between dots; ``*`` stands for
    anything; after ``re:`` stands a regular expression, which must match from the start. Patterns
    that could take long to match are refused.

    >>> from llmcalc.formats.modules import Patterns
    >>> ignored = Patterns(["lm_head", "model.layers.*.self_attn", "re:.*mlp.gate$"], "ignore")
    >>> [ignored.match((name,)) for name in ("model.layers.3.self_attn.q_proj", "model.mlp.up")]
    [True, False]
    """

    __slots__ = ("_expressions", "_names", "by_layer")

    def __init__(self, patterns: Iterable[object], field: str) -> None:
        names: set[str] = set()
        self._expressions: list[re.Pattern[str]] = []
        self.by_layer: bool = False
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise InvalidValueError(field, pattern, "must be a module's name or a pattern")
            if len(pattern) > _LONGEST:
                raise InvalidValueError(field, pattern, f"is longer than {_LONGEST} characters")
            if pattern.startswith("re:"):
                self._expressions.append(_expression(pattern, field))
                self.by_layer |= any(character.isdigit() for character in pattern)
            elif "*" in pattern:
                self._expressions.append(_glob(pattern, field))
                self.by_layer |= any(character.isdigit() for character in pattern)
            else:
                names.add(_unwrapped(pattern))
        self._names = frozenset(names)
        self.by_layer |= any(_A_LAYER.search(name) for name in names)

    def match(self, modules: Iterable[str]) -> bool:
        """Return whether any of a module's names matches any of the patterns."""
        for module in modules:
            if len(self._names) <= _FEW:
                dotted = f".{module}."
                for name in self._names:
                    if f".{name}." in dotted:
                        return True
            elif not self._names.isdisjoint(_parts(module)):
                return True
            if any(expression.match(module) for expression in self._expressions):
                return True
        return False


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        if name.startswith(wrapper):
            return "model." + name[len(wrapper) :]
    return name.removesuffix(".weight")


def _parts(module: str) -> Iterator[str]:
    """Give every run of a dotted name's words."""
    words = module.split(".")
    for first in range(len(words)):
        for last in range(first + 1, len(words) + 1):
            yield ".".join(words[first:last])


def _expression(pattern: str, field: str) -> re.Pattern[str]:
    text = pattern[3:]
    repeats = len(re.findall(r"(?<!\\)[*+{]", text))
    # A repeated group, or a lot of repeats, can take exponentially or very long.
    if repeats > _MOST_REPEATS or re.search(r"\)[*+{?]", text) or re.search(r"\\[1-9]", text):
        raise InvalidValueError(field, pattern, "is too complicated a pattern to be matched safely")
    for wrapper in _WRAPPERS:
        text = text.replace(wrapper, "model.").replace(wrapper.replace(".", r"\."), r"model\.")
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as problem:
        raise InvalidValueError(
            field, pattern, f"is not a regular expression: {problem}"
        ) from problem


def _glob(pattern: str, field: str) -> re.Pattern[str]:
    pieces = re.split(r"\*+", _unwrapped(pattern))
    if len(pieces) > _MOST_REPEATS + 1:
        raise InvalidValueError(field, pattern, f"has more than {_MOST_REPEATS} stars")
    return re.compile(".*".join(map(re.escape, pieces)) + r"(?:(?<=\.)|(?=\.|$))")
