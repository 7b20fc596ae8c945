"""LMS: a linear multistep method in theta."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from difftool import Sampler, option
from difftool_plugins.samplers.multistep import multistep, theta_update

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Level, Noise, Step


class LMS(Sampler, name="lms"):
    """Linear multistep (Adams-Bashforth) in the angle, with steps of any size (k-diffusion).

    x_s/norm_s = x_t/norm_t + (theta_s - theta_t) V, where V is the mean over the step of the polynomial in theta
    through the last velocities.
    """

    default_steps = 20

    order: int = option(default=3, ge=1, le=4, help="how many velocities a step uses")

    def claimed_order(self) -> int:
        return self.order

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        return multistep(theta_update, denoise, x, levels, order=self.order, corrected_steps=self.order - 1)
