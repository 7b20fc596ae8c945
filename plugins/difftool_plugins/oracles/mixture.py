"""The posterior mean under a mixture of Gaussians. It serves both oracles: with s = 0 the mixture is a set of points.

Let x_0 be drawn from the Gaussians N(m_k, s^2) with equal weights, x = alpha x_0 + sigma eps, and v = alpha^2 s^2 +
sigma^2, all per coordinate. The responsibility of component k is w_k = softmax over k of -|x - alpha m_k|^2 / 2v, and
with m = sum over k of w_k m_k

    E[x_0 | x] = (sigma^2 m + alpha s^2 x) / v        E[eps | x] = sigma (x - alpha m) / v

Neither divides by alpha or sigma, and eps is not a difference of almost equal numbers (Karras et al., 2022, app. B.3,
have the case s = 0).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool import Estimate

if TYPE_CHECKING:
    from difftool import Level

CHUNK, CUDA_CHUNK = 2**19, 2**26
"""Pairs of a sample and a component in one chunk: on a CPU they should stay in its cache."""
BLOCK = 2**22
"""Numbers of the components in one block, so that images beyond count take no memory but their own."""
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
        flat, std = x.flatten(1), self.std.to(x.dtype)
        v = (level.alpha * std).square() + level.sigma**2
        m = weighted_mean(flat, self.means, level.alpha, v.rsqrt())
        x_0 = level.sigma**2 / v * m + level.alpha * std.square() / v * flat
        eps = level.sigma / v * (flat - level.alpha * m)
        return Estimate(x_0.view_as(x), eps.view_as(x))


def weighted_mean(x: Tensor, means: Tensor, alpha: float, unit: Tensor) -> Tensor:
    """Return the mean of the means (K, D) weighted by softmax over k of -|unit (x - alpha m_k)|^2 / 2: (B, D), as x.

    `unit` (D,) divides by the standard deviation. The softmax is taken block by block of the means, each relative to
    the nearest that was seen so far (Milakov and Gimelshein, 2018), so that all weights never exist at once. With
    gradients they do, since the graph keeps them.
    """
    z = x * unit
    if torch.is_grad_enabled() and x.requires_grad:
        means = means.to(x.dtype)
        return torch.softmax(-0.5 * (z[:, None] - alpha * means * unit).square().sum(2), dim=1) @ means
    nearest, total, sums = x.new_full((len(x), 1), math.inf), x.new_zeros(len(x), 1), torch.zeros_like(x)
    for block in torch.split(means, max(1, BLOCK // means.shape[1])):
        values = block.to(x.dtype)
        centres = alpha * values * unit
        rows = max(1, (CUDA_CHUNK if x.is_cuda else CHUNK) // len(block))
        for part, *state in zip(*(torch.split(one, rows) for one in (z, nearest, total, sums)), strict=True):
            add_block(part, centres, values, *state)
    return sums / total


def add_block(z: Tensor, centres: Tensor, values: Tensor, nearest: Tensor, total: Tensor, sums: Tensor) -> None:
    """Add a block to the weights `total` (B, 1) and the weighted `sums` (B, D), in place.

    Both are relative to the weight of the `nearest` (B, 1) squared distance, which falls as blocks come. The
    differences themselves are squared: |z|^2 - 2 z c + |c|^2 would lose every digit where sigma is small.
    """
    d = squared_distances(z, centres)  # by far the largest tensor, so all is done in place
    now = torch.minimum(nearest, d.amin(dim=1, keepdim=True))
    fade = (now - nearest).mul_(0.5).clamp_(min=SMALLEST_EXPONENT).exp_()
    w = d.sub_(now).mul_(-0.5).clamp_(min=SMALLEST_EXPONENT).exp_()
    total.mul_(fade).add_(w.sum(dim=1, keepdim=True))
    sums.mul_(fade).add_(w @ values)
    nearest.copy_(now)


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
