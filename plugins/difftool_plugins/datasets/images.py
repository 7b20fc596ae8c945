"""Many image files at once: as a source for worker processes, or read into memory on all cores."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool

import torch
from torch import Tensor

from difftool import BadImage, check_image, read_image


@dataclass(frozen=True)
class ImageFiles:
    """Image files as a map-style source: item i is decoded anew each time it is asked for."""

    root: str
    names: list[str]
    channels: int
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        """uint8 (channels, height, width). Raises `BadImage`."""
        return read_image(self.path(i), channels=self.channels, size=self.size)

    def path(self, i: int) -> str:
        return os.path.join(self.root, self.names[i])

    def check(self, i: int) -> None:
        """Read the header alone. Raises `BadImage`."""
        check_image(self.path(i))

    def with_names(self, names: list[str]) -> ImageFiles:
        return replace(self, names=names)


def read_all(files: ImageFiles, skip_bad: bool) -> tuple[Tensor, dict[int, BadImage]]:
    """All images, uint8 (N, channels, height, width), and the bad ones by number, whose pixels are undefined.

    Without `skip_bad` the first bad one is raised.
    """
    items = torch.empty(len(files), files.channels, *files.size, dtype=torch.uint8)

    def read(i: int) -> None:
        items[i] = files[i]

    return items, _survey(read, range(len(files)), skip_bad)


def check_all(files: ImageFiles, numbers: Iterable[int], skip_bad: bool) -> dict[int, BadImage]:
    """The bad among these: by their headers, or, with `skip_bad`, by decoding them. Without, the first is raised."""

    def decode(i: int) -> None:
        files[i]

    return _survey(decode if skip_bad else files.check, numbers, skip_bad)


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror about half of the images (B, C, H, W) left to right, each by a coin of its own."""
    heads = torch.rand(len(x), generator=generator, device=x.device) < 0.5
    return torch.where(heads.view(-1, 1, 1, 1), x.flip(-1), x)


def _survey(look: Callable[[int], object], numbers: Iterable[int], skip_bad: bool) -> dict[int, BadImage]:
    """Look at every file, on all cores (Pillow frees the interpreter while it decodes), and collect the bad ones."""

    def attempt(i: int) -> tuple[int, BadImage | None]:
        try:
            look(i)
        except BadImage as error:
            return i, error
        return i, None

    bad: dict[int, BadImage] = {}
    with warnings.catch_warnings(), ThreadPool(min(16, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # of Pillow's: what matters is raised
        for i, error in pool.imap(attempt, numbers, chunksize=8):
            if error is not None:
                if not skip_bad:
                    raise BadImage(f"{error}; use --dataset.skip-bad to leave such files out")
                bad[i] = error
    return bad
