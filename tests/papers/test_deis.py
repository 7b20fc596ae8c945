"""deis.py: the states of diffusers at every step, exact integrals of polynomials in log rho, and the orders."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Run
from others import PAPERS, levels_of, normal, script, states, their_states

from difftool import Estimate, Level
from difftool.testing import check_sampler
from difftool.testing.known import TABLES, log_snr_levels, mixture, quantiles

deis = script("deis.py")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_takes_the_steps_of_diffusers(order: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DEISMultistepScheduler(solver_order=order)
    scheduler.set_timesteps(20)
    levels, x = levels_of(scheduler), normal((64, 1))(-1)
    ours, theirs = states(deis.DEIS(order=order), x, levels), their_states(scheduler, x, levels)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=lambda text, i=i: f"step {i}: {text}")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_polynomial_in_log_rho_is_integrated_exactly(order: int) -> None:
    """If eps = (log rho)^(order - 1), x/alpha moves by its integral over rho, once there are enough estimates."""
    levels = log_snr_levels(TABLES["linear"], 12)

    def denoise(x: torch.Tensor, level: Level) -> Estimate:
        return Estimate(x, torch.full_like(x, math.log(level.sigma / level.alpha) ** (order - 1)))

    def integral(rho: float) -> float:
        """The integral of u^n e^u, by parts."""
        u, n = math.log(rho), order - 1
        return rho * sum((-1) ** k * math.perm(n, k) * u ** (n - k) for k in range(n + 1))

    *_, before, after = states(deis.DEIS(order=order), torch.ones(1, 1).double(), levels, denoise=denoise)
    rho_t, rho_s = (level.sigma / level.alpha for level in levels[-2:])
    moved = after / levels[-1].alpha - before / levels[-2].alpha
    torch.testing.assert_close(moved, torch.full_like(moved, integral(rho_s) - integral(rho_t)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("order", "least"), [(1, 0.9), (2, 1.9), (3, 2.8), (4, 3.6)])
def test_the_error_falls_with_the_order(order: int, least: float) -> None:
    errors = []
    for steps in (80, 160, 320):
        levels = log_snr_levels(TABLES["linear"], steps + 1)
        x = states(deis.DEIS(order=order), quantiles(levels[0]), levels, denoise=mixture)[-1]
        errors.append(float((x - quantiles(levels[-1])).square().mean().sqrt()))
    assert math.log2(errors[0] / errors[2]) / 2 > least, errors


@pytest.mark.parametrize("order", [1, 3])
def test_it_keeps_the_laws(order: int) -> None:
    check_sampler(deis.DEIS(order=order))


def test_a_level_without_signal_is_one_line(run: Run) -> None:
    oracle = ("--oracle", "closed-form", "--dataset", "gaussian-mixture", "--schedule", "flow", "-n", 4)
    sampler = ("--plugin", PAPERS / "deis.py", "--sampler", "deis", "--out", "x.npy")
    assert "take a spacing such as log-snr" in run("sample", *oracle, *sampler).error
    assert run("sample", *oracle, *sampler, "--spacing", "log-snr").code == 0
