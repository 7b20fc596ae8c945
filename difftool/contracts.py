"""The records that core and plugins hand each other, and what a sampler asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from difftool.schedule import Level, Schedule


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What a backbone is asked to build. May grow fields."""

    shape: tuple[int, ...]
    """Shape of one item, channels (or coordinates) first: (2,), (3, 32, 32)."""
    out_channels: int
    """Channels of the answer; the rest of its shape is the item's."""
    classes: int | None = None
    """Number of classes; index `classes` itself means "no class". None: the network takes no condition."""
    sigma_data: float = 1.0
    """Standard deviation of the data in model units."""
    self_condition: bool = False
    """Whether the last estimate of x_0 comes beside x_t, as further channels."""

    @property
    def in_channels(self) -> int:
        """Channels of the network's input."""
        return self.shape[0] * (2 if self.self_condition else 1)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """What prediction types, weightings and time densities are told. May grow fields."""

    schedule: Schedule
    sigma_data: float = 1.0
    """Standard deviation of the data in model units."""


@dataclass(frozen=True)
class Estimate:
    """What a denoiser knows at a level; x_t = alpha x_0 + sigma eps holds. May grow fields."""

    x_0: Tensor
    eps: Tensor
    variance_part: Tensor | None = None
    """Of a learned variance: where it lies between the posterior's (0) and beta (1), in logarithms."""


@dataclass(frozen=True)
class Step:
    """One step of a walk: the state reached, the level it is at, and the estimate that led there."""

    x: Tensor
    level: Level
    estimate: Estimate


class Denoise(Protocol):
    """x (B, *shape) at a level -> Estimate."""

    def __call__(self, x: Tensor, level: Level) -> Estimate: ...
