"""The Frechet distance between Gaussians, its standard error, and its limit for infinitely many samples.

With means m_1, m_2 and covariances S_1, S_2, the squared distance is (Dowson & Landau, 1982)

    |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

The last trace is the sum of the roots of the eigenvalues of L^T S_2 L, where S_1 = L L^T: symmetric, so that none of
them is complex. Everything is float64. A ridge far below what float32 features can tell keeps L regular.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WIDEST = 4096
"""The largest number of features that all directions of are compared: the time grows with its cube."""
RIDGE = 1e-11
"""The ridge, in units of the largest variance of a feature."""
SMALLEST = 1e-200
"""The smallest ridge, for features that are all constant."""
ROUNDING = 1e-15
"""The share of the largest eigenvalue below which others are rounding."""
ROWS = 4096
"""The number of rows that are float64 at once."""
PARTS = (1, 2, 4)
"""The numbers of equal parts at whose size the distance is measured to extrapolate it."""
ROWS_PER_FEATURE = 2
"""The number of rows for each feature in a part from which on the bias falls as 1/n."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The moments of a set of vectors."""

    mean: Tensor
    """(D,) float64."""
    covariance: Tensor
    """(D, D) float64, unbiased."""

    @classmethod
    def of(cls, x: Tensor) -> Gaussian:
        """Measure vectors (N, D), N at least 2."""
        mean = x.mean(0, dtype=torch.float64)
        products = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for rows in torch.split(x, ROWS):
            centred = rows.double() - mean
            products.addmm_(centred.T, centred)
        return cls(mean, products / (len(x) - 1))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Return the squared Frechet distance of two Gaussians."""
    factor, second = _regular(a, b)
    return _distance(a, b, torch.linalg.eigvalsh(factor.T @ second @ factor))


def frechet_with_error(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the squared Frechet distance of sets (N, D) and (M, D), and its standard error by the delta method.

    The derivative by S_1 is I - T, where T = S_1^(-1/2) (S_1^(1/2) S_2 S_1^(1/2))^(1/2) S_1^(-1/2) is the linear map
    that takes the first Gaussian to the second one. A row x therefore has the influence 2 (m_1 - m_2) (x - m_1) +
    (x - m_1) (I - T) (x - m_1), but for a constant; one of y has the same with the inverse of T. Both sets count as
    drawn anew, so the variances of the two means of influences add up.
    """
    a, b = Gaussian.of(x), Gaussian.of(y)
    factor, second = _regular(a, b)
    eigenvalues, axes = torch.linalg.eigh(factor.T @ second @ factor)
    smallest = max(SMALLEST, ROUNDING * float(eigenvalues.max()))
    roots = eigenvalues.clamp(min=smallest).sqrt()[:, None]  # T is diagonal in these axes

    def transported(rows: Tensor) -> Tensor:
        """Return x T x for rows of x (N, D)."""
        whitened = torch.linalg.solve_triangular(factor, rows.T, upper=False)
        squares: Tensor = (axes.T @ whitened).square() * roots
        return squares.sum(0)

    def transported_back(rows: Tensor) -> Tensor:
        """Return y T^-1 y for rows of y (M, D)."""
        squares: Tensor = (axes.T @ (factor.T @ rows.T)).square() / roots
        return squares.sum(0)

    difference = a.mean - b.mean
    variance = _variance_of_mean(x, a, difference, transported) + _variance_of_mean(y, b, -difference, transported_back)
    return _distance(a, b, eigenvalues), math.sqrt(variance)


def frechet_in_the_limit(x: Tensor, y: Tensor, random: torch.Generator) -> float | None:
    """Return the squared Frechet distance of sets (N, D) and (M, D), extrapolated to infinitely many rows of both.

    The distance is too large by about c / n (Chong & Forsyth, 2020). It is measured on all rows, on halves and on
    quarters, which share no row, so that their means add no noise of the first order. A line through the three has the
    limit at 1/n = 0. Parts that are too small for the bias to lie on a line are left out; None if so are the halves.
    """
    fewest = max(2, ROWS_PER_FEATURE * x.shape[1])
    chosen = [parts for parts in PARTS if min(len(x), len(y)) // parts >= fewest]
    if len(chosen) < 2:
        return None
    x, y = (one[torch.randperm(len(one), generator=random)] for one in (x, y))
    means = []
    for parts in chosen:
        pairs = zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)
        means.append(statistics.fmean(frechet(Gaussian.of(a), Gaussian.of(b)) for a, b in pairs))
    return statistics.linear_regression(chosen, means).intercept


def rotated(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return two sets (N, D) and (M, D) in the coordinates of the space that they span, if that is narrower.

    No distance changes. Raises `ValueError` for sets that span too many directions.
    """
    rank = len(x) + len(y)
    if min(x.shape[1], rank) > WIDEST:
        raise ValueError(f"{x.shape[1]:,} features are more than {WIDEST:,}; choose smaller ones, such as pca")
    if x.shape[1] <= rank:
        return x, y
    centre = y.mean(0, dtype=torch.float64)
    centred = torch.cat([x, y]).double() - centre
    basis, _ = torch.linalg.qr(centred.T)
    first, second = (centred @ basis).split([len(x), len(y)])
    return first, second


def _regular(a: Gaussian, b: Gaussian) -> tuple[Tensor, Tensor]:
    """Return L of the first covariance L L^T, and the second covariance, both with the ridge."""
    diagonals = torch.stack([a.covariance.diagonal(), b.covariance.diagonal()])
    ridge = torch.diag((RIDGE * diagonals.max()).clamp(min=SMALLEST).expand(diagonals.shape[1]))
    return torch.linalg.cholesky(a.covariance + ridge), b.covariance + ridge


def _distance(a: Gaussian, b: Gaussian, eigenvalues: Tensor) -> float:
    traces = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + traces - 2 * eigenvalues.clamp(min=0).sqrt().sum())


def _variance_of_mean(x: Tensor, a: Gaussian, difference: Tensor, transported: Callable[[Tensor], Tensor]) -> float:
    """Return the variance of the mean influence of rows (N, D) on the distance."""
    influences = []
    for rows in torch.split(x, ROWS):
        centred = rows.double() - a.mean
        influences.append(2 * centred @ difference + centred.square().sum(1) - transported(centred))
    return float(torch.cat(influences).var()) / len(x)
