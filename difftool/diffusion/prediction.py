"""The algebra of prediction types: a network is asked for a x_0 + b eps, given x_t = alpha x_0 + sigma eps.

Two linear equations: their determinant alpha b - sigma a tells whether the answer is enough to know x_0 and eps, and
how a squared error of the answer weighs in x_0 space.
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

SINGULAR = 1e-12
"""A determinant below this part of the level's norm is none."""


def determinant(level: Level, a: float, b: float) -> float:
    return level.alpha * b - level.sigma * a


def estimate(
    prediction: Prediction,
    output: Tensor,
    x_t: Tensor,
    level: Level,
    spec: ObjectiveSpec,
    variance_part: Tensor | None = None,
) -> Estimate:
    """x_0 and eps from the network's answer: both equations solved."""
    a, b = prediction.coefficients(level, spec)
    det = determinant(level, a, b)
    return Estimate.linear(
        x_t,
        output,
        x_0=(b / det, -level.sigma / det),
        eps=(-a / det, level.alpha / det),
        variance_part=variance_part,
    )


def tables(prediction: Prediction, spec: ObjectiveSpec) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, determinant) at every level of the schedule, float64 (T,)."""
    rows = [(*ab, determinant(level, *ab)) for level in spec.schedule for ab in [prediction.coefficients(level, spec)]]
    a, b, det = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return a, b, det


def native_weight(det: Tensor, sigma: Tensor) -> Tensor:
    """What a squared error of the answer weighs in x_0 space: an error e of x_0 is one of e det/sigma in the answer."""
    return (det / sigma).square()


def first_step_gain(prediction: Prediction, spec: ObjectiveSpec) -> float:
    """What an error of the network's answer is multiplied by in DDIM's first step, from the last level to the next.

    Where hardly any signal is left, x_0 from eps is off by sigma/alpha times the error of eps. Over even small steps
    that is taken back, but not where alpha grows many times over in the first.
    """
    schedule, last = spec.schedule, len(spec.schedule) - 1
    t, s = schedule[last], schedule[last - 1] if last else CLEAN
    # the state at s, s.alpha x_0 + s.sigma eps, holds so much of the answer; the rest is a part of x_t, which is known
    return abs(determinant(t, s.alpha, s.sigma) / determinant(t, *prediction.coefficients(t, spec)))


def check(prediction: Prediction, spec: ObjectiveSpec) -> None:
    """Raise `ValueError` where the answer would leave x_0 or eps unknown at some level."""
    _, _, det = tables(prediction, spec)
    schedule = spec.schedule
    blind = (det.abs() <= SINGULAR * torch.hypot(schedule.alpha, schedule.sigma)).nonzero()
    if len(blind):
        t = int(blind[0])
        level = schedule[t]
        raise ValueError(
            f"at its level {t} (alpha {level.alpha:g}, sigma {level.sigma:g}) the prediction {prediction.name} leaves "
            f"{'x_0' if level.alpha < level.sigma else 'eps'} unknown; take another --prediction, such as v"
        )
