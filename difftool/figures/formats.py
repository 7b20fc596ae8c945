"""The files that commands draw by themselves, and what can be drawn at all. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difftool.errors import UsageError

PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
FILMS = (".gif",)


def check_suffix(path: Path, known: Sequence[str]) -> None:
    """Refuse a path that does not end in one of these. Raises `UsageError`."""
    suffix = path.suffix.lower()
    if not suffix and path.name.lower() in known:
        raise UsageError(f"{path} is a suffix without a name; write for example figure{path.name.lower()}")
    if suffix not in known:
        what = f"cannot write {suffix} files" if suffix else "has no suffix"
        raise UsageError(f"{path}: {what}; known are {' '.join(known)}")


def undrawable(shape: Sequence[int]) -> str:
    """Why a picture cannot show samples of this shape, (C, H, W) or (D,), or an empty text."""
    size = "x".join(map(str, shape))
    if len(shape) == 3 and shape[0] not in (1, 3, 4):
        return f"an image to look at has 1, 3 or 4 channels, but a sample has shape {size}"
    if len(shape) not in (1, 3):
        return f"only points and images can be drawn, but a sample has shape {size}"
    return ""
