"""What a network makes of a noised item in one step: the noise it sees, and the x_0 that leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.diffusion.estimate import Denoise
from difftool.sampling.denoiser import Clipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from difftool.data.facts import DataFacts
    from difftool.diffusion.estimate import Estimate
    from difftool.diffusion.schedule import Level
    from difftool.sampling.source import Source

COLUMNS = ("original", "noisy", "true noise", "predicted noise", "reconstruction")
NOISE_COLUMNS = (2, 3)
"""Columns of noise, shown from -3 to 3."""


@dataclass(frozen=True)
class Reconstruction:
    """Items (B, *shape) in model units, noised to a level and estimated in one step."""

    level: Level
    x_0: Tensor
    eps: Tensor
    x_t: Tensor
    estimate: Estimate

    @property
    def error(self) -> float:
        """Mean squared error of x_0 in model units."""
        return float((self.estimate.x_0 - self.x_0).square().mean())

    @property
    def noise_error(self) -> float:
        """Mean squared error of eps."""
        return float((self.estimate.eps - self.eps).square().mean())

    def item(self, i: int) -> Reconstruction:
        """Of one item alone."""
        own, estimate = slice(i, i + 1), self.estimate
        alone = replace(estimate, x_0=estimate.x_0[own], eps=estimate.eps[own])
        return Reconstruction(self.level, self.x_0[own], self.eps[own], self.x_t[own], alone)

    @property
    def cells(self) -> list[Tensor]:
        """One tensor a column, the noisy items at unit variance."""
        return [self.x_0, self.x_t / self.level.norm, self.eps, self.estimate.eps, self.estimate.x_0]


@torch.no_grad()
def reconstruct(source: Source, x_0: Tensor, level: Level, eps: Tensor, labels: Tensor | None = None) -> Reconstruction:
    """Noise items to a level and ask a source for them; labels (B,) where it knows classes."""
    x_t = level.alpha * x_0 + level.sigma * eps
    denoise: Denoise = source.denoiser(len(x_0), label=labels if source.data.classes else None)
    if source.data.bounds is not None:
        denoise = Clipped(denoise, source.data.bounds)
    return Reconstruction(level, x_0, eps, x_t, denoise(x_t, level))


def panel(made: Sequence[Reconstruction], data: DataFacts, *, rows: Sequence[str], title: str) -> Figure:
    """A row for each reconstruction: of one image, or of a cloud of points."""
    from difftool.figures.samples import image_table, scatter_table

    if not data.is_image:
        points = [[cell.cpu().numpy() for cell in one.cells] for one in made]
        return scatter_table(points, columns=COLUMNS, rows=rows, title=title)
    pixels = torch.stack([data.scaling.to_pixels(torch.cat(_shown(one)).cpu()) for one in made])
    return image_table(pixels.movedim(-3, -1).numpy(), columns=COLUMNS, rows=rows, title=title)


def _shown(one: Reconstruction) -> list[Tensor]:
    return [cell / 3 if column in NOISE_COLUMNS else cell for column, cell in enumerate(one.cells)]
