"""The sets that a metric compares, and the scores that it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from difftool.rng import generator

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.data.samples import Samples
    from difftool.sampling.source import Source


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of a metric."""

    name: str
    """A name such as `kid`, unique among the scores of all metrics of an evaluation."""
    value: float
    n: int
    """The number of samples, or of items, that it was measured on."""
    error: float | None = None
    """One standard error of the value, or None if it is exact or unknown."""
    better: Literal["lower", "higher"] = "lower"
    unit: str = ""
    """The unit, such as `bits/dim`, if there is one."""
    floor: float | None = None
    """The value between two halves of the data, which no model beats but by chance. The caller fills it in."""


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Samples, and the data that they are compared with. Fields may be added."""

    samples: Tensor
    """(N, D) float32 on the CPU: features, or for `needs = "items"` the flattened items in model units."""
    reference: Tensor
    """(M, D), the same of the data."""
    model: Source | None = None
    """The source of the samples, or None where two halves of the data are compared."""
    held_out: Samples | None = None
    """The items that `needs = "model"` measures the model on, in data units. Their `mixture` is the distribution of the
    data, if it is known."""
    seed: int = 0

    def generator(self, *parts: int | str) -> torch.Generator:
        """Return a CPU generator for (seed, "metric", *parts), for bootstraps and subsets."""
        return generator(self.seed, "metric", *parts)
