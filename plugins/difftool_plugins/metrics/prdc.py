"""Precision, recall, density and coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftool import Metric, option

if TYPE_CHECKING:
    from difftool import Score, Sets

NAMES = ("precision", "recall", "density", "coverage")
SPLITS = 5
"""The number of cuts into halves for the error bars, each of which takes half as long as the scores themselves."""


class PRDC(Metric, name="prdc"):
    """Precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020).

    Precision and density tell how many samples are like data, recall and coverage how much of the data has samples like
    it. All of them depend on the number of samples and data.
    """

    k: int = option(default=5, ge=1, le=1000, help="nearest neighbour that the ball around an item reaches")

    def measure(self, sets: Sets) -> Sequence[Score]:
        import torch

        from difftool import Score
        from difftool_plugins.metrics.checks import checked, halves_error
        from difftool_plugins.metrics.manifolds import prdc

        x, y = checked(sets, 2 * (self.k + 1))
        values = prdc(x, y, self.k)
        errors = halves_error(lambda a, b: prdc(a, b, self.k), x, y, sets.generator("halves"), SPLITS)
        # shares of 0 and 1 may be the same in all halves, and still are known only to within one item
        counts = torch.tensor([len(x), len(y), len(x), len(y)], dtype=torch.float64)
        shares = (values.clamp(max=1.0) * counts + 1) / (counts + 2)
        errors = torch.maximum(errors, (shares * (1 - shares) / counts).sqrt())
        return [
            Score(name=name, value=value, n=len(x), error=error, better="higher")
            for name, value, error in zip(NAMES, values.tolist(), errors.tolist(), strict=True)
        ]
