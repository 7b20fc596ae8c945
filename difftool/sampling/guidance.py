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
"""An item flatter than this is not scaled up to a standard deviation."""


class Guided:
    """Classifier-free guidance (Ho & Salimans, 2022): u + w (c - u). With w = 1 use the conditional alone.

    With rescale phi > 0, x_0 is brought back towards the standard deviation of the conditional's, item by item (Lin et
    al., 2024, section 3.4): phi x_0 std(c)/std(x_0) + (1 - phi) x_0.
    """

    def __init__(self, conditional: Denoise, unconditional: Denoise, scale: float, *, rescale: float = 0.0) -> None:
        self.conditional, self.unconditional, self.scale, self.rescale = conditional, unconditional, scale, rescale

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        c, u = self.conditional(x, level), self.unconditional(x, level)
        x_0 = torch.lerp(u.x_0, c.x_0, self.scale)
        if self.rescale > 0.0:
            factor = item_std(c.x_0) / item_std(x_0).clamp_min(SMALLEST_STD)
            return c.with_x_0(torch.lerp(x_0, factor * x_0, self.rescale), x, level)
        return replace(c, x_0=x_0, eps=torch.lerp(u.eps, c.eps, self.scale))


def item_std(x: Tensor) -> Tensor:
    """Standard deviation of each item: (B, *shape) -> (B, 1, ...)."""
    return x.std(dim=tuple(range(1, x.ndim)), correction=0, keepdim=True)


class Within:
    """Asks one denoiser where sigma/alpha lies in an interval and another elsewhere.

    Guidance pays at the middle levels and harms at the ends (Kynkäänniemi et al., 2024): there the conditional alone is
    asked, and the unconditional network costs nothing.
    """

    def __init__(self, interval: tuple[float, float], inside: Denoise, outside: Denoise) -> None:
        self.interval, self.inside, self.outside = interval, inside, outside

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        low, high = self.interval
        # not divided: alpha may be 0
        denoise = self.inside if low * level.alpha <= level.sigma <= high * level.alpha else self.outside
        return denoise(x, level)
