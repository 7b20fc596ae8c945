"""Convolutions over any number of axes: of series (B, C, L), images (B, C, H, W) and films (B, C, T, H, W)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Factors = Sequence[int]
"""The factor by which each axis is halved: 2, or 1 for an axis that keeps its length."""


class Standardized:
    """A convolution whose weights have mean 0 and variance 1 for each output channel (Qiao et al., 2019).

    `eps` is added to the variance: above 0, the result depends on the scale of the weights.
    """

    eps = 0.0

    def forward(self: Any, x: Tensor) -> Tensor:
        axes = tuple(range(1, self.weight.ndim))
        variance, mean = torch.var_mean(self.weight, dim=axes, keepdim=True, correction=0)
        weight = (self.weight - mean) * torch.rsqrt((variance + self.eps).clamp_min(1e-12))  # weights may be constant
        output: Tensor = self._conv_forward(x, weight, self.bias)
        return output


class StandardizedConv1d(Standardized, nn.Conv1d):
    """A standardised convolution of series."""


class StandardizedConv2d(Standardized, nn.Conv2d):
    """A standardised convolution of images."""


class StandardizedConv3d(Standardized, nn.Conv3d):
    """A standardised convolution of films."""


CONVOLUTIONS: Mapping[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""The convolution for each number of axes behind the channels."""
STANDARDIZED: Mapping[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: StandardizedConv1d,
    2: StandardizedConv2d,
    3: StandardizedConv3d,
}


class Unshuffle(nn.Module):
    """Move blocks of neighbours into channels (B, C x prod(factors), ...), as `nn.PixelUnshuffle` does for images."""

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.factors = tuple(factors)

    def forward(self, x: Tensor) -> Tensor:
        axes = len(self.factors)
        blocks = [(n // factor, factor) for n, factor in zip(x.shape[2:], self.factors, strict=True)]
        x = x.reshape(*x.shape[:2], *(n for block in blocks for n in block))
        x = x.permute(0, 1, *range(3, 3 + 2 * axes, 2), *range(2, 2 + 2 * axes, 2))
        return x.reshape(x.shape[0], -1, *(n for n, _ in blocks))


class Shuffle(nn.Module):
    """Move channels into blocks of neighbours: the inverse of `Unshuffle`, as `nn.PixelShuffle` does for images."""

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.factors = tuple(factors)

    def forward(self, x: Tensor) -> Tensor:
        axes = len(self.factors)
        size = [n * factor for n, factor in zip(x.shape[2:], self.factors, strict=True)]
        x = x.reshape(x.shape[0], -1, *self.factors, *x.shape[2:])
        x = x.permute(0, 1, *(axis for i in range(axes) for axis in (2 + axes + i, 2 + i)))
        return x.reshape(x.shape[0], x.shape[1], *size)


def make_shuffles(factors: Factors) -> tuple[nn.Module, nn.Module]:
    """Return modules that move blocks of these sides into channels, and back."""
    if set(factors) == {1}:
        return nn.Identity(), nn.Identity()
    if len(factors) == 2 and factors[0] == factors[1]:  # torch's own keep channels-last
        return nn.PixelUnshuffle(factors[0]), nn.PixelShuffle(factors[0])
    return Unshuffle(factors), Shuffle(factors)


def make_downsample(kind: str, fine: int, coarse: int, factors: Factors) -> nn.Module:
    """Return a module that divides each axis of (B, fine, ...) by its factor, to (B, coarse, ...)."""
    conv: Any = CONVOLUTIONS[len(factors)]
    if kind == "stride":
        module: nn.Module = conv(fine, coarse, 3, stride=tuple(factors), padding=1)
        return module
    return nn.Sequential(make_shuffles(factors)[0], conv(math.prod(factors) * fine, coarse, 1))


def make_upsample(coarse: int, fine: int, factors: Factors) -> nn.Module:
    """Return a module that multiplies each axis of (B, coarse, ...) by its factor, to (B, fine, ...)."""
    conv = CONVOLUTIONS[len(factors)]
    grow = nn.Upsample(scale_factor=tuple(map(float, factors)), mode="nearest")
    return nn.Sequential(grow, conv(coarse, fine, 3, padding=1))
