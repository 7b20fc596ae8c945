"""The forward process, from x_0 to noise: in closed form and step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from difftool.diffusion.schedule import CLEAN, Level, Schedule
from difftool.rng import sample_noise


def noise_of(x_0: Tensor, seed: int) -> Tensor:
    """Return eps (N, *shape) for these items: the same at every level."""
    return sample_noise(0, len(x_0), tuple(x_0.shape[1:]), seed, "forward", device=x_0.device)


def noised(x_0: Tensor, level: Level, seed: int) -> Tensor:
    """Return x_t = alpha_t x_0 + sigma_t eps (Ho et al., 2020, eq. 4)."""
    return level.alpha * x_0 + level.sigma * noise_of(x_0, seed)


def iterate(x_0: Tensor, schedule: Schedule, seed: int) -> Iterator[Tensor]:
    """Yield x_t for t = 0..T-1, each drawn from the one before (Ho et al., 2020, eq. 2).

    q(x_t | x_s) has mean (alpha_t/alpha_s) x_s and variance sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2. For adjacent
    levels of a variance-preserving table these are sqrt(1 - beta_t) x_s and beta_t.
    """
    x, s = x_0, CLEAN
    for i in range(len(schedule)):
        t = schedule[i]
        ratio = t.alpha / s.alpha
        std = math.sqrt(t.sigma**2 - (ratio * s.sigma) ** 2)
        eps = sample_noise(0, len(x), tuple(x.shape[1:]), seed, "forward", i, device=x.device)
        x, s = ratio * x + std * eps, t
        yield x


def moments(x: Tensor) -> tuple[float, float]:
    """Return the mean and the standard deviation over all elements."""
    return float(x.mean()), float(x.std(correction=0))
