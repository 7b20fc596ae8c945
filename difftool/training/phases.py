"""The phases of a training step, named where they begin, for whoever measures them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

DATA, NOISE, FORWARD, BACKWARD, OPTIMIZER, AVERAGE = "data", "noise", "forward", "backward", "optimizer", "average"
REST = "rest"
PHASES = (DATA, NOISE, FORWARD, BACKWARD, OPTIMIZER, AVERAGE, REST)

_watching: list[Callable[[str], object]] = []
"""The functions to call at the beginning of a phase: none, unless a run is profiled."""


def enter(phase: str) -> None:
    """Begin a phase, which ends the one before it."""
    for watch in _watching:
        watch(phase)


@contextlib.contextmanager
def watched(watch: Callable[[str], object]) -> Iterator[None]:
    """Call a function with each phase that begins in a block."""
    _watching.append(watch)
    try:
        yield
    finally:
        _watching.remove(watch)
