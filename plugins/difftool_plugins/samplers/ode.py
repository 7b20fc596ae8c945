"""One-step solvers of the probability-flow ODE, in theta = atan2(sigma, alpha), and one that restarts.

Along theta the normalised state x/norm moves with the velocity v, and all is bounded on every table; in sigma/alpha,
the usual choice, Heun's step explodes where the first level has no signal left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool import Sampler, option
from difftool_plugins.samplers.steps import ratio, turn, velocity

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Step


class Euler(Sampler, name="euler"):
    """Euler's method in the angle between signal and noise (Song et al., 2021, probability flow)."""

    def claimed_order(self) -> int:
        return 1

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        from difftool import Step

        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = turn(x, velocity(estimate, t), t, s) if s.sigma > 0.0 else estimate.x_0
            yield Step(x, s, estimate)


def heun_steps(denoise: Denoise, x: Tensor, levels: Sequence[Level]) -> Iterator[Step]:
    """Heun's method: the mean of the velocities at both ends of a step; to the clean end, the estimate."""
    from difftool import Step

    for t, s in pairwise(levels):
        estimate = denoise(x, t)
        if s.sigma > 0.0:
            v = velocity(estimate, t)
            ahead = velocity(denoise(turn(x, v, t, s), s), s)
            x = turn(x, 0.5 * (v + ahead), t, s)
        else:
            x = estimate.x_0
        yield Step(x, s, estimate)


class Heun(Sampler, name="heun"):
    """Heun's second-order method in the angle; two calls a step (Karras et al., 2022, algorithm 1)."""

    default_steps = 18

    def claimed_order(self) -> int:
        return 2

    def claimed_calls(self, steps: int) -> int:
        return 2 * steps - 1

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        return heun_steps(denoise, x, levels)


class Restart(Sampler, name="restart"):
    """Heun that goes back up by adding noise, and down again (Xu et al., 2023, algorithm 1)."""

    default_steps = 18

    low: float = option(default=0.1, gt=0, help="restart at the first level with sigma/alpha at most this")
    high: float = option(default=2.0, gt=0, help="go back up to the first level with sigma/alpha at most this")
    repeats: int = option(default=1, ge=0, le=1000, help="how often the interval is walked again")

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"high: must be above low, {self.low:g}, not {self.high:g}")

    def claimed_order(self) -> int | None:
        return 2 if self.repeats == 0 else None

    def claimed_calls(self, steps: int) -> int | None:
        return 2 * steps - 1 if self.repeats == 0 else None

    def sample(
        self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Callable[[int], Tensor]
    ) -> Iterator[Step]:
        top, bottom = self.interval(levels)
        for step in heun_steps(denoise, x, levels[: bottom + 1]):
            if step.level is levels[bottom] and top < bottom:
                step = self.again(denoise, step, levels[top : bottom + 1], lambda k: noise(len(levels) + k))
            x = step.x
            yield step
        yield from heun_steps(denoise, x, levels[bottom:])

    def interval(self, levels: Sequence[Level]) -> tuple[int, int]:
        """Where to go back up to, and where from: on a grid that stays above `low`, from its last noisy level."""
        noisy = [level for level in levels if level.sigma > 0.0]
        bottom = sum(level.sigma > self.low * level.alpha for level in noisy[:-1])
        return min(bottom, sum(level.sigma > self.high * level.alpha for level in noisy)), bottom

    def again(self, denoise: Denoise, step: Step, levels: Sequence[Level], noise: Callable[[int], Tensor]) -> Step:
        """The step that reached the last of the levels, after going back to the first `repeats` times."""
        top, bottom = levels[0], levels[-1]
        # top's own noise less what the state already has of it
        spread = top.sigma * math.sqrt(1 - ratio(top, bottom) ** 2)
        for k in range(self.repeats):
            x = top.alpha / bottom.alpha * step.x + spread * noise(k)
            *_, step = heun_steps(denoise, x, levels)
        return step
