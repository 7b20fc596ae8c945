"""The posterior mean under a mixture of Gaussians, which serves both oracles: with s = 0 it is a set of points.

Of x_0 ~ mean over k of N(m_k, s^2) and x = alpha x_0 + sigma eps with v = alpha^2 s^2 + sigma^2 (all per coordinate):
component k is responsible by w_k = softmax over k of -|x - alpha m_k|^2 / 2v, and with m = sum over k of w_k m_k

    E[x_0 | x] = (sigma^2 m + alpha s^2 x) / v        E[eps | x] = sigma (x - alpha m) / v

so that neither divides by alpha or sigma, and eps is no difference of almost equal numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool import Estimate

if TYPE_CHECKING:
    from difftool import Level

CHUNK, CUDA_CHUNK = 2**19, 2**26
"""Pairs of a sample and a component that are looked at together: on a CPU they should stay in its cache."""
FEW = 8
"""Coordinates up to which a pass for each is faster than `torch.cdist`."""
LEAST = -80.0
"""Smaller exponents count as this, 1e-35: denormal weights mean nothing and are ten times slower."""


class MixtureDenoiser:
    """The exact denoiser of a mixture with equal weights; it remembers nothing between calls."""

    def __init__(self, means: Tensor, std: Tensor) -> None:
        """`means` (K, *shape) and `std`, one for all or (C,) by channel or coordinate, in model units."""
        shape = means.shape[1:]
        self.means = means.flatten(1)
        self.std = std.view(-1, *(1,) * (len(shape) - 1)).expand(shape).flatten()

    @torch.no_grad()
    def __call__(self, x: Tensor, level: Level) -> Estimate:
        flat, means, std = x.flatten(1), self.means.to(x.dtype), self.std.to(x.dtype)
        v = (level.alpha * std).square() + level.sigma**2
        unit = v.rsqrt()
        m = weighted_mean(flat * unit, level.alpha * means * unit, means)
        x_0 = level.sigma**2 / v * m + level.alpha * std.square() / v * flat
        eps = level.sigma / v * (flat - level.alpha * m)
        return Estimate(x_0.view_as(x), eps.view_as(x))


def weighted_mean(z: Tensor, centres: Tensor, values: Tensor) -> Tensor:
    """softmax over k of -|z - centre_k|^2 / 2, times the values (K, D): (B, D) for z (B, D).

    The differences themselves are squared: |z|^2 - 2 z c + |c|^2 would lose every digit where sigma is small.
    """
    chunk = CUDA_CHUNK if z.is_cuda else CHUNK
    rows = max(1, chunk // len(centres))
    distances = squared_few if z.shape[1] <= FEW else squared_many
    columns = centres.T.contiguous() if distances is squared_few else centres
    means = []
    for some in torch.split(z, rows):
        d = distances(some, columns)
        w = d.sub_(d.amin(dim=1, keepdim=True)).mul_(-0.5).clamp_(min=LEAST).exp_()
        means.append(w @ values / w.sum(dim=1, keepdim=True))
    return torch.cat(means)


def squared_few(z: Tensor, columns: Tensor) -> Tensor:
    """|z_i - c_k|^2 (B, K) of z (B, D) and columns (D, K), coordinate by coordinate."""
    total = (z[:, :1] - columns[0]).square_()
    for i in range(1, len(columns)):
        difference = z[:, i : i + 1] - columns[i]
        total.addcmul_(difference, difference)
    return total


def squared_many(z: Tensor, centres: Tensor) -> Tensor:
    """|z_i - c_k|^2 (B, K) of z (B, D) and centres (K, D)."""
    return torch.cdist(z, centres, compute_mode="donot_use_mm_for_euclid_dist").square_()
