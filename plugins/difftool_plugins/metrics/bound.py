"""The variational bound on the likelihood (Ho et al., 2020, eq. 5), for any noise schedule.

With x_t = alpha_t x + sigma_t eps and snr = alpha^2 / sigma^2, the model's chain goes from noise of deviation norm_T to
x_0, the cleanest level of the table, and from there to x:

    -log p(x) <= KL(q(x_T | x) || N(0, norm_T^2)) + sum over t >= 1 of L_t + E[-log p(x | x_0)]

Each step is Gaussian around the mean of the posterior of x_hat, the model's estimate. Its variance is rho_t times that
of the posterior, so that with w_t = snr_{t-1} - snr_t each coordinate has (Kingma et al., 2021, eq. 14, have rho = 1)

    L_t = (log rho_t + 1/rho_t - 1) / 2 + w_t / (2 rho_t) E (x - x_hat)^2

The variance is what it must be for white data of the deviation of these data: rho_t = 1 + w_t m_t, where m_t = 1 /
(snr_t + 1/std^2) is their variance given x_t. For variance-preserving tables and std = 1 that is beta_t (Ho et al.,
2020, section 3.2). Steps that only take fine noise away then cost nothing, however few they are. A learned variance is
taken as it is. The last step has the deviation sqrt(m_0), and pixels the probability of their bin (Ho et al., 2020,
eq. 13).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difftool import Level, Sets
    from difftool_plugins.metrics.held_out import HeldOut

NUMBERS = 2**20
"""The largest number of values in a batch."""
EVEN = 0.2
"""The share of levels that are drawn evenly, whatever their terms are expected to be."""
HALF_BIN = 0.5
"""Half the distance between two values of a pixel, in data units."""


def bound(items: HeldOut, levels: int, sets: Sets) -> Tensor:
    """Return the bound (N,) in nats for each item: of the density in model units, or of the probability of pixels.

    Of each item, `levels` terms are drawn by importance, one from each of as many strata, or all are computed if there
    are no more. Raises `ValueError` for a schedule that begins without noise.
    """
    schedule = items.model.schedule
    if schedule[0].sigma == 0.0:
        raise ValueError("the noise schedule has no noise at its first level, so the bound is infinite")
    return prior(items.x, schedule[len(schedule) - 1]) + reconstruction(items, sets) + diffusion(items, levels, sets)


def prior(x: Tensor, last: Level) -> Tensor:
    """Return KL(q(x_T | x) || N(0, norm_T^2)) for each item (N,), in nats."""
    mean, variance = last.alpha / last.norm * x, (last.sigma / last.norm) ** 2
    return 0.5 * (mean.square() + variance - 1.0 - math.log(variance)).flatten(1).sum(1)


def diffusion(items: HeldOut, levels: int, sets: Sets) -> Tensor:
    """Return the sum over t >= 1 of L_t for each item (N,), in nats, or an unbiased estimate of it."""
    every, last = torch.arange(len(items)), len(items.model.schedule) - 1
    total = torch.zeros(len(items), dtype=torch.float64)
    if levels >= last:
        for t in range(1, last + 1):
            total += terms(items, every, t, sets)
        return total
    chances = importance(items)
    u = torch.rand(len(items), levels, dtype=torch.float64, generator=sets.generator("levels"))
    strata = (torch.arange(levels) + u) / levels
    drawn = torch.searchsorted(chances.cumsum(0), strata).clamp(max=last - 1) + 1
    for t in sorted({*drawn.flatten().tolist()}):
        rows = every.repeat_interleave((drawn == t).sum(1))
        total.index_add_(0, rows, terms(items, rows, t, sets) / (levels * chances[t - 1]))
    return total


def importance(items: HeldOut) -> Tensor:
    """Return the probability (T-1,) of drawing each level t >= 1: nearly in proportion to L_t of white data."""
    expected = (1.0 - items.model.schedule.snr.diff() * white_variance(items)[1:]).log()
    return EVEN / len(expected) + (1 - EVEN) * expected / expected.sum()


def white_variance(items: HeldOut) -> Tensor:
    """Return m_t (T,), the variance of white data given x_t."""
    return 1.0 / (items.model.schedule.snr + items.model.data.std**-2)


def terms(items: HeldOut, rows: Tensor, t: int, sets: Sets) -> Tensor:
    """Return L_t, t >= 1, for the items at these rows (B,), in nats."""
    s, t_ = items.model.schedule[t - 1], items.model.schedule[t]
    w = (s.alpha / s.sigma) ** 2 - (t_.alpha / t_.sigma) ** 2
    squares, fraction = squared_errors(items, rows, t, sets)
    if fraction is None:
        log_rho = torch.log1p(w * white_variance(items)[t])
    else:  # between the posterior's variance and beta, in logarithms
        log_rho = fraction * 2 * math.log(t_.sigma / s.sigma)
    inverse = (-log_rho).exp()
    return (0.5 * (log_rho + inverse - 1.0 + w * inverse * squares)).flatten(1).sum(1)


def reconstruction(items: HeldOut, sets: Sets) -> Tensor:
    """Return -log p(x | x_0) for each item (N,), in nats."""
    std, rows = math.sqrt(white_variance(items)[0]), torch.arange(len(items))
    if items.pixels is None:
        squares, _ = squared_errors(items, rows, 0, sets)
        nats = 0.5 * squares / std**2 + math.log(std) + 0.5 * math.log(2 * math.pi)
    else:
        x_hat, _, _ = estimates(items, rows, 0, sets)
        z, half = (items.x - x_hat) / std, HALF_BIN / items.scale / std
        high = (z + half).masked_fill(items.pixels == 255, math.inf)
        low = (z - half).masked_fill(items.pixels == 0, -math.inf)
        nats = -log_normal_between(low, high)
    return nats.flatten(1).sum(1)


def squared_errors(items: HeldOut, rows: Tensor, t: int, sets: Sets) -> tuple[Tensor, Tensor | None]:
    """Return (x - x_hat)^2 (B, *shape) for the items at these rows, but for its chance, and the learned variance.

    Of white data the noise leaves k eps in x - x_hat, with k = m alpha / sigma. Taking k^2 (eps^2 - 1) away, which is 0
    on average, leaves little of the chance at levels where nothing tells noise from data, which weigh most.
    """
    level = items.model.schedule[t]
    x_hat, fraction, eps = estimates(items, rows, t, sets)
    k = level.alpha / level.sigma * float(white_variance(items)[t])
    return (items.x[rows] - x_hat).square() - k**2 * (eps.square() - 1.0), fraction


def log_normal_between(low: Tensor, high: Tensor) -> Tensor:
    """Return the logarithm of the probability that a standard normal number lies between two others, low < high."""
    swap = low > 0  # where both tails are close to 1, those of the other side are not
    low, high = torch.where(swap, -high, low), torch.where(swap, -low, high)
    above, below = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    between: Tensor = above + torch.log1p(-(below - above).exp())
    return between


def estimates(items: HeldOut, rows: Tensor, t: int, sets: Sets) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return x_hat(x_t) for the items at these rows (B,), the learned variance fraction, and eps, all (B, *shape).

    x_hat is kept within the bounds of the data, as in sampling, which can only bring it nearer to x.
    """
    level, bounds = items.model.schedule[t], items.model.data.bounds
    noise = torch.randn(len(rows), *items.x.shape[1:], dtype=torch.float64, generator=sets.generator("bound", t))
    size, found = max(1, NUMBERS // items.width), []
    for part, eps in zip(torch.split(rows, size), torch.split(noise, size), strict=True):
        found.append(items.estimate(level.alpha * items.x[part] + level.sigma * eps, level, part))
    x_hat = torch.cat([estimate.x_0.cpu().double() for estimate in found])
    fractions = [e.variance_fraction.cpu().double() for e in found if e.variance_fraction is not None]
    fraction = torch.cat(fractions).clamp(0.0, 1.0) if fractions else None
    return x_hat if bounds is None else x_hat.clamp(*bounds), fraction, noise
