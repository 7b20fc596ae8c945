"""Plots of points over the data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch

from difftool.figures import layout, style
from difftool.figures.films import Still
from difftool.figures.layout import Board
from difftool.figures.style import Floats, Pixels

Limits = tuple[tuple[float, float], tuple[float, float]]
"""((left, right), (bottom, top)) of the axes, in data units."""

PANEL = 620
"""The longer side of a plot."""
BINS = 48
"""The bins of histograms in tables and films."""


@style.look()
def scatter(
    points: Floats, *, reference: Floats | None = None, title: str, joined: bool = False, noun: str = "samples"
) -> Figure:
    """Draw points (N, D) over the data: a histogram for D = 1, the first two coordinates for D > 2.

    A thin line runs through points that are `joined` to a path.
    """
    dimensions = points.shape[1]
    if dimensions == 1:
        return _histogram(points[:, 0], None if reference is None else reference[:, 0], title=title, noun=noun)
    points = points[:, :2]
    limits = point_limits(points, reference)
    notes = [f"coordinates 0 and 1 of {dimensions}"] if dimensions > 2 else []
    low, high = np.transpose(limits)
    notes += outside(int(((points >= low) & (points <= high)).all(axis=1).sum()), len(points))
    panel = _Panel(limits, titles=[title], reference=reference, notes=notes, joined=joined, noun=noun)
    panel.move(points)
    return panel.board.figure


def scatter_frames(
    states: Iterable[Floats],
    titles: Sequence[str],
    limits: Limits,
    reference: Floats | None = None,
    *,
    joined: bool = False,
    noun: str = "samples",
) -> Iterator[Pixels]:
    """Yield a frame for each state, which is a set of points (N, 2), over the data."""
    panel = _Panel(limits, titles=titles, reference=reference, joined=joined, noun=noun)
    title = panel.board.title
    still = Still(panel.board.figure, [panel.path, panel.samples, title])
    for state, text in zip(states, panel.board.titles, strict=True):
        panel.move(state)
        title.set_text(text)
        yield still.frame()


def histogram_frames(
    states: Iterable[Floats], titles: Sequence[str], limits: Limits, reference: Floats | None = None
) -> Iterator[Pixels]:
    """Yield a frame for each state, which is a set of numbers (N, 1): their histogram over that of the data."""
    board, samples = _histogram_panel(titles, limits, reference)
    still = Still(board.figure, [samples, board.title])
    for state, text in zip(states, board.titles, strict=True):
        samples.set_data(density(state, limits[0]))
        board.title.set_text(text)
        yield still.frame()


@style.look()
def _histogram_panel(titles: Sequence[str], limits: Limits, reference: Floats | None) -> tuple[Board, StepPatch]:
    board, axes = _axes(PANEL, 360, 52, titles=titles, notes=())
    axes.set(xlim=limits[0], ylim=limits[1], ylabel="density")
    if reference is not None:
        bars(axes, reference, limits[0], style.DATA).set_label("data")
    samples = bars(axes, np.zeros((0, 1)), limits[0], style.SAMPLES)
    samples.set_label("samples")
    _caption(board, axes, *axes.get_legend_handles_labels(), ())
    return board, samples


class _Panel:
    """Axes of equal scale in which points lie over the data, with a legend and notes below."""

    @style.look()
    def __init__(
        self,
        limits: Limits,
        *,
        titles: Sequence[str],
        reference: Floats | None,
        notes: Sequence[str] = (),
        joined: bool,
        noun: str,
    ) -> None:
        self.joined = joined
        width, height = sides(limits, PANEL)
        self.board, axes = _axes(width, height, 44, titles=titles, notes=notes)
        axes.set(xlim=limits[0], ylim=limits[1])
        axes.set_aspect("equal", adjustable="box")
        if reference is not None:
            cloud(axes, reference, style.DATA)
        (self.path,) = axes.plot([], [], color=style.SAMPLES, lw=1.0, alpha=0.6, zorder=2.5)
        self.samples = axes.scatter([], [], color=style.SAMPLES, lw=0, zorder=3)
        entries = {noun: style.SAMPLES} if reference is None else {"data": style.DATA, noun: style.SAMPLES}
        handles = [Line2D([], [], marker="o", ls="", ms=5, color=colour) for colour in entries.values()]
        _caption(self.board, axes, handles, list(entries), notes, handletextpad=0.1)

    def move(self, points: Floats) -> None:
        """Show these points (N, 2)."""
        size, alpha = weight(len(points))
        if self.joined:
            self.path.set_data(points[:, 0], points[:, 1])
        self.samples.set_offsets(points)
        self.samples.set_sizes([size])
        self.samples.set_alpha(alpha)
        self.samples.set_rasterized(len(points) > 5000)


def _histogram(values: Floats, reference: Floats | None, *, title: str, noun: str) -> Figure:
    low, high = _span(values, reference)
    inside = values[(values >= low) & (values <= high)]
    notes = outside(len(inside), len(values))
    board, axes = _axes(PANEL, 360, 52, titles=[title], notes=notes)
    bins = min(80, max(8, round(math.sqrt(len(values)))))
    if reference is not None:
        axes.hist(reference, bins=bins, range=(low, high), density=True, color="#d0d0d0", label="data")
    # heights are shares of all samples, also of those that lie outside
    weights = np.full(len(inside), bins / (high - low) / max(len(values), 1))
    look: dict[str, Any] = {"histtype": "step", "color": style.SAMPLES, "lw": 1.6, "label": noun}
    axes.hist(inside, bins=bins, range=(low, high), weights=weights, **look)
    axes.set(xlim=(low, high), ylabel="density")
    _caption(board, axes, *axes.get_legend_handles_labels(), notes)
    return board.figure


def bars(axes: Axes, values: Floats, span: tuple[float, float], colour: str) -> StepPatch:
    """Draw a histogram of numbers (N, 1): filled for the data, an outline for samples."""
    look: dict[str, Any] = {"fill": True, "color": "#d0d0d0"} if colour == style.DATA else {"color": colour, "lw": 1.4}
    return axes.stairs(density(values, span), np.linspace(*span, BINS + 1), **look)


def density(values: Floats, span: tuple[float, float]) -> Floats:
    """Return the density of numbers (N, 1) in `BINS` bins of a span, as shares of all of them."""
    counts, _ = np.histogram(values, bins=BINS, range=span)
    heights: Floats = counts * (BINS / (span[1] - span[0]) / max(len(values), 1))
    return heights


def _axes(width: int, height: int, left: int, *, titles: Sequence[str], notes: Sequence[str]) -> tuple[Board, Axes]:
    """Return axes with room for tick labels on the left, and for a legend and notes below."""
    board = Board.of(width + left + 6, height + 54 + 17 * len(notes), titles=titles)
    return board, board.axes(left, 0, width, height)


def _caption(
    board: Board, axes: Axes, handles: Sequence[Any], names: Sequence[str], notes: Sequence[str], **look: Any
) -> None:
    """Write a legend and notes below the axes."""
    total, box = style.size_of(board.figure), axes.get_position()
    x, bottom = (box.x0 + box.x1) / 2 * total[0], (1 - box.y0) * total[1]
    anchor = (x / total[0], 1 - (bottom + 26) / total[1])
    layout.add_legend(board.figure, handles, names, loc="upper center", bbox_to_anchor=anchor, ncols=2, **look)
    for i, note in enumerate(notes):
        y = bottom + 48 + 17 * i
        style.write(board.figure, x, y, note, size=style.SMALL, color=style.FAINT, ha="center", va="top")


def point_limits(points: Floats, reference: Floats | None = None) -> Limits:
    """Return axes that show the first two coordinates of the data, and of the samples unless they lie far out.

    The shorter side is at least half as long as the longer one. Of single numbers, the second axis is their density.
    """
    if points.shape[1] == 1:
        span = _span(points[:, 0], None if reference is None else reference[:, 0])
        return span, (0.0, 1.6 * float(max(density(points if reference is None else reference, span).max(), 1e-9)))
    spans = [_span(points[:, i], None if reference is None else reference[:, i]) for i in (0, 1)]
    shortest = max(high - low for low, high in spans) / 2
    missing = [max(0.0, shortest - (high - low)) / 2 for low, high in spans]
    x, y = ((low - more, high + more) for (low, high), more in zip(spans, missing, strict=True))
    return x, y


def _span(values: Floats, reference: Floats | None) -> tuple[float, float]:
    """Return the ends of an axis: those of the data, widened towards the samples by a third at most."""
    values = values[np.isfinite(values)].astype(np.float64)
    low, high = -1.0, 1.0
    most = np.quantile(values, (0.01, 0.99)) if len(values) else (low, high)
    if reference is not None and len(reference):
        low, high = float(reference.min()), float(reference.max())
    elif len(values):
        (low, high), most = map(float, most), (values.min(), values.max())
    if len(values):
        room = (high - low) / 3
        low, high = min(low, max(float(most[0]), low - room)), max(high, min(float(most[1]), high + room))
    pad = 0.05 * (high - low) or max(1.0, abs(low)) / 2
    return low - pad, high + pad


def sides(limits: Limits, longest: int) -> tuple[int, int]:
    """Return (width, height) of axes of equal scale."""
    sides = [high - low for low, high in limits]
    width, height = (round(longest * side / max(sides)) for side in sides)
    return width, height


def outside(inside: int, count: int) -> list[str]:
    """Return a note on the samples beyond the axes, if there are any."""
    return [f"{count - inside:,} of {count:,} samples lie outside"] if inside < count else []


def cloud(axes: Axes, points: Floats, colour: str, *, panel: int = PANEL) -> PathCollection:
    """Draw points (N, 2), those of the data so that they are seen between samples."""
    size, alpha = weight(len(points), panel=panel)
    if colour == style.DATA:
        size, alpha = 1.5 * size, max(alpha, 0.6)
    look: dict[str, Any] = {"s": size, "alpha": alpha, "color": colour, "lw": 0, "rasterized": len(points) > 2000}
    return axes.scatter(points[:, 0], points[:, 1], **look)


def weight(count: int, *, panel: int = PANEL) -> tuple[float, float]:
    """Return (area in square points, opacity) of each of `count` points in a panel of this many pixels."""
    size = min(26.0, max(1.2, 22000 / max(count, 1))) * (panel / PANEL) ** 0.8
    return max(size, 0.8), min(0.9, max(0.2, 30 / max(count, 1) ** 0.5))
