"""The refusals that metrics of two sets share, and the error bars of those that have no formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difftool import Sets

GROUPS = 10


def checked(sets: Sets, fewest: int = 2) -> tuple[Tensor, Tensor]:
    """Return samples (N, D) and reference (M, D). Raises `ValueError` for what cannot be compared."""
    x, y = sets.samples, sets.reference
    for name, one in (("samples", x), ("data", y)):
        if len(one) < fewest:
            raise ValueError(f"needs at least {fewest:,} {name}, not {len(one):,}")
        if not bool(one.isfinite().all()):
            first = int((~one.isfinite().all(dim=1)).int().argmax())
            raise ValueError(f"the features of the {name} hold NaN or infinite numbers (first in row {first})")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"samples have {x.shape[1]:,} features and data {y.shape[1]:,}; both must have as many")
    return x, y


def jackknife_error(
    value: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, random: torch.Generator, groups: int = GROUPS
) -> float:
    """Return the standard error of value(x, y) by the delete-a-group jackknife (Wolter, 2007, section 4.2).

    One random group of the rows of x (N, ...) is left out after the other, then of those of y (M, ...). Both sets count
    as drawn anew, so the variances add up.
    """
    variance = 0.0
    for left, one in enumerate((x, y)):
        count = min(groups, len(one))
        member = torch.randperm(len(one), generator=random) % count
        values = torch.tensor(
            [value(*((one[member != g], y) if left == 0 else (x, one[member != g]))) for g in range(count)],
            dtype=torch.float64,
        )
        variance += float((count - 1) / count * (values - values.mean()).square().sum())
    return math.sqrt(variance)
