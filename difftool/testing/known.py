"""What is known in closed form: a mixture of Gaussians on a line, its denoiser and flow, and tables to walk on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from difftool.diffusion.estimate import Estimate
from difftool.diffusion.schedule import CLEAN, Level, Schedule

WEIGHTS = torch.tensor([0.2, 0.45, 0.35], dtype=torch.float64)
MEANS = torch.tensor([-1.2, 0.1, 1.1], dtype=torch.float64)
STDS = torch.tensor([0.45, 0.3, 0.5], dtype=torch.float64)
DEVIATION = float((WEIGHTS * (STDS**2 + MEANS**2)).sum().sub((WEIGHTS * MEANS).sum() ** 2).sqrt())
QUANTILES = torch.linspace(0.02, 0.98, 33, dtype=torch.float64)
NOISIEST = -10.2
"""Log-SNR at which grids begin at the latest."""


def mixture(x: Tensor, level: Level) -> Estimate:
    """E[x_0 | x_t] and E[eps | x_t], number by number: the components' own, weighted by how likely each is the one."""
    stds, means, weights = (table.to(x) for table in (STDS, MEANS, WEIGHTS))
    variance = (level.alpha * stds) ** 2 + level.sigma**2
    off = x[..., None] - level.alpha * means
    likely = torch.softmax(weights.log() - variance.log() / 2 - off**2 / (2 * variance), -1)
    x_0 = (likely * (means + level.alpha * stds**2 / variance * off)).sum(-1)
    return Estimate(x_0, (likely * level.sigma / variance * off).sum(-1))


def cdf(x: Tensor, level: Level) -> Tensor:
    """The distribution function of the mixture at a level."""
    std = ((level.alpha * STDS) ** 2 + level.sigma**2).sqrt()
    below: Tensor = (WEIGHTS * torch.special.ndtr((x[..., None] - level.alpha * MEANS) / std)).sum(-1)
    return below


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


def evenly(count: int) -> Tensor:
    """`count` shares in (0, 1), evenly spread: samples without chance."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def distance(x: Tensor) -> float:
    """Wasserstein-1 distance of samples (N,) to the mixture."""
    return float((x.double().sort().values - quantiles(CLEAN, evenly(len(x)))).abs().mean())


def linear(T: int) -> Schedule:
    """Ho et al. (2020), betas rescaled for T."""
    scale = 1000 / T
    return Schedule.from_betas(torch.linspace(1e-4 * scale, 0.02 * scale, T, dtype=torch.float64))


def ve(T: int) -> Schedule:
    """Variance exploding, sigma from 0.002 to 80 (Karras et al., 2022)."""
    sigma = torch.logspace(math.log10(0.002), math.log10(80), T, dtype=torch.float64)
    return Schedule(torch.ones_like(sigma), sigma)


def flow(T: int) -> Schedule:
    """Straight lines; no signal at the last level."""
    u = torch.arange(1, T + 1, dtype=torch.float64) / T
    return Schedule(1 - u, u)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Lin et al. (2024), algorithm 1: shift and scale sqrt(alpha-bar) so that it ends at 0."""
    r = schedule.alpha_bars.sqrt()
    return Schedule.from_alpha_bars(((r - r[-1]) * r[0] / (r[0] - r[-1])).square())


TABLES: Mapping[str, Schedule] = {"linear": linear(1000), "flow": flow(1000), "ve": ve(1000)}


def grid(schedule: Schedule, steps: int) -> Sequence[Level]:
    """Noisy levels even in log-SNR, each at the beginning of one of `steps` equal parts."""
    noisy, clean = max(schedule[len(schedule) - 1].log_snr, NOISIEST), schedule[0].log_snr
    return [schedule.at(schedule.t_of(noisy + (clean - noisy) * i / steps)) for i in range(steps)]
