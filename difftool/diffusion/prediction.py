"""The algebra of prediction types: a network predicts a x_0 + b eps, given x_t = alpha x_0 + sigma eps.

These are two linear equations. Their determinant alpha b - sigma a tells whether the output is enough to know x_0 and
eps, and how a squared error of the output weighs in x_0 space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.diffusion.estimate import Estimate
from difftool.diffusion.schedule import CLEAN
from difftool.specs import ObjectiveSpec

if TYPE_CHECKING:
    from difftool.components import Prediction
    from difftool.diffusion.schedule import Level

LARGEST_GAIN = 4.0
"""The first sampling step may multiply an error of the network by this factor without a warning."""
SINGULAR = 1e-12
"""A determinant below this fraction of the level's norm counts as zero."""


def determinant(level: Level, a: float, b: float) -> float:
    """Return alpha b - sigma a."""
    return level.alpha * b - level.sigma * a


def estimate(
    prediction: Prediction,
    output: Tensor,
    x_t: Tensor,
    level: Level,
    spec: ObjectiveSpec,
    variance_fraction: Tensor | None = None,
) -> Estimate:
    """Solve both equations for x_0 and eps, where output = a x_0 + b eps and x_t = alpha x_0 + sigma eps."""
    a, b = prediction.coefficients(level, spec)
    det = determinant(level, a, b)
    x_0 = (b / det) * x_t - (level.sigma / det) * output
    eps = (level.alpha / det) * output - (a / det) * x_t
    return Estimate(x_0, eps, variance_fraction)


def tables(prediction: Prediction, spec: ObjectiveSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Return (a, b, determinant) at every level of the schedule, each float64 (T,)."""
    rows = [(*ab, determinant(level, *ab)) for level in spec.schedule for ab in [prediction.coefficients(level, spec)]]
    a, b, det = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return a, b, det


def native_weight(det: Tensor, sigma: Tensor) -> Tensor:
    """Return the weight in x_0 space of a squared error of the output, (det/sigma)^2.

    An error e of x_0 is an error e det/sigma of the output.
    """
    return (det / sigma).square()


def first_step_gain(prediction: Prediction, spec: ObjectiveSpec) -> float:
    """Return the factor by which DDIM's first step, from the last level to the next, multiplies errors of the output.

    Where hardly any signal is left, an error of eps becomes one of x_0 that is sigma/alpha times as large. A small step
    takes most of that back, but not one over which alpha grows many times.
    """
    schedule, last = spec.schedule, len(spec.schedule) - 1
    return step_gain(prediction, spec, schedule[last], schedule[last - 1] if last else CLEAN)


def step_gain(prediction: Prediction, spec: ObjectiveSpec, t: Level, s: Level) -> float:
    """Return the factor by which a step of DDIM from level t to level s multiplies errors of the output."""
    # of s.alpha x_0 + s.sigma eps, this much comes from the output; the rest comes from x_t, which has no error
    return abs(determinant(t, s.alpha, s.sigma) / determinant(t, *prediction.coefficients(t, spec)))


def check(prediction: Prediction, spec: ObjectiveSpec) -> None:
    """Raise `ValueError` if the output leaves x_0 or eps unknown at some level of the schedule."""
    _, _, det = tables(prediction, spec)
    schedule = spec.schedule
    undefined = (det.abs() <= SINGULAR * torch.hypot(schedule.alpha, schedule.sigma)).nonzero()
    if len(undefined):
        t = int(undefined[0])
        level = schedule[t]
        raise ValueError(
            f"at level {t} (alpha {level.alpha:g}, sigma {level.sigma:g}) it leaves "
            f"{'x_0' if level.alpha < level.sigma else 'eps'} unknown; take another --prediction, such as v"
        )
