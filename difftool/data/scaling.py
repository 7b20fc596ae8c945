"""The scaling of data: shift and scale of each channel or coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import torch
from torch import Tensor

FAR = 2.0**10
"""From this |shift| / scale on, float32 rounds shifted data by a ten-thousandth of their deviation or more."""

MEASURED, MEASURED_NUMBERS = 4096, 2**24
"""The largest numbers of rows of a source, and of numbers in them, that are read to measure it."""


class Rows(Protocol):
    """A map-style source of rows."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Tensor: ...


@dataclass(frozen=True)
class Scaling:
    """The conversion between data units and model units."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of numbers in data units: float64 for data so far from 0 that float32 would lose digits."""
        far = max(abs(shift) for shift in self.shift) > FAR * min(self.scale)
        return torch.float64 if far else torch.float32

    def to_model(self, raw: Tensor) -> Tensor:
        """Convert (B, C, ...) of any dtype from data units to model units, float32."""
        shift, scale = self._broadcast(raw)
        return ((raw.to(self.dtype) - shift) / scale).to(torch.float32)

    def to_data(self, x: Tensor) -> Tensor:
        """Convert (B, C, ...) from model units to data units, of type `dtype`."""
        if x.device.type == "mps" and self.dtype == torch.float64:  # which Apple GPUs lack
            x = x.cpu()
        shift, scale = self._broadcast(x)
        return (x.to(self.dtype) * scale).add_(shift)

    def to_pixels(self, x: Tensor) -> Tensor:
        """Convert images from model units to uint8, rounded, so that all 256 values survive the round trip."""
        return self.to_data(x).round_().clamp_(0, 255).to(torch.uint8)

    def _broadcast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ends = (1,) * (x.ndim - 2)
        return _constant(self.shift, ends, x.device, self.dtype), _constant(self.scale, ends, x.device, self.dtype)


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], ends: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).view(-1, *ends)


def moments(items: Tensor | Rows) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of items (N, C, ...): `shift` and `scale` of samples.

    A source is measured on `some_rows` of it. The deviation of a channel of equal numbers is 1. A channel with numbers
    that are not finite gets 0 and 1, and is named when the data are checked. Raises `ValueError` for rows of several
    shapes, and for items without numbers.
    """
    items = some_rows(items)
    if not items.numel():
        raise ValueError("the items hold no numbers")
    axes = [axis for axis in range(items.ndim) if axis != 1]
    std, mean = torch.std_mean(items.to(torch.float64), dim=axes, correction=0)
    mean = torch.where(mean.isfinite(), mean, torch.zeros_like(mean))
    return tuple(mean.tolist()), tuple(torch.where((std > 0) & std.isfinite(), std, torch.ones_like(std)).tolist())


def some_rows(rows: Tensor | Rows) -> Tensor:
    """Return a tensor as it is, and of a source rows from all over it: 4096, or fewer that hold 2^24 numbers together.

    Raises `ValueError` for rows of several shapes.
    """
    if isinstance(rows, Tensor):
        return rows
    n = len(rows)
    count = max(1, min(n, MEASURED, MEASURED_NUMBERS // max(1, rows[0].numel())))
    chosen = [rows[i * n // count] for i in range(count)]
    if len(shapes := {tuple(row.shape) for row in chosen}) > 1:
        raise ValueError(f"the items differ in shape ({', '.join(map(str, sorted(shapes)[:2]))}); all must have one")
    return torch.stack(chosen)
