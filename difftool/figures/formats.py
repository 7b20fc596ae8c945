"""The files that commands draw by themselves, and what can be drawn at all. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.errors import UsageError

if TYPE_CHECKING:
    pass

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


@dataclass(frozen=True, kw_only=True)
class DrawingSpec:
    """What a writer is told before anything is sampled. May grow fields."""

    shape: tuple[int, ...]
    """Shape of a sample, channels (or coordinates) first."""
    steps: int
    """Steps of the walk."""
    strip: int | None = None
    """So many states of the walk are to be drawn instead of the result alone."""
    trajectory: bool = False
    """Arrays are to hold the states of the walk too."""

    def evenly(self, count: int) -> list[int]:
        """The steps after which to keep a state so that `count` of them cover the walk; 0 is x_T."""
        if count == 1:
            return [self.steps]
        return sorted({round(i * self.steps / (count - 1)) for i in range(count)})

    def check_drawable(self) -> None:
        """Raise `ValueError` where no picture can show samples of this shape."""
        if reason := undrawable(self.shape):
            raise ValueError(reason)
