"""The axes along which sets of samples differ: what several values were given of, such as steps 5, 10 and 20.

Imports nothing heavy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Something that differs between sets of samples, and its values."""

    name: str
    """Its name, such as `guidance` or `steps`."""
    values: Sequence[str]
    """The values as they are written beside rows and above columns."""
    numbers: Sequence[int] = ()
    """The values themselves, if all of them are whole numbers; or ()."""

    @property
    def plural(self) -> str:
        """The name of an array of its values: `guidances`, `steps`."""
        return plural(self.name)


def sets_of(axes: Sequence[Axis]) -> int:
    """Return the number of sets: one for each combination of values."""
    return math.prod(len(axis.values) for axis in axes)


def places_of(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """Return for each set the index of its value on each axis. The last axis changes first."""
    return [*itertools.product(*(range(len(axis.values)) for axis in axes))]


def plural(noun: str) -> str:
    """Return the plural of the name of an axis: `guidances`, `steps`, `classes`."""
    return f"{noun}es" if noun.endswith("ss") else noun if noun.endswith("s") else f"{noun}s"
