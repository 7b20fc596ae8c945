"""The samples of a run of a sampler as numbers: what files of arrays hold, and the pixels of pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from difftool.data.forms import FILM_RATE, Form, OfForm, form_of, rate_of
from difftool.data.scaling import Scaling
from difftool.figures.axes import Axis, places_of, sets_of
from difftool.figures.metadata import of_picture
from difftool.figures.style import Floats, Pixels


@dataclass(frozen=True, kw_only=True)
class Content(OfForm):
    """Samples, the states of their trajectories and their conditions. May grow fields."""

    x: Tensor
    """(N, *shape) float32 on the CPU, in model units."""
    scaling: Scaling
    """The map to data units."""
    title: str
    states: Tensor | None = None
    """(K, N, *shape) states of the trajectories in model units: x_T first, the result last."""
    labels: Tensor | None = None
    """(N,) class indices."""
    class_names: Sequence[str] = ()
    """The names of the classes, or () if they have none."""
    column_names: Sequence[str] = ()
    """The names of the coordinates of points, or () if they have none."""
    axes: Sequence[Axis] = ()
    """The axes along which sets of the same size differ. There is one set for each combination of values, the last axis
    changing first; or () for a single set."""
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    """The other conditions of the samples for arrays, (N, ...) by name, as the user gave them."""
    raw: bool = False
    """True if arrays hold floats (N, *shape) in model units instead of pixels or data units."""
    trajectory: bool = False
    """True if arrays also hold the states of the trajectory."""
    record: str = ""
    """The record of how the samples were made, JSON in ASCII for the text that a format can hold; or an empty one."""
    form: Form | None = None
    """The form of a sample, as that of `Samples`; by default, one axis makes points and more axes an array."""
    rate: float | None = None
    """The rate of sound in Hz, or of films in frames a second; None for all other forms."""

    def __post_init__(self) -> None:
        form = form_of(self.form, self.x.shape[1:])
        object.__setattr__(self, "form", form)
        object.__setattr__(self, "rate", rate_of(form, self.rate))

    @property
    def set_size(self) -> int:
        """The number of samples of a set."""
        return len(self.x) // sets_of(self.axes)

    @property
    def units(self) -> str:
        """The units of the numbers of `arrays`."""
        if self.raw:
            return "model units, channels first"
        return "pixels 0..255, channels last" if self.has_pixels else "data units"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return `samples`, with a trajectory `states`, and the conditions `labels`, `vectors`, `images` and `tokens`.

        Of each axis there is an array, such as `guidances`, of the index of each sample's value, or of the value itself
        where it is a whole number, as it is of `steps` and `seeds`. See `index_names`.

        Conditions are as the user gave them, but for images of pixels, which are as those of the samples. Images are
        pixels uint8 (N, H, W, C), and films (N, T, H, W, C). Everything else is float32 (N, *shape) in data units, or
        float64 where float32 would lose digits. If raw, all are float32 (N, *shape) in model units. States have one
        more dimension in front.
        """
        arrays = {"samples": self._numbers(self.x)}
        if self.trajectory:
            arrays["states"] = self._numbers(self._states())
        if self.labels is not None:
            arrays["labels"] = self.labels.to(torch.int64).numpy()
        for axis, column in zip(self.axes, zip(*places_of(self.axes), strict=True), strict=True):
            values = np.array([axis.numbers[i] if axis.numbers else i for i in column], dtype=np.int64)
            arrays[axis.plural] = np.repeat(values, self.set_size)
        for name, rows in self.conditions.items():
            pixels = name == "images" and rows.dtype == torch.uint8 and not self.raw
            arrays[name] = (rows.movedim(1, -1).contiguous() if pixels else rows).numpy()
        return arrays

    def index_names(self) -> dict[str, list[str]]:
        """Return the names of what `arrays` counts: `class_names`, `guidance_names`, ..., `column_names` of points."""
        names = {}
        if self.labels is not None and self.class_names:
            names["class_names"] = [*self.class_names]
        names |= {f"{axis.name}_names": [*axis.values] for axis in self.axes if not axis.numbers}
        if self.column_names:
            names["column_names"] = [*self.column_names]
        return names

    def pixels(self, x: Tensor | None = None) -> Pixels:
        """Return the images, or those given as (..., C, H, W) in model units, as uint8 (..., H, W, C).

        Films (..., C, T, H, W) become (..., T, H, W, C). Values beyond the range of pixels are clamped. Raises
        `ValueError` for all other forms.
        """
        if not self.has_pixels:
            raise ValueError(f"samples of form {self.form!r} have no pixels; refuse them in the writer's `check`")
        x = self.x if x is None else x
        axes = self.x.ndim - 1
        flat = torch.nan_to_num(x.reshape(-1, *x.shape[-axes:]))
        images: Pixels = self.scaling.to_pixels(flat).movedim(1, -1).contiguous().numpy()
        return images.reshape(*x.shape[:-axes], *images.shape[1:])

    def record_of(self, number: int) -> str:
        """Return the record with the number of a sample, for a file of this sample alone."""
        return json.dumps({**json.loads(self.record), "index": number}) if self.record else ""

    def save_sample(self, number: int, path: Path) -> None:
        """Write a sample that is an image or a film in its own size: .png or, for a film, .webp. Both hold the record.

        Raises `ValueError` for samples of another form, and for images of 2 channels or more than 4.
        """
        pixels = self.pixels(self.x[number])
        about = of_picture(path, self.record_of(number))
        if self.form != "film":
            _picture(pixels).save(path, **about)
            return
        first, *others = map(_picture, pixels)
        duration = round(1000 / (self.rate or FILM_RATE))
        first.save(path, save_all=True, append_images=others, duration=duration, loop=0, lossless=True, **about)

    def numbers(self, x: Tensor | None = None) -> Floats:
        """Return the samples, or those given as (..., *shape) in model units, as numbers in data units."""
        x = self.x if x is None else x
        flat = x.to(torch.float32).reshape(-1, *self.x.shape[1:])
        numbers: Floats = self.scaling.to_data(flat).reshape(x.shape).numpy()
        return numbers

    def _numbers(self, x: Tensor) -> NDArray[Any]:
        if self.raw:
            return x.to(torch.float32).numpy()
        return self.pixels(x) if self.has_pixels else self.numbers(x)

    def _states(self) -> Tensor:
        if self.states is None:
            raise ValueError("the states of the trajectory were not kept; let the writer's `states` name their steps")
        return self.states


def _picture(pixels: Pixels) -> Image.Image:
    """Return pixels (H, W, C) of 1, 3 or 4 channels as a picture."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
