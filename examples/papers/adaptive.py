r"""Gotta go fast when generating data with score-based models (Jolicoeur-Martineau et al., 2021): adaptive steps.

The reverse SDE is solved by pairs of steps: Euler-Maruyama's x' and the stochastic improved Euler's x'' are about as
far apart as x' is off. A step whose scaled error E_2 is above 1 is made again in smaller ones; of others,
x'' stays (algorithm 1). Here it is the SDE of x/alpha in sigma/alpha, whose only drift is that of eps.

A denoiser takes one level for a whole batch, so items cannot go at paces of their own. Instead all meet at the levels
of the spacing, and a step between two of these is halved, in ln(sigma), for the items that need it. Its noise is halved
with it, as a Brownian bridge. Thus a sample depends neither on its batch nor on the steps that were rejected.

    difftool train --schedule ve --steps 5000 --out runs/ve
    difftool sample runs/ve --plugin examples/papers/adaptive.py --sampler adaptive --sampler.rtol 0.1 \
      --spacing karras --out adaptive.png
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from difftool import Denoise, Estimate, Level, Noise, Sampler, Step, option

HALVINGS = 12
"""How often a step is halved at most."""


class Adaptive(Sampler, name="adaptive"):
    """Steps of the reverse SDE, halved until their error is small (Jolicoeur-Martineau et al., 2021)."""

    default_steps = 8

    rtol: float = option(default=0.05, gt=0, le=1, help="allowed error of a step, relative to the state")
    atol: float = option(default=0.0078, gt=0, le=1, help="allowed error of numbers near 0, in model units")

    def claimed_calls(self, steps: int) -> int | None:
        return None  # as many as the errors ask for

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        if levels[0].alpha == 0.0:
            raise ValueError("sigma/alpha is infinite at a first level without signal; take --spacing karras")

        def solve(x: Tensor, estimate: Estimate, w: Tensor, t: float, s: float, number: int, halvings: int) -> Tensor:
            """Return the state at sigma s from x at sigma t, under the Brownian motion w from t to s."""
            growth = t**2 - s**2
            x_1 = x - growth * estimate.eps / t + w
            x_2 = (x_1 + x - growth * denoise(x_1, Level.of(1.0, s)).eps / s + w) / 2
            delta = (self.rtol * torch.maximum(x.abs(), x_1.abs())).clamp_min(self.atol)
            E_2 = ((x_1 - x_2) / delta).square().flatten(1).mean(1).sqrt()
            rejected = (E_2 > 1.0).view(-1, *(1,) * (x.ndim - 1))
            if halvings == 0 or not rejected.any():
                return x_2
            m = math.sqrt(t * s)
            part = (t**2 - m**2) / growth
            w_m = part * w + math.sqrt(part * (m**2 - s**2)) * noise(number)
            x_m = solve(x, estimate, w_m, t, m, 2 * number, halvings - 1)
            x_s = solve(x_m, denoise(x_m, Level.of(1.0, m)), w - w_m, m, s, 2 * number + 1, halvings - 1)
            return torch.where(rejected, x_s, x_2)

        roots = 2 ** len(levels).bit_length()  # no two steps share a number: the halves of n have 2n and 2n + 1
        for i, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            if s.sigma > 0.0:
                rho_t, rho_s = t.sigma / t.alpha, s.sigma / s.alpha
                w = math.sqrt(rho_t**2 - rho_s**2) * noise(i)
                x = s.alpha * solve(x / t.alpha, estimate, w, rho_t, rho_s, roots + i, HALVINGS)
            else:
                x = estimate.x_0
            yield Step(x, s, estimate)
