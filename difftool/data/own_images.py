"""The user's own images as a model sees them: in its size and channels, in its units, on its device."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from difftool.data.images import BadImage, cover_box, read_image
from difftool.errors import DifftoolError, UsageError

if TYPE_CHECKING:
    from difftool.sampling.source import Source

THRESHOLD = 128
"""A mask's gray values from here on are white."""


def own_image(path: Path, source: Source, option: str) -> Tensor:
    """(*shape) in model units: scaled and cropped by the rules of `difftool.data.images`.

    `option` is where the path was given. Raises `UsageError` for a source of other data, `DifftoolError` for the file.
    """
    shape = source.data.shape
    if not source.data.is_image:
        raise UsageError(f"{option}: {source.name} is no model of images")
    if shape[0] not in (1, 3):
        raise UsageError(f"{option}: image files are read with 1 or 3 channels, but {source.name} has {shape[0]}")
    pixels = _read(path, option, channels=shape[0], size=(shape[1], shape[2]))
    return source.data.scaling.to_model(pixels[None])[0].to(source.device)


def own_mask(path: Path, source: Source, option: str) -> Tensor:
    """bool (1, H, W), true where the mask is white: cropped as images are, its pixels never blended."""
    _, height, width = source.data.shape
    own = Image.fromarray(_read(path, option, channels=1)[0].numpy())
    box = cover_box(own.width, own.height, width, height)
    mask = torch.from_numpy(np.array(own.resize((width, height), Image.Resampling.NEAREST, box=box)) >= THRESHOLD)
    if bool(mask.all()) or not bool(mask.any()):
        what = "white: all of the image is painted anew" if bool(mask.any()) else "black: nothing is painted"
        warnings.warn(f"{option}: {path} is all {what}", stacklevel=2)
    return mask[None].to(source.device)


def _read(path: Path, option: str, *, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    try:
        return read_image(path, channels=channels, size=size)
    except BadImage as error:
        raise DifftoolError(f"{option}: {error}") from None
