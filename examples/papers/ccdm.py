"""A continuous condition with vicinal training (CcGAN: Ding et al., 2021; CCDM: Ding et al., 2024).

The condition is a number, here an angle, and the data have only some of its values. A network that sees 10 degrees
in training may do anything at 15. The hard vicinal estimate takes items of neighbouring values for examples of each
value in between: a condition is drawn, and an item whose own condition is at most kappa away. With evenly spread
conditions, this is the same as moving the condition of an item by a uniform number up to kappa, as `pair` does here.
An angle is given as its cosine and sine, so that 359 degrees are next to 1, and users type degrees.

    difftool train --plugin examples/papers/ccdm.py --dataset compass --loss vicinal --steps 2000 --out runs/ccdm
    difftool sample runs/ccdm --plugin examples/papers/ccdm.py --vector 45deg -n 500 --out angle.png
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from difftool import (
    ConditionSpec,
    Dataset,
    DatasetContext,
    Loss,
    Pairing,
    Predict,
    Samples,
    TrainingBatch,
    option,
    points,
)


class Compass(Dataset, name="compass"):
    """Points near the unit circle at a few angles, each with its angle as a vector."""

    generated = True

    n: int = option(default=20_000, ge=1, help="number of points")
    angles: int = option(default=36, ge=1, help="number of different angles")
    noise: float = option(default=0.05, ge=0, help="standard deviation around the circle")

    def load(self, context: DatasetContext) -> Samples:
        random = context.generator("compass")
        angle = torch.randint(self.angles, (self.n,), generator=random) * (2 * math.pi / self.angles)
        vectors = torch.stack([angle.cos(), angle.sin()], dim=1)
        return points(vectors + self.noise * torch.randn(self.n, 2, generator=random), vectors=vectors)

    def read_condition(self, field: str, text: str, spec: ConditionSpec) -> Tensor | None:
        if not text.endswith("deg"):
            return None
        angle = math.radians(float(text.removesuffix("deg")))
        return torch.tensor([math.cos(angle), math.sin(angle)])


class Vicinal(Loss, name="vicinal"):
    """The squared error, with the vector of each item moved a little."""

    kappa: float = option(default=0.1, ge=0, help="largest change of a number of the vector, in standard deviations")

    def pair(self, pairing: Pairing) -> Pairing:
        cond = pairing.cond
        if cond is None or cond.vector is None:
            raise ValueError("the data have no vector")
        change = torch.rand(cond.vector.shape, generator=pairing.generator, device=cond.vector.device) * 2 - 1
        moved = replace(cond, vector=cond.vector + self.kappa * change)
        return replace(pairing, cond=moved.hide(cond.hidden))  # what is hidden stays 0

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        return (predict(batch.x_t, batch.t, batch.cond) - batch.target).square().flatten(1).mean(1)
