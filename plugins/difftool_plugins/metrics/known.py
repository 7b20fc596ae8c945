"""Samples of data whose distribution is known, measured against the distribution itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftool import Metric, option

if TYPE_CHECKING:
    from difftool import Score, Sets

MOST_NUMBERS = 2**24
"""The largest number of values that are drawn."""


class Known(Metric, name="known"):
    """The distance of samples from a known mixture of Gaussians.

    `known-density`: how far the mean density of samples is from that of true draws, in bits a dimension. `known-modes`:
    the share of samples that is in the wrong mode (total variation). `known-w2`: sliced Wasserstein-2 to fresh draws.
    """

    needs = "items"

    draws: int = option(default=20_000, ge=100, le=10**6, help="number of fresh draws to compare with")

    def measure(self, sets: Sets) -> Sequence[Score]:
        from difftool import Score
        from difftool_plugins.metrics.checks import checked
        from difftool_plugins.metrics.mixture import Gaussians
        from difftool_plugins.metrics.sliced import sliced_w2

        x, _ = checked(sets)
        if sets.held_out is None:
            raise ValueError("no formula is known of these data")
        gaussians = Gaussians.of(sets.held_out)
        n, width = x.shape
        fresh = gaussians.draw(min(self.draws, max(100, MOST_NUMBERS // width)), sets.generator("fresh"))

        parts = gaussians.log_parts(x)
        bits, true_bits = (-part.logsumexp(1) / (width * math.log(2.0)) for part in (parts, gaussians.log_parts(fresh)))
        off = float((bits.mean() - true_bits.mean()).abs())
        off_error = math.sqrt(float(bits.var()) / n + float(true_bits.var()) / len(fresh))

        shares = parts.softmax(1)  # of each sample in each mode: where modes overlap, it belongs to several
        excess = shares.mean(0) - 1 / len(gaussians.means)
        modes_error = float((0.5 * shares @ excess.sign()).std()) / math.sqrt(n)

        w2, w2_error = sliced_w2(x, fresh, 200, sets.generator("directions"))
        return [
            Score(name="known-density", value=off, n=n, error=off_error, unit="bits/dim"),
            Score(name="known-modes", value=0.5 * float(excess.abs().sum()), n=n, error=modes_error),
            Score(name="known-w2", value=w2, n=n, error=w2_error),
        ]
