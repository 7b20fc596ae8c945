"""The options of an array dataset, for those who choose among the arrays of a file, and the meaning of their texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from difftool import printable
from difftool_plugins.datasets.options import is_function


class Choices(Protocol):
    """The options of the dataset `array`."""

    @property
    def items(self) -> tuple[str, ...] | None: ...
    @property
    def labels(self) -> str: ...
    @property
    def vectors(self) -> tuple[str, ...] | None: ...
    @property
    def condition(self) -> str | None: ...
    @property
    def tokens(self) -> str | None: ...
    @property
    def form(self) -> str | None: ...
    @property
    def rate(self) -> float | None: ...
    @property
    def layout(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...] | None: ...


def is_computed(condition: str | None) -> bool:
    """Return whether condition images are computed from the items, as `gray`, `mask` and `shrink:N` are."""
    return condition is not None and re.fullmatch(r"gray|mask|shrink(:.*)?", condition) is not None


def check_computed(condition: str, shape: Sequence[int], form: str) -> None:
    """Refuse a computed condition that does not fit items of this shape and form. Raises `ValueError`."""
    if form != "image":
        raise ValueError(f"condition: {condition} is computed from images; --dataset.form image makes them")
    is_function(condition, shape[0], (shape[1], shape[2]))


def is_file(text: str | None) -> bool:
    """Return whether the text of an option names a file of its own, and no key or column."""
    return text is not None and text.lower().endswith(".npy")


def matching(patterns: Sequence[str], names: Sequence[str], where: str, flag: str) -> list[str]:
    """Return the names that are given, or that patterns with * match, in order. Raises `ValueError`."""
    found: list[str] = []
    for pattern in patterns:
        own = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if not own:
            listed = ", ".join(map(printable, names[:20])) + (", ..." if len(names) > 20 else "")
            raise ValueError(f"{flag}: {where} has no {printable(pattern)}; it has {listed or 'nothing'}")
        found += [name for name in own if name not in found]
    return found
