"""The classes of labels from outside: whole numbers or texts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difftool import printable

Numbers = np.ndarray[Any, Any]
LISTED = 5
"""The names that a warning lists."""
WHOLE = re.compile(r"-?[0-9]{1,300}")


def classes_of(
    values: Numbers | Sequence[Any], names: Sequence[str] = (), where: str = ""
) -> tuple[Tensor, tuple[str, ...]]:
    """Return class indices (N,) and names of labels: whole numbers, of which `names` has the names, or texts.

    Classes are those that have items, ordered by number, or by name. `where` names the place of the labels in errors,
    such as "column kind". Raises `ValueError`.
    """
    place = f"labels: {where}" if where else "labels:"
    if not isinstance(values, np.ndarray):
        values = _as_array(values, place)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"{place} must be one class for each item, of shape (N,), not {values.shape}")
    if values.dtype.kind in "SUO":
        return _of_texts((values.astype(np.str_) if values.dtype.kind == "S" else values).tolist(), place)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{place} must be whole numbers or texts, not {values.dtype}")
    whole = values.astype(np.int64) if np.isfinite(values).all() else None
    if whole is None or not np.array_equal(whole, values):
        raise ValueError(f"{place} must be whole numbers or texts; a quantity is a vector (--dataset.vectors)")
    unique, index = np.unique(whole, return_inverse=True)
    if names and (unique[0] < 0 or unique[-1] >= len(names)):
        raise ValueError(f"{place} reach from {unique[0]} to {unique[-1]}, but {len(names)} classes have names")
    if names and (empty := [names[k] for k in range(len(names)) if k not in set(unique.tolist())]):
        listed = ", ".join(map(printable, empty[:LISTED])) + (", ..." if len(empty) > LISTED else "")
        warnings.warn(f"{len(empty)} classes without items are left out ({listed})", stacklevel=4)
    found = tuple(names[k] if names else str(k) for k in unique.tolist())
    return torch.from_numpy(index.reshape(-1).astype(np.int64)), found


def _as_array(values: Sequence[Any], place: str) -> Numbers:
    """Return numbers as an array, and texts as an array of objects. Raises `ValueError` for a value of another kind."""
    kind = str if isinstance(values[0], str) else (bool, int, float, np.number)
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            raise ValueError(f"{place} must be whole numbers or texts, not {value!r:.60} (item {i})")
    return np.array(values, dtype=object if kind is str else None)


def _of_texts(texts: Sequence[str], place: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return class indices and names of texts. Names that are whole numbers are ordered by size."""
    unique = sorted(set(texts))
    if any(not text.strip() for text in unique):
        count = sum(not text.strip() for text in texts)
        raise ValueError(
            f"{place} must name a class in each row, and {count} of {len(texts):,} are empty; leave out these rows"
        )
    if all(WHOLE.fullmatch(text) for text in unique):
        unique = sorted(unique, key=lambda text: (int(text), text))
    number = {text: k for k, text in enumerate(unique)}
    return torch.tensor([number[text] for text in texts]), tuple(unique)
