"""The denoiser that follows the gradient of the likelihood of a measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool import Estimate, Level
from difftool_inverse.measurement import Measurement

if TYPE_CHECKING:
    from difftool import Denoise

SMALLEST_NORM = 1e-6
"""The error of a measurement counts as at least this much, so that 0 is not divided by 0."""


def explaining(
    measured: Measurement, model: Denoise, decode: Callable[[Tensor], Tensor], noise: float, spread: float, scale: float
) -> Denoise:
    """Return a denoiser of the posterior: x_0 + sigma^2/alpha grad log p(y | x_t), by Tweedie's formula.

    p(y | x_t) is taken as a Gaussian around A x_0, whose variance is that of the noise and a share `spread` of what x_t
    leaves open of A x_0. Where a level has no signal, x_t says nothing of y, and the estimate is that of the model.
    """

    def denoise(x: Tensor, level: Level) -> Estimate:
        x = x.detach().requires_grad_()
        estimate = model(x, level)
        if level.alpha == 0.0:
            return estimate
        image = measured.of(decode(estimate.x_0))
        error = (measured.values - image).detach()
        (gradient,) = torch.autograd.grad((error * image).sum(), x)
        # The covariance of x_0 given x_t is C = sigma^2/alpha times the derivative of the estimate.
        step = level.sigma**2 / level.alpha * gradient  # C A^T (y - A x_0)
        seen = measured.of(decode(estimate.x_0.detach() + step)) - image.detach()  # A C A^T (y - A x_0)
        left = norm(seen) / norm(error).clamp(min=SMALLEST_NORM)  # so a step explains no more than the error
        step = step / (noise**2 + spread * left).view(-1, *(1,) * (x.ndim - 1))
        return estimate.with_x_0(estimate.x_0 + scale * step, x, level)

    return denoise


def norm(x: Tensor) -> Tensor:
    """Return the norm of each item, (B, *shape) -> (B,)."""
    return x.flatten(1).norm(dim=1)
