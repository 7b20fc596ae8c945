"""Pictures of samples: grids and tables of images at their true pixels, points over the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from difftool.figures import style
from difftool.figures.style import MARGIN, Floats, Pixels

Limits = tuple[tuple[float, float], tuple[float, float]]
"""((left, right), (bottom, top)) of the axes, in data units."""

IMAGE_WIDTH, IMAGE_HEIGHT = 900, 1000
"""Small images are enlarged until their picture is about this many pixels large."""
LARGEST = 8000
"""Pixels a picture may be wide or high before its images are reduced."""
NARROWEST = 360
"""Pixels a figure is wide at least, so that a title can be read."""
PANEL = 620
"""Pixels of the longer side of a plot of points."""
CELL = 168
"""Pixels of a panel in a table of points."""


@dataclass(frozen=True)
class Board:
    """A figure with a title, and room for a picture whose upper left corner is at (left, top) pixels."""

    figure: Figure
    title: Text
    titles: Sequence[str]
    """All the titles, as they fit."""
    left: int
    top: int


@style.look()
def board(
    width: int,
    height: int,
    *,
    titles: Sequence[str],
    cell: tuple[int, int] = (0, 0),
    gap: int = 0,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> Board:
    """Room for a picture of width x height pixels, with labels above its columns and left of its rows.

    There is room for the longest of the titles; the first one is shown.
    """
    row_lines = [style.wrap(row, 170, style.LABEL) for row in rows]
    widest = max((style.text_width(line, style.LABEL) for lines in row_lines for line in lines), default=0)
    left = MARGIN + (math.ceil(widest) + 8 if rows else 0)
    total = max(left + width + MARGIN, NARROWEST)
    left += (total - left - width - MARGIN) // 2

    fitted, size = style.fit(titles, total - 2 * MARGIN)
    title_height = math.ceil(max(title.count("\n") + 1 if title else 0 for title in fitted) * style.line_height(size))
    column_lines = [style.wrap(column, cell[0] + gap - 4, style.LABEL) for column in columns]
    label_height = max(
        (math.ceil(len(lines) * style.line_height(style.LABEL)) + 5 for lines in column_lines), default=0
    )
    top = MARGIN + (title_height + 6 if title_height else 0) + label_height

    figure = style.canvas(total, top + height + MARGIN)
    title = style.write(figure, total / 2, MARGIN - 2, fitted[0], size=size, ha="center", va="top")
    for k, text in enumerate(column_lines):
        x = left + k * (cell[0] + gap) + cell[0] / 2
        style.write(figure, x, top - 4, "\n".join(text), size=style.LABEL, ha="center", va="bottom")
    for r, text in enumerate(row_lines):
        y = top + r * (cell[1] + gap) + cell[1] / 2
        style.write(figure, left - 8, y, "\n".join(text), size=style.LABEL, ha="right", va="center")
    return Board(figure, title, fitted, left, top)


def image_grid(images: Pixels, *, title: str, columns: int | None = None) -> Figure:
    """uint8 images (N, H, W, C), C in 1, 3, 4, each pixel a square of whole pixels; alpha is shown over white."""
    mosaic = Mosaic.of(len(images), *images.shape[1:3], columns=columns)
    place = board(mosaic.width, mosaic.height, titles=[mosaic.caption(title)])
    show_pixels(place, mosaic.compose(images))
    return place.figure


def image_table(cells: Pixels, *, columns: Sequence[str], rows: Sequence[str] = (), title: str) -> Figure:
    """uint8 images (R, K, H, W, C) in R rows and K labelled columns, at their true pixels."""
    count, across, height, width = cells.shape[:4]
    words = [word for column in columns for word in column.split()]
    label = math.ceil(max((style.text_width(word, style.LABEL) for word in words), default=0)) + 4
    if columns and all(style.text_width(column, style.LABEL) < 64 for column in columns):
        label = math.ceil(max(style.text_width(column, style.LABEL) for column in columns)) + 4  # on one line
    mosaic = Mosaic.of(count * across, height, width, columns=across, narrowest=label)
    place = board(
        mosaic.width,
        mosaic.height,
        titles=[mosaic.caption(title)],
        cell=mosaic.cell,
        gap=mosaic.gap,
        columns=columns,
        rows=rows,
    )
    show_pixels(place, mosaic.compose(cells.reshape(-1, *cells.shape[2:])))
    return place.figure


@dataclass(frozen=True)
class Mosaic:
    """How N images of one size become one picture."""

    rows: int
    columns: int
    image: tuple[int, int]
    """(height, width) of an image."""
    factor: int
    """Every pixel is drawn factor x factor times."""
    divisor: int
    """Above 1 where only images reduced by this much make a picture of a bearable size."""
    gap: int

    @classmethod
    def of(
        cls,
        count: int,
        height: int,
        width: int,
        *,
        columns: int | None = None,
        narrowest: int = 0,
        size: tuple[int, int] = (IMAGE_WIDTH, IMAGE_HEIGHT),
    ) -> Mosaic:
        """The layout of `count` images, enlarged to about `size` (width, height) pixels in all.

        `narrowest` is the least width of a cell that leaves room for its label.
        """
        if count == 0:
            raise ValueError("there are no images to draw")
        across = min(columns or _columns(count, height, width), count)
        down = math.ceil(count / across)
        factor = max(1, min(size[0] // (across * width), size[1] // (down * height)))
        if narrowest:
            limit = max(1, min(LARGEST // (across * (width + 6)), LARGEST // (down * (height + 6))))
            factor = max(factor, min(math.ceil(narrowest / width), limit))
        mosaic = cls(down, across, (height, width), factor, 1, min(6, max(2, factor // 3)))
        for divisor in range(2, max(height, width) + 1):
            if max(mosaic.width, mosaic.height) <= LARGEST:
                break
            mosaic = cls(down, across, (height, width), 1, divisor, 1)
        return mosaic

    @property
    def cell(self) -> tuple[int, int]:
        """(width, height) in pixels of one image as drawn."""
        height, width = (math.ceil(side / self.divisor) * self.factor for side in self.image)
        return width, height

    @property
    def width(self) -> int:
        return self.columns * (self.cell[0] + self.gap) - self.gap

    @property
    def height(self) -> int:
        return self.rows * (self.cell[1] + self.gap) - self.gap

    def caption(self, title: str) -> str:
        """The title, which says so where images are drawn reduced."""
        return title if self.divisor == 1 else f"{title} (drawn at 1/{self.divisor} of their size)".strip()

    def compose(self, images: Pixels) -> Pixels:
        """uint8 (N, H, W, C) -> RGB (height, width, 3), gaps and empty places white."""
        picture = np.full((self.height, self.width, 3), 255, dtype=np.uint8)
        width, height = self.cell
        for i, image in enumerate(images):
            colour = over_white(image)
            if self.divisor > 1:
                colour = np.asarray(Image.fromarray(colour).reduce(self.divisor))
            row, column = divmod(i, self.columns)
            y, x = row * (height + self.gap), column * (width + self.gap)
            picture[y : y + height, x : x + width] = colour.repeat(self.factor, 0).repeat(self.factor, 1)
        return picture


def over_white(image: Pixels) -> Pixels:
    """(H, W, C) of 1, 3 or 4 channels -> RGB (H, W, 3), transparent pixels over white."""
    channels = image.shape[-1]
    if channels == 1:
        return image.repeat(3, axis=-1)
    if channels == 3:
        return image
    if channels != 4:
        raise ValueError(f"an image has 1, 3 or 4 channels, not {channels}")
    alpha = image[..., 3:].astype(np.float32) / 255
    return np.rint(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


@style.look()
def show_pixels(place: Board, picture: Pixels) -> AxesImage:
    """Put an RGB picture on the board, pixel on pixel."""
    height, width = picture.shape[:2]
    axes = place.figure.add_axes(style.rectangle(place.figure, place.left, place.top, width, height))
    axes.set_axis_off()
    return axes.imshow(picture, interpolation="none", aspect="auto", resample=False)


def _columns(count: int, height: int, width: int) -> int:
    """Columns of a picture that is about square or somewhat wide, with few empty places."""
    square = math.sqrt(count * height / width)
    candidates = range(max(1, math.ceil(square)), max(1, math.ceil(1.5 * square)) + 1)
    return min(candidates, key=lambda columns: (-count % columns, columns))


def scatter(
    points: Floats,
    *,
    reference: Floats | None = None,
    title: str,
    limits: Limits | None = None,
    joined: bool = False,
) -> Figure:
    """Points (N, D) over the data: a histogram for D = 1, the first two coordinates for D > 2.

    `joined` points are a path, drawn with a thin line through them.
    """
    dimensions = points.shape[1]
    if dimensions == 1:
        return _histogram(points[:, 0], None if reference is None else reference[:, 0], title=title)
    drawn = points[:, :2]
    limits = limits or point_limits(drawn, reference)
    notes = _notes(drawn, limits, dimensions)
    panel = scatter_panel(limits, titles=[title], reference=reference, notes=notes, joined=joined)
    panel.move(drawn)
    return panel.board.figure


@dataclass(frozen=True)
class ScatterPanel:
    """Axes in which points lie over the data."""

    board: Board
    axes: Axes
    samples: PathCollection
    path: Line2D
    """Through the samples in their order, where they are joined; else empty."""
    joined: bool

    def move(self, points: Floats) -> None:
        """Show these points (N, 2)."""
        size, alpha = _weight(len(points))
        if self.joined:
            self.path.set_data(points[:, 0], points[:, 1])
        self.samples.set_offsets(points)
        self.samples.set_sizes([size])
        self.samples.set_alpha(alpha)
        self.samples.set_rasterized(len(points) > 5000)


@style.look()
def scatter_panel(
    limits: Limits,
    *,
    titles: Sequence[str],
    reference: Floats | None = None,
    notes: Sequence[str] = (),
    joined: bool = False,
) -> ScatterPanel:
    """An empty plot of points: equal axes, the data in grey, a legend and notes below."""
    (x0, x1), (y0, y1) = limits = _framed(limits)
    longest = max(x1 - x0, y1 - y0)
    width, height = round(PANEL * (x1 - x0) / longest), round(PANEL * (y1 - y0) / longest)
    left, below = 44, 30 + 24 + 17 * len(notes)
    place = board(width + left + 6, height + below, titles=titles)
    figure = place.figure
    axes = figure.add_axes(style.rectangle(figure, place.left + left, place.top, width, height))
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.set_aspect("equal", adjustable="box")
    if reference is not None:
        _cloud(axes, reference, style.DATA)
    (path,) = axes.plot([], [], color=style.SAMPLES, lw=1.0, alpha=0.6, zorder=2.5)
    samples = axes.scatter([], [], color=style.SAMPLES, lw=0, zorder=3)
    entries = {"samples": style.SAMPLES} if reference is None else {"data": style.DATA, "samples": style.SAMPLES}
    handles = [Line2D([], [], marker="o", ls="", ms=5, color=colour) for colour in entries.values()]
    centre, total = place.left + left + width / 2, style.size_of(figure)
    anchor = (centre / total[0], 1 - (place.top + height + 26) / total[1])
    style.plain_legend(
        figure,
        handles,
        list(entries),
        loc="upper center",
        bbox_to_anchor=anchor,
        ncols=2,
        borderpad=0,
        handletextpad=0.1,
    )
    for i, note in enumerate(notes):
        y = place.top + height + 48 + 17 * i
        style.write(figure, centre, y, note, size=style.SMALL, color=style.FAINT, ha="center", va="top")
    return ScatterPanel(place, axes, samples, path, joined)


@style.look()
def scatter_table(
    cells: Sequence[Sequence[Floats]],
    *,
    columns: Sequence[str],
    rows: Sequence[str] = (),
    title: str,
    reference: Floats | None = None,
    joined: bool = False,
) -> Figure:
    """R x K panels of points (N, 2) that share one scale, the data in grey under each."""
    everything = np.concatenate([points[:, :2] for row in cells for points in row])
    limits = _framed(point_limits(everything, reference))
    (x0, x1), (y0, y1) = limits
    longest, gap = max(x1 - x0, y1 - y0), 8
    width, height = round(CELL * (x1 - x0) / longest), round(CELL * (y1 - y0) / longest)
    down, across = len(cells), max(len(row) for row in cells)
    place = board(
        across * (width + gap) - gap,
        down * (height + gap) - gap,
        titles=[title],
        cell=(width, height),
        gap=gap,
        columns=columns,
        rows=rows,
    )
    for r, row in enumerate(cells):
        for k, points in enumerate(row):
            x, y = place.left + k * (width + gap), place.top + r * (height + gap)
            axes = place.figure.add_axes(style.rectangle(place.figure, x, y, width, height))
            style.quiet(axes)
            axes.set(xlim=limits[0], ylim=limits[1])
            axes.set_aspect("equal", adjustable="box")
            layers = (
                [(points, style.SAMPLES)] if reference is None else [(reference, style.DATA), (points, style.SAMPLES)]
            )
            for layer, colour in layers:
                _cloud(axes, layer, colour, panel=CELL)
            if joined:
                axes.plot(points[:, 0], points[:, 1], color=style.SAMPLES, lw=0.8, alpha=0.6)
    return place.figure


def point_limits(points: Floats, reference: Floats | None = None) -> Limits:
    """Axes that show the data, and the samples unless they lie far out (the first two coordinates)."""
    x, y = (_span(points[:, i], None if reference is None else reference[:, i]) for i in (0, 1))
    return x, y


def _span(values: Floats, reference: Floats | None) -> tuple[float, float]:
    values = values[np.isfinite(values)].astype(np.float64)
    if reference is not None and len(reference):
        low, high = float(reference.min()), float(reference.max())
        room = high - low
    elif len(values):
        low, high = (float(q) for q in np.quantile(values, (0.01, 0.99)))
        room = high - low
    else:
        low, high, room = -1.0, 1.0, 0.0
    if len(values):  # towards the samples, by a third of the data's extent at most
        near = np.quantile(values, (0.01, 0.99)) if reference is not None else (values.min(), values.max())
        low, high = min(low, max(float(near[0]), low - room / 3)), max(high, min(float(near[1]), high + room / 3))
    pad = 0.05 * (high - low) or max(1.0, abs(low)) / 2
    return low - pad, high + pad


def _framed(limits: Limits) -> Limits:
    """The same limits, the shorter side widened to at least half of the longer."""
    sides = [high - low for low, high in limits]
    wanted = [max(side, max(sides) / 2) for side in sides]
    x, y = (
        (low - (want - side) / 2, high + (want - side) / 2)
        for (low, high), side, want in zip(limits, sides, wanted, strict=True)
    )
    return x, y


def _notes(points: Floats, limits: Limits, dimensions: int) -> list[str]:
    notes = [f"coordinates 0 and 1 of {dimensions}"] if dimensions > 2 else []
    (x0, x1), (y0, y1) = _framed(limits)
    x, y = points.T
    outside = len(points) - int(((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)).sum())
    if outside:
        notes.append(f"{outside:,} of {len(points):,} samples lie outside")
    return notes


def _cloud(axes: Axes, points: Floats, colour: str, *, panel: int = PANEL) -> None:
    size, alpha = _weight(len(points), panel=panel)
    if colour == style.DATA:  # seen between the samples
        size, alpha = 1.5 * size, max(alpha, 0.6)
    axes.scatter(points[:, 0], points[:, 1], s=size, alpha=alpha, color=colour, lw=0, rasterized=len(points) > 2000)


def _weight(count: int, *, panel: int = PANEL) -> tuple[float, float]:
    """(area in square points, opacity) of a point among so many, in a panel of so many pixels."""
    size = min(26.0, max(1.2, 22000 / max(count, 1))) * (panel / PANEL) ** 0.8
    return max(size, 0.8), min(0.9, max(0.2, 30 / max(count, 1) ** 0.5))


@style.look()
def _histogram(values: Floats, reference: Floats | None, *, title: str) -> Figure:
    low, high = _span(values, reference)
    finite = values[np.isfinite(values)]
    outside = len(values) - int(((finite >= low) & (finite <= high)).sum())
    note = f"{outside:,} of {len(values):,} samples lie outside" if outside else ""
    width, height, left = PANEL, 360, 52
    place = board(width + left, height + (72 if note else 54), titles=[title])
    figure = place.figure
    axes = figure.add_axes(style.rectangle(figure, place.left + left, place.top, width, height))
    bins = min(80, max(8, round(math.sqrt(len(values)))))
    if reference is not None:
        axes.hist(reference, bins=bins, range=(low, high), density=True, color="#d0d0d0", label="data")
    # Heights are shares of all the samples, also of those that lie outside.
    weights = np.full(len(finite), bins / (high - low) / max(len(values), 1))
    axes.hist(
        finite,
        bins=bins,
        range=(low, high),
        weights=weights,
        histtype="step",
        color=style.SAMPLES,
        lw=1.6,
        label="samples",
    )
    axes.set(xlim=(low, high), ylabel="density")
    handles, names = axes.get_legend_handles_labels()
    centre, total = place.left + left + width / 2, style.size_of(figure)
    anchor = (centre / total[0], 1 - (place.top + height + 26) / total[1])
    style.plain_legend(figure, handles, names, loc="upper center", bbox_to_anchor=anchor, ncols=2, borderpad=0)
    if note:
        style.write(
            figure, centre, place.top + height + 52, note, size=style.SMALL, color=style.FAINT, ha="center", va="top"
        )
    return figure
