"""DDPM: ancestral sampling from the posterior of the forward process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from difftool import Sampler, option
from difftool_plugins.samplers.equations import ancestral_sigma, decay, forward_sigma

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Noise, Step


class DDPM(Sampler, name="ddpm"):
    """Ancestral sampling (Ho et al., 2020, algorithm 2), on all levels or on a few.

    Each step draws from the posterior (eq. 7, here for any gap from t to s); q = alpha_t sigma_s/(alpha_s sigma_t):

        x_s = alpha_s (1 - q^2) x_0 + q (sigma_s/sigma_t) x_t + std z
    """

    default_steps = None

    variance: Literal["fixed-small", "fixed-large", "learned", "beta-squared"] = option(
        default="fixed-small",
        help="noise of a step: the posterior's variance, beta (the larger), or what a model trained with "
        "--learn-variance predicts; beta-squared is wrong, far too little noise, and only repeats a tutorial",
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
            return {"fixed-small": small, "fixed-large": large, "beta-squared": large**2}[self.variance]
        if fraction is None:
            raise ValueError("variance: this model learned none; train one with --learn-variance")
        return small * (large / small) ** fraction.clamp(0.0, 1.0)  # a network far from its training predicts anything
