"""Weightings: the weight of a squared error of x_0 at each noise level.

A paper gives the factor of the loss that it uses. Multiplied by the native weight of that loss (snr for eps) it becomes
a weight in x_0 space; divided by the native weight of another prediction type, it becomes the factor there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftool import Weighting, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import ObjectiveSpec


class Unweighted(Weighting, name="none"):
    """The plain loss of the prediction type, as in DDPM's L_simple."""

    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        return native


class MinSNR(Weighting, name="min-snr"):
    """min(snr, gamma) in x_0 space, right for every prediction type (Hang et al., 2023)."""

    gamma: float = option(default=5.0, gt=0, help="signal-to-noise ratio above which the weight stops rising")

    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        return spec.schedule.snr.clamp(max=self.gamma)


class SoftMinSNR(Weighting, name="soft-min-snr"):
    """snr gamma/(snr + gamma) in x_0 space: min-SNR without its kink (Crowson et al., 2024)."""

    gamma: float = option(default=4.0, gt=0, help="the limit of the weight where there is little noise")

    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        snr = spec.schedule.snr
        return self.gamma * snr / (snr + self.gamma)


class P2(Weighting, name="p2"):
    """snr/(k + snr)^gamma in x_0 space, 1/(k + snr)^gamma for eps: less weight on fine detail (Choi et al., 2022)."""

    gamma: float = option(default=1.0, ge=0, le=10, help="how strongly; 0 is the plain loss of eps")
    k: float = option(default=1.0, gt=0, help="signal-to-noise ratio at which it sets in")

    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        snr = spec.schedule.snr
        return snr / (self.k + snr) ** self.gamma


class EDMWeighting(Weighting, name="edm"):
    """snr + 1/sigma_data^2 in x_0 space, which is EDM's lambda(sigma) (Karras et al., 2022, table 1)."""

    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        return spec.schedule.snr + 1.0 / spec.sigma_data**2


class SNR(Weighting, name="snr"):
    """snr in x_0 space: the plain loss of eps, whatever the network predicts (Ho et al., 2020, eq. 14)."""

    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        return spec.schedule.snr
