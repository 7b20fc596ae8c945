"""Palette: inpainting and colourisation by a condition image beside x_t (Saharia et al., 2022, sections 3 and 4.2).

To fill holes in images, the network sees the image with the holes filled by standard normal noise, and no mask. Only
what is hidden counts in the loss. Masks are random rectangles and strokes of a brush. To sample, give a PNG file whose
holes are transparent, and --inpaint with it to keep its other pixels. Colourisation needs no code: the condition image
is the image in gray, and the loss is the built-in one.

    python examples/tutorials/patches.py photographs --size 32
    difftool train --plugin examples/papers/palette.py --dataset holes --dataset.path photographs --loss hidden \
      --backbone.dim-mults 1,2,2 --steps 3000 --batch-size 32 --out runs/holes
    difftool train --dataset image-folder --dataset.path photographs --dataset.size 32 --dataset.condition gray \
      --backbone unet --backbone.dim-mults 1,2,2 --steps 3000 --batch-size 32 --out runs/colours
    difftool sample runs/holes --plugin examples/papers/palette.py --image photographs/cat-0003.png --out filled.png
    difftool sample runs/colours --image photographs/cat-0003.png --out coloured.png
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from difftool import (
    ConditionSpec,
    Dataset,
    DatasetContext,
    Loss,
    Predict,
    Samples,
    TrainingBatch,
    component,
    option,
    read_image,
)

SAME = 1e-3
"""Pixels of two images that differ by less are the same."""


def filled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C + 1, H, W), uint8, whose last channel is 0 where they are hidden, with noise there.

    The result (B, C, H, W) is in model units.
    """
    pixels, seen = images[:, :-1].float() / 127.5 - 1, images[:, -1:] > 127
    return torch.where(seen, pixels, torch.randn(pixels.shape, generator=generator, device=pixels.device))


class Holes(Dataset, name="holes"):
    """Images in a folder, each with itself with holes full of noise as its condition image."""

    default_backbone = "unet"

    path: Path = option(help="folder of images")
    size: int = option(default=32, ge=4, le=1024, help="height and width")

    def load(self, context: DatasetContext) -> Samples:
        folder = component("dataset", "image-folder", path=self.path, size=(self.size,), condition="mask")
        assert isinstance(folder, Dataset)
        samples = folder.load(context)
        masked: Callable[..., Tensor] | None = samples.images_function
        assert masked is not None
        return replace(samples, images=lambda items, generator: filled(masked(items, generator), generator))

    def read_condition(self, field: str, text: str, spec: ConditionSpec) -> Tensor | None:
        if field != "image" or spec.image is None or text.endswith(".npy"):
            return None
        image = read_image(text, channels=spec.image[0] + 1, size=spec.image[1:])
        return filled(image[None], torch.Generator().manual_seed(0))[0]


class Hidden(Loss, name="hidden"):
    """The squared error where the condition image differs from the item."""

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        if batch.cond is None or batch.cond.image is None:
            raise ValueError("the data have no condition image")
        hidden = (batch.cond.image - batch.x_0).abs().amax(1, keepdim=True) > SAME
        error = (predict(batch.x_t, batch.t, batch.cond) - batch.target).square() * hidden
        return error.flatten(1).sum(1) / hidden.expand_as(error).flatten(1).sum(1).clamp(min=1)
