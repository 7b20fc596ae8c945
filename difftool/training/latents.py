"""The latents of a run: the codec that is fitted or read back, and the data as it encodes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difftool.components import Codec, Dataset
from difftool.data.batches import Batch
from difftool.data.columns import Column
from difftool.data.facts import DataFacts
from difftool.data.latents import CHUNK, LatentSpace, check_latents, latent_facts
from difftool.data.samples import Samples, fingerprint
from difftool.data.tensors import tensor_of
from difftool.errors import BadFile, DifftoolError, UsageError, blaming
from difftool.files import atomic
from difftool.plugins.build import build_codec, cache_folder, loading
from difftool.runs import checkpoint, states
from difftool.runs.folder import RunFolder
from difftool.runs.latents import KEY, document_of, read_space, tensors_of
from difftool.runs.recipe import Recipe
from difftool.version import __version__

Watch = Callable[[int, int], object]
"""(done, total): is called after each part of the items that are encoded."""
MOST_IN_MEMORY = 2**28
"""The largest number of latents in a file that are treated as items in memory: 1 GiB."""
MEASURED = 4_096
"""The number of items, spread over the data, whose latents are measured."""


def latent_space(
    recipe: Recipe, data: DataFacts, samples: Samples, device: torch.device, resumed: RunFolder | None
) -> LatentSpace | None:
    """Return the latents of a new run, whose codec is fitted to its training data, or those of the run to resume.

    Return None if the network works on the data themselves. Raises `UsageError` and `DifftoolError`.
    """
    component = recipe[Codec]
    if resumed is not None and (found := _saved_space(component, data, resumed)) is not None:
        found.codec.to(device)
        return found
    codec, name = build_codec(component, data.shape), f"codec {component.name}"
    if codec is None:
        return None
    if samples.noise is not None:
        raise UsageError(f"{name}: the dataset brings the noise of its items, which has no latents; use --codec none")
    codec.to(device)
    dataset = recipe[Dataset]
    with blaming(name, DifftoolError), torch.no_grad():
        component.fit(codec, lambda: _batches(samples, data, dataset, device))
    codec.eval().requires_grad_(False)
    stride = max(1, math.ceil(len(samples) / MEASURED))
    with loading(dataset):
        items = samples.take_items(range(0, len(samples), stride))
    x = data.scaling.to_model(items.to(device))
    return LatentSpace(codec, data, latent_facts(component, codec, data, x), name)


def _saved_space(component: Codec, data: DataFacts, run: RunFolder) -> LatentSpace | None:
    """Return the latents that the newest readable state of a run records, or None."""
    for path in run.saved_states():
        try:
            if KEY not in states.load_document(path):
                continue
            tensors, document = states.load(path)
            codec = {name.removeprefix("codec."): t for name, t in tensors.items() if name.startswith("codec.")}
            return read_space(path, component, data, document, codec)
        except BadFile:  # which is told when the state itself is read
            continue
    return None


def _batches(samples: Samples, data: DataFacts, dataset: Dataset, device: torch.device) -> Iterator[Tensor]:
    """Yield all items in order, (B, *shape) in model units."""
    for indices in _chunks(samples):
        with loading(dataset):
            items = samples.take_items(indices)
        yield data.scaling.to_model(items.to(device))


def _chunks(samples: Samples) -> Iterator[range]:
    """Yield the indices of all items, some at a time."""
    size = max(1, CHUNK // math.prod(samples.shape))
    for start in range(0, len(samples), size):
        yield range(start, min(len(samples), start + size))


@dataclass(frozen=True)
class Feed:
    """The items that the network learns: the data, or their latents."""

    train: Samples
    held_out: Samples | None = None
    encode: Callable[[Batch], Batch] | None = None
    """The function that encodes each batch, for items or condition images that are not the same every time."""

    @classmethod
    def of(
        cls,
        train: Samples,
        held_out: Samples | None,
        space: LatentSpace | None,
        dataset: Dataset,
        device: torch.device,
        *,
        watch: Watch | None = None,
    ) -> Feed:
        """Return the data, or their latents, made once where nothing about the items is random."""
        if space is None:
            return cls(train, held_out)
        held_out = None if held_out is None else encoded(held_out, space, dataset, device)
        if train.augment is not None or train.images_function is not None or train.drawn:
            return cls(train, held_out, encoder(space))
        return cls(encoded(train, space, dataset, device, watch), held_out)


def encoder(space: LatentSpace) -> Callable[[Batch], Batch]:
    """Return the function that encodes a batch of raw items, and their condition images."""

    def encode(batch: Batch) -> Batch:
        items, condition = _encoded(space, batch.items, batch.condition)
        return replace(batch, items=items, condition=condition)

    return encode


def _encoded(space: LatentSpace, items: Tensor, condition: Any) -> tuple[Tensor, Any]:
    """Return the raw latents of raw items, and their raw condition with its image encoded, in model units."""
    z = space.raw(space.data.scaling.to_model(items))
    if condition is None or condition.image is None:
        return z, condition
    in_units = space.condition(space.data.model_condition(condition))
    return z, replace(condition, image=None if in_units is None else in_units.image)


def encoded(
    samples: Samples, space: LatentSpace, dataset: Dataset, device: torch.device, watch: Watch | None = None
) -> Samples:
    """Return samples whose items are their raw latents, each made once, in memory or in a file of the cache folder.

    Computed condition images become stored ones, the same ones every time, as `Samples.take` has them.
    """
    image = space.facts.condition.image or ()
    width = math.prod(space.facts.shape)
    size = (len(samples), width + (math.prod(image) if image else 0))

    def rows() -> Iterator[Tensor]:
        for indices in _chunks(samples):
            with loading(dataset):
                items, condition = samples.take(indices)
            z, condition = _encoded(space, items.to(device), None if condition is None else condition.to(device))
            check_latents(z, space.name)
            images = [condition.image.flatten(1)] if image else []
            yield torch.cat([z.flatten(1), *images], dim=1).cpu()
            if watch is not None:
                watch(indices.stop, len(samples))

    path, parts = _cache_file(samples, space, device), {"items": (slice(width), space.facts.shape)}
    if image:
        parts["images"] = (slice(width, None), image)
    table = _in_file(path, size, rows) if path is not None else _in_memory(size, rows)
    columns: dict[str, Column] = {name: table[:, part].view(-1, *shape) for name, (part, shape) in parts.items()}
    if path is not None and table.numel() > MOST_IN_MEMORY:  # workers read it, so that no device holds all of it
        columns = {name: Rows(path, len(samples), part, shape) for name, (part, shape) in parts.items()}
    return replace(
        samples,
        items=columns["items"],
        shape=space.facts.shape,
        shift=space.facts.shift,
        scale=space.facts.scale,
        bounds=space.facts.bounds,
        form=space.facts.form,
        rate=space.facts.rate,
        images=columns.get("images"),
        augment=None,
        mixture=None,
        column_names=(),
    )


@dataclass(frozen=True)
class Rows:
    """A part of the rows of a file's table as a source, which each worker opens by itself."""

    path: Path
    count: int
    part: slice
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor(_opened(self.path)[i, self.part]).view(self.shape)


@lru_cache(maxsize=4)
def _opened(path: Path) -> Any:
    """Return the table in a file, which is read as it is used."""
    return np.load(path, mmap_mode="r")


def _in_memory(size: tuple[int, int], rows: Callable[[], Iterator[Tensor]]) -> Tensor:
    table, start = torch.empty(size), 0
    for part in rows():
        table[start : start + len(part)] = part
        start += len(part)
    return table


def _in_file(path: Path, size: tuple[int, int], rows: Callable[[], Iterator[Tensor]]) -> Tensor:
    """Return the table in a file, which is written first if it is not there. Without room for it, memory holds it."""
    try:
        if (known := _mapped(path, size)) is not None:
            return known
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, temporary.open("wb") as file:  # a map of a full disk would end the process
            header = np.lib.format.header_data_from_array_1_0(np.empty((0, size[1]), dtype=np.float32))
            np.lib.format.write_array_header_1_0(file, {**header, "shape": size})
            for part in rows():
                file.write(part.contiguous().numpy().data)
    except OSError:
        return _in_memory(size, rows)
    written = _mapped(path, size)
    return _in_memory(size, rows) if written is None else written


def _mapped(path: Path, size: tuple[int, int]) -> Tensor | None:
    """Return the table in a file, which is read as it is used, or None if there is none of this size."""
    try:
        array = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError):
        return None
    fits = isinstance(array, np.memmap) and array.shape == size and array.dtype == np.float32
    return tensor_of(array) if fits else None


def _cache_file(samples: Samples, space: LatentSpace, device: torch.device) -> Path | None:
    """Return the file for the latents of samples, or None for data that are in memory anyway or have no fingerprint."""
    folder = cache_folder()
    if folder is None or samples.in_memory or not samples.fingerprint or samples.item_ids is None:
        return None
    known = [fingerprint(samples), list(samples.item_ids), samples.conditions, list(samples.shift), list(samples.scale)]
    text = json.dumps([__version__, device.type, space.name, known, document_of(space)], sort_keys=True)
    return folder / "latents" / f"{checkpoint.digest(on_cpu(tensors_of(space)), text)}.npy"


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
