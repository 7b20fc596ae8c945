"""Films as files, and figures of which only a few parts change from frame to frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from PIL import Image

from difftool.figures import style
from difftool.figures.metadata import of_picture
from difftool.figures.style import Pixels


def film(frames: Iterable[Pixels], path: Path, *, fps: float = 20, hold: float = 1.5, text: str = "") -> None:
    """Write RGB frames (H, W, 3) as an endless film whose last frame stays for `hold` seconds, with a text in ASCII.

    The path's suffix is .gif, .webp or .apng. GIF counts in hundredths of a second, and viewers slow down films of more
    than 50 frames a second. Raises `ValueError` without frames, or if they differ in size.
    """
    suffix = path.suffix.lower()
    make: Callable[[Pixels], Image.Image] = indexed if suffix == ".gif" else Image.fromarray
    pictures = [make(frame) for frame in frames]
    if not pictures:
        raise ValueError("a film needs at least one frame")
    first, *others = pictures
    for picture in others:
        if picture.size != first.size:
            raise ValueError(f"a frame of {picture.width} x {picture.height} in a film of {first.size}")
    pause, last = 1000 / fps, 1000 * hold
    if suffix == ".gif":
        pause, last = max(20, round(pause / 10) * 10), round(last / 10) * 10
    pause = max(1, round(pause))
    durations = [*[pause] * len(others), max(pause, round(last))]
    about = of_picture(path, text)
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, **FORMATS[suffix], **about)


FORMATS: dict[str, dict[str, Any]] = {
    # disposal 1: each frame is drawn over the one before, so only what changes is stored
    ".gif": {"format": "GIF", "disposal": 1, "optimize": False},
    ".webp": {"format": "WEBP", "lossless": True, "quality": 40, "method": 2},
    ".apng": {"format": "PNG"},
}
"""The arguments with which Pillow writes films, by suffix."""


def indexed(frame: Pixels) -> Image.Image:
    """Return an RGB frame in 256 colours: exact if it is grey or has no more, else the nearest of its own palette."""
    picture = Image.fromarray(frame)
    if (frame == frame[..., :1]).all():
        return picture.convert("L")
    if picture.getcolors(256) is not None:
        return picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = Image.fromarray(frame[::2, ::2].copy()).quantize(256, method=Image.Quantize.MEDIANCUT)
    result = picture.quantize(palette=palette, dither=Image.Dither.NONE)  # dithering would flicker
    # so would the background, which is in the corner, unless its colour is exact
    corner = int(np.asarray(result)[0, 0])
    colours = result.getpalette() or []
    colours[3 * corner : 3 * corner + 3] = frame[0, 0].tolist()
    result.putpalette(colours)
    return result


class Still:
    """A figure of which only a few artists change. All else is drawn once."""

    def __init__(self, figure: Figure, moving: Sequence[Artist]) -> None:
        self.moving = moving
        for artist in moving:
            artist.set_animated(True)
        self.agg = style.agg_of(figure)
        style.render(figure)
        self.background = self.agg.copy_from_bbox(figure.bbox)

    @style.look()
    def frame(self) -> Pixels:
        """Draw the artists as they are now, and return the picture (H, W, 3)."""
        self.agg.restore_region(self.background)
        for artist in self.moving:
            artist.draw(self.agg.get_renderer())
        return style.pixels_of(self.agg)
