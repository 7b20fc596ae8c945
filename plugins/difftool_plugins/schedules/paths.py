"""Schedules that do not preserve variance: straight paths from data to noise, and noise that only grows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from difftool import NoiseSchedule, option

if TYPE_CHECKING:
    from difftool import Schedule


class Flow(NoiseSchedule, name="flow"):
    """Straight paths, x_t = (1 - u) x_0 + u eps, u = (i + 1)/T; the last level is pure noise (Liu et al., 2023)."""

    default_prediction = "flow"

    shift: float = option(
        default=1.0,
        ge=0.01,
        le=100,
        help="u becomes shift u/(1 + (shift - 1) u): above 1, more noise, for larger images (Esser et al., 2024)",
    )

    def build(self, timesteps: int) -> Schedule:
        import torch

        from difftool_plugins.schedules.tables import from_alpha_sigma

        u = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
        whole = 1 + (self.shift - 1) * u
        return from_alpha_sigma((1 - u) / whole, self.shift * u / whole)  # not 1 - sigma: alpha is exactly 0 at u = 1


class VE(NoiseSchedule, name="ve"):
    """Variance exploding: x_t = x_0 + sigma eps, ln(sigma) rises linearly (Song et al., 2021), in EDM's range."""

    default_prediction = "edm"

    sigma_min: float = option(default=0.002, ge=1e-6, le=1e6, help="sigma of the first level")
    sigma_max: float = option(default=80.0, ge=1e-6, le=1e6, help="sigma of the last level")

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_max: must be above sigma_min, {self.sigma_min:g}, not {self.sigma_max:g}")

    def build(self, timesteps: int) -> Schedule:
        import torch

        from difftool_plugins.schedules.tables import from_alpha_sigma, ramp

        sigma = ramp(math.log(self.sigma_min), math.log(self.sigma_max), timesteps).exp()
        return from_alpha_sigma(torch.ones_like(sigma), sigma)
