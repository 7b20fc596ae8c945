"""Grids and tables of images at their true pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from difftool.diffusion.visible import spread
from difftool.figures import style
from difftool.figures.films import Still
from difftool.figures.layout import Board
from difftool.figures.style import Pixels

PICTURE = (900, 1000)
"""Pixels (width, height) to which the images of a picture are enlarged."""
FILM = (360, 400)
"""Pixels (width, height) to which the images of a film are enlarged: it is stored frame by frame."""
LARGEST = 8000
"""The largest width or height of a picture before its images are reduced."""
SPACE = 12
"""The pixels by which blocks of several images stand further apart than images."""


@style.look()
def image_grid(images: Pixels, *, title: str, columns: int | None = None) -> Figure:
    """Draw images (N, H, W, C), each pixel as a square of whole pixels, over white."""
    images = side_by_side(images)
    mosaic = Mosaic.of(len(images), *images.shape[1:3], columns=columns)
    board = Board.of(mosaic.width, mosaic.height, titles=[mosaic.caption(title)])
    return show(board, mosaic.compose(images))


def image_frames(states: Iterable[Pixels], titles: Sequence[str], columns: int | None = None) -> Iterator[Pixels]:
    """Yield a frame for each state, which is a batch of images (N, H, W, C), laid out as `image_grid` does."""
    states = map(side_by_side, states)
    first = next(states, None)
    if first is None:
        return
    mosaic = Mosaic.of(len(first), *first.shape[1:3], columns=columns, size=FILM)
    board = Board.of(mosaic.width, mosaic.height, titles=[mosaic.caption(title) for title in titles])
    x, y = slice(board.left, board.left + mosaic.width), slice(board.top, board.top + mosaic.height)
    still = Still(board.figure, [board.title])
    for state, title in zip(itertools.chain([first], states), board.titles, strict=True):
        board.title.set_text(title)
        frame = still.frame()
        frame[y, x] = mosaic.compose(state)
        yield frame


def show(board: Board, picture: Pixels, band: int = 0) -> Figure:
    """Put an RGB picture on the board, pixel on pixel."""
    axes = board.axes(0, band * board.pitch, picture.shape[1], picture.shape[0])
    axes.set_axis_off()
    axes.imshow(picture, interpolation="none", aspect="auto", resample=False)
    return board.figure


@dataclass(frozen=True)
class Mosaic:
    """The layout of N images of one size in one picture."""

    rows: int
    columns: int
    image: tuple[int, int]
    """(height, width) of an image."""
    factor: int
    """The side of the square that each pixel becomes."""
    divisor: int
    """The factor by which images are reduced if their picture would be too large, else 1."""
    gap: int
    block: tuple[int, int] = (1, 1)
    """The images (down, across) of a block, which stands further apart from others."""
    space: int = 0
    """The pixels by which blocks stand further apart."""

    @classmethod
    def of(
        cls,
        count: int,
        height: int,
        width: int,
        *,
        columns: int | None = None,
        narrowest: int = 0,
        size: tuple[int, int] = PICTURE,
        block: tuple[int, int] = (1, 1),
    ) -> Mosaic:
        """Return the layout of `count` images, enlarged to about `size` (width, height) in all.

        `narrowest` is the least width of a cell that leaves room for its label. Raises `ValueError` without images.
        """
        if count == 0:
            raise ValueError("there are no images to draw")
        across = min(columns or near_square(count, height, width), count)
        down = math.ceil(count / across)
        factor = max(1, min(size[0] // (across * width), size[1] // (down * height)))
        if narrowest:
            limit = max(1, min(LARGEST // (across * (width + 6)), LARGEST // (down * (height + 6))))
            factor = max(factor, min(math.ceil(narrowest / width), limit))
        gap = min(6, max(2, factor // 3))
        space = SPACE if 1 < block[0] < down or 1 < block[1] < across else 0
        mosaic = cls(down, across, (height, width), factor, 1, gap, block, space)
        for divisor in range(2, max(height, width) + 1):
            if max(mosaic.width, mosaic.height) <= LARGEST:
                break
            mosaic = cls(down, across, (height, width), 1, divisor, 1, block, space)
        return mosaic

    @property
    def cell(self) -> tuple[int, int]:
        """(width, height) of an image as drawn."""
        height, width = (math.ceil(side / self.divisor) * self.factor for side in self.image)
        return width, height

    @property
    def width(self) -> int:
        return self.columns * (self.cell[0] + self.gap) - self.gap + self.space * (self.columns // self.block[1] - 1)

    @property
    def height(self) -> int:
        return self.rows * (self.cell[1] + self.gap) - self.gap + self.space * (self.rows // self.block[0] - 1)

    @property
    def block_size(self) -> tuple[int, int]:
        """(width, height) of a block as drawn."""
        down, across = self.block
        return across * (self.cell[0] + self.gap) - self.gap, down * (self.cell[1] + self.gap) - self.gap

    def caption(self, title: str) -> str:
        """Return the title, which says so if images are drawn reduced."""
        return title if self.divisor == 1 else f"{title} (drawn at 1/{self.divisor} of their size)".strip()

    def compose(self, images: Pixels) -> Pixels:
        """Return the RGB picture (height, width, 3) of images (N, H, W, C). Gaps and empty places are white."""
        picture = np.full((self.height, self.width, 3), 255, dtype=np.uint8)
        width, height = self.cell
        for i, image in enumerate(images):
            colour = over_white(image)
            if self.divisor > 1:
                colour = np.asarray(Image.fromarray(colour).reduce(self.divisor))
            row, column = divmod(i, self.columns)
            y = row * (height + self.gap) + row // self.block[0] * self.space
            x = column * (width + self.gap) + column // self.block[1] * self.space
            picture[y : y + height, x : x + width] = colour.repeat(self.factor, 0).repeat(self.factor, 1)
        return picture


def side_by_side(images: Pixels) -> Pixels:
    """Return images (..., H, W, C) that have a colour: other channels than 1, 3 or 4 become gray, side by side."""
    if images.shape[-1] in (1, 3, 4):
        return images
    *before, height, width, channels = images.shape
    return images.swapaxes(-1, -2).reshape(*before, height, channels * width, 1)


def rgb(images: Pixels) -> Pixels:
    """Return images (..., H, W, C) of any channels as RGB (..., H, W, 3), transparent pixels over white."""
    if images.shape[-1] == 2:
        images = np.concatenate([images[..., :1]] * 3 + [images[..., 1:]], axis=-1)
    images = side_by_side(images)
    flat = images.reshape(-1, *images.shape[-3:])
    return np.stack([over_white(image) for image in flat]).reshape(*images.shape[:-1], 3)


def side_by_side_frames(films: Pixels, most: int) -> Pixels:
    """Return films (..., T, H, W, C) as images of at most so many frames side by side, even in time.

    A white column stands between frames. Below a film is a white row and right of it are two more columns, so that
    films stand further apart than their frames.
    """
    chosen = spread(range(films.shape[-4]), most)
    frames = side_by_side(films)[..., chosen, :, :, :]
    blank = [(0, 0)] * (frames.ndim - 3)
    frames = np.pad(frames, [*blank, (0, 1), (0, 1), (0, 0)], constant_values=255)
    frames = np.moveaxis(frames, -4, -3)  # (..., H, K, W, C)
    *before, height, count, width, channels = frames.shape
    films = frames.reshape(*before, height, count * width, channels)
    return np.pad(films, [*blank[1:], (0, 0), (0, 1), (0, 0)], constant_values=255)


def over_white(image: Pixels) -> Pixels:
    """Return an image (H, W, C) of 1, 3 or 4 channels as RGB (H, W, 3), transparent pixels over white."""
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def near_square(count: int, height: int, width: int) -> int:
    """Return the columns of a picture that is square or somewhat wider, with few empty places."""
    square = math.sqrt(count * height / width)
    candidates = range(max(1, math.ceil(square)), max(1, math.ceil(1.5 * square)) + 1)
    return min(candidates, key=lambda columns: (-count % columns, columns))
