"""Options that several datasets share, each defined once, and the checks of their values."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from difftool import option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import ConditionSpec

Crop = Literal["center", "random", "pad"]
GIB_IN_MEMORY, IMAGES_IN_MEMORY = 2.0, 20_000
"""Defaults for what is held in memory. This many images are decoded in seconds. More of them would delay the start of a
run, and workers can decode them as fast as a network trains."""


def size_option() -> Any:
    """Return the option `size: tuple[int, ...]` of a dataset of images."""
    return option(default=(32,), ge=1, le=4096, help="HEIGHT,WIDTH of images in pixels, or one number for squares")


def height_width(size: tuple[int, ...]) -> tuple[int, int]:
    """Return (height, width) of the option `size`, which has one number for square images. Raises `ValueError`."""
    if len(size) not in (1, 2) or min(size) < 1:
        text = ",".join(map(str, size)) or "nothing"
        raise ValueError(f"size: must be one positive number, or two as HEIGHT,WIDTH, not {text}")
    return size[0], size[-1]


def channels_option() -> Any:
    """Return the option `channels: int` of a dataset that reads image files."""
    return option(
        default=3,
        ge=1,
        le=4,
        help="channels of images: 3 for colour, 1 for gray; 4 and 2 also keep the transparency, as the last channel",
    )


def bits_option() -> Any:
    """Return the option `bits: int` of a dataset that reads image files."""
    return option(default=8, ge=8, le=16, help="8, or 16 to keep the precision of 16-bit images (as floats)")


def check_bits(bits: int) -> None:
    """Raise `ValueError` for a depth that images do not have."""
    if bits not in (8, 16):
        raise ValueError(f"bits: must be 8 or 16, not {bits}")


def crop_option() -> Any:
    """Return the option `crop: Crop` of a dataset that reads image files."""
    return option(
        default="center",
        help="center: the middle part of each image, scaled to cover the size; random: another part each time; "
        "pad: the whole image, with a white (or transparent) border",
    )


def words_option() -> Any:
    """Return the option `words: int` of a dataset that has captions."""
    return option(default=32, ge=1, le=512, help="words of a caption that the network is shown; the rest is left out")


def check_captions(captions: str | None, tokens: object) -> None:
    """Raise `ValueError` if a dataset is to show the network both captions and tokens."""
    if captions is not None and tokens is not None:
        raise ValueError("captions: give either captions or tokens, for both are tokens to the network")


def read_caption(field: str, text: str, captions: str | None, words: int) -> Tensor | None:
    """Return the tokens of a caption that a user types, or None for other conditions and for files of tokens."""
    if field != "tokens" or captions is None or text.lower().endswith(".npy"):
        return None
    from difftool_plugins.datasets.columns.captions import tokens_of, words_of

    if (count := len(words_of(text))) > words:
        what = f"--tokens: the model takes {words} words, so the last {count - words} are left out"
        warnings.warn(what, stacklevel=2)
    return tokens_of(text, words)


def read_small_image(
    condition: str | None, field: str, text: str, spec: ConditionSpec, *, border: bool = False
) -> Tensor | None:
    """Return image files of any size shrunk as those of training are, or None for other conditions and other files."""
    from difftool_plugins.datasets.folders import EXTENSIONS

    word, _, factor = (condition or "").partition(":")
    path = Path(text).expanduser()
    is_image = path.is_dir() or path.suffix.lower() in EXTENSIONS
    if field != "image" or word != "shrink" or spec.image is None or not is_image:
        return None
    from difftool_plugins.datasets.columns.conditions import read_shrunk
    from difftool_plugins.datasets.images.files import CENTRE

    return read_shrunk(path, spec.image, int(factor), None if border else CENTRE)


def skip_bad_option(items: str) -> Any:
    """Return the option `skip_bad: bool` of a dataset of files or samples."""
    return option(default=False, help=f"leave out {items} that cannot be read, and list them")


def memory_option() -> Any:
    """Return the option `memory: float | None` of a dataset whose images are decoded."""
    return option(
        default=None,
        ge=0,
        help="GiB of decoded items to hold in memory; larger sets, and random crops, are decoded while training",
        otherwise=f"{GIB_IN_MEMORY:g}, and at most {IMAGES_IN_MEMORY:,} images",
    )


def bytes_in_memory(memory: float | None) -> float:
    """Return the bytes of items to hold in memory, of a number of GiB or None for the default."""
    return (GIB_IN_MEMORY if memory is None else memory) * 2**30


def is_few(memory: float | None, images: int) -> bool:
    """Return whether so many images may be held in memory if they fit."""
    return memory is not None or images <= IMAGES_IN_MEMORY


def is_function(condition: str, channels: int, size: tuple[int, int]) -> bool:
    """Return whether a condition is computed from images of this size, and not read from a folder.

    Raises `ValueError` for one that does not fit the images.
    """
    if condition == "gray" and channels != 3:
        raise ValueError("condition: gray images are a condition of colour images, of 3 channels")
    if re.fullmatch(r"shrink(:.*)?", condition):
        number = condition.partition(":")[2]
        if not re.fullmatch(r"[0-9]{1,4}", number) or int(number) < 2:
            raise ValueError(f"condition: must be shrink:N with a whole number from 2 on, as shrink:4, not {condition}")
        if size[0] % int(number) or size[1] % int(number):
            raise ValueError(f"condition: squares of {number} pixels do not divide images of {size[0]}x{size[1]}")
        return True
    return condition in ("gray", "mask")
