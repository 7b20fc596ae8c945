"""The gradient-estimation sampler (Permenter & Yuan, 2024) for difftool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool import Sampler, hookimpl, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Noise, Step

difftool_api = 2


class GradientEstimation(Sampler, name="gradient-estimation"):
    """DDIM that extrapolates eps from its last two estimates (Permenter & Yuan, 2024).

    In place of eps, the step from t to s uses eps' = gamma eps + (1 - gamma) eps_last:

        x_s/alpha_s = x_t/alpha_t + (sigma_s/alpha_s - sigma_t/alpha_t) eps'
    """

    # eps points from the data to x_t, as the gradient of the distance to the data does: DDIM is gradient descent. Along
    # a step the gradient turns, and eps' is closer to its mean over the step than eps, its value at the beginning.

    default_steps = 20

    gamma: float = option(default=2.0, ge=1, le=3, help="how far to extrapolate; 1 is ddim")

    def claimed_order(self) -> int:
        return 1

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        from difftool import Step

        eps_last: Tensor | None = None
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            eps = estimate.eps
            x = s.alpha * estimate.x_0 + s.sigma * eps  # DDIM, exact also where alpha_t is 0
            if eps_last is not None:
                correction = (self.gamma - 1) * (eps - eps_last)  # eps' - eps
                x = x + (s.sigma - s.alpha * t.sigma / t.alpha) * correction
            eps_last = eps
            yield Step(x, s, estimate)


@hookimpl
def difftool_samplers() -> list[type[Sampler]]:
    return [GradientEstimation]
