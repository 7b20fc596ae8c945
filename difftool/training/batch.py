"""The records of a loss: the network to copy, noise and data to pair, and the batch to compute the loss of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from difftool.rng import generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from difftool.data.condition import Condition
    from difftool.diffusion.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """The setting of a loss that builds an auxiliary network. Fields may be added."""

    network: nn.Module
    """The network that is trained. `copy.deepcopy` makes a teacher or a target network of it."""
    schedule: Schedule
    shape: tuple[int, ...]
    """The shape of one item, channels (or coordinates) first."""
    sigma_data: float = 1.0
    """Standard deviation of the data in model units."""
    bounds: tuple[float, float] | None = None
    """The range of the data in model units, or None for unbounded data."""
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The items, noise and levels of one step before they are combined to x_t. Fields may be added."""

    x_0: Tensor
    """The items (B, *shape), in model units."""
    eps: Tensor
    """The noise (B, *shape)."""
    t: Tensor
    """The level of each item (B,), int64."""
    cond: Condition | None
    """The condition of the items, or None. It belongs to x_0: whoever moves an item moves its condition."""
    generator: torch.Generator
    """A generator on the device, for random pairs."""


class Predict(Protocol):
    """The network that is trained, with everything between x_t and its prediction.

    Its input is scaled, and self-conditioning and the precision of the run apply. The prediction (B, *shape), float32,
    is of a x_0 + b eps as the prediction type says. `network` names another network, such as the auxiliary one, which
    is called in the same way. Gradients follow torch's rules: use `torch.no_grad` for a target.
    """

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition | None, network: nn.Module | None = None) -> Tensor:
        """Return the prediction for noised items x_t (B, *shape) at the levels t (B,), int64."""

    def x_0(self, x_t: Tensor, t: Tensor, cond: Condition | None, network: nn.Module | None = None) -> Tensor:
        """Return the estimate of x_0 (B, *shape) that follows from the prediction, without clipping."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The place of a batch in its run."""

    step: int
    steps: int
    key: tuple[int | str, ...]
    """The parts of its random key."""


@dataclass(slots=True)  # not frozen, which would take three times as long in each step
class TrainingBatch:
    """The batch of a step, or a part of it (`--accumulate`, several processes). Fields may be added."""

    x_0: Tensor
    """The items (B, *shape), in model units."""
    eps: Tensor
    """The noise (B, *shape)."""
    t: Tensor
    """The level of each item (B,), int64."""
    cond: Condition | None
    """The condition of the items, partly hidden, or None if there is none."""
    x_t: Tensor
    """The noised items (B, *shape): alpha_t x_0 + sigma_t eps."""
    target: Tensor
    """The quantity a x_0 + b eps that the prediction type predicts (B, *shape)."""
    _noised: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(x_0, eps, t): makes x_t."""
    _factor: Tensor | None
    """The factor of the loss at each level of the schedule (T,); None stands for 1."""
    _moment: Moment | None
    """None while a whole step is compiled, since the compiled function must not depend on the step."""

    @property
    def weight(self) -> Tensor:
        """The factor of each item's loss (B,) by `--weighting`: 1 without one, and in the held-out loss."""
        return self.x_0.new_ones(len(self.t)) if self._factor is None else self._factor[self.t]

    @property
    def step(self) -> int:
        """The number of completed steps: 0 in the first step."""
        return self._at.step

    @property
    def steps(self) -> int:
        """The number of steps of the whole run, which a later `--resume --steps` may change."""
        return self._at.steps

    def generator(self, *parts: int | str) -> torch.Generator:
        """Return a generator on the device for (seed, step, *parts). Equal parts give equal numbers."""
        return generator(*self._at.key, *parts, device=self.x_0.device)

    def noised(self, t: Tensor) -> Tensor:
        """Return the same items with the same noise at other levels t (B,), int64: x_t of each (B, *shape)."""
        return self._noised(self.x_0, self.eps, t)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at the levels t (B,), int64, where -1 is the clean end.

        Each has the shape (B, 1, ...), to be multiplied with items.
        """
        one = self.x_0.new_ones(len(t), *(1,) * (self.x_0.ndim - 1))
        zero, clean = torch.zeros_like(one), t == -1
        row, clean = t + clean, clean.view_as(one)
        alpha, sigma = self._noised(one, zero, row), self._noised(zero, one, row)
        return torch.where(clean, one, alpha), torch.where(clean, zero, sigma)

    @property
    def _at(self) -> Moment:
        if self._moment is None:
            raise RuntimeError("a step that is compiled as a whole knows no number")
        return self._moment


Network = Callable[..., "Tensor"]
"""A network, or a function that stands for one: (net_input, time, cond)."""
