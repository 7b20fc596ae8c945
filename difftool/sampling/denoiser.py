"""Denoisers: network + schedule + prediction type make `denoise(x, level) -> Estimate`.

A sampler sees nothing else. Guidance, clipping and inpainting are denoisers around a denoiser, so no sampler knows of
them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.diffusion.estimate import Denoise, Estimate, bounded_guess, with_guess
from difftool.diffusion.prediction import estimate
from difftool.diffusion.variance import split_answer
from difftool.specs import ObjectiveSpec

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from difftool.components import Prediction
    from difftool.diffusion.schedule import Level


ROUNDING = 1e-12
"""A scale this near to 1 is 1: the norm of a variance-preserving level, worked out in float64."""


class Denoiser:
    """A trained network as a denoiser. Made fresh for each walk: self-conditioning remembers the last estimate."""

    def __init__(
        self,
        network: Callable[..., Tensor],
        prediction: Prediction,
        spec: ObjectiveSpec,
        *,
        cond: Tensor | None = None,
        self_condition: bool = False,
        learned_variance: bool = False,
        bounds: tuple[float, float] | None = None,
        autocast: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> None:
        self.network, self.prediction, self.spec, self.cond = network, prediction, spec, cond
        self.self_condition, self.learned_variance = self_condition, learned_variance
        self.bounds, self.autocast = bounds, autocast
        self._guess: Tensor | None = None

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        if torch.is_grad_enabled():  # not in a walk: whatever is made of the answer later has no gradient either
            with torch.no_grad():
                return self(x.detach(), level)
        if math.isnan(level.t):
            return self._between(x, level)
        t = torch.full((x.size(0),), self.spec.schedule.time(level.t), dtype=torch.float32, device=x.device)
        scale = self.prediction.input_scale(level, self.spec)
        net_input = x if abs(scale - 1.0) < ROUNDING else x * scale
        if self.self_condition:
            net_input = with_guess(net_input, self._guess)
        if self.autocast is None:
            output = self.network(net_input, t, self.cond)
        else:
            with self.autocast():
                output = self.network(net_input, t, self.cond)
        if output.dtype is not x.dtype:
            output = output.to(x.dtype)
        answer, part = split_answer(output) if self.learned_variance else (output, None)
        found = estimate(self.prediction, answer, x, level, self.spec, part)
        if self.self_condition:
            self._guess = bounded_guess(found.x_0, self.bounds, self.spec.sigma_data)
        return found

    def _between(self, x: Tensor, level: Level) -> Estimate:
        """At a level of no table: asked at the table's own of that signal-to-noise ratio, with x at its norm."""
        own = self.spec.schedule.at(self.spec.schedule.t_of(level.log_snr))
        found = self(x * (own.norm / level.norm), own)
        return found.with_x_0(found.x_0, x, level)


class Counted:
    """Counts the questions put to a denoiser: network calls."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.calls = denoise, 0

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        self.calls += 1
        return self.denoise(x, level)


class Corrected(ABC):
    """A denoiser whose x_0 is corrected; eps is derived again."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        estimate = self.denoise(x, level)
        return estimate.with_x_0(self.correct(estimate.x_0), x, level)

    @abstractmethod
    def correct(self, x_0: Tensor) -> Tensor:
        """x_0 (B, *shape) -> a better one."""


class Clipped(Corrected):
    """Clips x_0 to the data's bounds."""

    def __init__(self, denoise: Denoise, bounds: tuple[float, float]) -> None:
        super().__init__(denoise)
        self.bounds = bounds

    def correct(self, x_0: Tensor) -> Tensor:
        return x_0.clamp(*self.bounds)


class Thresholded(Corrected):
    """Dynamic thresholding (Saharia et al., 2022, section 2.3): an item that leaves the bounds is clipped and shrunk.

    With x_0 measured from the middle of the bounds +-b, each item has s = max(b, q-quantile of |x_0|); x_0 is clipped
    to [-s, s] and multiplied by b/s. A strongly guided image keeps its contrasts where clipping would saturate it.
    """

    def __init__(self, denoise: Denoise, bounds: tuple[float, float], quantile: float) -> None:
        super().__init__(denoise)
        self.bounds, self.quantile = bounds, quantile

    def correct(self, x_0: Tensor) -> Tensor:
        low, high = self.bounds
        middle, b = (high + low) / 2, (high - low) / 2
        y = x_0 - middle
        s = y.abs().flatten(1).quantile(self.quantile, dim=1).clamp_min(b).view(-1, *(1,) * (y.ndim - 1))
        return middle + b / s * torch.minimum(torch.maximum(y, -s), s)


class Inpainted(Corrected):
    """Keeps the known part of an image: there x_0 is the image's, elsewhere the denoiser's.

    As x_0 is right where it is known, every sampler carries the noised image there and ends in its very pixels.
    """

    def __init__(self, denoise: Denoise, image: Tensor, unknown: Tensor) -> None:
        """`image` (*shape) in model units; `unknown` is true where it is to be painted, and broadcasts over it."""
        super().__init__(denoise)
        self.image, self.unknown = image, unknown

    def correct(self, x_0: Tensor) -> Tensor:
        return torch.where(self.unknown, x_0, self.image)
