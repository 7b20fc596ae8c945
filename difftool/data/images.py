"""Image files to uint8 pixels (channels, height, width), by one set of rules.

1. The header is read first: the format must be one of `FORMATS`, the picture no larger than `MAX_PIXELS`.
2. Of several frames, the first counts. EXIF orientation is obeyed, where it can be read.
3. Whatever has transparency is laid over white, so that colours hidden under alpha 0 stay hidden.
4. 16-bit gray is scaled to 8 bits (v / 257, rounded), not clipped; of 16-bit colour the upper bytes count. Palettes,
   1-bit, CMYK and YCbCr are converted as Pillow does; colour profiles are passed over. Floating-point, 32-bit and Lab
   pictures have no range of their own to convert, and are refused; so is TIFF's 12-bit or inverted 16-bit gray.
5. The picture is scaled, antialiased (bicubic), until it just covers the size, and the centre is cut out.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from difftool.errors import DifftoolError, UsageError, one_line, printable
from difftool.files import open_regular

if TYPE_CHECKING:
    from difftool.data.facts import DataFacts

warnings.filterwarnings("ignore", module=r"PIL\.")  # large pictures are refused here; small damage is no concern
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs of damaged files would reach the terminal

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 89_000_000
GAP = 3.0
"""How many times larger than the result a picture may become by cheap means (in the JPEG decoder, or by averaging whole
blocks of pixels) before the antialiased filter does the rest; 3 cannot be told from the filter alone."""


class BadImage(ValueError):
    """A file that cannot be read; the message names it and says why."""


def read_image(path: str | os.PathLike[str], *, channels: int = 3, size: tuple[int, int] | None = None) -> Tensor:
    """uint8 (channels, height, width) of an image file by the rules above; channels is 1 or 3.

    `size` is (height, width); None keeps the picture's own. Raises `BadImage`, a `ValueError` that names the file.
    """
    with opened(os.fspath(path)) as image:
        return torch.from_numpy(pixels(image, channels, size))


def check_image(path: str | os.PathLike[str]) -> None:
    """Read the header alone. Raises `BadImage`."""
    with opened(os.fspath(path)):
        pass


def pixels(image: Image.Image, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """An opened image by the rules above: uint8 (channels, height, width). Raises whatever Pillow raises."""
    if size is not None:
        ratio = max(size) / min(image.size) * GAP  # whichever way the picture will be turned
        image.draft(None, (math.ceil(image.width * ratio), math.ceil(image.height * ratio)))
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data say nothing about the picture
        pass
    flat = _flat(image, "L" if channels == 1 else "RGB")
    height, width = size or (flat.height, flat.width)
    box = cover_box(flat.width, flat.height, width, height)
    scaled = flat.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=GAP)
    return np.array(np.asarray(scaled).reshape(height, width, channels).transpose(2, 0, 1), order="C")


def cover_box(w: int, h: int, width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a w x h picture (left, top, right, bottom) that, scaled to width x height, is its covered centre.

    Where no scaling is needed, the crop begins at a whole pixel (left of and above the middle), so nothing is blurred.
    """
    if w * height >= h * width:  # too wide: the scale is height / h
        left = (w - width) // 2 if h == height else (w - h * width / height) / 2
        return left, 0, min(left + h * width / height, w), h
    top = (h - height) // 2 if w == width else (h - w * height / width) / 2
    return 0, top, w, min(top + w * height / width, h)


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """The image without transparency, as 8-bit RGB or L."""
    if image.mode.startswith("I"):
        values, key = np.asarray(image), image.info.get("transparency")
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its gray values do not fit 16 bits")
        gray = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        gray[values == key] = 255  # laid over white; where there is no key, None equals no value
        image = Image.fromarray(gray)
    elif image.mode == "La":  # Pillow has no direct way from here to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB" if image.mode != "1" else "L")
    return image if image.mode == mode else image.convert(mode)


def _refuse_unknown_range(image: Image.Image) -> None:
    if image.mode in ("F", "LAB"):
        raise ValueError(f"pixels of kind {image.mode} are not supported")
    if isinstance(image, TiffImageFile) and image.mode.startswith("I;16"):  # Pillow would not scale, or invert, these
        bits, black_is_zero = image.tag_v2.get(258, (16,))[0], image.tag_v2.get(262) != 0
        if bits != 16 or not black_is_zero:
            raise ValueError(f"{bits}-bit gray{'' if black_is_zero else ' from white to black'} is not supported")


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """The image with its header checked and its pixels not yet read; every failure inside becomes `BadImage`."""
    try:
        # Given a name, Pillow would map the file into memory, scramble TIFFs that are to be turned, and take the
        # process down where another program cuts the file short in the meantime.
        with open_regular(Path(path)) as file:
            if not file.read(1):
                raise OSError(errno.ENODATA, "the file is empty")
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                _refuse_unknown_range(image)
                yield image
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders fail with OSError, SyntaxError, struct.error, IndexError, ...
        raise BadImage(f"{printable(path)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"has more than {MAX_PIXELS // 1_000_000} million pixels"
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image of the formats {', '.join(FORMATS)}, or is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "cannot be decoded: " + (one_line(error) or type(error).__name__)


THRESHOLD = 128
"""A mask's gray values from here on are white."""


def own_image(path: Path, data: DataFacts, name: str, option: str) -> Tensor:
    """(*shape) in model units: scaled and cropped by the rules above.

    `name` is the model's, and `option` where the path was given. Raises `UsageError` for a model of other data,
    `DifftoolError` for the file.
    """
    shape = data.shape
    if not data.is_image:
        raise UsageError(f"{option}: {name} is no model of images")
    if shape[0] not in (1, 3):
        raise UsageError(f"{option}: image files are read with 1 or 3 channels, but {name} has {shape[0]}")
    pixels = _read(path, option, channels=shape[0], size=(shape[1], shape[2]))
    return data.scaling.to_model(pixels[None])[0]


def own_mask(path: Path, data: DataFacts, option: str) -> Tensor:
    """bool (1, H, W), true where the mask is white: cropped as images are, its pixels never blended."""
    _, height, width = data.shape
    own = Image.fromarray(_read(path, option, channels=1)[0].numpy())
    box = cover_box(own.width, own.height, width, height)
    mask = torch.from_numpy(np.array(own.resize((width, height), Image.Resampling.NEAREST, box=box)) >= THRESHOLD)
    if bool(mask.all()) or not bool(mask.any()):
        what = "white: all of the image is painted anew" if bool(mask.any()) else "black: nothing is painted"
        warnings.warn(f"{option}: {path} is all {what}", stacklevel=2)
    return mask[None]


def _read(path: Path, option: str, *, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    try:
        return read_image(path, channels=channels, size=size)
    except BadImage as error:
        raise DifftoolError(f"{option}: {error}") from None
