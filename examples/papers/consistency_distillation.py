"""Consistency distillation (Song et al., 2023, "Consistency models", algorithm 2).

The network maps every point of a teacher's trajectory to its end. From a noised item, one step of Heun's method with
the teacher leads to the next cleaner level. The estimate of x_0 there, by an average of the network, is the target for
the estimate before the step. Levels are evenly spaced in the 7th root of sigma/alpha. All three networks begin with
the weights of --init-from.

    difftool train --schedule ve --prediction edm --weighting edm --timestep-sampling log-normal --out runs/teacher
    difftool train --plugin examples/papers/consistency_distillation.py --init-from runs/teacher \
        --loss consistency-distillation --schedule ve --prediction edm --lr 1e-3 --steps 2000 --out runs/cd
    difftool sample runs/cd --steps 1
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from difftool import Loss, LossSpec, Predict, TrainingBatch, option


class Networks(nn.Module):
    """The teacher, the target, and the rows of the levels from clean to noisy."""

    def __init__(self, spec: LossSpec, count: int) -> None:
        super().__init__()
        self.teacher, self.target = (copy.deepcopy(spec.network).eval().requires_grad_(False) for _ in range(2))
        root = spec.schedule.theta.tan() ** (1 / 7)
        even = torch.linspace(float(root[0]), float(root[-1]), count, dtype=root.dtype)
        self.rows = nn.Buffer(torch.searchsorted(root, even).clamp(max=len(root) - 1))
        self.timesteps = len(root)


class ConsistencyDistillation(Loss, name="consistency-distillation"):
    """The squared distance between estimates of x_0 before and after a step of the teacher."""

    levels: int = option(default=18, ge=2, help="number of levels N")
    mu: float = option(default=0.95, ge=0, lt=1, help="decay of the target, an average of the network")

    def build(self, spec: LossSpec) -> Networks:
        if spec.schedule.alpha[-1] == 0:
            raise ValueError("sigma/alpha is infinite at the last level; take another --schedule, such as ve")
        return Networks(spec, self.levels)

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        assert isinstance(auxiliary, Networks)
        n = batch.t * (self.levels - 1) // auxiliary.timesteps  # 0, ..., N - 2
        t, s = auxiliary.rows[n + 1], auxiliary.rows[n]
        x_t = batch.noised(t)
        with torch.no_grad():
            x_s = self.heun(predict, batch, auxiliary.teacher, x_t, t, s)
            target = predict.x_0(x_s, s, batch.cond, network=auxiliary.target)
        return (predict.x_0(x_t, t, batch.cond) - target).square().flatten(1).mean(1)

    @staticmethod
    def heun(predict: Predict, batch: TrainingBatch, teacher: nn.Module, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the state at s: a step along d(x/alpha)/d(sigma/alpha) = eps with the mean of both ends."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = batch.levels(t), batch.levels(s)
        step = sigma_s / alpha_s - sigma_t / alpha_t
        eps_t = (x_t - alpha_t * predict.x_0(x_t, t, batch.cond, network=teacher)) / sigma_t
        x_s = alpha_s * (x_t / alpha_t + step * eps_t)
        eps_s = (x_s - alpha_s * predict.x_0(x_s, s, batch.cond, network=teacher)) / sigma_s
        return alpha_s * (x_t / alpha_t + step * (eps_t + eps_s) / 2)

    def after_step(self, network: nn.Module, auxiliary: nn.Module | None) -> None:
        assert isinstance(auxiliary, Networks)
        for average, weight in zip(auxiliary.target.parameters(), network.parameters(), strict=True):
            average.lerp_(weight, 1 - self.mu)
