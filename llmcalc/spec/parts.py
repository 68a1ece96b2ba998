"""The parts that most decoders share: norms, embeddings and the head.

* `Norm`: RMSNorm or LayerNorm.
* `Embedding`: the token table, and the position table where positions are learned.
* `Head`: the projection to the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs

from llmcalc.boundary import flag, instance_of, one_of, size
from llmcalc.described import Described
from llmcalc.spec.axes import Axes, Axis
from llmcalc.spec.items import Item, Linear, Scale, Table

__all__ = ["TOKEN_TABLE", "Embedding", "Head", "Norm"]

#: The storage key of the token table, which a tied head shares.
TOKEN_TABLE = "token"


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Norm(Described):
    """A norm over the last axis: ``"rms"`` (a weight) or ``"layer"`` (a weight and a bias).

    `bias` is `None` for the kind's usual bias; a norm that is not `elementwise` has no parameters
    at all. With `gate_rank` the result is gated by itself, through two matrices of that rank. `eps`
    is only read by executable models.

    >>> from llmcalc.spec import Axis, Norm
    >>> [item.name for item in Norm(kind="layer").items("final_norm", (Axis("embed", 8),))]
    ['final_norm.weight', 'final_norm.bias']
    """

    kind: Literal["rms", "layer"] = attrs.field(validator=one_of("rms", "layer"))
    bias: bool | None = None
    eps: float = 1e-5
    elementwise: bool = attrs.field(default=True, validator=flag)
    gate_rank: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))

    @property
    def has_bias(self) -> bool:
        """Whether the norm has a bias."""
        usual = self.kind == "layer" if self.bias is None else self.bias
        return usual and self.elementwise

    def items(
        self, name: str, axes: Axes, vectors: Axes = (), *, of: str | None = None
    ) -> Iterator[Item]:
        """Emit the norm's elementwise parameters, which all `vectors` of a token share.

        `of` is the operation that they belong to, by default the norm itself.
        """
        of = name if of is None else of
        if self.elementwise:
            yield Scale(name=f"{name}.weight", of=of, axes=axes, vectors=vectors)
        if self.has_bias:
            yield Scale(name=f"{name}.bias", of=of, axes=axes)
        if self.gate_rank is not None:
            rank = Axis("gate_rank", self.gate_rank)
            yield Linear(name=f"{name}.gate_down", of=of, into=axes, out=((rank,),))
            yield Linear(name=f"{name}.gate_up", of=of, into=(rank,), out=(axes,))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Embedding(Described):
    """The token table of `vocab_size` rows, and a table of `learned_positions` rows if given.

    `sinusoidal` positions are computed and added. With `width` the token table has rows of that
    many elements, which a matrix brings to the model's width. `norm` normalises the sum of what
    was looked up. `more_rows` are those of tokens that are looked up and never predicted: the head
    has no results for them.

    >>> from llmcalc.spec import Axis, Embedding
    >>> table = Embedding(vocab_size=100, learned_positions=16)
    >>> [item.name for item in table.items(Axis("embed", 8))]
    ['token', 'position']
    """

    vocab_size: int = attrs.field(validator=size)
    learned_positions: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(size)
    )
    width: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))
    norm: Norm | None = attrs.field(
        default=None, validator=attrs.validators.optional(instance_of(Norm))
    )
    sinusoidal: bool = attrs.field(default=False, validator=flag)
    more_rows: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))

    @property
    def vocab(self) -> Axis:
        """The axis of the tokens that the head predicts."""
        return Axis("vocab", self.vocab_size)

    @property
    def rows(self) -> Axis:
        """The axis of the tokens that are looked up."""
        return Axis("vocab", self.vocab_size + (self.more_rows or 0))

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the tables."""
        row = embed if self.width is None else Axis("embedding", self.width)
        yield Table(name="token", rows=self.rows, row=(row,), storage=TOKEN_TABLE)
        if self.width is not None:
            yield Linear(name="token_to_embed", into=(row,), out=((embed,),))
        if self.learned_positions is not None:
            positions = Axis("positions", self.learned_positions)
            yield Table(name="position", rows=positions, row=(embed,))


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Head(Described):
    """The projection from the last hidden state to logits; `tied` shares the token table.

    With `width` a matrix first brings the hidden state to that many elements.

    >>> from llmcalc.spec import Axis, Head
    >>> [head] = Head(tied=True).items(Axis("embed", 8), Axis("vocab", 100))
    >>> head.storage
    'token'
    """

    tied: bool = attrs.field(validator=flag)
    bias: bool = attrs.field(default=False, validator=flag)
    width: int | None = attrs.field(default=None, validator=attrs.validators.optional(size))

    def items(self, embed: Axis, vocab: Axis) -> Iterator[Item]:
        """Emit the projection."""
        if self.width is not None:
            row = Axis("embedding", self.width)
            yield Linear(name="embed_to_token", into=(embed,), out=((row,),), tokens="all")
            embed = row
        yield Linear(
            name="output",
            into=(embed,),
            out=((vocab,),),
            bias=self.bias,
            tokens="logits",
            storage=TOKEN_TABLE if self.tied else None,
        )
