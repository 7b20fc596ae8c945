"""The exponential moving average of the weights. The live network is never overwritten by it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from difftool.training.optimizer import joined


class EMA:
    """An average whose decay warms up: min(cap, 1 - (1 + n)^(-3/4)) at update n = 0, 1, ...

    The first update therefore copies the weights, and no trace of the initialisation stays. Buffers are copied.
    """

    def __init__(self, network: nn.Module, cap: float) -> None:
        self.cap, self.updates = cap, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.averaged = joined([*self.network.parameters()])
        """The averaged weights, as one vector or as they are."""
        self._live = joined([*network.parameters()])
        self._copied = list(zip(self.network.buffers(), network.buffers(), strict=True))

    @property
    def decay(self) -> float:
        """The decay of the next update."""
        return min(self.cap, 1.0 - float((1.0 + self.updates) ** -0.75))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights."""
        torch._foreach_lerp_(self.averaged, self._live, 1.0 - self.decay)
        for copied, live in self._copied:
            copied.copy_(live)
        self.updates += 1
