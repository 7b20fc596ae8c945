"""Components by kind and name, for scripts and plugins. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from difftool.components import KINDS, Component
from difftool.errors import UsageError
from difftool.options import make, suggestion
from difftool.plugins.registry import registry


def component(kind: str, name: str, **options: Any) -> Component:
    """A component with its options: `component("backbone", "unet", dim=64)`. Raises `UsageError`."""
    return make(registry().get(_known(kind), name), options)


def names(kind: str) -> list[str]:
    """The names of all components of a kind that are installed: `names("sampler")`. Raises `UsageError`."""
    return registry().names(_known(kind))


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}{suggestion(kind, KINDS)}; the kinds are {', '.join(KINDS)}")
    return kind
