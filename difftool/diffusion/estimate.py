"""The estimates of a denoiser, and the records that pass between the sampling loop and a sampler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from difftool.diffusion.schedule import Level


@dataclass(frozen=True)
class Estimate:
    """A denoiser's estimates of x_0 and eps at a level; x_t = alpha x_0 + sigma eps holds. May grow fields."""

    x_0: Tensor
    eps: Tensor
    variance_fraction: Tensor | None = None
    """The learned variance of a DDPM step: 0 is the posterior's, 1 is beta, interpolated in logarithms."""

    unconditional: Estimate | None = None
    """The estimate without the condition, where a guidance computed it: neither guided nor clipped."""

    def with_x_0(self, x_0: Tensor, x_t: Tensor, level: Level) -> Estimate:
        """Return a copy with another x_0, and the eps that goes with it: eps = (x_t - alpha x_0) / sigma."""
        return replace(self, x_0=x_0, eps=(x_t - level.alpha * x_0) / level.sigma)


@dataclass(slots=True)  # not frozen, which would take three times as long in each step
class Step:
    """One sampling step: the state it reached, the level of that state, and the estimate that led there.

    A sampler gives these three. The sampling loop fills in the rest, and yields x_T first as step 0.
    """

    x: Tensor
    """(B, *shape) in model units, on the device of the noise."""
    level: Level
    estimate: Estimate | None
    """None for x_T alone."""
    number: int = 0
    """Completed steps."""
    first: int = 0
    """Number of the batch's first sample."""
    calls: int = 0
    """Network calls for this batch so far."""
    done: bool = False
    """True after the last step."""


class Denoise(Protocol):
    """Estimate x_0 and eps from x_t (B, *shape) at a level."""

    def __call__(self, x: Tensor, level: Level) -> Estimate: ...


class Noise(Protocol):
    """Return the standard normal noise of a sampling step, shaped as x: the same for the same step."""

    def __call__(self, step: int, /) -> Tensor: ...
