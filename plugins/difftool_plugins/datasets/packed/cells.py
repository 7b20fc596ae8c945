"""Items that are packed together in large files: images, arrays and texts, in memory if they are few."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from difftool import (
    PIXELS,
    BadImage,
    DifftoolError,
    check_image,
    moments,
    printable,
    read_json,
    same_proportions,
    write_json,
)
from difftool_plugins.datasets.folders import report
from difftool_plugins.datasets.images.augment import Augmentation, Change
from difftool_plugins.datasets.images.files import CENTRE, ImageSource, Place, RandomCrops, check_all, read_all
from difftool_plugins.datasets.options import bytes_in_memory, height_width, is_few

T = TypeVar("T")


class Cells(Protocol):
    """One column of packed items."""

    def __len__(self) -> int: ...
    def name(self, i: int) -> str:
        """Return the name of a cell for errors, such as `a.tar: 0001.png`."""

    def content(self, i: int) -> Any:
        """Return the content of a cell: for an image its encoded bytes, or the path of a file."""


@dataclass(frozen=True, kw_only=True)
class PackedImages(ImageSource):
    """The images of encoded cells."""

    cells: Cells
    rows: Sequence[int]
    originals: Cells | None = None
    """The images that these belong to, of the same proportions."""

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int, crop: Place) -> Tensor:
        def pixels(image: bytes | str) -> Tensor:
            if self.originals is not None:
                self._check_proportions(image, self.originals.content(self.rows[i]))
            return self._decoded(image, crop)

        return self._named(i, pixels)

    def check(self, i: int) -> None:
        self._named(i, check_image)

    def _check_proportions(self, image: bytes | str, original: bytes | str) -> None:
        sizes = [check_image(each)[1:] for each in (image, original)]
        if not same_proportions(*sizes):
            texts = [f"{width}x{height}" for height, width in sizes]
            raise BadImage(
                f"is {texts[0]} pixels, and its item is {texts[1]}; aligned images have the same proportions"
            )

    def choose(self, numbers: Sequence[int]) -> Self:
        return replace(self, rows=[self.rows[i] for i in numbers])

    def _named(self, i: int, read: Callable[[bytes | str], T]) -> T:
        try:
            content = self.cells.content(self.rows[i])
            if not isinstance(content, (bytes, str)):
                raise BadImage("holds no image")
            return read(content)
        except (ValueError, OSError) as error:
            advice = "" if self.skip_bad else "; use --dataset.skip-bad to leave such items out"
            raise BadImage(f"{printable(self.cells.name(self.rows[i]))}: {error}{advice}") from error


@dataclass(frozen=True)
class PackedArrays:
    """A map-style source of arrays of numbers, float32."""

    cells: Cells
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        """Return an array. Raises `ValueError` for anything else."""
        try:
            content = self.cells.content(self.rows[i])
            if isinstance(content, bytes):
                content = np.load(io.BytesIO(content))
            array = np.asarray(content)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"holds no array of numbers, but {array.dtype}")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{printable(self.cells.name(self.rows[i]))}: {error}") from None
        return torch.from_numpy(np.array(array, dtype=np.float32))

    def choose(self, numbers: Sequence[int]) -> PackedArrays:
        return replace(self, rows=[self.rows[i] for i in numbers])


class PackedOptions(Protocol):
    """The options that datasets of packed items share."""

    @property
    def images(self) -> str | None: ...
    @property
    def size(self) -> tuple[int, ...]: ...
    @property
    def channels(self) -> int: ...
    @property
    def bits(self) -> int: ...
    @property
    def crop(self) -> str: ...
    @property
    def augment(self) -> tuple[Change, ...]: ...
    @property
    def skip_bad(self) -> bool: ...
    @property
    def memory(self) -> float | None: ...


def image_arguments(
    options: PackedOptions, columns: Mapping[str, Cells], rows: Sequence[int], mark: str, folder: Path | None
) -> tuple[dict[str, Any], list[int]]:
    """Return images, and the images that belong to them, as arguments of `Samples`, and the rows that can be read.

    `columns` has the column to learn, then that of the images beside it, if there are any. `mark` changes with the
    data. In `folder` it is remembered which rows are bad.
    """
    size, place = height_width(options.size), None if options.crop == "pad" else CENTRE
    first, *beside = columns.values()
    source = PackedImages(
        cells=first,
        rows=rows,
        channels=options.channels,
        size=size,
        skip_bad=options.skip_bad,
        bits=options.bits,
        crop=place,
    )
    sources = [source, *(replace(source, cells=column, bits=8, originals=first) for column in beside)]
    key = digest(mark, repr((list(columns), size, options.bits)))[:16]
    cache = None if folder is None else folder / f"bad-{key}.json"
    read, good = load_images(sources, options.memory, cache, random=options.crop == "random")
    marks = [
        mark,
        f"{options.bits} bits" if options.bits != 8 else "",
        options.crop if options.crop != "center" else "",
    ]
    arguments = {
        "items": read[0],
        "shape": (options.channels, *size),
        "images": read[1] if beside else None,
        "augment": Augmentation.of(options.augment),
        "fingerprint": " ".join(filter(None, marks)),
        **PIXELS,
    }
    return arguments, [rows[i] for i in good]


def array_arguments(options: PackedOptions, column: Cells, rows: Sequence[int]) -> dict[str, Any]:
    """Return arrays as arguments of `Samples`. Raises `ValueError` for options that belong to images."""
    if options.images is not None:
        raise ValueError("images: belong to items that are images")
    for name, default in (("augment", ()), ("crop", "center"), ("bits", 8)):
        if getattr(options, name) != default:
            raise ValueError(f"{name}: changes items that are images, and these are arrays")
    items = load_arrays(PackedArrays(column, rows), options.memory)
    shift, scale = moments(items)
    return {"items": items, "shape": tuple(items[0].shape), "shift": shift, "scale": scale}


def vectors_of(column: Cells, rows: Sequence[int]) -> Tensor:
    """Return the numbers (N, D) of the cells of a column, each flattened. Raises `ValueError`."""
    arrays = load_arrays(PackedArrays(column, rows), math.inf)
    return torch.stack([arrays[i] for i in range(len(rows))]).reshape(len(rows), -1)


def load_images(
    sources: Sequence[PackedImages], memory: float | None, cache: Path | None, *, random: bool = False
) -> tuple[list[Tensor | PackedImages | RandomCrops], list[int]]:
    """Return images and the images that belong to them, in memory if they fit, and the numbers of the good ones.

    In a set that does not fit, an image is decoded when it is read, and an error names it. With `skip_bad` all are
    decoded once, and the bad ones are remembered in the file `cache`. Raises `BadImage`, and `ValueError` if none can
    be read. With `random` images are cropped at random, so they are read during training.
    """
    count = len(sources[0])
    fits = is_few(memory, count) and sum(source.nbytes for source in sources) <= bytes_in_memory(memory)
    in_memory = fits and not random
    bad: dict[int, str] = {}
    tensors = []
    if in_memory:
        for source in sources:
            tensor, errors = read_all(source)
            tensors.append(tensor)
            bad |= {i: str(error) for i, error in errors.items()}
    elif sources[0].skip_bad:
        known = _remembered(cache)
        bad = _checked(sources) if known is None else known
        if cache is not None and known is None:
            with contextlib.suppress(DifftoolError):  # it only saves time
                write_json(cache, {str(i): error for i, error in bad.items()})
    good = [i for i in range(count) if i not in bad]
    report(list(bad.values()), count, "items")
    if in_memory:
        return [tensor[good] if bad else tensor for tensor in tensors], good
    chosen = [source.choose(good) for source in sources]
    return [RandomCrops(source) if random else source for source in chosen], good


def _checked(sources: Sequence[PackedImages]) -> dict[int, str]:
    bad: dict[int, str] = {}
    for source in sources:
        bad |= {i: str(error) for i, error in check_all(source, range(len(source))).items()}
    return bad


def _remembered(file: Path | None) -> dict[int, str] | None:
    """Return the errors in a file by number, or None if it is missing or damaged."""
    if file is None:
        return None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return {int(i): str(error) for i, error in read_json(file).items()}
    return None


def load_arrays(arrays: PackedArrays, memory: float | None) -> Tensor | PackedArrays:
    """Return arrays, in memory if they fit. Raises `ValueError` for arrays of several shapes."""
    first = arrays[0]
    if len(arrays) * first.numel() * 4 > bytes_in_memory(memory):
        return arrays
    if (whole := _block(arrays, first)) is not None:
        return whole
    items = first.new_empty(len(arrays), *first.shape)
    for i in range(len(arrays)):
        row = arrays[i]
        if row.shape != first.shape:
            raise ValueError(
                f"{printable(arrays.cells.name(arrays.rows[i]))} is {tuple(row.shape)}, but the first one "
                f"{tuple(first.shape)}; all arrays must have one shape"
            )
        items[i] = row
    return items


def _block(arrays: PackedArrays, first: Tensor) -> Tensor | None:
    """Return all arrays at once where the cells can be read in blocks and have one shape, or None."""
    block = getattr(arrays.cells, "block", None)
    whole = None if block is None else block(arrays.rows)
    if whole is None or whole.dtype.kind not in "biuf" or whole.shape != (len(arrays), *first.shape):
        return None
    return torch.from_numpy(np.array(whole, dtype=np.float32))


def digest(*parts: bytes | str) -> str:
    """Return the SHA-256 of texts and bytes, each with its length."""
    sha = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        sha.update(b"%d\0" % len(raw) + raw)
    return sha.hexdigest()
