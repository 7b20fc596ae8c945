"""Samples to look at: one picture of them all, a film of their walk, a folder of images."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from difftool import Writer, option

if TYPE_CHECKING:
    from pathlib import Path

    from difftool import Drawing, DrawingSpec

FEWEST_DIGITS = 4


class Picture(Writer, name="picture"):
    """A grid of images, or a scatter of points over the data; with --strip, states of their walk."""

    suffixes = (".png", ".jpg", ".jpeg", ".svg", ".pdf")

    def check(self, spec: DrawingSpec) -> None:
        spec.check_drawable()
        if spec.strip is not None:
            check_walk(spec)

    def states(self, spec: DrawingSpec) -> Collection[int]:
        return () if spec.strip is None else spec.evenly(spec.strip)

    def write(self, drawing: Drawing, path: Path) -> None:
        drawing.save_figure(path)


class Film(Writer, name="film"):
    """The walk from noise to samples, as an endless GIF."""

    suffixes = (".gif",)

    frames: int = option(default=60, ge=2, le=1000, help="states shown at most; longer walks are thinned evenly")
    fps: float = option(default=20.0, gt=0, le=50, help="frames a second")
    hold: float = option(default=1.5, ge=0, le=60, help="seconds that the last frame stays")

    def check(self, spec: DrawingSpec) -> None:
        spec.check_drawable()
        check_walk(spec)

    def states(self, spec: DrawingSpec) -> Collection[int]:
        return spec.evenly(self.frames)

    def write(self, drawing: Drawing, path: Path) -> None:
        drawing.save_film(path, most=self.frames, fps=self.fps, hold=self.hold)


class Folder(Writer, name="folder"):
    """A folder of PNG images at their true pixels: 0000.png, 0001.png, ..."""

    suffixes = ("",)

    def check(self, spec: DrawingSpec) -> None:
        spec.check_drawable()
        if len(spec.shape) != 3:
            size = "x".join(map(str, spec.shape))
            raise ValueError(f"a folder holds images, but a sample has shape {size}")

    def write(self, drawing: Drawing, path: Path) -> None:
        from PIL import Image

        images = drawing.pixels()
        digits = max(FEWEST_DIGITS, len(str(len(images) - 1)))
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path / f"{i:0{digits}d}.png")


def check_walk(spec: DrawingSpec) -> None:
    """Raise `ValueError` for walks that no plane can show."""
    if spec.shape == (1,):
        raise ValueError("a walk of single numbers cannot be drawn")
