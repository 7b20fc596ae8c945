"""Means and deviations over seeds, and which of several means is the best by more than they deviate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Spread:
    """The mean of a score over seeds, and how much it deviates."""

    mean: float | None
    """None if a value is not finite: the samples diverged."""
    deviation: float | None
    """The standard deviation of a single value, n - 1 in the denominator; None for a single one."""
    n: int
    """The number of values that the deviation is over."""

    @classmethod
    def of(cls, values: Sequence[Sequence[float]]) -> Spread:
        """Return mean and deviation of values by run and seed of the samples.

        The deviation is over the means of the runs, since samples of one run share its weights, or over the seeds of
        the samples where there is one run.
        """
        if not all(math.isfinite(value) for run in values for value in run):
            return cls(None, None, len(values))
        single = [statistics.fmean(run) for run in values] if len(values) > 1 else [*values[0]]
        deviation = statistics.stdev(single) if len(single) > 1 else None
        return cls(statistics.fmean(single), deviation, len(single))


def best_of(
    spreads: Sequence[Spread], better: Literal["lower", "higher"] = "lower", floor: float | None = None
) -> int | None:
    """Return the index of the best mean if it is better than each other one by more than the two deviate together.

    The deviation of a difference is sqrt(a^2 + b^2). What is better than data against data, the floor, counts as equal
    to it. Return None if no mean stands out, and for single values, of which no deviation is known.
    """
    sign = 1 if better == "lower" else -1
    least = -math.inf if floor is None else sign * floor
    known = [(max(sign * s.mean, least), s.deviation, i) for i, s in enumerate(spreads) if s.mean is not None]
    if len(known) < 2:
        return None
    first, deviation, index = min(known, key=lambda entry: entry[0])
    for mean, other, i in known:
        if i == index:
            continue
        if deviation is None or other is None or not mean - first > math.hypot(deviation, other):
            return None
    return index
