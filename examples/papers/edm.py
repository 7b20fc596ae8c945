r"""Elucidating the design space of diffusion-based generative models (EDM: Karras et al., NeurIPS 2022), its sampler.

Algorithm 2 is Heun's method in sigma, at alpha = 1. Before a step it may raise sigma to sigma_hat = sigma + gamma sigma
by fresh noise (the churn, in which earlier errors fade), with gamma = min(S_churn/N, sqrt(2) - 1) where sigma lies in
[S_min, S_max]. On other schedules x/alpha and sigma/alpha take the place of x and sigma. How EDM trains is in edm.toml.

    difftool train --config examples/papers/edm.toml --out runs/edm
    difftool sample runs/edm --plugin examples/papers/edm.py --sampler edm --sampler.churn 40 --spacing karras \
      --out churned.png
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from difftool import Denoise, Level, Noise, Sampler, Step, option


class EDM(Sampler, name="edm"):
    """Heun's method in sigma, with churn (Karras et al., 2022, algorithm 2)."""

    default_steps = 18

    churn: float = option(default=0.0, ge=0, le=1000, help="S_churn, the amount of fresh noise; 0 is algorithm 1")
    low: float = option(default=0.05, ge=0, help="S_min, the lowest sigma that is raised")
    high: float = option(default=50.0, ge=0, help="S_max, the highest")
    inflation: float = option(default=1.003, ge=0.9, le=1.1, help="S_noise, the deviation of the fresh noise")

    def claimed_order(self) -> int | None:
        return 2 if self.churn == 0.0 else None

    def claimed_calls(self, steps: int) -> int:
        return 2 * steps - 1

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        if levels[0].alpha == 0.0:
            raise ValueError("sigma/alpha is infinite at a first level without signal; take --spacing karras")
        x = x / levels[0].alpha
        for i, (t, s) in enumerate(pairwise(levels)):
            sigma, sigma_next = t.sigma / t.alpha, s.sigma / s.alpha
            gamma = min(self.churn / (len(levels) - 1), math.sqrt(2) - 1) if self.low <= sigma <= self.high else 0.0
            sigma_hat = sigma + gamma * sigma
            if gamma > 0.0:
                x = x + self.inflation * math.sqrt(sigma_hat**2 - sigma**2) * noise(i)
            estimate = denoise(x, Level.of(1.0, sigma_hat))
            d = estimate.eps  # (x - D(x))/sigma_hat
            x_next = x + (sigma_next - sigma_hat) * d
            if sigma_next > 0.0:
                d_next = denoise(x_next, Level.of(1.0, sigma_next)).eps
                x_next = x + (sigma_next - sigma_hat) * (d + d_next) / 2
            x = x_next
            yield Step(s.alpha * x, s, estimate)
