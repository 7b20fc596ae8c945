"""Closed forms to compare with: a mixture of Gaussians on a line, its denoiser and flow, and three schedules."""

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
"""Lowest log-SNR at which `log_snr_levels` starts."""


def mixture(x: Tensor, level: Level) -> Estimate:
    """Return E[x_0 | x_t] and E[eps | x_t] of each number, averaged over the posterior of the components."""
    # components come first, where torch reduces many times faster than over a short last dimension
    stds, means, weights = (table.to(x).view(-1, *(1,) * x.ndim) for table in (STDS, MEANS, WEIGHTS))
    variance = (level.alpha * stds) ** 2 + level.sigma**2
    z = (x - level.alpha * means) / variance
    posterior = torch.softmax(weights.log() - variance.log() / 2 - variance * z**2 / 2, dim=0)
    x_0 = means + level.alpha * stds**2 * z
    return Estimate((posterior * x_0).sum(0), level.sigma * (posterior * z).sum(0))


def cdf(x: Tensor, level: Level) -> Tensor:
    """Return the cumulative distribution function of the mixture at a level."""
    std = ((level.alpha * STDS) ** 2 + level.sigma**2).sqrt()
    below: Tensor = (WEIGHTS * torch.special.ndtr((x[..., None] - level.alpha * MEANS) / std)).sum(-1)
    return below


def quantiles(level: Level, shares: Tensor = QUANTILES) -> Tensor:
    """Return the quantiles of the mixture at a level, found by bisection.

    In one dimension trajectories of the flow do not cross, so each of them stays at its quantile: the quantiles are the
    exact solution.
    """
    low, high = torch.full_like(shares, -10.0 * level.norm), torch.full_like(shares, 10.0 * level.norm)
    for _ in range(80):
        middle = (low + high) / 2
        below = cdf(middle, level) < shares
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def evenly(count: int) -> Tensor:
    """Return `count` evenly spread shares in (0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def distance(x: Tensor) -> float:
    """Return the Wasserstein-1 distance between samples (N,) and the mixture."""
    return float((x.double().sort().values - quantiles(CLEAN, evenly(len(x)))).abs().mean())


def linear(T: int) -> Schedule:
    """Return the linear schedule of Ho et al. (2020), its betas scaled by 1000/T."""
    scale = 1000 / T
    return Schedule.from_betas(torch.linspace(1e-4 * scale, 0.02 * scale, T, dtype=torch.float64))


def ve(T: int) -> Schedule:
    """Return a variance-exploding schedule with sigma from 0.002 to 80 (Karras et al., 2022)."""
    sigma = torch.logspace(math.log10(0.002), math.log10(80), T, dtype=torch.float64)
    return Schedule(torch.ones_like(sigma), sigma)


def flow(T: int) -> Schedule:
    """Return straight lines from data to noise (flow matching), without signal at the last level."""
    u = torch.arange(1, T + 1, dtype=torch.float64) / T
    return Schedule(1 - u, u)


TABLES: Mapping[str, Schedule] = {"linear": linear(1000), "flow": flow(1000), "ve": ve(1000)}


def log_snr_levels(schedule: Schedule, steps: int) -> Sequence[Level]:
    """Return the levels at the noisy ends of `steps` parts of the schedule, which are equal in log-SNR."""
    noisy, clean = max(schedule[len(schedule) - 1].log_snr, NOISIEST), schedule[0].log_snr
    return [schedule.at(schedule.t_of(noisy + (clean - noisy) * i / steps)) for i in range(steps)]
