"""Samples in memory or on disk, and their scaling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from operator import index
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Subset

from difftool.data.condition import Condition
from difftool.data.forms import Form, form_of
from difftool.data.tensors import item_of, numbers_of, tensor_of
from difftool.errors import DifftoolError, one_line
from difftool.rng import generator


@dataclass(frozen=True, kw_only=True)
class DatasetContext:
    """The surroundings of a dataset that loads. Fields may be added."""

    seed: int = 0
    """Generated data are a function of this seed."""
    cache: Path | None = None
    """A folder for indexes, or None to keep nothing."""

    def generator(self, *parts: int | str) -> torch.Generator:
        """Return a CPU generator for (seed, "dataset", *parts)."""
        return generator(self.seed, "dataset", *parts)


class Items(Protocol):
    """A map-style source: `source[i]` has no side effects and returns item i, a tensor of `Samples.shape`."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Tensor: ...


Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The data of a dataset. Model units are (item - shift) / scale, per channel or coordinate. Fields may be added.

    Items are in data units: pixel values 0..255 for images, and any units for points.
    """

    items: Tensor | Items
    """(N, *shape) of any real dtype, a tensor or a NumPy array, or a map-style source that worker processes read."""
    shape: tuple[int, ...]
    """The shape of one item, channels (or coordinates) first."""
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    bounds: tuple[float, float] | None = None
    """The range of the data in model units, to which estimates are clipped, or None for unbounded data."""
    labels: Tensor | None = None
    """(N,) int64 class indices."""
    class_names: tuple[str, ...] = ()
    item_ids: Sequence[str] | None = None
    """Stable names of the items, such as relative paths. They decide which items are held out, whatever the seed."""
    augment: Augment | None = None
    """A random change of a batch (B, *shape) of raw items, each on its own, such as a flip. It runs outside workers."""
    mixture: Mixture | None = None
    """The distribution that the items were drawn from, if it is a mixture of Gaussians."""
    fingerprint: str = ""
    """A text that changes with the data, for data from outside. Data that options and seed determine need none."""
    form: Form | None = None
    """What the numbers mean: `image` (which `PIXELS` declares), `points` or `array`. It decides how samples are drawn
    and written. By default one axis makes points, and more axes an array, however many channels there are."""

    def __post_init__(self) -> None:
        """Bring all fields into plain types. Raises `ValueError` for what no model file could describe."""
        self._set(items=tensor_of(self.items))
        if not hasattr(self.items, "__len__") or not hasattr(self.items, "__getitem__"):
            kind = type(self.items).__name__
            raise ValueError(f"items must be a tensor, a NumPy array or a source with len() and [i], not {kind}")
        if (isinstance(self.items, Tensor) and self.items.ndim == 0) or len(self.items) == 0:
            raise ValueError("the dataset is empty")
        try:
            self._set(shape=tuple(map(index, self.shape)))
        except TypeError:
            raise ValueError(
                f"the shape must be whole numbers, such as (2,) or (3, 32, 32), not {self.shape!r}"
            ) from None
        if isinstance(self.items, Tensor) and tuple(self.items.shape[1:]) != self.shape:
            raise ValueError(f"items are {tuple(self.items.shape[1:])}, but the shape says {self.shape}")
        if not self.shape or min(self.shape) < 1:
            raise ValueError("items must have a shape, such as (2,) or (3, 32, 32)")
        self._set(form=form_of(self.form, self.shape), shift=numbers_of("shift", self.shift))
        self._set(scale=numbers_of("scale", self.scale))
        if not {len(self.shift), len(self.scale)} <= {1, self.shape[0]} or min(self.scale) <= 0:
            raise ValueError(
                "shift and scale must have one entry, or one for each channel, and no scale may be 0 or less"
            )
        if self.bounds is not None:
            self._set(bounds=numbers_of("bounds", self.bounds))
            if len(self.bounds) != 2 or self.bounds[0] >= self.bounds[1]:
                raise ValueError(f"bounds must be a low and a high number, not {self.bounds}")
        if not _are_texts(self.class_names):
            raise ValueError(f"class_names must be a tuple of texts, not {self.class_names!r:.80}")
        if self.augment is not None and not callable(self.augment):
            raise ValueError(f"augment must be a function of items and a generator, not {self.augment!r:.80}")
        if not isinstance(self.fingerprint, str):
            raise ValueError(f"the fingerprint must be a text, not {type(self.fingerprint).__name__}")
        self._set(class_names=tuple(map(str, self.class_names)))
        if self.item_ids is not None and not _are_texts(self.item_ids):
            raise ValueError("item_ids must be texts, such as relative paths")
        if self.item_ids is not None and len(self.item_ids) != len(self.items):
            raise ValueError(f"{len(self.item_ids)} item_ids for {len(self.items)} items")
        if self.labels is not None:
            self._set(labels=self._checked_labels(self.labels))

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _checked_labels(self, given: object) -> Tensor:
        """Return labels of any integer type as int64 (N,). Raises `ValueError`."""
        labels = tensor_of(given, "labels")
        if not isinstance(labels, Tensor):
            try:
                labels = torch.as_tensor(labels)
            except (TypeError, ValueError, RuntimeError):
                raise ValueError(f"labels must be int64, not {type(given).__name__}") from None
        if labels.ndim != 1:
            raise ValueError(f"labels must be one class index an item, of shape (N,), not {tuple(labels.shape)}")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"labels must be int64, not {str(labels.dtype).removeprefix('torch.')}")
        if len(labels) != len(self.items):
            raise ValueError(f"{len(labels)} labels for {len(self.items)} items")
        labels = labels.to(torch.int64)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (self.class_names and high >= len(self.class_names)):
            count = f"{len(self.class_names)} classes" if self.class_names else "classes"
            raise ValueError(f"labels must be indices of the {count}, from 0 on; they reach from {low} to {high}")
        return labels

    def __len__(self) -> int:
        return len(self.items)

    @property
    def is_image(self) -> bool:
        """True if items are pixels (channels, height, width)."""
        return self.form == "image"

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Condition | None]:
        """Return raw items (B, *shape) and their condition at indices. Raises `DifftoolError` if one cannot be read."""
        if isinstance(self.items, Tensor):
            items = self.items[torch.as_tensor(indices)]
        else:
            try:
                items = torch.stack([item_of(self.items, int(i)) for i in indices])
            except (ValueError, OSError) as error:
                raise DifftoolError(one_line(error)) from error
            except RuntimeError as error:
                raise DifftoolError(f"items differ in shape: {one_line(error)}") from error
        if self.labels is None:
            return items, None
        labels = self.labels[torch.as_tensor(indices)]
        return items, Condition(label=labels, hidden=torch.zeros(len(labels), dtype=torch.bool))


def _are_texts(values: object) -> bool:
    """Return whether a value is a sequence of texts, and not a text itself."""
    return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(v, str) for v in values)


def fingerprint(samples: Samples) -> str:
    """Return a text by which a run recognises its data, such as `1,797 items, 1x8x8, 5b3f...`.

    Floats are left out, since another machine may round them differently.
    """
    sha = hashlib.sha256(json.dumps([samples.fingerprint, samples.class_names]).encode())
    for tensor in (samples.items, samples.labels):
        if isinstance(tensor, Tensor) and not tensor.is_floating_point():
            sha.update(tensor.contiguous().cpu().numpy().data)
    return f"{len(samples):,} items, {'x'.join(map(str, samples.shape))}, {sha.hexdigest()[:16]}"


FAR = 2.0**10
"""From this |shift| / scale on, float32 rounds shifted data by a ten-thousandth of their deviation or more."""


@dataclass(frozen=True)
class Scaling:
    """The conversion between data units and model units."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def of(cls, samples: Samples) -> Scaling:
        """Return the scaling of samples."""
        return cls(tuple(samples.shift), tuple(samples.scale))

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


PIXELS: dict[str, Any] = {"shift": (127.5,), "scale": (127.5,), "bounds": (-1.0, 1.0), "form": "image"}
"""The arguments of `Samples` for images of pixels from 0 to 255, which scale them to x/127.5 - 1."""


def points(
    items: Tensor,
    *,
    labels: Tensor | None = None,
    class_names: tuple[str, ...] = (),
    means: Tensor | None = None,
    mean_labels: Tensor | None = None,
    std: float = 0.0,
) -> Samples:
    """Return samples of points (N, D), scaled to mean 0 and standard deviation 1 in each coordinate.

    Items stay float64 where float32 would lose digits. For points from a mixture of equally weighted Gaussians,
    `means` (K, D), `mean_labels` (K,) and `std` describe it, in the units of the points. Raises `ValueError`.
    """
    items = tensor_of(items)
    if not isinstance(items, Tensor) or items.ndim != 2 or items.numel() == 0:
        raise ValueError("points must be a tensor or a NumPy array of shape (N, D)")
    shift, scale = moments(items)
    return Samples(
        items=items.to(Scaling(shift, scale).dtype) if items.dtype == torch.float64 else items,
        shape=tuple(items.shape[1:]),
        shift=shift,
        scale=scale,
        labels=labels,
        class_names=class_names,
        mixture=None if means is None else Mixture(means=means.to(torch.float64), std=std, labels=mean_labels),
    )


def moments(items: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of items (N, C, ...); where all are equal, a deviation of 1.

    They are `shift` and `scale` of `Samples` that have none of their own.
    """
    axes = [axis for axis in range(items.ndim) if axis != 1]
    std, mean = torch.std_mean(items.to(torch.float64), dim=axes, correction=0)
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, torch.ones_like(std)).tolist())


def split(samples: Samples, held_out: int) -> tuple[Samples, Samples | None]:
    """Split samples into (training, held out). The items with the smallest SHA-256 of their names are held out.

    Raises `ValueError` if no item would be left.
    """
    if held_out == 0:
        return samples, None
    n = len(samples)
    if held_out >= n:
        raise ValueError(f"cannot hold out {held_out} of {n} items")
    ids = samples.item_ids or [str(i) for i in range(n)]
    ranked = sorted(range(n), key=lambda i: hashlib.sha256(ids[i].encode("utf-8", "surrogateescape")).digest())

    def subset(indices: list[int]) -> Samples:
        items: Any = samples.items
        return replace(
            samples,
            items=items[indices] if isinstance(items, Tensor) else Subset(items, indices),
            labels=None if samples.labels is None else samples.labels[indices],
            item_ids=None if samples.item_ids is None else [samples.item_ids[i] for i in indices],
        )

    return subset(sorted(ranked[held_out:])), subset(sorted(ranked[:held_out]))


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of Gaussians with equal weights and one standard deviation for all coordinates, in data units."""

    means: Tensor
    """(K, *shape), float64."""
    std: float
    """The standard deviation of each coordinate; 0 for points exactly at the means."""
    labels: Tensor | None = None
    """The class of each component, (K,) int64."""

    def __post_init__(self) -> None:
        if len(self.means) == 0 or self.std < 0:
            raise ValueError("a mixture needs a component, and a standard deviation that is not negative")
        if self.labels is not None and (self.labels.dtype != torch.int64 or len(self.labels) != len(self.means)):
            raise ValueError(f"a mixture of {len(self.means)} components needs as many int64 labels")
