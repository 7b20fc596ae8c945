"""Reading of image files as uint8 pixels (channels, height, width).

1. The header is checked first: the format must be one of `FORMATS`, and the image no larger than `MAX_PIXELS`.
2. The first of several frames is read. EXIF orientation is applied, if it can be read.
3. Transparent images are laid over white, so that colours under alpha 0 stay hidden. Those that keep their
   transparency are black there.
4. 16-bit gray is scaled to 8 bits (v / 257, rounded), not clipped; 16-bit colour keeps its upper bytes. Palettes,
   1-bit, CMYK and YCbCr are converted as Pillow does, without colour profiles. Floating-point, 32-bit and Lab images
   are refused, since their range of values is unknown. So is 12-bit or inverted 16-bit gray in TIFF. With `bits` 16
   nothing is rounded: see `difftool.data.deep_images`.
5. The image is scaled (bicubic, antialiased) until it just covers the size, and a part of that size is cropped; or
   until it fits into the size, and a border is added.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from difftool.data.deep_images import deep_layers, finished, turn
from difftool.errors import one_line, printable
from difftool.files import open_regular

warnings.filterwarnings("ignore", module=r"PIL\.")  # large images are refused here, and slight damage does no harm
logging.getLogger("PIL").addHandler(logging.NullHandler())  # its log of damaged files would reach the terminal

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 89_000_000
"""The largest image. Threads together hold no more decoded pixels than this, unless one image alone has them."""
PIECE = 1024
"""The side in pixels of the pieces that are converted one by one: a conversion needs several times their memory."""
FLOATS = 8
"""How much more memory an image takes that is decoded to floats."""
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""The EXIF tag of how to turn an image, and its values that exchange height and width."""
GRAY = ("1", "L", "LA", "La")
"""Pillow's modes of gray images, beside those of more than 8 bits, which begin with I."""
GAP = 3.0
"""The reducing gap of Pillow: cheap reduction (in the JPEG decoder, or by averaging blocks of pixels) stops at this
multiple of the result, and the antialiasing filter does the rest. With 3 the difference is invisible."""
CENTRE = (0.5, 0.5)
"""The place (y, x) of a crop in the middle."""


def _silence_libtiff() -> None:
    """Keep libtiff, which Pillow decodes with, from printing to stderr: a damaged file is told in one line of ours."""
    with contextlib.suppress(OSError, AttributeError):  # a Pillow without it, or one that is linked in another way
        pillow = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            set_handler = getattr(pillow, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


_silence_libtiff()


class BadImage(ValueError):
    """An image cannot be read. The message names the file and the reason."""


def read_image(
    path: str | os.PathLike[str] | bytes,
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    bits: int = 8,
    crop: tuple[float, float] | None = CENTRE,
    alpha: Literal["multiplied", "straight"] = "multiplied",
) -> Tensor:
    """Return the pixels of an image file, uint8 (channels, height, width): 1 for gray, 3 for colour.

    Bytes are the content of a file. Errors of it name no file.

    2 and 4 channels keep the transparency, as the last of them: 255 where the image is seen, and 0 where it is hidden.
    What is hidden is black. Where it is half seen, colours are multiplied by the transparency, or as the file has them
    if `alpha` is straight. With `bits` 16 the pixels are float32, also from 0 to 255, and 16-bit files keep their
    precision.

    `size` is (height, width), or None for that of the image. The image is scaled until it covers the size, and `crop`
    is the place (y, x) of the part that is taken, each from 0 (the top, or the left) to 1. With None the whole image is
    scaled to fit into the size, and the border is white, or transparent. Raises `BadImage`, a `ValueError` that names
    the file.
    """
    with opened(os.fspath(path)) as image:
        return torch.from_numpy(pixels(image, Reading(channels, size, bits, crop, alpha == "straight")))


def check_image(path: str | os.PathLike[str] | bytes) -> tuple[int, int, int]:
    """Check the header of an image file without decoding it, and return the shape (channels, height, width) it shows.

    Bytes are the content of a file. The image is turned as its EXIF data say. There is 1 channel for gray, and 3 for
    colour. Raises `BadImage`.
    """
    with opened(os.fspath(path)) as image:
        height, width = image.height, image.width
        with contextlib.suppress(Exception):  # damaged EXIF data do not spoil the image
            if image.getexif().get(ORIENTATION) in TURNED:
                height, width = width, height
        return (1 if image.mode in GRAY or image.mode.startswith("I") else 3), height, width


def same_proportions(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Return whether two sizes (height, width) have the same proportions; the sides of either may be rounded."""
    (h, w), (height, width) = sorted([a, b], key=math.prod)
    fits_width = h in (math.floor(height * w / width), math.ceil(height * w / width))
    fits_height = w in (math.floor(width * h / height), math.ceil(width * h / height))
    return fits_width or fits_height


@dataclass(frozen=True)
class Reading:
    """The form in which an image is read."""

    channels: int
    size: tuple[int, int] | None
    bits: int
    crop: tuple[float, float] | None
    straight: bool


def pixels(image: Image.Image, reading: Reading) -> np.ndarray:
    """Return the pixels of an open image (channels, height, width). Raises whatever Pillow raises."""
    whole = image.width * image.height
    if reading.size is not None:
        ratio = max(reading.size) / min(image.size) * GAP  # EXIF may still turn the image
        image.draft(None, (math.ceil(image.width * ratio), math.ceil(image.height * ratio)))
    # a progressive JPEG is held whole by its decoder, however small the image that comes out
    held = whole if "progressive" in image.info else image.width * image.height
    with _in_flight.spend(held if reading.bits == 8 else held * FLOATS):
        return _decoded(image, reading)


def _decoded(image: Image.Image, reading: Reading) -> np.ndarray:
    layers = deep_layers(image, reading.channels) if reading.bits > 8 else _layers(image, reading)
    w, h = layers[0].size
    fitted = [_fitted(layer, reading.size or (h, w), reading) for layer in layers]
    planes = np.concatenate([np.asarray(layer).reshape(*layer.size[::-1], -1) for layer in fitted], axis=2)
    array = np.array(planes.transpose(2, 0, 1), order="C")
    return finished(array, straight=reading.straight) if reading.bits > 8 else array


def _layers(image: Image.Image, reading: Reading) -> list[Image.Image]:
    """Decode an image to 8 bits: its colours, and its transparency with them or beside them, if it is kept."""
    image.load()
    turn(image)
    mode = "L" if reading.channels <= 2 else "RGB"
    if reading.channels in (1, 3):
        return [_flat(image, mode, "white")]
    if not reading.straight:
        return [_flat(image, mode, "black"), _by_pieces(image, "L", _alpha)]
    mode = {"L": "LA", "RGB": "RGBA"}[mode]
    return [_by_pieces(image, mode, lambda piece: _straight(piece, mode))]


def _fitted(layer: Image.Image, size: tuple[int, int], reading: Reading) -> Image.Image:
    """Return a layer scaled and cropped to the size (height, width), or scaled and with a border."""
    (height, width), (w, h) = size, layer.size
    if reading.crop is not None:
        box = cover_box(w, h, width, height, reading.crop)
        left, top = int(box[0]), int(box[1])
        whole = (left, top, left + width, top + height)
        if all(side == other for side, other in zip(box, whole, strict=True)):  # nothing is scaled
            return layer.crop(whole)
        return layer.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=GAP)
    scale = min(width / w, height / h)
    inner = max(1, min(width, round(w * scale))), max(1, min(height, round(h * scale)))
    if inner != layer.size:
        layer = layer.resize(inner, Image.Resampling.BICUBIC, reducing_gap=GAP)
    bands = len(layer.getbands())
    border = 255 if reading.channels in (1, 3) else 0
    picture = Image.new(layer.mode, (width, height), border if bands == 1 else (border,) * bands)
    picture.paste(layer, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return picture


def cover_box(
    w: int, h: int, width: int, height: int, place: tuple[float, float] = CENTRE
) -> tuple[float, float, float, float]:
    """Return the part (left, top, right, bottom) of a w x h image that has the aspect ratio of width x height.

    It lies at the place (y, x), from 0 to 1 each. If no scaling is needed, the crop begins at a whole pixel, so that
    nothing is blurred.
    """
    y, x = place
    if w * height >= h * width:  # too wide: the scale is height / h
        left = math.ceil((w - width) * x - 0.5) if h == height else (w - h * width / height) * x
        return left, 0, min(left + h * width / height, w), h
    top = math.ceil((h - height) * y - 0.5) if w == width else (h - w * height / width) * y
    return 0, top, w, min(top + w * height / width, h)


class _Budget:
    """An amount that threads share: one that asks for more than is left waits, unless nothing is spent."""

    def __init__(self, most: int) -> None:
        self._most, self._spent, self._change = most, 0, threading.Condition()

    @contextlib.contextmanager
    def spend(self, amount: int) -> Iterator[None]:
        with self._change:
            self._change.wait_for(lambda: self._spent == 0 or self._spent + amount <= self._most)
            self._spent += amount
        try:
            yield
        finally:
            with self._change:
                self._spent -= amount
                self._change.notify_all()


_in_flight = _Budget(MAX_PIXELS)


def _flat(image: Image.Image, mode: str, background: str) -> Image.Image:
    """Convert an image to 8-bit RGB or L, laid over a background."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    return _by_pieces(image, mode, lambda piece: _converted(piece, mode, background))


def _by_pieces(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    width, height = image.size
    if width * height <= PIECE**2:
        return convert(image)
    whole = Image.new(mode, image.size)
    for top, left in product(range(0, height, PIECE), range(0, width, PIECE)):
        box = (left, top, min(width, left + PIECE), min(height, top + PIECE))
        whole.paste(convert(image.crop(box)), box)
    return whole


def _converted(image: Image.Image, mode: str, background: str) -> Image.Image:
    if image.mode.startswith("I"):
        values, key = np.asarray(image), image.info.get("transparency")
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its gray values do not fit 16 bits")
        gray = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        gray[values == key] = 255 if background == "white" else 0  # a key of None equals no value
        image = Image.fromarray(gray)
    elif image.mode == "La":  # Pillow cannot convert this mode to RGBA directly
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB" if image.mode != "1" else "L")
    return image if image.mode == mode else image.convert(mode)


def _alpha(image: Image.Image) -> Image.Image:
    """Return the transparency of an image as L, 255 where it is seen."""
    if not image.has_transparency_data:
        return Image.new("L", image.size, 255)
    if image.mode.startswith("I"):
        seen = np.asarray(image) != image.info.get("transparency")
        return Image.fromarray((255 * seen).astype(np.uint8))
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA").getchannel("A")


def _straight(image: Image.Image, mode: str) -> Image.Image:
    """Return an image as LA or RGBA, whose colours are black where it is hidden."""
    alpha = _alpha(image)
    bare = image.copy()
    if image.has_transparency_data and image.mode in ("La", "RGBa"):
        bare = bare.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("P", "PA") and image.has_transparency_data:
        bare = bare.convert("RGBA")
    if bare.mode in ("LA", "RGBA"):
        bare = bare.convert(bare.mode[:-1])
    bare.info.pop("transparency", None)
    colours = _converted(bare, mode[:-1], "black")
    colours.paste(Image.new(colours.mode, colours.size), mask=alpha.point(lambda value: 255 * (value == 0)))
    colours.putalpha(alpha)
    return colours


def _refuse_unknown_range(image: Image.Image) -> None:
    if image.mode in ("F", "LAB"):
        raise ValueError(f"pixels of kind {image.mode} are not supported")
    if isinstance(image, TiffImageFile) and image.mode.startswith("I;16"):  # Pillow does not scale or invert these
        bits, black_is_zero = image.tag_v2.get(258, (16,))[0], image.tag_v2.get(262) != 0
        if bits != 16 or not black_is_zero:
            raise ValueError(f"{bits}-bit gray{'' if black_is_zero else ' from white to black'} is not supported")


@contextlib.contextmanager
def opened(path: str | bytes) -> Iterator[Image.Image]:
    """Open an image file, or the bytes of one, and check its header. Failures in the block become a `BadImage`."""
    try:
        # Pillow maps a file that it opens by name into memory. It then scrambles TIFFs that EXIF turns, and the process
        # crashes if another program truncates the file.
        with io.BytesIO(path) if isinstance(path, bytes) else open_regular(Path(path)) as file:
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
        name = "" if isinstance(path, bytes) else f"{printable(path)}: "
        raise BadImage(name + _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"has more than {MAX_PIXELS // 1_000_000} million pixels"
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image of the formats {', '.join(FORMATS)}, or is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "cannot be decoded: " + (one_line(error) or type(error).__name__)
