"""A scattering transform with Morlet wavelets over any number of axes.

S_0 x = x * phi,  S_1 x = |x * psi_1| * phi,  S_2 x = ||x * psi_1| * psi_2| * phi,  where psi_2 is larger than psi_1.

The filters are a tight frame on a torus: with A the sum of all their |.|^2 over w and -w, each is divided by sqrt(A).
Then |x|^2 = |x * phi|^2 + sum over psi of |x * psi|^2 for real x, so the transform loses nothing but what later orders
would hold, and it is a contraction: |S x - S y| <= |x - y| (Mallat, 2012, proposition 2.5).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FREQUENCY, WIDTH, SLANT = 0.75 * math.pi, 0.8, 4.0
"""The frequency and the deviation of the smallest wavelet, as Bruna and Mallat (2013) have them. Across its direction
it is SLANT / directions times as wide in frequency."""


@dataclass(frozen=True)
class Bank:
    """The filters of a transform in the frequencies of a torus, which is an item with a reflected margin."""

    low: Tensor
    """(*sides), the average phi."""
    wavelets: Tensor
    """(J, L, *sides): L directions of each of J scales, the smallest first."""
    margins: Sequence[int]

    @classmethod
    def of(cls, sides: Sequence[int], scales: int, directions: int, device: torch.device) -> Bank:
        """Return the filters for items of these sides."""
        margins = [min(2 ** (scales - 1), side - 1) for side in sides]
        low, wavelets = filters(
            [side + 2 * margin for side, margin in zip(sides, margins, strict=True)], scales, directions
        )
        return cls(low.float().to(device), wavelets.float().to(device), margins)

    def means(self, x: Tensor, grid: int) -> Tensor:
        """Return the coefficients (B, C, P, *grids) of items (B, C, *sides), averaged over parts along each axis.

        Items are reflected at their ends.
        """
        margins = [margin for margin in reversed(self.margins) for _ in range(2)]
        inner: tuple[Any, ...] = (..., *(slice(margin, -margin) for margin in self.margins))
        paths = self.paths(torch.nn.functional.pad(x, margins, mode="reflect"))
        pool = {1: torch.nn.functional.adaptive_avg_pool1d, 2: torch.nn.functional.adaptive_avg_pool2d}[self.low.ndim]
        return torch.stack([pool(path[inner], grid) for path in paths], dim=2)

    def paths(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the coefficients (B, C, *sides) of x (B, C, *sides) on the torus, of orders 0, 1 and 2."""
        axes = tuple(range(-self.low.ndim, 0))

        def average(spectrum: Tensor) -> Tensor:
            averaged: Tensor = torch.fft.ifftn(spectrum * self.low, dim=axes).real
            return averaged

        def modulus(spectrum: Tensor, wavelet: Tensor) -> Tensor:
            transformed: Tensor = torch.fft.fftn(torch.fft.ifftn(spectrum * wavelet, dim=axes).abs(), dim=axes)
            return transformed

        spectrum = torch.fft.fftn(x, dim=axes)
        yield average(spectrum)
        for scale, wavelets in enumerate(self.wavelets):
            for wavelet in wavelets:
                first = modulus(spectrum, wavelet)
                yield average(first)
                for larger in self.wavelets[scale + 1 :].flatten(0, 1):
                    yield average(modulus(first, larger))


def filters(sides: Sequence[int], scales: int, directions: int) -> tuple[Tensor, Tensor]:
    """Return phi (*sides) and the wavelets (J, L, *sides) in frequency, float64: a tight frame on the torus."""
    low = torch.exp(-0.5 * (WIDTH * 2 ** (scales - 1)) ** 2 * _frequencies(sides).square().sum(0))
    angles = [math.pi * k / directions for k in range(directions)]
    wavelets = torch.stack(
        [
            torch.stack([_morlet(sides, 2.0**scale, angle, SLANT / directions) for angle in angles])
            for scale in range(scales)
        ]
    )
    axes = tuple(range(-len(sides), 0))
    mirrored = wavelets.flip(axes).roll((1,) * len(sides), axes)  # at -w
    total = low.square() + 0.5 * (wavelets.square() + mirrored.square()).sum((0, 1))
    return low / total.sqrt(), wavelets / total.sqrt()


def _frequencies(sides: Sequence[int], wrap: Sequence[int] | None = None) -> Tensor:
    """Return angular frequencies (axes, *sides), each in [-pi, pi) or shifted by whole turns."""
    wrap = wrap or [0] * len(sides)
    each = [2 * math.pi * (torch.fft.fftfreq(n, dtype=torch.float64) + k) for n, k in zip(sides, wrap, strict=True)]
    return torch.stack(torch.meshgrid(*each, indexing="ij"))


def _morlet(sides: Sequence[int], scale: float, angle: float, slant: float) -> Tensor:
    """Return a Morlet wavelet in frequency: a Gaussian around its frequency, less one around 0, so its mean is 0."""
    wave, bump = torch.zeros(2, *sides, dtype=torch.float64)
    for wrap in itertools.product((-1, 0, 1), repeat=len(sides)):
        w = _frequencies(sides, wrap) * scale
        along, across = w[0], torch.zeros_like(w[0])
        if len(sides) == 2:
            along = math.cos(angle) * w[0] + math.sin(angle) * w[1]
            across = math.cos(angle) * w[1] - math.sin(angle) * w[0]
        sideways = (across / slant).square()
        wave += torch.exp(-0.5 * WIDTH**2 * ((along - FREQUENCY).square() + sideways))
        bump += torch.exp(-0.5 * WIDTH**2 * (along.square() + sideways))
    return torch.sub(wave, bump * (wave.flatten()[0] / bump.flatten()[0]))
