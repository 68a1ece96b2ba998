"""Placement: how an engine spreads a model over devices, and what it refuses to spread.

* `Placement`: the rules, as fields, and questions about plain facts of a model.
* `GENERIC`: the rules of no particular engine.
"""

from __future__ import annotations

from typing import Final

import attrs

from llmcalc.boundary import flag, size
from llmcalc.described import Described

__all__ = ["GENERIC", "Placement"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Placement(Described):
    """How an engine places a model on the devices of a layout.

    A rule that an engine does not have costs nothing and refuses nothing: by default there is
    none. What a method asks for are plain facts of a model and of a layout; what it returns is
    the rule that they break, as an error's words, or `None`.

    `engine`
        What rules call the engine.
    `vocab_multiple`
        The rows of the vocabulary are padded to a multiple of this.
    `last_stages`
        Which pipeline stages take one layer more, where the stages do not divide the layers: the
        last ones, or those before the last one.
    `shared_groups`
        The groups of parts that data-parallel attention leaves to all ranks of a stage, beside
        routed experts. Everything else belongs to a replica.
    `replicas_share_experts`
        Whether replicas always share the routed experts of a model, and nothing but these.
    `splits_windows`
        Whether decode-context parallelism shards the slots of windows, too.
    `divides_query_groups`
        Whether the degree of decode-context parallelism must divide the query heads of a KV head.
    `whole_blocks`
        Whether a rank must hold whole blocks of the elements that have one scale.

    >>> from llmcalc import engines
    >>> engines.get("sglang").placement.stage_layers(61, 4)
    (15, 15, 15, 16)
    """

    engine: str = ""
    vocab_multiple: int = attrs.field(default=1, validator=size)
    last_stages: bool = attrs.field(default=False, validator=flag)
    shared_groups: frozenset[str] = frozenset()
    replicas_share_experts: bool = attrs.field(default=False, validator=flag)
    splits_windows: bool = attrs.field(default=True, validator=flag)
    divides_query_groups: bool = attrs.field(default=False, validator=flag)
    whole_blocks: bool = attrs.field(default=False, validator=flag)

    def stage_layers(self, layers: int, stages: int) -> tuple[int, ...]:
        """Return the layers of each pipeline stage, in order; there are at most as many stages.

        >>> from llmcalc import engines
        >>> engines.get("vllm").placement.stage_layers(61, 4)
        (15, 15, 16, 15)
        """
        each, rest = divmod(layers, stages)
        first = stages - rest - (0 if self.last_stages or not rest else 1)
        return tuple([each + (first <= stage < first + rest) for stage in range(stages)])

    def attention_rule(self, *, routed: bool) -> str | None:
        """Return why attention cannot be data-parallel; `routed`: the model has routed experts.

        >>> from llmcalc import engines
        >>> engines.get("vllm").placement.attention_rule(routed=False)
        "vLLM's replicas share experts only, and the model has none that are routed"
        """
        if not self.replicas_share_experts or routed:
            return None
        none = "and the model has none that are routed"
        return f"{self.engine}'s replicas share experts only, {none}"

    def replicas_rule(self, *, routed: bool, shared: bool) -> str | None:
        """Return why there cannot be several replicas.

        `routed`: the model has routed experts; `shared`: the layout has replicas share them.

        >>> from llmcalc import engines
        >>> engines.get("sglang").placement.replicas_rule(routed=True, shared=False) is None
        True
        """
        if not self.replicas_share_experts or not routed or shared:
            return None
        return (
            f"{self.engine} splits the experts over all data-parallel ranks: "
            "data_parallel_attention or expert_parallel must be set"
        )

    def slots_rule(self, degree: int, *, windowed: bool, queries: int | None = None) -> str | None:
        """Return why `degree` ranks cannot shard the slots of a cache.

        `windowed`: it holds a window or a chunk of the tokens. `queries`: how many query heads
        read each of its KV heads, `None` where its heads are not split over ranks.

        >>> from llmcalc import engines
        >>> engines.get("vllm").placement.slots_rule(4, windowed=False, queries=6)
        'vLLM needs a divisor of the 6 query heads of each KV head'
        """
        if windowed and not self.splits_windows:
            return f"{self.engine} does not split windows"
        if self.divides_query_groups and queries is not None and queries % degree:
            return f"{self.engine} needs a divisor of the {queries} query heads of each KV head"
        return None


#: What groups of a model's parts are beside attention; these are the ledger's words for them.
BESIDE_ATTENTION: Final = frozenset({"feed_forward", "experts"})

#: The rules of a layout of no particular engine: data-parallel attention copies attention alone.
GENERIC: Final = Placement(shared_groups=BESIDE_ATTENTION)
