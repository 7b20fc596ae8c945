"""The form of data: what their numbers mean, which no shape tells. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

Form = Literal["image", "points", "array"]
"""Images hold pixels (channels, height, width), points are coordinates (D,), and arrays are numbers of any shape."""
FORMS: tuple[Form, ...] = get_args(Form)


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
    if known == "image" and len(shape) != 3:
        raise ValueError(f"images have the axes (channels, height, width), but the shape is {tuple(shape)}")
    return known
