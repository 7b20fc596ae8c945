"""Classifier-free guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from difftool import Guidance, option
from difftool_plugins.guidances.options import check_interval, interval_words

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Estimate, GuidanceSpec, Level, Predictions


class ClassifierFree(Guidance, name="cfg"):
    """Classifier-free guidance (Ho & Salimans, 2022): u + w (c - u), from the estimate u without the condition.

    A number as `--guidance` is its scale w. With w = 1 the estimate c under the condition stands alone.
    """

    scale: float = option(default=2.0, ge=0, le=1000, help="scale w: u + w (c - u); 1 is off and costs one call")
    interval: tuple[float, ...] | None = option(
        default=None, ge=0, le=10**6, help="LOW,HIGH: guide only where sigma/alpha lies between", otherwise="everywhere"
    )
    rescale: float = option(default=0.0, ge=0, le=1, help="restore the contrast of unguided images; 1: fully")

    def __post_init__(self) -> None:
        check_interval(self.interval)

    def words(self) -> str:
        rescaled = [f"rescaled by {self.rescale:g}"] if self.rescale else []
        return ", ".join([f"guidance {self.scale:g}", *interval_words(self.interval), *rescaled])

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        from difftool_plugins.guidances.extrapolation import extrapolated, rescaled, within

        if self.rescale and not spec.is_image:
            raise ValueError("rescale brings back the contrast of images, and these data are none")
        conditional = predict()
        if self.scale == 1.0:
            return conditional
        unconditional = predict(hidden=True)

        def guided(x: Tensor, level: Level) -> Estimate:
            c, u = conditional(x, level), unconditional(x, level)
            estimate = extrapolated(c, u, self.scale)
            if self.rescale:
                estimate = rescaled(estimate, c, self.rescale, x, level)
            return replace(estimate, unconditional=u)

        return within(self.interval, inside=guided, outside=conditional)
