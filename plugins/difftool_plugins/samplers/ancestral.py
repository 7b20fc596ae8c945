"""DDPM and DDIM, from any level t to any cleaner level s, on any table of alpha and sigma.

Both share q = alpha_t sigma_s / (alpha_s sigma_t), in which sigma_s sqrt(1 - q^2) is the standard deviation of the
posterior q(x_s | x_t, x_0); between adjacent levels of a variance-preserving table that is DDPM's "fixed-small".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from difftool import Sampler, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Step


def ratio(t: Level, s: Level) -> float:
    """q = alpha_t sigma_s / (alpha_s sigma_t): the square root of the ratio of the two signal-to-noise ratios."""
    return t.alpha * s.sigma / (s.alpha * t.sigma)


class DDPM(Sampler, name="ddpm"):
    """Ancestral sampling (Ho et al., 2020, algorithm 2), on all levels or on a few."""

    default_steps = None

    variance: Literal["fixed-small", "fixed-large"] = option(
        default="fixed-small", help="noise of a step: the posterior's variance, or beta (the larger)"
    )

    def walk(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        from difftool import Step

        for i, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            q = ratio(t, s)
            # the posterior mean, written in x_0 and x_t (eq. 7, for any gap)
            x = s.alpha * (1 - q * q) * estimate.x_0 + q * s.sigma / t.sigma * x
            if s.sigma > 0.0:
                x = x + self.std(t, s) * noise(i)
            yield Step(x, s, estimate)

    def std(self, t: Level, s: Level) -> float:
        """Standard deviation of the noise added from t to s."""
        if self.variance == "fixed-small":
            return s.sigma * math.sqrt(1 - ratio(t, s) ** 2)
        return math.sqrt(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)


class DDIM(Sampler, name="ddim"):
    """Denoising diffusion implicit models (Song et al., 2021, eq. 12)."""

    eta: float = option(default=0.0, ge=0, le=1, help="0 is deterministic, 1 has DDPM's noise (fixed-small)")

    def walk(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        from difftool import Step

        for i, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            spread = 1 - ratio(t, s) ** 2
            d = self.eta * s.sigma * math.sqrt(spread)
            # sqrt(sigma_s^2 - d^2), which rounding cannot make negative in this form
            x = s.alpha * estimate.x_0 + s.sigma * math.sqrt(1 - self.eta**2 * spread) * estimate.eps
            if d > 0.0:
                x = x + d * noise(i)
            yield Step(x, s, estimate)
