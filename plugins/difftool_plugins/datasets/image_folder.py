"""A folder of images: `folders` finds the files, `images` and `reading` read them, and `conditions` and `captions` read
what belongs to them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from difftool import Dataset, option, printable
from difftool_plugins.datasets.folders import Labels, classes_of, kept, labels_option, list_images
from difftool_plugins.datasets.images.augment import Augmentation, Change, augment_option, check_changes
from difftool_plugins.datasets.options import (
    Crop,
    bits_option,
    bytes_in_memory,
    channels_option,
    check_bits,
    check_captions,
    crop_option,
    height_width,
    is_few,
    is_function,
    memory_option,
    read_caption,
    read_small_image,
    size_option,
    skip_bad_option,
    words_option,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from difftool import ConditionSpec, DatasetContext, Samples
    from difftool_plugins.datasets.columns.captions import CaptionRows
    from difftool_plugins.datasets.columns.conditions import ArrayRows
    from difftool_plugins.datasets.images.files import ImageFiles

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
    size: tuple[int, ...] = size_option()
    channels: int = channels_option()
    bits: int = bits_option()
    crop: Crop = crop_option()
    augment: tuple[Change, ...] = augment_option()
    labels: Labels = labels_option("images")
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
    skip_bad: bool = skip_bad_option("files")
    memory: float | None = memory_option()

    def __post_init__(self) -> None:
        size = height_width(self.size)
        check_changes(self.augment)
        check_bits(self.bits)
        check_captions(self.captions, self.tokens)
        if self.weights and len(self.weights) != 1 + len(self.more):
            raise ValueError(
                f"weights: must be a number for each folder, so {1 + len(self.more)}, not {len(self.weights)}; "
                "--dataset.more names further folders"
            )
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
        chosen = [every[i] for i in kept([name for _, name in every], self.labels, "images")]
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
        most = bytes_in_memory(self.memory) if is_few(self.memory, len(files)) else -1
        random = self.crop == "random"
        found = read([files, *self._partners(files)], most, context.cache, random=random)
        good = [chosen[i] for i in found.good]
        classes = classes_of(roots, [name for _, name in good], self.labels, "images")
        images, function = (*found.columns[1:], None)[0], self._function()
        tokens, content = self._tokens(good, every, [files.path(i) for i in found.good], found.room)
        crop = "" if self.crop == "center" else self.crop
        return Samples(
            items=found.columns[0],
            shape=shape,
            images=images if function is None else function,
            tokens=tokens,
            repeats=torch.tensor([self.weights[k] for k, _ in good]) if self.weights else None,
            item_ids=[files.identity(i) for i in found.good],
            augment=Augmentation.of(self.augment),
            fingerprint=" ".join(filter(None, (found.fingerprint, self.condition if function else "", content, crop))),
            **classes,
            **PIXELS,
        )

    def read_condition(self, field: str, text: str, spec: ConditionSpec) -> Tensor | None:
        """Return the tokens of a caption, and images of any size shrunk as those of training are.

        Other conditions are taken as they are.
        """
        if (tokens := read_caption(field, text, self.captions, self.words)) is not None:
            return tokens
        return read_small_image(self.condition, field, text, spec, border=self.crop == "pad")

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

            captions = read_captions(paths, self.captions.removeprefix("."))
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
