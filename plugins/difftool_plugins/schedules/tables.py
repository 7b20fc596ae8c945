"""From a formula to a table of T levels. Where betas are given, alpha-bar is the cumulative product of 1 - beta."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

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
            stacklevel=4,  # whoever called the schedule's build
        )
    with _told_apart(T):
        return Schedule.from_betas(betas.clamp(max=LARGEST_BETA))


def from_alpha_bar(alpha_bar: Callable[[Tensor], Tensor], T: int, beta_max: float = LARGEST_BETA) -> Schedule:
    """The table of alpha-bar(u), u = 0 clean to 1 noise: beta_i = min(1 - alpha-bar((i+1)/T)/alpha-bar(i/T), beta_max).

    alpha-bar(1) is 0, so the last beta is clipped by design.
    """
    values = alpha_bar(torch.arange(T + 1, dtype=torch.float64) / T)
    with _told_apart(T):
        return Schedule.from_betas((1 - values[1:] / values[:-1]).clamp(max=beta_max))


def from_log_snr(log_snr: Tensor) -> Schedule:
    """Variance preserving: alpha^2 = sigmoid(log-SNR), sigma^2 = sigmoid(-log-SNR) (Kingma et al., 2021, eq. 4)."""
    return from_alpha_sigma(log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt())


def from_alpha_sigma(alpha: Tensor, sigma: Tensor) -> Schedule:
    with _told_apart(len(alpha)):
        return Schedule(alpha, sigma)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """r = sqrt(alpha-bar), shifted and scaled to keep its first value and to end at 0 (Lin et al., 2024, alg. 1)."""
    r = schedule.alpha
    r_0, r_T = r[0], r[-1]
    with _told_apart(len(r)):
        return Schedule.from_alpha_bars(((r - r_T) / (r_0 - r_T) * r_0).square())  # in this order both ends are exact


@contextlib.contextmanager
def _told_apart(T: int) -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise ValueError(
            f"with these options, neighbouring ones of the {T} noise levels are alike; "
            "take a narrower range or fewer timesteps"
        ) from None
