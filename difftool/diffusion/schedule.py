"""The forward process as a table: x_t = alpha_t x_0 + sigma_t eps, t = 0..T-1 from clean to noisy.

Everything is float64 on the CPU. Levels are plain Python floats, so a sampler never waits for a device. For
variance-preserving tables alpha^2 + sigma^2 = 1 and alpha-bar = alpha^2 (Ho et al., 2020, eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from difftool.display import Displayed

LARGEST_SIGNAL_LEFT = 0.01
"""The largest alpha-bar at which the last level still counts as noise."""
TIME_RANGE = 1000.0
"""Networks see time as a float in [0, 1000) for every T."""


@dataclass(frozen=True)
class Level:
    """A noise level, at which x_t = alpha x_0 + sigma eps."""

    t: float
    """Index into the schedule's table, possibly fractional. -1 is the clean end, NaN a level that no table holds."""
    alpha: float
    sigma: float

    @classmethod
    def of(cls, alpha: float, sigma: float) -> Level:
        """Return a level of your own, such as one between two that a sampler was given.

        A denoiser finds its time by its signal-to-noise ratio, and scales x_t to the norm that the table has there.
        """
        return cls(math.nan, alpha, sigma)

    @property
    def theta(self) -> float:
        """Angle between signal and noise, atan2(sigma, alpha): 0 is clean, pi/2 is pure noise."""
        return math.atan2(self.sigma, self.alpha)

    @property
    def norm(self) -> float:
        """Standard deviation of x_t for data of unit variance."""
        return math.hypot(self.alpha, self.sigma)

    @property
    def log_snr(self) -> float:
        """ln(alpha^2 / sigma^2); infinite at the two ends."""
        if self.sigma == 0.0:
            return math.inf
        return 2.0 * (math.log(self.alpha) - math.log(self.sigma)) if self.alpha > 0.0 else -math.inf


CLEAN = Level(t=-1.0, alpha=1.0, sigma=0.0)
"""The last level that a sampler reaches. Denoisers are never called there."""


@dataclass(frozen=True, eq=False)
class Schedule(Displayed):
    """Tables alpha (T,) and sigma (T,), float64 on the CPU, whose signal-to-noise ratio falls strictly.

    Raises `ValueError` for tables that are not of this kind.
    """

    alpha: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        for name, table in (("alpha", self.alpha), ("sigma", self.sigma)):
            if table.dtype != torch.float64 or table.ndim != 1 or table.device.type != "cpu":
                raise ValueError(f"{name} must be a one-dimensional float64 table on the CPU")
            if len(wrong := (~((table >= 0) & torch.isfinite(table))).nonzero()):
                t = int(wrong[0])
                raise ValueError(f"{name} must be finite and not negative, but {name}[{t}] is {float(table[t]):g}")
        if len(self.alpha) != len(self.sigma) or len(self.alpha) == 0:
            raise ValueError("alpha and sigma must be tables of one length, at least 1")
        if len(wrong := (self.theta.diff() <= 0).nonzero()):
            t = int(wrong[0])
            hint = "; is the table reversed?" if len(wrong) == len(self.alpha) - 1 else ""
            raise ValueError(
                "the signal-to-noise ratio must fall strictly from each level to the next, but does not from "
                f"{t} to {t + 1}{hint}"
            )

    @classmethod
    def from_betas(cls, betas: Tensor) -> Schedule:
        """Return a variance-preserving schedule: alpha-bar is the cumulative product of 1 - beta.

        Raises `ValueError` unless every beta lies between 0 and 1.
        """
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if len(wrong := (~((betas > 0) & (betas < 1))).nonzero()):
            t = int(wrong[0])
            raise ValueError(f"every beta must lie strictly between 0 and 1, but beta[{t}] is {float(betas[t]):g}")
        return cls.from_alpha_bars((1.0 - betas).cumprod(0))

    @classmethod
    def from_alpha_bars(cls, alpha_bars: Tensor) -> Schedule:
        """Return a variance-preserving schedule: alpha = sqrt(alpha-bar), sigma = sqrt(1 - alpha-bar)."""
        alpha_bars = torch.as_tensor(alpha_bars, dtype=torch.float64)
        return cls(alpha_bars.sqrt(), (1.0 - alpha_bars).sqrt())

    def __repr__(self) -> str:
        first, last = (float(self.alpha_bars[t]) for t in (0, -1))
        return f"Schedule({len(self)} levels, alpha-bar {first:.4g} to {last:.2g})"

    def __len__(self) -> int:
        return self.alpha.size(0)

    def __getitem__(self, t: int) -> Level:
        """Return the level of table row t."""
        return Level(float(t), float(self.alpha[t]), float(self.sigma[t]))

    def __iter__(self) -> Iterator[Level]:
        """Yield the levels from clean to noisy."""
        for t, (alpha, sigma) in enumerate(zip(self.alpha.tolist(), self.sigma.tolist(), strict=True)):
            yield Level(float(t), alpha, sigma)

    @property
    def theta(self) -> Tensor:
        return torch.atan2(self.sigma, self.alpha)

    @property
    def variance_preserving(self) -> bool:
        return bool(torch.allclose(self.alpha.square() + self.sigma.square(), torch.ones_like(self.alpha), atol=1e-9))

    @property
    def alpha_bars(self) -> Tensor:
        """alpha^2 / (alpha^2 + sigma^2): the fraction of the variance that is signal."""
        return self.alpha.square() / (self.alpha.square() + self.sigma.square())

    @property
    def betas(self) -> Tensor:
        """1 - alpha-bar_t / alpha-bar_{t-1}, with alpha-bar_{-1} = 1."""
        alpha_bars = self.alpha_bars
        return 1.0 - alpha_bars / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])

    @property
    def snr(self) -> Tensor:
        """alpha^2 / sigma^2; infinite where sigma is 0."""
        return self.alpha.square() / self.sigma.square()

    @property
    def log_snr(self) -> Tensor:
        return 2.0 * (self.alpha.log() - self.sigma.log())

    @property
    def prior_std(self) -> float:
        """Standard deviation of x_T, sqrt(alpha_T^2 + sigma_T^2), however much signal is left."""
        return self[len(self) - 1].norm

    @property
    def signal_left(self) -> float | None:
        """alpha-bar of the last level, if it is too large for that level to count as noise; else None."""
        last = float(self.alpha_bars[-1])
        return last if last > LARGEST_SIGNAL_LEFT else None

    def time(self, t: float) -> float:
        """Return the time that a network sees for table index t: t 1000/T, and 0 for levels cleaner than the table."""
        return max(t, 0.0) * TIME_RANGE / len(self)

    def at(self, t: float) -> Level:
        """Return the level at a fractional index in [-1, T-1], where -1 is the clean end.

        The angle theta and the norm are interpolated linearly between rows. Raises `ValueError` for other indices.
        """
        last = len(self) - 1
        if not -1.0 <= t <= last:
            raise ValueError(f"t must lie between -1 and {last}, not {t}")
        low = math.floor(t)
        fraction = t - low
        a = self[low] if low >= 0 else CLEAN
        if fraction == 0.0:
            return a
        b = self[low + 1]
        theta = a.theta + fraction * (b.theta - a.theta)
        norm = a.norm + fraction * (b.norm - a.norm)
        return Level(t, norm * math.cos(theta), norm * math.sin(theta))

    def t_of(self, log_snr: float) -> float:
        """Return the fractional index of the level with this log-SNR, at most T-1.

        Levels cleaner than the table lie between -1 and 0.
        """
        theta = math.atan(math.exp(-0.5 * log_snr)) if log_snr > -1400.0 else math.pi / 2  # exp would overflow
        table = self.theta
        if theta >= float(table[-1]):
            return float(len(self) - 1)
        if theta <= 0.0:
            return -1.0
        high = int(torch.searchsorted(table, torch.tensor(theta, dtype=torch.float64)))
        low_theta, high_theta = float(table[high - 1]) if high else 0.0, float(table[high])
        return high - 1 + (theta - low_theta) / (high_theta - low_theta)
