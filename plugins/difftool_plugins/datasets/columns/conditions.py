"""What comes with the images of a folder: condition images computed from them, aligned files, and tokens."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difftool import BadImage, check_image, printable, read_image, same_proportions
from difftool_plugins.datasets.folders import list_images
from difftool_plugins.datasets.images.files import ImageFiles

LUMA = (19595, 38470, 7471)
"""The weights of red, green and blue in gray, in units of 2^-16 (ITU-R BT.601), as Pillow's convert("L") has them."""
LOOKED_AT = 256
"""The partners whose headers decide whether condition images are gray."""
SHAPES = 4
"""The strokes of a brush, or rectangles, in a mask."""


# ── computed from the images ────────────────────────────────────────────────────────────────────


def function_of(word: str) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return the function of images that `gray`, `mask` or `shrink:N` names."""
    if word.startswith("shrink:"):
        return partial(shrunk, factor=int(word.removeprefix("shrink:")))
    return {"gray": gray, "mask": masked}[word]


def gray(items: Tensor, _: torch.Generator) -> Tensor:
    """Return RGB images (B, 3, H, W) as gray ones (B, 1, H, W), uint8."""
    items = _pixels(items)
    red, green, blue = (weight * items[:, k : k + 1].int() for k, weight in enumerate(LUMA))
    return ((red + green + blue + 2**15) >> 16).to(torch.uint8)


def _pixels(items: Tensor) -> Tensor:
    """Return images of 16 bits, which are floats from 0 to 255, as uint8; others stay as they are."""
    return items.round().to(torch.uint8) if items.is_floating_point() else items


def shrunk(items: Tensor, _: torch.Generator, factor: int) -> Tensor:
    """Return the means of factor x factor pixels, each repeated, so that height and width stay, uint8."""
    return enlarged(F.avg_pool2d(items.float(), factor).round_().to(torch.uint8), factor)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """Return images (..., H, W) with each pixel repeated as a square."""
    return images.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def masked(items: Tensor, random: torch.Generator) -> Tensor:
    """Hide random rectangles of one half of the images (B, C, H, W), and strokes of a brush of the other.

    Return uint8 (B, C + 1, H, W): the images, black where they are hidden, and 255 where they are seen, else 0.
    """
    items = _pixels(items)
    count, _, height, width = items.shape
    y = torch.arange(height, device=items.device).view(1, height, 1) + 0.5  # the centres of pixels
    x = torch.arange(width, device=items.device).view(1, 1, width) + 0.5
    u = torch.rand(SHAPES + 1, 5, count, 1, 1, generator=random, device=items.device)
    brushed = u[0, 4] < 0.5
    hidden = torch.zeros(count, height, width, dtype=torch.bool, device=items.device)
    for before, this in pairwise(u):
        y_0, x_0, y_1, x_1 = before[0] * height, before[1] * width, this[0] * height, this[1] * width
        reach = [0.75 + 0.25 * side * part for side, part in ((height, this[2]), (width, this[3]))]
        rectangle = ((y - y_1).abs() < reach[0]) & ((x - x_1).abs() < reach[1])
        dy, dx = y_1 - y_0, x_1 - x_0  # the brush moves from point to point in a straight line
        along = (((y - y_0) * dy + (x - x_0) * dx) / (dy * dy + dx * dx + 1e-6)).clamp(0, 1)
        stroke = torch.hypot(y - y_0 - along * dy, x - x_0 - along * dx) < 0.75 + 0.12 * min(height, width) * this[4]
        hidden |= torch.where(brushed, stroke, rectangle)
    seen = (~hidden).unsqueeze(1).to(torch.uint8)
    return torch.cat([items * seen, 255 * seen], dim=1)


# ── read from files ─────────────────────────────────────────────────────────────────────────────


def read_shrunk(path: Path, shape: tuple[int, int, int], factor: int, crop: tuple[float, float] | None) -> Tensor:
    """Return an image file, or each of a folder's, as `shrunk` makes them: (C, H, W), or (N, C, H, W).

    A file of H/factor x W/factor pixels stays as it is, and others are scaled and cropped to that size, or get a border
    if `crop` is None. Raises `BadImage`, and `ValueError` for a folder without images.
    """
    channels, height, width = shape
    files = [path / name for name in sorted(list_images(str(path))) if "/" not in name] if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{printable(str(path))} holds no image")
    size = (height // factor, width // factor)
    small = torch.stack([read_image(f, channels=channels, size=size, crop=crop, alpha="straight") for f in files])
    images = enlarged(small, factor)
    return images if path.is_dir() else images[0]


@dataclass(frozen=True, kw_only=True)
class PartnerFiles(ImageFiles):
    """A map-style source of the condition images of other images: aligned with them, and of their proportions."""

    originals: ImageFiles

    @classmethod
    def of(cls, root: str, originals: ImageFiles, names: Sequence[str]) -> PartnerFiles:
        """Find the partners of the originals among the images `names` of another folder.

        A partner has the same name relative to its folder, but for its suffix. Raises `ValueError` for one that is
        missing.
        """
        exact, by_stem = set(names), dict[str, list[str]]()
        for name in names:
            by_stem.setdefault(_stem(name), []).append(name)
        partners = []
        for name in originals.names:
            found = [name] if name in exact else by_stem.get(_stem(name), [])
            if len(found) != 1:
                several = f"both {printable(found[0])} and {printable(found[1])}" if found else "no image"
                raise ValueError(f"condition: {printable(root)} has {several} for {printable(name)}")
            partners.append(found[0])
        files = cls(
            root=root,
            names=partners,
            channels=1,
            size=originals.size,
            skip_bad=originals.skip_bad,
            crop=originals.crop,
            originals=originals,
        )
        channels = 1
        for i in range(0, len(files), -(-len(files) // LOOKED_AT)):
            with contextlib.suppress(BadImage):  # it is reported when it is read
                channels = max(channels, check_image(files.path(i))[0])
        return replace(files, channels=channels)

    def read(self, i: int, crop: tuple[float, float] | None) -> Tensor:
        self.check(i)
        return super().read(i, crop)

    def check(self, i: int) -> None:
        """Compare the header with that of the original. Raises `BadImage`."""
        with self._advice():
            own, other = check_image(self.path(i)), check_image(self.originals.path(i))
            if not same_proportions(own[1:], other[1:]):
                sizes = [f"{width}x{height}" for _, height, width in (own, other)]
                original = printable(self.originals.path(i))
                raise BadImage(
                    f"{printable(self.path(i))} is {sizes[0]} pixels, and {original} {sizes[1]}; aligned images have "
                    "the same proportions"
                )
            if own[0] > self.channels:
                raise BadImage(f"{printable(self.path(i))} is in colour, and the condition images before it are gray")

    def choose(self, numbers: Sequence[int]) -> Self:
        return replace(super().choose(numbers), originals=self.originals.choose(numbers))


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


@dataclass
class ArrayRows:
    """A map-style source of rows of a `.npy` file, which is opened in each process that reads it."""

    path: Path
    rows: Sequence[int]

    def __post_init__(self) -> None:
        self._array: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        if self._array is None:
            self._array = open_array(self.path)
        return torch.from_numpy(np.array(self._array[self.rows[i]], dtype=np.float32))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_array": None}


def open_array(path: Path) -> Any:
    """Map a `.npy` file of tokens (N, L, D) into memory. Raises `ValueError`."""
    name = printable(str(path))
    if not path.is_file():
        raise ValueError(f"tokens: {name} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"tokens: {printable(str(path))} is not a .npy file of numbers, or is damaged ({error})"
        ) from None
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "biuf":
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise ValueError(
            f"tokens: {printable(str(path))} must hold numbers (N, L, D), a row for each image, not {found}"
        )
    return array


def tokens_of(path: Path, rows: Sequence[int], count: int, room: float) -> Tensor | ArrayRows:
    """Return the rows of a `.npy` file, in memory if they fit into `room` bytes. Raises `ValueError`.

    The file has a row for each of the `count` images of a folder, in the order of their sorted names.
    """
    array = open_array(path)
    if len(array) != count:
        raise ValueError(f"tokens: {printable(str(path))} has {len(array)} rows for {count} images")
    if len(rows) * math.prod(array.shape[1:]) * 4 > room:
        return ArrayRows(path, rows)
    return torch.from_numpy(np.array(array[np.asarray(rows)], dtype=np.float32))
