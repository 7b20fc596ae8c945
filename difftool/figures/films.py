"""Films as GIF, and figures of which only a few parts change from frame to frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from PIL import Image

from difftool.figures import style
from difftool.figures.style import Pixels


def film(frames: Iterable[Pixels], path: Path, *, fps: float = 20, hold: float = 1.5) -> None:
    """Write RGB frames (H, W, 3) as an endless GIF whose last frame stays for `hold` seconds.

    GIF counts in hundredths of a second, and viewers slow down films of more than 50 frames a second. Raises
    `ValueError` without frames, or if they differ in size.
    """
    pictures = [indexed(frame) for frame in frames]
    if not pictures:
        raise ValueError("a film needs at least one frame")
    first, *others = pictures
    for picture in others:
        if picture.size != first.size:
            raise ValueError(f"a frame of {picture.width} x {picture.height} in a film of {first.size}")
    pause = max(20, round(100 / fps) * 10)
    durations = [*[pause] * len(others), max(pause, round(hold * 100) * 10)]
    # disposal 1: each frame is drawn over the one before, so only what changes is stored
    first.save(path, "GIF", save_all=True, append_images=others, duration=durations, loop=0, disposal=1, optimize=False)


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
