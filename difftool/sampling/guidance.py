"""Guidance: denoisers around denoisers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.diffusion.estimate import Denoise, Estimate

if TYPE_CHECKING:
    from difftool.diffusion.schedule import Level

SMALLEST_STD = 1e-8
"""The standard deviation of an item counts as at least this much, so that a flat one is not divided by 0."""


def classifier_free_guidance(
    conditional: Denoise, unconditional: Denoise, scale: float, *, rescale: float = 0.0
) -> Denoise:
    """Return a denoiser guided as u + w (c - u), w the scale (Ho & Salimans, 2022). With w = 1 use c alone.

    With rescale phi > 0, x_0 is brought back towards the standard deviation of the conditional's, item by item (Lin et
    al., 2024, section 3.4): phi x_0 std(c)/std(x_0) + (1 - phi) x_0.
    """

    def guided(x: Tensor, level: Level) -> Estimate:
        c, u = conditional(x, level), unconditional(x, level)
        x_0 = torch.lerp(u.x_0, c.x_0, scale)  # u + w (c - u), exact for w = 0 and w = 1
        if rescale > 0.0:
            factor = item_std(c.x_0) / item_std(x_0).clamp_min(SMALLEST_STD)
            return c.with_x_0(torch.lerp(x_0, factor * x_0, rescale), x, level)
        return replace(c, x_0=x_0, eps=torch.lerp(u.eps, c.eps, scale))

    return guided


def item_std(x: Tensor) -> Tensor:
    """Return the standard deviation of each item: (B, *shape) -> (B, 1, ...)."""
    return x.std(dim=tuple(range(1, x.ndim)), correction=0, keepdim=True)


def within_interval(interval: tuple[float, float], inside: Denoise, outside: Denoise) -> Denoise:
    """Return a denoiser that is `inside` where sigma/alpha lies in the interval, and `outside` elsewhere.

    Guidance helps at the middle levels and does harm at the ends (Kynkäänniemi et al., 2024). There the conditional
    denoiser alone is called, and the unconditional network costs nothing.
    """
    low, high = interval

    def denoise(x: Tensor, level: Level) -> Estimate:
        # not divided, since alpha may be 0
        return (inside if low * level.alpha <= level.sigma <= high * level.alpha else outside)(x, level)

    return denoise
