"""Scores in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from difftool.evaluation.measuring import is_none

if TYPE_CHECKING:
    from difftool.evaluation.measuring import Measured
    from difftool.evaluation.scores import Score


def number(score: Score) -> str:
    """Return a value with its error, as `0.0123 ± 0.0004`, and its unit."""
    unit = f" {score.unit}" if score.unit else ""
    return with_error(score.value, score.error) + unit


def with_error(value: float, error: float | None) -> str:
    """Return a number with its standard error, both to the same decimal: two digits of the error are shown."""
    if not error or not math.isfinite(error):
        return f"{value:.4g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"


def verdict(measured: Measured) -> str:
    """Return how a score stands to its floor: `at the floor`, or `above the floor by 0.012 ± 0.001`."""
    if measured.excess is None:
        return ""
    worse, error = measured.excess
    if is_none(worse, error):
        return "at the floor"
    side = "above" if (worse > 0) == (measured.score.better == "lower") else "below"
    return f"{side} the floor by {with_error(abs(worse), error)}"
