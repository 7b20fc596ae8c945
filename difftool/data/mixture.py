"""A distribution known in closed form: what a dataset may say of itself, for oracles to use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Gaussians of equal weight that share the standard deviation of each coordinate. In data units, as items are."""

    means: Tensor
    """(K, *shape), float64."""
    std: float
    """Of every coordinate of every component; 0 leaves the means alone."""
    labels: Tensor | None = None
    """(K,) int64: the class each component belongs to."""

    def __post_init__(self) -> None:
        if len(self.means) == 0 or self.std < 0:
            raise ValueError("a mixture needs a component, and a standard deviation that is not negative")
        if self.labels is not None and (self.labels.dtype != torch.int64 or len(self.labels) != len(self.means)):
            raise ValueError(f"a mixture of {len(self.means)} components needs as many int64 labels")
