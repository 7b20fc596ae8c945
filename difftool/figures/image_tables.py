"""Tables of images at their true pixels, with labelled rows and columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from difftool.figures import style
from difftool.figures.films import Still
from difftool.figures.groups import Groups
from difftool.figures.images import FILM, PICTURE, Mosaic, show, side_by_side
from difftool.figures.layout import Board, columns_of_page, text_height, text_width
from difftool.figures.style import Pixels

SHORT, WIDEST = 64, 160
"""Pixels of labels that stay on one line, even if cells must be wider for them, and of the widest word of others."""
LARGE = 48
"""The shorter side in pixels from which images of a block need not be larger."""


@style.look()
def image_table(
    cells: Pixels, *, columns: Sequence[str], rows: Sequence[str] = (), title: str, across: int | None = None
) -> Figure:
    """Draw images (R, K, H, W, C) in R rows and K labelled columns, at their true pixels.

    Many columns are wrapped, `across` of them side by side.
    """
    cells = side_by_side(cells)
    down, count, height, width = cells.shape[:4]
    names = Groups(_numbered(down, count), rows, columns, ("", ""))
    sheet = Sheet.of(names, (height, width), titles=[title], across=across)
    return sheet.show(cells.reshape(-1, *cells.shape[2:]))


@style.look()
def image_groups(images: Pixels, groups: Groups, *, title: str, columns: int | None = None) -> Figure:
    """Draw images (N, H, W, C) in the cells of named rows and columns.

    `columns` is the number of images side by side in a cell, or of cells with one image.
    """
    images = side_by_side(images)
    return Sheet.of(groups, images.shape[1:3], titles=[title], across=columns).show(images)


def group_frames(
    states: Iterable[Pixels], groups: Groups, titles: Sequence[str], columns: int | None = None
) -> Iterator[Pixels]:
    """Yield a frame for each state, which is a batch of images (N, H, W, C), laid out as `image_groups` does."""
    states = map(side_by_side, states)
    first = next(states, None)
    if first is None:
        return
    sheet = Sheet.of(groups, first.shape[1:3], titles=titles, across=columns, size=FILM)
    board = sheet.board
    still = Still(board.figure, [board.title])
    for state, title in zip(itertools.chain([first], states), board.titles, strict=True):
        board.title.set_text(title)
        frame = still.frame()
        for band in range(sheet.bands):
            y = board.top + band * board.pitch
            picture = sheet.compose(state, band)
            frame[y : y + picture.shape[0], board.left : board.left + picture.shape[1]] = picture
        yield frame


@dataclass(frozen=True)
class Sheet:
    """A table of images with labels: each cell is a block of images, and many columns are wrapped into bands."""

    board: Board
    mosaic: Mosaic
    """The layout of a band."""
    cells: Sequence[Sequence[Sequence[int]]]
    """The numbers of the images in each column of each row."""

    @classmethod
    def of(
        cls,
        groups: Groups,
        image: tuple[int, int],
        *,
        titles: Sequence[str],
        across: int | None = None,
        size: tuple[int, int] = PICTURE,
    ) -> Sheet:
        """Return the layout of images (height, width) in groups, enlarged to about `size` (width, height) in all.

        `across` is the number of images side by side in a cell, or of cells with one image.
        """
        down, count = len(groups.cells), len(groups.cells[0])
        block = _block(groups.largest, down, count, image, across, size)
        height, width = block[0] * image[0], block[1] * image[1]
        label = max((text_width(column, style.LABEL) for column in groups.columns), default=0)
        if label >= SHORT:
            label = max(text_width(word, style.LABEL) for column in groups.columns for word in column.split() or [""])
        narrowest = math.ceil(min(label, WIDEST)) + 4
        lowest = math.ceil(text_height(1, style.LABEL)) if groups.rows else 0
        least = max(1, math.ceil(narrowest / width), math.ceil(lowest / height))  # at least so enlarged
        single = across if groups.largest == 1 else None
        columns = columns_of_page(count, least * width + 6, down * (least * height + 6), single)
        if groups.captions and across is None:
            columns = min(columns, _block(count, 1, 1, image, None, size)[1])
        bands = math.ceil(count / columns)
        mosaic = Mosaic.of(
            down * columns * block[0] * block[1],
            *image,
            columns=columns * block[1],
            narrowest=math.ceil(max(narrowest / block[1], lowest / height * image[1])),
            size=(size[0], size[1] // bands),
            block=block,
        )
        board = Board.of(
            mosaic.width,
            mosaic.height,
            titles=[mosaic.caption(title) for title in titles],
            cell=mosaic.block_size,
            gap=mosaic.gap + mosaic.space,
            columns=groups.columns,
            rows=groups.rows,
            names=groups.axes,
        )
        return cls(board, mosaic, groups.cells)

    @property
    def bands(self) -> int:
        return math.ceil(len(self.cells[0]) / (self.mosaic.columns // self.mosaic.block[1]))

    def show(self, images: Pixels) -> Figure:
        """Draw images (N, H, W, C) of 1, 3 or 4 channels."""
        for band in range(self.bands):
            show(self.board, self.compose(images, band), band)
        return self.board.figure

    def compose(self, images: Pixels, band: int) -> Pixels:
        """Return the RGB picture (height, width, 3) of a band. Empty places are white."""
        down, across = self.mosaic.block
        columns = self.mosaic.columns // across
        places = np.full((len(self.cells), down, columns, across), -1)
        for r, row in enumerate(self.cells):
            for k, cell in enumerate(row[band * columns : (band + 1) * columns]):
                for i, number in enumerate(cell):
                    places[r, i // across, k, i % across] = number
        with_blank = np.concatenate([images, np.full_like(images[:1], 255)])  # which -1 stands for
        return self.mosaic.compose(with_blank[places.reshape(-1)])


def _block(
    count: int, rows: int, columns: int, image: tuple[int, int], across: int | None, size: tuple[int, int]
) -> tuple[int, int]:
    """Return (images down, images across) of a cell of so many images: as wide as its images stay large enough."""
    if count == 1:
        return 1, 1
    if across is not None:
        across = min(across, count)
        return math.ceil(count / across), across
    candidates = [(down, math.ceil(count / down)) for down in range(1, count + 1)]

    def factor(block: tuple[int, int]) -> float:
        return min(size[0] / (columns * block[1] * image[1]), size[1] / (rows * block[0] * image[0]))

    large = (block for block in candidates if int(factor(block)) * min(image) >= LARGE)
    return next(large, max(candidates, key=factor))


def _numbered(rows: int, columns: int) -> list[list[list[int]]]:
    return [[[row * columns + column] for column in range(columns)] for row in range(rows)]
