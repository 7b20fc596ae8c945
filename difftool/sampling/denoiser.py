"""Denoisers: network + schedule + prediction type make `denoise(x, level) -> Estimate`.

A sampler sees nothing else. Guidance, clipping and inpainting are denoisers around a denoiser, so that no sampler knows
of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.diffusion.condition_image import with_image_beside
from difftool.diffusion.estimate import Denoise, Estimate
from difftool.diffusion.prediction import estimate
from difftool.diffusion.self_conditioning import bounded_self_cond, with_self_cond
from difftool.diffusion.variance import split_variance
from difftool.errors import blaming
from difftool.specs import ObjectiveSpec

if TYPE_CHECKING:
    from difftool.components import Prediction
    from difftool.data.condition import Condition
    from difftool.diffusion.schedule import Level


ROUNDING = 1e-12
"""An input scale this close to 1 counts as 1: the norm of a variance-preserving level, computed in float64."""


class Denoiser:
    """A trained network as a denoiser, by default without gradients.

    Make a new one for each trajectory: with self-conditioning it remembers its last estimate.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        prediction: Prediction,
        spec: ObjectiveSpec,
        *,
        cond: Condition | None = None,
        image_beside: bool = False,
        self_condition: bool = False,
        learned_variance: bool = False,
        bounds: tuple[float, float] | None = None,
        autocast: Callable[[], AbstractContextManager[object]] | None = None,
        gradients: bool = False,
        name: str = "the network",
    ) -> None:
        """Take the parts of a denoiser; `name` is that of the network in errors from its code.

        With `gradients`, estimates keep the graph that leads back to x.
        """
        self.name, self.gradients = name, gradients
        self.network = with_image_beside(network) if image_beside else network
        self.prediction, self.spec, self.cond = prediction, spec, cond
        self.self_condition, self.learned_variance = self_condition, learned_variance
        self.bounds, self.autocast = bounds, autocast or nullcontext
        self._x_self_cond: Tensor | None = None

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        with torch.set_grad_enabled(self.gradients):
            return self._estimate(x, level)

    def _estimate(self, x: Tensor, level: Level) -> Estimate:
        if math.isnan(level.t):
            return self._at_own_level(x, level)
        # one number in memory, by which an embedding sees that all times are the same
        t = torch.full((1,), self.spec.schedule.time(level.t), dtype=torch.float32, device=x.device).expand(x.size(0))
        with blaming(f"prediction {self.prediction.name}"):
            scale = self.prediction.input_scale(level, self.spec)
        net_input = x if abs(scale - 1.0) < ROUNDING else scale * x
        if self.self_condition:
            net_input = with_self_cond(net_input, self._x_self_cond)
        with blaming(self.name), self.autocast():
            output = self.network(net_input, t, self.cond).to(x.dtype)
        output, fraction = split_variance(output) if self.learned_variance else (output, None)
        found = estimate(self.prediction, output, x, level, self.spec, fraction)
        if self.self_condition:
            self._x_self_cond = bounded_self_cond(found.x_0.detach(), self.bounds, self.spec.sigma_data)
        return found

    def _at_own_level(self, x: Tensor, level: Level) -> Estimate:
        """Estimate at a level that is not of the table, by the table's level of the same signal-to-noise ratio."""
        twin = self.spec.schedule.at(self.spec.schedule.t_of(level.log_snr))
        found = self._estimate(x * (twin.norm / level.norm), twin)
        return found.with_x_0(found.x_0, x, level)


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.calls = denoise, 0

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        self.calls += 1
        return self.denoise(x, level)


def corrected(denoise: Denoise, correct: Callable[[Tensor], Tensor]) -> Denoise:
    """Return a denoiser whose x_0 (B, *shape) is corrected, and whose eps = (x_t - alpha x_0) / sigma follows it."""

    def denoise_and_correct(x: Tensor, level: Level) -> Estimate:
        estimate = denoise(x, level)
        return estimate.with_x_0(correct(estimate.x_0), x, level)

    return denoise_and_correct


def clipped(denoise: Denoise, bounds: tuple[float, float]) -> Denoise:
    """Return a denoiser that clips x_0 to the data's bounds."""
    return corrected(denoise, lambda x_0: x_0.clamp(*bounds))


def thresholded(denoise: Denoise, bounds: tuple[float, float], quantile: float) -> Denoise:
    """Return a denoiser with dynamic thresholding: an item that leaves the bounds is clipped and shrunk.

    With y = x_0 measured from the middle of the bounds +-b, each item has s = max(b, q-quantile of |y|), and y becomes
    clip(y, -s, s) b/s (Saharia et al., 2022, section 2.3). Thus a strongly guided image keeps its contrasts, where
    clipping would saturate it.
    """
    low, high = bounds
    middle, b = (high + low) / 2, (high - low) / 2

    def threshold(x_0: Tensor) -> Tensor:
        y = x_0 - middle
        s = y.abs().flatten(1).quantile(quantile, dim=1).clamp_min(b).view(-1, *(1,) * (y.ndim - 1))
        return middle + b / s * torch.minimum(torch.maximum(y, -s), s)

    return corrected(denoise, threshold)
