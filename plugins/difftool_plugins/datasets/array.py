"""Arrays and tables: `arrays` reads their files, and brings their items into one layout."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from difftool import Dataset, backbone_of, option, printable
from difftool_plugins.datasets.arrays.choices import is_file
from difftool_plugins.datasets.options import GIB_IN_MEMORY, bytes_in_memory, read_small_image

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import ConditionSpec, DatasetContext, Samples
    from difftool_plugins.datasets.arrays.parts import Parts

WHOLE, PIECES, PIECE = 2**28, 64, 2**16
"""The size in bytes up to which a whole file counts in its fingerprint, and the pieces of larger files that do."""


class Array(Dataset, name="array"):
    """Your own numbers: a `.npy`, `.npz`, `.safetensors`, `.csv` or `.parquet` file, such as `sample --out` writes.

    Arrays have a row for each item. Bytes with three channels or one are images, rows of numbers are points, and all
    else is an array, unless `form` says otherwise. A table has a column for each coordinate, and its names come back in
    the samples.
    """

    path: Path = option(help="file of arrays or of a table")
    items: tuple[str, ...] | None = option(
        default=None,
        help="key of the items, or columns of a table; * stands for any characters, as in x*",
        otherwise="the key samples or the only one; in a table, all columns of numbers that nothing else uses",
    )
    labels: str = option(
        default="auto",
        help="key or column of the classes, whole numbers or texts, or a .npy file of them; auto: labels, label or "
        "class, if the file has it; none: there are no classes",
    )
    vectors: tuple[str, ...] | None = option(
        default=None,
        help="also show the network a vector: its key, columns of a table, or a .npy file (N, D); none: not even that "
        "of the file",
        otherwise="the key vectors of samples that were drawn under vectors",
    )
    condition: str | None = option(
        default=None,
        help="also show the network an image that belongs to each: gray, shrink:N or mask as for image-folder, or the "
        "key or the .npy file of such images; none: not even those of the file",
        otherwise="the key images of samples that were drawn under images",
    )
    tokens: str | None = option(
        default=None,
        help="also show the network tokens: the key or the .npy file of numbers (N, L, D); none: not even those of the "
        "file",
        otherwise="the key tokens of samples that were drawn under tokens",
    )
    form: Literal["image", "points", "series", "sound", "film", "cloud", "array"] | None = option(
        default=None,
        help="meaning of the numbers: image (pixels from 0 to 255, or floats from 0 to 1 or from -1 to 1), film "
        "(pixels too), series (channels over time), sound (-1 to 1), cloud (points in any order), points, or array",
        otherwise="image, points or array, by the shape and the type",
    )
    rate: float | None = option(
        default=None,
        gt=0,
        le=10**6,
        help="rate of sound in Hz, or of films in frames a second",
        otherwise="10 for films",
    )
    layout: Literal["auto", "first", "last"] = option(
        default="auto", help="place of the channels among the axes of an item; auto: where there are 1 to 4 of them"
    )
    shape: tuple[int, ...] | None = option(
        default=None,
        ge=1,
        le=2**24,
        help="shape of an item whose numbers lie in one row, as 8,8,3",
        otherwise="as in the file",
    )
    memory: float | None = option(
        default=None,
        ge=0,
        help="GiB of arrays to hold in memory; larger ones are read from the file while training",
        otherwise=f"{GIB_IN_MEMORY:g}",
    )

    def __post_init__(self) -> None:
        for name in ("labels", "condition", "tokens"):
            if is_file(text := getattr(self, name)):  # a run may go on elsewhere
                object.__setattr__(self, name, os.path.abspath(os.path.expanduser(text)))
        if self.vectors is not None:
            paths = (os.path.abspath(os.path.expanduser(text)) if is_file(text) else text for text in self.vectors)
            object.__setattr__(self, "vectors", tuple(paths))

    def load(self, context: DatasetContext) -> Samples:
        return self._parts().samples(self, bytes_in_memory(self.memory), self._fingerprint())

    def suggested_backbone(self) -> str:
        """Return `unet` for images, series, sound and films, which the headers of a file show, and else `mlp`."""
        with contextlib.suppress(ValueError, OSError):  # `load` reports them
            return backbone_of(self._parts(headers_only=True).form_of_items(self), self.default_backbone)
        return self.default_backbone

    def read_condition(self, field: str, text: str, spec: ConditionSpec) -> Tensor | None:
        """Return images of any size shrunk as those of training are. Other conditions are taken as they are."""
        return read_small_image(self.condition, field, text, spec)

    def _parts(self, *, headers_only: bool = False) -> Parts:
        """Open the file, and choose its arrays or columns. Raises `ValueError`."""
        from difftool_plugins.datasets.arrays import files, tables
        from difftool_plugins.datasets.arrays.parts import of_archive, of_table

        path, place = self.path.expanduser(), printable(str(self.path))
        if not path.is_file():
            raise ValueError(f"{place} {'is not a file' if path.exists() else 'does not exist'}")
        if path.suffix.lower() in tables.SUFFIXES:
            return of_table(self, tables.open_table(path), bytes_in_memory(self.memory), headers_only=headers_only)
        if path.suffix.lower() in files.SUFFIXES:
            return of_archive(self, path)
        known = ", ".join((*files.SUFFIXES, *tables.SUFFIXES))
        raise ValueError(f"path: {place} has none of the suffixes {known}")

    def _fingerprint(self) -> str:
        """Return the SHA-256 of the file, or of pieces of a large one, and of the files beside it."""
        beside = [self.labels, self.condition, self.tokens, *(self.vectors or ())]
        sha = hashlib.sha256()
        for path in [self.path.expanduser(), *(Path(text) for text in beside if text is not None and is_file(text))]:
            size = os.path.getsize(path)
            sha.update(b"%d\0" % size)
            with open(path, "rb") as file:
                if size <= WHOLE:
                    while block := file.read(2**20):
                        sha.update(block)
                else:
                    for i in range(PIECES):
                        file.seek(i * (size - PIECE) // (PIECES - 1))
                        sha.update(file.read(PIECE))
        return sha.hexdigest()
