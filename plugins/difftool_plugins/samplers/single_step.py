"""Samplers that call the denoiser once in a step and remember nothing, without and with noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from difftool import Sampler, option
from difftool_plugins.samplers.equations import ancestral_sigma, decay, euler_step, forward_sigma, velocity

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Estimate, Level, Noise, Step

    Move = Callable[[Tensor, Estimate, Level, Level], Tensor]


class DDPM(Sampler, name="ddpm"):
    """Ancestral sampling (Ho et al., 2020, algorithm 2), on all levels or on a few.

    Each step draws from the posterior (eq. 7, here for any gap from t to s); q = alpha_t sigma_s/(alpha_s sigma_t):

        x_s = alpha_s (1 - q^2) x_0 + q (sigma_s/sigma_t) x_t + std z
    """

    default_steps = None

    variance: Literal["fixed-small", "fixed-large", "learned"] = option(
        default="fixed-small",
        help="noise of a step: the posterior's variance, beta (the larger), or what a model trained with "
        "--learn-variance predicts",
    )

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        from difftool import Step

        for step, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            q = decay(t, s)
            x = s.alpha * (1 - q**2) * estimate.x_0 + q * s.sigma / t.sigma * x
            if s.sigma > 0.0:
                x = x + self.std(t, s, estimate.variance_fraction) * noise(step)
            yield Step(x, s, estimate)

    def std(self, t: Level, s: Level, fraction: Tensor | None = None) -> float | Tensor:
        """Return the standard deviation of the noise added from t to s.

        The learned one interpolates the logarithms of the others (Nichol & Dhariwal, 2021, eq. 15). Raises `ValueError`
        if it is asked for and the model learned none.
        """
        small, large = ancestral_sigma(t, s), forward_sigma(t, s)
        if self.variance != "learned":
            return small if self.variance == "fixed-small" else large
        if fraction is None:
            raise ValueError("variance: this model learned none; train one with --learn-variance")
        return small * (large / small) ** fraction.clamp(0.0, 1.0)  # a network far from its training predicts anything


class Euler(Sampler, name="euler"):
    """Euler's method in the angle between signal and noise (Song et al., 2021, probability flow).

    x_s/norm_s = x_t/norm_t + (theta_s - theta_t) v; the step to the clean end gives x_0.
    """

    def claimed_order(self) -> int:
        return 1

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        from difftool import Step

        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = euler_step(x, velocity(estimate, t), t, s) if s.sigma > 0.0 else estimate.x_0
            yield Step(x, s, estimate)


def ancestral(
    move: Move, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float
) -> Iterator[Step]:
    """Yield steps that `move` past the next level s to (alpha_s, sigma_down), and add noise back up to it.

    The noise is sigma_up z, where sigma_up is eta times the deviation of DDPM's posterior and sigma_down^2 +
    sigma_up^2 = sigma_s^2. The step to the clean end gives x_0.
    """
    from difftool import Level, Step

    for step, (t, s) in enumerate(pairwise(levels)):
        estimate = denoise(x, t)
        sigma_up = eta * ancestral_sigma(t, s)
        down = Level(s.t, s.alpha, math.sqrt(s.sigma**2 - sigma_up**2))
        x = move(x, estimate, t, down) if s.sigma > 0.0 else estimate.x_0
        if sigma_up > 0.0:
            x = x + sigma_up * noise(step)
        yield Step(x, s, estimate)


class DDIM(Sampler, name="ddim"):
    """Denoising diffusion implicit models (Song, Meng & Ermon, 2021, eq. 12).

    x_s = alpha_s x_0 + sigma_down eps + sigma_up z, where sigma_up is eta times the deviation of DDPM's posterior
    (eq. 16) and sigma_down^2 + sigma_up^2 = sigma_s^2.
    """

    eta: float = option(default=0.0, ge=0, le=1, help="0 is deterministic, 1 has DDPM's noise (fixed-small)")

    def claimed_order(self) -> int | None:
        return 1 if self.eta == 0.0 else None

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        def move(x: Tensor, estimate: Estimate, t: Level, down: Level) -> Tensor:
            return down.alpha * estimate.x_0 + down.sigma * estimate.eps

        return ancestral(move, denoise, x, levels, noise, self.eta)


class EulerAncestral(Sampler, name="euler-ancestral"):
    """Euler's method past the next level, and noise back up to it (k-diffusion), in the angle.

    The step goes from (alpha_t, sigma_t) to (alpha_s, sigma_down) and adds sigma_up z, where sigma_up is eta times the
    deviation of DDPM's posterior and sigma_down^2 + sigma_up^2 = sigma_s^2.
    """

    eta: float = option(default=1.0, ge=0, le=1, help="0 is euler, 1 has DDPM's noise (fixed-small)")

    def claimed_order(self) -> int | None:
        return 1 if self.eta == 0.0 else None

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        def move(x: Tensor, estimate: Estimate, t: Level, down: Level) -> Tensor:
            return euler_step(x, velocity(estimate, t), t, down)

        return ancestral(move, denoise, x, levels, noise, self.eta)
