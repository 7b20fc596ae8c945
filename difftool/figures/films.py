"""Films of a walk from noise to samples, as GIF."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from PIL import Image

from difftool.figures import style
from difftool.figures.samples import Limits, Mosaic, board, scatter_panel
from difftool.figures.style import Floats, Pixels

IMAGES = (360, 400)
"""Pixels (width, height) to which images of a film are enlarged: a film is stored frame by frame."""


def film(frames: Iterable[Pixels], path: Path, *, fps: float = 20, hold: float = 1.5) -> None:
    """Write RGB frames (H, W, 3) as an endless GIF whose last frame stays for `hold` seconds.

    Frames are drawn from the iterable one by one. GIF counts in hundredths of a second, and viewers slow down what is
    faster than 50 frames a second.
    """
    pause = max(20, round(100 / fps) * 10)
    pictures = _paced(frames, pause, max(pause, round(hold * 100) * 10))
    first = next(pictures, None)
    if first is None:
        raise ValueError("a film needs at least one frame")
    # disposal 1: each frame is drawn over the one before, so only what changes is stored.
    first.save(path, format="GIF", save_all=True, append_images=pictures, loop=0, disposal=1, optimize=False)


def _paced(frames: Iterable[Pixels], pause: int, hold: int) -> Iterator[Image.Image]:
    """Indexed pictures that carry their duration in milliseconds; the last one is recognised by looking ahead."""
    waiting: Image.Image | None = None
    for frame in frames:
        if waiting is not None:
            if waiting.size != (frame.shape[1], frame.shape[0]):
                raise ValueError(f"a frame of {frame.shape[1]} x {frame.shape[0]} in a film of {waiting.size}")
            waiting.info["duration"] = pause
            yield waiting
        waiting = indexed(frame)
    if waiting is not None:
        waiting.info["duration"] = hold
        yield waiting


def indexed(frame: Pixels) -> Image.Image:
    """RGB -> 256 colours of the frame's own: exact for grey pictures, else the nearest of an adapted palette."""
    picture = Image.fromarray(frame)
    red, green, blue = frame[..., 0], frame[..., 1], frame[..., 2]
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return picture.convert("L")
    if picture.getcolors(256) is not None:
        return picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few = Image.fromarray(frame[::2, ::2].copy()).quantize(256, method=Image.Quantize.MEDIANCUT)
    result = picture.quantize(palette=few, dither=Image.Dither.NONE)  # dithering would flicker
    # So would the background, which is in the corner, unless its colour is exact.
    corner = int(np.asarray(result)[0, 0])
    colours = result.getpalette() or []
    colours[3 * corner : 3 * corner + 3] = frame[0, 0].tolist()
    result.putpalette(colours)
    return result


def image_frames(states: Iterable[Pixels], titles: Iterable[str], columns: int | None = None) -> Iterator[Pixels]:
    """A frame for each state, uint8 images (N, H, W, C), laid out as `image_grid` does."""
    titles = list(titles)
    states = iter(states)
    first = next(states, None)
    if first is None:
        return
    mosaic = Mosaic.of(len(first), *first.shape[1:3], columns=columns, size=IMAGES)
    place = board(mosaic.width, mosaic.height, titles=[mosaic.caption(title) for title in titles])
    x, y = slice(place.left, place.left + mosaic.width), slice(place.top, place.top + mosaic.height)
    still = _Still(place.figure, [place.title])
    for state, title in zip(itertools.chain([first], states), place.titles, strict=True):
        place.title.set_text(title)
        frame = still.frame()
        frame[y, x] = mosaic.compose(state)
        yield frame


def scatter_frames(
    states: Iterable[Floats],
    titles: Iterable[str],
    limits: Limits,
    reference: Floats | None = None,
    *,
    joined: bool = False,
) -> Iterator[Pixels]:
    """A frame for each state, points (N, 2), over the data. What stands still is drawn once."""
    titles = list(titles)
    if not titles:
        return
    panel = scatter_panel(limits, titles=titles, reference=reference, joined=joined)
    title = panel.board.title
    still = _Still(panel.board.figure, [panel.path, panel.samples, title])
    for state, text in zip(states, panel.board.titles, strict=True):
        panel.move(state)
        title.set_text(text)
        yield still.frame()


class _Still:
    """A figure of which only a few artists change: all else is drawn once."""

    def __init__(self, figure: Figure, moving: Sequence[Artist]) -> None:
        self.moving = moving
        for artist in moving:
            artist.set_animated(True)
        self.agg = style.agg_of(figure)
        style.render(figure)
        self.background = self.agg.copy_from_bbox(figure.bbox)

    @style.look()
    def frame(self) -> Pixels:
        self.agg.restore_region(self.background)
        for artist in self.moving:
            artist.draw(self.agg.get_renderer())
        return style.pixels_of(self.agg)
