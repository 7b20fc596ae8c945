"""Tables of T levels from formulas. alpha-bar is the cumulative product of 1 - beta."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from difftool import Schedule

LARGEST_BETA = 0.999
"""The cap of Nichol & Dhariwal (2021): a larger beta leaves nothing to reverse."""


def ramp(first: float, last: float, T: int) -> Tensor:
    """Return T evenly spaced values (T,), both ends included; a single one is `last`, the noisy end."""
    return torch.linspace(first if T > 1 else last, last, T, dtype=torch.float64)


def from_betas(betas: Tensor, *, rescale: bool) -> Schedule:
    """Return the table of betas that are meant for T = 1000, multiplied by 1000/T if `rescale`.

    Betas above 0.999 are capped, with a warning.
    """
    T = len(betas)
    if rescale:
        betas = betas * (1000 / T)
    if capped := int((betas > LARGEST_BETA).sum()):
        warnings.warn(
            f"capped {capped} of {T} betas at {LARGEST_BETA}; take more timesteps or a smaller beta_max",
            stacklevel=4,  # the caller of the schedule's `build`
        )
    with _distinct_levels(T):
        return Schedule.from_betas(betas.clamp(max=LARGEST_BETA))


def from_alpha_bar(
    alpha_bar: Callable[[Tensor], Tensor], T: int, beta_max: float = LARGEST_BETA, beta_min: float = 0.0
) -> Schedule:
    """Return the table of alpha-bar(u), where u runs from 0 (clean) to 1 (noise).

    beta_i = 1 - alpha-bar((i+1)/T)/alpha-bar(i/T), clipped to beta_min..beta_max; the last always is: alpha-bar(1) = 0.
    """
    values = alpha_bar(torch.arange(T + 1, dtype=torch.float64) / T)
    with _distinct_levels(T):
        return Schedule.from_betas((1 - values[1:] / values[:-1]).clamp(min=beta_min, max=beta_max))


def from_log_snr(log_snr: Tensor) -> Schedule:
    """Return the variance-preserving table with alpha^2 = sigmoid(log-SNR) (Kingma et al., 2021, eq. 4)."""
    return from_alpha_sigma(log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt())


def from_alpha_sigma(alpha: Tensor, sigma: Tensor) -> Schedule:
    """Return the table of alpha and sigma, each (T,)."""
    with _distinct_levels(len(alpha)):
        return Schedule(alpha, sigma)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shift and scale r = sqrt(alpha-bar) so that it keeps its first value and ends at 0 (Lin et al., 2024, alg. 1)."""
    r = schedule.alpha
    r_0, r_T = r[0], r[-1]
    with _distinct_levels(len(r)):
        return Schedule.from_alpha_bars(((r - r_T) / (r_0 - r_T) * r_0).square())  # in this order, both ends are exact


@contextlib.contextmanager
def _distinct_levels(T: int) -> Iterator[None]:
    """Turn the refusal of a table into words about the options. Raises `ValueError`."""
    try:
        yield
    except ValueError:
        raise ValueError(
            f"with these options, some of the {T} noise levels are equal to their neighbours; "
            "take a narrower range or fewer timesteps"
        ) from None
