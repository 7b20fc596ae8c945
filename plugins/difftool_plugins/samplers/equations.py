"""The quantities of a step from a level t to s, the next, cleaner one; x_t = alpha_t x_0 + sigma_t eps.

Two axes are in use. lambda = ln(alpha/sigma) is infinite at both ends. theta = atan2(sigma, alpha) is finite
everywhere, and along it the normalised state x/norm, norm = sqrt(alpha^2 + sigma^2), moves with the velocity v
(Salimans & Ho, 2022, app. D): all is bounded there on every schedule. In sigma/alpha, the usual choice, Heun's step
explodes where the first level has no signal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Estimate, Level

LONG_ANGLE = 0.5
LONG_STEP = 1.3
"""Steps that are longer than both, in theta and in lambda, are long for Euler's method."""


def decay(t: Level, s: Level) -> float:
    """Return q = alpha_t sigma_s / (alpha_s sigma_t) = e^-h, where h = lambda_s - lambda_t is the step in lambda."""
    return t.alpha * s.sigma / (s.alpha * t.sigma)


def log_step(t: Level, s: Level) -> float:
    """Return h = lambda_s - lambda_t, the step in lambda; infinite from a level without signal, or to the clean end."""
    q = decay(t, s)
    return -math.log(q) if q > 0.0 else math.inf


def ancestral_sigma(t: Level, s: Level) -> float:
    """Return the standard deviation of q(x_s | x_t, x_0), sigma_s sqrt(1 - q^2) (Song et al., 2021, DDIM, eq. 16).

    Between adjacent levels of a variance-preserving schedule its square is beta_t (1 - alpha-bar_s)/(1 - alpha-bar_t).
    """
    return s.sigma * math.sqrt(1 - decay(t, s) ** 2)


def forward_sigma(t: Level, s: Level) -> float:
    """Return the standard deviation of q(x_t | x_s), sigma_t sqrt(1 - q^2), whose mean is (alpha_t/alpha_s) x_s.

    Between adjacent levels of a variance-preserving schedule its square is beta_t (Ho et al., 2020, eq. 2).
    """
    return t.sigma * math.sqrt(1 - decay(t, s) ** 2)


def velocity(estimate: Estimate, level: Level) -> Tensor:
    """Return v = cos(theta) eps - sin(theta) x_0, the derivative of x/norm with respect to theta."""
    return (level.alpha * estimate.eps - level.sigma * estimate.x_0) / level.norm


def euler_step(x: Tensor, v: Tensor, t: Level, s: Level) -> Tensor:
    """Return x_s with x_s/norm_s = x_t/norm_t + (theta_s - theta_t) v."""
    return s.norm * (x / t.norm + (s.theta - t.theta) * v)


def bounded_euler_step(x: Tensor, v: Tensor, t: Level, s: Level) -> Tensor:
    """Return x_s as `euler_step` does, or along the circle of `ddim`'s step if the step is long.

    v is the tangent of that circle. A step of angle d along it makes the state longer by sqrt(1 + d^2): with five steps
    a swiss roll came out half as large again as the data.
    """
    d = s.theta - t.theta
    if -d > LONG_ANGLE and log_step(t, s) > LONG_STEP:
        return s.norm * (math.cos(d) * x / t.norm + math.sin(d) * v)
    return euler_step(x, v, t, s)
