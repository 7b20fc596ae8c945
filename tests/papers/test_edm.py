"""edm.toml and edm.py: table 1 of the paper term by term, Heun's steps of diffusers, and the variance under churn."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from others import normal, objective, script, states, their_states
from torch import Tensor

from difftool import CLEAN, Estimate, Level, component
from difftool.testing import check_sampler
from difftool.testing.known import TABLES

edm = script("edm.py")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
SIGMA_DATA = 0.5
STD = 0.4
"""Standard deviation of Gaussian data."""


def network(x: Tensor, time: Tensor, cond: object = None) -> Tensor:
    return torch.tanh(1.3 * x) + 1e-3 * time.view(-1, 1)


def test_the_loss_is_that_of_the_paper() -> None:
    """Eq. 2 and 8 and table 1: lambda |D(x_0 + n; sigma) - x_0|^2, where D = c_skip x + c_out F(c_in x)."""
    made = objective("edm.toml", sigma_data=SIGMA_DATA)
    random = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 64, 2, generator=random)
    t = torch.randint(1000, (64,), generator=random)
    inputs = made.inputs(x_0, eps, t, None)
    sigma = made.spec.schedule.sigma[t].float()[:, None]
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
    c_in = 1 / (sigma**2 + SIGMA_DATA**2).sqrt()
    x = x_0 + sigma * eps
    D = c_skip * x + c_out * network(c_in * x, inputs.time)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    expected = (weight * (D - x_0).square()).mean(1)
    found = made.factor[t] * (network(inputs.net_input, inputs.time) - inputs.target).square().mean(1)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)


def test_sigma_is_drawn_log_normally() -> None:
    """Table 1: ln(sigma) ~ N(-1.2, 1.2^2)."""
    made = objective("edm.toml", sigma_data=SIGMA_DATA)
    log_sigma = made.spec.schedule.sigma[made.draw((torch.arange(100_000) + 0.5) / 100_000)].log()
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.01)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.01)


def test_the_levels_are_those_of_equation_5() -> None:
    levels = component("spacing", "karras").levels(component("schedule", "ve").build(1000), 18)  # type: ignore[attr-defined]
    for i, level in enumerate(levels):
        expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert level.sigma / level.alpha == pytest.approx(expected, rel=1e-6)


def test_without_churn_it_takes_the_steps_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(18)
    scheduler.sigmas = scheduler.sigmas.double()
    sigmas = scheduler.sigmas.tolist()  # each but the first and the last comes twice
    x = sigmas[0] * normal((64, 1))(-1)
    theirs = their_states(scheduler, x, [Level.of(1.0, sigma) for sigma in sigmas])
    levels = [Level.of(1.0, sigma) for sigma in [sigmas[0], *sigmas[1::2]]]
    ours = states(edm.EDM(), x, levels)
    assert len(ours) == 18
    for a, b in zip(ours, theirs[1::2] + theirs[-1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def gaussian(x: Tensor, level: Level) -> Estimate:
    """The exact denoiser of N(0, STD^2)."""
    variance = level.alpha**2 * STD**2 + level.sigma**2
    return Estimate(level.alpha * STD**2 / variance * x, level.sigma / variance * x)


def test_churn_keeps_to_its_recursion() -> None:
    """For Gaussian data each step is linear, so the variance of each state has a closed form (algorithm 2)."""
    n, N, S_churn, S_noise = 200_000, 12, 8.0, 1.05
    levels = [*component("spacing", "karras").levels(component("schedule", "ve").build(1000), N), CLEAN]  # type: ignore[attr-defined]
    sampler = edm.EDM(churn=S_churn, low=0.05, high=50, inflation=S_noise)
    found = states(sampler, levels[0].norm * normal((n, 1))(-1), levels, denoise=gaussian)
    variance, churned = levels[0].norm ** 2, 0
    for x, (t, s) in zip(found, pairwise(levels), strict=True):
        gamma = min(S_churn / N, math.sqrt(2) - 1) if 0.05 <= t.sigma <= 50 else 0.0
        churned += gamma > 0
        hat = t.sigma * (1 + gamma)
        variance += S_noise**2 * (hat**2 - t.sigma**2)
        slope = hat / (hat**2 + STD**2)  # d = slope x
        step = s.sigma - hat
        factor = 1 + step * slope
        if s.sigma > 0:
            factor = 1 + step / 2 * (slope + s.sigma / (s.sigma**2 + STD**2) * factor)
        variance *= factor**2
        assert abs(float(x.var()) / variance - 1) < 5 * math.sqrt(2 / n)
    assert 4 <= churned <= 9


@pytest.mark.parametrize("sampler", [edm.EDM(), edm.EDM(churn=40)])
def test_it_keeps_the_laws(sampler: edm.EDM) -> None:
    check_sampler(sampler)


def test_a_level_without_signal_is_refused() -> None:
    with pytest.raises(ValueError, match="without signal"):
        states(edm.EDM(), torch.ones(1, 1), [TABLES["flow"][999], CLEAN])
