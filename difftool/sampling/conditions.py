"""The conditions of samples, as the user gives them: read and checked, but not yet in the units of the network."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from difftool.data.images import BadImage
from difftool.data.own_images import condition_pixels, image_files
from difftool.data.tensors import tensor_of
from difftool.errors import DifftoolError, UsageError, counted, listed, one_line, printable, shortened
from difftool.files import open_regular
from difftool.settings import Sampling

if TYPE_CHECKING:
    from difftool.sampling.source import Source

WORDS = {"label": "a class", "vector": "a vector", "image": "an image", "tokens": "tokens"}
"""The fields of `Condition` in messages."""
NO_CLASS = "none"
NAMED, LONGEST_NAME = 4, 40
"""The largest number of classes that words name, and the characters of a name."""
LARGEST_IMAGE = 10.0
"""The largest number of an ordinary condition image in model units."""

Rows = Mapping[str, Tensor]
"""The fields of `Condition` as (K, ...), raw: sample k takes row k modulo their number."""


@dataclass(frozen=True)
class Given:
    """The conditions that a user gives."""

    rows: Rows
    count: int | None
    """The number of rows of the longest field that has a row for each sample, or None."""
    names: tuple[str, ...]
    """The names of the condition images of a folder, or ()."""


def arrays_in(source: Source, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the conditions among settings that Python code gives as arrays, and the other settings.

    Raises `UsageError` for an unknown class.
    """
    arrays = {
        name: settings[name]
        for name in ("vector", "image", "tokens")
        if not isinstance(settings.get(name), (str, os.PathLike, type(None)))
    }
    if isinstance(label := settings.get("label"), (list, tuple, np.ndarray, Tensor)):
        classes = label.tolist() if isinstance(label, (np.ndarray, Tensor)) else label
        arrays["label"] = torch.tensor(source.label_indices(classes))
    return arrays, {name: value for name, value in settings.items() if name not in arrays}


def read_rows(source: Source, settings: Sampling, arrays: Mapping[str, Any], *, most: int) -> Given:
    """Return the conditions that settings name or arrays hold; without any, the first `most` classes of a source.

    Each is one for all samples, or has a row for each sample. Raises `UsageError` for what the source does not take,
    and for a field that it takes and is not given beside others; `DifftoolError` for files that cannot be read.
    """
    given: dict[str, Any] = {"vector": settings.vector, "image": settings.image, "tokens": settings.tokens, **arrays}
    labels = classes_drawn(source, settings, most)
    rows = {"label": torch.tensor(labels)} if labels else {}
    count = None
    for name, value in given.items():
        if value is None:
            continue
        shape = source.data.condition.shapes.get(name)
        if shape is None:
            takes = " and ".join(WORDS[field] for field in source.data.condition.shapes) or "no condition"
            raise UsageError(f"--{name}: {source.name} takes {takes}")
        rows[name], several = _rows_of(source, name, value, shape)
        if several:
            count = max(count or 0, len(rows[name]))
    _check_complete(source, rows)
    return Given(rows, count, _names_of_images(settings.image, rows.get("image")))


def classes_drawn(source: Source, settings: Sampling, most: int) -> list[int]:
    """Return the classes that settings name. Where they name none, return the first `most` of all classes.

    That is the default since a network learns little of samples of no class, which training shows it in a tenth of its
    steps. A path has one class or none, and where there are other conditions too, all or none are given.
    Raises `UsageError` for an unknown class.
    """
    names = source.data.class_names
    if settings.label is not None:
        return [] if settings.label == NO_CLASS not in names else source.label_indices(settings.label)
    if [*source.data.condition.shapes] != ["label"] or settings.interpolate is not None:
        return []
    return list(range(min(most, len(names))))


def _names_of_images(path: Path | None, rows: Tensor | None) -> tuple[str, ...]:
    """Return the names of the images of a folder, without suffixes if they still differ; () unless each gave a row."""
    if path is None or rows is None or not path.is_dir():
        return ()
    files = image_files(path)
    stems = tuple(file.stem for file in files)
    names = stems if len({*stems}) == len(stems) else tuple(file.name for file in files)
    return tuple(map(printable, names)) if len(names) == len(rows) else ()


def _check_complete(source: Source, rows: Rows) -> None:
    """Raise `UsageError` unless all fields are given that the source takes, or none where it needs none."""
    fields = source.data.condition.shapes
    missing = [name for name in fields if name not in rows]
    if missing and source.needs_condition:
        raise UsageError(
            f"--{missing[0]}: the model was trained with --condition-dropout 0 and knows no samples without "
            f"{WORDS[missing[0]]}"
        )
    if missing and rows:  # training hides all of an item's conditions, or none
        shown, other = next(iter(rows)), missing[0]
        raise UsageError(f"--{shown}: {source.name} takes {WORDS[other]} too; add --{other}, or leave both out")


def _rows_of(source: Source, name: str, value: Any, shape: tuple[int, ...]) -> tuple[Tensor, bool]:
    """Return rows (K, *shape), and whether the user gave several, or one for all samples."""
    several = False
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        rows: Any = source.read_condition(name, text)
        if rows is None:
            rows = _read_vector(text, shape[0]) if name == "vector" else _read_file(name, Path(text), shape)
        several = name == "image" and Path(text).is_dir()
    else:
        rows = _array(name, value)
    rows = _checked(name, rows, shape)
    return (rows, several or len(rows) > 1) if rows.ndim > len(shape) else (rows[None], several)


def _array(name: str, value: Any) -> Any:
    """Return what a program gives as a tensor. Raises `UsageError`."""
    if isinstance(value, (int, float, list, tuple)) and not isinstance(value, bool):
        try:
            value = np.asarray(value)
        except ValueError:
            raise UsageError(f"--{name}: is a list whose rows differ in length") from None
    try:
        return tensor_of(value, f"--{name}: the numbers")
    except ValueError as error:
        raise UsageError(one_line(error)) from None


def _checked(name: str, rows: Any, shape: tuple[int, ...]) -> Tensor:
    """Return rows of a field if type, shape and numbers are right. Raises `UsageError`."""
    if not isinstance(rows, Tensor):
        raise UsageError(f"--{name}: must be an array of numbers, not {type(rows).__name__}")
    if rows.ndim == 0 and math.prod(shape) == 1:
        rows = rows.reshape(shape)
    size = tuple(rows.shape)
    if size not in (shape, (len(rows) if size else 0, *shape)) or 0 in size:
        rest = ", ".join(map(str, shape))
        raise UsageError(f"--{name}: must have the shape ({rest}{',' * (len(shape) == 1)}) or (N, {rest}), not {size}")
    if name == "image" and rows.dtype != torch.uint8 and not rows.is_floating_point():
        kind = str(rows.dtype).removeprefix("torch.")
        raise UsageError(f"--image: must be uint8 pixels, or floats in model units, not {kind}")
    if rows.is_floating_point() and not bool(rows.isfinite().all()):
        raise UsageError(f"--{name}: holds NaN or infinite numbers")
    if name == "image" and rows.is_floating_point() and float(rows.abs().max()) > LARGEST_IMAGE:
        warnings.warn(
            f"--image: floats are taken in model units, and these reach {float(rows.abs().max()):.4g}; pixels from 0 "
            "to 255 are given as uint8",
            stacklevel=2,
        )
    return rows  # type: ignore[no-any-return]


def _read_vector(text: str, size: int) -> Any:
    """Return a vector from a text such as `0.3,1.2`, or the rows of a `.npy` file."""
    if text.lower().endswith(".npy"):
        return _read_array("vector", Path(text))
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--vector: must be numbers such as 0.3,1.2 or a .npy file, not {text!r:.80}") from None
    if len(numbers) != size:
        raise UsageError(
            f"--vector: takes {counted(size, 'number')}, not {len(numbers)}; a .npy file holds a row for each sample"
        )
    return torch.tensor(numbers, dtype=torch.float64)


def _read_file(name: str, path: Path, shape: tuple[int, ...]) -> Any:
    """Return the rows of a file of tokens, or of a file or folder of images."""
    if name == "tokens" or path.suffix.lower() == ".npy":
        return _read_array(name, path)
    channels, height, width = shape
    if channels > 4:
        raise UsageError(
            f"--image: image files have 1 to 4 channels, and this model takes {channels}; give a .npy file"
        )
    try:
        paths: Sequence[Path] = image_files(path) if path.is_dir() else [path]
        images = [condition_pixels(file, channels, (height, width)) for file in paths]
    except (BadImage, OSError) as error:
        raise DifftoolError(f"--image: {one_line(error)}") from None
    if not images:
        raise DifftoolError(f"--image: {printable(str(path))} holds no image")
    return torch.stack(images) if path.is_dir() else images[0]


def _read_array(name: str, path: Path) -> Any:
    """Return the array in a `.npy` file. Raises `DifftoolError`."""
    where = f"--{name}: {printable(str(path))}"
    try:
        with open_regular(path) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DifftoolError(f"{where} is not a .npy file of numbers, or is damaged ({one_line(error)})") from None
    except OSError as error:
        raise DifftoolError(f"{where}: {error.strerror or one_line(error)}") from None
    return _array(name, array)


def words_of(rows: Rows, settings: Sampling, class_names: Sequence[str]) -> list[str]:
    """Return the conditions in words, such as `class cat` and `vector 0.3,1.2`."""
    found = []
    for name, tensor in rows.items():
        value = {"vector": settings.vector, "image": settings.image, "tokens": settings.tokens}.get(name)
        if name == "label":
            found.append(_words_of_classes(tensor.tolist(), class_names))
        elif value is not None:
            text = str(value) if name == "vector" and not str(value).endswith(".npy") else Path(value).name
            found.append(f"{name} {printable(text)}")
        else:
            found.append(f"{len(tensor)} {name} rows" if len(tensor) > 1 else f"a given {name}")
    return found


def _words_of_classes(labels: Sequence[int], names: Sequence[str]) -> str:
    """Return classes in words: `class cat`, `classes cat and dog`, `all 10 classes` or `7 of 10 classes`."""
    chosen = list(dict.fromkeys(labels))
    if len(chosen) == 1:
        return f"class {names[chosen[0]]}"
    if len(chosen) > NAMED:
        share = "all" if len(chosen) == len(names) else f"{len(chosen):,} of"
        return f"{share} {len(names):,} classes"
    return f"classes {listed([shortened(printable(names[label]), LONGEST_NAME) for label in chosen])}"
