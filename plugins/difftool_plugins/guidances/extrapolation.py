"""The steps that guidances share: extrapolation from a weaker estimate, an interval of levels, and their options."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Estimate, Level

SMALLEST_STD = 1e-8
"""The standard deviation of an item counts as at least this much, so that a flat one is not divided by 0."""


def extrapolated(strong: Estimate, weak: Estimate, scale: float) -> Estimate:
    """Return weak + scale (strong - weak), which is exact for the scales 0 and 1."""
    x_0 = torch.lerp(weak.x_0, strong.x_0, scale)
    return replace(strong, x_0=x_0, eps=torch.lerp(weak.eps, strong.eps, scale))


def rescaled(guided: Estimate, conditional: Estimate, phi: float, x: Tensor, level: Level) -> Estimate:
    """Return an estimate whose x_0 has more of the conditional's deviation (Lin et al., 2024, section 3.4).

    x_0 becomes phi x_0 std(c)/std(x_0) + (1 - phi) x_0, item by item.
    """
    factor = item_std(conditional.x_0) / item_std(guided.x_0).clamp_min(SMALLEST_STD)
    return guided.with_x_0(torch.lerp(guided.x_0, factor * guided.x_0, phi), x, level)


def item_std(x: Tensor) -> Tensor:
    """Return the standard deviation of each item: (B, *shape) -> (B, 1, ...)."""
    return x.std(dim=tuple(range(1, x.ndim)), correction=0, keepdim=True)


def within(interval: tuple[float, ...] | None, inside: Denoise, outside: Denoise) -> Denoise:
    """Return a denoiser that is `inside` where sigma/alpha lies in the interval, and `outside` elsewhere.

    Guidance helps at the middle levels and does harm at the ends (Kynkäänniemi et al., 2024). `outside` alone is called
    there, so the other estimate costs nothing. Without an interval it is `inside` everywhere.
    """
    if interval is None:
        return inside
    low, high = interval

    def denoise(x: Tensor, level: Level) -> Estimate:
        # not divided, since alpha may be 0
        return (inside if low * level.alpha <= level.sigma <= high * level.alpha else outside)(x, level)

    return denoise
