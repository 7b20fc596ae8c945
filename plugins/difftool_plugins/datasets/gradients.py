"""Generated images of colour gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from difftool import Dataset, option
from difftool_plugins.datasets.images.augment import Augmentation, Change, augment_option, check_changes
from difftool_plugins.datasets.options import height_width, size_option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import DatasetContext, Samples

MAX_BYTES = 8 * 2**30
BLOCK = 2**20
"""Pixel values that are computed in float64 at a time."""


class Gradients(Dataset, name="gradients"):
    """Images that blend from one random colour, at the top left, to another, at the bottom right."""

    default_backbone = "unet"
    generated = True

    n: int = option(default=10_000, ge=1, le=10_000_000, help="number of images")
    size: tuple[int, ...] = size_option()
    channels: int = option(default=3, ge=1, le=4, help="number of channels; each has two random values to blend")
    augment: tuple[Change, ...] = augment_option()

    def __post_init__(self) -> None:
        height_width(self.size)
        check_changes(self.augment)
        if (total := self.n * math.prod(self.item_shape())) > MAX_BYTES:
            raise ValueError(
                f"n: {self.n} images of {'x'.join(map(str, self.item_shape()))} take {total / 2**30:.1f} GiB; "
                f"at most {MAX_BYTES >> 30} GiB are allowed"
            )

    def load(self, context: DatasetContext) -> Samples:
        import torch

        from difftool import PIXELS, Samples

        channels, height, width = shape = self.item_shape()
        ends = torch.randint(0, 255, (2, self.n, channels), generator=context.generator("colours")).to(torch.float64)
        first, second = ends[..., None, None]
        g = ramp(height, width)
        items = torch.empty(self.n, *shape, dtype=torch.uint8)
        block = max(1, BLOCK // math.prod(shape))
        for i in range(0, self.n, block):
            part = slice(i, i + block)
            items[part] = torch.lerp(first[part], second[part], g).round_()
        return Samples(items=items, shape=shape, augment=Augmentation.of(self.augment), **PIXELS)

    def item_shape(self) -> tuple[int, int, int]:
        return (self.channels, *height_width(self.size))


def ramp(height: int, width: int) -> Tensor:
    """Return weights (height, width) that rise linearly in both directions, from 0 at the first pixel to 1 at the last.

    Row i and column j have (j W/(W-1) + i H/(H-1)) / (W + H), divided by the maximum. The weight of a single pixel is
    0. The dtype is float64.
    """
    import torch

    def along(n: int) -> Tensor:
        return torch.arange(n, dtype=torch.float64) * (n / max(n - 1, 1))

    g = along(height)[:, None] + along(width)
    return g / g.max() if height * width > 1 else g
