"""Linear multistep methods: higher order from estimates that are there anyway, with steps of any size.

The probability-flow ODE is used in two forms, each an integral over the step from t to s (see `equations`):

    x_s/norm_s  = x_t/norm_t  + int v dtheta                  (Salimans & Ho, 2022, app. D)
    x_s/sigma_s = x_t/sigma_t + int e^lambda x_0 dlambda      (Lu et al., 2022, DPM-Solver++, eq. 8)

A multistep method replaces the integrand, v or x_0, by the polynomial through its last values, and integrates that
exactly. Nodes are measured in steps: u = 0 at t, 1 at s, and below 0 in the past.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool_plugins.samplers.equations import decay, euler_step, velocity

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Estimate, Level, Step

    History = Sequence[tuple[Level, Estimate]]
    Update = Callable[[Tensor, Level, Level, History], Tensor]

MAX_GROWTH = 2.0
"""The longest extrapolation of a polynomial, in distances between its nodes. With the spacing `trailing`, no step
in lambda is longer than ln 2 / ln 1.5 = 1.71 times the one before, so that second order holds all the way."""

FINE = 0.1
"""The largest sigma/alpha at which data of unit variance look smooth enough to extrapolate to the clean end."""

TERMS = 20
"""Terms of a series in h < 1 that reach the last bit of a float64: 1/20! is 4e-19."""


def multistep(
    update: Update, denoise: Denoise, x: Tensor, levels: Sequence[Level], *, order: int, corrected_steps: int
) -> Iterator[Step]:
    """Predict each step from the last `order` estimates; correct the first `corrected_steps` with the estimate at s.

    The call at the end of a step is the one that the next step begins with, so that a correction costs no call.
    """
    from difftool import Step

    history: deque[tuple[Level, Estimate]] = deque(maxlen=order)
    second, w = second_estimate(levels)
    x_0_second: Tensor | None = None
    estimate = denoise(x, levels[0])
    for step, (t, s) in enumerate(pairwise(levels)):
        history.appendleft((t, estimate))
        if t is second:
            x_0_second = estimate.x_0
        if s.sigma > 0.0:
            x_t = x
            x = update(x_t, t, s, [*history])
            next_estimate = denoise(x, s)
            if step < corrected_steps:
                x = update(x_t, t, s, [*history, (s, next_estimate)])
            yield Step(x, s, estimate)
            estimate = next_estimate
        else:
            x = estimate.x_0 if x_0_second is None else estimate.x_0 + w * (estimate.x_0 - x_0_second)
            yield Step(x, s, estimate)


def second_estimate(levels: Sequence[Level]) -> tuple[Level | None, float]:
    """Return the level of the estimate that refines the last step, and its weight w; None with a coarse spacing.

    Near the clean end the estimates of a smooth density go as a + b sigma^2 (with alpha = 1), so that the last one is
    off by b sigma_t^2, however short the steps before: 2e-4 at sigma 0.01. A second estimate, from a level at least
    twice as noisy, gives b. Its weight is at most 1/3, so that errors of a network do not grow much. Data that are
    points have b = 0 and keep the last estimate.
    """
    *noisier, t = levels[:-1]
    if t.sigma <= FINE * t.alpha:
        for level in reversed(noisier):
            q = decay(level, t)
            if q <= 0.5:
                return level, q**2 / (1 - q**2)
    return None, 0.0


def theta_update(x: Tensor, t: Level, s: Level, history: History) -> Tensor:
    """Return x_s, exact if v is the polynomial in theta through the estimates, of which the first is at t."""
    nodes = [(level.theta - t.theta) / (s.theta - t.theta) for level, _ in history]
    values = [velocity(estimate, level) for level, estimate in history]
    return euler_step(x, integral(nodes, values, plain_moments), t, s)


def exponential_update(x: Tensor, t: Level, s: Level, history: History) -> Tensor:
    """Return x_s = (sigma_s/sigma_t) x_t + alpha_s D, exact if x_0 is the polynomial in lambda through the estimates.

    D is the integral of h e^(-h (1 - u)) x_0(u) over the step, and the first estimate is at t.
    """
    h = (s.log_snr - t.log_snr) / 2  # lambda is half the log-SNR
    nodes = [0.0, *((level.log_snr - t.log_snr) / (2 * h) for level, _ in history[1:])]
    D = integral(nodes, [estimate.x_0 for _, estimate in history], partial(exponential_moments, h))
    return s.sigma / t.sigma * x + s.alpha * D


def integral(nodes: Sequence[float], values: Sequence[Tensor], moments: Callable[[int], Sequence[float]]) -> Tensor:
    """Return the integral over the step of the polynomial through the values at the usable nodes.

    `moments(count)` gives the integrals of 1, u, u^2, ... under the weight function.
    """
    usable = usable_nodes(nodes)
    weights = quadrature([nodes[i] for i in usable], moments(len(usable)))
    return sum((weight * values[i] for weight, i in zip(weights[1:], usable[1:], strict=True)), weights[0] * values[0])


def usable_nodes(nodes: Sequence[float]) -> list[int]:
    """Return the indices of the nodes to put a polynomial through; the first node, u = 0, is always among them.

    Nodes that are not finite are left out (a level without signal has no place on the axis of lambda), and so are nodes
    too close to another: where steps grow suddenly, as with the spacing `leading`, a line through two neighbours
    overshoots.
    """
    usable = [0]
    for i, node in enumerate(nodes[1:], start=1):
        if math.isfinite(node) and abs(node - nodes[usable[-1]]) * MAX_GROWTH >= 1.0:
            usable.append(i)
    return usable


def quadrature(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Return the weight of each node's value in the integral of the polynomial through them all.

    `moments` are the integrals of 1, u, u^2, ... under the weight function, which matters in no other way.
    """
    weights = []
    for j, node in enumerate(nodes):
        basis = [1.0]  # Lagrange's polynomial: 1 at this node, 0 at the others; its coefficients, lowest power first
        for other in (*nodes[:j], *nodes[j + 1 :]):
            shifted = zip([0.0, *basis], [*basis, 0.0], strict=True)  # basis times u, basis times 1
            basis = [(up - other * same) / (node - other) for up, same in shifted]
        weights.append(sum(b * m for b, m in zip(basis, moments, strict=True)))
    return weights


def plain_moments(count: int) -> list[float]:
    """Return the integrals of u^k over 0..1 for k < count."""
    return [1.0 / (k + 1) for k in range(count)]


def exponential_moments(h: float, count: int) -> list[float]:
    """Return the integrals of h e^(-h (1 - u)) u^k over 0..1 for k < count; all are 1 if h is infinite."""
    if h < 1.0:  # the recursion below loses a digit for each power of 1/h
        return [
            h * sum((-h) ** n * math.factorial(k) / math.factorial(k + n + 1) for n in range(TERMS))
            for k in range(count)
        ]
    moments = [-math.expm1(-h)]
    for k in range(1, count):
        moments.append(1.0 - k * moments[-1] / h)  # by parts
    return moments
