"""The unbiased squared maximum mean discrepancy of two sets, with its standard error.

For sets x (N) and y (M) and a kernel k, it is the mean of k(x_i, x_j) over i != j, plus that of k(y_i, y_j), less twice
the mean of k(x_i, y_j) (Gretton et al., 2012, eq. 3). It is 0 on average for two sets of one distribution, so it may
well be negative. All pairs are used: this is the mean over all subsets of any one size, which Binkowski et al. (2018)
estimate from a hundred of them. They are computed in float64, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2048
"""The number of rows and columns of a block of kernel values: 32 MiB."""
FEWEST = 4
"""The smallest set whose error bar has a formula."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Returns k(x_i, y_j) (N, M) for vectors (N, D) and (M, D), float64."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of the kernel over pairs."""

    rows: Tensor
    """(N,), over the second vector of the pair."""
    columns: Tensor
    """(M,), over the first vector of the pair."""
    squares: float
    """Of the squared kernel over all pairs."""

    @classmethod
    def of(cls, kernel: Kernel, x: Tensor, y: Tensor) -> Sums:
        """Sum over the pairs of sets (N, D) and (M, D); where both are one, a vector makes no pair with itself."""
        rows, columns = (torch.zeros(len(one), dtype=torch.float64) for one in (x, y))
        squares = 0.0
        for i in blocks(len(x)):
            first = x[i].double()
            for j in blocks(len(y)):
                values = kernel(first, y[j].double())
                if x is y and i == j:
                    values.fill_diagonal_(0.0)
                rows[i] += values.sum(1)
                columns[j] += values.sum(0)
                squares += float(values.square_().sum())
        return cls(rows, columns, squares)

    @property
    def total(self) -> float:
        return float(self.rows.sum())


def blocks(n: int) -> Iterator[slice]:
    """Yield slices that divide n rows."""
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


def mmd_squared(kernel: Kernel, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the unbiased squared discrepancy of sets (N, D) and (M, D), N and M at least 4, and its standard error.

    Both sets count as drawn anew. The jackknife over single vectors has the variance of the first order once and that
    of the second order twice. Without the latter, which is the variance of the doubly centred kernel, the sum is right
    both for sets that differ and for sets of one distribution, where the first order vanishes.
    """
    n, m = len(x), len(y)
    xx, yy, xy = Sums.of(kernel, x, x), Sums.of(kernel, y, y), Sums.of(kernel, x, y)
    value = xx.total / (n * (n - 1)) + yy.total / (m * (m - 1)) - 2 * xy.total / (n * m)
    second = 2 * _centred_within(xx) / (n * (n - 1)) + 2 * _centred_within(yy) / (m * (m - 1))
    second += 4 * _centred_between(xy) / (n * m)
    jackknife = _jackknife(xx.rows, xy.rows, m) + _jackknife(yy.rows, xy.columns, n)
    return value, math.sqrt(max(jackknife - second, second, 0.0))


def _jackknife(within: Tensor, between: Tensor, others: int) -> float:
    """Return the jackknife's variance over one set, from the sums of its rows within itself and with the others."""
    n = len(within)
    change = 2 / (n - 1) * (between / others - within / (n - 2))  # by leaving the row out, but for a constant
    return float((n - 1) / n * (change - change.mean()).square().sum())


def _centred_between(sums: Sums) -> float:
    """Return the variance of the doubly centred kernel between two sets."""
    n, m = len(sums.rows), len(sums.columns)
    rest = sums.squares - float(sums.rows.square().sum()) / m - float(sums.columns.square().sum()) / n
    return (rest + sums.total**2 / (n * m)) / ((n - 1) * (m - 1))


def _centred_within(sums: Sums) -> float:
    """Return the variance of the doubly centred kernel within a set, unbiased (Szekely & Rizzo, 2014, eq. 3.2)."""
    n = len(sums.rows)
    rest = sums.squares - 2 * float(sums.rows.square().sum()) / (n - 2)
    return (rest + sums.total**2 / ((n - 1) * (n - 2))) / (n * (n - 3))


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """Return (x . y / D + 1)^3 (N, M), the kernel of Binkowski et al. (2018)."""
    return (x @ y.T).div_(x.shape[1]).add_(1.0).pow_(3)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j|^2 (N, M) for float64 vectors (N, D) and (M, D)."""
    centre = y.mean(0)
    x, y = x - centre, y - centre
    squares: Tensor = torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True))
    return squares.clamp_(min=0.0)


def gaussians(bandwidths: Tensor) -> Kernel:
    """Return the mean of Gaussian kernels exp(-|x - y|^2 / 2 h^2) with these bandwidths h (K,)."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = squared_distances(x, y)
        total = torch.zeros_like(squares)
        for h in bandwidths.tolist():
            total += (squares / (-2 * h * h)).exp_()
        return total.div_(len(bandwidths))

    return kernel


def median_distance(x: Tensor) -> float:
    """Return the median distance between two vectors of (N, D)."""
    squares = squared_distances(x.double(), x.double())
    rows, columns = torch.triu_indices(len(x), len(x), offset=1)
    return math.sqrt(float(squares[rows, columns].median()))
