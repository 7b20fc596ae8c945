"""Items that are packed together in large files: images, arrays and texts, in memory if they are few."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from difftool import BadImage, DifftoolError, check_image, printable, read_image, read_json, write_json
from difftool_plugins.datasets.images.files import check_all, read_all
from difftool_plugins.datasets.images.folders import MAX_LISTED

GIB_IN_MEMORY, IMAGES_IN_MEMORY = 2.0, 20_000
"""Defaults for what is held in memory, as those of image-folder."""
MEASURED = 4096
"""The items, evenly spread, by which arrays are scaled that are not held in memory."""


class Cells(Protocol):
    """One column of packed items."""

    def __len__(self) -> int: ...
    def name(self, i: int) -> str:
        """Return the name of a cell for errors, such as `a.tar: 0001.png`."""

    def content(self, i: int) -> Any:
        """Return the content of a cell: for an image its encoded bytes, or the path of a file."""


@dataclass(frozen=True)
class PackedImages:
    """A map-style source of encoded images. Item i is decoded each time it is read."""

    cells: Cells
    channels: int
    size: tuple[int, int]
    skip_bad: bool
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        """Return uint8 pixels (channels, height, width). Raises `BadImage`."""
        pixels: Tensor = self._named(i, lambda image: read_image(image, channels=self.channels, size=self.size))
        return pixels

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def nbytes(self) -> int:
        return len(self) * self.channels * math.prod(self.size)

    def check(self, i: int) -> None:
        self._named(i, lambda image: check_image(image) if isinstance(image, str) else None)

    def choose(self, numbers: Sequence[int]) -> PackedImages:
        """Return the source of some of the images."""
        return replace(self, rows=[self.rows[i] for i in numbers])

    def _named(self, i: int, read: Callable[[bytes | str], Any]) -> Any:
        try:
            content = self.cells.content(self.rows[i])
            if not isinstance(content, (bytes, str)):
                raise BadImage("holds no image")
            return read(content)
        except (ValueError, OSError) as error:
            advice = "" if self.skip_bad else "; use --dataset.skip-bad to leave such items out"
            raise BadImage(f"{printable(self.cells.name(self.rows[i]))}: {error}{advice}") from error


@dataclass(frozen=True)
class PackedArrays:
    """A map-style source of arrays of numbers, float32."""

    cells: Cells
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        """Return an array. Raises `ValueError` for anything else."""
        try:
            content = self.cells.content(self.rows[i])
            if isinstance(content, bytes):
                content = np.load(io.BytesIO(content))
            array = np.asarray(content)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"holds no array of numbers, but {array.dtype}")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{printable(self.cells.name(self.rows[i]))}: {error}") from None
        return torch.from_numpy(np.array(array, dtype=np.float32))

    def choose(self, numbers: Sequence[int]) -> PackedArrays:
        return replace(self, rows=[self.rows[i] for i in numbers])


def load_images(
    sources: Sequence[PackedImages], memory: float | None, cache: Path | None
) -> tuple[list[Tensor | PackedImages], list[int]]:
    """Return images and the images that belong to them, in memory if they fit, and the numbers of the good ones.

    In a set that does not fit, an image is decoded when it is read, and an error names it. With `skip_bad` all are
    decoded once, and the bad ones are remembered in the file `cache`. Raises `BadImage`, and `ValueError` if none can
    be read.
    """
    count = len(sources[0])
    few = memory is not None or count <= IMAGES_IN_MEMORY
    in_memory = few and sum(source.nbytes for source in sources) <= room(memory)
    bad: dict[int, str] = {}
    tensors = []
    if in_memory:
        for source in sources:
            tensor, errors = read_all(source)
            tensors.append(tensor)
            bad |= {i: str(error) for i, error in errors.items()}
    elif sources[0].skip_bad:
        known = _remembered(cache)
        bad = _checked(sources) if known is None else known
        if cache is not None and known is None:
            with contextlib.suppress(DifftoolError):  # it only saves time
                write_json(cache, {str(i): error for i, error in bad.items()})
    good = [i for i in range(count) if i not in bad]
    report(list(bad.values()), count)
    if in_memory:
        return [tensor[good] if bad else tensor for tensor in tensors], good
    return [source.choose(good) for source in sources], good


def _checked(sources: Sequence[PackedImages]) -> dict[int, str]:
    bad: dict[int, str] = {}
    for source in sources:
        bad |= {i: str(error) for i, error in check_all(source, range(len(source))).items()}
    return bad


def _remembered(file: Path | None) -> dict[int, str] | None:
    """Return the errors in a file by number, or None if it is missing or damaged."""
    if file is None:
        return None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return {int(i): str(error) for i, error in read_json(file).items()}
    return None


def report(bad: Sequence[str], total: int) -> None:
    """Warn of items that were left out. Raises `ValueError` if none is left."""
    if not bad:
        return
    if len(bad) >= total:
        raise ValueError(f"none of the {total} items can be read; the first error: {bad[0]}")
    more = f"; and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
    warnings.warn(f"left out {len(bad)} of {total} items: {'; '.join(bad[:MAX_LISTED])}{more}", stacklevel=4)


def room(memory: float | None) -> float:
    """Return the bytes of items that are held in memory, of a number of GiB or None for the default."""
    return (GIB_IN_MEMORY if memory is None else memory) * 2**30


def load_arrays(arrays: PackedArrays, memory: float | None) -> Tensor | PackedArrays:
    """Return arrays, in memory if they fit. Raises `ValueError` for arrays of several shapes."""
    first = arrays[0]
    if len(arrays) * first.numel() * 4 > room(memory):
        return arrays
    if (whole := _block(arrays, first)) is not None:
        return whole
    items = first.new_empty(len(arrays), *first.shape)
    for i in range(len(arrays)):
        row = arrays[i]
        if row.shape != first.shape:
            raise ValueError(
                f"{printable(arrays.cells.name(arrays.rows[i]))} is {tuple(row.shape)}, but the first one "
                f"{tuple(first.shape)}; all arrays must have one shape"
            )
        items[i] = row
    return items


def _block(arrays: PackedArrays, first: Tensor) -> Tensor | None:
    """Return all arrays at once where the cells can be read in blocks and have one shape, or None."""
    block = getattr(arrays.cells, "block", None)
    whole = None if block is None else block(arrays.rows)
    if whole is None or whole.dtype.kind not in "biuf" or whole.shape != (len(arrays), *first.shape):
        return None
    return torch.from_numpy(np.array(whole, dtype=np.float32))


def moments(items: Tensor | PackedArrays) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel, of at most 4096 items if they are not in memory."""
    if not isinstance(items, Tensor):
        count = min(MEASURED, len(items))
        try:
            items = torch.stack([items[k * len(items) // count] for k in range(count)])
        except RuntimeError:
            raise ValueError("the arrays differ in shape; all of them must have one") from None
    values = items.double().movedim(1, 0).flatten(1)
    deviation = values.std(dim=1, correction=0)
    return tuple(values.mean(dim=1).tolist()), tuple(d if d > 0 else 1.0 for d in deviation.tolist())


def classes_of(values: Sequence[Any], where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return the class of each value (N,) int64, and the names of the classes.

    Whole numbers are sorted by size, and texts by their bytes. Raises `ValueError` for other values.
    """
    if all(isinstance(value, (bool, int)) or _is_number(value) for value in values):
        numbers = [int(value) for value in values]
        names = sorted(set(numbers))
        place = {number: k for k, number in enumerate(names)}
        return torch.tensor([place[number] for number in numbers]), tuple(map(str, names))
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"labels: {where} must hold texts or whole numbers, not {value!r:.60} (item {i})")
    texts = sorted(set(values), key=lambda text: text.encode("utf-8", "surrogatepass"))
    order = {text: k for k, text in enumerate(texts)}
    return torch.tensor([order[value] for value in values]), tuple(texts)


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and value.strip().removeprefix("-").isdecimal() and len(value) <= 18


def digest(*parts: bytes | str) -> str:
    """Return the SHA-256 of texts and bytes, each with its length."""
    sha = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        sha.update(b"%d\0" % len(raw) + raw)
    return sha.hexdigest()
