"""A folder of image files: which files it holds, and what their classes are. Reading them is the work of `images`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from difftool import Dataset, option, printable
from difftool_plugins.datasets.sizes import height_width

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import BadImage, DatasetContext, Samples
    from difftool_plugins.datasets.images import ImageFiles

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
    memory: float = option(
        default=2.0, ge=0, help="GiB of decoded images to hold; larger sets are decoded as they are needed"
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
        files = ImageFiles(root, list_images(root), channels, (height, width))
        items: Tensor | ImageFiles
        if len(files) * math.prod(shape) <= self.memory * 2**30:
            items, bad = read_all(files, self.skip_bad)
        else:
            items, bad = files, self._check(files, context.cache)
        names = files.names
        if bad:
            keep = [i for i in range(len(files)) if i not in bad]
            _report(root, list(bad.values()), len(files))
            names = [names[i] for i in keep]
            items = files.with_names(names) if isinstance(items, ImageFiles) else items[keep]
        classes = class_folders(names) if self.labels == "auto" else ()
        number = {name: k for k, name in enumerate(classes)}
        return Samples(
            items=items,
            shape=shape,
            labels=torch.tensor([number[name.partition("/")[0]] for name in names]) if classes else None,
            class_names=classes,
            item_ids=names,
            augment=random_flip if self.flip else None,
            **PIXELS,
        )

    def item_shape(self) -> tuple[int, int, int]:
        return (self.channels, *height_width(self.size))

    def _check(self, files: ImageFiles, cache: Path | None) -> dict[int, BadImage]:
        """The bad among files that will not be held in memory: those whose header is none, or, when such files are to
        be left out, those that cannot be decoded. Files found good are remembered until they change."""
        from difftool_plugins.datasets.images import check_all

        key = hashlib.sha256(os.fsencode(f"{files.root}\0{self.skip_bad}")).hexdigest()[:16]
        index = cache / f"image-folder-{key}.json" if cache else None
        known = _read_index(index) if index else {}
        stamps = {name: _stamp(os.path.join(files.root, name)) for name in files.names}
        unknown = [i for i, name in enumerate(files.names) if known.get(name) != stamps[name]]
        bad = check_all(files, unknown, self.skip_bad)
        if index and unknown:
            _write_index(index, {name: stamps[name] for i, name in enumerate(files.names) if i not in bad})
        return bad


def list_images(root: str) -> list[str]:
    """Paths of the image files under a folder, relative to it, with '/' between the parts, in the order of their bytes.

    Links are followed, but no folder is entered twice, so loops end. Pipes and devices are passed over.
    """
    if not os.path.exists(root):
        raise ValueError(f"{printable(root)} does not exist")
    if not os.path.isdir(root):
        raise ValueError(f"{printable(root)} is not a folder")
    found: list[str] = []
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(os.path.join(root, prefix)) as entries:
            status = os.stat(os.path.join(root, prefix))
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            folders = []
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(f"{prefix}{entry.name}/")
                elif entry.name.lower().endswith(EXTENSIONS) and _is_file(entry):
                    found.append(prefix + entry.name)
        waiting += sorted(folders, key=os.fsencode, reverse=True)
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


def _stamp(path: str) -> list[int]:
    """Size in bytes and time of the last change in ns; of a file that cannot be looked at, one that is never known."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _read_index(file: Path) -> dict[str, list[int]]:
    """The stamps in an index file; a missing or damaged one is empty, since it only saves time."""
    try:
        index = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in index.items() if v} if isinstance(index, dict) else {}


def _write_index(file: Path, stamps: dict[str, list[int]]) -> None:
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):  # a full or read-only disk must not stop a run that can go on
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(stamps))  # ASCII: undecodable names become lone surrogates, escaped
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
