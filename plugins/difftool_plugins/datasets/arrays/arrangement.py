"""The arrangement of stored items: their form, the place of their channels, and the range of their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHANNELS = range(1, 5)
"""The numbers of channels by which images are recognised."""
AXES = {"image": 3, "film": 4, "series": 2, "sound": 2, "cloud": 2}
"""The number of axes of an item of each form that has channels (or coordinates)."""
AXES_WORDS = {
    "image": "images have the axes height, width and channels",
    "film": "films have the axes frames, height, width and channels",
    "series": "series have the axes channels and length",
    "sound": "sounds have the axes channels and length",
    "cloud": "clouds have the axes coordinates and points",
}
PIXEL_FORMS = ("image", "film")
LARGEST_SOUND = {"uint8": 2**7, "int16": 2**15, "int32": 2**31}
"""The number that is an amplitude of 1, for each type of whole numbers that holds sound."""


@dataclass(frozen=True)
class Arrangement:
    """The way from rows as they are stored to items, channels first."""

    form: str
    stored: tuple[int, ...]
    """The shape of a row, once numbers in one row have the shape that the user names."""
    channels: str
    """The place of the channels: `first`, `last`, or `none` where one channel has no axis."""
    factor: float = 1.0
    offset: float = 0.0
    """Pixels and amplitudes are factor * value + offset."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an item."""
        if self.channels == "none":
            return (1, *self.stored)
        return (self.stored[-1], *self.stored[:-1]) if self.channels == "last" else self.stored

    def apply(self, rows: Tensor) -> Tensor:
        """Return rows (B, ...) as items (B, *shape). Raises `ValueError` for pixels and sound beyond their range."""
        x = rows.reshape(len(rows), *self.stored)
        if self.channels == "none":
            x = x.unsqueeze(1)
        elif self.channels == "last":
            x = x.movedim(-1, 1)
        if self.form in PIXEL_FORMS:
            x = self._pixels(x.to(torch.uint8) if x.dtype == torch.bool else x)
        if self.form == "sound":
            x = x.to(torch.float32) * self.factor + self.offset
            check_range(x, -1, 1, "the amplitudes reach", "--dataset.form series takes any numbers")
        return x.contiguous()

    def _pixels(self, x: Tensor) -> Tensor:
        if self.factor != 1.0 or self.offset != 0.0:
            integers = not x.is_floating_point() and self.factor == int(self.factor)
            x = x * int(self.factor) if integers else x.to(torch.float32) * self.factor + self.offset
        if x.dtype != torch.uint8:
            check_range(x, 0, 255, "as pixels, the items reach", "--dataset.form array takes any numbers")
        return x


def check_range(x: Tensor, low: int, high: int, what: str, advice: str) -> None:
    """Raise `ValueError` for numbers beyond a range, but for a thousandth."""
    least, largest = float(x.min()), float(x.max())
    if not (least >= low - 1e-3 and largest <= high + 1e-3):
        raise ValueError(f"{what} from {least:.4g} to {largest:.4g}, and not from {low} to {high}; {advice}")


@dataclass(frozen=True)
class Arranged:
    """A map-style source of items as an arrangement has them."""

    rows: Any
    arrangement: Arrangement

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return self.arrangement.apply(self.rows[i][None])[0]


def arrangement_of(
    row: Sequence[int], dtype: str, *, form: str | None, layout: str, shape: Sequence[int] | None
) -> Arrangement:
    """Return the arrangement of rows of this shape and NumPy type, as options ask for it. Raises `ValueError`."""
    stored = tuple(row) if row else (1,)
    if shape is not None:
        if math.prod(shape) != math.prod(stored):
            raise ValueError(
                f"shape: {'x'.join(map(str, shape))} has {math.prod(shape)} numbers, and a row of the items "
                f"{math.prod(stored)}"
            )
        stored = tuple(shape)
    if form is None:
        form = "image" if dtype == "uint8" and _like_an_image(stored, layout) else None
    if form in PIXEL_FORMS:
        return Arrangement(str(form), stored, _channels(stored, layout, str(form)), *_range_of_type(dtype))
    if form in AXES:
        one = LARGEST_SOUND.get(dtype, 1) if form == "sound" else 1
        offset = -1.0 if form == "sound" and dtype == "uint8" else 0.0
        return Arrangement(str(form), stored, _channels(stored, layout, str(form)), 1 / one, offset)
    if form == "points" and len(stored) != 1:
        raise ValueError(f"form: points have one axis, and the items are {stored}")
    return Arrangement(
        form or ("points" if len(stored) == 1 else "array"), stored, "last" if layout == "last" else "first"
    )


def _like_an_image(shape: tuple[int, ...], layout: str) -> bool:
    if layout != "auto" or len(shape) == 2:
        return len(shape) in (2, 3)
    return len(shape) == 3 and (shape[0] in CHANNELS or shape[-1] in CHANNELS)


def _channels(shape: tuple[int, ...], layout: str, form: str) -> str:
    """Return the place of the channels (or coordinates) of items of this shape. Raises `ValueError`."""
    if len(shape) == AXES[form] - 1 and form != "cloud":
        return "none"
    if len(shape) != AXES[form]:
        raise ValueError(f"form: {AXES_WORDS[form]}, and the items are {shape}")
    if layout != "auto":
        return layout
    first, last = shape[0] in CHANNELS, shape[-1] in CHANNELS
    if form in ("series", "sound"):
        return "last" if last and not first else "first"
    if form != "image":
        return _only_place(shape, form, first, last)
    if first and last and shape[0] != shape[1] and shape[1] == shape[2]:
        last = False  # a square, channels first
    if first and last and shape[0] != shape[1]:
        raise ValueError(f"layout: the channels of images of {shape} may come first or last; name their place")
    if not first and not last:
        raise ValueError(f"layout: images of {shape} have no axis of 1 to 4 channels; name the place of theirs")
    return "last" if last else "first"


def _only_place(shape: tuple[int, ...], form: str, first: bool, last: bool) -> str:
    """Return the place of the channels of a film, or of the coordinates of a cloud. Raises `ValueError`."""
    if first == last:
        what = "channels of films" if form == "film" else "coordinates of clouds"
        raise ValueError(f"layout: the {what} of {shape} may come first or last; name their place")
    return "last" if last else "first"


def _range_of_type(dtype: str) -> tuple[float, float]:
    return {"bool": (255.0, 0.0), "uint16": (1 / 257, 0.0)}.get(dtype, (1.0, 0.0))


def range_of_pixels(low: float, high: float) -> tuple[float, float]:
    """Return factor and offset that bring floats from 0 to 1, or from -1 to 1, to pixels from 0 to 255."""
    if high > 1.0 or low < -1.0:
        return 1.0, 0.0
    return (255.0, 0.0) if low >= 0.0 else (127.5, 127.5)


def sound_units(std: float) -> dict[str, Any]:
    """Return shift, scale and bounds of sound of this deviation, with amplitudes from -1 to 1."""
    std = std if std > 0 else 1.0
    return {"shift": (0.0,), "scale": (std,), "bounds": (-1 / std, 1 / std)}
