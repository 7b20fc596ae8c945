"""A folder of image files: which files it holds, and what their classes are. Reading them is the work of `images`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from difftool import Dataset, option, printable
from difftool_plugins.datasets.sizes import height_width

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import BadImage, DatasetContext, Samples
    from difftool_plugins.datasets.images import ImageFiles

HELD_GIB, HELD_FILES = 2.0, 20_000
"""What is held in memory where the user does not say: so many files are decoded in seconds, more would delay the start
of a run, and workers keep up with a network when they decode them as they are needed."""
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MOST_LISTED = 10


class ImageFolder(Dataset, name="image-folder"):
    """Your own images: every PNG, JPEG, BMP, GIF, TIFF and WebP file in a folder and its sub-folders.

    Each image is turned as its EXIF data say, laid over white where it is transparent, scaled until it covers the
    size, and cropped around its centre. If all images lie in sub-folders, of which there are at least two, the
    sub-folders are classes.
    """

    default_backbone = "unet"

    path: Path = option(help="the folder; names that begin with a dot are passed over")
    size: tuple[int, ...] = option(
        default=(32,), ge=1, le=4096, help="HEIGHT,WIDTH in pixels, or one number for squares"
    )
    channels: int = option(default=3, help="3 for colour, 1 for gray")
    labels: Literal["auto", "none"] = option(
        default="auto", help="auto: sub-folders are classes; none: there are no classes"
    )
    flip: bool = option(default=False, help="mirror a random half of the images of each batch, left to right")
    skip_bad: bool = option(default=False, help="leave out files that cannot be read, and list them")
    memory: float | None = option(
        default=None,
        ge=0,
        help="GiB of decoded images to hold; larger sets are decoded as they are needed",
        otherwise=f"{HELD_GIB:g}, of at most {HELD_FILES:,} images",
    )

    def __post_init__(self) -> None:
        height_width(self.size)
        if self.channels not in (1, 3):
            raise ValueError(f"channels: must be 1 or 3, not {self.channels}")

    def load(self, context: DatasetContext) -> Samples:
        import torch

        from difftool import PIXELS, Samples
        from difftool_plugins.datasets.images import ImageFiles, random_flip, read_all

        channels, height, width = shape = self.item_shape()
        root = os.path.abspath(self.path.expanduser())
        files = ImageFiles(root, list_images(root), channels, (height, width), self.skip_bad)
        names, fingerprint = files.names, ""
        items: Tensor | ImageFiles
        if self._held(len(files), len(files) * math.prod(shape)):
            items, bad = read_all(files)
            if bad:
                items = items[[i for i in range(len(files)) if i not in bad]]
        else:
            stamps = [_stamp(files.path(i)) for i in range(len(files))]
            bad = self._check(files, stamps, context.cache)
            good = [i for i in range(len(files)) if i not in bad]
            items = files.with_names([names[i] for i in good])
            fingerprint = _fingerprint(items.names, [stamps[i] for i in good])
        if bad:
            _report(root, list(bad.values()), len(files))
            names = [name for i, name in enumerate(names) if i not in bad]
        classes = class_folders(names) if self.labels == "auto" else ()
        number = {name: k for k, name in enumerate(classes)}
        return Samples(
            items=items,
            shape=shape,
            labels=torch.tensor([number[name.partition("/")[0]] for name in names]) if classes else None,
            class_names=tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in classes),
            item_ids=names,
            augment=random_flip if self.flip else None,
            fingerprint=fingerprint,
            **PIXELS,
        )

    def item_shape(self) -> tuple[int, int, int]:
        return (self.channels, *height_width(self.size))

    def _held(self, count: int, size: int) -> bool:
        """Whether so many images, of `size` bytes together, are read into memory before training."""
        if self.memory is None:
            return count <= HELD_FILES and size <= HELD_GIB * 2**30
        return size <= self.memory * 2**30

    def _check(self, files: ImageFiles, stamps: Sequence[Stamp], cache: Path | None) -> dict[int, BadImage]:
        """The bad among files that will not be held in memory: those whose header is none, or, when such files are to
        be left out, those that cannot be decoded. Files found good are remembered until they change."""
        from difftool_plugins.datasets.images import check_all

        key = hashlib.sha256(os.fsencode(f"{files.root}\0{self.skip_bad}")).hexdigest()[:16]
        index = cache / f"image-folder-{key}.json" if cache else None
        known = _read_index(index) if index else {}
        unknown = [i for i, name in enumerate(files.names) if not stamps[i] or known.get(name) != stamps[i]]
        bad = check_all(files, unknown)
        if index and unknown:
            _write_index(index, {name: stamps[i] for i, name in enumerate(files.names) if i not in bad})
        return bad


def list_images(root: str) -> list[str]:
    """Paths of the image files under a folder, relative to it, with '/' between the parts, in the order of their bytes.

    Links are followed, but no folder is entered twice, so loops end; links to folders come last, so that a folder keeps
    its own name. Pipes and devices are passed over. Raises `ValueError`.
    """
    if not os.path.exists(root):
        raise ValueError(f"{printable(root)} does not exist")
    if not os.path.isdir(root):
        raise ValueError(f"{printable(root)} is not a folder")
    found: list[str] = []
    entered: set[tuple[int, int]] = set()
    folders, links = deque([""]), deque[str]()
    while folders or links:
        prefix = (folders or links).popleft()
        path = os.path.join(root, prefix)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise ValueError(f"{printable(path)}: {error.strerror}") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS) and _is_file(entry):
                found.append(prefix + entry.name)
    if not found:
        raise ValueError(f"no images in {printable(root)} or its sub-folders (looked for {' '.join(EXTENSIONS)})")
    return sorted(found, key=os.fsencode)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # is_dir() fails on a link to itself


def _is_file(entry: os.DirEntry[str]) -> bool:
    """A plain file, or a link to one; also a link to nothing, which is better named than passed over."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def class_folders(names: Sequence[str]) -> tuple[str, ...]:
    """The first-level folders, sorted, if every file lies in one and there are at least two; otherwise none."""
    folders = {name.partition("/")[0] for name in names if "/" in name}
    if len(folders) < 2 or not all("/" in name for name in names):
        return ()
    return tuple(sorted(folders, key=os.fsencode))


def _report(root: str, bad: Sequence[BadImage], total: int) -> None:
    if len(bad) == total:
        raise ValueError(f"none of the {total} images in {printable(root)} can be read; the first: {bad[0]}")
    more = f"; and {len(bad) - MOST_LISTED} more" if len(bad) > MOST_LISTED else ""
    listed = "; ".join(str(error) for error in bad[:MOST_LISTED])
    warnings.warn(f"left out {len(bad)} of {total} image files: {listed}{more}", stacklevel=3)


Stamp = list[int]
"""Size in bytes and time of the last change in ns; empty of a file that cannot be looked at."""


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _fingerprint(names: Sequence[str], stamps: Sequence[Stamp]) -> str:
    """SHA-256 over names and sizes. Times are left out: a copied folder holds the same data."""
    sha = hashlib.sha256()
    for name, stamp in zip(names, stamps, strict=True):
        sha.update(os.fsencode(name) + b"\0%d\0" % sum(stamp[:1]))
    return sha.hexdigest()


def _read_index(file: Path) -> dict[str, Stamp]:
    """The stamps in an index file; a missing or damaged one is empty, since it only saves time."""
    try:
        index = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def _write_index(file: Path, stamps: dict[str, Stamp]) -> None:
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):  # a full or read-only disk must not stop a run that can go on
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(stamps))  # ASCII: undecodable names become lone surrogates, escaped
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
