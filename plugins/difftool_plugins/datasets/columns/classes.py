"""The classes of labels from outside: whole numbers or texts."""

from __future__ import annotations

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


def classes_of(values: Numbers, names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return class indices and names of labels: whole numbers, of which `names` has the names, or texts.

    Classes are those that have items, ordered by number, or by name. Raises `ValueError`.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"labels: must be one class for each item, of shape (N,), not {values.shape}")
    if values.dtype.kind in "SU":
        texts = values.astype(np.str_)
        if bad := int((np.char.strip(texts) == "").sum()):
            raise ValueError(f"labels: {bad} of {len(texts):,} are empty; name them, or leave out these rows")
        unique, index = np.unique(texts, return_inverse=True)
        if all(text.isascii() and text.isdecimal() for text in unique):
            order = sorted(range(len(unique)), key=lambda k: (int(unique[k]), unique[k]))
            unique, index = unique[order], np.argsort(order)[index]
        return torch.from_numpy(index.reshape(-1).astype(np.int64)), tuple(map(str, unique))
    if values.dtype.kind not in "biuf":
        raise ValueError(f"labels: must be whole numbers or texts, not {values.dtype}")
    whole = values.astype(np.int64) if np.isfinite(values).all() else None
    if whole is None or not np.array_equal(whole, values):
        raise ValueError("labels: must be whole numbers or texts; a quantity is a vector (--dataset.vectors)")
    unique, index = np.unique(whole, return_inverse=True)
    if names and (unique[0] < 0 or unique[-1] >= len(names)):
        raise ValueError(f"labels: reach from {unique[0]} to {unique[-1]}, but {len(names)} classes have names")
    if names and (empty := [names[k] for k in range(len(names)) if k not in set(unique.tolist())]):
        listed = ", ".join(map(printable, empty[:LISTED])) + (", ..." if len(empty) > LISTED else "")
        warnings.warn(f"{len(empty)} classes without items are left out ({listed})", stacklevel=4)
    found = tuple(names[k] if names else str(k) for k in unique.tolist())
    return torch.from_numpy(index.reshape(-1).astype(np.int64)), found
