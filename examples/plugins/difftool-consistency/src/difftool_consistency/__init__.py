"""Consistency models for difftool: a loss to train them, and a sampler that draws from them in one or two steps.

A consistency model maps x_t of any level to the data at the end of its trajectory, so one call of the network makes a
sample. Here the map is the network's estimate of x_0. Of a prediction such as v, x_0 = alpha x_t - sigma v, it leaves
x_t as it is at the clean end, which consistency models require.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool import Loss, Sampler, hookimpl, option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from difftool import Denoise, Level, LossSpec, Noise, Predict, Step, TrainingBatch

difftool_api = 2

MOST = 20
"""The largest number of sampling steps."""


class ConsistencyTraining(Loss, name="consistency"):
    """The distance between estimates of x_0 at neighbouring levels (Song et al., 2023; Song & Dhariwal, 2024).

    Both levels have the same noise. The estimate at the cleaner one comes from a target network, without gradients.
    With `last` above `first` the levels get nearer to each other while training goes on: their number doubles.
    """

    first: int = option(default=20, ge=2, le=10_000, help="number of levels at the beginning")
    last: int = option(default=20, ge=2, le=10_000, help="largest number of levels")
    decay: float = option(default=0.9, ge=0, lt=1, help="decay of the target's average; 0: the network itself")
    c: float | None = option(
        default=None, gt=0, help="error beyond which the loss is a line", otherwise="0.00054 sqrt(D) for D numbers"
    )

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError(f"last: must be at least first, {self.first}, not {self.last}")

    def levels(self, step: int, steps: int) -> int:
        """Return N(k), the number of levels in a step: it doubles at even distances (Song & Dhariwal, 2024, eq. 13)."""
        doublings = math.floor(math.log2(self.last / self.first)) + 1
        return min(self.last, self.first * 2 ** (step * doublings // max(1, steps)))

    def build(self, spec: LossSpec) -> nn.Module:
        """Return the target."""
        from difftool_consistency.target import Target

        return Target(spec.network if self.decay else None, timesteps=len(spec.schedule))

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        """Return the pseudo-Huber distance of each item (B,), over the distance of the two levels."""
        import torch

        from difftool_consistency.target import Target

        assert isinstance(auxiliary, Target)
        count = self.levels(batch.step, batch.steps)
        estimate = predict.x_0(batch.x_t, batch.t, batch.cond)
        cleaner = batch.t - max(1, round(auxiliary.timesteps / count))
        clean, cleaner = cleaner < 0, cleaner.clamp(min=0)
        with torch.no_grad():
            target = predict.x_0(batch.noised(cleaner), cleaner, batch.cond, network=auxiliary.average)
        target = torch.where(clean.view(-1, *(1,) * (target.ndim - 1)), batch.x_0, target)
        error = (estimate - target).flatten(1)
        c = 0.00054 * math.sqrt(error.shape[1]) if self.c is None else self.c
        loss: Tensor = (error.square().sum(dim=1) + c**2).sqrt() - c
        return loss * count

    def after_step(self, network: nn.Module, auxiliary: nn.Module | None) -> None:
        """Move the target network towards the network."""
        average: nn.Module | None = getattr(auxiliary, "average", None)
        if average is not None:
            for slow, weight in zip(average.parameters(), network.parameters(), strict=True):
                slow.lerp_(weight, 1 - self.decay)


class ConsistencySampler(Sampler, name="consistency"):
    """Multistep consistency sampling: an estimate of x_0, and fresh noise up to the next level (Song et al., 2023,
    algorithm 1).

    It is for models of the loss `consistency`; the estimates of others are blurred means. Every step adds an error of
    its own, so it takes at most 20.
    """

    default_steps = 2

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        """Yield a step from each level t to the next, cleaner level s."""
        from difftool import Step

        if len(levels) - 1 > MOST:
            raise ValueError(f"it takes at most {MOST} steps, since each adds an error; one or two are usual")
        for step, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            x = s.alpha * estimate.x_0
            if s.sigma > 0.0:
                x = x + s.sigma * noise(step)
            yield Step(x, s, estimate)


@hookimpl
def difftool_losses() -> list[type[Loss]]:
    return [ConsistencyTraining]


@hookimpl
def difftool_samplers() -> list[type[Sampler]]:
    return [ConsistencySampler]
