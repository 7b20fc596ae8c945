"""Denoisers: network + schedule + prediction type make `denoise(x, level) -> Estimate`.

A sampler sees nothing else. Guidance and clipping are denoisers around a denoiser, so no sampler knows of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from difftool.components import Prediction
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


@dataclass(frozen=True)
class Estimate:
    """What a denoiser knows at a level; x_t = alpha x_0 + sigma eps holds. May grow fields."""

    x_0: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Step:
    """One step of a walk: the state reached, the level it is at, and the estimate that led there."""

    x: Tensor
    level: Level
    estimate: Estimate


class Denoise(Protocol):
    """x (B, *shape) at a level -> Estimate."""

    def __call__(self, x: Tensor, level: Level) -> Estimate: ...


class Denoiser:
    """A trained network as a denoiser. Made fresh for each walk; counts its network calls."""

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        prediction: Prediction,
        *,
        cond: Tensor | None = None,
        autocast: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> None:
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.cond, self.autocast = cond, autocast
        self.calls = 0

    @torch.no_grad()
    def __call__(self, x: Tensor, level: Level) -> Estimate:
        self.calls += 1
        t = torch.full((len(x),), self.schedule.time(level.t), dtype=torch.float32, device=x.device)
        net_input = x if level.norm == 1.0 else x / level.norm
        if self.autocast is None:
            output = self.network(net_input, t, self.cond)
        else:
            with self.autocast():
                output = self.network(net_input, t, self.cond)
        x_0, eps = self.prediction.estimate(output.to(x.dtype), x, level.alpha, level.sigma)
        return Estimate(x_0, eps)


class Guided:
    """Classifier-free guidance (Ho & Salimans, 2022): u + w (c - u). With w = 1 use the conditional alone."""

    def __init__(self, conditional: Denoise, unconditional: Denoise, scale: float) -> None:
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        c, u = self.conditional(x, level), self.unconditional(x, level)
        return Estimate(torch.lerp(u.x_0, c.x_0, self.scale), torch.lerp(u.eps, c.eps, self.scale))


class Clipped:
    """Clips x_0 to the data's bounds and derives eps again, so that both describe the same x_t."""

    def __init__(self, denoise: Denoise, bounds: tuple[float, float]) -> None:
        self.denoise, self.bounds = denoise, bounds

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        x_0 = self.denoise(x, level).x_0.clamp(*self.bounds)
        return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)
