"""The records that core and plugins hand each other, and what a sampler asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from difftool.figures.formats import undrawable

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


@dataclass(frozen=True, kw_only=True)
class DrawingSpec:
    """What a writer is told before anything is sampled. May grow fields."""

    shape: tuple[int, ...]
    """Shape of a sample, channels (or coordinates) first."""
    steps: int
    """Steps of the walk."""
    strip: int | None = None
    """So many states of the walk are to be drawn instead of the result alone."""
    trajectory: bool = False
    """Arrays are to hold the states of the walk too."""

    def evenly(self, count: int) -> list[int]:
        """The steps after which to keep a state so that `count` of them cover the walk; 0 is x_T."""
        if count == 1:
            return [self.steps]
        return sorted({round(i * self.steps / (count - 1)) for i in range(count)})

    def check_drawable(self) -> None:
        """Raise `ValueError` where no picture can show samples of this shape."""
        if reason := undrawable(self.shape):
            raise ValueError(reason)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a logger is told of the run that it logs. May grow fields."""

    folder: Path
    """The run folder."""
    logs: Path
    """Where a logger may keep files of its own: a folder in the run folder that may not be there yet."""
    name: str
    """Such as `swiss-roll-mlp`."""
    config: Mapping[str, Mapping[str, Any]]
    """The components and settings of the run as plain values, a table for each."""
    started: str
    """When the run began, ISO 8601 in UTC; the same after each resume."""
    step: int = 0
    """Completed steps when training goes on; 0 for a new run."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is logged at a step. May grow fields."""

    step: int
    """Completed steps."""
    metrics: Mapping[str, float | None]
    """By name, the same names in each row of numbers; None where one was not measured. Empty where there are only
    pictures."""
    pictures: tuple[Path, ...] = ()
    """Pictures that were drawn at this step."""


class Denoise(Protocol):
    """x (B, *shape) at a level -> Estimate."""

    def __call__(self, x: Tensor, level: Level) -> Estimate: ...
