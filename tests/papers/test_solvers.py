"""dpm_solver.toml, unipc.toml and restart.toml: the built-in samplers against diffusers, and restart's contraction."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from others import Noises, levels_of, normal, states, their_states
from torch import Tensor

from difftool import CLEAN, Estimate, Level, component
from difftool.testing.known import TABLES
from difftool_plugins.samplers.multistep import exponential_update

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
STD = 0.4


def sampler(kind: str, **options: Any) -> Any:
    return component("sampler", kind, **options)


def spaced(spacing: str, table: str, steps: int) -> list[Level]:
    return [*component("spacing", spacing).levels(TABLES[table], steps)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("algorithm", "name"), [("dpmsolver++", "dpmpp-2m"), ("sde-dpmsolver++", "dpmpp-2m-sde")])
def test_dpm_solver_is_that_of_diffusers(algorithm: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Algorithm 2 and appendix E.2, on levels that are even in lambda, at every step."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_dpmsolver_multistep as module

    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type=algorithm, solver_type="midpoint", use_lu_lambdas=True, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(40)
    levels, noise = levels_of(scheduler), normal((64, 1))
    levels, scheduler.timesteps = levels[:40], scheduler.timesteps[:39]  # its last step goes nowhere
    assert max((s.log_snr - t.log_snr) / 2 for t, s in pairwise(levels)) < 1  # ours takes longer steps at first order
    monkeypatch.setattr(module, "randn_tensor", Noises(noise))
    theirs = their_states(scheduler, noise(-1), levels)
    for a, b in zip(states(sampler(name), noise(-1), levels), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)  # theirs draws and keeps x in float32


@pytest.mark.parametrize("at", [5, 12])
def test_unipc_has_the_coefficients_of_diffusers(at: int) -> None:
    """A predictor and a corrector of three estimates, whose conditions of order diffusers solves as the paper does."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=3, solver_type="bh1")
    scheduler.set_timesteps(20)
    levels, noise = levels_of(scheduler), normal((64, 1))
    x, x_s = noise(-1), noise(0)
    estimates = [Estimate(noise(i), noise(i)) for i in range(1, 5)]  # at s, t and two before; only x_0 matters
    t, s = levels[at], levels[at + 1]
    history = [(levels[at - i], estimates[i + 1]) for i in range(3)]
    scheduler.model_outputs = [estimates[i].x_0 for i in (3, 2, 1)]
    scheduler._step_index = at
    predicted = scheduler.multistep_uni_p_bh_update(estimates[1].x_0, sample=x, order=3)
    torch.testing.assert_close(exponential_update(x, t, s, history), predicted, rtol=0, atol=1e-5)
    scheduler._step_index = at + 1
    scheduler.config["prediction_type"] = "sample"
    corrected = scheduler.multistep_uni_c_bh_update(estimates[0].x_0, last_sample=x, this_sample=x_s, order=3)
    ours = exponential_update(x, t, s, [*history, (s, estimates[0])])
    torch.testing.assert_close(ours, corrected, rtol=0, atol=1e-5)


def test_unipc_needs_a_third_of_the_calls() -> None:
    """A corrector raises the order at no call: on the exact flow, 20 calls of unipc beat 60 of ddim a hundred times."""
    from difftool.testing.known import log_snr_levels, quantiles

    def error(name: str, steps: int, **options: Any) -> float:
        levels = log_snr_levels(TABLES["linear"], steps + 1)
        x = states(sampler(name, **options), quantiles(levels[0]), levels)[-1]
        return float((x - quantiles(levels[-1])).square().mean().sqrt())

    assert error("unipc", 20, order=3) < error("ddim", 60) / 10
    assert error("unipc", 40, order=3) < error("unipc", 20, order=3) / 2**3


def gaussian(x: Tensor, level: Level) -> Estimate:
    """The exact denoiser of N(0, STD^2)."""
    variance = level.alpha**2 * STD**2 + level.sigma**2
    return Estimate(level.alpha * STD**2 / variance * x, level.sigma / variance * x)


@pytest.mark.parametrize("table", ["ve", "linear"])
@pytest.mark.parametrize("repeats", [0, 1, 4])
def test_each_restart_contracts_errors(table: str, repeats: int) -> None:
    """Each restart shrinks the distance of two trajectories to (alpha_t/alpha_s) std(x_s)/std(x_t), in closed form.

    The flow of Gaussian data multiplies states by the ratio of their standard deviations.
    """
    levels = spaced("log-snr", table, 400)
    restart = sampler("restart", low=0.1, high=2.0, repeats=repeats)
    top, bottom = restart.interval(levels)
    x = levels[0].norm * normal((8, 1))(-1)
    ends = [states(restart, start, levels[: bottom + 1], denoise=gaussian)[-1] for start in (x, 1.1 * x)]

    def std(level: Level) -> float:
        return math.hypot(level.alpha * STD, level.sigma)

    t, s = levels[top], levels[bottom]
    factor = std(s) / std(levels[0]) * (t.alpha / s.alpha * std(s) / std(t)) ** repeats
    assert t.sigma / t.alpha == pytest.approx(2.0, rel=0.1)
    torch.testing.assert_close(ends[1] - ends[0], factor * 0.1 * x, rtol=2e-3, atol=0)


def test_restart_forgets_what_went_wrong_above_its_interval() -> None:
    """A denoiser whose x_0 is too large above t_max spoils the ODE's samples, and restarts cure them."""
    levels, n = [*spaced("karras", "ve", 60), CLEAN], 50_000

    def wrong(x: Tensor, level: Level) -> Estimate:
        estimate = gaussian(x, level)
        return estimate if level.sigma < 2.0 else estimate.with_x_0(estimate.x_0 + 0.5, x, level)

    start = 80 * normal((n, 1))(-1)
    means = [
        abs(float(states(sampler("restart", low=0.1, high=1.0, repeats=k), start, levels, denoise=wrong)[-1].mean()))
        for k in (0, 2)
    ]
    assert means[0] > 0.05
    assert means[1] < 0.25 * means[0]
