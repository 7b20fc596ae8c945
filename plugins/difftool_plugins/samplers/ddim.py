"""DDIM, deterministic or with a part of DDPM's noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool import Sampler, option
from difftool_plugins.samplers.equations import ancestral_sigma

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Noise, Step


class DDIM(Sampler, name="ddim"):
    """Denoising diffusion implicit models (Song, Meng & Ermon, 2021, eq. 12).

    x_s = alpha_s x_0 + sigma_down eps + sigma_up z, where sigma_up is eta times the deviation of DDPM's posterior
    (eq. 16) and sigma_down^2 + sigma_up^2 = sigma_s^2.
    """

    eta: float = option(default=0.0, ge=0, le=1, help="0 is deterministic, 1 has DDPM's noise (fixed-small)")

    def claimed_order(self) -> int | None:
        return 1 if self.eta == 0.0 else None

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        from difftool import Step

        for step, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            sigma_up = self.eta * ancestral_sigma(t, s)
            sigma_down = math.sqrt(s.sigma**2 - sigma_up**2)
            x = s.alpha * estimate.x_0 + sigma_down * estimate.eps
            if sigma_up > 0.0:
                x = x + sigma_up * noise(step)
            yield Step(x, s, estimate)
