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


@dataclass(frozen=True)
class Arrangement:
    """The way from rows as they are stored to items, channels first."""

    form: str
    stored: tuple[int, ...]
    """The shape of a row, once numbers in one row have the shape that the user names."""
    channels: str
    """The place of the channels: `first`, `last`, or `none` for gray images without an axis for them."""
    factor: float = 1.0
    offset: float = 0.0
    """Pixels are factor * value + offset."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an item."""
        if self.channels == "none":
            return (1, *self.stored)
        return (self.stored[-1], *self.stored[:-1]) if self.channels == "last" else self.stored

    def apply(self, rows: Tensor) -> Tensor:
        """Return rows (B, ...) as items (B, *shape). Raises `ValueError` for pixels beyond their range."""
        x = rows.reshape(len(rows), *self.stored)
        if self.channels == "none":
            x = x.unsqueeze(1)
        elif self.channels == "last":
            x = x.movedim(-1, 1)
        if self.form == "image":
            if x.dtype == torch.bool:
                x = x.to(torch.uint8)
            if self.factor != 1.0 or self.offset != 0.0:
                integers = not x.is_floating_point() and self.factor == int(self.factor)
                x = x * int(self.factor) if integers else x.to(torch.float32) * self.factor + self.offset
            if x.dtype != torch.uint8:
                low, high = float(x.min()), float(x.max())
                if not (low >= -1e-3 and high <= 255.001):
                    raise ValueError(
                        f"as pixels, the items reach from {low:.4g} to {high:.4g}, and not from 0 to 255; "
                        "--dataset.form array takes any numbers"
                    )
        return x.contiguous()


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
    if form == "image":
        return Arrangement("image", stored, _channels(stored, layout), *_range_of_type(dtype))
    if form == "points" and len(stored) != 1:
        raise ValueError(f"form: points have one axis, and the items are {stored}")
    return Arrangement(
        form or ("points" if len(stored) == 1 else "array"), stored, "last" if layout == "last" else "first"
    )


def _like_an_image(shape: tuple[int, ...], layout: str) -> bool:
    if layout != "auto" or len(shape) == 2:
        return len(shape) in (2, 3)
    return len(shape) == 3 and (shape[0] in CHANNELS or shape[-1] in CHANNELS)


def _channels(shape: tuple[int, ...], layout: str) -> str:
    """Return the place of the channels of images of this shape. Raises `ValueError`."""
    if len(shape) == 2:
        return "none"
    if len(shape) != 3:
        raise ValueError(f"form: images have the axes height, width and channels, and the items are {shape}")
    if layout != "auto":
        return layout
    first, last = shape[0] in CHANNELS, shape[-1] in CHANNELS
    if first and last and shape[0] != shape[1] and shape[1] == shape[2]:
        last = False  # a square, channels first
    if first and last and shape[0] != shape[1]:
        raise ValueError(f"layout: the channels of images of {shape} may come first or last; name their place")
    if not first and not last:
        raise ValueError(f"layout: images of {shape} have no axis of 1 to 4 channels; name the place of theirs")
    return "last" if last else "first"


def _range_of_type(dtype: str) -> tuple[float, float]:
    return {"bool": (255.0, 0.0), "uint16": (1 / 257, 0.0)}.get(dtype, (1.0, 0.0))


def range_of_pixels(low: float, high: float) -> tuple[float, float]:
    """Return factor and offset that bring floats from 0 to 1, or from -1 to 1, to pixels from 0 to 255."""
    if high > 1.0 or low < -1.0:
        return 1.0, 0.0
    return (255.0, 0.0) if low >= 0.0 else (127.5, 127.5)
