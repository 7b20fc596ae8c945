"""A folder of images: `folders` finds the files, `images` and `reading` read them, and `conditions` and `captions` read
what belongs to them.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from difftool import Dataset, option, printable
from difftool_plugins.datasets.images.augment import Augmentation, Change, augment_option, check_changes
from difftool_plugins.datasets.images.folders import (
    EXTENSIONS,
    class_folders,
    list_images,
    listed,
    no_classes,
    sub_folders,
)
from difftool_plugins.datasets.options import height_width, words_option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from difftool import ConditionSpec, DatasetContext, Samples
    from difftool_plugins.datasets.columns.captions import CaptionRows
    from difftool_plugins.datasets.columns.conditions import ArrayRows
    from difftool_plugins.datasets.images.files import ImageFiles

GIB_IN_MEMORY, FILES_IN_MEMORY = 2.0, 20_000
"""Defaults for what is held in memory. This many files are decoded in seconds. More of them would delay the start of a
run, and workers can decode them as fast as a network trains."""
FolderAndName = tuple[int, str]
"""The number of a folder, and the name of an image in it."""


class ImageFolder(Dataset, name="image-folder"):
    """Your own images: every PNG, JPEG, BMP, GIF, TIFF and WebP file in a folder and its sub-folders.

    Each image is turned as its EXIF data say, put on a white background if it is transparent, scaled to cover the size,
    and cropped around its centre; options keep its transparency, its 16 bits, or all of it. If there are at least two
    sub-folders and all images lie in them, the sub-folders are classes, unless they are called `train`, `test` and the
    like.
    """

    default_backbone = "unet"

    path: Path = option(help="folder of images; hidden files and folders are skipped")
    more: tuple[Path, ...] = option(default=(), help="more folders, whose images are learnt with the others")
    weights: tuple[int, ...] = option(
        default=(),
        ge=1,
        le=10_000,
        help="how often an epoch shows each image of a folder, a number for each folder: 1,3",
    )
    size: tuple[int, ...] = option(
        default=(32,), ge=1, le=4096, help="HEIGHT,WIDTH in pixels, or one number for squares"
    )
    channels: int = option(
        default=3, ge=1, le=4, help="3 for colour, 1 for gray; 4 and 2 also keep the transparency, as the last channel"
    )
    bits: int = option(default=8, ge=8, le=16, help="8, or 16 to keep the precision of 16-bit files (as floats)")
    crop: Literal["center", "random", "pad"] = option(
        default="center",
        help="center: the middle part of each image, scaled to cover the size; random: another part each time; "
        "pad: the whole image, with a white (or transparent) border",
    )
    augment: tuple[Change, ...] = augment_option()
    labels: Literal["auto", "folders", "none"] = option(
        default="auto",
        help="auto: sub-folders are classes if all images lie in them and they are not named train, test, ...; "
        "folders: sub-folders are classes, whatever they are named, and images beside them are left out; "
        "none: there are no classes",
    )
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
    captions: str | None = option(
        default=None,
        help="also show the network the words of a caption, as tokens: with txt that in x.txt beside each image x.png",
    )
    words: int = words_option()
    skip_bad: bool = option(default=False, help="leave out files that cannot be read, and list them")
    memory: float | None = option(
        default=None,
        ge=0,
        help="GiB of decoded images to hold in memory; larger sets, and random crops, are decoded while training",
        otherwise=f"{GIB_IN_MEMORY:g}, and at most {FILES_IN_MEMORY:,} images",
    )

    def __post_init__(self) -> None:
        size = height_width(self.size)
        check_changes(self.augment)
        if self.bits not in (8, 16):
            raise ValueError(f"bits: must be 8 or 16, not {self.bits}")
        if self.weights and len(self.weights) != 1 + len(self.more):
            raise ValueError(
                f"weights: must be a number for each folder, so {1 + len(self.more)}, not {len(self.weights)}; "
                "--dataset.more names further folders"
            )
        if self.captions is not None and self.tokens is not None:
            raise ValueError("captions: give either captions or tokens, for both are tokens to the network")
        if self.condition is not None and not is_function(self.condition, self.channels, size):
            folder = Path(self.condition).expanduser().absolute()  # a run may go on elsewhere
            object.__setattr__(self, "condition", str(folder))

    def load(self, context: DatasetContext) -> Samples:
        import torch

        from difftool import PIXELS, Samples
        from difftool_plugins.datasets.images.files import CENTRE, ImageFiles
        from difftool_plugins.datasets.images.reading import read

        channels, height, width = shape = self.item_shape()
        roots = self._roots()
        every = [(k, name) for k, root in enumerate(roots) for name in list_images(root)]
        chosen = self._chosen(every)
        files = ImageFiles(
            root=roots[0],
            names=[name for _, name in chosen],
            channels=channels,
            size=(height, width),
            skip_bad=self.skip_bad,
            bits=self.bits,
            crop=None if self.crop == "pad" else CENTRE,
            others=tuple(roots[1:]),
            folders=[k for k, _ in chosen] if self.more else None,
        )
        most = GIB_IN_MEMORY if self.memory is None else self.memory
        few = self.memory is not None or len(files) <= FILES_IN_MEMORY
        random = self.crop == "random"
        found = read([files, *self._partners(files)], most * 2**30 if few else -1, context.cache, random=random)
        good = [chosen[i] for i in found.good]
        names = [name for _, name in good]
        classes = self._classes(roots, names)
        number = {name: k for k, name in enumerate(classes)}
        images, function = (*found.columns[1:], None)[0], self._function()
        tokens, content = self._tokens(good, every, [files.path(i) for i in found.good], found.room)
        crop = "" if self.crop == "center" else self.crop
        return Samples(
            items=found.columns[0],
            shape=shape,
            labels=torch.tensor([number[name.partition("/")[0]] for name in names]) if classes else None,
            class_names=tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in classes),
            images=images if function is None else function,
            tokens=tokens,
            repeats=torch.tensor([self.weights[k] for k, _ in good]) if self.weights else None,
            item_ids=[files.identity(i) for i in found.good],
            augment=Augmentation.of(self.augment),
            fingerprint=" ".join(filter(None, (found.fingerprint, self.condition if function else "", content, crop))),
            **PIXELS,
        )

    def read_condition(self, field: str, text: str, spec: ConditionSpec) -> Tensor | None:
        """Return the tokens of a caption, and images of any size shrunk as those of training are.

        Other conditions are taken as they are.
        """
        if field == "tokens" and self.captions is not None and not text.endswith(".npy"):
            from difftool_plugins.datasets.columns.captions import tokens_of as words

            return words(text, self.words)
        word, _, factor = (self.condition or "").partition(":")
        path = Path(text).expanduser()
        is_image = path.is_dir() or path.suffix.lower() in EXTENSIONS
        if field != "image" or word != "shrink" or spec.image is None or not is_image:
            return None
        from difftool_plugins.datasets.columns.conditions import read_shrunk
        from difftool_plugins.datasets.images.files import CENTRE

        return read_shrunk(path, spec.image, int(factor), None if self.crop == "pad" else CENTRE)

    def _roots(self) -> list[str]:
        """Return the folders of images. Raises `ValueError` if one lies in another, so that images would come twice."""
        roots = [os.path.abspath(path.expanduser()) for path in (self.path, *self.more)]
        real = [os.path.join(os.path.realpath(root), "") for root in roots]
        for k, inner in enumerate(real):
            for j, outer in enumerate(real):
                if j != k and inner.startswith(outer):
                    what = "is named twice" if inner == outer else f"lies in {printable(roots[j])}"
                    raise ValueError(f"more: {printable(roots[k])} {what}, so its images would come twice")
        return roots

    def _function(self) -> Callable[[Tensor, torch.Generator], Tensor] | None:
        """Return the function that computes condition images, or None if there is none."""
        from difftool_plugins.datasets.columns.conditions import function_of

        if self.condition is None or not is_function(self.condition, self.channels, height_width(self.size)):
            return None
        return function_of(self.condition)

    def _tokens(
        self, chosen: list[FolderAndName], every: list[FolderAndName], paths: list[str], room: float
    ) -> tuple[Tensor | ArrayRows | CaptionRows | None, str]:
        """Return the tokens of the images that were chosen, at these paths, and a text that changes with them."""
        if self.captions is not None:
            from difftool_plugins.datasets.columns.captions import caption_rows, read_captions

            captions = read_captions(paths, self.captions)
            rows = caption_rows(captions, "files", self.words, room)
            text = hashlib.sha256("\0".join(captions).encode("utf-8", "surrogatepass")).hexdigest()
            return rows, f"captions {self.words} {text}"
        if self.tokens is None:
            return None, ""
        from difftool_plugins.datasets.columns.conditions import tokens_of

        path, row = self.tokens.expanduser(), {image: i for i, image in enumerate(every)}
        tokens = tokens_of(path, [row[image] for image in chosen], len(every), room)
        return tokens, f"tokens {os.path.getsize(path)}"

    def item_shape(self) -> tuple[int, int, int]:
        return (self.channels, *height_width(self.size))

    def _partners(self, files: ImageFiles) -> list[ImageFiles]:
        """Return the images of another folder that belong to these, if they are the condition. Raises `ValueError`."""
        from difftool_plugins.datasets.columns.conditions import PartnerFiles

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

    def _chosen(self, every: list[FolderAndName]) -> list[FolderAndName]:
        """Return the images to read: all of them, or with `labels` folders those in sub-folders."""
        inside = [(k, name) for k, name in every if "/" in name]
        if self.labels != "folders" or len(inside) == len(every):
            return every
        beside = len(every) - len(inside)
        warnings.warn(f"left out {beside} of {len(every)} images, which lie beside the sub-folders", stacklevel=4)
        return inside

    def _classes(self, roots: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
        """Return the sub-folders that are classes, and warn where some or all of them are not.

        Raises `ValueError` if `labels` is folders and there are fewer than two.
        """
        if self.labels == "none":
            return ()
        folders = class_folders(names)
        if self.labels == "auto" and (reason := no_classes(roots[0], names, folders)):
            warnings.warn(f"no classes: {reason}; --dataset.labels none confirms it", stacklevel=4)
            return ()
        if len(folders) < 2 and self.labels == "folders":
            raise ValueError(
                f"labels: folders needs images in two sub-folders or more, not {listed(folders) or 'none'}"
            )
        if empty := sorted({name for root in roots for name in sub_folders(root)} - set(folders), key=os.fsencode):
            what = "" if len(folders) > 1 else "no classes, for there are images in one sub-folder alone: "
            warnings.warn(f"{what}a sub-folder without readable images is not a class ({listed(empty)})", stacklevel=4)
        return folders if len(folders) > 1 else ()


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
