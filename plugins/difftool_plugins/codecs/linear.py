"""Codecs that rearrange or rotate the numbers of an item."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from difftool import Codec, CodecSpec, option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from difftool_plugins.codecs.patches import Patches, PrincipalComponents

KEPT = 3
"""By default, one in this many numbers of a patch is kept."""
LARGEST_PATCH = 4096
"""The most numbers in a patch, for whose covariance 128 MiB are needed."""


class Nothing(Codec, name="none"):
    """No codec: network and sampler work on the items themselves."""

    keeps_range = True

    def build(self, spec: CodecSpec) -> None:
        return None


class Patch(Codec, name="patch"):
    """Space to depth: the numbers of each patch become channels, so nothing is lost (Shi et al., 2016).

    A network then has fewer places to compute, and more channels at each: 3x32x32 becomes 48x8x8 with patches of 4.
    """

    keeps_range = True

    size: int = option(default=2, ge=2, le=64, help="side of a patch, which divides every side of an item")

    def build(self, spec: CodecSpec) -> Patches:
        check_sides(spec.shape, self.size)
        from difftool_plugins.codecs.patches import Patches

        return Patches(self.size)


class PCA(Codec, name="pca"):
    """Principal components of patches, or of whole points: the directions in which the data vary most.

    They are found in the training data when a run begins, and saved with the model. Keeping some of them makes latents
    smaller than the data, and loses what lies in the others.
    """

    size: int = option(default=4, ge=1, le=64, help="side of a patch, which divides every side of an item")
    components: int | None = option(
        default=None,
        ge=1,
        le=LARGEST_PATCH,
        help="number of components that are kept",
        otherwise="a third of the numbers of a patch; all numbers of a point",
    )

    def build(self, spec: CodecSpec) -> PrincipalComponents:
        axes = len(spec.shape) - 1
        if axes:
            check_sides(spec.shape, self.size)
        numbers = spec.shape[0] * self.size**axes
        what = f"a patch of {_size((spec.shape[0], *(self.size,) * axes))}" if axes else f"a point of {numbers}"
        if numbers > LARGEST_PATCH:
            raise ValueError(f"{what} has {numbers:,} numbers, and at most {LARGEST_PATCH:,} are possible")
        kept = self.components or (-(-numbers // KEPT) if axes else numbers)
        if kept > numbers:
            raise ValueError(f"{what} has only {numbers} components, not {kept}")
        from difftool_plugins.codecs.patches import PrincipalComponents

        return PrincipalComponents(self.size, numbers, kept)

    def fit(self, module: nn.Module, batches: Callable[[], Iterator[Tensor]]) -> None:
        from difftool_plugins.codecs.patches import PrincipalComponents

        assert isinstance(module, PrincipalComponents)
        module.fit(batches())


def check_sides(shape: tuple[int, ...], size: int) -> None:
    """Raise `ValueError` if items of a shape, channels first, cannot be cut into patches with this side."""
    sides = shape[1:]
    if not sides:
        raise ValueError(f"points of {shape[0]} have no sides that patches could divide; images and series have")
    if any(side % size for side in sides):
        common = math.gcd(*sides)
        fitting = [str(n) for n in range(2, min(common, 64) + 1) if common % n == 0]
        cure = f"patches of {', '.join(fitting)} do (--codec.size)" if fitting else "no patches do; crop or pad them"
        raise ValueError(f"patches of {size} do not divide items of {_size(shape)}; {cure}")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
