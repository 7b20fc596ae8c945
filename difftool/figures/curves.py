"""Curves of many records with no more points than a picture shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

POINTS = 1500
"""The largest number of points of a line, whatever the number of records."""


def smoothed(steps: Values, values: Values, most: int = POINTS) -> tuple[Values, Values]:
    """Return the means over a window of a twenty-fifth of the values, at no more than `most` places."""
    if not len(values):
        return steps, values
    half = len(values) // 50
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(np.int64))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return steps[at], (total[high] - total[low]) / (high - low)


def blocks(
    steps: Values, values: Values, reduce: Callable[[Values], Any] = np.mean, most: int = POINTS
) -> tuple[Values, Values]:
    """Return the mean step and the reduced values of at most `most` blocks of neighbours."""
    if len(values) <= most:
        return steps, values
    parts = np.array_split(np.arange(len(values)), most)
    return np.array([steps[part].mean() for part in parts]), np.array([reduce(values[part]) for part in parts])
