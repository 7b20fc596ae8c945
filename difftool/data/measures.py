"""Measures of data: the moments of vectors, and warnings and refusals of numbers that no network learns from."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from difftool.data.columns import rows_of
from difftool.data.samples import Samples
from difftool.data.scaling import moments

MEASURED, DECODED = 1_000, 256
"""The number of items from which the standard deviation is measured: in memory, and if each must be decoded."""
MEASURED_NUMBERS = 2**25
"""The largest number of values from which the standard deviation is measured, unless one item has more."""
DEVIATIONS = (0.1, 10.0)
"""The range of the standard deviation in model units that suits networks."""
SMALLEST_BOUNDED = 0.01
"""The smallest standard deviation of data with bounds: that of pixels from 0 to 1 taken for 0 to 255 is far smaller."""
LARGEST_MEAN = 10.0
"""The largest mean in model units, in either direction, that suits networks."""
DIGITS = 8
"""Data deviate from their mean by at least this many steps of their floating-point type, or have lost their shape."""


def vector_moments(samples: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each number of the vectors, over all of them in memory and over some of a source."""
    column = samples.columns.get("vector")
    if column is None:
        return (), ()
    most = DECODED if not isinstance(column, Tensor) else MEASURED_NUMBERS // math.prod(samples.row_shapes["vector"])
    measured = max(1, min(len(column), most))
    vectors = rows_of(column, "vector", [i * len(column) // measured for i in range(measured)])
    check_digits(vectors, "vectors")
    return moments(vectors)


def check_digits(items: Tensor, name: str = "items") -> None:
    """Raise `ValueError` for floats (n, C, ...) so far from 0 that their type cannot tell them apart."""
    if not items.is_floating_point() or len(items) < 2:
        return
    eps = torch.finfo(items.dtype).eps
    axes = [axis for axis in range(items.ndim) if axis != 1]
    std, mean = torch.std_mean(items.to(torch.float64), dim=axes, correction=0)
    lost = (std > 0) & (std < DIGITS * eps * mean.abs())
    if bool(lost.any()):
        channel, dtype = int(lost.int().argmax()), str(items.dtype).removeprefix("torch.")
        cure = "subtract their mean first" if items.dtype == torch.float64 else "give them as float64"
        raise ValueError(
            f"channel {channel} of the {name} deviates by {std[channel]:.2g} from its mean {mean[channel]:.6g}, "
            f"less than {dtype} can hold; {cure}"
        )


def check_scaling(mean: float, std: float, count: int, *, bounded: bool) -> None:
    """Warn of data whose mean and deviation in model units no network learns from. Images may well be dark."""
    low, high = DEVIATIONS
    low = SMALLEST_BOUNDED if bounded else low
    if abs(mean) <= LARGEST_MEAN and (low <= std <= high or count == 1 or std == 0.0):
        return
    warnings.warn(
        f"in model units, (item - shift) / scale, the data have mean {mean:.3g} and standard deviation {std:.3g}, but "
        "networks learn from about 0 and 1; scale them by difftool.points(), or by shift= and scale= of Samples",
        stacklevel=3,
    )


def check_bounds(x: Tensor, bounds: tuple[float, float] | None) -> None:
    """Warn of data beyond their bounds, which no samples will reach."""
    if bounds is None:
        return
    low, high, room = float(x.min()), float(x.max()), (bounds[1] - bounds[0]) / 100
    if low < bounds[0] - room or high > bounds[1] + room:
        warnings.warn(
            f"in model units, the data reach from {low:.3g} to {high:.3g}, beyond their bounds {bounds}, to which "
            "samples are clipped",
            stacklevel=3,
        )
