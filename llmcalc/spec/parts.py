"""The parts that most decoders share: norms, embeddings and the head.

* `Norm`: RMSNorm or LayerNorm.
* `Embedding`: the token table, and the position table where positions are learned.
* `Head`: the projection to the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs

from llmcalc.boundary import flag, one_of, size
from llmcalc.spec.axes import Axes, Axis
from llmcalc.spec.items import Item, Linear, Scale, Table

__all__ = ["TOKEN_TABLE", "Embedding", "Head", "Norm"]

#: The storage key of the token table, which a tied head shares.
TOKEN_TABLE = "token"


@attrs.frozen(kw_only=True)
class Norm:
    """A norm over the last axis: ``"rms"`` (a weight) or ``"layer"`` (a weight and a bias).

    `bias` is `None` for the kind's usual bias. `eps` is only read by executable models.

    >>> from llmcalc.spec import Axis, Norm
    >>> [item.name for item in Norm(kind="layer").items("final_norm", (Axis("embed", 8),))]
    ['final_norm.weight', 'final_norm.bias']
    """

    kind: Literal["rms", "layer"] = attrs.field(validator=one_of("rms", "layer"))
    bias: bool | None = None
    eps: float = 1e-5

    @property
    def has_bias(self) -> bool:
        """Whether the norm has a bias."""
        return self.kind == "layer" if self.bias is None else self.bias

    def items(self, name: str, axes: Axes) -> Iterator[Item]:
        """Emit the norm's elementwise parameters."""
        yield Scale(name=f"{name}.weight", axes=axes)
        if self.has_bias:
            yield Scale(name=f"{name}.bias", axes=axes)


@attrs.frozen(kw_only=True)
class Embedding:
    """The token table of `vocab_size` rows, and a table of `learned_positions` rows if given.

    >>> from llmcalc.spec import Axis, Embedding
    >>> table = Embedding(vocab_size=100, learned_positions=16)
    >>> [item.name for item in table.items(Axis("embed", 8))]
    ['token', 'position']
    """

    vocab_size: int = attrs.field(validator=size)
    learned_positions: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(size)
    )

    @property
    def vocab(self) -> Axis:
        """The vocabulary axis."""
        return Axis("vocab", self.vocab_size)

    def items(self, embed: Axis) -> Iterator[Item]:
        """Emit the tables."""
        yield Table(name="token", rows=self.vocab, row=(embed,), storage=TOKEN_TABLE)
        if self.learned_positions is not None:
            positions = Axis("positions", self.learned_positions)
            yield Table(name="position", rows=positions, row=(embed,))


@attrs.frozen(kw_only=True)
class Head:
    """The projection from the last hidden state to logits; `tied` shares the token table.

    >>> from llmcalc.spec import Axis, Head
    >>> [head] = Head(tied=True).items(Axis("embed", 8), Axis("vocab", 100))
    >>> head.storage
    'token'
    """

    tied: bool = attrs.field(validator=flag)
    bias: bool = attrs.field(default=False, validator=flag)

    def items(self, embed: Axis, vocab: Axis) -> Iterator[Item]:
        """Emit the projection."""
        yield Linear(
            name="output",
            into=(embed,),
            out=((vocab,),),
            bias=self.bias,
            tokens="logits",
            storage=TOKEN_TABLE if self.tied else None,
        )
