"""Devices: what a processor's vendor promises and what its driver shows, each figure sourced.

* `DeviceSpec`: one device: memory, bandwidth, dense peaks, links, and where each figure is from.
* `get`: a catalogued device by its name.
* `names`: the catalogued names.
* `UnknownDeviceError`: a name that is not in the catalogue, or that fits several devices.
* `NUMBER_FORMATS`: the number formats that a peak can be given for.

Conventions: bytes and FLOP/s are integers. Peaks are dense; structured-sparsity figures, twice as
high on most data sheets, never enter. Link figures are those of one direction. The catalogue is
read when a device is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from llmcalc.boundary import choice
from llmcalc.described import FrozenMapping
from llmcalc.errors import (
    LONGEST_MESSAGE,
    InvalidValueError,
    LlmcalcError,
    UnknownNameError,
    either,
    listing_message,
    nearest,
)

if TYPE_CHECKING:
    from llmcalc.boundary import Field

__all__ = ["NUMBER_FORMATS", "DeviceSpec", "UnknownDeviceError", "get", "names"]

#: Number formats of a matrix product's inputs. Products are accumulated in fp32 (integers in
#: int32); a suffix ``_fp16acc`` marks accumulation in fp16, which some devices do twice as fast.
NUMBER_FORMATS: Final = (
    "fp64",
    "fp32",
    "tf32",
    "bf16",
    "fp16",
    "fp16_fp16acc",
    "fp8",
    "fp8_fp16acc",
    "fp6",
    "fp4",
    "int8",
    "int4",
)

#: What stands for the source of a figure that has none.
_UNSOURCED: Final = "unsourced"


# What is no mapping, whatever its type says, is left to the validator, which refuses it by name.
def _integers(value: Mapping[str, int]) -> Mapping[str, int]:
    return FrozenMapping(value) if isinstance(value, Mapping) else value  # type: ignore[redundant-expr]


def _texts(value: Mapping[str, str]) -> Mapping[str, str]:
    return FrozenMapping(value) if isinstance(value, Mapping) else value  # type: ignore[redundant-expr]


def _check_text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InvalidValueError(field, value, "must be a string that is not empty")


def _check_positive(field: str, value: object) -> None:
    if type(value) is float:
        rule = "must be an int of at least 1, not a float: write 989 * 10**12 for 989e12"
        raise InvalidValueError(field, value, rule)
    if type(value) is not int or value < 1:
        raise InvalidValueError(field, value, "must be an int of at least 1")


def _check_mapping(field: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise InvalidValueError(field, value, "must be a mapping")


def _text(_: object, attribute: Field, value: object) -> None:
    _check_text(attribute.name, value)


def _positive(_: object, attribute: Field, value: object) -> None:
    _check_positive(attribute.name, value)


def _rates(_: object, attribute: Field, value: Mapping[object, object]) -> None:
    _check_mapping(attribute.name, value)
    for format, rate in value.items():
        choice(format, f"{attribute.name} format", NUMBER_FORMATS)
        _check_positive(f"{attribute.name}[{format!r}]", rate)


def _notes(_: object, attribute: Field, value: object) -> None:
    if not isinstance(value, tuple):
        raise InvalidValueError(attribute.name, value, "must be a tuple of strings")
    for note in value:
        _check_text(attribute.name, note)


_optional_positive = attrs.validators.optional(_positive)
_optional_text = attrs.validators.optional(_text)


@attrs.frozen(kw_only=True)
class DeviceSpec:
    """One device, as vendor and driver state it. Build your own, or take one with `get`.

    Only the first four fields are needed.

    `name`
        What the device is called.
    `memory_bytes`
        The memory that the driver shows (``nvidia-smi``'s total). In the catalogue, where that
        figure is not known, it is the nominal capacity, which is nearly always less, and
        `sources` says so.
    `bandwidth_bytes_per_second`
        Peak bandwidth of the device memory.
    `peak_flops`
        Dense peak rates of matrix products in FLOP/s (for integer formats, operations per
        second), by number format (`NUMBER_FORMATS`); one multiply-accumulate is two. A format
        that is missing has no known peak: none is derived from another format's.
    `vendor`
        Who makes it.
    `nominal_memory_bytes`
        The capacity on the label, with GB read as 10⁹ bytes. Vendors often mean GiB, so that the
        driver may show more than this.
    `runtime_memory_bytes`
        The total that the runtime reports to a program (``torch.cuda.mem_get_info``), to
        0.01 GiB. Engines take their budget as a share of it.
    `link`, `link_bytes_per_second_per_direction`
        The link to devices of the same kind, and what one device can send over it in all; it
        can receive as much at the same time.
    `host_link`, `host_link_bytes_per_second_per_direction`
        The link to the host, likewise. PCIe figures are the raw rate less the line code.
    `tdp_watts`
        Design power of the board or module.
    `cache_bytes`
        The on-chip cache in front of the device memory, with MB read as 2²⁰ bytes.
    `measured_flops`
        The fastest matrix product that somebody has measured, in FLOP/s, by number format.
    `sources`
        Where each figure is from: field, or field and format (``"peak_flops.bf16"``), to text.
        A figure whose source is missing or starts with ``unsourced`` counts as `unsourced`.
    `notes`
        What to know before trusting a figure: sources that disagree, common mix-ups.

    Raises `llmcalc.LlmcalcError` for a value that breaks a rule: sizes and rates are integers of
    at least 1.

    >>> from llmcalc import DeviceSpec, GiB
    >>> mine = DeviceSpec(
    ...     name="my accelerator",
    ...     memory_bytes=48 * GiB,
    ...     bandwidth_bytes_per_second=10**12,
    ...     peak_flops={"bf16": 200 * 10**12},
    ... )
    >>> mine.ridge_point("bf16")
    200.0
    """

    name: str = attrs.field(validator=_text)
    memory_bytes: int = attrs.field(validator=_positive)
    bandwidth_bytes_per_second: int = attrs.field(validator=_positive)
    peak_flops: Mapping[str, int] = attrs.field(converter=_integers, validator=_rates)
    vendor: str | None = attrs.field(default=None, validator=_optional_text)
    nominal_memory_bytes: int | None = attrs.field(default=None, validator=_optional_positive)
    runtime_memory_bytes: int | None = attrs.field(default=None, validator=_optional_positive)
    link: str | None = attrs.field(default=None, validator=_optional_text)
    link_bytes_per_second_per_direction: int | None = attrs.field(
        default=None, validator=_optional_positive
    )
    host_link: str | None = attrs.field(default=None, validator=_optional_text)
    host_link_bytes_per_second_per_direction: int | None = attrs.field(
        default=None, validator=_optional_positive
    )
    tdp_watts: int | None = attrs.field(default=None, validator=_optional_positive)
    cache_bytes: int | None = attrs.field(default=None, validator=_optional_positive)
    measured_flops: Mapping[str, int] = attrs.field(
        factory=dict, converter=_integers, validator=_rates
    )
    sources: Mapping[str, str] = attrs.field(factory=dict, converter=_texts, repr=False)
    notes: tuple[str, ...] = attrs.field(default=(), validator=_notes, repr=False)

    def __attrs_post_init__(self) -> None:
        _check_mapping("sources", self.sources)
        for figure, source in self.sources.items():
            choice(figure, "sources", self.figures, listed_by="DeviceSpec.figures")
            _check_text(f"sources[{figure!r}]", source)

    @property
    def figures(self) -> Mapping[str, int]:
        """Every number of this device by name; a rate's name ends in its format.

        >>> from llmcalc import hardware
        >>> list(hardware.get("RTX-5070-Ti").figures)[:3]
        ['memory_bytes', 'bandwidth_bytes_per_second', 'nominal_memory_bytes']
        >>> hardware.get("L4").figures["peak_flops.bf16"]
        121000000000000
        """
        figures: dict[str, int] = {}
        for field in attrs.fields(DeviceSpec):
            value = getattr(self, field.name)
            if isinstance(value, int):
                figures[field.name] = value
            elif field.name in {"peak_flops", "measured_flops"}:
                figures.update({f"{field.name}.{format}": rate for format, rate in value.items()})
        return figures

    @property
    def unsourced(self) -> tuple[str, ...]:
        """The figures that nobody is cited for; verify them before you build on them.

        >>> from llmcalc import hardware
        >>> hardware.get("H100-SXM-80GB").unsourced
        ()
        >>> hardware.get("RTX-5070-Ti").unsourced[:2]
        ('bandwidth_bytes_per_second', 'nominal_memory_bytes')
        """
        return tuple(
            figure
            for figure in self.figures
            if self.sources.get(figure, _UNSOURCED).startswith(_UNSOURCED)
        )

    def peak(self, format: str) -> int:
        """Return the dense peak of matrix products in `format`, in FLOP/s.

        Raises `llmcalc.LlmcalcError` where the device has no peak for the format; no other
        format's takes its place.

        >>> from llmcalc import hardware
        >>> hardware.get("H100-SXM-80GB").peak("bf16")
        989000000000000
        """
        choice(format, "format", NUMBER_FORMATS)
        rate = self.peak_flops.get(format)
        if rate is None:
            known = ", ".join(self.peak_flops) or "none"
            rule = f"{self.name} has no peak for this format; known peaks: {known}"
            raise InvalidValueError("format", format, rule)
        return rate

    def ridge_point(self, format: str) -> float:
        r"""Return the arithmetic intensity, in FLOP/byte, at which compute and memory bind alike.

        .. math:: I^* = \frac{\text{peak FLOP/s}}{\text{bandwidth in bytes/s}}

        Work of a lower intensity is bound by memory, of a higher one by compute. Raises
        `llmcalc.LlmcalcError` where the device has no peak for `format`.

        Source: Williams, Waterman and Patterson, "Roofline" (2009).

        >>> from llmcalc import hardware
        >>> round(hardware.get("H100-SXM-80GB").ridge_point("bf16"), 1)
        295.2
        """
        return self.peak(format) / self.bandwidth_bytes_per_second


class UnknownDeviceError(UnknownNameError):
    """A name is not in the catalogue, or fits several devices, which are then its suggestions.

    >>> from llmcalc import hardware
    >>> try:
    ...     hardware.get("a100 sxm")
    ... except hardware.UnknownDeviceError as error:
    ...     print(error)
    device = 'a100 sxm': could be 'A100-SXM-40GB' or 'A100-SXM-80GB'; say which
    """

    def __init__(self, field: str, value: str, known: tuple[str, ...]) -> None:
        keys = {_key(name): name for name in known}
        # A remark in brackets tells people more than it tells names apart.
        for text in (value[:LONGEST_MESSAGE], value[:LONGEST_MESSAGE].partition("(")[0]):
            key = _key(text)
            beginning = [name for other, name in keys.items() if key and other.startswith(key)]
            near = nearest(key, keys)
            if beginning or near:
                break
        self.field = field
        self.value = value
        self.known: tuple[str, ...] = tuple(sorted(known))
        self.listed_by = "llmcalc.hardware.names()"
        self.suggestions: tuple[str, ...] = tuple(beginning) or near
        several = len(beginning) > 1
        rules = self._could_be() if several else self._rules()
        LlmcalcError.__init__(self, listing_message(field, value, rules))

    def _could_be(self) -> Iterator[str]:
        names = self.suggestions
        yield f"could be {either(names)}; say which"
        yield f"could be {either(names[:3])} or {len(names) - 3} others; say which"


class _Catalogue:
    """The devices of ``data/devices.json``; each is built when it is first asked for."""

    def __init__(self, table: dict[str, Any]) -> None:
        self._references: dict[str, str] = table["references"]
        self._rows: dict[str, dict[str, Any]] = {row["name"]: row for row in table["devices"]}
        self._keys = {
            _key(name): row["name"]
            for row in table["devices"]
            for name in (row["name"], *row.get("aliases", ()))
        }
        self._built: dict[str, DeviceSpec] = {}
        self.names = tuple(self._rows)

    def find(self, name: str, field: str) -> DeviceSpec:
        known = self._keys.get(_key(name)) if len(name) <= 200 else None
        if known is None:
            raise UnknownDeviceError(field, name, self.names)
        if known not in self._built:
            self._built[known] = self._device(self._rows[known])
        return self._built[known]

    def _device(self, row: dict[str, Any]) -> DeviceSpec:
        fields = {name: value for name, value in row.items() if name != "aliases"}
        fields["notes"] = tuple(row.get("notes", ()))
        fields["sources"] = {
            figure: "; ".join(self._references[key] for key in entry["from"])
            for entry in row["sources"]
            for figure in entry["figures"]
        }
        return DeviceSpec(**fields)


_catalogue: _Catalogue | None = None


def _load() -> _Catalogue:
    global _catalogue  # noqa: PLW0603  # read once, when a device is first asked for
    if _catalogue is None:
        import json
        import os

        folder = os.path.dirname(__file__)  # noqa: PTH120  # pathlib costs more than the reading
        with open(os.path.join(folder, "data", "devices.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            _catalogue = _Catalogue(json.load(file))
    return _catalogue


#: Case and these characters don't distinguish names.
_SEPARATORS: Final = str.maketrans("", "", " \t-_")

#: Runtimes put vendor and brand before the model's name; the catalogue does not.
_BRANDS: Final = (
    *("nvidia", "geforce", "tesla"),
    *("amd", "instinct"),
    *("intel", "google", "aws", "apple"),
)


def _key(name: str) -> str:
    """Reduce a name to what distinguishes it.

    >>> from llmcalc.hardware import _key
    >>> _key("NVIDIA GeForce RTX 4090") == _key("rtx_4090")
    True
    """
    key = name.casefold().translate(_SEPARATORS)
    for brand in _BRANDS:
        key = key.removeprefix(brand)
    return key


def get(device: str | DeviceSpec, field: str = "device") -> DeviceSpec:
    """Return the catalogued device of that name; a `DeviceSpec` is returned as it is.

    Case, spaces, dashes and underscores don't matter, and what runtimes call a device
    (``torch.cuda.get_device_name``) is understood where it says enough. `field` is the argument's
    name in error messages. Raises `UnknownDeviceError`, an `llmcalc.LlmcalcError`, with
    suggestions, for a name that is unknown or fits several devices: nothing is guessed.

    >>> from llmcalc import hardware
    >>> device = hardware.get("H100-SXM-80GB")
    >>> device.memory_bytes, device.bandwidth_bytes_per_second
    (85520809984, 3350000000000)
    >>> hardware.get("h100 sxm 80gb") is hardware.get("NVIDIA H100 80GB HBM3") is device
    True
    """
    if isinstance(device, DeviceSpec):
        return device
    if not isinstance(device, str):
        raise InvalidValueError(field, device, "must be a device's name or a DeviceSpec")
    return _load().find(device, field)


def names() -> tuple[str, ...]:
    """Return the names of the catalogued devices, grouped by vendor.

    >>> from llmcalc import hardware
    >>> "H100-SXM-80GB" in hardware.names()
    True
    """
    return _load().names
