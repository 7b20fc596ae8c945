"""The numbers since the last row of metrics, as a training state keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

WINDOW = ("losses", "items", "t", "eps")
"""The columns of the numbers since the last row: the loss of each step; loss, level and squared error of each item."""


def check_window(window: Mapping[str, Tensor], levels: int) -> None:
    """Check the numbers of a window from a file. Raises `ValueError`."""
    if not window:
        return
    if window.keys() != {*WINDOW, "since", "skipped"}:
        raise ValueError("names")
    losses, items, t, eps = (window[name] for name in WINDOW)
    if any(column.dim() != 1 for column in (losses, items, t, eps)) or window["since"].dim() or window["skipped"].dim():
        raise ValueError("shapes")
    if not (losses.is_floating_point() and items.is_floating_point() and eps.is_floating_point()):
        raise ValueError("types")
    if t.dtype != torch.int64 or window["skipped"].dtype != torch.int64 or len(items) != len(t) or not len(losses):
        raise ValueError("types or lengths")
    if not (math.isfinite(window["since"]) and bool(((t >= 0) & (t < levels)).all())):
        raise ValueError("numbers")
