"""Heun's method in theta, and restart sampling, which repeats a part of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool import Sampler, option
from difftool_plugins.samplers.equations import euler_step, forward_sigma, velocity

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Noise, Step


def heun(denoise: Denoise, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """Yield the steps of Heun's method: x_s/norm_s = x_t/norm_t + (theta_s - theta_t) (v_t + v_s)/2.

    v_s is the velocity where Euler's step ends. The step to the clean end gives x_0.
    """
    from difftool import Step

    for t, s in pairwise(levels):
        estimate = denoise(x, t)
        if s.sigma > 0.0:
            v_t = velocity(estimate, t)
            v_s = velocity(denoise(euler_step(x, v_t, t, s), s), s)
            x = euler_step(x, (v_t + v_s) / 2, t, s)
        else:
            x = estimate.x_0
        yield Step(x, s, estimate)


class Heun(Sampler, name="heun"):
    """Heun's second-order method in the angle; two calls per step (Karras et al., 2022, algorithm 1)."""

    default_steps = 18

    def claimed_order(self) -> int:
        return 2

    def claimed_calls(self, steps: int) -> int:
        return 2 * steps - 1

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        return heun(denoise, x, levels)


class Restart(Sampler, name="restart"):
    """Heun's method that goes back up by adding noise, and down again (Xu et al., 2023, algorithm 1).

    From the restart level s back up to the level t, the forward process adds what t has more of noise:

        x_t = (alpha_t/alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2) z
    """

    default_steps = 18

    low: float = option(default=0.1, gt=0, help="restart at the first level with sigma/alpha at most this")
    high: float = option(default=2.0, gt=0, help="go back up to the first level with sigma/alpha at most this")
    repeats: int = option(default=1, ge=0, le=1000, help="how often to repeat the interval")

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"high: must be above low, {self.low:g}, not {self.high:g}")

    def claimed_order(self) -> int | None:
        return 2 if self.repeats == 0 else None

    def claimed_calls(self, steps: int) -> int | None:
        return 2 * steps - 1 if self.repeats == 0 else None

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        top, bottom = self.interval(levels)
        t, s = levels[top], levels[bottom]
        for step in heun(denoise, x, levels[: bottom + 1]):
            if step.level is s and top < bottom:
                for repeat in range(self.repeats):
                    z = noise(len(levels) + repeat)
                    x = t.alpha / s.alpha * step.x + forward_sigma(t, s) * z
                    *_, step = heun(denoise, x, levels[top : bottom + 1])
            x = step.x
            yield step
        yield from heun(denoise, x, levels[bottom:])

    def interval(self, levels: Sequence[Level]) -> tuple[int, int]:
        """Return the indices of the levels to go back up to and to restart at.

        If all levels lie above `low`, the last noisy one is where it restarts.
        """
        noisy = [level for level in levels if level.sigma > 0.0]
        bottom = sum(level.sigma > self.low * level.alpha for level in noisy[:-1])
        return min(bottom, sum(level.sigma > self.high * level.alpha for level in noisy)), bottom
