"""Images of colour gradients: made up, yet images in every respect."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from difftool import Dataset, option
from difftool_plugins.datasets.sizes import height_width

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import DatasetContext, Samples

MOST_BYTES = 8 * 2**30
BLOCK = 2**20  # pixel values that are in float64 at a time


class Gradients(Dataset, name="gradients"):
    """Images that blend from one random colour, at the top left, to another, at the bottom right."""

    default_backbone = "unet"

    n: int = option(default=10_000, ge=1, le=10_000_000, help="number of images")
    size: tuple[int, ...] = option(
        default=(32,), ge=1, le=4096, help="HEIGHT,WIDTH in pixels, or one number for squares"
    )
    channels: int = option(default=3, ge=1, le=4, help="channels, each with two random ends of its own")

    def __post_init__(self) -> None:
        height_width(self.size)
        if (total := self.n * math.prod(self.item_shape())) > MOST_BYTES:
            raise ValueError(
                f"n: {self.n} images of {'x'.join(map(str, self.item_shape()))} take {total / 2**30:.1f} GiB, "
                f"more than the {MOST_BYTES >> 30} GiB allowed"
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
        return Samples(items=items, shape=shape, **PIXELS)

    def item_shape(self) -> tuple[int, int, int]:
        return (self.channels, *height_width(self.size))


def ramp(height: int, width: int) -> Tensor:
    """The blend (height, width), float64: rises linearly in i and j from 0 at the first pixel to 1 at the last.

    (j W/(W-1) + i H/(H-1)) / (W + H), i the row and j the column, divided by its maximum (which is 1, unless W or H
    is); the ramp of a single pixel is 0.
    """
    import torch

    def along(n: int) -> Tensor:
        return torch.arange(n, dtype=torch.float64) * (n / max(n - 1, 1))

    g = along(height)[:, None] + along(width)
    return g / g.max() if height * width > 1 else g
