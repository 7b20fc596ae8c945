"""Random changes of images, which the datasets of images share: `--dataset.augment flip,crop,rotate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from difftool import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Change = Literal["flip", "crop", "rotate"]
MOST_SHIFTED = 8
"""An image is shifted by up to this part of its sides: by 4 of 32 pixels."""


def augment_option() -> Any:
    """Return the option `augment: tuple[Change, ...]` of a dataset of images."""
    return option(
        default=(),
        help="random changes of each image, and of its condition image with it: flip (mirror, left to right), crop "
        f"(shift by up to 1/{MOST_SHIFTED} of its sides, and mirror what is missing at the border), rotate (by quarter "
        "turns, or by half turns if it is not square)",
    )


def check_changes(changes: Sequence[Change]) -> None:
    """Raise `ValueError` for a change that is named twice."""
    for change in changes:
        if changes.count(change) > 1:
            raise ValueError(f"augment: {change} is named twice")


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a batch of images (B, C, H, W), and of condition images that are moved alike.

    `crop` is that of He et al. (2016, section 4.2), with a mirrored border instead of a black one, which the network
    would learn to draw.
    """

    changes: tuple[Change, ...]

    @classmethod
    def of(cls, changes: Sequence[Change]) -> Augmentation | None:
        """Return the augmentation, or None without any change."""
        return cls(tuple(changes)) if changes else None

    def __call__(self, x: Tensor, random: torch.Generator, *images: Tensor) -> Any:
        batches = [x, *images]
        for change in sorted(self.changes, key=("flip", "crop", "rotate").index):
            batches = {"flip": flip, "crop": crop, "rotate": rotate}[change](batches, random)
        return tuple(batches) if images else batches[0]


def flip(batches: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
    """Mirror each of the images left to right with probability 1/2."""
    import torch

    heads = _uniform(batches[0], random) < 0.5
    return [torch.where(heads, x.flip(-1), x) for x in batches]


def crop(batches: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
    """Shift each of the images by a random number of pixels in both directions."""
    *_, height, width = batches[0].shape
    rows, columns = (_shifted(batches[0], random, side) for side in (height, width))
    return [
        x.gather(2, rows[:, None, :, None].expand(x.shape)).gather(3, columns[:, None, None, :].expand(x.shape))
        for x in batches
    ]


def rotate(batches: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
    """Turn each of the images by a random number of quarter turns, or of half turns if it is not square."""
    import torch

    square = batches[0].shape[-1] == batches[0].shape[-2]
    turns = _uniform(batches[0], random)
    if not square:
        return [torch.where(turns < 0.5, x.flip(-2, -1), x) for x in batches]
    half, quarter = turns < 0.5, (turns * 4) % 2 < 1
    halves = [torch.where(half, x.flip(-2, -1), x) for x in batches]
    return [torch.where(quarter, x.transpose(-2, -1).flip(-1), x) for x in halves]


def _uniform(x: Tensor, random: torch.Generator) -> Tensor:
    """Return a number in [0, 1) for each of the images, (B, 1, 1, 1)."""
    import torch

    return torch.rand(len(x), generator=random, device=x.device).view(-1, 1, 1, 1)


def _shifted(x: Tensor, random: torch.Generator, side: int) -> Tensor:
    """Return which rows (or columns) of each image come in the place of its own ones, int64 (B, side)."""
    import torch

    most = side // MOST_SHIFTED
    shift = (_uniform(x, random).view(-1, 1) * (2 * most + 1)).long() - most
    places = (torch.arange(side, device=x.device) + shift).abs()
    return side - 1 - (side - 1 - places).abs()
