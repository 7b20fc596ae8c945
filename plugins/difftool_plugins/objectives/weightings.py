"""How much each noise level counts. One weight in x_0 space explains all: factor = weight / native weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftool import Weighting, option

if TYPE_CHECKING:
    from torch import Tensor


class Unweighted(Weighting, name="none"):
    """The plain loss of the prediction type, as in DDPM's L_simple."""

    def factor(self, snr: Tensor, native_weight: Tensor) -> Tensor:
        return snr.new_ones(snr.shape)


class MinSNR(Weighting, name="min-snr"):
    """min(snr, gamma) in x_0 space, right for every prediction type (Hang et al., 2023)."""

    gamma: float = option(default=5.0, gt=0, help="signal-to-noise ratio above which the weight stops rising")

    def factor(self, snr: Tensor, native_weight: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma) / native_weight
