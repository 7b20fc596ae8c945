"""The laws of what a network is trained for: predictions, loss weightings and time densities."""

from __future__ import annotations

import math

import torch

from difftool.components import Prediction, TimestepSampling, Weighting
from difftool.diffusion.prediction import check, estimate
from difftool.specs import ObjectiveSpec
from difftool.testing.known import TABLES
from difftool.testing.laws import Failed, require
from difftool.training.loss import distribution

ROUNDING = 1e-6
"""Largest error of a round trip in float64; where the output hardly depends on x_0, digits are lost."""


def recovers_data_and_noise(prediction: Prediction) -> str:
    """From the exact output, a x_0 + b eps, x_0 and eps are recovered at every level of each schedule that the
    prediction accepts. It accepts at least one of three."""
    x_0, eps = (torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2))
    accepted, worst = [], 0.0
    for name, table in TABLES.items():
        spec = ObjectiveSpec(schedule=table)
        try:
            check(prediction, spec)
        except ValueError:
            continue
        accepted.append(name)
        for level in table:
            a, b = prediction.coefficients(level, spec)
            x_t = level.alpha * x_0 + level.sigma * eps
            found = estimate(prediction, a * x_0 + b * eps, x_t, level, spec)
            # errors are weighted by their effect on x_t
            error = level.alpha * (found.x_0 - x_0).abs().max() + level.sigma * (found.eps - eps).abs().max()
            worst = max(worst, float(error) / level.norm)
    require(accepted, f"it leaves x_0 or eps unknown at some level of each of {', '.join(TABLES)}")
    require(worst <= ROUNDING, f"x_0 and eps are {worst:.2g} off; at most {ROUNDING:g} is rounding")
    return f"{worst:.1g} off, on {', '.join(accepted)}"


def has_a_positive_input_scale(prediction: Prediction) -> str:
    """`input_scale` is finite and positive at every level of three schedules."""
    for name, table in TABLES.items():
        spec = ObjectiveSpec(schedule=table)
        for level in table:
            if not 0.0 < (scale := prediction.input_scale(level, spec)) < math.inf:
                raise Failed(f"level {level.t:.0f} of {name}: the scale is {scale}")
    return ", ".join(TABLES)


PREDICTION_LAWS = (recovers_data_and_noise, has_a_positive_input_scale)


def weights_every_level(weighting: Weighting) -> str:
    """For the plain loss of eps and of x_0, it gives every level of three schedules a float64 weight that is finite and
    not negative, and some level a positive one."""
    for name, table in TABLES.items():
        spec = ObjectiveSpec(schedule=table)
        for loss, native in (("eps", table.snr), ("x_0", torch.ones_like(table.snr))):
            weight = weighting.weight(native.clamp_min(1e-12), spec)
            if weight.shape != native.shape or weight.dtype != torch.float64:
                raise Failed(f"{name}, {loss}: weights are {tuple(weight.shape)} {weight.dtype}, not (T,) float64")
            low, high = float(weight.min()), float(weight.max())
            if not bool(weight.isfinite().all()) or low < 0 or not high > 0:
                raise Failed(f"{name}, {loss}: weights reach from {low:.3g} to {high:.3g}")
    return ", ".join(TABLES)


WEIGHTING_LAWS = (weights_every_level,)


def is_a_distribution(sampling: TimestepSampling) -> str:
    """Its weights of the levels of three schedules are finite and not negative, and their sum is positive."""
    for name, table in TABLES.items():
        try:
            distribution(sampling, ObjectiveSpec(schedule=table))
        except ValueError as error:
            raise Failed(f"{name}: {error}") from None
    return ", ".join(TABLES)


TIMESTEP_SAMPLING_LAWS = (is_a_distribution,)
