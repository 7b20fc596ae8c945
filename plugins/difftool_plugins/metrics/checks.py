"""The refusals that metrics of two sets share, and the error bars of those that have no formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difftool import Sets

SPLITS = 10
"""The number of cuts into halves, from which an error bar is good to a fifth of itself."""


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


def halves_error(
    values: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, random: torch.Generator, splits: int = SPLITS
) -> Tensor:
    """Return the standard errors (S,) of values(x, y), which returns scores (S,) of sets (N, ...) and (M, ...).

    Both sets are cut into random halves. Two halves share nothing, so that the squared difference of their scores is
    twice the variance of one, and a quarter of it is the variance for sets of full size, where that falls as 1/n. The
    mean over several cuts is taken. It suits scores that hang on nearest neighbours, for which bootstrap and jackknife
    are wrong. Both sets count as drawn anew.
    """
    differences = []
    for _ in range(splits):
        halves = [one[torch.randperm(len(one), generator=random)].tensor_split(2) for one in (x, y)]
        first, second = (values(a, b) for a, b in zip(*halves, strict=True))
        differences.append(first - second)
    return 0.5 * torch.stack(differences).square().mean(0).sqrt()
