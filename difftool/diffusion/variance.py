"""Learned variance (Nichol & Dhariwal, 2021, eq. 15): log variance = f log(beta) + (1 - f) log(posterior's variance).

The network has twice as many output channels. The second half is v, which lies in [-1, 1] once it has learned
something, and the fraction is f = (v + 1)/2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from difftool.diffusion.schedule import Schedule

BITS = math.log(2.0)
PIXEL_VALUES = 255
"""Steps between the lowest and the highest value of a pixel."""


def split_variance(output: Tensor) -> tuple[Tensor, Tensor]:
    """Split the output of a network (B, 2C, ...) into the prediction (B, C, ...) and the variance fraction."""
    prediction, v = output.chunk(2, dim=1)
    return prediction, (v + 1.0) / 2.0


class VarianceBound:
    """The term L_{t-1} of the variational bound at each level, in bits per dimension (Ho et al., 2020, eq. 5)."""

    def __init__(
        self, schedule: Schedule, *, device: torch.device, pixel_range: tuple[float, float] | None = None
    ) -> None:
        """Make the tables. `pixel_range` is where pixel values begin and end in model units; None for other data."""
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        alpha_s, sigma_s = torch.cat([one, schedule.alpha[:-1]]), torch.cat([zero, schedule.sigma[:-1]])
        q_2 = (schedule.alpha * sigma_s / (alpha_s * schedule.sigma)).square()
        large = schedule.sigma.square() - (schedule.alpha / alpha_s * sigma_s).square()
        small = sigma_s.square() * (1 - q_2)
        small[0] = small[1] if len(small) > 1 else large[0]  # it is 0 in the last step, which has no logarithm
        tables = (large.log(), small.log(), alpha_s * (1 - q_2))
        self.log_large, self.log_small, self.x_0_of_mean = (table.to(device, torch.float32) for table in tables)
        self.pixel_range = pixel_range

    def __call__(self, x_0: Tensor, estimate: Tensor, fraction: Tensor, t: Tensor) -> Tensor:
        """Return the terms (B,), from x_0, its estimate and the variance fraction (B, *shape) at the levels t (B,).

        Detach the estimate of x_0, so that only the variance learns.
        """
        ends = (-1, *(1,) * (x_0.ndim - 1))
        log_small, log_large = self.log_small[t].view(ends), self.log_large[t].view(ends)
        log_variance = log_small + fraction * (log_large - log_small)
        # both means have the same part of x_t, so that only the part of x_0 is left of their difference
        error = self.x_0_of_mean[t].view(ends) * (x_0 - estimate)
        divergence = 0.5 * (log_variance - log_small + (log_small - log_variance).exp() - 1.0)
        divergence = divergence + 0.5 * error.square() * (-log_variance).exp()
        terms = torch.where(t.view(ends) == 0, self.decoder_nll(x_0, estimate, log_variance), divergence)
        return terms.flatten(1).mean(1) / BITS

    def decoder_nll(self, x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return -log p(x_0 | x_1) of the last step, of the pixel's bin (Ho et al., 2020, eq. 13) or as a density."""
        inverse = (-0.5 * log_variance).exp()
        if self.pixel_range is None:
            return 0.5 * (((x_0 - mean) * inverse).square() + log_variance + math.log(2 * math.pi))
        low, high = self.pixel_range
        half = (high - low) / PIXEL_VALUES / 2  # half a bin; the two outermost bins reach to infinity
        above = torch.special.ndtr((x_0 - mean + half) * inverse).masked_fill(x_0 > high - half, 1.0)
        below = torch.special.ndtr((x_0 - mean - half) * inverse).masked_fill(x_0 < low + half, 0.0)
        likelihood: Tensor = (above - below).clamp(min=1e-12)
        return -likelihood.log()
