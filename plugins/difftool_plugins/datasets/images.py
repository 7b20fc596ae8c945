"""Many image files: a source of items for worker processes, and functions that read or check files on all cores."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from difftool import BadImage, check_image, read_image

CHUNK = 16
"""Files that a thread reads in one go: enough to keep the overhead small, and few enough to stop soon."""


class ImageSource(Protocol):
    """A map-style source of images of one size, whose items raise `BadImage` if they cannot be decoded."""

    @property
    def channels(self) -> int: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def skip_bad(self) -> bool: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Tensor: ...
    def check(self, i: int) -> None:
        """Look at the header alone. Raises `BadImage`."""


@dataclass(frozen=True)
class ImageFiles:
    """A map-style source of images. Item i is decoded each time it is read."""

    root: str
    names: list[str]
    channels: int
    size: tuple[int, int]
    skip_bad: bool
    """Files that cannot be read are left out before training. Otherwise an error names the option for that."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        """Return uint8 pixels (channels, height, width). Raises `BadImage`."""
        with self._advice():
            return read_image(self.path(i), channels=self.channels, size=self.size)

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.names[i])

    def check(self, i: int) -> None:
        """Read the header alone. Raises `BadImage`."""
        with self._advice():
            check_image(self.path(i))

    def choose(self, numbers: Sequence[int]) -> ImageFiles:
        """Return the source of some of the images."""
        return replace(self, names=[self.names[i] for i in numbers])

    @contextlib.contextmanager
    def _advice(self) -> Iterator[None]:
        try:
            yield
        except BadImage as error:
            if self.skip_bad:
                raise
            raise BadImage(f"{error}; use --dataset.skip-bad to leave such files out") from error


def read_all(files: ImageSource) -> tuple[Tensor, dict[int, BadImage]]:
    """Return all images as uint8 (N, channels, height, width), and the errors of bad files by number.

    The pixels of bad files are undefined. Raises `BadImage` for the first bad file, unless `files.skip_bad` is set, and
    `ValueError` if the images do not fit into memory.
    """
    shape = (len(files), files.channels, *files.size)
    try:
        items = torch.empty(shape, dtype=torch.uint8)
    except RuntimeError:
        gib = math.prod(shape) / 2**30
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


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each of the images (B, C, H, W) left to right with probability 1/2."""
    return torch.where(_heads(x, generator), x.flip(-1), x)


def random_flip_pairs(x: Tensor, generator: torch.Generator, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror each of the images (B, C, H, W) left to right with probability 1/2, and its condition image with it."""
    heads = _heads(x, generator)
    return torch.where(heads, x.flip(-1), x), torch.where(heads, images.flip(-1), images)


def _heads(x: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(len(x), generator=generator, device=x.device) < 0.5).view(-1, 1, 1, 1)


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
