"""Items that are packed together in large files: images, arrays and texts, in memory if they are few."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from difftool import (
    BadImage,
    DifftoolError,
    check_image,
    printable,
    read_image,
    read_json,
    same_proportions,
    write_json,
)
from difftool_plugins.datasets.folders import report
from difftool_plugins.datasets.images.files import CENTRE, Place, RandomCrops, check_all, read_all
from difftool_plugins.datasets.options import bytes_in_memory, is_few

T = TypeVar("T")


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
    bits: int = 8
    crop: Place = CENTRE
    originals: Cells | None = None
    """The images that these belong to, of the same proportions."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        """Return pixels (channels, height, width), uint8 or float32 of 16 bits. Raises `BadImage`."""
        return self.read(i, self.crop)

    def read(self, i: int, crop: Place) -> Tensor:
        """Return the pixels of image i with another crop. Raises `BadImage`."""

        def pixels(image: bytes | str) -> Tensor:
            if self.originals is not None:
                self._check_proportions(image, self.originals.content(self.rows[i]))
            return read_image(
                image, channels=self.channels, size=self.size, bits=self.bits, crop=crop, alpha="straight"
            )

        return self._named(i, pixels)

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.bits == 8 else torch.float32

    @property
    def nbytes(self) -> int:
        return len(self) * self.channels * math.prod(self.size) * self.dtype.itemsize

    def check(self, i: int) -> None:
        self._named(i, check_image)

    def _check_proportions(self, image: bytes | str, original: bytes | str) -> None:
        sizes = [check_image(each)[1:] for each in (image, original)]
        if not same_proportions(*sizes):
            texts = [f"{width}x{height}" for height, width in sizes]
            raise BadImage(
                f"is {texts[0]} pixels, and its item is {texts[1]}; aligned images have the same proportions"
            )

    def choose(self, numbers: Sequence[int]) -> PackedImages:
        """Return the source of some of the images."""
        return replace(self, rows=[self.rows[i] for i in numbers])

    def _named(self, i: int, read: Callable[[bytes | str], T]) -> T:
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


def sources_of(
    columns: Sequence[Cells],
    rows: Sequence[int],
    *,
    channels: int,
    size: tuple[int, int],
    skip_bad: bool,
    bits: int,
    crop: str,
) -> list[PackedImages]:
    """Return the sources of images and of the images that belong to them, as the options of a dataset ask for them."""
    place = None if crop == "pad" else CENTRE
    first = PackedImages(columns[0], channels, size, skip_bad, rows, bits=bits, crop=place)
    return [first, *(replace(first, cells=column, bits=8, originals=columns[0]) for column in columns[1:])]


def marked(mark: str, bits: int, crop: str) -> str:
    """Return the fingerprint of images that are read in another way than by default."""
    return " ".join([mark, *([f"{bits} bits"] if bits != 8 else []), *([crop] if crop != "center" else [])])


class ImageOptions(Protocol):
    """The options of a dataset of images or arrays that make sense for images alone."""

    @property
    def images(self) -> str | None: ...
    @property
    def augment(self) -> Sequence[str]: ...
    @property
    def crop(self) -> str: ...
    @property
    def bits(self) -> int: ...


def check_arrays(options: ImageOptions) -> None:
    """Raise `ValueError` for options that arrays do not have."""
    if options.images is not None:
        raise ValueError("images: belong to items that are images")
    for name, default in (("augment", ()), ("crop", "center"), ("bits", 8)):
        if getattr(options, name) != default:
            raise ValueError(f"{name}: changes items that are images, and these are arrays")


def load_images(
    sources: Sequence[PackedImages], memory: float | None, cache: Path | None, *, random: bool = False
) -> tuple[list[Tensor | PackedImages | RandomCrops], list[int]]:
    """Return images and the images that belong to them, in memory if they fit, and the numbers of the good ones.

    In a set that does not fit, an image is decoded when it is read, and an error names it. With `skip_bad` all are
    decoded once, and the bad ones are remembered in the file `cache`. Raises `BadImage`, and `ValueError` if none can
    be read. With `random` images are cropped at random, so they are read during training.
    """
    count = len(sources[0])
    fits = is_few(memory, count) and sum(source.nbytes for source in sources) <= bytes_in_memory(memory)
    in_memory = fits and not random
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
    report(list(bad.values()), count, "items")
    if in_memory:
        return [tensor[good] if bad else tensor for tensor in tensors], good
    chosen = [source.choose(good) for source in sources]
    return [RandomCrops(source) if random else source for source in chosen], good


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


def load_arrays(arrays: PackedArrays, memory: float | None) -> Tensor | PackedArrays:
    """Return arrays, in memory if they fit. Raises `ValueError` for arrays of several shapes."""
    first = arrays[0]
    if len(arrays) * first.numel() * 4 > bytes_in_memory(memory):
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


def digest(*parts: bytes | str) -> str:
    """Return the SHA-256 of texts and bytes, each with its length."""
    sha = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        sha.update(b"%d\0" % len(raw) + raw)
    return sha.hexdigest()
