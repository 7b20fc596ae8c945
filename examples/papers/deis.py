"""DEIS: fast sampling of diffusion models with an exponential integrator (Zhang & Chen, ICLR 2023).

In x/alpha and rho = sigma/alpha the probability-flow ODE is d(x/alpha)/d rho = eps (section 3). DEIS puts a
polynomial through the last few eps and integrates it exactly (AB-DEIS; here in log rho, as diffusers does):

  x_s/alpha_s = x_t/alpha_t + sum over j of C_j eps_j,    C_j = int from rho_t to rho_s of L_j(log rho) d rho

    difftool train --steps 5000 --out runs/roll
    difftool sample runs/roll --plugin examples/papers/deis.py --sampler deis --spacing log-snr --out deis.png
    difftool compare runs/roll --plugin examples/papers/deis.py --samplers ddim,dpmpp-3m,deis --spacings log-snr
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from difftool import Denoise, Level, Noise, Sampler, Step, option

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(20)
"""Gauss's rule on -1..1. It integrates to the last digit over any usual step."""


class DEIS(Sampler, name="deis"):
    """A polynomial in log rho through the last `order` eps, integrated exactly (Zhang & Chen, 2023)."""

    default_steps = 20

    order: int = option(default=3, ge=1, le=4, help="how many eps a step uses; 1 is ddim")

    def claimed_order(self) -> int:
        return min(self.order, 2)  # the first step has a single eps, and so an error of the second order

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        if levels[0].alpha == 0.0:
            raise ValueError("rho is infinite at a first level without signal; take a spacing such as log-snr")
        history: deque[tuple[float, Tensor]] = deque(maxlen=self.order)
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            history.appendleft((log_rho(t), estimate.eps))
            if s.sigma > 0.0:
                C = coefficients([u for u, _ in history], log_rho(s))
                x = s.alpha * (x / t.alpha + sum(c * eps for c, (_, eps) in zip(C, history, strict=True)))
            else:
                x = estimate.x_0
            yield Step(x, s, estimate)


def log_rho(level: Level) -> float:
    return math.log(level.sigma / level.alpha)


def coefficients(nodes: Sequence[float], end: float) -> list[float]:
    """Return C_j: the integral of Lagrange's polynomial L_j(u) over rho = e^u, from the first node to the end."""
    half = (end - nodes[0]) / 2
    u = nodes[0] + half * (1 + POINTS)
    C = []
    for j, node in enumerate(nodes):
        L = math.prod((u - other) / (node - other) for other in (*nodes[:j], *nodes[j + 1 :]))
        C.append(float((WEIGHTS * L * np.exp(u)).sum() * half))
    return C
