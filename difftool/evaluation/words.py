"""Scores in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from difftool.evaluation.measuring import Measured, difference, is_none

if TYPE_CHECKING:
    from difftool.evaluation.scores import Score


def number(score: Score) -> str:
    """Return a value with its error, as `0.0123 ± 0.0004`, and its unit."""
    unit = f" {score.unit}" if score.unit else ""
    return with_error(score.value, score.error) + unit


def with_error(value: float, error: float | None) -> str:
    """Return a number with its standard error, both to the same decimal: two digits of the error are shown."""
    if not error:
        return f"{value:.4g}"
    digits = 1 - math.floor(math.log10(error))
    if digits > 8:  # too small for decimals that anybody could read
        return f"{value:.3e} ± {error:.1e}"
    places = max(0, digits)
    rounded = round(value, places) + 0.0  # never -0.0
    return f"{rounded:.{places}f} ± {error:.{places}f}"


def beside_floor(measured: Measured) -> str:
    """Return how samples stand to data: `at the floor`, or `above the floor by 0.012 ± 0.001`."""
    if measured.excess is None:
        return ""
    worse, error = measured.excess
    if is_none(worse, error):
        return "at the floor"
    side = "above" if (worse > 0) == (measured.score.better == "lower") else "below"
    return f"{side} the floor by {with_error(abs(worse), error)}" + ("" if worse > 0 else ", better than data")


def beside(first: Score, other: Score) -> str:
    """Return how another score stands to the first: `no difference`, or `better by 0.012 ± 0.001`."""
    worse, error = difference(first, other)
    if is_none(worse, error):
        return "no difference" if error is None else f"no difference ({with_error(other.value - first.value, error)})"
    return f"{'worse' if worse > 0 else 'better'} by {with_error(abs(worse), error)}"


def difference_table(first: Score, other: Score) -> dict[str, Any]:
    """Return how another score differs from the first as plain values."""
    worse, error = difference(first, other)
    none = is_none(worse, error)
    return {
        "name": other.name,
        "difference": other.value - first.value,
        "error": error,
        "verdict": "no difference" if none else "worse" if worse > 0 else "better",
    }
