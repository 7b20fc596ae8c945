"""Samples that lie in files, as `difftool sample` or another program wrote them: an array, or a folder of images."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difftool.data.facts import DataFacts
from difftool.data.images import BadImage, read_image
from difftool.data.own_images import image_files
from difftool.data.samples import Samples
from difftool.data.tensors import tensor_of
from difftool.errors import DifftoolError, UsageError, one_line, printable

ARRAY = "samples"
"""The name of the samples in a .npz file, as `sample --out` writes it."""
MOST_CHANNELS = 4


def read_stored(path: Path, data: DataFacts) -> Samples:
    """Return the samples in a file of arrays or a folder of images, which must be such as `data` describe.

    Raises `DifftoolError` for files that cannot be read, or hold something else.
    """
    where = printable(str(path))
    if not path.exists():
        raise UsageError(f"{where} does not exist")
    items = _images(path, data, where) if path.is_dir() else _fitting(_array(path, where), data, where)
    return Samples(
        items=items,
        shape=data.shape,
        shift=data.shift,
        scale=data.scale,
        bounds=data.bounds,
        form=data.form,
        rate=data.rate,
    )


def _array(path: Path, where: str) -> Tensor:
    try:
        found: Any = np.load(path)
        if not isinstance(found, np.ndarray):
            with found:
                names = found.files
                if ARRAY not in names and len(names) != 1:
                    raise DifftoolError(f"{where} holds no array {ARRAY!r}; it has {', '.join(map(printable, names))}")
                found = found[ARRAY if ARRAY in names else names[0]]
        items = tensor_of(found, where)
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DifftoolError(f"{where} holds no numbers, or is damaged ({one_line(error)})") from None
    except OSError as error:
        raise DifftoolError(f"{where}: {error.strerror or one_line(error)}") from None
    assert isinstance(items, Tensor)
    return items


def _fitting(items: Tensor, data: DataFacts, where: str) -> Tensor:
    """Return items (N, *shape) of an array, whose images may have their channels last. Raises `DifftoolError`."""
    wanted = data.shape
    if data.has_pixels and tuple(items.shape[1:]) == (*wanted[1:], wanted[0]) != wanted:
        items = items.movedim(-1, 1)
    if items.ndim == 0 or tuple(items.shape[1:]) != wanted or len(items) < 2:
        found = "x".join(map(str, items.shape)) or "a single number"
        raise DifftoolError(f"{where} holds {found}, not 2 or more samples of {'x'.join(map(str, wanted))}")
    if items.is_floating_point() and not bool(items.isfinite().all()):
        raise DifftoolError(f"{where} holds NaN or infinite numbers")
    if data.has_pixels and items.dtype != torch.uint8:
        low, high = float(items.min()), float(items.max())
        if low < 0 or high > 255 or high <= 1:
            raise DifftoolError(f"{where} holds numbers from {low:g} to {high:g}; pixels must be from 0 to 255")
        items = items.round().to(torch.uint8)
    return items


@dataclass(frozen=True)
class _Images(Sequence[Tensor]):
    """Image files of one size, which are read as they are asked for."""

    paths: Sequence[Path]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: Any) -> Any:
        image = read_image(self.paths[i], channels=self.shape[0])
        if tuple(image.shape) != self.shape:
            found, wanted = ("x".join(map(str, shape)) for shape in (image.shape, self.shape))
            raise ValueError(f"{self.paths[i]} is {found}, and the items are {wanted}")
        return image


def _images(folder: Path, data: DataFacts, where: str) -> _Images:
    if not data.is_image or data.shape[0] > MOST_CHANNELS:
        raise DifftoolError(f"{where} is a folder, and the items are {data.words}; give a .npy or .npz file")
    paths = image_files(folder)
    if len(paths) < 2:
        raise DifftoolError(f"{where} holds no run, and {len(paths)} images; at least 2 are needed")
    try:
        images = _Images(paths, data.shape)
        images[0]
    except (BadImage, ValueError, OSError) as error:
        raise DifftoolError(one_line(error)) from None
    return images
