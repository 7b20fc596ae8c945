"""Guidance by a bad version of the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from difftool import Guidance, option
from difftool_plugins.guidances.options import check_interval, interval_words

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Estimate, GuidanceSpec, Level, Predictions


class Autoguidance(Guidance, name="autoguidance"):
    """Autoguidance (Karras et al., 2024, eq. 3): b + w (m - b), away from the estimate b of a worse model.

    The worse model is smaller, or was trained for fewer steps, on the same data. Both get the same condition, and
    neither needs one.
    """

    run: Path = option(help="the worse model: a run folder or a model file")
    weights: str = option(default="ema", help="its weights: ema, raw, or another average that info lists")
    scale: float = option(default=2.0, ge=0, le=1000, help="scale w: b + w (m - b); 1 is off")
    interval: tuple[float, ...] | None = option(
        default=None, ge=0, le=10**6, help="LOW,HIGH: guide only where sigma/alpha lies between", otherwise="everywhere"
    )

    def __post_init__(self) -> None:
        check_interval(self.interval)

    def words(self) -> str:
        weights = [f"{self.weights} weights"] if self.weights != "ema" else []
        scale = f"scale {self.scale:g}"
        return ", ".join([f"autoguidance {self.run.name}", *weights, scale, *interval_words(self.interval)])

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        from difftool_plugins.guidances.extrapolation import extrapolated, within

        model, worse = predict(), predict(run=self.run, weights=self.weights)
        if self.scale == 1.0:
            return model

        def guided(x: Tensor, level: Level) -> Estimate:
            return extrapolated(model(x, level), worse(x, level), self.scale)

        return within(self.interval, inside=guided, outside=model)
