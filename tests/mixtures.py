"""A Gaussian mixture in one dimension: its optimal denoiser, and its probability flow, both in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from difftool import Estimate, Level, Schedule

WEIGHTS = torch.tensor([0.2, 0.45, 0.35], dtype=torch.float64)
MEANS = torch.tensor([-1.2, 0.1, 1.1], dtype=torch.float64)
STDS = torch.tensor([0.45, 0.3, 0.5], dtype=torch.float64)
QUANTILES = torch.linspace(0.02, 0.98, 33, dtype=torch.float64)


def mixture(x: Tensor, level: Level) -> Estimate:
    """E[x_0 | x_t] and E[eps | x_t]: the components' own, weighted by how likely each is the one."""
    variance = (level.alpha * STDS) ** 2 + level.sigma**2
    off = x[..., None] - level.alpha * MEANS
    likely = torch.softmax(WEIGHTS.log() - variance.log() / 2 - off**2 / (2 * variance), -1)
    x_0 = (likely * (MEANS + level.alpha * STDS**2 / variance * off)).sum(-1)
    return Estimate(x_0, (likely * level.sigma / variance * off).sum(-1))


def cdf(x: Tensor, level: Level) -> Tensor:
    std = ((level.alpha * STDS) ** 2 + level.sigma**2).sqrt()
    return (WEIGHTS * torch.special.ndtr((x[..., None] - level.alpha * MEANS) / std)).sum(-1)


def quantiles(level: Level, shares: Tensor = QUANTILES) -> Tensor:
    """Where the mixture at a level has these shares below; by bisection.

    In one dimension the flow keeps its order, so a trajectory stays at its quantile: this is the exact solution.
    """
    low, high = torch.full_like(shares, -10.0 * level.norm), torch.full_like(shares, 10.0 * level.norm)
    for _ in range(80):
        middle = (low + high) / 2
        below = cdf(middle, level) < shares
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def ve(T: int) -> Schedule:
    sigma = torch.logspace(math.log10(0.002), math.log10(80), T, dtype=torch.float64)
    return Schedule(torch.ones_like(sigma), sigma)


def flow(T: int) -> Schedule:
    """No signal at the last level."""
    u = torch.arange(1, T + 1, dtype=torch.float64) / T
    return Schedule(1 - u, u)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Lin et al. (2024), algorithm 1: shift and scale sqrt(alpha-bar) so that it ends at 0."""
    r = schedule.alpha_bars.sqrt()
    return Schedule.from_alpha_bars(((r - r[-1]) * r[0] / (r[0] - r[-1])).square())
