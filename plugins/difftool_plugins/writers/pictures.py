"""Samples as pictures: one figure, a film of the trajectory, or a folder of images."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from difftool import Writer, option

if TYPE_CHECKING:
    from pathlib import Path

    from difftool import Drawing, DrawingSpec

MIN_DIGITS = 4


class Picture(Writer, name="picture"):
    """A picture of the samples by their form; with --strip, of states of the trajectory.

    Images and films become a grid, points a scatter plot, and series, sound and clouds a panel each.
    """

    suffixes = (".png", ".jpg", ".jpeg", ".svg", ".pdf")

    def check(self, spec: DrawingSpec) -> None:
        spec.check_drawable()

    def states(self, spec: DrawingSpec) -> Collection[int]:
        return () if spec.strip is None else spec.evenly(spec.strip)

    def write(self, drawing: Drawing, path: Path) -> None:
        drawing.save_figure(path)


class Film(Writer, name="film"):
    """An endless film of the trajectory from noise to samples, or of samples that are films themselves.

    GIF has 256 colours; WebP and APNG (animated PNG) have all of them.
    """

    suffixes = (".gif", ".webp", ".apng")

    frames: int = option(
        default=60,
        ge=2,
        le=1000,
        help="largest number of states; of longer trajectories, evenly spaced states are shown",
    )
    fps: float = option(default=20.0, gt=0, le=50, help="frames per second of a trajectory")
    hold: float = option(default=1.5, ge=0, le=60, help="seconds for which the last frame of a trajectory is shown")

    def check(self, spec: DrawingSpec) -> None:
        spec.check_drawable()

    def states(self, spec: DrawingSpec) -> Collection[int]:
        return () if spec.form == "film" else spec.evenly(self.frames)

    def write(self, drawing: Drawing, path: Path) -> None:
        drawing.save_film(path, most=self.frames, fps=self.fps, hold=self.hold)


class Folder(Writer, name="folder"):
    """A folder of single files: images in their own size as 0000.png, sounds as 0000.wav, films as 0000.webp, ..."""

    suffixes = ("",)

    def check(self, spec: DrawingSpec) -> None:
        size = "x".join(map(str, spec.shape))
        if spec.form not in ("image", "film", "sound"):
            raise ValueError(
                f"a folder holds images, films or sounds, but the samples have shape {size} and form {spec.form!r}"
            )
        if spec.form != "sound" and spec.shape[0] not in (1, 3, 4):
            raise ValueError(f"only 1, 3 or 4 channels make PNG and WebP files, but a sample has shape {size}")

    def write(self, drawing: Drawing, path: Path) -> None:
        if drawing.form == "sound":
            from difftool_plugins.sounds.wav import write_wav

            for i, sound in enumerate(drawing.numbers()):
                name = self._name(drawing, i, ".wav")
                write_wav(path / name, sound, int(drawing.rate or 1), comment=drawing.record_of(i))
            return
        suffix = ".webp" if drawing.form == "film" else ".png"

        def save(i: int) -> None:
            drawing.save_sample(i, path / self._name(drawing, i, suffix))

        with ThreadPoolExecutor() as pool:  # compression leaves Python to the other threads
            for _ in pool.map(save, range(len(drawing.x))):
                pass

    def _name(self, drawing: Drawing, i: int, suffix: str) -> str:
        digits = max(MIN_DIGITS, len(str(len(drawing.x) - 1)))
        return f"{i:0{digits}d}{suffix}"
