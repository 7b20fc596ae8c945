"""From a formula to a table of T levels. alpha-bar is always the cumulative product of 1 - beta."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from difftool import Schedule

LARGEST_BETA = 0.999
"""Nichol & Dhariwal (2021): a larger beta leaves nothing to reverse."""


def ramp(first: float, last: float, T: int) -> Tensor:
    """T evenly spaced values, both ends included; a single level is the noisy end."""
    return torch.linspace(first if T > 1 else last, last, T, dtype=torch.float64)


def from_betas(betas: Tensor, *, rescale: bool) -> Schedule:
    """The table of betas that are meant for T = 1000: where `rescale`, times 1000/T; capped, with a warning."""
    T = len(betas)
    if rescale:
        betas = betas * (1000 / T)
    if capped := int((betas > LARGEST_BETA).sum()):
        warnings.warn(
            f"capped {capped} of {T} betas at {LARGEST_BETA}; take more timesteps or a smaller beta_max",
            stacklevel=3,  # whoever called the schedule's build
        )
    return _table(betas.clamp(max=LARGEST_BETA))


def from_alpha_bar(alpha_bar: Callable[[Tensor], Tensor], T: int, beta_max: float = LARGEST_BETA) -> Schedule:
    """The table of alpha-bar(u), u = 0 clean to 1 noise: beta_i = min(1 - alpha-bar((i+1)/T)/alpha-bar(i/T), beta_max).

    alpha-bar(1) is 0, so the last beta is clipped by design.
    """
    values = alpha_bar(torch.arange(T + 1, dtype=torch.float64) / T)
    return _table((1 - values[1:] / values[:-1]).clamp(max=beta_max))


def _table(betas: Tensor) -> Schedule:
    try:
        return Schedule.from_betas(betas)
    except ValueError:
        raise ValueError(
            f"with these options, neighbouring ones of the {len(betas)} noise levels are alike; "
            "take a narrower range or fewer timesteps"
        ) from None
