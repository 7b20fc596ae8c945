"""A known mixture of Gaussians in model units: its density, its components, and draws from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool_plugins.oracles.exact import in_model_units
from difftool_plugins.oracles.mixture import squared_distances

if TYPE_CHECKING:
    from difftool import Samples

PAIRS = 2**22
"""The number of pairs of a vector and a component that are looked at once."""


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Gaussians with equal weights."""

    means: Tensor
    """(K, D) float64."""
    std: Tensor
    """(D,) float64, of each coordinate."""

    @classmethod
    def of(cls, samples: Samples) -> Gaussians:
        """Return the distribution of data in model units. Raises `ValueError` unless it is known and has a density."""
        mixture = samples.mixture
        if mixture is None:
            raise ValueError("no formula is known of these data; only points such as gaussian-mixture have one")
        if mixture.std == 0:
            raise ValueError("the data lie at single points, which have no density")
        means = in_model_units(mixture.means, samples)
        scale = torch.tensor(samples.scale, dtype=torch.float64).view(-1, *(1,) * (means.ndim - 2))
        return cls(means.flatten(1), (mixture.std / scale).expand(means.shape[1:]).flatten())

    def log_parts(self, x: Tensor) -> Tensor:
        """Return the logarithm of weight times density (N, K) of each component at vectors (N, D)."""
        size = max(1, PAIRS // len(self.means))
        squares = [squared_distances(rows.double() / self.std, self.means / self.std) for rows in torch.split(x, size)]
        constant = self.std.log().sum() + 0.5 * len(self.std) * math.log(2 * math.pi) + math.log(len(self.means))
        return -0.5 * torch.cat(squares) - constant

    def draw(self, n: int, random: torch.Generator) -> Tensor:
        """Return n vectors (n, D) of the distribution."""
        chosen = self.means[torch.randint(len(self.means), (n,), generator=random)]
        return chosen + self.std * torch.randn(chosen.shape, dtype=torch.float64, generator=random)
