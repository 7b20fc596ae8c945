"""Samplers that add noise as they go, from any level t to any cleaner level s, on any table of alpha and sigma.

All share q = alpha_t sigma_s / (alpha_s sigma_t), in which sigma_s sqrt(1 - q^2) is the standard deviation of the
posterior q(x_s | x_t, x_0); between adjacent levels of a variance-preserving table that is DDPM's "fixed-small".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from difftool import Sampler, option
from difftool_plugins.samplers.steps import ratio, turn, velocity

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Step


def shares(t: Level, s: Level, eta: float) -> tuple[float, float]:
    """(kept, drawn): the parts of sigma_s that the state brings and that fresh noise makes up; their squares add up.

    The fresh noise has eta times the posterior's standard deviation (Song et al., 2021, DDIM, eq. 16).
    """
    if eta == 0.0:
        return s.sigma, 0.0
    spread = 1 - ratio(t, s) ** 2
    # sqrt(sigma_s^2 - drawn^2), which rounding cannot make negative in this form
    return s.sigma * math.sqrt(1 - eta**2 * spread), eta * s.sigma * math.sqrt(spread)


class DDPM(Sampler, name="ddpm"):
    """Ancestral sampling (Ho et al., 2020, algorithm 2), on all levels or on a few."""

    default_steps = None

    variance: Literal["fixed-small", "fixed-large", "learned"] = option(
        default="fixed-small",
        help="noise of a step: the posterior's variance, beta (the larger), or what a model trained with "
        "--learn-variance says",
    )

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        from difftool import Step

        for i, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            q = ratio(t, s)
            # the posterior mean (eq. 7, for any gap): so much of x_0 and so much of x_t = alpha_t x_0 + sigma_t eps
            of_x_0, of_x_t = s.alpha * (1 - q * q), q * s.sigma / t.sigma
            x = estimate.at(of_x_0 + of_x_t * t.alpha, of_x_t * t.sigma)
            if s.sigma > 0.0:
                x.add_(self.std(t, s, estimate.variance_part) * noise(i))
            yield Step(x, s, estimate)

    def std(self, t: Level, s: Level, part: Tensor | None = None) -> float | Tensor:
        """Standard deviation of the noise added from t to s."""
        small = s.sigma * math.sqrt(1 - ratio(t, s) ** 2)
        large = math.sqrt(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)
        if self.variance != "learned":
            return small if self.variance == "fixed-small" else large
        if part is None:
            raise ValueError("variance: this model learned none; train one with --learn-variance")
        # Nichol & Dhariwal (2021), eq. 15; clamped, for a network far from its training says anything
        return small * (large / small) ** part.clamp(0.0, 1.0)


class DDIM(Sampler, name="ddim"):
    """Denoising diffusion implicit models (Song et al., 2021, eq. 12)."""

    eta: float = option(default=0.0, ge=0, le=1, help="0 is deterministic, 1 has DDPM's noise (fixed-small)")

    def claimed_order(self) -> int | None:
        return 1 if self.eta == 0.0 else None

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        from difftool import Step

        for i, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            kept, d = shares(t, s, self.eta)
            x = estimate.at(s.alpha, kept)
            if d > 0.0:
                x.add_(noise(i), alpha=d)
            yield Step(x, s, estimate)


class EulerAncestral(Sampler, name="euler-ancestral"):
    """Euler's method past the next level and noise back up to it (k-diffusion), in the angle."""

    eta: float = option(default=1.0, ge=0, le=1, help="0 is euler, 1 has DDPM's noise (fixed-small)")

    def claimed_order(self) -> int | None:
        return 1 if self.eta == 0.0 else None

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        from difftool import Level, Step

        for i, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            kept, d = shares(t, s, self.eta)
            down = Level(s.t, s.alpha, kept)
            x = turn(x, velocity(estimate, t), t, down) if s.sigma > 0.0 else estimate.x_0
            if d > 0.0:
                x.add_(noise(i), alpha=d)
            yield Step(x, s, estimate)
