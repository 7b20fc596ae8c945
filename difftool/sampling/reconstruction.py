"""Reconstructions: items noised to a level, and the network's estimates of eps and x_0 in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.data.forms import form_of
from difftool.sampling.denoiser import clipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from difftool.data.condition import Condition
    from difftool.diffusion.estimate import Estimate
    from difftool.diffusion.schedule import Level
    from difftool.sampling.source import Source

COLUMNS = ("original", "noisy", "true noise", "predicted noise", "reconstruction")
NOISE_COLUMNS = (2, 3)
"""The columns that show noise, from -3 to 3."""
FRAMES = 4
"""The largest number of frames of a film that are drawn side by side."""


@dataclass(frozen=True)
class Reconstruction:
    """Items (B, *shape) as the network sees them, noised to a level, with their estimates."""

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

    def facts(self) -> dict[str, float]:
        """Return the level and the errors as plain numbers."""
        level = {"t": int(self.level.t), "alpha": self.level.alpha, "sigma": self.level.sigma}
        return {**level, "mse": self.error, "noise_mse": self.noise_error}

    def item(self, i: int) -> Reconstruction:
        """Return the reconstruction of one item, as a batch of one."""
        row, estimate = slice(i, i + 1), self.estimate
        estimate = replace(estimate, x_0=estimate.x_0[row], eps=estimate.eps[row])
        return Reconstruction(self.level, self.x_0[row], self.eps[row], self.x_t[row], estimate)

    @property
    def cells(self) -> list[Tensor]:
        """One tensor (B, *shape) per column, the noisy items at unit variance."""
        return [self.x_0, self.x_t / self.level.norm, self.eps, self.estimate.eps, self.estimate.x_0]


@torch.no_grad()
def reconstruct(
    source: Source, x_0: Tensor, level: Level, eps: Tensor, condition: Condition | None = None
) -> Reconstruction:
    """Noise items (B, *space.shape) to a level and estimate them again, under their conditions."""
    x_t = level.alpha * x_0 + level.sigma * eps
    denoise = source.denoiser(len(x_0), condition=condition if source.space.condition else None)
    if source.space.bounds is not None:
        denoise = clipped(denoise, source.space.bounds)
    return Reconstruction(level, x_0, eps, x_t, denoise(x_t, level))


def panel(reconstructions: Sequence[Reconstruction], source: Source, *, rows: Sequence[str], title: str) -> Figure:
    """Draw a row for each reconstruction, of one item or of many points. Latents are decoded, noise is not."""
    from difftool.figures.image_tables import image_table
    from difftool.figures.images import side_by_side_frames
    from difftool.figures.panels import VIEWS, panel_table
    from difftool.figures.point_tables import scatter_table

    latent = source.latents is not None
    shown = [column for column in range(len(COLUMNS)) if not (latent and column in NOISE_COLUMNS)]
    columns = [COLUMNS[column] for column in shown]
    table = [[source.decode(one.cells[column]).cpu() for column in shown] for one in reconstructions]
    form = form_of(source.data.form, source.data.shape)
    if form in VIEWS:
        samples = torch.stack([torch.cat(row) for row in table]).numpy()
        view = VIEWS[form](samples.reshape(-1, *source.data.shape), source.data.rate)
        return panel_table(view, samples, columns=columns, rows=rows, title=title)
    if source.data.is_points:
        return scatter_table([[cell.numpy() for cell in row] for row in table], columns=columns, rows=rows, title=title)
    images = []
    for row in table:
        cells = [cell / 3 if column in NOISE_COLUMNS else cell for column, cell in zip(shown, row, strict=True)]
        images.append(source.data.scaling.to_pixels(torch.cat(cells)))
    pixels = torch.stack(images).movedim(2, -1).numpy()
    if form == "film":
        pixels = side_by_side_frames(pixels, FRAMES)
    return image_table(pixels, columns=columns, rows=rows, title=title)
