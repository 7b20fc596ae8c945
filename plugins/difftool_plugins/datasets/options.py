"""Options that several datasets share."""

from __future__ import annotations

from typing import Any

from difftool import option


def height_width(size: tuple[int, ...]) -> tuple[int, int]:
    """Return (height, width) of the option `size`, which has one number for square images. Raises `ValueError`."""
    if len(size) not in (1, 2) or min(size) < 1:
        text = ",".join(map(str, size)) or "nothing"
        raise ValueError(f"size: must be one positive number, or two as HEIGHT,WIDTH, not {text}")
    return size[0], size[-1]


def words_option() -> Any:
    """Return the option `words: int` of a dataset that has captions."""
    return option(default=32, ge=1, le=512, help="words of a caption that the network is shown; the rest is left out")
