"""The exponential moving average of the weights. It never overwrites the network that is trained."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from difftool.training.optimizer import join


class EMA:
    """An average whose decay warms up: min(cap, 1 - (1 + n)^(-3/4)) at update n = 0, 1, ...

    The first update therefore copies the weights, and no trace of the initialisation is left. Buffers are copied.
    """

    def __init__(self, network: nn.Module, cap: float) -> None:
        self.cap, self.updates = cap, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        moving = [pair for pair in pairs if pair[1].requires_grad]  # frozen weights are their own average
        self._averaged, self._live = ([pair[side] for pair in moving] for side in (0, 1))
        averaged, live = join(self._averaged), join(self._live)
        if averaged is not None and live is not None:
            self._averaged, self._live = [averaged], [live]  # type: ignore[list-item]
        self._copied = list(zip(self.network.buffers(), network.buffers(), strict=True))

    @property
    def decay(self) -> float:
        """The decay of the next update."""
        return min(self.cap, 1.0 - float((1.0 + self.updates) ** -0.75))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights."""
        if len(self._averaged) == 1:
            self._averaged[0].lerp_(self._live[0], 1.0 - self.decay)
        else:  # in one call, for the sake of GPUs
            get_ema_multi_avg_fn(self.decay)(self._averaged, self._live, self.updates)  # type: ignore[no-untyped-call]
        for copied, live in self._copied:
            copied.copy_(live)
        self.updates += 1
