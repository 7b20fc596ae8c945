"""What the samplers share: numbers of a step from t to s, the next, cleaner level; x_t = alpha_t x_0 + sigma_t eps.

Two axes are in use. theta = atan2(sigma, alpha) is finite everywhere, and along it the normalised state x/norm moves
with the velocity v (Salimans & Ho, 2022, app. D). lambda = ln(alpha/sigma) is infinite at both ends, and along it the
state is an integral of the estimates of x_0 with an exponential weight (Lu et al., 2022, DPM-Solver++, eq. 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Estimate, Level, Step

REACH = 2.0
"""How far a polynomial is trusted ahead, in distances between the points it goes through. On a trailing grid no step in
lambda is longer than ln 2 / ln 1.5 = 1.71 of the one before, so that methods of second order keep it all the way."""

FINE = 0.1
"""The largest sigma/alpha from which data of unit variance look smooth enough to extrapolate to the clean end."""

SERIES = 20
"""Terms of a series in h < 1 that reach the last bit of a float64: 1/20! is 4e-19."""


def ratio(t: Level, s: Level) -> float:
    """q = alpha_t sigma_s / (alpha_s sigma_t) = e^-h: the root of the ratio of the two signal-to-noise ratios."""
    return t.alpha * s.sigma / (s.alpha * t.sigma)


def lam(level: Level) -> float:
    """lambda = ln(alpha / sigma), half the log-SNR; -inf without signal."""
    return 0.5 * level.log_snr


def velocity(estimate: Estimate, level: Level) -> Tensor:
    """v = cos(theta) eps - sin(theta) x_0, the derivative of x/norm by theta."""
    return estimate.at(-level.sigma / level.norm, level.alpha / level.norm)


def turn(x: Tensor, v: Tensor, t: Level, s: Level) -> Tensor:
    """Euler's step in theta: the normalised state moves by (theta_s - theta_t) v."""
    return (s.norm / t.norm * x).add_(v, alpha=s.norm * (s.theta - t.theta))


def quadrature(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weight of the value at each node in the integral of the polynomial through them all.

    `moments` are the integrals of 1, u, u^2, ...: whatever the weight function, this is all that matters of it.
    """
    weights = []
    for j, node in enumerate(nodes):
        basis = [1.0]  # Lagrange's polynomial, 1 at this node and 0 at the others, lowest power first
        for other in (*nodes[:j], *nodes[j + 1 :]):
            shifted = zip([0.0, *basis], [*basis, 0.0], strict=True)  # times u, times 1
            basis = [(up - other * same) / (node - other) for up, same in shifted]
        weights.append(sum(b * m for b, m in zip(basis, moments, strict=True)))
    return weights


def plain_moments(count: int) -> list[float]:
    """The integrals of u^k over 0..1 for k < count."""
    return [1.0 / (k + 1) for k in range(count)]


def exponential_moments(h: float, count: int) -> list[float]:
    """The integrals of h e^(-h (1 - u)) u^k over 0..1 for k < count; all 1 where h is infinite."""
    if h < 1.0:  # the recursion below loses a digit for each power of 1/h
        return [
            h * sum((-h) ** n * math.factorial(k) / math.factorial(k + n + 1) for n in range(SERIES))
            for k in range(count)
        ]
    moments = [-math.expm1(-h)]
    for k in range(1, count):
        moments.append(1.0 - k * moments[-1] / h)  # by parts
    return moments


def useful(nodes: Sequence[float]) -> list[int]:
    """Which of the nodes to draw a polynomial through; 0 is here, 1 is the end of the step, the past is below 0.

    Left out are those that are no number (a level without signal has no place on the axis of lambda), and those too
    close to another: where steps grow suddenly, as on a leading grid, a line through two neighbours overshoots.
    """
    kept = [0]
    for i, node in enumerate(nodes[1:], start=1):
        if math.isfinite(node) and abs(node - nodes[kept[-1]]) * REACH >= 1.0:
            kept.append(i)
    return kept


def integral(nodes: Sequence[float], values: Sequence[Tensor], moments: Callable[[int], Sequence[float]]) -> Tensor:
    """The integral over the step of the polynomial through the values at the useful nodes."""
    kept = useful(nodes)
    weights = quadrature([nodes[i] for i in kept], moments(len(kept)))
    total = weights[0] * values[kept[0]]
    for weight, i in zip(weights[1:], kept[1:], strict=True):
        total.add_(values[i], alpha=weight)
    return total


def angular_step(x: Tensor, t: Level, s: Level, estimates: Sequence[tuple[Level, Estimate]]) -> Tensor:
    """From t to s, exact for a velocity that is the polynomial in theta through the estimates; the first is at t."""
    nodes = [(level.theta - t.theta) / (s.theta - t.theta) for level, _ in estimates]
    return turn(x, integral(nodes, [velocity(e, level) for level, e in estimates], plain_moments), t, s)


def exponential_step(x: Tensor, t: Level, s: Level, estimates: Sequence[tuple[Level, Estimate]]) -> Tensor:
    """From t to s, exact for an x_0 that is the polynomial in lambda through the estimates; the first is at t."""
    h = lam(s) - lam(t)
    nodes = [0.0, *((lam(level) - lam(t)) / h for level, _ in estimates[1:])]
    D = integral(nodes, [e.x_0 for _, e in estimates], partial(exponential_moments, h))
    return (s.sigma / t.sigma * x).add_(D, alpha=s.alpha)


def extrapolated(steps: Iterable[Step], levels: Sequence[Level]) -> Iterator[Step]:
    """The same steps, the last of which goes to the limit of the estimates instead of the last of them.

    Near the clean end the estimates of a smooth density go as a + b sigma^2 (sigma at alpha = 1), so that the last one
    is off by b sigma_t^2, however short the other steps: 2e-4 from sigma 0.01. A second one, at least twice as noisy,
    tells b; it gets a weight of at most 1/3, so that errors of a network are not blown up. Data that are points have
    b = 0 and keep the estimate.
    """
    other, w = second_estimate(levels)
    x_0: Tensor | None = None
    for t, step in zip(levels, steps, strict=False):  # the last level is the end of a step, not the beginning
        if t is other:
            x_0 = step.estimate.x_0
        if x_0 is not None and step.level.sigma == 0.0:
            step = replace(step, x=step.x + w * (step.x - x_0))
        yield step


def second_estimate(levels: Sequence[Level]) -> tuple[Level | None, float]:
    """The level that is compared with the last noisy one at the clean end, and its weight; None on a coarse grid."""
    *noisy, t = levels[:-1]
    if t.sigma > FINE * t.alpha:
        return None, 0.0
    for level in reversed(noisy):
        q = ratio(level, t)
        if q <= 0.5:
            return level, q * q / (1 - q * q)
    return None, 0.0
