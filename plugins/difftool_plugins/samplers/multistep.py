"""Multistep solvers of the probability-flow ODE: higher order from estimates they already have, one call a step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool import Sampler, option
from difftool_plugins.samplers.steps import REACH, angular_step, exponential_step, extrapolated, ratio

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Estimate, Level, Step

    MultiStep = Callable[[Tensor, Level, Level, Sequence[tuple[Level, Estimate]]], Tensor]


def midpoint_steps(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor], eta: float
) -> Iterator[Step]:
    """DPM-Solver++(2M) with a share eta of the SDE's noise (Lu et al., 2022, algorithm 2 and app. E.2)."""
    from difftool import Step

    last: Estimate | None = None
    h = math.inf
    for i, (t, s) in enumerate(pairwise(levels)):
        estimate, q = denoise(x, t), ratio(t, s)
        h_last, h = h, -math.log(q) if q > 0.0 else math.inf  # the steps in lambda
        slope = slope_weight(h_last, h)
        # so much of x_t = alpha_t x_0 + sigma_t eps, and so much of D = x_0 + slope (x_0 - the last x_0)
        of_x_t, of_D = s.sigma / t.sigma * q**eta, s.alpha * (1 - q ** (1 + eta))
        x = estimate.at(of_x_t * t.alpha + of_D * (1 + slope), of_x_t * t.sigma)
        if last is not None:
            last.at(-of_D * slope, 0.0, onto=x)
        if eta > 0.0 and s.sigma > 0.0:
            x.add_(noise(i), alpha=s.sigma * math.sqrt(1 - q ** (2 * eta)))
        last = estimate
        yield Step(x, s, estimate)


def slope_weight(h_last: float, h: float) -> float:
    """1/(2 w), half the step over the last one in lambda: 0 after a level without signal, and to the clean end."""
    return h / h_last / 2 if h < math.inf and h <= REACH * h_last else 0.0


class DPMpp2M(Sampler, name="dpmpp-2m"):
    """DPM-Solver++(2M), of second order (Lu et al., 2022, algorithm 2)."""

    default_steps = 20

    def claimed_order(self) -> int:
        return 2

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        return midpoint_steps(denoise, x, levels, noise, eta=0.0)


class DPMpp2MSDE(Sampler, name="dpmpp-2m-sde"):
    """SDE-DPM-Solver++(2M), the same with noise (Lu et al., 2022, app. E.2; midpoint form)."""

    default_steps = 20

    eta: float = option(default=1.0, ge=0, le=1, help="0 is dpmpp-2m, 1 has the noise of the reverse SDE")

    def claimed_order(self) -> int | None:
        return 2 if self.eta == 0.0 else None

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        return midpoint_steps(denoise, x, levels, noise, self.eta)


def multistep(
    step: MultiStep, denoise: Denoise, x: Tensor, levels: Sequence[Level], *, order: int, corrected: int
) -> Iterator[Step]:
    """Predict with the last `order` estimates, ask there, and correct the first `corrected` steps with the answer.

    The call at the end of a step is the one that the next step begins with, so that correcting costs none.
    """
    from difftool import Step

    known: deque[tuple[Level, Estimate]] = deque(maxlen=order)
    ahead = denoise(x, levels[0])
    for i, (t, s) in enumerate(pairwise(levels)):
        estimate, start = ahead, x
        known.appendleft((t, estimate))
        if s.sigma > 0.0:
            x = step(start, t, s, [*known])
            ahead = denoise(x, s)
            if i < corrected:
                x = step(start, t, s, [*known, (s, ahead)])
        else:
            x = estimate.x_0
        yield Step(x, s, estimate)


class DPMpp3M(Sampler, name="dpmpp-3m"):
    """DPM-Solver++(3M), of third order (Lu et al., 2022)."""

    # The published code has the second-order difference at half its weight, and begins with a plain step of first
    # order: either makes it a method of order 2. Here the polynomial through the last three estimates is integrated
    # exactly, and the first two steps are corrected.

    default_steps = 20

    def claimed_order(self) -> int:
        return 3

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        return extrapolated(multistep(exponential_step, denoise, x, levels, order=3, corrected=2), levels)


class UniPC(Sampler, name="unipc"):
    """UniPC: a predictor and a corrector that share one call a step (Zhao et al., 2023, algorithms 5 and 6)."""

    # With the order conditions solved exactly B(h) cancels, so the paper's variants bh1 and bh2 are one.

    default_steps = 20

    order: int = option(default=2, ge=1, le=3, help="order of the predictor; the corrector has one more")

    def claimed_order(self) -> int:
        return self.order + 1

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        steps = multistep(exponential_step, denoise, x, levels, order=self.order, corrected=len(levels))
        return extrapolated(steps, levels)


class LMS(Sampler, name="lms"):
    """Linear multistep (Adams-Bashforth) in the angle, with steps of any size (k-diffusion)."""

    default_steps = 20

    order: int = option(default=3, ge=1, le=4, help="how many velocities a step uses")

    def claimed_order(self) -> int:
        return self.order

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        steps = multistep(angular_step, denoise, x, levels, order=self.order, corrected=self.order - 1)
        return extrapolated(steps, levels)
