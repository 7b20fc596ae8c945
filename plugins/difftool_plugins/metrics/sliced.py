"""The sliced Wasserstein-2 distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftool import Metric, option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from difftool import Score, Sets


class SlicedWasserstein(Metric, name="sliced-w2"):
    """The sliced Wasserstein-2 distance (Bonneel et al., 2015): the root mean square over random projections."""

    directions: int = option(default=200, ge=1, le=10_000, help="number of random projections")

    def measure(self, sets: Sets) -> Sequence[Score]:
        from difftool import Score
        from difftool_plugins.metrics.checks import checked

        x, y = checked(sets)
        value, error = sliced_w2(x, y, self.directions, sets.generator("directions"))
        return [Score(name=self.name, value=value, n=len(x), error=error)]


def sliced_w2(x: Tensor, y: Tensor, directions: int, random: torch.Generator) -> tuple[float, float]:
    """Return the sliced Wasserstein-2 distance of sets (N, D) and (M, D), and its standard error.

    The error is that of samples, of data and of directions, all of them drawn anew.
    """
    from difftool import Projections, wasserstein_2_squared
    from difftool_plugins.metrics.checks import halves_error

    project = Projections(x.shape[1], directions, random)
    squares = wasserstein_2_squared(project(x), project(y))
    value = math.sqrt(float(squares.mean()))

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return wasserstein_2_squared(x.sort(dim=0).values, y.sort(dim=0).values).mean(0, keepdim=True).sqrt()

    error = float(halves_error(distance, x.float() @ project.directions, y.float() @ project.directions, random))
    if directions > 1 and value > 0 and x.shape[1] > 1:  # of the root of a mean over directions
        error = math.hypot(error, float(squares.std()) / math.sqrt(directions) / (2 * value))
    return value, error
