"""A folder of images: `folders` finds the files, `images` reads them, and `conditions` reads what belongs to them."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from difftool import Dataset, DifftoolError, option, printable, read_json, write_json
from difftool_plugins.datasets.folders import (
    EXTENSIONS,
    MAX_LISTED,
    class_folders,
    list_images,
    listed,
    no_classes,
    sub_folders,
)
from difftool_plugins.datasets.sizes import height_width

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from difftool import BadImage, ConditionSpec, DatasetContext, Samples
    from difftool_plugins.datasets.conditions import ArrayRows
    from difftool_plugins.datasets.images import ImageFiles

GIB_IN_MEMORY, FILES_IN_MEMORY = 2.0, 20_000
"""Defaults for what is held in memory. This many files are decoded in seconds. More of them would delay the start of a
run, and workers can decode them as fast as a network trains."""
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
    condition: str | None = option(
        default=None,
        help="also show the network an image that belongs to each: gray (its own without colours), shrink:N (its own, "
        "with squares of N pixels averaged), mask (its own, partly hidden), or FOLDER of images with the same names",
    )
    tokens: Path | None = option(
        default=None,
        help="also show the network tokens: the rows of this .npy file (N, L, D), one for each image of the folder in "
        "the order of sorted names",
    )
    skip_bad: bool = option(default=False, help="leave out files that cannot be read, and list them")
    memory: float | None = option(
        default=None,
        ge=0,
        help="GiB of decoded images to hold in memory; larger sets are decoded while training",
        otherwise=f"{GIB_IN_MEMORY:g}, and at most {FILES_IN_MEMORY:,} images",
    )

    def __post_init__(self) -> None:
        size = height_width(self.size)
        if self.channels not in (1, 3):
            raise ValueError(f"channels: must be 1 or 3, not {self.channels}")
        if self.condition is not None and not is_function(self.condition, self.channels, size):
            folder = Path(self.condition).expanduser().absolute()  # a run may go on elsewhere
            object.__setattr__(self, "condition", str(folder))

    def load(self, context: DatasetContext) -> Samples:
        import torch

        from difftool import PIXELS, Samples
        from difftool_plugins.datasets.images import ImageFiles, random_flip, random_flip_pairs

        channels, height, width = shape = self.item_shape()
        root = os.path.abspath(self.path.expanduser())
        every_name = list_images(root)
        files = ImageFiles(root, self._chosen(every_name), channels, (height, width), self.skip_bad)
        read = self._read([files, *self._partners(files)], context.cache)
        names = [files.names[i] for i in read.good]
        classes = self._classes(root, names)
        number = {name: k for k, name in enumerate(classes)}
        images, function = (*read.columns[1:], None)[0], self._function()
        tokens, size = self._tokens(names, every_name, read.room)
        return Samples(
            items=read.columns[0],
            shape=shape,
            labels=torch.tensor([number[name.partition("/")[0]] for name in names]) if classes else None,
            class_names=tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in classes),
            images=images if function is None else function,
            tokens=tokens,
            item_ids=names,
            augment=(random_flip if images is None else random_flip_pairs) if self.flip else None,
            fingerprint=" ".join(filter(None, (read.fingerprint, self.condition if function else "", size))),
            **PIXELS,
        )

    def read_condition(self, field: str, text: str, spec: ConditionSpec) -> Tensor | None:
        """Return images of any size shrunk as those of training are. Other conditions are taken as they are."""
        word, _, factor = (self.condition or "").partition(":")
        path = Path(text).expanduser()
        is_image = path.is_dir() or path.suffix.lower() in EXTENSIONS
        if field != "image" or word != "shrink" or spec.image is None or not is_image:
            return None
        from difftool_plugins.datasets.conditions import read_shrunk

        return read_shrunk(path, spec.image, int(factor))

    def _read(self, sources: Sequence[ImageFiles], cache: Path | None) -> _Read:
        """Read images and their partners into memory if they are few, or else check them.

        Raises `BadImage`, and `ValueError` if none can be read.
        """
        from difftool_plugins.datasets.images import read_all

        files = sources[0]
        gib = sum(len(source) * source.channels * math.prod(source.size) for source in sources) / 2**30
        most = GIB_IN_MEMORY if self.memory is None else self.memory
        columns: list[Tensor] | list[ImageFiles]
        bad: dict[int, BadImage] = {}
        if gib <= most and (self.memory is not None or len(files) <= FILES_IN_MEMORY):
            tensors = []
            for source in sources:
                tensor, errors = read_all(source)
                tensors.append(tensor)
                bad |= errors
            good = [i for i in range(len(files)) if i not in bad]
            columns, room, fingerprint = [t[good] for t in tensors] if bad else tensors, (most - gib) * 2**30, ""
        else:
            stamps = [[_stamp(source.path(i)) for i in range(len(source))] for source in sources]
            for source, own in zip(sources, stamps, strict=True):
                both = own if source is files else [a + b for a, b in zip(own, stamps[0], strict=True)]
                bad |= self._check(source, both, cache)
            good = [i for i in range(len(files)) if i not in bad]
            columns, room = [source.choose(good) for source in sources], 0.0
            fingerprint = " ".join(
                _fingerprint([source.names[i] for i in good], [own[i] for i in good])
                for source, own in zip(sources, stamps, strict=True)
            )
        if bad:
            _report(files.root, list(bad.values()), len(files))
        return _Read(columns, good, fingerprint, room)

    def _function(self) -> Callable[[Tensor, torch.Generator], Tensor] | None:
        """Return the function that computes condition images, or None if there is none."""
        from difftool_plugins.datasets.conditions import function_of

        if self.condition is None or not is_function(self.condition, self.channels, height_width(self.size)):
            return None
        return function_of(self.condition)

    def _tokens(self, names: list[str], every_name: list[str], room: float) -> tuple[Tensor | ArrayRows | None, str]:
        """Return the tokens of the images with these names, and a text that changes with them."""
        from difftool_plugins.datasets.conditions import tokens_of

        if self.tokens is None:
            return None, ""
        path, row = self.tokens.expanduser(), {name: i for i, name in enumerate(every_name)}
        tokens = tokens_of(path, [row[name] for name in names], len(every_name), room)
        return tokens, f"tokens {os.path.getsize(path)}"

    def item_shape(self) -> tuple[int, int, int]:
        return (self.channels, *height_width(self.size))

    def _partners(self, files: ImageFiles) -> list[ImageFiles]:
        """Return the images of another folder that belong to these, if they are the condition. Raises `ValueError`."""
        from difftool_plugins.datasets.conditions import PartnerFiles

        folder = self.condition
        if folder is None or is_function(folder, self.channels, files.size):
            return []
        if os.path.realpath(folder).startswith(os.path.join(os.path.realpath(files.root), "")):
            raise ValueError(f"condition: {printable(folder)} lies in the folder of images itself; move it out")
        try:
            names = list_images(folder)
        except ValueError as error:
            raise ValueError(f"condition: {error}; choose gray, mask, shrink:N, or a folder of images") from None
        return [PartnerFiles.of(folder, files, names)]

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
        if self.labels == "auto" and (reason := no_classes(root, names, folders)):
            warnings.warn(f"no classes: {reason}; --dataset.labels none confirms it", stacklevel=4)
            return ()
        if len(folders) < 2 and self.labels == "folders":
            raise ValueError(
                f"labels: folders needs images in two sub-folders or more, not {listed(folders) or 'none'}"
            )
        if empty := sorted(set(sub_folders(root)) - set(folders), key=os.fsencode):
            what = "" if len(folders) > 1 else "no classes, for there are images in one sub-folder alone: "
            warnings.warn(f"{what}a sub-folder without readable images is not a class ({listed(empty)})", stacklevel=4)
        return folders if len(folders) > 1 else ()

    def _check(self, files: ImageFiles, stamps: Sequence[Stamp], cache: Path | None) -> dict[int, BadImage]:
        """Return the errors of bad files by number, without holding the images in memory.

        Good files are remembered in the cache folder until they change.
        """
        from difftool_plugins.datasets.images import check_all

        beside = "" if files.root == os.path.abspath(self.path.expanduser()) else f"\0{self.path}\0{files.channels}"
        key = hashlib.sha256(os.fsencode(f"{files.root}\0{self.skip_bad}{beside}")).hexdigest()[:16]
        index = cache / f"image-folder-{key}.json" if cache else None
        checked = _read_index(index) if index else {}
        unchecked = [i for i, name in enumerate(files.names) if not stamps[i] or checked.get(name) != stamps[i]]
        bad = check_all(files, unchecked)
        if index and unchecked:
            good = {name: stamps[i] for i, name in enumerate(files.names) if i not in bad}
            with contextlib.suppress(DifftoolError):  # a run can go on without it, as on a full or read-only disk
                write_json(index, good)
        return bad


class _Read(NamedTuple):
    """The images that were read, and their partners."""

    columns: Sequence[Tensor | ImageFiles]
    good: list[int]
    """The numbers of the images that can be read."""
    fingerprint: str
    room: float
    """The bytes of memory that are left, or 0 if the images are read during training."""


def is_function(condition: str, channels: int, size: tuple[int, int]) -> bool:
    """Return whether a condition is computed from images of this size, and not read from a folder.

    Raises `ValueError` for one that does not fit the images.
    """
    if condition == "gray" and channels != 3:
        raise ValueError("condition: gray images are a condition of colour images, of 3 channels")
    if re.fullmatch(r"shrink(:.*)?", condition):
        number = condition.partition(":")[2]
        if not re.fullmatch(r"[0-9]{1,4}", number) or int(number) < 2:
            raise ValueError(f"condition: must be shrink:N with a whole number from 2 on, as shrink:4, not {condition}")
        if size[0] % int(number) or size[1] % int(number):
            raise ValueError(f"condition: squares of {number} pixels do not divide images of {size[0]}x{size[1]}")
        return True
    return condition in ("gray", "mask")


def _report(root: str, bad: Sequence[BadImage], total: int) -> None:
    """Warn of files that were left out. Raises `ValueError` if no file is left."""
    if len(bad) == total:
        raise ValueError(f"none of the {total} images in {printable(root)} can be read; the first error: {bad[0]}")
    more = f"; and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
    first = "; ".join(str(error) for error in bad[:MAX_LISTED])
    warnings.warn(f"left out {len(bad)} of {total} image files: {first}{more}", stacklevel=4)


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
