"""Euler's method in theta, without and with noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool import Sampler, option
from difftool_plugins.samplers.equations import ancestral_sigma, bounded_euler_step, euler_step, velocity

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Noise, Step


class Euler(Sampler, name="euler"):
    """Euler's method in the angle between signal and noise (Song et al., 2021, probability flow).

    x_s/norm_s = x_t/norm_t + (theta_s - theta_t) v; the step to the clean end gives x_0. Where steps are very long, as
    with five of them, it takes `ddim`'s step.
    """

    def claimed_order(self) -> int:
        return 1

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        from difftool import Step

        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = bounded_euler_step(x, velocity(estimate, t), t, s) if s.sigma > 0.0 else estimate.x_0
            yield Step(x, s, estimate)


class EulerAncestral(Sampler, name="euler-ancestral"):
    """Euler's method past the next level, and noise back up to it (k-diffusion), in the angle.

    The step goes from (alpha_t, sigma_t) to (alpha_s, sigma_down) and adds sigma_up z, where sigma_up is eta times the
    deviation of DDPM's posterior and sigma_down^2 + sigma_up^2 = sigma_s^2.
    """

    eta: float = option(default=1.0, ge=0, le=1, help="0 is euler, 1 has DDPM's noise (fixed-small)")

    def claimed_order(self) -> int | None:
        return 1 if self.eta == 0.0 else None

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        from difftool import Level, Step

        for step, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            sigma_up = self.eta * ancestral_sigma(t, s)
            sigma_down = math.sqrt(s.sigma**2 - sigma_up**2)
            down = Level(s.t, s.alpha, sigma_down)
            x = euler_step(x, velocity(estimate, t), t, down) if s.sigma > 0.0 else estimate.x_0
            if sigma_up > 0.0:
                x = x + sigma_up * noise(step)
            yield Step(x, s, estimate)
