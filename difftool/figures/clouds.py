"""Panels of clouds of points in two or three dimensions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from difftool.figures import style
from difftool.figures.layout import Board
from difftool.figures.points import weight
from difftool.figures.style import Floats
from difftool.figures.waves import span_of

AZIMUTH, ELEVATION = math.radians(-60), math.radians(24)
"""The direction from which a cloud of three dimensions is seen."""
FAR_COLOUR = "#b9d6ea"
"""The colour of the farthest points of a cloud; the nearest have that of samples."""


@dataclass(frozen=True)
class Clouds:
    """Clouds (D, N): a scatter plot of the first two coordinates, or a view of the first three from one side."""

    dimensions: int
    points: int
    centre: Floats
    """The middle of the shown coordinates."""
    radius: float
    """Half the longest side of the box around all clouds."""

    proportion = 1.0

    @classmethod
    def of(cls, samples: Floats, _rate: float | None) -> Clouds:
        dimensions, points = samples.shape[1:]
        spans = np.array([span_of(samples[:, i]) for i in range(min(dimensions, 3))])
        return cls(dimensions, points, spans.mean(axis=1), float((spans[:, 1] - spans[:, 0]).max()) / 2)

    @property
    def note(self) -> str:
        """The number of points, the side of the box, and the coordinates if not all are drawn."""
        note = f"{self.points:,} points in a box of side {2 * self.radius:.3g}"
        return f"{note}; coordinates 0, 1 and 2 of {self.dimensions}" if self.dimensions > 3 else note

    def panel(self, board: Board, place: tuple[int, int, int, int], sample: Floats) -> Cloud:
        return Cloud(board.axes(*place), self, sample, place[2])

    def shown(self, sample: Floats) -> tuple[Floats, Floats]:
        """Return the places (N, 2) of points in the panel, from -1 to 1, and how near they are (N,), the far first."""
        points = (sample[:3].T - self.centre) / self.radius
        if points.shape[1] < 3:
            flat = np.concatenate([points, np.zeros((len(points), 2))], axis=1)[:, :2]
            return flat, np.ones(len(flat))
        places, near = project(points)
        order = np.argsort(near)
        return places[order], near[order]


def project(points: Floats) -> tuple[Floats, Floats]:
    """Return points (N, 3) of the cube from -1 to 1 as places (N, 2) and how near they are (N,), in parallel view."""
    x, y, z = points.T
    across = -math.sin(AZIMUTH) * x + math.cos(AZIMUTH) * y
    towards = math.cos(AZIMUTH) * x + math.sin(AZIMUTH) * y
    up = math.cos(ELEVATION) * z - math.sin(ELEVATION) * towards
    near = math.sin(ELEVATION) * z + math.cos(ELEVATION) * towards
    return np.stack([across, up], axis=1) / 1.5, near


class Cloud:
    """A cloud in its panel."""

    def __init__(self, axes: Axes, view: Clouds, sample: Floats, width: int) -> None:
        self.view = view
        style.quiet(axes)
        axes.set(xlim=(-1, 1), ylim=(-1, 1))
        if view.dimensions > 2:
            _box(axes)
        size, alpha = weight(view.points, panel=width)
        many = view.points > 2000
        scatter = axes.scatter([], [], s=2 * size, alpha=max(alpha, 0.6), lw=0, rasterized=many, zorder=3)
        self.artists: list[Any] = [scatter]
        self.move(sample)

    def move(self, sample: Floats) -> None:
        """Show another cloud."""
        places, near = self.view.shown(sample)
        (scatter,) = self.artists
        scatter.set_offsets(places)
        share = np.clip((near[:, None] + 1) / 2, 0, 1)
        scatter.set_facecolor(share * np.array(to_rgb(style.SAMPLES)) + (1 - share) * np.array(to_rgb(FAR_COLOUR)))


def _box(axes: Axes) -> None:
    """Draw the edges of the cube that do not lie before the cloud."""
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    places, near = project(corners)
    nearest = int(near.argmax())
    for i, j in itertools.combinations(range(8), 2):
        if np.abs(corners[i] - corners[j]).sum() == 2 and nearest not in (i, j):
            axes.plot(*places[[i, j]].T, color="#d4d4d4", lw=0.8, zorder=1)
