"""How Sphinx builds these pages: ``sphinx-build -W docs docs/_build/html``."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

from sphinx.util import logging

import llmcalc

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "llmcalc"
author = "The llmcalc developers"
release = version = installed_version("llmcalc-inference")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"llmcalc {release}"

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

# Single backticks in docstrings name Python objects.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
add_module_names = False
python_maximum_signature_line_length = 88

#: Modules, by the start of their names, that serve the library itself.
INTERNAL = (
    "llmcalc.__main__",
    "llmcalc.boundary",
    "llmcalc.described",
    "llmcalc.files.names",
    "llmcalc.files.packed",
    "llmcalc.headers.elements",
    "llmcalc.headers.finding",
    "llmcalc.headers.limits",
    "llmcalc.headers.strict_json",
    "llmcalc.huggingface.",
    "llmcalc.lazy",
    "llmcalc.models.executed",
    "llmcalc.models.layers",
    "llmcalc.planning.needs",
    "llmcalc.plots.style",
    "llmcalc.serving.identities",
    "llmcalc.serving.stated",
    "llmcalc.serving.wordings",
)
#: Modules among these that serve users.
PUBLIC = ("llmcalc.huggingface.catalogue", "llmcalc.huggingface.listing")


def exported_names() -> list[str]:
    """Return every name in the ``__all__`` of a public module, where it is defined."""
    names = []
    for info in pkgutil.walk_packages(llmcalc.__path__, "llmcalc."):
        if info.name.startswith(INTERNAL) and info.name not in PUBLIC:
            continue
        module = importlib.import_module(info.name)
        if not hasattr(module, "__getattr__"):  # which gathers the names of other modules
            names += [f"{info.name}.{name}" for name in getattr(module, "__all__", ())]
    return names


def check_exports(_: Sphinx, env: BuildEnvironment) -> None:
    """Warn, and so fail a build with ``-W``, where an exported name is on no page."""
    documented = env.domains.python_domain.objects
    for name in exported_names():
        if name not in documented:
            logging.getLogger(__name__).warning("%s is exported but not documented", name)


def keep_bars(*arguments: Any) -> None:
    """Escape bars in prose: docstrings have absolute values, never substitutions."""
    lines: list[str] = arguments[-1]
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")) and "`" not in line:
            lines[number] = line.replace("|", r"\|")


def setup(app: Sphinx) -> None:
    """Hang the hooks on the build."""
    app.connect("autodoc-process-docstring", keep_bars)
    app.connect("env-check-consistency", check_exports)
