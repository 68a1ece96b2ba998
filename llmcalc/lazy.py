"""Packages that import a module only when one of its names is asked for.

* `exports`: gives such a package its ``__getattr__`` and ``__dir__`` (PEP 562).

Reading a description needs few of the parts that a description can have, and importing all of
them takes longer than the answer. A package names what it exports to type checkers, too, under
``TYPE_CHECKING``; they see no ``__getattr__``, so that any other name is an error to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

__all__ = ["exports"]


def exports(
    package: str, homes: Mapping[str, tuple[str, ...]], namespace: dict[str, object]
) -> None:
    """Let a package, whose globals are `namespace`, export names of its modules.

    `homes` gives the names of each module; a module without names is exported itself. A name is
    kept in `namespace` once it was asked for.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def getattr_(name: str) -> object:
        module = import_module(f"{package}.{name}") if name in homes else None
        if name in home:
            module = import_module(f"{package}.{home[name]}")
            namespace[name] = getattr(module, name)
            return namespace[name]
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return module

    def dir_() -> list[str]:
        return sorted({*namespace, *homes, *home})

    namespace.update(__getattr__=getattr_, __dir__=dir_)
