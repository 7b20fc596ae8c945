"""Columns: what a dataset has beside its items, one row for each item, in memory or read with the item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from difftool.data.tensors import check_finite, item_of, tensor_of
from difftool.errors import DifftoolError, blaming, one_line
from difftool.rng import generator

COLUMNS = {"label": "labels", "vector": "vectors", "image": "images", "tokens": "tokens", "noise": "noise"}
"""The columns of `Samples` by the name of a row: a field of `Condition`, or the noise of an item."""
AXES = {"vector": "(N, D)", "image": "(N, C, H, W)", "tokens": "(N, L, D)"}


class Items(Protocol):
    """A map-style source: `source[i]` has no side effects and returns item i, a tensor of one shape for all items.

    A source may also have `draw(i, seed)`, which returns item i in a form that is random, such as another part of a
    photograph, and a function of i and the seed alone. Training calls it with a seed that is a function of the step,
    and all else takes `source[i]`. Columns that belong together get the same seed.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Tensor: ...


Column = Tensor | Items
ImagesOf = Callable[[Tensor, torch.Generator], Tensor]
"""Condition images as a function of raw items: (items (B, *shape), generator) -> (B, C, H, W)."""


def source_of(given: Any, name: str) -> Column:
    """Return an array as a tensor on the CPU, and a source as it is. Raises `ValueError` for anything else."""
    column: Any = tensor_of(given, name)
    if not hasattr(column, "__len__") or not hasattr(column, "__getitem__"):
        kind = type(column).__name__
        raise ValueError(f"{name} must be a tensor, a NumPy array or a source with len() and [i], not {kind}")
    return column  # type: ignore[no-any-return]


def column_of(given: Any, name: str, shape: tuple[int, ...], count: int) -> Column:
    """Return the column `name` ("vector", ...) for `count` items of this shape. Raises `ValueError` if it does not fit.

    The rows of a source are checked when they are read.
    """
    plural = COLUMNS[name]
    column = source_of(given, plural)
    if isinstance(column, Tensor) and column.ndim == 0:
        raise ValueError(f"{plural} must have a row for each item, not a single number")
    if len(column) != count:
        raise ValueError(f"{len(column)} {plural} for {count} items")
    if isinstance(column, Tensor):
        check_row(name, column[0], shape)
    return column


def labels_of(given: Any, class_names: Sequence[str], count: int) -> Tensor:
    """Return labels of any integer type as int64 (N,). Raises `ValueError`."""
    labels = tensor_of(given, "labels")
    if not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"labels must be int64, not {type(given).__name__}") from None
    if labels.ndim != 1:
        raise ValueError(f"labels must be one class index an item, of shape (N,), not {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be int64, not {_dtype(labels)}")
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} items")
    labels = labels.to(torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (class_names and high >= len(class_names)):
        classes = f"{len(class_names)} classes" if class_names else "classes"
        raise ValueError(f"labels must be indices of the {classes}, from 0 on; they reach from {low} to {high}")
    return labels


def repeats_of(given: Any, count: int) -> Tensor:
    """Return the visits of each item in an epoch as int64 (N,). Raises `ValueError`."""
    repeats = torch.as_tensor(given)
    if tuple(repeats.shape) != (count,) or repeats.is_floating_point() or int(repeats.min()) < 1:
        raise ValueError(f"repeats must be whole numbers from 1 on, one for each of the {count} items")
    return repeats.to(torch.int64)


def check_row(name: str, row: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a row of a column of items of this shape, by its shape and type. Raises `ValueError`."""
    plural, size = COLUMNS[name], tuple(row.shape)
    if name == "noise":
        if size != shape or not row.is_floating_point():
            raise ValueError(f"noise must be floats of the shape of an item, {shape}, not {_dtype(row)} {size}")
        return
    if len(size) + 1 != AXES[name].count(",") + 1 or 0 in size:
        raise ValueError(f"{plural} must have the shape {AXES[name]}, so each row {AXES[name][4:-1]}, not {size}")
    if name != "image":
        return
    if len(shape) != 3 or size[1:] != shape[1:]:
        raise ValueError(f"images must be as high and wide as the items: the items are {shape}, an image is {size}")
    if row.dtype != torch.uint8 and not row.is_floating_point():
        raise ValueError(f"images must be uint8 pixels, or floats in model units, not {_dtype(row)}")


def check_column_names(names: Sequence[str], shape: tuple[int, ...]) -> None:
    """Refuse names of coordinates that do not fit items of this shape. Raises `ValueError`."""
    if names and shape != (len(names),):
        raise ValueError(f"column_names has {len(names)} names, but the items are {shape}")
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name in column_names")


class Drawn:
    """Row i of a source as it is drawn with a seed, under the index i."""

    def __init__(self, source: Any, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, i: int) -> Any:
        return self.source.draw(i, self.seed)


class Rows:
    """Some rows of a source, by their numbers."""

    def __init__(self, source: Any, numbers: Sequence[int]) -> None:
        self.source, self.numbers = source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Any:
        return self.source[self.numbers[i]]


class DrawnRows(Rows):
    """Some rows of a source that draws them at random."""

    def draw(self, i: int, seed: int) -> Any:
        return self.source.draw(self.numbers[i], seed)


def some_rows(column: Column, numbers: list[int]) -> Column:
    """Return the rows of a column with these numbers."""
    if isinstance(column, Tensor):
        return column[numbers]
    return (DrawnRows if hasattr(column, "draw") else Rows)(column, numbers)


def row_of(column: Column, name: str, i: int, seed: int | None = None) -> Tensor:
    """Return row i of a column, as it is drawn with a seed if the column is a source with `draw(i, seed)`.

    Raises `ValueError` unless it is a tensor or array of finite numbers.
    """
    if isinstance(column, Tensor):
        return column[i]
    source: Any = column if seed is None or not hasattr(column, "draw") else Drawn(column, seed)
    return item_of(source, i, COLUMNS.get(name, name))


def rows_of(column: Column, name: str, indices: Sequence[int]) -> Tensor:
    """Return the rows (B, ...) of a column at indices. Raises `DifftoolError` if one cannot be read."""
    if isinstance(column, Tensor):
        return column[torch.as_tensor(indices)]
    plural = COLUMNS.get(name, name)
    try:
        return torch.stack([item_of(column, int(i), plural) for i in indices])
    except (ValueError, OSError) as error:
        raise DifftoolError(one_line(error)) from error
    except RuntimeError as error:
        raise DifftoolError(f"{plural} differ in shape: {one_line(error)}") from error


def images_of(function: ImagesOf, items: Tensor, random: torch.Generator) -> Tensor:
    """Return the condition images (B, C, H, W) of raw items. Raises `DifftoolError` if the function fails."""
    with blaming("images() of the dataset"):
        images = function(items, random)
        if not isinstance(images, Tensor):
            raise ValueError(f"must return a tensor, not {type(images).__name__}")
        if len(images) != len(items):
            raise ValueError(f"made {len(images)} images of {len(items)} items")
        check_row("image", images[0], tuple(items.shape[1:]))
        return images


def images_at(function: ImagesOf, items: Tensor, indices: Sequence[int]) -> Tensor:
    """Return the condition images of items at indices, each a function of the item and its index alone."""
    each = zip(torch.split(items, 1), indices, strict=True)
    return torch.cat([images_of(function, item, generator(0, "images", int(i))) for item, i in each])


def check_columns_finite(columns: dict[str, Column]) -> None:
    """Raise `ValueError` if a column in memory holds NaN or infinity, and say which row is the first."""
    for name, column in columns.items():
        if isinstance(column, Tensor):
            check_finite(column, COLUMNS[name])


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
