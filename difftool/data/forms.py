"""The form of data: what their numbers mean, which no shape tells. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

Form = Literal["image", "points", "series", "sound", "film", "cloud", "array"]
"""Images hold pixels (channels, height, width) and films (channels, frames, height, width). Points are coordinates
(D,), and a cloud is N points in any order, (D, N). Series are channels over time (channels, length), and sound is a
series from -1 to 1. Arrays are numbers of any shape."""
FORMS: tuple[Form, ...] = get_args(Form)

AXES: dict[Form, tuple[str, ...]] = {
    "image": ("channels", "height", "width"),
    "points": ("coordinates",),
    "series": ("channels", "length"),
    "sound": ("channels", "length"),
    "film": ("channels", "frames", "height", "width"),
    "cloud": ("coordinates", "points"),
}
"""The axes of an item of each form that has them."""
PIXEL_FORMS: tuple[Form, ...] = ("image", "film")
"""The forms of which the numbers are pixels from 0 to 255."""
UNITS_OF_RATE: dict[Form, str] = {"sound": "Hz", "film": "frames a second"}
"""The units of the rate of each form that has one."""
NOUNS: dict[Form, str] = {"image": "images", "sound": "sounds", "film": "films", "cloud": "clouds", "array": "arrays"}
"""The plural of each form whose name is a singular."""
FILM_RATE = 10.0
"""Frames a second of a film that has no rate."""
LARGEST_RATE = 10**6


class OfForm:
    """Data, or samples of them, that have a form."""

    form: Form | None

    @property
    def is_points(self) -> bool:
        """True for coordinates (D,)."""
        return self.form == "points"

    @property
    def is_image(self) -> bool:
        """True for pixels (channels, height, width)."""
        return self.form == "image"

    @property
    def has_pixels(self) -> bool:
        """True if the numbers are pixels, as those of images and films are."""
        return self.form in PIXEL_FORMS


def form_of(form: str | None, shape: Sequence[int]) -> Form:
    """Return the form, by default points for one axis and array for more.

    Raises `ValueError` for an unknown form, or for one that does not go with the shape.
    """
    if form is None:
        return "points" if len(shape) == 1 else "array"
    known = next((each for each in FORMS if each == form), None)
    if known is None:
        raise ValueError(f"unknown form {form!r}; choose {', '.join(FORMS)}")
    if known == "points" and len(shape) != 1:
        raise ValueError(f"points have one axis, but the shape is {tuple(shape)}; choose form 'array'")
    if known in AXES and len(shape) != len(AXES[known]):
        noun = NOUNS.get(known, known)
        raise ValueError(f"{noun} have the axes ({', '.join(AXES[known])}), but the shape is {tuple(shape)}")
    return known


def rate_of(form: Form, rate: float | None) -> float | None:
    """Return the rate of data of a form: that of sound in Hz, that of films in frames a second, and else None.

    Films without a rate have that of `FILM_RATE`. Raises `ValueError` for sound without a rate, and for a rate that
    is no positive number or that belongs to another form.
    """
    if form not in UNITS_OF_RATE:
        if rate is not None:
            raise ValueError(f"rate: only sound and films have one, and the form is {form!r}")
        return None
    if rate is None:
        if form == "sound":
            raise ValueError("rate: sound needs its rate in Hz, such as 16000")
        return FILM_RATE
    if isinstance(rate, bool) or not math.isfinite(rate) or not 0 < rate <= LARGEST_RATE:
        raise ValueError(f"rate: must be a number above 0 and at most {LARGEST_RATE:,}, not {rate}")
    if form == "sound" and rate != int(rate):
        raise ValueError(f"rate: that of sound is a whole number of Hz, not {rate}")
    return float(rate)


def backbone_of(form: str, otherwise: str) -> str:
    """Return the name of the backbone that suits a form: `unet` for what has neighbours, and else another one."""
    return "unet" if form in ("image", "series", "sound", "film") else otherwise
