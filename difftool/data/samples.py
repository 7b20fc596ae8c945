"""Samples in memory or on disk, their scaling, and batches as a function of the step."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from difftool.data.mixture import Mixture
from difftool.errors import DifftoolError, said
from difftool.rng import generator, permutation


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
                raise DifftoolError(said(error)) from error
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


@dataclass(frozen=True)
class Batch:
    """The batches of one or more steps, or this process's part of each, on the device: raw items and labels."""

    items: Tensor
    labels: Tensor | None


class Batches:
    """Endless batches, each a function of (seed, step): every epoch visits each item once, in its own order.

    Data that fit live on the device and are gathered there by index; others are read by worker processes. Where several
    processes train, each has its part of every batch.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        workers: int = 0,
        part: slice | None = None,
    ) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.device, self.workers = torch.device(device), workers
        self.part = part or slice(0, batch_size)
        self.size = self.part.stop - self.part.start
        """Items of a batch that are read here."""
        self.waited = 0.0
        """Seconds that training has waited for worker processes."""
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(len(samples), seed, "order", epoch))
        if isinstance(samples.items, Tensor):
            self._items = samples.items.to(self.device)
            self._labels = None if samples.labels is None else samples.labels.to(self.device)

    def indices(self, step: int, count: int = 1) -> Tensor:
        """Which items the steps from this one on use. Sample counter i is item i mod N of epoch i div N."""
        n, first = len(self.samples), step * self.batch_size
        last = first + count * self.batch_size
        parts = []
        while first < last:
            epoch, at = divmod(first, n)
            end = min(n, at + last - first)
            parts.append(self._order(epoch)[at:end])
            first += end - at
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def own_indices(self, step: int, count: int = 1) -> Tensor:
        """Which of them are read here."""
        return self.indices(step, count).view(count, self.batch_size)[:, self.part].flatten()

    def start(self, step: int, *, block: int = 1) -> Iterator[Batch]:
        """The items, or this process's part of them, of this step and of all that follow.

        Where they are in memory they come for several steps at once: up to the next multiple of `block`.
        """
        batches = self._from_memory(step, block) if isinstance(self.samples.items, Tensor) else self._from_source(step)
        augment = self.samples.augment
        for batch in batches:
            if augment is None:
                yield batch
            else:
                steps = enumerate(torch.split(batch.items, self.size), start=step)
                yield Batch(torch.cat([self._augmented(augment, items, at) for at, items in steps]), batch.labels)
            step += len(batch.items) // self.size

    def _augmented(self, augment: Augment, items: Tensor, step: int) -> Tensor:
        """A step's items changed at random: as part of the batch that they belong to, so that each has its own luck."""
        random = generator(self.seed, "augment", step, device=self.device)
        if self.size == self.batch_size:
            return augment(items, random)
        whole = items.new_zeros(self.batch_size, *items.shape[1:])
        whole[self.part] = items
        return augment(whole, random)[self.part]

    def _from_memory(self, step: int, block: int) -> Iterator[Batch]:
        while True:
            count = block - step % block
            indices = self.own_indices(step, count).to(self.device)
            labels = None if self._labels is None else self._labels.index_select(0, indices)
            yield Batch(self._items.index_select(0, indices), labels)
            step += count

    def _from_source(self, step: int) -> Iterator[Batch]:
        from torch.utils.data import DataLoader

        cuda = self.device.type == "cuda"
        loader: DataLoader[Any] = DataLoader(
            _Reader(self.samples),
            batch_sampler=_Order(self, step),
            num_workers=self.workers,
            pin_memory=cuda,
            prefetch_factor=4 if self.workers else None,
            multiprocessing_context="spawn" if self.workers and cuda else None,
            collate_fn=_collate,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        read = iter(loader)
        while True:
            asked = time.perf_counter()
            items, labels = next(read)
            self.waited += time.perf_counter() - asked
            if isinstance(items, Exception):  # of a worker, whose own traceback would drown the message
                raise DifftoolError(said(items)) from items
            yield Batch(
                items.to(self.device, non_blocking=cuda),
                None if labels is None else labels.to(self.device, non_blocking=cuda),
            )


class _Order:
    """The endless batch sampler of `Batches`, for a DataLoader."""

    def __init__(self, batches: Batches, step: int) -> None:
        self.batches, self.step = batches, step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.step
        while True:
            yield self.batches.own_indices(step).tolist()
            step += 1


class _Reader(torch.utils.data.Dataset[Any]):
    def __init__(self, samples: Samples) -> None:
        self.items, self.labels = samples.items, samples.labels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Any, Tensor | None]:
        try:
            return self.items[i], None if self.labels is None else self.labels[i]
        except (ValueError, OSError) as error:
            return error, None


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ctrl-C in a terminal reaches every process; the one that trains ends the others once its step is done."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _collate(pairs: list[tuple[Any, Tensor | None]]) -> tuple[Any, Tensor | None]:
    """A batch, or the first error met while reading it."""
    for item, _ in pairs:
        if isinstance(item, Exception):
            return item, None
    labels = [label for _, label in pairs if label is not None]
    return torch.stack([item for item, _ in pairs]), torch.stack(labels) if labels else None
