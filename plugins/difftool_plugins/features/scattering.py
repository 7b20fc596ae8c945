"""The wavelet scattering of images, series and sound as features."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from difftool import Features, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import FeaturesSpec, Samples

AXES = {"image": 2, "series": 1, "sound": 1}
"""The number of axes of each form along which wavelets lie."""
MOST_SCALES = 4
"""The largest number of scales of images that is chosen by itself."""


class Scattering(Features, name="scattering"):
    """The wavelet scattering transform (Mallat, 2012; Bruna & Mallat, 2013): textures and shapes, without any weights.

    Items are filtered by wavelets of several scales and directions, the moduli of the results are filtered once more,
    and all of them are averaged, so small shifts hardly matter. Features are scaled to deviation 1 over the data.
    """

    scales: int | None = option(
        default=None, ge=1, le=16, help="scales, each twice the one before", otherwise="as many as fit, 4 for images"
    )
    directions: int = option(default=6, ge=1, le=16, help="directions of the wavelets of images")
    grid: int = option(default=1, ge=1, le=16, help="parts along each axis over which is averaged separately")
    size: int = option(default=32, ge=4, le=512, help="side to which larger images are averaged down")

    def build(self, spec: FeaturesSpec, data: Samples) -> Callable[[Tensor], Tensor]:
        axes = AXES.get(spec.form)
        if axes is None:
            raise ValueError(f"scatters images, series and sound, not {spec.form}; take --features pixels")
        from difftool_plugins.features.fitting import standardised
        from difftool_plugins.features.pixels import averaged
        from difftool_plugins.features.wavelets import Bank

        sides, smaller = spec.shape[-axes:], None
        if axes == 2 and max(sides) > self.size:
            sides = smaller = max(1, sides[0] * self.size // max(sides)), max(1, sides[1] * self.size // max(sides))
        fitting = min(sides).bit_length() - 2  # the largest wavelet is half as long as the shorter side
        if fitting < 1:
            raise ValueError(f"needs items of at least 4 numbers along each side, not {'x'.join(map(str, sides))}")
        if self.scales is not None and self.scales > fitting:
            raise ValueError(f"scales: at most {fitting} fit into {'x'.join(map(str, sides))}, not {self.scales}")
        scales = self.scales or (min(fitting, MOST_SCALES) if axes == 2 else fitting)
        bank = Bank.of(sides, scales, self.directions if axes == 2 else 1, spec.device)
        scaling, grid = data.scaling, self.grid

        def features(items: Tensor) -> Tensor:
            return bank.means(averaged(scaling.to_model(items), smaller), grid).flatten(1)

        return standardised(features, spec, data)
