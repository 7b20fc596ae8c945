"""Which file suffixes there are, and what each can show. Imports nothing heavy: wrong ones are refused first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difftool.errors import UsageError

PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
FILMS = (".gif",)
ARRAYS = (".npy", ".npz", ".safetensors", ".csv")
SUFFIXES = (*PICTURES, *FILMS, *ARRAYS)

FILM_STATES = 60
"""Frames of a film at most; longer walks are thinned evenly."""


def check_suffix(path: Path, known: Sequence[str] = SUFFIXES) -> None:
    """Refuse a path whose suffix has no writer. Among all suffixes, a path without one is a folder of images."""
    suffix = path.suffix.lower()
    if not suffix and path.name.lower() in known:
        raise UsageError(f"{path} is a suffix without a name; write for example samples{path.name.lower()}")
    folder = ", and a name without suffix for a folder of PNG images" if known is SUFFIXES else ""
    if suffix not in known and (suffix or not folder):
        what = f"cannot write {suffix} files" if suffix else "has no suffix"
        raise UsageError(f"{path}: {what}; known are {' '.join(known)}{folder}")


def check_shape(path: Path, shape: Sequence[int], *, strip: bool = False) -> None:
    """Refuse a file that cannot show samples of this shape (C, H, W) or (D,)."""
    check_suffix(path)
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        return
    size = "x".join(map(str, shape))
    arrays = f"write {', '.join(ARRAYS)} instead"
    if not suffix and len(shape) != 3:
        raise UsageError(
            f"{path}: a folder holds images, but a sample has shape {size}; write .png, {', '.join(ARRAYS)}"
        )
    if len(shape) == 3 and shape[0] not in (1, 3, 4):
        raise UsageError(f"{path}: an image to look at has 1, 3 or 4 channels, but a sample has shape {size}; {arrays}")
    if len(shape) not in (1, 3):
        raise UsageError(f"{path}: only points and images can be drawn, but a sample has shape {size}; {arrays}")
    if tuple(shape) == (1,) and (strip or suffix in FILMS):
        raise UsageError(f"{path}: a walk of single numbers cannot be drawn; {arrays}")


def drawable(shape: Sequence[int]) -> bool:
    """Whether a picture can show samples of this shape: points, or images of 1, 3 or 4 channels."""
    return len(shape) == 1 or (len(shape) == 3 and shape[0] in (1, 3, 4))


def needs_states(path: Path, *, strip: int | None = None, trajectory: bool = False) -> bool:
    """Whether writing this file takes the states of the walk."""
    suffix = path.suffix.lower()
    return suffix in FILMS or (suffix in ARRAYS and trajectory) or (suffix in PICTURES and strip is not None)
