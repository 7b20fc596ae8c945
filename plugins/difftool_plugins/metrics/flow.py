"""The density of items by the probability flow (Song et al., 2021, eq. 39), for any noise schedule.

The noisy state x_t / norm_t of the flow moves on the circle of signal and noise: with theta = atan2(sigma, alpha), its
derivative by theta is the velocity v = cos(theta) eps - sin(theta) x_hat, which is finite everywhere. The density at an
item is that of the noise at which its trajectory ends, times the change of volume on the way:

    log p(x) = log N(y_T; 0, I) + integral of div v dtheta

The steps are even in log-SNR, where data change their scale. They begin at the cleanest level of the table, as cleaner
ones are unknown to a network: one that predicts x_0 would have infinite velocities there. The divergence is the exact
trace for few dimensions, and Hutchinson's unbiased estimate of it for others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difftool import Sets
    from difftool_plugins.metrics.held_out import HeldOut

NUMBERS = 2**17
"""The largest number of values in a batch, whose graph is kept."""
EXACT = 16
"""The number of dimensions up to which the divergence is exact."""
CLEANEST, NOISIEST = 16.0, -14.0
"""The log-SNRs at which the flow begins and ends at the latest: noise or signal is less than 0.001 of the other."""


def flow(items: HeldOut, steps: int, sets: Sets) -> Tensor:
    """Return -log p(x) (N,) of the density in model units, in nats for each item.

    Pixels are given the noise of their rounding, uniform over their bin, so that the mean is a bound on their
    probability (Theis et al., 2016).
    """
    random, found = sets.generator("flow"), []
    for rows in torch.split(torch.arange(len(items)), max(1, NUMBERS // items.width)):
        x = items.x[rows]
        if items.pixels is not None:
            x = x + (torch.rand(x.shape, generator=random) - 0.5) / items.scale
        if items.width <= EXACT:
            probes = torch.eye(items.width).view(items.width, 1, *x.shape[1:]).expand(-1, len(x), *x.shape[1:])
        else:
            probes = torch.randint(0, 2, (1, *x.shape), generator=random) * 2.0 - 1.0
        found.append(-log_density(items, x, rows, probes.to(items.model.device), steps))
    return torch.cat(found)


def log_density(items: HeldOut, x: Tensor, rows: Tensor, probes: Tensor, steps: int) -> Tensor:
    """Return log p(x) (B,) of items (B, *shape), by so many steps of the Runge-Kutta method of fourth order.

    The trace of the Jacobian J is the sum over the probes e (P, B, *shape) of e J e.
    """
    schedule = items.model.schedule
    start, end = min(CLEANEST, schedule[0].log_snr), max(NOISIEST, schedule[len(schedule) - 1].log_snr)
    h = (end - start) / steps

    def slope(log_snr: float, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the state and of the integral by log-SNR."""
        level = schedule.at(schedule.t_of(log_snr))
        sine, cosine = level.sigma / level.norm, level.alpha / level.norm
        with torch.enable_grad():
            leaf = y.float().to(items.model.device).requires_grad_()
            estimate = items.estimate(level.norm * leaf, level, rows, gradients=True)
            v = cosine * estimate.eps - sine * estimate.x_0
            trace = torch.zeros(len(y), device=v.device)
            for i, probe in enumerate(probes):
                (row,) = torch.autograd.grad((v * probe).sum(), leaf, retain_graph=i + 1 < len(probes))
                trace += (row * probe).flatten(1).sum(1)
        pace = -0.5 * sine * cosine  # of theta by log-SNR
        return pace * v.detach().cpu().double(), pace * trace.cpu().double()

    signal = 1.0 / math.sqrt(1.0 + math.exp(-start))
    y, integral = signal * x, torch.full((len(x),), items.width * math.log(signal), dtype=torch.float64)
    for k in range(steps):
        at = start + k * h
        y_1, d_1 = slope(at, y)
        y_2, d_2 = slope(at + h / 2, y + h / 2 * y_1)
        y_3, d_3 = slope(at + h / 2, y + h / 2 * y_2)
        y_4, d_4 = slope(at + h, y + h * y_3)
        y = y + h / 6 * (y_1 + 2 * y_2 + 2 * y_3 + y_4)
        integral += h / 6 * (d_1 + 2 * d_2 + 2 * d_3 + d_4)
    return integral - 0.5 * (y.square() + math.log(2 * math.pi)).flatten(1).sum(1)
