"""Items: what the parts of a model emit. An item states facts; it computes no number.

* `Linear`: a matrix multiply with its weight and optional bias.
* `Table`: a lookup table: rows are read, not multiplied.
* `Scale`: elementwise parameters, such as a norm's weight.
* `Cache`: what a request holds between steps.
* `Mix`: weightless mixing over positions: attention scores and values.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

from llmcalc.spec.axes import Axes, Axis
from llmcalc.spec.spans import Span

__all__ = ["Cache", "CacheRole", "Item", "Linear", "Mix", "Scale", "Table", "Tokens"]

#: Which tokens pass through a matrix multiply: every new one, or only those that give logits.
Tokens: TypeAlias = Literal["all", "logits"]

#: What a cache holds. The role decides which format argument (``kv=`` ...) gives its elements:
#: keys and values, or a latent from which they are computed.
CacheRole: TypeAlias = Literal["kv", "latent"]


@attrs.frozen(kw_only=True)
class Linear:
    """A matrix multiply: `into` is contracted, `out` is produced.

    `out` has several pieces where one stored matrix produces several results, each split by
    tensor parallelism in its own way. The weight has ``sum of the pieces`` rows and ``product of
    into`` columns; a bias has one element a row. `storage` is the key under which several items
    store one weight (a tied head); `None` is a weight of its own. With `experts` there are that
    many such matrices, and each token passes through `active` of them.
    """

    name: str
    into: Axes
    out: tuple[Axes, ...]
    bias: bool = False
    tokens: Tokens = "all"
    storage: str | None = None
    experts: Axis | None = None
    active: int | None = None


@attrs.frozen(kw_only=True)
class Table:
    """A lookup table of `rows` rows, each with the elements of `row`; `storage` as in `Linear`."""

    name: str
    rows: Axis
    row: Axes
    storage: str | None = None


@attrs.frozen(kw_only=True)
class Scale:
    """Elementwise parameters, one for each element of `axes`."""

    name: str
    axes: Axes


@attrs.frozen(kw_only=True)
class Cache:
    """What one request holds: `shape` elements for each slot of its `span`."""

    name: str
    role: CacheRole
    shape: Axes
    span: Span


@attrs.frozen(kw_only=True)
class Mix:
    """Attention's weightless work over the positions of `span`.

    `heads` queries of `query_key` elements score keys, and weigh values of `value` elements.
    """

    name: str
    heads: Axis
    query_key: Axis
    value: Axis
    span: Span


Item: TypeAlias = Linear | Table | Scale | Cache | Mix
