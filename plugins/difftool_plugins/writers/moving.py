"""Samples as MP4 films, and as sound."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from typing import TYPE_CHECKING

from difftool import Writer, option

if TYPE_CHECKING:
    from pathlib import Path

    from difftool import Drawing, DrawingSpec


ENCODER = "mbtree=0"
"""Settings of x264. With its macroblock trees, the same frames often gave other bytes, even on one thread."""


class MP4(Writer, name="mp4"):
    """An MP4 film (H.264) of the trajectory, or of samples that are films. Needs the extra `film`."""

    suffixes = (".mp4",)

    frames: int = option(default=60, ge=2, le=1000, help="largest number of states of a trajectory")
    fps: float = option(default=20.0, gt=0, le=240, help="frames per second of a trajectory")
    hold: float = option(default=1.5, ge=0, le=60, help="seconds for which the last frame of a trajectory is shown")
    crf: int = option(default=16, ge=0, le=51, help="loss of quality: 0 for none, 51 for the most")

    def check(self, spec: DrawingSpec) -> None:
        from importlib.util import find_spec

        spec.check_drawable()
        if find_spec("av") is None:
            raise ValueError("needs av, which is not installed; pip install 'difftool[film]'")

    def states(self, spec: DrawingSpec) -> Collection[int]:
        return () if spec.form == "film" else spec.evenly(self.frames)

    def write(self, drawing: Drawing, path: Path) -> None:
        import av
        import numpy as np

        fps = drawing.rate if drawing.form == "film" and drawing.rate else self.fps
        again = 0 if drawing.form == "film" else round(self.hold * fps)
        with av.open(str(path), "w", format="mp4") as container:
            stream = None
            for frame in drawing.frames(self.frames):
                # H.264 halves the resolution of colours, so both sides have to be even
                even = np.pad(frame, [*((0, side % 2) for side in frame.shape[:2]), (0, 0)], constant_values=255)
                if stream is None:
                    rate = Fraction(fps).limit_denominator(1001)
                    settings = {"crf": str(self.crf), "x264-params": ENCODER}
                    stream = container.add_stream("libx264", rate=rate, options=settings)
                    stream.width, stream.height, stream.pix_fmt = even.shape[1], even.shape[0], "yuv420p"
                    stream.codec_context.thread_count = 1  # so that the same film gives the same bytes anywhere
                picture = av.VideoFrame.from_ndarray(even, format="rgb24")
                container.mux(stream.encode(picture))
            if stream is not None:
                for _ in range(again):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
                container.mux(stream.encode())


class WAV(Writer, name="wav"):
    """One file of 16 bits with all sounds, one after the other."""

    suffixes = (".wav",)

    gap: float = option(default=0.25, ge=0, le=60, help="seconds of silence between two sounds")

    def check(self, spec: DrawingSpec) -> None:
        if spec.form != "sound":
            raise ValueError(f"WAV files hold sound, but the samples have the form {spec.form!r}")

    def write(self, drawing: Drawing, path: Path) -> None:
        import numpy as np

        from difftool_plugins.sounds.wav import write_wav

        rate = int(drawing.rate or 1)
        sounds = drawing.numbers()
        padded = np.pad(sounds, [(0, 0), (0, 0), (0, round(self.gap * rate))])
        whole = padded.transpose(1, 0, 2).reshape(sounds.shape[1], -1)
        write_wav(path, whole[:, : whole.shape[1] - round(self.gap * rate)], rate, comment=drawing.record)
