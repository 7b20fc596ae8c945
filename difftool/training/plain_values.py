"""The numbers, texts and lists that an optimizer keeps beside its tensors, as JSON."""

from __future__ import annotations

import math
from typing import Any

NUMBERS = ("inf", "-inf", "nan")
"""The numbers that JSON lacks, as they are written in `{"number": "inf"}`."""


def is_number(value: object) -> bool:
    """Return whether a value is one that JSON holds by itself: a number, a text, true, false or None."""
    return value is None or type(value) in (bool, int, float, str)


def is_plain(value: object) -> bool:
    """Return whether `encode` takes a value: a number or text, or a list or tuple of plain values."""
    return is_number(value) or (type(value) in (list, tuple) and all(map(is_plain, value)))  # type: ignore[call-overload]


def encode(value: Any) -> Any:
    """Return a plain value as JSON holds it."""
    if isinstance(value, (list, tuple)):
        return [encode(entry) for entry in value]
    return {"number": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def decode(value: Any, like: Any) -> Any:
    """Return the value that `encode` was given, a tuple where `like` is one. Raises `ValueError` for other JSON."""
    if isinstance(value, list):
        likes = like if isinstance(like, (list, tuple)) and len(like) == len(value) else [None] * len(value)
        entries = [decode(entry, other) for entry, other in zip(value, likes, strict=True)]
        return tuple(entries) if isinstance(like, tuple) else entries
    if isinstance(value, dict) and value.keys() == {"number"} and value["number"] in NUMBERS:
        return float(value["number"])
    if not is_number(value):
        raise ValueError("not a plain value")
    return value
