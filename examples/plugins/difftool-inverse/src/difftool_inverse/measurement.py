"""Measurements y = A x_0 of items: a part of their numbers, or the means of squares of their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difftool import read_image

if TYPE_CHECKING:
    from difftool import GuidanceSpec


@dataclass(frozen=True)
class Measurement:
    """A measurement, and the linear map that made it."""

    values: Tensor
    """y (C, H', W') or (D,) in model units, 0 where it is unknown."""
    known: Tensor
    """True where it is known, shaped as y."""
    factor: int
    """The side of the squares whose means were measured; 1: the numbers themselves."""

    def of(self, x_0: Tensor) -> Tensor:
        """Return A x_0 (B, *shape of y), 0 where the measurement is unknown."""
        return (x_0 if self.factor == 1 else F.avg_pool2d(x_0, self.factor)) * self.known


def read_measurement(path: Path, spec: GuidanceSpec) -> Measurement:
    """Read a measurement of the data that a model draws. Raises `ValueError` and `OSError`."""
    shape = tuple(spec.decode(torch.zeros(1, *spec.shape, device=spec.device)).shape[1:])
    raw = _read_array(path) if path.suffix.lower() == ".npy" else _read_image(path, shape)
    size = tuple(raw.shape)
    factor = shape[-1] // size[-1] if len(size) == len(shape) and size[-1] else 0
    fits = factor and size == (shape if len(shape) != 3 else (shape[0], shape[1] // factor, shape[2] // factor))
    if not fits or (len(shape) == 3 and shape[1:] != (size[1] * factor, size[2] * factor)):
        raise ValueError(f"measurement: {path} is {size}, and the data are {shape}; give one as large, or smaller")
    known = torch.isfinite(raw)
    if not known.any():
        raise ValueError(f"measurement: {path} holds nothing that is known")
    values = spec.scaling.to_model(raw.nan_to_num(0.0)[None])[0]
    return Measurement((values * known).to(spec.device), known.to(spec.device), factor)


def _read_array(path: Path) -> Tensor:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise ValueError(f"measurement: {path} holds no array of numbers")
    return torch.from_numpy(array.astype(np.float64))


def _read_image(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Return the pixels of an image, NaN where it is transparent. Raises `ValueError`."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"measurement: the data are no images but {shape}; give a .npy file")
    *pixels, seen = read_image(path, channels=shape[0] + 1).double()
    return torch.stack(pixels).where(seen > 127, torch.nan)
