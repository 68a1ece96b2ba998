"""Profiles: the engines that a budget can be made of, by the names that they had first.

* `Profile`: an `llmcalc.engines.Engine`.
* `profile`: the engine with that name.
* `profiles`: the versions of which the cache pool is known.

`llmcalc.engines` has all engines, those of which only other things are known, too.
"""

from __future__ import annotations

from llmcalc.engines.engine import ActivationRule, Mxfp4Kernels
from llmcalc.engines.engine import Engine as Profile
from llmcalc.engines.registry import get, names, with_pool

__all__ = ["ActivationRule", "Mxfp4Kernels", "Profile", "profile", "profiles"]


def profile(engine: str | Profile, field: str = "engine") -> Profile:
    """Return the engine with that name, in whatever case; an `Engine` is returned as it is.

    Raises `llmcalc.LlmcalcError` for an unknown name, and for an engine of whose cache pool
    nothing is known: a version that nobody looked at is not taken for its neighbour.

    >>> from llmcalc import serving
    >>> serving.profile("vllm-0.19").non_torch_bytes[1] / 2**30
    0.25
    """
    return with_pool(engine, field)


def profiles() -> tuple[str, ...]:
    """Return the names of the versions of which the cache pool is known.

    >>> from llmcalc import serving
    >>> "vllm-0.19" in serving.profiles()
    True
    """
    found = [(name, get(name)) for name in names()]
    return tuple([n for n, one in found if n == one.name and one.pool_rule is not None])
