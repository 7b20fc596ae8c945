"""Samples in memory or on disk, their scaling, and batches as a function of the step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from difftool.errors import DifftoolError, one_line
from difftool.rng import generator


@dataclass(frozen=True, kw_only=True)
class DatasetContext:
    """What a dataset may lean on while loading. May grow fields."""

    seed: int = 0
    """Generated data are a function of this seed."""
    cache: Path | None = None
    """A folder for indexes and the like; None: keep nothing."""

    def generator(self, *parts: int | str) -> torch.Generator:
        """A CPU generator for (seed, "dataset", *parts)."""
        return generator(self.seed, "dataset", *parts)


class Items(Protocol):
    """A map-style source: `source[i]` is pure and gives one item as a tensor of `Samples.shape`."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Tensor: ...


Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a dataset loads to. Model units are (item - shift) / scale, per channel or coordinate. May grow fields.

    Items are in data units: of images pixel values 0..255, of points whatever they come in.
    """

    items: Tensor | Items
    """(N, *shape) of any dtype, or a map-style source that worker processes read."""
    shape: tuple[int, ...]
    """Shape of one item, channels (or coordinates) first."""
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    bounds: tuple[float, float] | None = None
    """Range of the data in model units, to which estimates are clipped; None for unbounded data."""
    labels: Tensor | None = None
    """(N,) int64 class indices."""
    class_names: tuple[str, ...] = ()
    item_ids: Sequence[str] | None = None
    """Stable names of the items (relative paths): what is held out depends on them, never on a run's seed."""
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    """Random change of a batch (B, *shape) of raw items, each by itself, run in the main process, such as a flip."""
    mixture: Mixture | None = None
    """The distribution the items were drawn from, where it is known in closed form."""
    fingerprint: str = ""
    """A text that changes when the data do, of data that come from outside: what is made from options and seed needs
    none."""

    def __post_init__(self) -> None:
        if len(self.items) == 0:
            raise ValueError("the dataset is empty")
        if isinstance(self.items, Tensor) and tuple(self.items.shape[1:]) != tuple(self.shape):
            raise ValueError(f"items are {tuple(self.items.shape[1:])}, but the shape says {tuple(self.shape)}")
        if not self.shape:
            raise ValueError("items must have a shape, such as (2,) or (3, 32, 32)")
        if not {len(self.shift), len(self.scale)} <= {1, self.shape[0]} or 0.0 in self.scale:
            raise ValueError("shift and scale must have one entry, or one for each channel, and no scale may be 0")
        if self.item_ids is not None and len(self.item_ids) != len(self.items):
            raise ValueError(f"{len(self.item_ids)} item_ids for {len(self.items)} items")
        if self.labels is not None and len(self.labels) != len(self.items):
            raise ValueError(f"{len(self.labels)} labels for {len(self.items)} items")
        if self.labels is not None:
            low, high = int(self.labels.min()), int(self.labels.max())
            if self.labels.dtype != torch.int64:
                raise ValueError(f"labels must be int64, not {str(self.labels.dtype).removeprefix('torch.')}")
            if low < 0 or (self.class_names and high >= len(self.class_names)):
                count = f"{len(self.class_names)} classes" if self.class_names else "classes"
                raise ValueError(f"labels must be indices of the {count}, from 0 on; they reach from {low} to {high}")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def is_image(self) -> bool:
        """Whether an item is (channels, height, width)."""
        return len(self.shape) == 3

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Raw items and labels at these indices. Raises `DifftoolError` where one cannot be read."""
        if isinstance(self.items, Tensor):
            items = self.items[torch.as_tensor(indices)]
        else:
            try:
                items = torch.stack([self.items[int(i)] for i in indices])
            except (ValueError, OSError) as error:
                raise DifftoolError(one_line(error)) from error
        return items, None if self.labels is None else self.labels[torch.as_tensor(indices)]


def identity(samples: Samples) -> str:
    """What a run remembers of its data, to tell whether they are still the same: `1,797 items, 1x8x8, 5b3f...`."""
    sha = hashlib.sha256(json.dumps([samples.fingerprint, samples.class_names]).encode())
    for tensor in (samples.items, samples.labels):  # floats are not asked: another machine may make other last digits
        if isinstance(tensor, Tensor) and not tensor.is_floating_point():
            sha.update(tensor.contiguous().cpu().numpy().data)
    return f"{len(samples):,} items, {'x'.join(map(str, samples.shape))}, {sha.hexdigest()[:16]}"


@dataclass(frozen=True)
class Scaling:
    """Data units <-> model units; it travels with the weights."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    is_image: bool

    @classmethod
    def of(cls, samples: Samples) -> Scaling:
        return cls(tuple(samples.shift), tuple(samples.scale), samples.is_image)

    def to_model(self, raw: Tensor) -> Tensor:
        """(B, C, ...) in data units, any dtype -> float32 in model units."""
        shift, scale = self._broadcast(raw)
        return (raw.to(torch.float32) - shift) / scale

    def to_data(self, x: Tensor) -> Tensor:
        """Model units -> data units, float."""
        shift, scale = self._broadcast(x)
        return (x * scale).add_(shift)

    def to_pixels(self, x: Tensor) -> Tensor:
        """Images in model units -> uint8, rounded: all 256 values survive the round trip. Data units are 0..255."""
        return self.to_data(x).round_().clamp_(0, 255).to(torch.uint8)

    def _broadcast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ends = (1,) * (x.ndim - 2)
        return _constant(self.shift, ends, x.device), _constant(self.scale, ends, x.device)


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], ends: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, *ends)


PIXELS: dict[str, Any] = {"shift": (127.5,), "scale": (127.5,), "bounds": (-1.0, 1.0)}
"""Keywords of `Samples` for uint8 images: x/127.5 - 1."""


def points(
    items: Tensor,
    *,
    labels: Tensor | None = None,
    class_names: tuple[str, ...] = (),
    means: Tensor | None = None,
    mean_labels: Tensor | None = None,
    std: float = 0.0,
) -> Samples:
    """Samples of points (N, D), scaled to mean 0 and standard deviation 1 in each coordinate.

    Points drawn from Gaussians of equal weight can say so: their `means` (K, D), class and `std`, in the points' units.
    """
    scale, shift = torch.std_mean(items.to(torch.float64), dim=0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return Samples(
        items=items.to(torch.float32),
        shape=tuple(items.shape[1:]),
        shift=tuple(shift.tolist()),
        scale=tuple(scale.tolist()),
        labels=labels,
        class_names=class_names,
        mixture=None if means is None else Mixture(means=means.to(torch.float64), std=std, labels=mean_labels),
    )


def split(samples: Samples, held_out: int) -> tuple[Samples, Samples | None]:
    """(training, held out). Which items are held out is a function of the items alone: the smallest SHA-256."""
    if held_out == 0:
        return samples, None
    n = len(samples)
    if held_out >= n:
        raise ValueError(f"cannot hold out {held_out} of {n} items")
    ids = samples.item_ids or [str(i) for i in range(n)]
    ranked = sorted(range(n), key=lambda i: hashlib.sha256(ids[i].encode("utf-8", "surrogateescape")).digest())
    return _subset(samples, sorted(ranked[held_out:])), _subset(samples, sorted(ranked[:held_out]))


@dataclass(frozen=True)
class _View:
    """Some items of a source."""

    source: Items
    indices: list[int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Tensor:
        return self.source[self.indices[i]]


def _subset(samples: Samples, indices: list[int]) -> Samples:
    items = samples.items
    return replace(
        samples,
        items=items[indices] if isinstance(items, Tensor) else _View(items, indices),
        labels=None if samples.labels is None else samples.labels[indices],
        item_ids=None if samples.item_ids is None else [samples.item_ids[i] for i in indices],
    )


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Gaussians of equal weight that share the standard deviation of each coordinate. In data units, as items are."""

    means: Tensor
    """(K, *shape), float64."""
    std: float
    """Of every coordinate of every component; 0 leaves the means alone."""
    labels: Tensor | None = None
    """(K,) int64: the class each component belongs to."""

    def __post_init__(self) -> None:
        if len(self.means) == 0 or self.std < 0:
            raise ValueError("a mixture needs a component, and a standard deviation that is not negative")
        if self.labels is not None and (self.labels.dtype != torch.int64 or len(self.labels) != len(self.means)):
            raise ValueError(f"a mixture of {len(self.means)} components needs as many int64 labels")
