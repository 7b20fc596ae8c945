"""Precision, recall, density and coverage, by the distances to the k-th nearest neighbours.

The ball of a vector reaches to the k-th nearest other vector of its own set. All pairs are looked at block by block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from difftool import nearest, square_blocks


def prdc(x: Tensor, y: Tensor, k: int) -> Tensor:
    """Return precision, recall, density and coverage (4,) float64 of samples (N, D) against data (M, D).

    Precision is the share of samples in the ball of any datum, and recall the share of data in the ball of any sample
    (Kynkaanniemi et al., 2019, eq. 1 and 2). Density is the mean number of data whose ball a sample is in, divided by
    k, and coverage the share of data whose ball holds a sample (Naeem et al., 2020, eq. 3 and 4).
    """
    n, m = len(x), len(y)
    reach_x, reach_y = (nearest(one, one, k, others=True)[0][:, -1].square() for one in (x, y))
    balls_around = torch.zeros(n, dtype=torch.int64)  # each sample, of data
    recalled, covered = torch.zeros(m, dtype=torch.bool), torch.zeros(m, dtype=torch.bool)
    for i, j, squares in square_blocks(x, y):
        inside = squares <= reach_y[j]
        balls_around[i] += inside.sum(1)
        covered[j] |= inside.any(0)
        recalled[j] |= (squares <= reach_x[i, None]).any(0)
    shares = [(balls_around > 0).sum() / n, recalled.sum() / m, balls_around.sum() / (k * n), covered.sum() / m]
    return torch.stack(shares).double()
