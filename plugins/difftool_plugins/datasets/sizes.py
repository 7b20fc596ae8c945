"""Image sizes as options."""

from __future__ import annotations


def height_width(size: tuple[int, ...]) -> tuple[int, int]:
    """Return (height, width) of the option `size`, which has one number for square images. Raises `ValueError`."""
    if len(size) not in (1, 2) or min(size) < 1:
        text = ",".join(map(str, size)) or "nothing"
        raise ValueError(f"size: must be one positive number, or two as HEIGHT,WIDTH, not {text}")
    return size[0], size[-1]
