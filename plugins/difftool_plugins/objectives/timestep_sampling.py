"""Distributions of the noise levels in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftool import TimestepSampling, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import ObjectiveSpec


class Uniform(TimestepSampling, name="uniform"):
    """Every level as often (Ho et al., 2020, algorithm 1)."""

    first: int = option(default=0, ge=0, le=100_000, help="first level to draw; 1 leaves out the cleanest")

    def density(self, spec: ObjectiveSpec) -> Tensor:
        if self.first >= len(spec.schedule):
            raise ValueError(f"first: must be below the number of levels, {len(spec.schedule)}, not {self.first}")
        density = spec.schedule.alpha.new_ones(len(spec.schedule))
        density[: self.first] = 0.0
        return density


class LogNormal(TimestepSampling, name="log-normal"):
    """ln(sigma/alpha) is normally distributed (Karras et al., 2022, table 1)."""

    mean: float = option(default=-1.2, ge=-20, le=20, help="mean of ln(sigma/alpha)")
    std: float = option(default=1.2, ge=0.01, le=100, help="its standard deviation")

    def density(self, spec: ObjectiveSpec) -> Tensor:
        theta = spec.schedule.theta
        # A level stands for all that lies nearer to it than to its neighbours. Borders lie halfway in the angle theta,
        # in which schedules interpolate, so that they are finite even next to a level without signal.
        borders = ((theta[1:] + theta[:-1]) / 2).tan().log()
        return masses(borders, self.mean, self.std)


class LogitNormal(TimestepSampling, name="logit-normal"):
    """The logit of t/T, from 0 (clean) to 1 (noise), is normally distributed (Esser et al., 2024, eq. 19)."""

    mean: float = option(default=0.0, ge=-20, le=20, help="mean of the logit: above 0, more noise")
    std: float = option(default=1.0, ge=0.01, le=100, help="its standard deviation")

    def density(self, spec: ObjectiveSpec) -> Tensor:
        T, ones = len(spec.schedule), spec.schedule.alpha.new_ones(len(spec.schedule) - 1)
        return masses((ones.cumsum(0) / T).logit(), self.mean, self.std)


def masses(borders: Tensor, mean: float, std: float) -> Tensor:
    """Return the probability between neighbouring borders under a normal distribution; the outermost hold its tails."""
    import torch

    below = torch.special.ndtr((borders - mean) / std)
    ends = below.new_tensor([0.0, 1.0])
    return torch.cat([ends[:1], below, ends[1:]]).diff().clamp(min=0.0)
