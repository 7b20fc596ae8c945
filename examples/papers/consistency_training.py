"""Consistency training (Song et al., 2023, "Consistency models", algorithm 3), and sampling in a few steps (algorithm
1).

The network maps every point of a trajectory to its end. It learns without a teacher: its estimates at neighbouring
levels of the same item and noise agree, where the cleaner one comes from an average of the network. Levels are evenly
spaced in the 7th root of sigma/alpha. Their number N(k) rises in training, and the average follows more slowly
(appendix C). The prediction of EDM leaves x as it is at the clean end, as the boundary condition requires (section 3).

    difftool train --plugin examples/papers/consistency_training.py --loss consistency-training \
        --loss.s-1 20 --schedule ve --prediction edm --steps 4000 --out runs/ct
    difftool sample runs/ct --plugin examples/papers/consistency_training.py --sampler multistep --steps 2
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from difftool import Denoise, Level, Loss, LossSpec, Noise, Predict, Sampler, Step, TrainingBatch, option


class Target(nn.Module):
    """The average of the network, its decay, and the 7th root of sigma/alpha at each level."""

    def __init__(self, spec: LossSpec, decay: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(spec.network).eval().requires_grad_(False)
        self.decay, self.root = nn.Buffer(torch.tensor(decay)), nn.Buffer(spec.schedule.theta.tan().float() ** (1 / 7))

    def rows(self, count: int) -> Tensor:
        """Return the rows of that many evenly spaced levels, from clean to noisy."""
        share = torch.linspace(0, 1, count, device=self.root.device)
        row = torch.searchsorted(self.root, torch.lerp(self.root[0], self.root[-1], share))
        return row.clamp(max=len(self.root) - 1)


class ConsistencyTraining(Loss, name="consistency-training"):
    """The squared distance between estimates of x_0 at neighbouring levels."""

    s_0: int = option(default=2, ge=2, help="number of levels at the beginning")
    s_1: int = option(default=150, ge=2, help="number of levels at the end, less 1")
    mu_0: float = option(default=0.9, gt=0, lt=1, help="decay of the average at the beginning")

    def levels(self, step: int, steps: int) -> int:
        """Return N(k), the number of levels in a step."""
        rise = step / steps * ((self.s_1 + 1) ** 2 - self.s_0**2)
        return math.ceil(math.sqrt(rise + self.s_0**2) - 1) + 1

    def build(self, spec: LossSpec) -> Target:
        if spec.schedule.alpha[-1] == 0:
            raise ValueError("sigma/alpha is infinite at the last level; take another --schedule, such as ve")
        return Target(spec, self.mu_0)

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        assert isinstance(auxiliary, Target)
        count = self.levels(batch.step, batch.steps)
        auxiliary.decay.fill_(math.exp(self.s_0 * math.log(self.mu_0) / count))
        rows = auxiliary.rows(count)
        n = batch.t * (count - 1) // len(auxiliary.root)  # 0, ..., N - 2
        noisier, cleaner = rows[n + 1], rows[n]
        with torch.no_grad():
            target = predict.x_0(batch.noised(cleaner), cleaner, batch.cond, network=auxiliary.network)
        return (predict.x_0(batch.noised(noisier), noisier, batch.cond) - target).square().flatten(1).mean(1)

    def after_step(self, network: nn.Module, auxiliary: nn.Module | None) -> None:
        assert isinstance(auxiliary, Target)
        for average, weight in zip(auxiliary.network.parameters(), network.parameters(), strict=True):
            average.lerp_(weight, 1 - auxiliary.decay)


class Multistep(Sampler, name="multistep"):
    """Estimates of x_0, and fresh noise up to the next level (algorithm 1)."""

    default_steps = 2

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for step, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            x = s.alpha * estimate.x_0 + s.sigma * noise(step)
            yield Step(x, s, estimate)
