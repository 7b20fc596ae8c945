"""Items and numbers from outside, brought into the tensors and plain numbers that training computes with."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEPT = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
"""Integer types that batches can be picked from."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHUNK = 2**22
"""Items are looked through in pieces of about this many numbers, so that the look takes next to no memory."""


def tensor_of(items: Any, name: str = "items") -> Any:
    """Return a tensor or NumPy array as a tensor on the CPU without gradients; anything else as it is.

    Raises `ValueError` for numbers that cannot be trained on.
    """
    if isinstance(items, np.ndarray):
        items = _from_numpy(items, name)
    if not isinstance(items, Tensor):
        return items
    if items.is_complex():
        raise ValueError(f"{name} are complex; give real and imaginary parts as channels (torch.view_as_real)")
    if items.is_meta or items.is_quantized or items.layout != torch.strided:
        raise ValueError(f"{name} must be an ordinary, dense tensor; to_dense() makes one of a sparse tensor")
    if items.dtype not in (*KEPT, *FLOATS):
        items = items.to(torch.float32 if items.is_floating_point() else torch.int64)
    return items.detach().cpu()


def _from_numpy(array: np.ndarray[Any, Any], name: str) -> Tensor:
    if np.ma.is_masked(array):
        raise ValueError(f"{name} are masked; fill or drop what is masked")
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} must be numbers, not of NumPy type {array.dtype}")
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that are read-only, such as memory maps: items are never written to
        return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype).reshape(array.shape))


def item_of(source: Any, i: int, name: str = "items") -> Tensor:
    """Return item i of a map-style source. Raises `ValueError` unless it is a tensor or array of finite numbers."""
    item = tensor_of(source[i], name)
    if not isinstance(item, Tensor):
        what = "item" if name == "items" else f"the entry of {name} for item"
        raise ValueError(f"{what} {i} is not a tensor, but of type {type(item).__name__}")
    if item.is_floating_point() and not bool(item.isfinite().all()):
        raise ValueError(f"{name} hold NaN or infinite numbers (item {i})")
    return item


def check_finite(items: Tensor, name: str = "items") -> None:
    """Raise `ValueError` if any of the items (N, ...) holds NaN or infinity, and say which is the first."""
    if not items.is_floating_point():
        return
    rows = max(1, CHUNK // max(1, items[0].numel()))
    for start in range(0, len(items), rows):
        finite = items[start : start + rows].isfinite().flatten(1).all(dim=1)
        if not bool(finite.all()):
            first = start + int(finite.int().argmin())
            raise ValueError(f"{name} hold NaN or infinite numbers (first in item {first})")


def numbers_of(name: str, values: Any) -> tuple[float, ...]:
    """Return one number, or a sequence, tensor or array of them, as floats. Raises `ValueError`."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().tolist()
    elif isinstance(values, (np.ndarray, np.generic)):
        values = values.tolist()
    try:
        floats = tuple(float(value) for value in (values if hasattr(values, "__iter__") else (values,)))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be numbers, not {values!r:.80}") from None
    if isinstance(values, str) or not floats or not all(map(math.isfinite, floats)):
        raise ValueError(f"{name} must be finite numbers, not {values!r:.80}")
    return floats
