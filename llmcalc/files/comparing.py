"""Weights in files beside a description.

* `compare`: how the tensors of a file differ from those of a description.
* `Comparison`: the difference, in parameters.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import ClassVar

import attrs

from llmcalc import memory
from llmcalc.described import Described
from llmcalc.files.names import ALIKE, group_of, layer_of
from llmcalc.files.packed import parameters_of
from llmcalc.headers.local import tensors
from llmcalc.spec.ledger import StoredTensor
from llmcalc.spec.model import ModelSpec, check_spec
from llmcalc.units import Params, format_integer, format_quantity

__all__ = ["Comparison", "compare"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Comparison(Described):
    """How the tensors of a file differ from those of a description, in parameters.

    `file` and `described` are parameters and buffers by group. `scales` are elements that only
    quantised tensors have: scales, zero points, orders. `beyond` are parameters of layers after the
    described ones, such as those that predict several tokens; `tied_copy` is a head that the file
    stores although it is the token table. Neither is part of `file`. `other` names what is in no
    known group.

    ``bool(comparison)`` is whether the totals are equal. Groups are told by names, which differ
    between models: equal totals with `differences` between groups are a matter of names.
    """

    name: str
    file: Mapping[str, int]
    described: Mapping[str, int]
    scales: int = 0
    beyond: int = 0
    tied_copy: int = 0
    other: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.difference

    # Holds mappings, which have no hash.
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    @property
    def differences(self) -> Mapping[str, int]:
        """What the file has more than the description, by group, where it is not the same."""
        groups = dict.fromkeys((*self.described, *self.file))
        found = {g: self.file.get(g, 0) - self.described.get(g, 0) for g in groups}
        return {group: more for group, more in found.items() if more}

    @property
    def difference(self) -> int:
        """How many parameters the file has more than the description."""
        return sum(self.file.values()) - sum(self.described.values())

    def explain(self) -> str:
        """Return the comparison as text: a line for each group, and what was left out."""
        lines = [f"Parameters of {self.name}: file, description, difference"]
        for group in dict.fromkeys((*self.described, *self.file)):
            mine, theirs = self.file.get(group, 0), self.described.get(group, 0)
            lines.append(
                f"  {group:<13} {format_integer(mine)}  {format_integer(theirs)}"
                f"  {format_integer(mine - theirs)}"
            )
        for count, what in (
            (self.beyond, "in layers beyond the described ones"),
            (self.tied_copy, "in a copy of the token table for the head"),
            (self.scales, "scales and zero points of quantised tensors"),
        ):
            if count:
                lines.append(f"  left out: {format_quantity(count, Params)} {what}")
        if self.other:
            lines.append(f"  in no known group: {', '.join(self.other[:8])}")
        return "\n".join(lines)


def compare(path: str | os.PathLike[str], spec: ModelSpec) -> Comparison:
    """Return how the tensors of a file differ from those of a description.

    Packed tensors count with the elements that they stand for. Names are those of published
    models and of GGUF files; what they do not tell is in the group ``"other"``.

    >>> import struct, tempfile, pathlib
    >>> from llmcalc import ModelSpec, files
    >>> spec = ModelSpec.dense(
    ...     name="tiny", num_layers=1, num_query_heads=1, num_kv_heads=1, embed_dim=8, inner_dim=8,
    ...     vocab_size=4,
    ... )
    >>> header = b'{"wte.weight": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]}}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "model.safetensors"
    ...     _ = file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    ...     report = files.compare(file, spec)
    >>> report.differences
    {'norms': -24, 'attention': -256, 'feed_forward': -192, 'head': -32}
    """
    check_spec(spec)
    found = tensors(path)
    by_name = {tensor.name: tensor for tensor in found}
    described, tied = _described(spec), set(_tied_tables(spec))
    counted: Counter[str] = Counter()
    scales = beyond = tied_copy = 0
    other = []
    for tensor in found:
        elements = parameters_of(tensor, by_name)
        group, layer = group_of(tensor.name), layer_of(tensor.name)
        if elements is None:
            scales += tensor.elements
        elif layer is not None and layer >= spec.num_layers:
            beyond += elements
        elif group == "head" and elements in tied:
            tied_copy += elements
        else:
            counted[group] += elements
            if group == "other":
                other.append(tensor.name)
    for pair in ALIKE:
        _tell_apart(pair, counted, described)
    return Comparison(
        name=spec.name,
        file=dict(counted),
        described=described,
        scales=scales,
        beyond=beyond,
        tied_copy=tied_copy,
        other=tuple(other),
    )


def _described(spec: ModelSpec) -> dict[str, int]:
    """Return the parameters and buffers of a description, by group."""
    found = Counter(memory.parameters(spec).by())
    for buffer in spec.ledger.buffers:
        found[buffer.path[0]] += _elements(buffer)
    return dict(found)


def _tied_tables(spec: ModelSpec) -> Iterator[int]:
    """Give the elements of each weight that is used before the layers and after them."""
    for tensor in spec.ledger.tensors:
        if {"before", "after"} <= {place for place, _ in tensor.places}:
            yield _elements(tensor)


def _elements(tensor: StoredTensor) -> int:
    return prod(size for size, _ in tensor.row_factors + tensor.column_factors + tensor.times)


def _tell_apart(pair: tuple[str, str], counted: Counter[str], described: Mapping[str, int]) -> None:
    """Where names do not tell two groups apart, but their sum is as described, split it so."""
    if sum(counted.get(group, 0) for group in pair) == sum(described.get(g, 0) for g in pair):
        for group in pair:
            counted.pop(group, None)
            if described.get(group):
                counted[group] = described[group]
