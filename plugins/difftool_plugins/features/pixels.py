"""The items themselves as features, and their principal components."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from difftool import Features, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import FeaturesSpec, Samples


class Pixels(Features, name="pixels"):
    """The numbers of the items themselves, in model units; large images are averaged down."""

    most: int = option(default=3072, ge=1, le=2**20, help="numbers of an image or film, which is averaged down to them")

    def build(self, spec: FeaturesSpec, data: Samples) -> Callable[[Tensor], Tensor]:
        scaling, size = data.scaling, size_within(spec, self.most)
        return lambda items: averaged(scaling.to_model(items), size).flatten(1)


class PCA(Features, name="pca"):
    """The principal components of the training items: the directions in which they vary most."""

    components: int = option(default=64, ge=1, le=4096, help="number of components, if the data have as many")
    whiten: bool = option(default=False, help="divide each component by its standard deviation in the data")
    most: int = option(default=1024, ge=1, le=4096, help="numbers of an image or film, which is averaged down to them")

    def build(self, spec: FeaturesSpec, data: Samples) -> Callable[[Tensor], Tensor]:
        from difftool_plugins.features.fitting import principal_components

        pixels = Pixels(most=self.most).build(spec, data)
        mean, axes, deviations = principal_components(pixels, spec, data, self.components)
        axes = axes / deviations if self.whiten else axes
        return lambda items: ((pixels(items).cpu().double() - mean) @ axes).float()


def size_within(spec: FeaturesSpec, most: int) -> tuple[int, int] | None:
    """Return the (height, width) of an image or film of at most so many numbers, or None to leave items as they are.

    The proportions stay nearly the same, and no side becomes 0.
    """
    numbers = math.prod(spec.shape)
    if spec.form not in ("image", "film") or numbers <= most:
        return None
    height, width = spec.shape[-2:]
    factor = math.sqrt(most / numbers)
    return max(1, int(height * factor)), max(1, int(width * factor))


def averaged(x: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return images or films (B, ..., H, W) as means over areas, (B, ..., *size)."""
    if size is None:
        return x
    from torch.nn.functional import adaptive_avg_pool2d

    return adaptive_avg_pool2d(x.flatten(1, -3), size).view(*x.shape[:-2], *size)
