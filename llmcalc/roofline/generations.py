r"""The least time of a generation: a prefill, then a step for every further token.

* `generation`: the times of a batch of equal requests.
* `Generation`: its answer: first token, later tokens, rates, energy and cost.

Like a step's, these times are bounds: what no device of that kind can beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs

from llmcalc.boundary import (
    count,
    integer_type,
    is_array,
    is_wide,
    largest_element,
    positive_number,
    whole_number,
)
from llmcalc.described import DescribedArrays
from llmcalc.errors import InvalidValueError
from llmcalc.hardware import DeviceSpec
from llmcalc.roofline.times import StepTime, step_time
from llmcalc.spec.model import ModelSpec, check_spec
from llmcalc.units import Seconds, TokensPerSecond, format_quantity

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    from llmcalc.boundary import Int, IntArray
    from llmcalc.formats import Format, Scheme

__all__ = ["Generation", "generation"]


@attrs.frozen(kw_only=True, slots=False, repr=False, eq=False)
class Generation(DescribedArrays):
    """The least times of `batch` requests of `prompt` tokens that generate `new_tokens` each.

    `prefill` reads the prompt and gives the first token; `decode` holds a step for each further
    token, as arrays, or `None` where there is none. `devices` serve the batch together. Figures
    are floats, or arrays where `batch` or `prompt` is one.
    """

    batch: Any
    prompt: Any
    new_tokens: int
    prefill: StepTime
    decode: StepTime | None
    devices: int = 1

    def __repr__(self) -> str:
        rate = format_quantity(self.tokens_per_second, TokensPerSecond)
        first = format_quantity(self.first_token_seconds, Seconds)
        where = f"{self.devices} x {self.prefill.device.name}"
        return f"<Generation on {where}: at most {rate}, the first token after {first}>"

    @property
    def first_token_seconds(self) -> Any:
        """The time to the first token: the prefill's bound."""
        return self.prefill.bound_seconds

    @cached_property
    def token_seconds(self) -> NDArray[floating[Any]]:
        """The time of every further token, along the growing context, (..., new_tokens - 1)."""
        import numpy as np

        if self.decode is None:
            return np.zeros((*np.shape(self.first_token_seconds), 0))
        return np.asarray(self.decode.bound_seconds, dtype=np.float64)

    @property
    def mean_token_seconds(self) -> Any:
        """The mean time of a further token; `None` where there is none."""
        return None if self.decode is None else _number(self.token_seconds.mean(axis=-1))

    @property
    def seconds(self) -> Any:
        """The time of all tokens."""
        return self.first_token_seconds + _number(self.token_seconds.sum(axis=-1))

    @property
    def tokens_per_second(self) -> Any:
        """New tokens of all requests, by the time of all."""
        made = self.batch * self.new_tokens
        return (made.astype("float64") if is_array(made) else made) / self.seconds

    @property
    def tokens_per_second_per_device(self) -> Any:
        """New tokens of all requests, by the time of all and the number of devices."""
        return self.tokens_per_second / self.devices

    @property
    def tokens_per_second_per_user(self) -> Any:
        """New tokens of one request by the time of further tokens; `None` where there is none."""
        return None if self.decode is None else 1 / self.mean_token_seconds

    def joules(self, watts: float) -> Any:
        """Return the energy of all devices, at the power of one."""
        return self.seconds * self.devices * positive_number(watts, "watts")

    def cost(self, price_per_hour: float) -> Any:
        """Return the cost of all devices, at the price of one for an hour, in its currency."""
        return (
            self.seconds / 3600 * self.devices * positive_number(price_per_hour, "price_per_hour")
        )


def _number(value: Any) -> Any:
    """Return what a sum over the last axis gives: a float, or an array."""
    return value if is_array(value) and value.ndim else float(value)


def generation(
    spec: ModelSpec,
    device: str | DeviceSpec,
    *,
    prompt: Int | IntArray,
    new_tokens: Int,
    batch: Int | IntArray = 1,
    weights: str | Format | Scheme,
    kv: str | Format,
    **options: Any,
) -> Generation:
    """Return the least times of a generation on one device, or on those of a layout.

    `batch` requests of `prompt` tokens each generate `new_tokens`; `batch` and `prompt` take
    integers or arrays. `options` are further arguments of `llmcalc.roofline.step_time`, among them
    `layout`. Unless `mla` is one of them, latent attention has the form that takes least: expanded
    for the prompt, absorbed for further tokens. All times are the steps' bounds, without what
    devices exchange. Raises
    `llmcalc.LlmcalcError` for an empty prompt, no new tokens, and for a context past the model's
    position limit.

    >>> from llmcalc import load_model, roofline
    >>> answer = roofline.generation(
    ...     load_model("llama-3-8b"), "H100-SXM-80GB", prompt=4096, new_tokens=257,
    ...     weights="bf16", kv="bf16",
    ... )
    >>> round(1e3 * answer.first_token_seconds, 1), round(1e3 * answer.mean_token_seconds, 3)
    (62.3, 4.646)
    >>> round(answer.seconds, 3), round(answer.tokens_per_second_per_user)
    (1.252, 215)
    """
    check_spec(spec)
    if "mixed_with" in options:
        rule = "is not for generations, whose requests are all alike: see step_time"
        raise InvalidValueError("mixed_with", options["mixed_with"], rule)
    new = whole_number(new_tokens, "new_tokens", minimum=1)
    tokens = _at_least_one(prompt, "prompt", more=new)
    requests = _at_least_one(batch, "batch", times=new)
    degree = whole_number(options.get("tensor_parallel", 1), "tensor_parallel", minimum=1)
    limit, longest = spec.max_positions, largest_element(tokens) if is_array(tokens) else tokens
    if limit is not None and longest + new - 1 > limit:  # the last token is never read
        raise InvalidValueError(
            "prompt", longest, f"and {new} new tokens must be at most {limit} positions"
        )
    prefill = step_time(
        spec, device, batch=requests, new=tokens, past=0, weights=weights, kv=kv, **options
    )
    decode = None
    if new > 1:
        import numpy as np

        steps = np.arange(new - 1).astype(integer_type(wide=is_wide(longest + new)))
        decode = step_time(
            spec,
            device,
            batch=requests[..., None] if is_array(requests) else requests,
            new=1,
            past=(tokens[..., None] if is_array(tokens) else tokens) + steps,
            weights=weights,
            kv=kv,
            **decoding(options),
        )
    layout = options.get("layout")
    return Generation(
        batch=requests,
        prompt=tokens,
        new_tokens=new,
        prefill=prefill,
        decode=decode,
        devices=degree if layout is None else layout.devices,
    )


def decoding(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments of steps that decode, from those of all steps of a generation."""
    return {"mla": "absorbed", **options}


def _at_least_one(value: Int | IntArray, field: str, *, times: int = 1, more: int = 0) -> Any:
    """Return integers of at least 1, whose product and sum with these no array is too small for."""
    checked: Any = count(value, field)
    smallest = checked.min(initial=1) if is_array(checked) else checked
    if smallest < 1:
        raise InvalidValueError(field, value, "must be at least 1")
    if is_array(checked):
        wide = is_wide(largest_element(checked) * times + more)
        checked = checked.astype(integer_type(wide=wide))
    return checked
