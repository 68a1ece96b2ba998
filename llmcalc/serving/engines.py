"""Profiles: what is known of an engine's version, every number with its source.

* `Profile`: one engine version: block size, how caches are grouped, what it reserves.
* `profile`: a profile by its name.
* `profiles`: the known names.
* `ActivationRule`: the fitted rule for the peak of intermediate results.
* `Mxfp4Kernels`: what kernels for experts in mxfp4 round up.

A name is an engine and a version, such as ``vllm-0.19``. The figures are in
``llmcalc/data/engines.json``; those that were measured say on what, and those of a version that
was not measured are not filled in from another one: `llmcalc.serving.budget` then asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import attrs

from llmcalc.boundary import flag, one_of, size, whole_number
from llmcalc.errors import InvalidValueError, UnknownNameError
from llmcalc.units import GiB

__all__ = ["ActivationRule", "Mxfp4Kernels", "Profile", "profile", "profiles"]

#: What the pool is a share of: visible memory, with everything else subtracted; memory that is
#: free when the weights load, with only the weights subtracted; memory that is free after
#: everything else is in; or no pool, but a given number of cells.
PoolRule: TypeAlias = Literal["total", "static", "free", "cells"]

#: How layers of several kinds share the pool: "none": all layers hold every token, in one block
#: table; "kinds": a block table for each group of layers of one kind.
CacheGroups: TypeAlias = Literal["none", "kinds"]


#: From this memory on vLLM takes larger steps by default (``EngineArgs.get_batch_defaults``).
_LARGE_DEVICE: Final = 70 * GiB


@attrs.frozen(kw_only=True)
class ActivationRule:
    """The peak of a profiling step's intermediate results, as a rule fitted to an engine.

    The step has T tokens, of which S give logits. Its peak is the larger one of

    * the widest layer: ``T x (layer_inner x inner + layer_hidden x hidden) x element bytes``,
      with the inner width per device; latent attention has its expanded cache instead:
      ``C x heads x (nope + value) x element bytes``, for C cached tokens;
    * sampling: ``(T + S) x hidden x element bytes + S x vocabulary x (element bytes +
      sampler_logit_bytes) + sampler_rows x vocabulary x 4``,

    each with a constant: workspace of matrix products, and input buffers. Experts, k for a token,
    work in two buffers, of ``T x k x max(inner, hidden)`` and ``T x k x max(gate and up, hidden)``
    elements. With `keeps_expert_buffers` the engine keeps them from the first step on, beside
    whichever peak; without, they are a layer's, in ``T x k x (max(gate and up, hidden) + inner)``
    elements.
    """

    layer_inner: int
    layer_hidden: int
    layer_constant_bytes: int
    keeps_expert_buffers: bool
    sampler_logit_bytes: int
    sampler_rows: int
    sampler_constant_bytes: int


@attrs.frozen(kw_only=True)
class Mxfp4Kernels:
    """What kernels for mxfp4 experts round up: inner width per device, rows, contracted axis."""

    inner_multiple: int
    row_multiple: int
    contracted_multiple: int


def _percent(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    whole_number(value, attribute.name)


@attrs.frozen(kw_only=True)
class Profile:
    """What is known of one version of an engine. Build your own, or take one with `profile`.

    `name`
        Engine and version.
    `pool_rule`
        What the cache pool is a share of: see `PoolRule` in the source.
    `share`
        The default share (``gpu_memory_utilization``, ``mem_fraction_static``,
        ``free_gpu_memory_fraction``).
    `block_tokens`, `batched_tokens`, `sequences`
        Defaults: tokens of a block, of a step, and requests of a step.
    `cache_groups`
        ``"none"``: every layer holds every token. ``"kinds"``: layers are grouped by what they
        hold.
    `evened_groups_percent`
        Groups have as many layers as the kind that has fewest; but where the kind that has most
        has less than so many per cent more, as many as that one. With 0 never.
    `pads_pages`
        Whether pages of layers that do not divide each other are padded. Other versions refuse
        such a model, unless their hybrid manager is switched off: one block table for all.
    `batches_in_flight`
        How many steps' tokens a windowed layer holds beside its window; in a pipeline an engine
        that has several holds those of one for each stage.
    `state_block_step`, `latent_block_step`
        Where there are recurrent states, an attention block is a multiple of this many tokens; the
        second, where attention keeps latents.
    `tokens_of_blocks`
        Whether the printed number of tokens is that of one group's blocks, or concurrency x
        context.
    `graphs_subtracted`
        Whether memory for CUDA graphs is subtracted before the pool.
    `activation`
        The rule for the peak of intermediate results, `None` where none was fitted.
    `non_torch_bytes`
        What is allocated outside the framework (communication, libraries), by tensor-parallel
        degree; the largest degree that is listed stands for higher ones.
    `pipeline_non_torch_bytes`
        The same in a pipeline without tensor parallelism, whose communication is set up before
        the profiling step.
    `vocab_multiple`
        Vocabulary rows are padded to a multiple of this.
    `mxfp4_kernels`
        What the engine's kernels for mxfp4 experts round up on Hopper; `None` where that is not
        known.
    `sources`
        Where each figure is from.
    """

    name: str
    pool_rule: PoolRule = attrs.field(validator=one_of("total", "static", "free", "cells"))
    share: float = attrs.field()
    block_tokens: int = attrs.field(default=16, validator=size)
    batched_tokens: int = attrs.field(default=8192, validator=size)
    sequences: int = attrs.field(default=256, validator=size)
    small_batched_tokens: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(size)
    )
    small_sequences: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(size)
    )
    cache_groups: CacheGroups = attrs.field(default="kinds", validator=one_of("none", "kinds"))
    evened_groups_percent: int = attrs.field(default=0, validator=_percent)
    pads_pages: bool = attrs.field(default=False, validator=flag)
    batches_in_flight: int = attrs.field(default=1, validator=size)
    state_block_step: int = attrs.field(default=16, validator=size)
    latent_block_step: int = attrs.field(default=64, validator=size)
    tokens_of_blocks: bool = attrs.field(default=True, validator=flag)
    graphs_subtracted: bool = attrs.field(default=False, validator=flag)
    activation: ActivationRule | None = None
    non_torch_bytes: Mapping[int, int] | None = attrs.field(default=None, hash=False)
    pipeline_non_torch_bytes: int | None = None
    vocab_multiple: int = attrs.field(default=1, validator=size)
    mxfp4_kernels: Mxfp4Kernels | None = None
    sources: Mapping[str, str] = attrs.field(factory=dict, hash=False, repr=False)

    def step(self, visible_bytes: int, device: str = "") -> tuple[int, int]:
        """Return the default tokens and requests of a step on a device with so much memory.

        >>> from llmcalc import GiB, serving
        >>> engine = serving.profile("vllm-0.19")
        >>> engine.step(80 * GiB, "H100-SXM-80GB"), engine.step(24 * GiB, "L4")
        ((8192, 1024), (2048, 256))
        """
        if visible_bytes >= _LARGE_DEVICE and "a100" not in device.lower():
            return self.batched_tokens, self.sequences
        return (
            self.small_batched_tokens or self.batched_tokens,
            self.small_sequences or self.sequences,
        )

    @share.validator
    def _check_share(self, attribute: attrs.Attribute[Any], value: object) -> None:
        check_share(value, attribute.name)


def check_share(value: object, field: str) -> float:
    """Return a share of memory, checked: a number above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidValueError(field, value, "must be a number above 0 and at most 1")
    return float(value)


def profile(engine: str | Profile, field: str = "engine") -> Profile:
    """Return the profile with that name; a `Profile` is returned as it is.

    Raises `llmcalc.LlmcalcError` for an unknown name: a version that nobody looked at is not
    taken for its neighbour.

    >>> from llmcalc import serving
    >>> serving.profile("vllm-0.19").non_torch_bytes[1] / 2**30
    0.25
    """
    if isinstance(engine, Profile):
        return engine
    if not isinstance(engine, str):
        raise InvalidValueError(field, engine, "must be a profile's name or a Profile")
    found = _table().get(engine)
    if found is None:
        raise UnknownNameError(field, engine, _table(), listed_by="llmcalc.serving.profiles()")
    return found


def profiles() -> tuple[str, ...]:
    """Return the names of the known profiles.

    >>> from llmcalc import serving
    >>> "vllm-0.19" in serving.profiles()
    True
    """
    return tuple(_table())


_PROFILES: dict[str, Profile] = {}


def _table() -> dict[str, Profile]:
    if not _PROFILES:
        import json
        from importlib.resources import files

        text = (files("llmcalc") / "data" / "engines.json").read_text(encoding="utf-8")
        for name, row in json.loads(text)["profiles"].items():
            fields = dict(row)
            if fields.get("activation") is not None:
                fields["activation"] = ActivationRule(**fields["activation"])
            if fields.get("mxfp4_kernels") is not None:
                fields["mxfp4_kernels"] = Mxfp4Kernels(**fields["mxfp4_kernels"])
            if fields.get("non_torch_bytes") is not None:
                fields["non_torch_bytes"] = {
                    int(degree): number for degree, number in fields["non_torch_bytes"].items()
                }
            _PROFILES[name] = Profile(name=name, **fields)
    return _PROFILES
