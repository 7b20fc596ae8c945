"""The files that commands draw by themselves, and the shapes that can be drawn. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from difftool.data.forms import Form, form_of, rate_of
from difftool.diffusion.visible import spread
from difftool.errors import UsageError

PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
FILMS = (".gif", ".webp", ".apng")


def check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Raise `UsageError` for a path that does not end in one of these."""
    suffix = path.suffix.lower()
    if not suffix and path.name.lower() in suffixes:
        raise UsageError(f"{path} is a suffix without a name; write for example figure{path.name.lower()}")
    if suffix not in suffixes:
        what = f"cannot write {suffix} files" if suffix else "has no suffix"
        raise UsageError(f"{path}: {what}; known are {' '.join(suffixes)}")


def undrawable(form: Form | None, shape: Sequence[int]) -> str:
    """Return the reason why no picture can show samples of this form, or an empty text."""
    if form_of(form, shape) == "array":
        return f"arrays cannot be drawn, and a sample is one of shape {'x'.join(map(str, shape))}"
    if form == "cloud" and shape[0] == 1:
        return f"clouds of one dimension cannot be drawn, and a sample has the shape {'x'.join(map(str, shape))}"
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
    form: Form | None = None
    """The form of a sample, as that of `Samples`; by default, one axis makes points and more axes an array."""
    rate: float | None = None
    """The rate of sound in Hz, or of films in frames a second; None for all other forms."""

    def __post_init__(self) -> None:
        form = form_of(self.form, self.shape)
        object.__setattr__(self, "form", form)
        object.__setattr__(self, "rate", rate_of(form, self.rate))

    def evenly(self, count: int) -> list[int]:
        """Return the steps after which to keep a state so that `count` of them cover the trajectory; 0 is x_T.

        They are even in what can be seen, since most steps are made where next to nothing can.
        """
        return spread(self.hidden or range(self.steps + 1), count)

    def check_drawable(self) -> None:
        """Raise `ValueError` if no picture can show samples of this form."""
        if reason := undrawable(self.form, self.shape):
            raise ValueError(reason)
