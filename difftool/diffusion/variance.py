"""Learned variance (Nichol & Dhariwal, 2021): a step's variance between the posterior's and beta, in logarithms.

The network answers twice the channels; the second half, in [-1, 1] where it is sensible, says where between the two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from difftool.diffusion.schedule import Schedule

BITS = math.log(2.0)
PIXEL_VALUES = 255
"""Steps between the lowest and the highest value of a pixel."""


def split_answer(output: Tensor) -> tuple[Tensor, Tensor]:
    """(answer, part): the part is 0 at the posterior's variance and 1 at beta."""
    answer, v = output.chunk(2, dim=1)
    return answer, (v + 1.0) / 2.0


class VarianceBound:
    """The variational bound's term at each level, in bits a dimension (section 3.1, and Ho et al., 2020, eq. 5)."""

    def __init__(
        self, schedule: Schedule, *, device: torch.device, pixel_range: tuple[float, float] | None = None
    ) -> None:
        """`pixel_range` is where the 256 values of a pixel begin and end in model units; None for other data."""
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        alpha_s, sigma_s = torch.cat([one, schedule.alpha[:-1]]), torch.cat([zero, schedule.sigma[:-1]])
        q_2 = (schedule.alpha * sigma_s / (alpha_s * schedule.sigma)).square()
        large = schedule.sigma.square() - (schedule.alpha / alpha_s * sigma_s).square()
        small = sigma_s.square() * (1 - q_2)
        small[0] = small[1] if len(small) > 1 else large[0]  # the last step's is 0, which has no logarithm
        tables = (large.log(), small.log(), alpha_s * (1 - q_2))
        self.log_large, self.log_small, self.x_0_of_mean = (table.to(device, torch.float32) for table in tables)
        self.pixel_range = pixel_range

    def __call__(self, x_0: Tensor, estimate: Tensor, part: Tensor, t: Tensor) -> Tensor:
        """The terms (B,); the estimate of x_0 should come without its gradient, so that only the variance learns."""
        ends = (-1, *(1,) * (x_0.ndim - 1))
        log_small, log_large = self.log_small[t].view(ends), self.log_large[t].view(ends)
        log_variance = log_small + part * (log_large - log_small)
        # the means differ by the coefficient of x_0 alone: both posteriors share x_t
        error = self.x_0_of_mean[t].view(ends) * (x_0 - estimate)
        divergence = 0.5 * (log_variance - log_small + (log_small - log_variance).exp() - 1.0)
        divergence = divergence + 0.5 * error.square() * (-log_variance).exp()
        terms = torch.where(t.view(ends) == 0, self.surprise(x_0, estimate, log_variance), divergence)
        return terms.flatten(1).mean(1) / BITS

    def surprise(self, x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """-log p(x_0 | x_1) of the last step: of the pixel's bin (Ho et al., eq. 13), or the density."""
        inverse = (-0.5 * log_variance).exp()
        if self.pixel_range is None:
            return 0.5 * (((x_0 - mean) * inverse).square() + log_variance + math.log(2 * math.pi))
        low, high = self.pixel_range
        half = (high - low) / PIXEL_VALUES / 2  # of a bin; the outermost two reach to infinity
        above = torch.special.ndtr((x_0 - mean + half) * inverse).masked_fill(x_0 > high - half, 1.0)
        below = torch.special.ndtr((x_0 - mean - half) * inverse).masked_fill(x_0 < low + half, 0.0)
        likelihood: Tensor = (above - below).clamp(min=1e-12)
        return -likelihood.log()
