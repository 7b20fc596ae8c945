"""Panels of series and of sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from difftool.figures import style
from difftool.figures.layout import Board
from difftool.figures.style import Floats

COLOUR_NAMES = ("blue", "vermilion", "green", "pink", "orange", "sky blue", "black")
"""The names of `style.COLOURS`."""
DECIBELS = 70
"""The range of a spectrogram below its loudest point."""
WAVE = 0.36
"""The share of the height of a panel of sound that the wave takes."""


def span_of(values: Floats) -> tuple[float, float]:
    """Return the ends of an axis for these numbers: nearly all of them, with a little room."""
    finite = values[np.isfinite(values)]
    low, high = map(float, np.quantile(finite, (0.001, 0.999))) if len(finite) else (-1.0, 1.0)
    room = 0.08 * (high - low) or max(1.0, abs(low)) / 2
    return low - room, high + room


@dataclass(frozen=True)
class Lines:
    """Series (C, L) as lines over their steps, a colour for each channel."""

    span: tuple[float, float]
    """The ends of the vertical axis."""
    channels: int
    length: int

    proportion = 0.5

    @classmethod
    def of(cls, samples: Floats, _rate: float | None) -> Lines:
        return cls(span_of(samples), *samples.shape[1:])

    @property
    def note(self) -> str:
        """The ranges of the axes, and the colours of a few channels."""
        note = f"{self.length:,} steps, from {self.span[0]:.3g} to {self.span[1]:.3g}"
        if 1 < self.channels <= len(COLOUR_NAMES):
            note += f"; channels {', '.join(COLOUR_NAMES[: self.channels])}"
        return note

    def panel(self, board: Board, place: tuple[int, int, int, int], sample: Floats) -> Wave:
        return Wave(board.axes(*place), sample, self.span)


class Wave:
    """Lines of the channels of a sample (C, L)."""

    def __init__(self, axes: Axes, sample: Floats, span: tuple[float, float]) -> None:
        style.quiet(axes)
        length = sample.shape[1]
        axes.set(xlim=(0, max(1, length - 1)), ylim=span)
        if span[0] < 0 < span[1]:
            axes.axhline(0, color=style.RULE, lw=0.7, zorder=0.5)
        thin = min(1.4, max(0.5, 300 / length))
        steps = np.arange(length)
        self.artists: list[Any] = [
            axes.plot(steps, channel, color=style.COLOURS[i % len(style.COLOURS)], lw=thin)[0]
            for i, channel in enumerate(sample)
        ]

    def move(self, sample: Floats) -> None:
        """Show another sample."""
        for line, channel in zip(self.artists, sample, strict=True):
            line.set_ydata(channel)


@dataclass(frozen=True)
class Sounds:
    """Sound (C, L) as a wave, and below it the spectrogram of the mean of its channels."""

    span: tuple[float, float]
    rate: float
    seconds: float
    loudest: float
    """The decibels of the loudest point of all samples."""

    proportion = 0.72

    @classmethod
    def of(cls, samples: Floats, rate: float | None) -> Sounds:
        largest = max(1e-6, float(np.quantile(np.abs(samples[np.isfinite(samples)]), 0.9999)))
        loudest = max(float(spectrogram(sample).max()) for sample in samples)
        rate = rate or 1.0
        return cls((-1.05 * largest, 1.05 * largest), rate, samples.shape[2] / rate, loudest)

    @property
    def note(self) -> str:
        """The ranges of the axes."""
        half = self.rate / 2
        top = f"{half / 1000:.3g} kHz" if half >= 1000 else f"{half:.3g} Hz"
        return (
            f"{self.seconds:.3g} s; wave from {self.span[0]:.2g} to {self.span[1]:.2g}, "
            f"spectrogram from 0 to {top} over {DECIBELS} dB"
        )

    def panel(self, board: Board, place: tuple[int, int, int, int], sample: Floats) -> Sound:
        x, y, width, height = place
        top = round(height * WAVE)
        wave = Wave(board.axes(x, y, width, top), sample, self.span)
        return Sound(wave, board.axes(x, y + top + 2, width, height - top - 2), sample, self.loudest)


class Sound:
    """A wave, and its spectrogram."""

    def __init__(self, wave: Wave, axes: Axes, sample: Floats, loudest: float) -> None:
        style.quiet(axes)
        self.wave = wave
        self.image = axes.imshow(
            spectrogram(sample),
            origin="lower",
            aspect="auto",
            cmap="magma",
            interpolation="bilinear",
            vmin=loudest - DECIBELS,
            vmax=loudest,
        )
        self.artists: list[Any] = [*wave.artists, self.image]

    def move(self, sample: Floats) -> None:
        """Show another sample."""
        self.wave.move(sample)
        self.image.set_data(spectrogram(sample))


def spectrogram(sample: Floats) -> Floats:
    """Return the decibels (frequencies, times) of the mean of the channels of a sample (C, L), by windows of Hann.

    Silence has -120.
    """
    sound = np.nan_to_num(sample.astype(np.float64).mean(axis=0))
    size = 2 ** int(np.clip(np.log2(max(len(sound), 1) * 16) / 2, 4, 10))  # about as many frequencies as times
    hop = size // 4
    padded = np.pad(sound, (size // 2, size // 2 + hop), mode="reflect" if len(sound) > size else "constant")
    starts = np.arange(0, len(sound) + 1, hop)
    windows = padded[starts[:, None] + np.arange(size)] * np.hanning(size)
    power = np.abs(np.fft.rfft(windows, axis=1)).T / (size / 4)
    decibels: Floats = 20 * np.log10(np.maximum(power, 1e-6))
    return decibels
