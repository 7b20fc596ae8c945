"""Laws of prediction types."""

from __future__ import annotations

import math

import torch

from difftool.components import Prediction
from difftool.diffusion.prediction import check, estimate
from difftool.specs import ObjectiveSpec
from difftool.testing.known import TABLES
from difftool.testing.laws import Broken

ROUNDING = 1e-6
"""Of a round trip in float64; a level that almost leaves x_0 unknown costs digits."""


def tells_data_and_noise(prediction: Prediction) -> str:
    """From the right answer, a x_0 + b eps, x_0 and eps come back at every level of each table that it does not refuse,
    and it takes one table at least."""
    x_0, eps = (torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2))
    taken, worst = [], 0.0
    for name, table in TABLES.items():
        spec = ObjectiveSpec(schedule=table)
        try:
            check(prediction, spec)
        except ValueError:
            continue
        taken.append(name)
        for level in table:
            a, b = prediction.coefficients(level, spec)
            x_t = level.alpha * x_0 + level.sigma * eps
            found = estimate(prediction, a * x_0 + b * eps, x_t, level, spec)
            # an error counts by what it does to x_t
            gap = level.alpha * (found.x_0 - x_0).abs().max() + level.sigma * (found.eps - eps).abs().max()
            worst = max(worst, float(gap) / level.norm)
    if not taken:
        raise Broken(f"it leaves x_0 or eps unknown somewhere on each of {', '.join(TABLES)}")
    if not worst <= ROUNDING:
        raise Broken(f"x_0 and eps come back {worst:.2g} off; at most {ROUNDING:g} is rounding")
    return f"{worst:.1g} off, on {', '.join(taken)}"


def scales_the_input(prediction: Prediction) -> str:
    """`input_scale` is finite and above 0 at every level."""
    for name, table in TABLES.items():
        spec = ObjectiveSpec(schedule=table)
        for level in table:
            if not 0.0 < (scale := prediction.input_scale(level, spec)) < math.inf:
                raise Broken(f"level {level.t:.0f} of {name}: the scale is {scale}")
    return ", ".join(TABLES)


LAWS = (tells_data_and_noise, scales_the_input)
