"""Image sizes as an option gives them."""

from __future__ import annotations


def height_width(size: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) from `H,W`, or from one number for squares. Raises `ValueError` in the name of option size."""
    if len(size) not in (1, 2) or min(size) < 1:
        given = ",".join(map(str, size)) or "nothing"
        raise ValueError(f"size: must be one positive number, or two as HEIGHT,WIDTH, not {given}")
    return size[0], size[-1]
