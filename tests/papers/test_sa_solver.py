"""sa_solver.py: the coefficients and states of diffusers, the moments of a Gaussian under the exact SDE, the orders."""

from __future__ import annotations

import math

import pytest
import torch
from others import Noises, levels_of, normal, script, states
from torch import Tensor

from difftool import Estimate, Level
from difftool.testing import check_sampler
from difftool.testing.known import TABLES, log_snr_levels, mixture

sa = script("sa_solver.py")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_the_coefficients_are_those_of_diffusers(order: int, tau: float) -> None:
    """Theirs lack the factors in front of the integral."""
    diffusers = pytest.importorskip("diffusers")
    nodes = [0.3, 0.05, -0.4, -0.9][:order]
    start, end = 0.3, 0.71
    as_tensors = [torch.tensor(v, dtype=torch.float64) for v in (start, end, tau)]
    theirs = diffusers.SASolverScheduler().get_coefficients_fn(
        order, as_tensors[0], as_tensors[1], [torch.tensor(v, dtype=torch.float64) for v in nodes], as_tensors[2]
    )
    factor = (1 + tau**2) * math.exp(-(1 + tau**2) * end)
    expected = [factor * float(c) for c in theirs]
    assert sa.coefficients(nodes, start, end, tau) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_it_takes_the_steps_of_diffusers(tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a predictor of order 1 and a corrector of order 1, from the same x_T under the same noise.

    To those of order 2 diffusers adds a term that is not in the paper.
    """
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_sasolver as module

    scheduler = diffusers.SASolverScheduler(predictor_order=1, corrector_order=1, tau_func=lambda t: torch.tensor(tau))
    scheduler.set_timesteps(20)
    levels, noise = levels_of(scheduler), normal((64, 1))
    monkeypatch.setattr(module, "randn_tensor", Noises(noise))
    ours = states(sa.SASolver(tau=tau, predictor=1, corrector=0), noise(-1), levels)
    x = noise(-1)
    for i, (t, level) in enumerate(zip(scheduler.timesteps, levels, strict=False)):
        x = scheduler.step(mixture(x, level).eps, t, x).prev_sample
        if i > 0:  # it keeps the corrected state, and returns the predicted one
            torch.testing.assert_close(ours[i - 1], scheduler.last_sample, rtol=0, atol=1e-9)


def test_an_x_0_that_does_not_change_is_solved_exactly() -> None:
    """The mean and the variance of x_s are those of the SDE's exact solution, in one step or in twenty."""
    tau, n = 0.8, 200_000

    def denoise(x: Tensor, level: Level) -> Estimate:
        return Estimate(torch.full_like(x, 0.7), (x - 0.7 * level.alpha) / level.sigma)

    for steps in (1, 20):
        levels = log_snr_levels(TABLES["linear"], steps + 1)
        t, s = levels[0], levels[-1]
        x = states(sa.SASolver(tau=tau), torch.full((n, 1), 2.0).double(), levels, denoise=denoise)[-1]
        h = sa.lambda_of(s) - sa.lambda_of(t)
        # d(x - alpha x_0)/sigma is an Ornstein-Uhlenbeck process with rate tau^2 and unit variance
        left = math.exp(-(tau**2) * h)
        mean = 0.7 * s.alpha + left * s.sigma / t.sigma * (2.0 - 0.7 * t.alpha)
        variance = s.sigma**2 * (1 - left**2)
        assert abs(float(x.mean()) - mean) < 4 * math.sqrt(variance / n)
        assert abs(float(x.var()) / variance - 1) < 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("solver", [sa.SASolver(), sa.SASolver(tau=0), sa.SASolver(tau=0, predictor=1, corrector=0)])
def test_it_keeps_the_laws(solver: sa.SASolver) -> None:
    check_sampler(solver)
