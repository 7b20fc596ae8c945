"""EDM2 (Karras et al., 2024, "Analyzing and improving the training dynamics of diffusion models"), its training.

Beside the denoiser, a small network learns the logarithm u(sigma) of the loss at each level. The loss w error/e^u + u
(eqs. 14 and 15) then weighs all levels alike, whatever their difficulty. The learning rate falls as the inverse square
root of the step, and averages of any length are made after training from snapshots of two (section 3); both are built
in. The network that keeps magnitudes is not part of this file.

    difftool train --plugin examples/papers/edm2.py --loss learned-uncertainty \
        --schedule ve --prediction edm --weighting edm --timestep-sampling log-normal --timestep-sampling.mean -0.4 \
        --timestep-sampling.std 1.0 --lr-schedule inverse-sqrt --lr-decay-steps 1000 --ema-lengths 0.05,0.10 \
        --out runs/edm2
    difftool sample runs/edm2 --ema-length 0.08
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from difftool import Loss, LossSpec, Predict, TrainingBatch, option


class Uncertainty(nn.Module):
    """u of c_noise = ln(sigma)/4: random Fourier features and one linear layer."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.frequencies, self.phases = nn.Buffer(torch.randn(features)), nn.Buffer(torch.rand(features))
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)  # u is 0 in the first step

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = 2 * math.pi * (torch.outer(c_noise, self.frequencies) + self.phases)
        u: Tensor = self.linear(math.sqrt(2) * angles.cos() / math.sqrt(len(self.phases)))
        return u[:, 0]


class LearnedUncertainty(Loss, name="learned-uncertainty"):
    """The loss w error/e^u + u, whose u(sigma) is learned too. Its minimum is u = ln(w error)."""

    weighted = True

    features: int = option(default=128, ge=1, help="number of Fourier features of ln(sigma)")

    def build(self, spec: LossSpec) -> Uncertainty:
        if spec.schedule.alpha[-1] == 0:
            raise ValueError("sigma/alpha is infinite at the last level; take another --schedule, such as ve")
        return Uncertainty(self.features)

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        assert isinstance(auxiliary, Uncertainty)
        alpha, sigma = batch.levels(batch.t)
        u: Tensor = auxiliary((sigma / alpha).log().flatten() / 4)
        error = (predict(batch.x_t, batch.t, batch.cond) - batch.target).square().flatten(1).mean(1)
        return batch.weight * error / u.exp() + u
