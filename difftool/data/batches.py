"""Batches of training items, each a function of the step."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor

from difftool.data.condition import Condition
from difftool.data.samples import Augment, Samples
from difftool.data.tensors import item_of
from difftool.errors import DifftoolError, blaming, describe, one_line
from difftool.rng import generator, permutation
from difftool.scripts import LoadedScripts


@dataclass(frozen=True)
class Batch:
    """Raw items and their condition on the device for one or more steps, or this process's share of each step."""

    items: Tensor
    condition: Condition | None
    noise: Tensor | None = None
    """The noise that is stored with the items, in place of random noise."""


class Batches:
    """Endless batches, each a function of (seed, step). Every epoch visits each item once, in its own order.

    Data in memory are moved to the device and indexed there; others are read by worker processes. If several processes
    train, each gets its share of every batch.
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
        name: str = "the dataset",
    ) -> None:
        """Take the settings of batches; `name` is that of the data in errors from their code."""
        self.name = name
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.device, self.workers = torch.device(device), workers
        self.part = part or slice(0, batch_size)
        self.size = self.part.stop - self.part.start
        """The number of items that this process reads for a batch."""
        self.waited = 0.0
        """The time in seconds that training has waited for worker processes."""
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(len(samples), seed, "order", epoch))
        if isinstance(samples.items, Tensor):
            self._items = _on_device(samples.items, self.device)
            self._labels = None if samples.labels is None else samples.labels.to(self.device)

    def indices(self, step: int, steps: int = 1) -> Tensor:
        """Return the indices of the items of these steps, int64 (steps * batch_size,).

        The i-th item overall is number i mod N in the order of epoch i div N.
        """
        n, first = len(self.samples), step * self.batch_size
        last = first + steps * self.batch_size
        parts = []
        while first < last:
            epoch, at = divmod(first, n)
            end = min(n, at + last - first)
            parts.append(self._order(epoch)[at:end])
            first += end - at
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def own_indices(self, step: int, steps: int = 1) -> Tensor:
        """Return the indices of this process's share."""
        return self.indices(step, steps).view(steps, self.batch_size)[:, self.part].flatten()

    def start(self, step: int, *, block: int = 1) -> Iterator[Batch]:
        """Yield the batches of this step and all that follow.

        Data in memory come for several steps at once: up to the next multiple of `block`.
        """
        batches = self._from_memory(step, block) if isinstance(self.samples.items, Tensor) else self._from_source(step)
        augment = self.samples.augment
        for batch in batches:
            if augment is None:
                yield batch
            else:
                steps = enumerate(torch.split(batch.items, self.size), start=step)
                items = torch.cat([self._augmented(augment, items, at) for at, items in steps])
                yield Batch(items, batch.condition)
            step += len(batch.items) // self.size

    def _augmented(self, augment: Augment, items: Tensor, step: int) -> Tensor:
        """Augment the items of a step at their places in the whole batch, so that shares change no random number."""
        random = generator(self.seed, "augment", step, device=self.device)
        with blaming(self.name):
            if self.size == self.batch_size:
                return _augment(augment, items, random)
            whole = items.new_zeros(self.batch_size, *items.shape[1:])
            whole[self.part] = items
            return _augment(augment, whole, random)[self.part]

    def _from_memory(self, step: int, block: int) -> Iterator[Batch]:
        while True:
            steps = block - step % block
            indices, cuda = self.own_indices(step, steps), self.device.type == "cuda"
            if cuda:  # a copy from ordinary memory would wait for the device
                indices = indices.pin_memory()
            indices = indices.to(self.device, non_blocking=cuda)
            labels = None if self._labels is None else self._labels.index_select(0, indices)
            yield Batch(self._items.index_select(0, indices), _condition(labels))
            step += steps

    def _from_source(self, step: int) -> Iterator[Batch]:
        from torch.utils.data import DataLoader

        cuda = self.device.type == "cuda"
        loader: DataLoader[Any] = DataLoader(
            _Reader(self.samples, self.name),
            batch_sampler=(self.own_indices(k).tolist() for k in count(step)),
            num_workers=self.workers,
            pin_memory=cuda,
            prefetch_factor=4 if self.workers else None,
            multiprocessing_context="spawn" if self.workers and cuda else None,
            collate_fn=_collate,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        read = iter(loader)
        while True:
            start = time.perf_counter()
            items, labels = next(read)
            self.waited += time.perf_counter() - start
            if isinstance(items, DifftoolError):  # a worker would add its traceback, so the error is handed over
                # a new one, since this frame must not outlive its error: workers end with it
                raise DifftoolError(str(items))
            labels = None if labels is None else labels.to(self.device, non_blocking=cuda)
            yield Batch(_on_device(items, self.device), _condition(labels))


def _condition(labels: Tensor | None) -> Condition | None:
    """Return the condition of labels (B,), none of them hidden."""
    return None if labels is None else Condition(label=labels, hidden=torch.zeros_like(labels, dtype=torch.bool))


def _augment(augment: Augment, items: Tensor, random: torch.Generator) -> Tensor:
    """Return augmented items. Raises `DifftoolError` if their shape changed, which training would broadcast."""
    result = augment(items, random)
    if result.shape != items.shape:
        raise DifftoolError(f"augment() of the dataset made {tuple(result.shape)} of {tuple(items.shape)}")
    return result


def _on_device(items: Tensor, device: torch.device) -> Tensor:
    """Copy items to the device. Apple GPUs have no float64; data that need it are refused there."""
    if device.type == "mps" and items.dtype == torch.float64:
        items = items.to(torch.float32)
    return items.to(device, non_blocking=device.type == "cuda")


class _Reader(torch.utils.data.Dataset[Any]):
    """A map-style dataset that returns an error instead of an item that cannot be read."""

    def __init__(self, samples: Samples, name: str) -> None:
        self.scripts = LoadedScripts()  # first, since a script may define what the other attributes hold
        self.items, self.labels, self.shape, self.name = samples.items, samples.labels, samples.shape, name

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Any, Tensor | None]:
        try:
            item = item_of(self.items, i)
            if tuple(item.shape) != self.shape:
                raise ValueError(f"items are {tuple(item.shape)}, but the shape says {self.shape} (item {i})")
            return item, None if self.labels is None else self.labels[i]
        except (ValueError, OSError) as error:
            return DifftoolError(one_line(error)), None
        except Exception as error:
            return DifftoolError(f"{self.name} failed: {describe(error)}"), None


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ignore signals in a worker. Ctrl-C reaches every process, and the one that trains ends the workers itself."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _collate(pairs: list[tuple[Any, Tensor | None]]) -> tuple[Any, Tensor | None]:
    """Stack items and labels, or return the first error among the items."""
    for item, _ in pairs:
        if isinstance(item, DifftoolError):
            return item, None
    labels = [label for _, label in pairs if label is not None]
    return torch.stack([item for item, _ in pairs]), torch.stack(labels) if labels else None
