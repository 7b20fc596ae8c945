"""The records that core and plugins hand each other, and what a sampler asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from difftool.figures.formats import undrawable

if TYPE_CHECKING:
    from difftool.diffusion.schedule import Level, Schedule


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


ZERO = torch.zeros((), dtype=torch.float32, device="cpu")
MADE = {"x_0": (1.0, 0.0), "eps": (0.0, 1.0)}
"""What of an estimate is made when it is asked for: so much of x_0, and so much of eps."""


@dataclass(frozen=True)
class Estimate:
    """What a denoiser knows at a level; x_t = alpha x_0 + sigma eps holds. May grow fields.

    x_0 and eps are linear in two tensors that the denoiser has anyway, such as x_t and the network's answer. Those made
    by `linear` keep the two, make x_0 and eps when somebody asks for them, and go to another level without either.
    """

    x_0: Tensor
    eps: Tensor
    variance_part: Tensor | None = None
    """Of a learned variance: where it lies between the posterior's (0) and beta (1), in logarithms."""

    def __post_init__(self) -> None:
        self.__dict__["_parts"] = (self.x_0, 1.0, 0.0), (self.eps, 0.0, 1.0)

    @classmethod
    def linear(
        cls,
        a: Tensor,
        b: Tensor,
        *,
        x_0: tuple[float, float],
        eps: tuple[float, float],
        variance_part: Tensor | None = None,
    ) -> Estimate:
        """x_0 and eps are so much of a and so much of b each. Neither tensor may be changed in place afterwards."""
        found = object.__new__(cls)
        made = found.__dict__
        made["_parts"] = (a, x_0[0], eps[0]), (b, x_0[1], eps[1])
        made["variance_part"] = variance_part
        return found

    def with_x_0(self, x_0: Tensor, x: Tensor, level: Level) -> Estimate:
        """The same with another x_0: eps is derived again, so that both describe the state x at this level."""
        found = Estimate.linear(
            x,
            x_0,
            x_0=(0.0, 1.0),
            eps=(1.0 / level.sigma, -level.alpha / level.sigma),
            variance_part=self.variance_part,
        )
        found.__dict__["x_0"] = x_0
        return found

    def at(self, alpha: float, sigma: float, *, onto: Tensor | None = None) -> Tensor:
        """alpha x_0 + sigma eps: in a new tensor, or added to `onto` in place."""
        total = onto
        for part, in_x_0, in_eps in self.__dict__["_parts"]:
            weight = alpha * in_x_0 + sigma * in_eps
            if weight == 0.0:
                continue
            # 0 + weight part: for a product, torch would make a tensor of the weight first
            total = torch.add(ZERO, part, alpha=weight) if total is None else total.add_(part, alpha=weight)
        return torch.zeros_like(part) if total is None else total

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            """x_0 or eps, which was not made yet."""
            if name not in MADE:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            made = self.__dict__[name] = self.at(*MADE[name])
            return made


@dataclass(slots=True)  # not frozen, which would take three times as long in each step
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
    """x (B, *shape) at a level -> Estimate, which may keep x: it is not to be changed in place afterwards."""

    def __call__(self, x: Tensor, level: Level) -> Estimate: ...
