"""Many image files: a source of items for worker processes, and functions that read or check files on all cores."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from difftool import BadImage, check_image, read_image

CHUNK = 16
"""Files that a thread reads in one go: enough to keep the overhead small, and few enough to stop soon."""


CENTRE = (0.5, 0.5)
Place = tuple[float, float] | None
"""The place (y, x) of a crop, from 0 to 1 each, or None for the whole image with a border."""


@dataclass(frozen=True, kw_only=True)
class ImageSource(ABC):
    """A map-style source of images of one size. Item i is decoded each time it is read."""

    channels: int
    size: tuple[int, int]
    skip_bad: bool
    """Images that cannot be read are left out before training. Otherwise an error names the option for that."""
    bits: int = 8
    crop: Place = CENTRE

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Tensor:
        """Return pixels (channels, height, width), uint8 or float32 of 16 bits. Raises `BadImage`."""
        return self.read(i, self.crop)

    @abstractmethod
    def read(self, i: int, crop: Place) -> Tensor:
        """Return the pixels of image i with another crop. Raises `BadImage`."""

    @abstractmethod
    def check(self, i: int) -> None:
        """Read the header alone. Raises `BadImage`."""

    @abstractmethod
    def choose(self, numbers: Sequence[int]) -> Self:
        """Return the source of some of the images."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.bits == 8 else torch.float32

    @property
    def nbytes(self) -> int:
        """The bytes that all images take in memory."""
        return len(self) * self.channels * math.prod(self.size) * self.dtype.itemsize

    def _decoded(self, image: str | bytes, crop: Place) -> Tensor:
        return read_image(image, channels=self.channels, size=self.size, bits=self.bits, crop=crop, alpha="straight")


@dataclass(frozen=True, kw_only=True)
class ImageFiles(ImageSource):
    """The images of files."""

    root: str
    names: list[str]
    others: tuple[str, ...] = ()
    """More folders, beside the root."""
    folders: list[int] | None = None
    """The folder of each image, 0 for the root and 1 for the first of the others; None if all lie in the root."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int, crop: Place) -> Tensor:
        with self._advice():
            return self._decoded(self.path(i), crop)

    def path(self, i: int) -> str:
        k = 0 if self.folders is None else self.folders[i]
        return os.path.join((self.root, *self.others)[k], self.names[i])

    def identity(self, i: int) -> str:
        """Return the name of an image in its folder, with the number of the folder before it unless it is the root."""
        k = 0 if self.folders is None else self.folders[i]
        return f"{k}:{self.names[i]}" if k else self.names[i]

    def check(self, i: int) -> None:
        with self._advice():
            check_image(self.path(i))

    def choose(self, numbers: Sequence[int]) -> Self:
        folders = None if self.folders is None else [self.folders[i] for i in numbers]
        return replace(self, names=[self.names[i] for i in numbers], folders=folders)

    @contextlib.contextmanager
    def _advice(self) -> Iterator[None]:
        try:
            yield
        except BadImage as error:
            if self.skip_bad:
                raise
            raise BadImage(f"{error}; use --dataset.skip-bad to leave such files out") from error


@dataclass(frozen=True)
class RandomCrops:
    """A map-style source of images that training crops at random, and all else in the middle."""

    files: ImageSource

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        return self.files[i]

    def draw(self, i: int, seed: int) -> Tensor:
        """Return image i, cropped at a place that is a function of the seed. Raises `BadImage`."""
        return self.files.read(i, ((seed >> 31) % 2**31 / 2**31, seed % 2**31 / 2**31))


def read_all(files: ImageSource) -> tuple[Tensor, dict[int, BadImage]]:
    """Return all images (N, channels, height, width), and the errors of bad files by number.

    The pixels of bad files are undefined. Raises `BadImage` for the first bad file, unless `files.skip_bad` is set, and
    `ValueError` if the images do not fit into memory.
    """
    shape = (len(files), files.channels, *files.size)
    try:
        items = torch.empty(shape, dtype=files.dtype)
    except RuntimeError:
        gib = files.nbytes / 2**30
        raise ValueError(f"{gib:.1f} GiB of images do not fit into memory; set a lower --dataset.memory") from None

    def read(i: int) -> None:
        items[i] = files[i]

    return items, _survey(read, range(len(files)), files.skip_bad)


def check_all(files: ImageSource, numbers: Sequence[int]) -> dict[int, BadImage]:
    """Return the errors of bad files by number. With `files.skip_bad`, files are decoded; otherwise the header decides.

    Raises `BadImage` for the first bad file, unless `files.skip_bad` is set.
    """

    def decode(i: int) -> None:
        files[i]

    return _survey(decode if files.skip_bad else files.check, numbers, files.skip_bad)


def _survey(look: Callable[[int], object], numbers: Sequence[int], collect: bool) -> dict[int, BadImage]:
    """Call `look` for every file, in threads, since Pillow releases the interpreter lock while it decodes.

    Return the errors of bad files by number, or raise the first one unless they are collected.
    """

    def look_at(chunk: Sequence[int]) -> dict[int, BadImage]:
        errors = {}
        for i in chunk:
            try:
                look(i)
            except BadImage as error:
                errors[i] = error
        return errors

    bad: dict[int, BadImage] = {}
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of damage that does not matter, and raises the rest
        for errors in pool.map(look_at, chunks):  # an exception in this loop cancels the chunks that are not yet begun
            if errors and not collect:
                raise next(iter(errors.values()))
            bad |= errors
    return bad
