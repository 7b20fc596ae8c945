"""Variance-preserving schedules that are defined by their log-SNR, ln(alpha^2/sigma^2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftool import option
from difftool_plugins.schedules.variance_preserving import VariancePreserving

if TYPE_CHECKING:
    from difftool import Schedule


class Laplace(VariancePreserving, name="laplace"):
    """log-SNR with a Laplace distribution: most levels where signal and noise balance (Hang & Gu, 2024)."""

    mu: float = option(default=0.0, ge=-20, le=20, help="log-SNR around which the levels gather")
    b: float = option(
        default=1.0,
        gt=0,
        le=10,
        help="how far they spread; the paper's 0.5 leaves 3 % of signal in the last of 1000 levels",
    )

    def table(self, timesteps: int) -> Schedule:
        import torch

        from difftool_plugins.schedules.tables import from_log_snr

        u = (torch.arange(timesteps, dtype=torch.float64) + 0.5) / timesteps
        return from_log_snr(self.mu - self.b * (0.5 - u).sign() * (1 - 2 * (u - 0.5).abs()).log())


class LogLinear(VariancePreserving, name="log-linear"):
    """log-SNR falls linearly, by default in the range of variational diffusion models (Kingma et al., 2021, app. H)."""

    log_snr_max: float = option(default=13.3, ge=-30, le=30, help="log-SNR of the first level")
    log_snr_min: float = option(default=-5.0, ge=-30, le=30, help="log-SNR of the last level")

    def __post_init__(self) -> None:
        if self.log_snr_min >= self.log_snr_max:
            raise ValueError(f"log_snr_min: must be below log_snr_max, {self.log_snr_max:g}, not {self.log_snr_min:g}")

    def table(self, timesteps: int) -> Schedule:
        from difftool_plugins.schedules.tables import from_log_snr, ramp

        return from_log_snr(ramp(self.log_snr_max, self.log_snr_min, timesteps))
