"""Sets of vectors, seen in random directions: the sliced Wasserstein-2 distance."""

from __future__ import annotations

import torch
from torch import Tensor


class Projections:
    """Random directions, in each of which sets of vectors become sets of numbers."""

    def __init__(self, width: int, count: int, random: torch.Generator) -> None:
        """Draw the directions (width, count), each of length 1."""
        directions = torch.randn(width, count, generator=random)
        self.directions = directions / directions.norm(dim=0)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the projections (N, count) of items (N, ...), sorted in each direction."""
        projected: Tensor = x.flatten(1).float() @ self.directions
        return projected.sort(dim=0).values


def wasserstein_2_squared(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared Wasserstein-2 distance (L,) float64 in each direction of sorted projections (N, L) and (M, L).

    It is the integral over u from 0 to 1 of the squared difference of both quantile functions, which are constant
    between the multiples of 1/N and 1/M. The root of its mean is the sliced distance (Bonneel et al., 2015).
    """
    n, m = len(x), len(y)
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).sort().values  # in units of 1 / (N M)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    weights = (ends - starts).double() / (n * m)
    i, j = (starts // m).clamp(max=n - 1), (starts // n).clamp(max=m - 1)  # where an end comes twice, its weight is 0
    squares = (x[i].double() - y[j].double()).square()
    return torch.mv(squares.T, weights)
