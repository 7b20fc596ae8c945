"""Many image files at once: as a source for worker processes, or read into memory on all cores."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difftool import BadImage, check_image, read_image

PART = 16
"""Files that a thread takes at once: enough to spare the threads from each other, few enough to stop soon."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files as a map-style source: item i is decoded anew each time it is asked for."""

    root: str
    names: list[str]
    channels: int
    size: tuple[int, int]
    skip_bad: bool
    """Whether bad files are left out before training; if not, an error says that they could be."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        """uint8 (channels, height, width). Raises `BadImage`."""
        with self._advising():
            return read_image(self.path(i), channels=self.channels, size=self.size)

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.names[i])

    def check(self, i: int) -> None:
        """Read the header alone. Raises `BadImage`."""
        with self._advising():
            check_image(self.path(i))

    def with_names(self, names: list[str]) -> ImageFiles:
        return replace(self, names=names)

    @contextlib.contextmanager
    def _advising(self) -> Iterator[None]:
        try:
            yield
        except BadImage as error:
            if self.skip_bad:
                raise
            raise BadImage(f"{error}; use --dataset.skip-bad to leave such files out") from error


def read_all(files: ImageFiles) -> tuple[Tensor, dict[int, BadImage]]:
    """All images, uint8 (N, channels, height, width), and the bad ones by number, whose pixels are undefined.

    Without `skip_bad` the first bad one is raised.
    """
    shape = (len(files), files.channels, *files.size)
    try:
        items = torch.empty(shape, dtype=torch.uint8)
    except RuntimeError:
        gib = math.prod(shape) / 2**30
        raise ValueError(f"no room for {gib:.1f} GiB of images; a lower --dataset.memory needs less") from None

    def read(i: int) -> None:
        items[i] = files[i]

    return items, _survey(read, range(len(files)), files.skip_bad)


def check_all(files: ImageFiles, numbers: Sequence[int]) -> dict[int, BadImage]:
    """The bad among these: by their headers, or, with `skip_bad`, by decoding them. Without, the first is raised."""

    def decode(i: int) -> None:
        files[i]

    return _survey(decode if files.skip_bad else files.check, numbers, files.skip_bad)


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror about half of the images (B, C, H, W) left to right, each by a coin of its own."""
    heads = torch.rand(len(x), generator=generator, device=x.device) < 0.5
    return torch.where(heads.view(-1, 1, 1, 1), x.flip(-1), x)


def _survey(look: Callable[[int], object], numbers: Sequence[int], collect: bool) -> dict[int, BadImage]:
    """Look at every file, on all cores (Pillow frees the interpreter while it decodes). The bad are collected, or the
    first is raised."""

    def attempt(part: Sequence[int]) -> dict[int, BadImage]:
        found = {}
        for i in part:
            try:
                look(i)
            except BadImage as error:
                found[i] = error
        return found

    bad: dict[int, BadImage] = {}
    parts = [numbers[start : start + PART] for start in range(0, len(numbers), PART)]
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # of Pillow's: what matters is raised
        for found in pool.map(attempt, parts):  # whatever ends this loop early also cancels the parts not begun
            if found and not collect:
                raise next(iter(found.values()))
            bad |= found
    return bad
