"""Progressive distillation (Salimans & Ho, 2022, "Progressive distillation for fast sampling of diffusion models").

A student learns to do in one step of DDIM what its teacher does in two (algorithm 2). Both begin with the weights of
--init-from. A student is the teacher of the next one, which takes half as many steps. The network predicts v, which
determines x_0 even where there is no signal.

    difftool train --schedule cosine --prediction v --steps 4000 --out runs/teacher
    difftool train --plugin examples/papers/progressive_distillation.py --init-from runs/teacher \
        --loss progressive-distillation --loss.steps 4 --schedule cosine --prediction v --steps 2000 --out runs/four
    difftool train --plugin examples/papers/progressive_distillation.py --init-from runs/four \
        --loss progressive-distillation --loss.steps 2 --schedule cosine --prediction v --steps 2000 --out runs/two
    difftool sample runs/two --steps 2
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from difftool import Loss, LossSpec, Predict, TrainingBatch, option


class Teacher(nn.Module):
    """The network as it was, which makes steps of so many levels."""

    def __init__(self, network: nn.Module, step: int) -> None:
        super().__init__()
        self.network, self.step = copy.deepcopy(network).eval().requires_grad_(False), step


class ProgressiveDistillation(Loss, name="progressive-distillation"):
    """The error of x_0 from the estimate whose one step ends where two steps of the teacher end."""

    steps: int = option(default=8, ge=1, help="steps of the student; the teacher makes twice as many")

    def build(self, spec: LossSpec) -> Teacher:
        step, rest = divmod(len(spec.schedule), 2 * self.steps)
        if rest or not step:
            raise ValueError(f"steps: twice {self.steps} must divide the number of levels, {len(spec.schedule)}")
        return Teacher(spec.network, step)

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        assert isinstance(auxiliary, Teacher)
        teacher, cond = auxiliary.network, batch.cond
        t = (batch.t // (2 * auxiliary.step) + 1) * (2 * auxiliary.step) - 1  # a level at which a student's step begins
        middle, s = t - auxiliary.step, t - 2 * auxiliary.step
        (alpha_t, sigma_t), (alpha_m, sigma_m), (alpha_s, sigma_s) = map(batch.levels, (t, middle, s))
        z_t = batch.noised(t)
        with torch.no_grad():
            x = predict.x_0(z_t, t, cond, network=teacher)
            z_m = alpha_m * x + sigma_m / sigma_t * (z_t - alpha_t * x)
            x = predict.x_0(z_m, middle, cond, network=teacher)
            z_s = alpha_s * x + sigma_s / sigma_m * (z_m - alpha_m * x)
            target = (z_s - sigma_s / sigma_t * z_t) / (alpha_s - sigma_s / sigma_t * alpha_t)
        weight = (alpha_t / sigma_t).square().clamp(min=1).flatten()  # truncated SNR (section 4)
        return weight * (predict.x_0(z_t, t, cond) - target).square().flatten(1).mean(1)
