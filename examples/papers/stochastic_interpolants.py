"""Stochastic interpolants (Albergo et al., 2023, "Stochastic interpolants: a unifying framework for flows and
diffusions").

Data and noise are joined by x_t = alpha x_0 + sigma eps with any alpha and sigma (section 4), here cos and sin of a
quarter turn. The velocity of these paths is v, up to a factor. It gives a flow, and with the score -eps/sigma a family
of stochastic equations with the same distribution at every time, one for each diffusion coefficient epsilon >= 0
(section 2.3). It may be chosen after training.

    difftool train --plugin examples/papers/stochastic_interpolants.py --schedule trigonometric --out runs/interpolant
    difftool sample runs/interpolant --plugin examples/papers/stochastic_interpolants.py --sampler interpolant-sde \
        --sampler.diffusion 1 --steps 100
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from difftool import Denoise, Level, Noise, NoiseSchedule, Sampler, Schedule, Step, option


class Trigonometric(NoiseSchedule, name="trigonometric"):
    """alpha = cos(pi u/2) and sigma = sin(pi u/2), u = (i + 1)/T."""

    default_prediction = "v"

    def build(self, timesteps: int) -> Schedule:
        theta = math.pi / 2 * torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
        return Schedule(theta.cos().clamp(min=0), theta.sin())


class InterpolantSDE(Sampler, name="interpolant-sde"):
    """Euler's method for dx = (velocity - epsilon score) du + sqrt(2 epsilon) dW, from noise to data.

    Time is the angle u between data and noise, as a share of a quarter turn. epsilon is the diffusion times sigma.
    """

    diffusion: float = option(default=1.0, ge=0, le=100, help="epsilon/sigma; 0 is the flow itself")

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for step, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            du = (t.theta - s.theta) / (math.pi / 2)
            epsilon = self.diffusion * t.sigma if s.sigma > 0 else 0.0  # the last step adds no noise
            x = s.alpha * estimate.x_0 + s.sigma * estimate.eps  # along the velocity alpha' x_0 + sigma' eps
            x = x - epsilon * du / t.sigma * estimate.eps + math.sqrt(2 * epsilon * du) * noise(step)
            yield Step(x, s, estimate)
