"""Averages of the weights, several at once. They never overwrite the network that is trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from difftool.runs.averages import ema_name, power_name
from difftool.runs.power import decay_at, gamma_of
from difftool.training.vectors import join_alike, own_part

if TYPE_CHECKING:
    from difftool.settings import Training


def warming_decay(t: int, cap: float) -> float:
    """Return the decay of an exponential moving average at the update of step t = 1, 2, ...: min(cap, 1 - t^(-3/4)).

    The first update therefore copies the weights, and no trace of the initialisation is left.
    """
    return min(cap, 1.0 - math.pow(t, -0.75))


class Average:
    """A running average of the weights of a network, in a copy of the network. Buffers are copied."""

    def __init__(
        self,
        network: nn.Module,
        name: str,
        decay: Callable[[int], float],
        copied: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    ) -> None:
        self.name, self.decay = name, decay
        self.network = copied(network).eval().requires_grad_(False)
        parts = ([*map(own_part, one.parameters())] for one in (self.network, network))
        self._averaged, self._live = join_alike(*parts)
        self._copied = list(zip(self.network.buffers(), network.buffers(), strict=True))

    @torch.no_grad()
    def update(self, t: int) -> None:
        """Move the average towards the live weights after step t = 1, 2, ..."""
        decay = self.decay(t)
        if len(self._averaged) == 1:
            self._averaged[0].lerp_(self._live[0], 1.0 - decay)
        elif self._averaged:  # in one call, for the sake of GPUs
            get_ema_multi_avg_fn(decay)(self._averaged, self._live, t)  # type: ignore[no-untyped-call]
        for copied, live in self._copied:
            copied.copy_(live)


class Averages:
    """The averages of a run: exponential ones (`--ema`), then power-function ones (`--ema-lengths`)."""

    def __init__(self, members: Sequence[Average] = ()) -> None:
        self.members = members
        self.updates = 0

    @classmethod
    def of(
        cls,
        network: nn.Module,
        settings: Training,
        copied: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    ) -> Averages:
        """Return the averages that the settings name, once the optimizer has joined the weights."""
        decays = {ema_name(cap): partial(warming_decay, cap=cap) for cap in settings.ema if cap}
        lengths = {power_name(length): partial(decay_at, gamma=gamma_of(length)) for length in settings.ema_lengths}
        return cls([Average(network, name, decay, copied) for name, decay in {**decays, **lengths}.items()])

    def __iter__(self) -> Iterator[Average]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def update(self) -> None:
        """Move all averages towards the live weights, after a step."""
        for average in self.members:
            average.update(self.updates + 1)
        self.updates += 1
