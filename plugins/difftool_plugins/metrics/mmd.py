"""The maximum mean discrepancies: with the cubic kernel, and with Gaussian ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftool import Metric, option

if TYPE_CHECKING:
    from difftool import Score, Sets

MEASURED = 1_000
"""The number of data whose distances give the median."""


class KernelInceptionDistance(Metric, name="kid"):
    """The kernel distance (Binkowski et al., 2018): the unbiased squared MMD with the kernel (x.y/D + 1)^3.

    Unlike a Frechet distance it is unbiased for every number of samples, and may be negative. It is the mean over all
    subsets, not over some of them, and so is the error bar.
    """

    def measure(self, sets: Sets) -> Sequence[Score]:
        from difftool import Score
        from difftool_plugins.metrics.checks import checked
        from difftool_plugins.metrics.kernels import FEWEST, cubic, mmd_squared

        x, y = checked(sets, FEWEST)
        value, error = mmd_squared(cubic, x, y)
        return [Score(name=self.name, value=value, n=len(x), error=error)]


class MaximumMeanDiscrepancy(Metric, name="mmd"):
    """The unbiased squared maximum mean discrepancy (Gretton et al., 2012) with the mean of Gaussian kernels.

    Their bandwidths are multiples of the median distance between data, so that all samples that are compared with the
    same data are compared by the same kernel.
    """

    bandwidths: tuple[float, ...] = option(
        default=(0.25, 0.5, 1.0, 2.0, 4.0), ge=1e-3, le=1e3, help="multiples of the median distance between data"
    )

    def __post_init__(self) -> None:
        if not self.bandwidths:
            raise ValueError("bandwidths: must have at least one")

    def measure(self, sets: Sets) -> Sequence[Score]:
        import torch

        from difftool import Score
        from difftool_plugins.metrics.checks import checked
        from difftool_plugins.metrics.kernels import FEWEST, gaussians, median_distance, mmd_squared

        x, y = checked(sets, FEWEST)
        chosen = torch.randperm(len(y), generator=sets.generator("median"))[:MEASURED]
        median = median_distance(y[chosen])
        if median == 0:
            raise ValueError("half of the data are alike, so that no bandwidth suits them")
        value, error = mmd_squared(gaussians(median * torch.tensor(self.bandwidths, dtype=torch.float64)), x, y)
        return [Score(name=self.name, value=value, n=len(x), error=error)]
