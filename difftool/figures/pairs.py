"""Samples beside the training items that are nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from difftool.figures import panels, style
from difftool.figures.content import Content
from difftool.figures.image_tables import image_table
from difftool.figures.images import side_by_side_frames

ROWS = ("sample", "nearest in training")
ACROSS, FILMS_ACROSS, FRAMES = 6, 3, 4
"""The largest numbers of images and of films side by side, and of the frames of each film."""


@dataclass(frozen=True, kw_only=True)
class Pairs(Content):
    """Samples `x`, and the training item that is nearest to each. May grow fields."""

    items: Tensor
    """(N, *shape) in model units."""
    captions: Sequence[str]
    """N texts of one line, such as a distance and the name of the item."""

    def figure(self) -> Figure | None:
        """Draw each sample above its item, the first pair first; None for points and arrays, which are not drawn."""
        if self.has_pixels:
            cells = np.stack([self.pixels(), self.pixels(self.items)])
            across = ACROSS
            if self.form == "film":
                cells, across = side_by_side_frames(cells, FRAMES), FILMS_ACROSS
            return image_table(cells, columns=self.captions, rows=ROWS, title=self.title, across=across)
        if self.form is None or self.form not in panels.VIEWS:
            return None
        numbers = np.stack([self.numbers(), self.numbers(self.items)])
        view = panels.VIEWS[self.form](numbers.reshape(-1, *numbers.shape[2:]), self.rate)
        return panels.panel_table(view, numbers, columns=self.captions, rows=ROWS, title=self.title)

    def save(self, path: Path) -> bool:
        """Write the figure in the format of the path's suffix, and return whether there is one."""
        figure = self.figure()
        if figure is not None:
            style.save(figure, path)
        return figure is not None
