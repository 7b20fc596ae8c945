"""Self-conditioning (Chen et al., 2023): the network sees its last estimate of x_0 beside x_t, as further channels."""

from __future__ import annotations

import torch
from torch import Tensor

SELF_COND_RANGE = 4.0
"""Estimates of unbounded data are clipped to this many standard deviations: at the noisy end, an estimate from eps may
be off by hundreds."""


def with_self_cond(net_input: Tensor, x_self_cond: Tensor | None) -> Tensor:
    """Return the network's input (B, C, ...) with the last estimate of x_0 beside it, or zeros: (B, 2C, ...)."""
    return torch.cat([net_input, torch.zeros_like(net_input) if x_self_cond is None else x_self_cond], dim=1)


def bounded_self_cond(x_0: Tensor, bounds: tuple[float, float] | None, sigma_data: float) -> Tensor:
    """Clip an estimate of x_0 to what the network may see of it, the same in training and in sampling."""
    low, high = bounds or (-SELF_COND_RANGE * sigma_data, SELF_COND_RANGE * sigma_data)
    return x_0.clamp(low, high)
