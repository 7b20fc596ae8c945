"""Adaptive projected guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from difftool import Guidance, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Estimate, GuidanceSpec, Level, Predictions

SMALLEST_SQUARE = 1e-24
"""A squared norm counts as at least this much, so that an estimate of zeros is not divided by 0."""


class AdaptiveProjected(Guidance, name="apg"):
    """Adaptive projected guidance (Sadat, Hilliges & Weber, 2025, algorithm 1): high scales without oversaturation.

    It guides by c + (w - 1) d, where d is the difference c - u of the x_0 estimates with and without the condition, on
    which momentum, a largest norm and a projection act. d loses most of its part along c, which only adds contrast.
    """

    scale: float = option(default=2.0, ge=0, le=1000, help="scale w: c + (w - 1) d; 1 is off and costs one call")
    parallel: float = option(default=0.0, ge=0, le=1, help="share eta that is kept of d's part along c; 1: all")
    norm: float | None = option(
        default=None, gt=0, le=10**6, help="largest norm r of d, over an item in model units", otherwise="no limit"
    )
    momentum: float = option(
        default=-0.5, gt=-1, lt=1, help="beta: add this much of the last d; below 0 it damps what repeats"
    )

    def words(self) -> str:
        norm = [] if self.norm is None else [f"norm {self.norm:g}"]
        changed = [f"parallel {self.parallel:g}"] if self.parallel else []
        return ", ".join([f"apg, scale {self.scale:g}", *changed, *norm, f"momentum {self.momentum:g}"])

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        conditional = predict()
        if self.scale == 1.0:
            return conditional
        unconditional = predict(hidden=True)
        last: Tensor | None = None

        def guided(x: Tensor, level: Level) -> Estimate:
            nonlocal last
            c, u = conditional(x, level), unconditional(x, level)
            d = c.x_0 - u.x_0
            if self.momentum:
                last = d = d if last is None else d + self.momentum * last
            if self.norm is not None:
                d = limited(d, self.norm)
            d = d - (1.0 - self.parallel) * projected(d, c.x_0)
            return replace(c.with_x_0(c.x_0 + (self.scale - 1.0) * d, x, level), unconditional=u)

        return guided


def limited(d: Tensor, norm: float) -> Tensor:
    """Return each item of d (B, *shape), shrunk to the norm if its own is larger."""
    return d * (norm / squares(d).sqrt()).clamp_max(1.0)


def projected(d: Tensor, onto: Tensor) -> Tensor:
    """Return the part of each item of d (B, *shape) that is parallel to the same item of another tensor."""
    axes = tuple(range(1, d.ndim))
    return (d * onto).sum(dim=axes, keepdim=True) / squares(onto) * onto


def squares(x: Tensor) -> Tensor:
    """Return the squared norm of each item, (B, *shape) -> (B, 1, ...), never 0."""
    return x.square().sum(dim=tuple(range(1, x.ndim)), keepdim=True).clamp_min(SMALLEST_SQUARE)
