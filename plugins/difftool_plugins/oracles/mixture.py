"""The posterior mean under a mixture of Gaussians. It serves both oracles: with s = 0 the mixture is a set of points.

Let x_0 be drawn from the Gaussians N(m_k, s^2) with equal weights, x = alpha x_0 + sigma eps, and v = alpha^2 s^2 +
sigma^2, all per coordinate. The responsibility of component k is w_k = softmax over k of -|x - alpha m_k|^2 / 2v, and
with m = sum over k of w_k m_k

    E[x_0 | x] = (sigma^2 m + alpha s^2 x) / v        E[eps | x] = sigma (x - alpha m) / v

Neither divides by alpha or sigma, and eps is not a difference of almost equal numbers (Karras et al., 2022, app. B.3,
have the case s = 0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool import Estimate

if TYPE_CHECKING:
    from difftool import Level

CHUNK, CUDA_CHUNK = 2**19, 2**26
"""Pairs of a sample and a component in one chunk: on a CPU they should stay in its cache."""
FEW_COORDINATES = 8
"""Number of coordinates up to which one pass for each is faster than `torch.cdist`."""
SMALLEST_EXPONENT = -80.0
"""Smaller exponents are raised to this (a weight of 1e-35): denormal weights mean nothing and are ten times slower."""


class MixtureDenoiser:
    """The exact denoiser of a mixture with equal weights. It remembers nothing between calls, and has gradients."""

    def __init__(self, means: Tensor, std: Tensor) -> None:
        """Take the means (K, *shape) and the std, (1,) or (C,) by channel or coordinate, in model units."""
        shape = means.shape[1:]
        self.means = means.flatten(1)
        self.std = std.view(-1, *(1,) * (len(shape) - 1)).expand(shape).flatten()

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        flat, means, std = x.flatten(1), self.means.to(x.dtype), self.std.to(x.dtype)
        v = (level.alpha * std).square() + level.sigma**2
        unit = v.rsqrt()
        m = weighted_mean(flat * unit, level.alpha * means * unit, means)
        x_0 = level.sigma**2 / v * m + level.alpha * std.square() / v * flat
        eps = level.sigma / v * (flat - level.alpha * m)
        return Estimate(x_0.view_as(x), eps.view_as(x))


def weighted_mean(z: Tensor, centres: Tensor, values: Tensor) -> Tensor:
    """Return the mean of the values (K, D) weighted by softmax over k of -|z - centre_k|^2 / 2: (B, D) for z (B, D).

    The differences themselves are squared: |z|^2 - 2 z c + |c|^2 would lose every digit where sigma is small.
    """
    chunk = CUDA_CHUNK if z.is_cuda else CHUNK
    if torch.is_grad_enabled() and z.requires_grad:  # which keeps the graph, and therefore works out of place
        return torch.softmax(-0.5 * (z[:, None] - centres).square().sum(2), dim=1) @ values
    means = []
    for part in torch.split(z, max(1, chunk // len(centres))):
        d = squared_distances(part, centres)  # by far the largest tensor, so all is done in place
        w = d.sub_(d.amin(dim=1, keepdim=True)).mul_(-0.5).clamp_(min=SMALLEST_EXPONENT).exp_()
        means.append(w @ values / w.sum(dim=1, keepdim=True))
    return torch.cat(means)


def squared_distances(z: Tensor, centres: Tensor) -> Tensor:
    """Return |z_i - c_k|^2 (B, K) for z (B, D) and centres (K, D)."""
    if z.shape[1] > FEW_COORDINATES:
        return torch.cdist(z, centres, compute_mode="donot_use_mm_for_euclid_dist").square_()
    columns = centres.T.contiguous()
    total = (z[:, :1] - columns[0]).square_()
    for i in range(1, len(columns)):
        difference = z[:, i : i + 1] - columns[i]
        total.addcmul_(difference, difference)
    return total
