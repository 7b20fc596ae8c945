"""Tables of plots of points over the data, with labelled rows and columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from difftool.figures import layout, style
from difftool.figures.films import Still
from difftool.figures.groups import Groups
from difftool.figures.layout import Board
from difftool.figures.points import Limits, bars, cloud, density, outside, point_limits, sides
from difftool.figures.style import Floats, Pixels

CELL, SMALL_CELL, FEW = 168, 116, 24
"""The longer side of a panel in a table, that of one in a table of more than a few columns, and these few."""
LARGE_CELL, PAIR = 300, 3
"""The longer side of a panel of points in groups, and the numbers of rows and columns up to which it is as long."""

Cells = Sequence[Sequence[Floats]]
"""The points (N, D) of each column of each row."""


def scatter_table(
    cells: Cells,
    *,
    columns: Sequence[str],
    rows: Sequence[str] = (),
    title: str,
    reference: Floats | None = None,
    joined: bool = False,
    across: int | None = None,
) -> Figure:
    """Draw R x K panels of points (N, D) that share one scale, the data in grey under each; histograms for D = 1.

    Many columns are wrapped, `across` of them side by side.
    """
    limits = point_limits(np.concatenate([points[:, :2] for row in cells for points in row]), reference)
    names = Groups((), rows, columns, ("", ""))
    board, _ = _table(cells, names, limits, reference, titles=[title], joined=joined, across=across)
    return board.figure


def scatter_groups(
    points: Floats,
    groups: Groups,
    *,
    title: str,
    reference: Floats | None = None,
    joined: bool = False,
    across: int | None = None,
) -> Figure:
    """Draw points (N, D) as `scatter_table` does, those of each cell in its panel."""
    limits = point_limits(points[:, :2], reference)
    shown = points[groups.numbers, :2]
    low, high = np.transpose(limits)[:, : shown.shape[1]]
    inside = int(((shown >= low) & (shown <= high)).all(axis=1).sum())
    title = "\n".join([title, *outside(inside, len(shown))])
    cells = _cells(points, groups)
    board, _ = _table(cells, groups, limits, reference, titles=[title], joined=joined, across=across)
    return board.figure


def group_frames(
    states: Iterable[Floats],
    groups: Groups,
    titles: Sequence[str],
    limits: Limits,
    reference: Floats | None = None,
    *,
    joined: bool = False,
    across: int | None = None,
) -> Iterator[Pixels]:
    """Yield a frame for each state, which is a set of points (N, D), laid out as `scatter_groups` does."""
    panels: list[_Panel] = []
    for number, points in enumerate(states):
        cells = _cells(points, groups)
        if not panels:
            board, panels = _table(cells, groups, limits, reference, titles=titles, joined=joined, across=across)
            still = Still(board.figure, [*(artist for panel in panels for artist in panel.artists), board.title])
        for panel, cell in zip(panels, (cell for row in cells for cell in row), strict=True):
            panel.move(cell)
        board.title.set_text(board.titles[number])
        yield still.frame()


def _cells(points: Floats, groups: Groups) -> list[list[Floats]]:
    return [[points[list(cell)] for cell in row] for row in groups.cells]


@style.look()
def _table(
    cells: Cells,
    groups: Groups,
    limits: Limits,
    reference: Floats | None,
    *,
    titles: Sequence[str],
    joined: bool,
    across: int | None,
) -> tuple[Board, list[_Panel]]:
    """Return the table with the names of groups, and its panels row by row."""
    down, count = len(cells), max(len(row) for row in cells)
    longest = CELL if across or count <= FEW else SMALL_CELL
    if groups.axes != ("", "") and count <= PAIR and down <= PAIR:
        longest = LARGE_CELL
    single = cells[0][0].shape[1] == 1
    width, height = cell = (longest, longest * 2 // 3) if single else sides(limits, longest)
    gap, across = 8, layout.columns_of_page(count, width + 8, down * (height + 8), across)
    board = Board.of(
        across * (width + gap) - gap,
        down * (height + gap) - gap,
        titles=titles,
        cell=cell,
        gap=gap,
        columns=groups.columns,
        rows=groups.rows,
        names=groups.axes,
    )
    panels = []
    for r, row in enumerate(cells):
        for k, points in enumerate(row):
            x, y = k % across * (width + gap), k // across * board.pitch + r * (height + gap)
            axes = board.axes(x, y, width, height)
            panels.append(_Panel(axes, points, limits, reference, joined=joined, longest=longest))
    return board, panels


class _Panel:
    """A plot of points over the data, without ticks."""

    def __init__(
        self, axes: Axes, points: Floats, limits: Limits, reference: Floats | None, *, joined: bool, longest: int
    ) -> None:
        self.span, self.single = limits[0], points.shape[1] == 1
        style.quiet(axes)
        axes.set(xlim=limits[0], ylim=limits[1])
        self.artists: list[Any]
        if self.single:
            if reference is not None:
                bars(axes, reference, limits[0], style.DATA)
            self.artists = [bars(axes, points, limits[0], style.SAMPLES)]
            return
        axes.set_aspect("equal", adjustable="box")
        if reference is not None:
            cloud(axes, reference, style.DATA, panel=longest)
        self.artists = [cloud(axes, points, style.SAMPLES, panel=longest)]
        if joined:
            self.artists += axes.plot(points[:, 0], points[:, 1], color=style.SAMPLES, lw=0.8, alpha=0.6)

    def move(self, points: Floats) -> None:
        """Show other points, as many as before."""
        samples, *path = self.artists
        if self.single:
            samples.set_data(density(points, self.span))
            return
        samples.set_offsets(points[:, :2])
        for line in path:
            line.set_data(points[:, 0], points[:, 1])
