"""Prediction types: the network predicts a x_0 + b eps, given x_t = alpha x_0 + sigma eps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from difftool import Prediction

if TYPE_CHECKING:
    from difftool import Level, ObjectiveSpec


class EpsPrediction(Prediction, name="eps"):
    """The noise (Ho et al., 2020, eq. 14)."""

    def coefficients(self, level: Level, spec: ObjectiveSpec) -> tuple[float, float]:
        return 0.0, 1.0


class X0Prediction(Prediction, name="x0"):
    """The clean sample."""

    def coefficients(self, level: Level, spec: ObjectiveSpec) -> tuple[float, float]:
        return 1.0, 0.0


class VPrediction(Prediction, name="v"):
    """The velocity c eps - s x_0 in the normalised frame, c = alpha/norm, s = sigma/norm (Salimans & Ho, 2022)."""

    def coefficients(self, level: Level, spec: ObjectiveSpec) -> tuple[float, float]:
        return -level.sigma / level.norm, level.alpha / level.norm


class FlowPrediction(Prediction, name="flow"):
    """The velocity eps - x_0 of straight paths from noise to data (Lipman et al., 2023; Liu et al., 2023)."""

    def coefficients(self, level: Level, spec: ObjectiveSpec) -> tuple[float, float]:
        return -1.0, 1.0


class MeanPrediction(Prediction, name="mean"):
    """The mean of the posterior q(x_s | x_t, x_0), s one level cleaner than t (Ho et al., 2020, section 3.2).

    It is here for comparison: as in the paper's ablation it learns poorly, since x_0 hardly moves the mean. It does not
    suit the schedule ve.
    """

    def coefficients(self, level: Level, spec: ObjectiveSpec) -> tuple[float, float]:
        t, s = level, spec.schedule.at(level.t - 1.0 if level.t > 0.0 else -1.0)
        q = t.alpha * s.sigma / (s.alpha * t.sigma)
        # the mean is s.alpha (1 - q^2) x_0 + q (s.sigma/t.sigma) x_t, where x_t = t.alpha x_0 + t.sigma eps
        return s.alpha * (1 - q * q) + q * s.sigma * t.alpha / t.sigma, q * s.sigma


class EDMPrediction(Prediction, name="edm"):
    """EDM's preconditioning (Karras et al., 2022, table 1): minus the velocity of data scaled to unit variance."""

    def coefficients(self, level: Level, spec: ObjectiveSpec) -> tuple[float, float]:
        sd, scale = spec.sigma_data, self.input_scale(level, spec)
        return level.sigma / sd * scale, -level.alpha * sd * scale

    def input_scale(self, level: Level, spec: ObjectiveSpec) -> float:
        return 1.0 / math.hypot(level.alpha * spec.sigma_data, level.sigma)
