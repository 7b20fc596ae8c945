"""The Frechet distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftool import Metric

if TYPE_CHECKING:
    from difftool import Score, Sets


class Frechet(Metric, name="fid"):
    """The Frechet distance (Heusel et al., 2017), also extrapolated to infinitely many samples.

    Its bias depends on the number of samples: compare values of one number alone, or `fid-infinity` (Chong & Forsyth,
    2020), which there is from four samples and four data for each feature. With fewer than one, neither says much.
    """

    def measure(self, sets: Sets) -> Sequence[Score]:
        from difftool import Score
        from difftool_plugins.metrics.checks import checked
        from difftool_plugins.metrics.frechet import frechet_in_the_limit, frechet_with_error, rotated

        x, y = rotated(*checked(sets))
        value, error = frechet_with_error(x, y)
        scores = [Score(name="fid", value=value, n=len(x), error=error)]
        limit = frechet_in_the_limit(x, y, sets.generator("parts"))
        if limit is not None:  # it has at most twice the variance of second order, as the error above has
            scores.append(Score(name="fid-infinity", value=limit, n=len(x), error=error))
        return scores
