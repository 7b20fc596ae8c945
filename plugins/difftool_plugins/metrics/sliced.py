"""The sliced Wasserstein-2 distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftool import Metric, option

if TYPE_CHECKING:
    from difftool import Score, Sets


class SlicedWasserstein(Metric, name="sliced-w2"):
    """The sliced Wasserstein-2 distance (Bonneel et al., 2015): the root mean square over random projections."""

    directions: int = option(default=200, ge=1, le=10_000, help="number of random projections")

    def measure(self, sets: Sets) -> Sequence[Score]:
        import torch

        from difftool import Score

        n = min(len(sets.samples), len(sets.reference))
        directions = torch.randn(sets.samples.shape[1], self.directions, generator=sets.generator("directions"))
        directions /= directions.norm(dim=0)
        x, y = ((each[:n] @ directions).sort(dim=0).values for each in (sets.samples, sets.reference))
        return [Score(name=self.name, value=float((x - y).double().square().mean().sqrt()), n=n)]
