"""How a next token is chosen from logits.

* `Sampling`: temperature, top-k and top-p, checked once and applied at every step.
"""

from __future__ import annotations

import math
from numbers import Real

import attrs
import torch
from torch import Tensor

from llmcalc.boundary import whole_number
from llmcalc.errors import InvalidValueError

__all__ = ["Sampling"]


def _number(value: object, field: str, rule: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidValueError(field, value, rule)
    return float(value)


def _temperature(value: object) -> float:
    rule = "must be a finite number of at least 0 (0 takes the most likely token)"
    number = _number(value, "temperature", rule)
    if not (0 <= number < math.inf):
        raise InvalidValueError("temperature", value, rule)
    return number


def _top_p(value: object) -> float | None:
    rule = "must be above 0 and at most 1"
    number = 1.0 if value is None else _number(value, "top_p", rule)
    if not 0 < number <= 1:
        raise InvalidValueError("top_p", value, rule)
    return None if value is None else number


def _top_k(value: object) -> int | None:
    return None if value is None else whole_number(value, "top_k", minimum=1)


@attrs.frozen(kw_only=True)
class Sampling:
    """How the next token is drawn.

    `temperature` 0 takes the most likely token (the first of several); any other divides the
    logits before the softmax. `top_k` keeps the k most likely tokens, `top_p` then the fewest most
    likely whose probabilities sum to at least p; `None` keeps all. `generator` gives the random
    numbers; without one they come from a new generator seeded by the operating system, never from
    PyTorch's global one. Raises `llmcalc.LlmcalcError` for a value out of range.

    >>> import torch
    >>> from llmcalc.models.sampling import Sampling
    >>> Sampling().choose(torch.tensor([[0.1, 2.0, 1.0]]))
    tensor([1])
    >>> Sampling(temperature=-1.0)
    Traceback (most recent call last):
        ...
    llmcalc.errors.InvalidValueError: temperature = -1.0: must be a finite number of at least 0 \
(0 takes the most likely token)
    """

    temperature: float = attrs.field(default=0.0, converter=_temperature)
    top_k: int | None = attrs.field(default=None, converter=_top_k)
    top_p: float | None = attrs.field(default=None, converter=_top_p)
    generator: torch.Generator | None = attrs.field(default=None)

    def __attrs_post_init__(self) -> None:
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise InvalidValueError("generator", self.generator, "must be a torch.Generator")

    def on(self, device: torch.device) -> Sampling:
        """Return the same, with a generator on `device` if one will be needed."""
        if self.generator is None:
            if self.temperature == 0:
                return self
            generator = torch.Generator(device)
            generator.seed()
            return attrs.evolve(self, generator=generator)
        if self.generator.device.type != device.type:
            raise InvalidValueError(
                "generator",
                str(self.generator.device),
                f"must be on the decoder's device, {device}",
            )
        return self

    def choose(self, logits: Tensor) -> Tensor:
        """Return one token id for each row of `logits` (batch, vocab), as (batch,)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scores = logits.double()
        # Subtracting first keeps the division by a very small temperature from giving inf - inf.
        scores = (scores - scores.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is None and self.top_p is None:
            return self._draw(scores.softmax(-1))
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        probabilities = scores[:, : self.top_k].softmax(-1)
        if self.top_p is not None:
            before = probabilities.cumsum(-1) - probabilities
            keep = before < self.top_p
            keep[:, 0] = True
            probabilities = probabilities * keep
        drawn: Tensor = order.gather(-1, self._draw(probabilities)[:, None])[:, 0]
        return drawn

    def _draw(self, probabilities: Tensor) -> Tensor:
        return probabilities.multinomial(1, generator=self.generator)[:, 0]
