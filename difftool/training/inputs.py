"""What the network is shown, step by step: batches, noise and levels.

All that does not depend on the weights is made for several steps at once: one large call is far cheaper than many small
ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.rng import generator
from difftool.training.loss import Inputs

if TYPE_CHECKING:
    from difftool.data.batches import Batches
    from difftool.data.samples import Scaling
    from difftool.settings import Training
    from difftool.training.loss import Objective

BLOCK_STEPS = 16
"""Inputs are made for up to this many steps at once ..."""
BLOCK_ELEMENTS = 2**22
"""... as long as the block stays below about this many numbers."""


class StepNoise:
    """Noise, levels and hidden labels of every step, a function of (seed, step)."""

    def __init__(
        self, seed: int, batch: int, shape: tuple[int, ...], objective: Objective, *, stratified: bool = False
    ) -> None:
        self.seed, self.batch, self.shape = seed, batch, shape
        self.objective, self.stratified, self.device = objective, stratified, objective.device
        self.block = max(1, min(BLOCK_STEPS, BLOCK_ELEMENTS // (batch * math.prod(shape))))
        self._number = -1

    def __call__(self, step: int, count: int = 1, part: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """(eps (N, *shape), t (N,) int64, u (N,) uniform) of `count` steps that lie in one block, of a part of each.

        N is count B, or count times the size of the part.
        """
        number, at = divmod(step, self.block)
        if number != self._number:
            random = generator(self.seed, "noise", number, device=self.device)
            size, device = (self.block, self.batch), self.device
            self._eps = torch.randn(*size, *self.shape, generator=random, device=device)
            where = torch.rand(*size, generator=random, device=device)
            if self.stratified:  # one item in each of B equal parts: the same mean loss at a lower variance
                where = (where + torch.arange(self.batch, device=device)) / self.batch
            self._t = self.objective.draw(where)
            self._u = torch.rand(*size, generator=random, device=device)
            self._number = number
        steps = slice(at, at + count)
        return self._eps[steps, part].flatten(0, 1), self._t[steps, part].flatten(), self._u[steps, part].flatten()


def prepared(
    batches: Batches,
    objective: Objective,
    settings: Training,
    *,
    step: int,
    scaling: Scaling,
    classes: int | None,
    layout: torch.memory_format,
) -> Iterator[Inputs]:
    """The inputs of this step and of all that follow, laid out in memory as suits the network."""
    shape = batches.samples.shape
    noise = StepNoise(settings.seed, batches.batch_size, shape, objective, stratified=settings.stratified)
    for batch in batches.start(step, block=noise.block):
        count = len(batch.items) // batches.size
        eps, t, u = noise(step, count, batches.part)
        x_0 = scaling.to_model(batch.items).contiguous(memory_format=layout)
        cond = None
        if classes is not None and batch.labels is not None:
            cond = torch.where(u < settings.label_dropout, classes, batch.labels)
        yield from objective.inputs(x_0, eps.contiguous(memory_format=layout), t, cond).split(batches.size)
        step += count
