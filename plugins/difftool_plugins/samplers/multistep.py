"""Linear multistep methods: higher order from estimates that are there anyway, with steps of any size.

The probability-flow ODE is used in two forms, each an integral over the step from t to s (see `equations`):

    x_s/norm_s  = x_t/norm_t  + int v dtheta                  (Salimans & Ho, 2022, app. D)
    x_s/sigma_s = x_t/sigma_t + int e^lambda x_0 dlambda      (Lu et al., 2022, DPM-Solver++, eq. 8)

A multistep method replaces the integrand, v or x_0, by the polynomial through its last values, and integrates that
exactly; in long steps it is of lower order (see `usable_nodes`). Nodes are measured in steps: u = 0 at t, 1 at s, and
below 0 in the past.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from difftool_plugins.samplers.equations import bounded_euler_step, decay, log_step, velocity

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, Estimate, Level, Step

    History = Sequence[tuple[Level, Estimate]]
    Update = Callable[[Tensor, Level, Level, History], Tensor]

MAX_STEP = 1.0
"""The longest step in lambda over which a polynomial is extrapolated. From noise to data x_0 changes within a few units
of lambda, so that a line over a longer step would lead beyond the data."""

MAX_ANGLE = 0.2
"""The longest step in theta for which that does not matter: near both ends, long steps in lambda are short there."""

MAX_GROWTH = 2.0
"""The longest extrapolation of a polynomial, in distances between its nodes."""

SHORT_STEP, SHORT_GROWTH = 0.75, 5.0
"""The longest step in lambda over which a line may be extrapolated further, and how far. The spacing `trailing` rounds
levels to rows of the table: with hundreds of steps, a step of two rows follows one of a single row."""

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
    d = s.theta - t.theta
    nodes = [(level.theta - t.theta) / d for level, _ in history]
    h = log_step(t, s)
    usable = usable_nodes(nodes, h if -d > MAX_ANGLE else min(h, MAX_STEP))
    V = integral([nodes[i] for i in usable], [velocity(history[i][1], history[i][0]) for i in usable], plain_moments)
    return bounded_euler_step(x, V, t, s)


def exponential_update(x: Tensor, t: Level, s: Level, history: History) -> Tensor:
    """Return x_s = (sigma_s/sigma_t) x_t + alpha_s D, exact if x_0 is the polynomial in lambda through the estimates.

    D is the integral of h e^(-h (1 - u)) x_0(u) over the step, and the first estimate is at t.
    """
    h = (s.log_snr - t.log_snr) / 2  # lambda is half the log-SNR
    nodes = [0.0, *((level.log_snr - t.log_snr) / (2 * h) for level, _ in history[1:])]
    usable = usable_nodes(nodes, h)
    D = integral([nodes[i] for i in usable], [history[i][1].x_0 for i in usable], partial(exponential_moments, h))
    return s.sigma / t.sigma * x + s.alpha * D


def integral(nodes: Sequence[float], values: Sequence[Tensor], moments: Callable[[int], Sequence[float]]) -> Tensor:
    """Return the integral over the step of the polynomial through the values at the nodes.

    `moments(count)` gives the integrals of 1, u, u^2, ... under the weight function.
    """
    weights = quadrature(nodes, moments(len(nodes)))
    return sum((weight * value for weight, value in zip(weights[1:], values[1:], strict=True)), weights[0] * values[0])


def usable_nodes(nodes: Sequence[float], h: float) -> list[int]:
    """Return the indices of the nodes to put a polynomial through, in a step of h in lambda.

    The first node, u = 0, is always among them. If the step is long, no node in the past is: extrapolating overshoots,
    while u = 1, where a correction has an estimate, is always usable. Left out too are nodes that are not finite (a
    level without signal has no place on the axis of lambda), and those too close to another: where steps grow suddenly,
    as with the spacing `leading`, a line through two neighbours overshoots.
    """
    usable = [0]
    for i, node in enumerate(nodes[1:], start=1):
        if not math.isfinite(node) or (node < 0.0 and h > MAX_STEP):
            continue
        growth = SHORT_GROWTH if h <= SHORT_STEP and usable == [0] else MAX_GROWTH
        if abs(node - nodes[usable[-1]]) * growth >= 1.0:
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
