"""Batches of training items, each a function of the step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, repeat
from typing import Any

import torch
from torch import Tensor

from difftool.data.columns import COLUMNS, images_of, row_of
from difftool.data.condition import Condition
from difftool.data.samples import Augment, Samples
from difftool.errors import DifftoolError, blaming, describe, one_line
from difftool.rng import generator, key, permutation
from difftool.scripts import LoadedScripts


@dataclass(frozen=True)
class Batch:
    """Raw items and their condition on the device for one or more steps, or this process's share of each step."""

    items: Tensor
    condition: Condition | None = None
    """Raw, as `Samples` hold it; `DataFacts.model_condition` brings it into the units of the network."""
    noise: Tensor | None = None
    """The noise that belongs to the items, or None if it is to be drawn."""


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
        encode: Callable[[Batch], Batch] | None = None,
    ) -> None:
        """Take the settings of batches; `name` is that of the data in errors from their code.

        `encode` is applied to every batch, once its items are augmented.
        """
        self.name, self.encode = name, encode
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.device, self.workers = torch.device(device), workers
        self.part = part or slice(0, batch_size)
        self.size = self.part.stop - self.part.start
        """The number of items that this process reads for a batch."""
        self.waited = 0.0
        """The time in seconds that training has waited for worker processes."""
        repeats = samples.repeats
        self._visits = None if repeats is None else torch.arange(len(samples)).repeat_interleave(repeats)
        self._order = lru_cache(maxsize=2)(self._order_of)
        if samples.in_memory:
            columns = {"items": samples.items, **samples.columns}
            self._columns = {name: _on_device(c, self.device) for name, c in columns.items() if isinstance(c, Tensor)}

    def indices(self, step: int, steps: int = 1) -> Tensor:
        """Return the indices of the items of these steps, int64 (steps * batch_size,).

        The i-th item overall is number i mod N in the order of epoch i div N, where N items are visited in an epoch.
        """
        n, first = self.samples.epoch_length, step * self.batch_size
        last = first + steps * self.batch_size
        parts = []
        while first < last:
            epoch, at = divmod(first, n)
            end = min(n, at + last - first)
            parts.append(self._order(epoch)[at:end])
            first += end - at
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _order_of(self, epoch: int) -> Tensor:
        """Return the items that an epoch visits, in its order."""
        order = permutation(self.samples.epoch_length, self.seed, "order", epoch)
        return order if self._visits is None else self._visits[order]

    def _own_draws(self, step: int) -> list[tuple[int, int]]:
        """Return the indices of this process's share, each with a number that is a function of its place in training.

        A source that draws its items at random takes it as the seed.
        """
        first = step * self.batch_size + self.part.start
        return [(i, key(self.seed, "draw", first + k)) for k, i in enumerate(self.own_indices(step).tolist())]

    def own_indices(self, step: int, steps: int = 1) -> Tensor:
        """Return the indices of this process's share."""
        return self.indices(step, steps).view(steps, self.batch_size)[:, self.part].flatten()

    def start(self, step: int, *, block: int = 1) -> Iterator[Batch]:
        """Yield the batches of this step and all that follow.

        Data in memory come for several steps at once: up to the next multiple of `block`.
        """
        batches = self._from_memory(step, block) if self.samples.in_memory else self._from_source(step)
        changes = self.samples.augment is not None or self.samples.images_function is not None
        for batch in batches:
            changed = self._changed(batch, step) if changes else batch
            yield changed if self.encode is None else self.encode(changed)
            step += len(batch.items) // self.size

    def _changed(self, batch: Batch, step: int) -> Batch:
        """Return the batch of this step, or of several from it on, augmented and with its computed images."""
        condition = batch.condition
        images = None if condition is None else condition.image
        own = repeat(None) if images is None else torch.split(images, self.size)
        parts = zip(torch.split(batch.items, self.size), own, strict=False)
        steps = [self._changed_step(*part, at) for at, part in enumerate(parts, start=step)]
        items = torch.cat([items for items, _ in steps])
        if steps[0][1] is not None:
            images = torch.cat([images for _, images in steps if images is not None])
            condition = Condition.shown({"image": images}) if condition is None else replace(condition, image=images)
        return Batch(items, condition, batch.noise)

    def _changed_step(self, items: Tensor, images: Tensor | None, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the items and images of a step, changed at their places in the whole batch.

        Thereby the shares of several processes change no random number.
        """
        augment, compute = self.samples.augment, self.samples.images_function
        items, images = self._whole(items), None if images is None else self._whole(images)
        with blaming(self.name):
            if augment is not None:
                items, images = _augmented(augment, items, images, self._generator("augment", step))
            if compute is not None:
                images = images_of(compute, items, self._generator("images", step))
        return items[self.part], None if images is None else images[self.part]

    def _whole(self, rows: Tensor) -> Tensor:
        """Return rows of a whole batch, with zeros for those of other processes."""
        if self.size == self.batch_size:
            return rows
        whole = rows.new_zeros(self.batch_size, *rows.shape[1:])
        whole[self.part] = rows
        return whole

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return generator(self.seed, purpose, step, device=self.device)

    def _from_memory(self, step: int, block: int) -> Iterator[Batch]:
        while True:
            steps = block - step % block
            indices, cuda = self.own_indices(step, steps), self.device.type == "cuda"
            if cuda:  # a copy from ordinary memory would wait for the device
                indices = indices.pin_memory()
            indices = indices.to(self.device, non_blocking=cuda)
            yield _batch({name: column.index_select(0, indices) for name, column in self._columns.items()})
            step += steps

    def _from_source(self, step: int) -> Iterator[Batch]:
        from torch.utils.data import DataLoader

        cuda, drawn = self.device.type == "cuda", self.samples.drawn
        loader: DataLoader[Any] = DataLoader(
            _Reader(self.samples, self.name),
            batch_sampler=(self._own_draws(k) if drawn else self.own_indices(k).tolist() for k in count(step)),
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
            rows = next(read)
            self.waited += time.perf_counter() - start
            if isinstance(rows, DifftoolError):  # a worker would add its traceback, so the error is handed over
                # a new one, since this frame must not outlive its error: workers end with it
                raise DifftoolError(str(rows))
            yield _batch({name: _on_device(column, self.device) for name, column in rows.items()})


def _batch(rows: dict[str, Tensor]) -> Batch:
    """Return a batch of the rows of items and columns by name."""
    items, noise = rows.pop("items"), rows.pop("noise", None)
    return Batch(items, Condition.shown(rows), noise)


def _augmented(
    augment: Augment, items: Tensor, images: Tensor | None, random: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Return augmented items, and images if there are any.

    Raises `DifftoolError` if a shape changed, which training would broadcast.
    """
    result = augment(items, random) if images is None else augment(items, random, images)
    if images is None:
        pairs = [(result, items)]
    elif isinstance(result, tuple) and len(result) == 2:
        pairs = [(result[0], items), (result[1], images)]
    else:
        raise DifftoolError("augment() of the dataset must return (items, images), since it has condition images")
    for new, old in pairs:
        if new.shape != old.shape:
            raise DifftoolError(f"augment() of the dataset made {tuple(new.shape)} of {tuple(old.shape)}")
    if images is not None and pairs[1][0].dtype != images.dtype:  # pixels are told from model units by it
        raise DifftoolError(f"augment() of the dataset made {pairs[1][0].dtype} of images of {images.dtype}")
    return pairs[0][0], None if images is None else pairs[1][0]


def _on_device(items: Tensor, device: torch.device) -> Tensor:
    """Copy items to the device. Apple GPUs have no float64; data that need it are refused there."""
    if device.type == "mps" and items.dtype == torch.float64:
        items = items.to(torch.float32)
    return items.to(device, non_blocking=device.type == "cuda")


class _Reader(torch.utils.data.Dataset[Any]):
    """A map-style dataset that returns an error instead of an item that cannot be read."""

    def __init__(self, samples: Samples, name: str) -> None:
        self.scripts = LoadedScripts()  # first, since a script may define what the other attributes hold
        self.columns = {"items": samples.items, **samples.columns}
        self.shapes = {"items": samples.shape, **samples.row_shapes}
        self.name = name

    def __len__(self) -> int:
        return len(self.columns["items"])

    def __getitem__(self, place: int | tuple[int, int]) -> dict[str, Tensor] | DifftoolError:
        """Return the item of an index, or of an index and the seed of a draw, and what comes with it, by name."""
        i, seed = place if isinstance(place, tuple) else (place, None)
        try:
            return {name: self._row(name, i, seed) for name in self.columns}
        except (ValueError, OSError) as error:
            return DifftoolError(one_line(error))
        except Exception as error:
            return DifftoolError(f"{self.name} failed: {describe(error)}")

    def _row(self, name: str, i: int, seed: int | None) -> Tensor:
        row = row_of(self.columns[name], name, i, seed)
        if tuple(row.shape) != self.shapes[name]:
            if name == "items":
                raise ValueError(f"items are {tuple(row.shape)}, but the shape says {self.shapes[name]} (item {i})")
            raise ValueError(
                f"{COLUMNS[name]} differ in shape: {self.shapes[name]}, then {tuple(row.shape)} (item {i})"
            )
        return row


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ignore signals in a worker. Ctrl-C reaches every process, and the one that trains ends the workers itself."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _collate(rows: list[dict[str, Tensor] | DifftoolError]) -> dict[str, Tensor] | DifftoolError:
    """Stack items and columns by name, or return the first error among the rows."""
    whole: list[dict[str, Tensor]] = []
    for row in rows:
        if isinstance(row, DifftoolError):
            return row
        whole.append(row)
    return {name: torch.stack([row[name] for row in whole]) for name in whole[0]}
