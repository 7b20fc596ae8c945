"""The target of consistency training."""

from __future__ import annotations

import copy

from torch import nn


class Target(nn.Module):
    """A copy of a network, which is moved behind it, or nothing if the network is its own target."""

    def __init__(self, network: nn.Module | None, *, timesteps: int) -> None:
        super().__init__()
        self.average = None if network is None else copy.deepcopy(network).eval().requires_grad_(False)
        self.timesteps = timesteps
        """T, the number of levels of the schedule."""
