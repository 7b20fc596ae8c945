"""The files that commands draw by themselves, and the shapes that can be drawn. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from difftool.diffusion.visible import spread
from difftool.errors import UsageError

PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
FILMS = (".gif",)


def check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Raise `UsageError` for a path that does not end in one of these."""
    suffix = path.suffix.lower()
    if not suffix and path.name.lower() in suffixes:
        raise UsageError(f"{path} is a suffix without a name; write for example figure{path.name.lower()}")
    if suffix not in suffixes:
        what = f"cannot write {suffix} files" if suffix else "has no suffix"
        raise UsageError(f"{path}: {what}; known are {' '.join(suffixes)}")


def undrawable(shape: Sequence[int]) -> str:
    """Return the reason why no picture can show samples of this shape, (C, H, W) or (D,), or an empty text."""
    size = "x".join(map(str, shape))
    if len(shape) == 3 and shape[0] not in (1, 3, 4):
        return f"only images of 1, 3 or 4 channels can be drawn, but a sample has shape {size}"
    if len(shape) not in (1, 3):
        return f"only points and images can be drawn, but a sample has shape {size}"
    return ""


@dataclass(frozen=True, kw_only=True)
class DrawingSpec:
    """The shape and the number of steps of samples to come, and what is to be drawn of them. May grow fields."""

    shape: tuple[int, ...]
    """Shape of a sample, channels (or coordinates) first."""
    steps: int
    """Steps of a trajectory."""
    strip: int | None = None
    """The number of states of the trajectory to draw; None draws the result alone."""
    trajectory: bool = False
    """True if arrays hold the states of the trajectory too."""
    hidden: Sequence[float] = ()
    """The share of the data that noise hides, from 1 to 0, in x_T and after each step; if empty, steps are even."""

    def evenly(self, count: int) -> list[int]:
        """Return the steps after which to keep a state so that `count` of them cover the trajectory; 0 is x_T.

        They are even in what can be seen, since most steps are made where next to nothing can.
        """
        return spread(self.hidden or range(self.steps + 1), count)

    def check_drawable(self) -> None:
        """Raise `ValueError` if no picture can show samples of this shape."""
        if reason := undrawable(self.shape):
            raise ValueError(reason)
