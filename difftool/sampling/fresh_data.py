"""Fresh data, which samples are compared with: the sliced Wasserstein-2 distance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from difftool.components import Dataset
from difftool.data.projections import Projections, wasserstein_2_squared
from difftool.data.samples import Samples
from difftool.data.scaling import Scaling
from difftool.plugins.build import load_samples
from difftool.rng import generator, permutation

DIRECTIONS, SETS = 200, 5
"""Number of projections, and of sets of data that samples are compared with."""
FRESH = (1_000_001, 1_000_002)
"""Seeds of the data that samples and data are compared with; no source is likely to have used them."""


class FreshData:
    """Sets of data that no source was made from, projected and sorted, to compare samples with."""

    def __init__(self, sets: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Take pairs of sets (N, *shape), all of one size, in model units; the two of a pair share no item."""
        width = math.prod(sets[0].shape[1:])
        self.project = Projections(width, DIRECTIONS, generator(0, "directions"))
        self.count = len(sets[0])
        self._sorted = [self.project(items) for items in sets]
        self.data_distance = statistics.median(
            _distance(self.project(other), projected) for other, projected in zip(others, self._sorted, strict=True)
        )
        """The distance between two sets of data."""

    @classmethod
    def of(cls, dataset: Dataset, scaling: Scaling, label: int | None, count: int) -> FreshData:
        """Load sets of about `count` items from the dataset, generated anew if it is random. Raises `DifftoolError`."""
        a, b = (load_samples(dataset, seed) for seed in FRESH)
        indices_a, indices_b = (of_class(samples, label) for samples in (a, b))
        n = min(len(indices_a), len(indices_b))
        size = min(count, max(1, n // 2))
        # from both ends of one order, so that data that are the same for every seed share no item either
        order = permutation(n, "fresh")
        parts = [slice(i * size, (i + 1) * size) for i in range(max(1, min(SETS, n // (2 * size))))]

        def take(samples: Samples, indices: Tensor) -> Tensor:
            return scaling.to_model(samples.take_items(indices.tolist()))

        sets = [take(a, indices_a[order[part]]) for part in parts]
        others = [take(b, indices_b[order.flip(0)[part]]) for part in parts]
        return cls(sets, others)

    def distance(self, x: Tensor) -> float:
        """Return the sliced Wasserstein-2 distance (Bonneel et al., 2015): the median over the sets."""
        projected = self.project(x[: self.count])
        return statistics.median(_distance(projected, items) for items in self._sorted)


def _distance(x: Tensor, y: Tensor) -> float:
    """Return the distance of sorted projections (N, L) and (M, L)."""
    return float(wasserstein_2_squared(x, y).mean().sqrt())


def rms(x: Tensor) -> float:
    """Return the root of the mean square; NaN if x is not finite."""
    value = float(x.double().square().mean().sqrt())
    return value if math.isfinite(value) else math.nan


def of_class(samples: Samples, label: int | None) -> Tensor:
    """Return the indices of the items of a class, or of all items."""
    if label is None or samples.labels is None:
        return torch.arange(len(samples))
    return (samples.labels == label).nonzero().flatten()
