"""Inpainting: an image of which the sampler paints a part anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.data.own_images import check_proportions, own_image, own_mask
from difftool.sampling.denoiser import corrected

if TYPE_CHECKING:
    from difftool.diffusion.estimate import Denoise
    from difftool.sampling.source import Source
    from difftool.settings import Sampling


@dataclass(frozen=True, eq=False)
class Inpainting:
    """An image, and the part of it to be painted."""

    image: Tensor
    """(*shape) in model units."""
    mask: Tensor
    """bool (1, H, W): true where it is to be painted."""

    @classmethod
    def of(cls, source: Source, settings: Sampling) -> Inpainting | None:
        """Read the image and the mask of --inpaint and --mask; None without them. Raises `DifftoolError`."""
        if settings.inpaint is None or settings.mask is None:
            return None
        image = own_image(settings.inpaint, source.data, source.name, "--inpaint")
        check_proportions(settings.inpaint, settings.mask)
        return cls(image.to(source.device), own_mask(settings.mask, source.data, "--mask").to(source.device))


def inpainted(denoise: Denoise, inpainting: Inpainting, source: Source) -> Denoise:
    """Return a denoiser whose x_0 is the image's where the mask is false.

    Since x_0 is right where it is known, every sampler carries the noised image there and ends in its very pixels.
    Latents are decoded, completed as pixels, and encoded again.
    """
    return corrected(denoise, lambda x_0: source.encode(paste(source.decode(x_0), inpainting)))


def paste(x: Tensor, inpainting: Inpainting) -> Tensor:
    """Return items (B, *shape) with the image where the mask is false; the mask broadcasts over the image."""
    return torch.where(inpainting.mask, x, inpainting.image)
