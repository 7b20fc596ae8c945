"""The likelihood of held-out items, in bits a dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftool import Metric, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Score, Sets


class Likelihood(Metric, name="likelihood"):
    """The negative log-likelihood of held-out items under their conditions, in bits a dimension.

    `bits-per-dim-vb` is the variational bound (Ho et al., 2020; Kingma et al., 2021), and `bits-per-dim-flow` comes
    from the probability flow (Song et al., 2021). Of 8-bit pixels, both are of the whole numbers; of other data, of the
    density in their own units, and may be negative.
    """

    needs = "model"

    items: int = option(default=256, ge=2, le=10**6, help="number of held-out items, picked at random")
    levels: int = option(default=100, ge=1, le=10**6, help="noise levels drawn for the bound of each item")
    steps: int = option(default=50, ge=1, le=10_000, help="steps of the flow, four network calls each")

    def measure(self, sets: Sets) -> Sequence[Score]:
        from difftool_plugins.metrics.bound import bound
        from difftool_plugins.metrics.flow import flow
        from difftool_plugins.metrics.held_out import HeldOut

        items = HeldOut.of(sets, self.items)
        by_bound = items.bits(bound(items, self.levels, sets), density=items.pixels is None)
        by_flow = items.bits(flow(items, self.steps, sets), density=True)
        return [score_of("bits-per-dim-vb", by_bound), score_of("bits-per-dim-flow", by_flow)]


def score_of(name: str, bits: Tensor) -> Score:
    """Return the mean over items (N,), with the standard error of items drawn anew."""
    from difftool import Score

    error = float(bits.std()) / math.sqrt(len(bits))
    return Score(name=name, value=float(bits.mean()), n=len(bits), error=error, unit="bits/dim")
