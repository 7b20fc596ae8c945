"""Reading of image files as uint8 pixels (channels, height, width).

1. The header is checked first: the format must be one of `FORMATS`, and the image no larger than `MAX_PIXELS`.
2. The first of several frames is read. EXIF orientation is applied, if it can be read.
3. Transparent images are laid over white, so that colours under alpha 0 stay hidden.
4. 16-bit gray is scaled to 8 bits (v / 257, rounded), not clipped; 16-bit colour keeps its upper bytes. Palettes,
   1-bit, CMYK and YCbCr are converted as Pillow does, without colour profiles. Floating-point, 32-bit and Lab images
   are refused, since their range of values is unknown. So is 12-bit or inverted 16-bit gray in TIFF.
5. The image is scaled (bicubic, antialiased) until it just covers the size, and the centre is cropped.
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
from itertools import product
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

warnings.filterwarnings("ignore", module=r"PIL\.")  # large images are refused here, and slight damage does no harm
logging.getLogger("PIL").addHandler(logging.NullHandler())  # its log of damaged files would reach the terminal

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 89_000_000
"""The largest image. Threads together hold no more decoded pixels than this, unless one image alone has them."""
PIECE = 1024
"""The side in pixels of the pieces that are converted one by one: a conversion needs several times their memory."""
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""The EXIF tag of how to turn an image, and its values that exchange height and width."""
GRAY = ("1", "L", "LA", "La")
"""Pillow's modes of gray images, beside those of more than 8 bits, which begin with I."""
GAP = 3.0
"""The reducing gap of Pillow: cheap reduction (in the JPEG decoder, or by averaging blocks of pixels) stops at this
multiple of the result, and the antialiasing filter does the rest. With 3 the difference is invisible."""


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
    path: str | os.PathLike[str] | bytes, *, channels: int = 3, size: tuple[int, int] | None = None
) -> Tensor:
    """Return the pixels of an image file, uint8 (channels, height, width): 1 for gray, 3 for colour.

    Bytes are the content of a file. Errors of it name no file.

    2 and 4 channels keep the transparency, as the last of them: 255 where the image is seen, and 0 where it is hidden.
    The others are multiplied by it, so what is hidden is black. `size` is (height, width), or None for that of the
    image. Raises `BadImage`, a `ValueError` that names the file.
    """
    with opened(os.fspath(path)) as image:
        return torch.from_numpy(pixels(image, channels, size))


def check_image(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Check the header of an image file without decoding it, and return the shape (channels, height, width) it shows.

    It is turned as its EXIF data say. There is 1 channel for gray, and 3 for colour. Raises `BadImage`.
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


def pixels(image: Image.Image, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """Return the pixels of an open image, uint8 (channels, height, width). Raises whatever Pillow raises."""
    whole = image.width * image.height
    if size is not None:
        ratio = max(size) / min(image.size) * GAP  # EXIF may still turn the image
        image.draft(None, (math.ceil(image.width * ratio), math.ceil(image.height * ratio)))
    # a progressive JPEG is held whole by its decoder, however small the image that comes out
    with _in_flight.spend(whole if "progressive" in image.info else image.width * image.height):
        return _decoded(image, channels, size)


def _decoded(image: Image.Image, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data do not spoil the image
        pass
    mode, transparent = "L" if channels <= 2 else "RGB", channels in (2, 4)
    layers = [_flat(image, mode, "black" if transparent else "white")]
    if transparent:
        layers.append(_by_pieces(image, "L", _alpha))
    height, width = size or (image.height, image.width)
    box = cover_box(image.width, image.height, width, height)
    scaled = [layer.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=GAP) for layer in layers]
    pixels = np.concatenate([np.asarray(layer).reshape(height, width, -1) for layer in scaled], axis=2)
    return np.array(pixels.transpose(2, 0, 1), order="C")


def cover_box(w: int, h: int, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the centre (left, top, right, bottom) of a w x h image that has the aspect ratio of width x height.

    If no scaling is needed, the crop begins at a whole pixel, so that nothing is blurred.
    """
    if w * height >= h * width:  # too wide: the scale is height / h
        left = (w - width) // 2 if h == height else (w - h * width / height) / 2
        return left, 0, min(left + h * width / height, w), h
    top = (h - height) // 2 if w == width else (h - w * height / width) / 2
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
    if shape[0] not in (1, 3):
        raise UsageError(f"{option}: image files are read with 1 or 3 channels, but {name} has {shape[0]}")
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
        return read_image(path, channels=channels, size=size)
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
