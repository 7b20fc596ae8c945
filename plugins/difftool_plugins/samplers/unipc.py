"""UniPC: a predictor and a corrector of DPM-Solver++'s form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from difftool import Sampler, option
from difftool_plugins.samplers.multistep import exponential_update, multistep

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Noise, Step


class UniPC(Sampler, name="unipc"):
    """UniPC: a predictor and a corrector that share one call per step (Zhao et al., 2023, algorithms 5 and 6).

    x_s = (sigma_s/sigma_t) x_t + alpha_s D. In the predictor, D integrates the polynomial in lambda through the last
    `order` estimates of x_0; in the corrector, through these and the one at the predicted x_s.
    """

    # With the order conditions solved exactly B(h) cancels, so the paper's variants bh1 and bh2 are one.

    default_steps = 20

    order: int = option(default=2, ge=1, le=3, help="order of the predictor; the corrector has one more")

    def claimed_order(self) -> int:
        return self.order + 1

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        return multistep(exponential_update, denoise, x, levels, order=self.order, corrected_steps=len(levels))
