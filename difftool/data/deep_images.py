"""Decoding of image files at their full precision, as floats from 0 to 255.

Pillow has gray images of 16 bits, but no colour images. It reads those of 16 bits by their upper bytes, or by their
lower ones if it takes the file to be of the other byte order. Both together are the whole.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

LUMA = np.array([19595, 38470, 7471], np.float32) / 2**16
"""The weights of red, green and blue in gray (ITU-R BT.601), as Pillow's convert("L") has them."""
UNIT = 257
"""One step of 8 bits, in steps of 16 bits."""
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def deep_layers(image: Image.Image, channels: int) -> list[Image.Image]:
    """Decode an image to planes of mode F, from 0 to 255: as many as `channels`, of which the last of 2 or 4 is alpha.

    Colours are multiplied by alpha, or laid over white if it is not kept. Raises `ValueError` for 16-bit gray with
    transparency and for planes apart, whose lower bytes cannot be had.
    """
    rgba = _planes(image)
    alpha = rgba[..., 3:] / 255
    colour = rgba[..., :3] * alpha
    if channels in (1, 3):
        colour += 255 * (1 - alpha)
    if channels <= 2:
        gray = np.ptp(colour, axis=2, keepdims=True) == 0  # exactly gray stays exact
        colour = np.where(gray, colour[..., :1], (colour @ LUMA)[..., None])
    planes = colour if channels in (1, 3) else np.concatenate([colour, rgba[..., 3:]], axis=2)
    return [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(planes, 2, 0).astype(np.float32)]


def finished(planes: np.ndarray, *, straight: bool) -> np.ndarray:
    """Clip scaled planes (channels, H, W) to 0..255, and divide straight colours by the alpha behind them."""
    planes = planes.clip(0, 255)
    if straight and len(planes) in (2, 4):
        alpha = planes[-1:]
        planes[:-1] = np.where(alpha > 0, planes[:-1] * 255 / np.maximum(alpha, 1e-6), 0).clip(0, 255)
    return planes


def turn(image: Image.Image) -> None:
    """Turn an image as its EXIF data say."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data do not spoil the image
        pass


def _planes(image: Image.Image) -> np.ndarray:
    """Return an image as float32 RGBA (H, W, 4) from 0 to 255."""
    if image.mode.startswith("I"):
        values, key = _loaded(image), image.info.get("transparency")
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its gray values do not fit 16 bits")
        seen = np.ones(values.shape, bool) if key is None else values != key
        return _rgba(np.repeat(values[..., None], 3, axis=2), seen)
    if _is_deep(image):
        return _deep_colour(image)
    image.load()
    turn(image)
    if image.mode == "La":  # Pillow cannot convert this mode to RGBA directly
        image = image.convert("LA")
    elif image.mode not in ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "1"):
        image = image.convert("RGB")
    return np.asarray(image.convert("RGBA"), np.float32)


def _deep_colour(image: Image.Image) -> np.ndarray:
    file, key = _file(image), image.info.get("transparency")
    halves = []
    for other in (False, True):
        file.seek(0)
        with Image.open(file, formats=[image.format or "PNG"]) as half:
            if other:
                half.tile = [_in_other_order(tile) for tile in _tiles(half)]
            halves.append(_loaded(half).astype(np.uint16))
    values = halves[0] << 8 | halves[1]
    if values.shape[2] == 4:
        return values.astype(np.float32) / np.float32(UNIT)
    return _rgba(values, (values != key).any(axis=2) if isinstance(key, tuple) else np.ones(values.shape[:2], bool))


def _loaded(image: Image.Image) -> np.ndarray:
    image.load()
    turn(image)
    return np.asarray(image)


def _rgba(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return colours of 16 bits (H, W, 3), and where they are seen (H, W), as float32 RGBA from 0 to 255."""
    rgba = np.empty((*seen.shape, 4), np.float32)
    np.divide(values, UNIT, out=rgba[..., :3], casting="same_kind")
    rgba[..., 3] = 255 * seen
    return rgba


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image in colour, or with transparency, has 16 bits."""
    return any(";16" in _raw_mode(tile) for tile in _tiles(image))


def _tiles(image: Image.Image) -> list[Any]:
    return list(image.tile) if isinstance(image, ImageFile.ImageFile) else []


def _file(image: Image.Image) -> Any:
    return image.fp if isinstance(image, ImageFile.ImageFile) else None


def _raw_mode(tile: Any) -> str:
    """Return the layout of pixels in the file, by Pillow's name."""
    raw = tile[3][0] if isinstance(tile[3], tuple) else tile[3]
    return raw if isinstance(raw, str) else ""


def _in_other_order(tile: Any) -> Any:
    """Return a tile that is decoded as if the file had the other order of bytes. Raises `ValueError`."""
    codec, extents, offset, arguments = tile
    raw = _raw_mode(tile)
    layout, order = raw[:-1], raw[-1:]
    if layout not in ("RGB;16", "RGBA;16") or order not in OTHER_ORDER:
        raise ValueError(f"pixels of kind {raw} are read in 8 bits alone; leave out bits 16, or convert the file")
    swapped = layout + OTHER_ORDER[order]
    return type(tile)(codec, extents, offset, (swapped, *arguments[1:]) if isinstance(arguments, tuple) else swapped)
