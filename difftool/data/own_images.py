"""Image files that a user names on the command line: to start from, to paint anew, and as conditions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from difftool.data.images import BadImage, check_image, cover_box, read_image, same_proportions
from difftool.errors import DifftoolError, UsageError

if TYPE_CHECKING:
    from difftool.data.facts import DataFacts

THRESHOLD = 128
"""The gray value of a mask from which on a pixel is white."""


def own_image(path: Path, data: DataFacts, name: str, option: str) -> Tensor:
    """Return the user's image (*shape) in model units, scaled and cropped to fit the model.

    `name` is that of the model, and `option` the one that gave the path. Raises `UsageError` if the model has other
    data, and `DifftoolError` if the file cannot be read.
    """
    shape = data.shape
    if not data.is_image:
        raise UsageError(f"{option}: {name} is not an image model; its samples are {data.words}")
    if shape[0] > 4:
        raise UsageError(f"{option}: image files are read with 1 to 4 channels, but {name} has {shape[0]}")
    pixels = _read(path, option, channels=shape[0], size=(shape[1], shape[2]))
    return data.scaling.to_model(pixels[None])[0]


def own_mask(path: Path, data: DataFacts, option: str) -> Tensor:
    """Return the user's mask, bool (1, H, W), true where it is white. It is cropped as images are, without blending."""
    _, height, width = data.shape
    image = Image.fromarray(_read(path, option, channels=1)[0].numpy())
    box = cover_box(image.width, image.height, width, height)
    mask = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.NEAREST, box=box)) >= THRESHOLD)
    if bool(mask.all()) or not bool(mask.any()):
        what = "white: all of the image is painted anew" if bool(mask.any()) else "black: nothing is painted"
        warnings.warn(f"{option}: {path} is all {what}", stacklevel=2)
    return mask[None]


def check_proportions(image: Path, mask: Path) -> None:
    """Refuse a mask of other proportions than its image, for each is cropped around its own centre.

    Both are compared as they are shown, turned as their EXIF data say; the sides of either may be rounded to a pixel.
    Raises `UsageError`, and `DifftoolError` if one cannot be read.
    """
    a, b = _size(image, "--inpaint"), _size(mask, "--mask")
    if not same_proportions(a, b):
        shown, masked = (f"{columns}x{rows}" for rows, columns in (a, b))
        raise UsageError(
            f"--mask: {mask} is {masked} pixels, and the image of --inpaint {shown}; give it the proportions of the "
            "image, white where it is painted anew and black where it is kept"
        )


def _size(path: Path, option: str) -> tuple[int, int]:
    try:
        _, height, width = check_image(path)
    except BadImage as error:
        raise DifftoolError(f"{option}: {error}") from None
    return height, width


def _read(path: Path, option: str, *, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    try:
        return read_image(path, channels=channels, size=size, alpha="straight")
    except BadImage as error:
        raise DifftoolError(f"{option}: {error}") from None


SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name, without those of its sub-folders. Raises `OSError`."""
    paths = sorted(folder.iterdir())
    return [path for path in paths if path.suffix.lower() in SUFFIXES and path.name[0] != "." and not path.is_dir()]


def condition_pixels(path: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """Return a condition image, uint8 (channels, height, width), of a file with 1 to 4 channels, as `read_image` does.

    An image that is smaller by a whole factor has its pixels repeated, as a shrunk image does that is computed from
    data; others are scaled and cropped to `size` (height, width). Raises `BadImage`.
    """
    _, height, width = check_image(path)
    factor = size[0] // height
    if factor and (height * factor, width * factor) == size:
        return read_image(path, channels=channels).repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return read_image(path, channels=channels, size=size)
