"""DPM-Solver++: exponential integrators in lambda = ln(alpha/sigma) for the data prediction x_0."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool import Sampler, option
from difftool_plugins.samplers.equations import decay, log_step
from difftool_plugins.samplers.multistep import exponential_update, multistep, usable_nodes

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Noise, Step


def second_order(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float) -> Iterator[Step]:
    """Yield the steps of DPM-Solver++(2M) with a share eta of the SDE's noise (Lu et al., 2022, alg. 2, app. E.2).

    With h = lambda_s - lambda_t, r = h_last/h and D = x_0 + (x_0 - x_0_last)/(2 r):

        x_s = (sigma_s/sigma_t) e^(-eta h) x_t + alpha_s (1 - e^(-(1 + eta) h)) D + sigma_s sqrt(1 - e^(-2 eta h)) z

    D is x_0 alone in the first step, in long steps (as that to the clean end), after a level without signal, and where
    steps grow suddenly.
    """
    from difftool import Step

    x_0_last: Tensor | None = None
    h_last = math.inf
    for step, (t, s) in enumerate(pairwise(levels)):
        estimate = denoise(x, t)
        D = x_0 = estimate.x_0
        h = log_step(t, s)
        r = h_last / h if h < math.inf else math.nan
        if x_0_last is not None and len(usable_nodes([0.0, -r], h)) == 2:
            D = x_0 + (x_0 - x_0_last) / (2 * r)
        q = decay(t, s)  # e^-h
        x = s.sigma / t.sigma * q**eta * x + s.alpha * (1 - q ** (1 + eta)) * D
        if eta > 0.0 and s.sigma > 0.0:
            x = x + s.sigma * math.sqrt(1 - q ** (2 * eta)) * noise(step)
        x_0_last, h_last = x_0, h
        yield Step(x, s, estimate)


class DPMpp2M(Sampler, name="dpmpp-2m"):
    """DPM-Solver++(2M), of second order (Lu et al., 2022, algorithm 2).

    x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^-h) D, where D = x_0 + (x_0 - x_0_last)/(2 r) and r = h_last/h.
    """

    default_steps = 20

    def claimed_order(self) -> int:
        return 2

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        return second_order(denoise, x, levels, noise, eta=0.0)


class DPMpp2MSDE(Sampler, name="dpmpp-2m-sde"):
    """SDE-DPM-Solver++(2M), which is dpmpp-2m with noise (Lu et al., 2022, app. E.2; midpoint form)."""

    default_steps = 20

    eta: float = option(default=1.0, ge=0, le=1, help="0 is dpmpp-2m, 1 has the noise of the reverse SDE")

    def claimed_order(self) -> int | None:
        return 2 if self.eta == 0.0 else None

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        return second_order(denoise, x, levels, noise, self.eta)


class DPMpp3M(Sampler, name="dpmpp-3m"):
    """DPM-Solver++(3M), of third order (Lu et al., 2022).

    x_s = (sigma_s/sigma_t) x_t + alpha_s D, where D integrates the parabola in lambda through the last three x_0.
    """

    # The published code has the second-order difference at half its weight, and begins with a plain step of first
    # order: either makes it a method of order 2. Here the polynomial is integrated exactly, and the first two steps are
    # corrected.

    default_steps = 20

    def claimed_order(self) -> int:
        return 3

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        return multistep(exponential_update, denoise, x, levels, order=3, corrected_steps=2)
