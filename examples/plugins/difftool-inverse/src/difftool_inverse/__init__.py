"""Inverse problems for difftool: samples that explain a measurement, such as a part of an image or a small one.

Diffusion posterior sampling (Chung et al., 2023) guides by the gradient of the likelihood of the measurement. A worse
model can guide as well (autoguidance, Karras et al., 2024): the gradient then leads through both.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from difftool import Guidance, hookimpl, option

if TYPE_CHECKING:
    from difftool import Denoise, GuidanceSpec, Predictions

difftool_api = 2


class DPS(Guidance, name="dps"):
    """Diffusion posterior sampling (Chung et al., 2023, section 3): samples that explain a measurement y = A x_0 + n.

    A is read from the measurement. A .npy file (C, H, W) or (D,) holds the numbers that are known, and NaN elsewhere; a
    PNG file has transparent holes. An image that is smaller by a whole factor holds the means of squares.
    """

    measurement: Path = option(help="the measurement: an image, or a .npy file in the units of the data")
    noise: float = option(default=0.02, gt=0, le=100, help="standard deviation of the measurement, in model units")
    spread: float = option(
        default=1.0,
        ge=0,
        le=1,
        help="share of what x_t leaves open of x_0 that counts as noise of the measurement; 0 is the published method, "
        "1 is exact for Gaussian data",
    )
    scale: float = option(default=1.0, ge=0, le=1000, help="factor of the likelihood's gradient; 0 is off")
    run: Path | None = option(default=None, help="a worse model, a run folder or a model file", otherwise="none")
    worse_scale: float = option(default=2.0, ge=0, le=1000, help="scale w of autoguidance by it: b + w (m - b)")

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        from difftool_inverse.likelihood import explaining
        from difftool_inverse.measurement import read_measurement

        measured = read_measurement(self.measurement, spec)
        model = predict(gradients=True)
        if self.run is not None:
            model = extrapolated(model, predict(run=self.run, gradients=True), self.worse_scale)
        return explaining(measured, model, spec.decode, self.noise, self.spread, self.scale)


def extrapolated(model: Denoise, worse: Denoise, scale: float) -> Denoise:
    """Return the denoiser b + w (m - b), with w the scale."""

    def denoise(x, level):  # type: ignore[no-untyped-def]
        m, b = model(x, level), worse(x, level)
        return m.with_x_0(b.x_0 + scale * (m.x_0 - b.x_0), x, level)

    return denoise


@hookimpl
def difftool_guidances() -> list[type[Guidance]]:
    return [DPS]
