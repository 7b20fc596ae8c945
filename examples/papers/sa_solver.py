r"""SA-Solver: stochastic Adams solver for fast sampling of diffusion models (Xue et al., NeurIPS 2023).

With lambda = ln(alpha/sigma) and h = lambda_s - lambda_t, the reverse SDE of noise tau is solved exactly by

  x_s = (sigma_s/sigma_t) e^(-tau^2 h) x_t + sum over j of b_j x_0(j) + sigma_s sqrt(1 - e^(-2 tau^2 h)) z
  b_j = alpha_s (1 + tau^2) int from lambda_t to lambda_s of e^(-(1 + tau^2)(lambda_s - lambda)) L_j(lambda) d lambda

for an x_0 that is a polynomial in lambda. The predictor takes the polynomial through the last estimates, the
corrector through these and the one where the predictor ended, under the same noise z: one call a step.

    difftool train --steps 5000 --out runs/roll
    difftool sample runs/roll --plugin examples/papers/sa_solver.py --sampler sa-solver --sampler.tau 0.8 \
      --spacing log-snr --out sa-solver.png
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from difftool import Denoise, Level, Noise, Sampler, Step, option

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(20)
"""Gauss's rule on -1..1. It integrates to the last digit over any usual step."""

Nodes = Sequence[tuple[float, Tensor]]
"""Estimates of x_0, each with the lambda of its level."""


class SASolver(Sampler, name="sa-solver"):
    """A stochastic Adams predictor and corrector in lambda (Xue et al., 2023, algorithm 1)."""

    default_steps = 20

    tau: float = option(default=1.0, ge=0, le=10, help="noise; 0 solves the ODE, 1 the usual reverse SDE")
    predictor: int = option(default=3, ge=1, le=4, help="how many estimates the predictor uses")
    corrector: int = option(default=3, ge=0, le=4, help="how many the corrector uses beside the new one")

    def claimed_order(self) -> int | None:
        # with tau = 0; the first step has two estimates, and so an error of the third order
        return None if self.tau > 0.0 else min(self.predictor, self.corrector, 2) + 1

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        if levels[0].alpha == 0.0:
            raise ValueError("lambda is infinite at a first level without signal; take a spacing such as log-snr")
        past: list[tuple[float, Tensor]] = []
        estimate = denoise(x, levels[0])
        for step, (t, s) in enumerate(pairwise(levels)):
            if s.sigma == 0.0:
                yield Step(estimate.x_0, s, estimate)
                return
            past = [(lambda_of(t), estimate.x_0), *past[:3]]
            z = noise(step) if self.tau > 0.0 else 0.0
            predicted = self.adams(x, t, s, past[: self.predictor], z)
            new = denoise(predicted, s)
            x = self.adams(x, t, s, [(lambda_of(s), new.x_0), *past[: self.corrector]], z)
            yield Step(x, s, estimate)
            estimate = new

    def adams(self, x: Tensor, t: Level, s: Level, nodes: Nodes, z: Tensor | float) -> Tensor:
        h = lambda_of(s) - lambda_of(t)
        b = coefficients([u for u, _ in nodes], lambda_of(t), lambda_of(s), self.tau)
        drift = s.alpha * sum(b_j * x_0 for b_j, (_, x_0) in zip(b, nodes, strict=True))
        kept = s.sigma / t.sigma * math.exp(-(self.tau**2) * h)
        return kept * x + drift + s.sigma * math.sqrt(-math.expm1(-2 * self.tau**2 * h)) * z


def lambda_of(level: Level) -> float:
    return math.log(level.alpha / level.sigma)


def coefficients(nodes: Sequence[float], start: float, end: float, tau: float) -> list[float]:
    """Return b_j / alpha_s for the estimates at these lambdas, in a step from `start` to `end`."""
    half, k = (end - start) / 2, 1 + tau**2
    u = start + half * (1 + POINTS)
    b = []
    for j, node in enumerate(nodes):
        L = math.prod((u - other) / (node - other) for other in (*nodes[:j], *nodes[j + 1 :]))
        b.append(float((WEIGHTS * L * k * np.exp(-k * (end - u))).sum() * half))
    return b
