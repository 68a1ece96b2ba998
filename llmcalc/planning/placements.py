"""Placements: one way to serve a workload, and what is short where there is none.

* `Placement`: devices, layout and formats, with what they need of each device.
* `DoesNotFit`: what is short, and by how much.
* `Answer`: either of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from llmcalc.described import Described
from llmcalc.folds.storage import Formats
from llmcalc.formats import name_of
from llmcalc.layouts import Layout
from llmcalc.memory.fitting import Fit
from llmcalc.memory.fitting import fit as fit_of
from llmcalc.memory.placed import fits
from llmcalc.units import Bytes, format_quantity

if TYPE_CHECKING:
    from llmcalc.folds.storage import StateFormat
    from llmcalc.formats import Format, Scheme
    from llmcalc.hardware import DeviceSpec
    from llmcalc.spec.model import ModelSpec

__all__ = ["Answer", "DoesNotFit", "Placement"]


@attrs.frozen(kw_only=True, repr=False, eq=False)
class Placement(Described):
    """One way to serve a workload: devices, layout and formats, and how tight it is.

    `batch` requests of `context` tokens are served by all devices of the `layout` together.
    `needed_bytes` is what the tightest device needs, `usable_bytes` what each has for it, and
    `max_batch_size` the most requests of the context that fit: `None` where they hold nothing.
    `device` is `None` where only its memory was given. ``bool(placement)`` is ``placement.fits``.

    >>> from llmcalc import load_model, planning
    >>> planning.plan(load_model("Qwen3-8B"), context=8192, devices="L4", counts=1)[0]
    <Placement of Qwen/Qwen3-8B: 1 x L4, one device, weights bf16, kv bf16; fits, largest batch 6>
    """

    spec: ModelSpec
    device: DeviceSpec | None
    layout: Layout
    formats: Formats
    context: int
    batch: int
    usable_bytes: int
    needed_bytes: int
    max_batch_size: int | None

    def __bool__(self) -> bool:
        return self.fits

    @property
    def weights(self) -> str | Format | Scheme:
        """The format of the weights, as it was given."""
        return self.formats.weights

    @property
    def kv(self) -> str | Format:
        """The format of keys and values, as it was given."""
        return self.formats.kv

    @property
    def state(self) -> StateFormat:
        """The format of recurrent states: one, or one for each role."""
        return self.formats.state

    @property
    def index(self) -> str | Format | None:
        """The format of an indexer's keys; `None` is that of keys and values."""
        return self.formats.indexer

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.layout.devices

    @property
    def fits(self) -> bool:
        """Whether what is needed is at most what is usable."""
        return fits(self.needed_bytes, self.usable_bytes)

    @property
    def left_bytes(self) -> int:
        """What is left on the tightest device, or 0."""
        return max(0, self.usable_bytes - self.needed_bytes)

    @property
    def short_bytes(self) -> int:
        """What the tightest device is short of, or 0."""
        return max(0, self.needed_bytes - self.usable_bytes)

    @property
    def format_names(self) -> tuple[str, str]:
        """The names of the formats of weights and of keys and values."""
        return name_of(self.weights), name_of(self.kv)

    @property
    def fit(self) -> Fit:
        """The same answer with its working: weights and cache of the tightest device.

        >>> from llmcalc import load_model, planning
        >>> row = planning.plan(load_model("Llama-3.1-8B"), context=8192, devices="L4")[0]
        >>> row.fit.reason
        'fits: 7 018 635 264 B (6.5366 GiB) of 24 152 899 584 B (22.494 GiB) are left'
        """
        return fit_of(
            self.spec,
            device_memory=self.usable_bytes,
            context=self.context,
            batch=self.batch,
            weights=self.weights,
            kv=self.kv,
            state=self.state,
            index=self.index,
            layout=self.layout,
        )

    @property
    def limit(self) -> str:
        """In words: whether it fits, and the largest batch or what is short."""
        if not self.fits:
            return f"does not fit: short by {format_quantity(self.short_bytes, Bytes)}"
        most = self.max_batch_size
        return "fits, " + ("memory limits no batch" if most is None else f"largest batch {most}")

    def __repr__(self) -> str:
        return f"<Placement of {self.spec.name}: {self}; {self.limit}>"

    def __str__(self) -> str:
        name = "devices" if self.device is None else self.device.name
        weights, kv = self.format_names
        return f"{self.devices} x {name}, {self.layout}, weights {weights}, kv {kv}"


@attrs.frozen(kw_only=True, repr=False, eq=False)
class DoesNotFit(Described):
    """Nothing that was tried fits. ``bool(...)`` is `False`.

    `closest` is what is short of least on its tightest device; `None` where every layout that was
    tried is refused, and then `refusal` says why the last one was.

    >>> from llmcalc import load_model, planning
    >>> answer = planning.fewest_devices(
    ...     load_model("Llama-3.1-8B"), device="L4", context=8192, batch=99, weights="bf16",
    ...     kv="bf16", max_devices=2,
    ... )
    >>> bool(answer), answer.short_bytes
    (False, 37027586048)
    """

    closest: Placement | None
    refusal: str | None = None

    fits: Literal[False] = attrs.field(default=False, init=False, repr=False)

    def __bool__(self) -> Literal[False]:
        return False

    @property
    def short_bytes(self) -> int | None:
        """What the tightest device of the closest try is short of."""
        return None if self.closest is None else self.closest.short_bytes

    @property
    def reason(self) -> str:
        """One sentence: what is short, and by how much."""
        if self.closest is None:
            return f"nothing was possible: {self.refusal or 'nothing was tried'}"
        return f"closest is {self.closest}: {self.closest.fit.reason}"

    def __repr__(self) -> str:
        return f"<DoesNotFit: {self.reason}>"


#: What a search answers: a placement, or what is short. Only the first is true.
Answer: TypeAlias = Placement | DoesNotFit
