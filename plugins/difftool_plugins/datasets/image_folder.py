"""A folder of image files: find them, and derive classes from sub-folders. `images` reads them."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from difftool import Dataset, DifftoolError, option, printable, read_json, write_json
from difftool_plugins.datasets.sizes import height_width

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import BadImage, DatasetContext, Samples
    from difftool_plugins.datasets.images import ImageFiles

GIB_IN_MEMORY, FILES_IN_MEMORY = 2.0, 20_000
"""Defaults for what is held in memory. This many files are decoded in seconds. More of them would delay the start of a
run, and workers can decode them as fast as a network trains."""
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MAX_LISTED = 10
"""Bad files or folders that a warning names."""
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "holdout"}
"""Names of folders that divide data for training and evaluation; they say nothing about what an image shows."""

Stamp = list[int]
"""Size in bytes and time of the last change in nanoseconds; empty for a file without a status."""


class ImageFolder(Dataset, name="image-folder"):
    """Your own images: every PNG, JPEG, BMP, GIF, TIFF and WebP file in a folder and its sub-folders.

    Each image is turned as its EXIF data say, put on a white background if it is transparent, scaled to cover the size,
    and cropped around its centre. If there are at least two sub-folders and all images lie in them, the sub-folders are
    classes, unless they are called `train`, `test` and the like.
    """

    default_backbone = "unet"

    path: Path = option(help="folder of images; hidden files and folders are skipped")
    size: tuple[int, ...] = option(
        default=(32,), ge=1, le=4096, help="HEIGHT,WIDTH in pixels, or one number for squares"
    )
    channels: int = option(default=3, ge=1, le=3, help="3 for colour, 1 for gray")
    labels: Literal["auto", "folders", "none"] = option(
        default="auto",
        help="auto: sub-folders are classes if all images lie in them and they are not named train, test, ...; "
        "folders: sub-folders are classes, whatever they are named, and images beside them are left out; "
        "none: there are no classes",
    )
    flip: bool = option(default=False, help="mirror a random half of the images of each batch, left to right")
    skip_bad: bool = option(default=False, help="leave out files that cannot be read, and list them")
    memory: float | None = option(
        default=None,
        ge=0,
        help="GiB of decoded images to hold in memory; larger sets are decoded while training",
        otherwise=f"{GIB_IN_MEMORY:g}, and at most {FILES_IN_MEMORY:,} images",
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
        files = ImageFiles(root, self._chosen(list_images(root)), channels, (height, width), self.skip_bad)
        items: Tensor | ImageFiles
        gib = len(files) * math.prod(shape) / 2**30
        most = GIB_IN_MEMORY if self.memory is None else self.memory
        if gib <= most and (self.memory is not None or len(files) <= FILES_IN_MEMORY):
            items, bad = read_all(files)
            good = [i for i in range(len(files)) if i not in bad]
            if bad:
                items = items[good]
            names, fingerprint = [files.names[i] for i in good], ""
        else:
            stamps = [_stamp(files.path(i)) for i in range(len(files))]
            bad = self._check(files, stamps, context.cache)
            good = [i for i in range(len(files)) if i not in bad]
            names = [files.names[i] for i in good]
            items, fingerprint = replace(files, names=names), _fingerprint(names, [stamps[i] for i in good])
        if bad:
            _report(root, list(bad.values()), len(files))
        classes = self._classes(root, names)
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

    def _chosen(self, names: list[str]) -> list[str]:
        """Return the images to read: all of them, or with `labels` folders those in sub-folders."""
        inside = [name for name in names if "/" in name]
        if self.labels != "folders" or len(inside) == len(names):
            return names
        beside = len(names) - len(inside)
        warnings.warn(f"left out {beside} of {len(names)} images, which lie beside the sub-folders", stacklevel=4)
        return inside

    def _classes(self, root: str, names: Sequence[str]) -> tuple[str, ...]:
        """Return the sub-folders that are classes, and warn where some or all of them are not.

        Raises `ValueError` if `labels` is folders and there are fewer than two.
        """
        if self.labels == "none":
            return ()
        folders = class_folders(names)
        if self.labels == "auto" and (reason := _no_classes(root, names, folders)):
            warnings.warn(f"no classes: {reason}; --dataset.labels none confirms it", stacklevel=4)
            return ()
        if len(folders) < 2 and self.labels == "folders":
            raise ValueError(
                f"labels: folders needs images in two sub-folders or more, not {_listed(folders) or 'none'}"
            )
        if empty := sorted(set(sub_folders(root)) - set(folders), key=os.fsencode):
            what = "" if len(folders) > 1 else "no classes, for there are images in one sub-folder alone: "
            warnings.warn(f"{what}a sub-folder without readable images is not a class ({_listed(empty)})", stacklevel=4)
        return folders if len(folders) > 1 else ()

    def _check(self, files: ImageFiles, stamps: Sequence[Stamp], cache: Path | None) -> dict[int, BadImage]:
        """Return the errors of bad files by number, without holding the images in memory.

        Good files are remembered in the cache folder until they change.
        """
        from difftool_plugins.datasets.images import check_all

        key = hashlib.sha256(os.fsencode(f"{files.root}\0{self.skip_bad}")).hexdigest()[:16]
        index = cache / f"image-folder-{key}.json" if cache else None
        checked = _read_index(index) if index else {}
        unchecked = [i for i, name in enumerate(files.names) if not stamps[i] or checked.get(name) != stamps[i]]
        bad = check_all(files, unchecked)
        if index and unchecked:
            good = {name: stamps[i] for i, name in enumerate(files.names) if i not in bad}
            with contextlib.suppress(DifftoolError):  # a run can go on without it, as on a full or read-only disk
                write_json(index, good)
        return bad


def list_images(root: str) -> list[str]:
    """Return the paths of the image files below a folder, relative to it and separated by '/', in the order of bytes.

    Links are followed. No folder is entered twice, so a loop of links ends, and links to folders come last, so a folder
    keeps its own name. Pipes and devices are skipped. Raises `ValueError` if there are no images.
    """
    if not os.path.exists(root):
        raise ValueError(f"{printable(root)} does not exist")
    if not os.path.isdir(root):
        raise ValueError(f"{printable(root)} is not a folder")
    images: list[str] = []
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
                images.append(prefix + entry.name)
    if not images:
        raise ValueError(f"no images in {printable(root)} or its sub-folders (looked for {' '.join(EXTENSIONS)})")
    return sorted(images, key=os.fsencode)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # is_dir() fails on a link to itself


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Accept a regular file, a link to one, and a dangling link, which is better reported than skipped."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def class_folders(names: Sequence[str]) -> tuple[str, ...]:
    """Return the top-level folders of files in the order of bytes."""
    return tuple(sorted({name.partition("/")[0] for name in names if "/" in name}, key=os.fsencode))


def _no_classes(root: str, names: Sequence[str], folders: Sequence[str]) -> str:
    """Return why folders that look like classes are none, and the option that takes them, or an empty text."""
    beside = [name for name in names if "/" not in name]
    if len(folders) == 1 and not beside:
        below = class_folders([name.partition("/")[2] for name in names])
        if len(below) > 1:
            inner = printable(os.path.join(root, folders[0]))
            return (
                f"all images lie in {inner}; --dataset.path {inner} takes its sub-folders ({_listed(below)}) as classes"
            )
    if len(folders) < 2:
        return ""
    if beside:
        return (
            f"images lie beside the sub-folders ({len(beside)} of {len(names)}: {_listed(beside)}); "
            f"--dataset.labels folders leaves them out and takes {_listed(folders)} as classes"
        )
    if all(name.casefold() in SPLITS for name in folders):
        path = printable(os.path.join(root, folders[-1]))
        return (
            f"{_listed(folders)} divide data for training and evaluation, and images of all are taken; "
            f"--dataset.path {path} takes one, --dataset.labels folders makes classes of them"
        )
    return ""


def sub_folders(root: str) -> list[str]:
    """Return the names of the folders in a folder, without hidden ones."""
    with contextlib.suppress(OSError), os.scandir(root) as scan:
        return [entry.name for entry in scan if not entry.name.startswith(".") and _is_folder(entry)]
    return []


def _listed(names: Sequence[str]) -> str:
    """Return the first names, separated by commas."""
    return ", ".join([*map(printable, names[:MAX_LISTED]), *(["..."] if len(names) > MAX_LISTED else [])])


def _report(root: str, bad: Sequence[BadImage], total: int) -> None:
    """Warn of files that were left out. Raises `ValueError` if no file is left."""
    if len(bad) == total:
        raise ValueError(f"none of the {total} images in {printable(root)} can be read; the first error: {bad[0]}")
    more = f"; and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
    listed = "; ".join(str(error) for error in bad[:MAX_LISTED])
    warnings.warn(f"left out {len(bad)} of {total} image files: {listed}{more}", stacklevel=3)


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _fingerprint(names: Sequence[str], stamps: Sequence[Stamp]) -> str:
    """Return the SHA-256 of names and sizes, but not of times: a copy of the folder holds the same data."""
    sha = hashlib.sha256()
    for name, stamp in zip(names, stamps, strict=True):
        sha.update(os.fsencode(name) + b"\0%d\0" % sum(stamp[:1]))
    return sha.hexdigest()


def _read_index(file: Path) -> dict[str, Stamp]:
    """Return the stamps in an index file, or none if it is missing or damaged, since it only saves time."""
    try:
        index = read_json(file)
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
