"""The inputs of every training step: batches, noise and levels.

Everything that does not depend on the weights is computed for several steps at once, since one large call is far
cheaper than many small ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.rng import generator
from difftool.training.loss import Inputs
from difftool.training.minimise import paired
from difftool.training.phases import DATA, NOISE, enter

if TYPE_CHECKING:
    from difftool.data.batches import Batches
    from difftool.settings import Training
    from difftool.training.loss import Objective

BLOCK_STEPS = 16
"""The largest number of steps whose inputs are computed at once."""
BLOCK_ELEMENTS, CPU_BLOCK_ELEMENTS = 2**22, 2**16
"""The largest size of such a block, in numbers. On a CPU its few tensors should stay in the cache."""


class StepNoise:
    """Noise, levels and hidden conditions of every step, as a function of (seed, step)."""

    def __init__(
        self, seed: int, batch: int, shape: tuple[int, ...], objective: Objective, *, stratified: bool = False
    ) -> None:
        self.seed, self.batch, self.shape = seed, batch, shape
        self.objective, self.stratified, self.device = objective, stratified, objective.device
        most = CPU_BLOCK_ELEMENTS if self.device.type == "cpu" else BLOCK_ELEMENTS
        self.block = max(1, min(BLOCK_STEPS, most // (batch * math.prod(shape))))
        self._number = -1

    def __call__(self, step: int, count: int = 1, part: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Return (eps (N, *shape), t (N,) int64, u (N,) uniform) of `count` steps that lie in one block.

        N is count * B, or less if only a `part` of each batch is taken.
        """
        number, offset = divmod(step, self.block)
        if number != self._number:
            random = generator(self.seed, "noise", number, device=self.device)
            size, device = (self.block, self.batch), self.device
            self._eps = torch.randn(*size, *self.shape, generator=random, device=device)
            quantile = torch.rand(*size, generator=random, device=device)
            if self.stratified:  # one item in each of B equal parts: the same mean loss at a lower variance
                quantile = (quantile + torch.arange(self.batch, device=device)) / self.batch
            self._t = self.objective.draw(quantile)
            self._u = torch.rand(*size, generator=random, device=device)
            self._number = number
        steps = slice(offset, offset + count)
        return self._eps[steps, part].flatten(0, 1), self._t[steps, part].flatten(), self._u[steps, part].flatten()


def inputs_from(
    step: int, batches: Batches, objective: Objective, settings: Training, layout: torch.memory_format
) -> Iterator[Inputs]:
    """Yield the inputs of this step and of all that follow, in the memory layout that suits the network."""
    scaling, shape = objective.data.scaling, objective.data.shape
    noise = StepNoise(settings.seed, batches.batch_size, shape, objective, stratified=settings.stratified)
    enter(DATA)
    for batch in batches.start(step, block=noise.block):
        enter(NOISE)
        count = len(batch.items) // batches.size
        eps, t, u = noise(step, count, batches.part)
        x_0 = scaling.to_model(batch.items).contiguous(memory_format=layout)
        if batch.noise is not None:  # stored with the items
            eps = batch.noise.float()
        cond = objective.data.model_condition(batch.condition)
        cond = None if cond is None else cond.hide(u < settings.condition_dropout)
        inputs = objective.inputs(x_0, eps.contiguous(memory_format=layout), t, cond).split(batches.size)
        for number, part in enumerate(inputs, start=step):
            yield paired(objective, part, settings.seed, number, batches.part.start) if objective.pairs else part
        step += count
        enter(DATA)
