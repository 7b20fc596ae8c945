"""The gradient-estimation sampler (Permenter & Yuan, 2024) for difftool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool import Sampler, hookimpl, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Step

difftool_api = 1


class GradientEstimation(Sampler, name="gradient-estimation"):
    """DDIM that goes on from its last two estimates of the noise to where the next will be (Permenter & Yuan, 2024)."""

    # eps points from the data to x_t, as the gradient of the distance to them does. Seen so, DDIM is gradient descent,
    # and gamma eps + (1 - gamma) eps_last tells more of the gradient along the step than eps, with which it begins.

    default_steps = 20

    gamma: float = option(default=2.0, ge=1, le=3, help="how far to go on from the last estimate; 1 is ddim")

    def claimed_order(self) -> int:
        return 1

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        from difftool import Step

        last: Tensor | None = None
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            eps = estimate.eps
            x = s.alpha * estimate.x_0 + s.sigma * eps
            if (
                last is not None
            ):  # what the better estimate, moved along sigma/alpha, adds to that; alpha_t is not 0 here
                x = x + (s.sigma - s.alpha * t.sigma / t.alpha) * (self.gamma - 1) * (eps - last)
            last = eps
            yield Step(x, s, estimate)


@hookimpl
def difftool_samplers() -> list[type[Sampler]]:
    return [GradientEstimation]
