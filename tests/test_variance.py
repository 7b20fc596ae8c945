"""Learned variance against distributions written elsewhere, and through training and sampling."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import POINTS, Run
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from difftool import Schedule, component, load
from difftool.data.facts import DataFacts
from difftool.diffusion.variance import VarianceBound, split_variance
from difftool.plugins.build import build_network
from difftool.settings import Training
from difftool_plugins.schedules.variance_preserving import Linear

CPU = torch.device("cpu")
TABLE = Linear().build(100)


def posterior(table: Schedule, x_0: Tensor, x_t: Tensor, t: int) -> tuple[Tensor, float, float]:
    """Mean, variance and beta of q(x_s | x_t, x_0), in betas (Ho et al., 2020, eq. 6-7)."""
    a, beta = table.alpha_bars.tolist(), table.betas.tolist()
    mean = beta[t] * math.sqrt(a[t - 1]) / (1 - a[t]) * x_0 + (1 - a[t - 1]) * math.sqrt(1 - beta[t]) / (1 - a[t]) * x_t
    return mean, beta[t] * (1 - a[t - 1]) / (1 - a[t]), beta[t]


@pytest.mark.parametrize("t", [1, 2, 50, 99])
@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_the_bound_is_the_divergence_of_two_gaussians(t: int, part: float) -> None:
    x_0, x_0_hat, x_t = torch.randn(3, 1, 50, generator=torch.Generator().manual_seed(t)).double()
    mean, small, large = posterior(TABLE, x_0, x_t, t)
    mean_hat, _, _ = posterior(TABLE, x_0_hat, x_t, t)
    variance = math.exp(part * math.log(large) + (1 - part) * math.log(small))
    expected = kl_divergence(Normal(mean, math.sqrt(small)), Normal(mean_hat, math.sqrt(variance))).mean() / math.log(2)
    (found,) = VarianceBound(TABLE, device=CPU)(x_0, x_0_hat, torch.full_like(x_0, part), torch.tensor([t]))
    assert float(found) == pytest.approx(float(expected), rel=2e-4, abs=1e-5)


def test_the_truth_at_the_posteriors_variance_costs_nothing() -> None:
    x_0 = torch.randn(99, 8)
    found = VarianceBound(TABLE, device=CPU)(x_0, x_0, torch.zeros_like(x_0), torch.arange(1, 100))
    assert float(found.abs().max()) == 0.0


@pytest.mark.parametrize("mean", [-1.0, 0.1, 0.97])
def test_the_last_step_spreads_over_all_pixel_values(mean: float) -> None:
    """The probabilities of the 256 values sum to 1: the two ends take the tails."""
    pixels = (torch.arange(256) / 127.5 - 1)[:, None]
    bound = VarianceBound(TABLE, device=CPU, pixel_range=(-1.0, 1.0))
    log_variance = torch.full_like(pixels, math.log(0.01))
    surprise = bound.decoder_nll(pixels, torch.full_like(pixels, mean), log_variance)
    assert float((-surprise).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_last_step_of_points_is_a_density() -> None:
    x_0, mean = torch.randn(2, 20, 2).unbind()
    bound = VarianceBound(TABLE, device=CPU)
    found = bound.decoder_nll(x_0, mean, torch.full_like(x_0, math.log(0.09)))
    torch.testing.assert_close(found, -Normal(mean, 0.3).log_prob(x_0), rtol=1e-5, atol=1e-5)


def test_the_best_variance_is_what_the_error_asks_for() -> None:
    """With an error of the mean, the bound is lowest where the variance is the posterior's plus the squared error."""
    t, n = 30, 4_000
    bound = VarianceBound(TABLE, device=CPU)
    x_0 = torch.randn(1, n)
    _, small, large = posterior(TABLE, x_0, x_0, t)
    # an error of such a size that the best variance lies in the middle, in logarithms
    error = math.sqrt(math.sqrt(small * large) - small) / float(bound.x_0_of_mean[t])
    parts = torch.linspace(0, 1, 41)
    values = [float(bound(x_0, x_0 + error, torch.full_like(x_0, p), torch.tensor([t]))) for p in parts.tolist()]
    assert float(parts[values.index(min(values))]) == pytest.approx(0.5, abs=0.03)


def test_a_network_answers_twice_the_channels() -> None:
    backbone = component("backbone", "mlp")
    for settings, channels in ((Training(), 3), (Training(learn_variance=True), 6)):
        network = build_network(backbone, DataFacts(shape=(3, 8, 8)), settings)
        assert network(torch.zeros(2, 3, 8, 8), torch.zeros(2)).shape == (2, channels, 8, 8)
    answer, part = split_variance(torch.cat([torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)], dim=1))
    assert float(answer.abs().max()) == 0.0
    assert float(part.min()) == float(part.max()) == 1.0


def test_a_run_that_learns_its_variance_can_be_sampled_with_it(run: Run, tmp_path: Path) -> None:
    for name, more in (("plain", ()), ("learned", ("--learn-variance",))):
        outcome = run("train", *POINTS, "--timesteps", 50, "--steps", 20, *more, "--out", name)
        assert outcome.code == 0, outcome.err
    assert load(tmp_path / "learned").sample(10, sampler="ddim", steps=5).isfinite().all()
    learned = run("sample", "learned", "--sampler", "ddpm", "--sampler.variance", "learned", "-n", 10, "--out", "x.npy")
    assert learned.code == 0, learned.err
    small = run("sample", "learned", "--sampler", "ddpm", "-n", 10, "--out", "y.npy")
    assert small.code == 0, small.err
    assert (tmp_path / "x.npy").read_bytes() != (tmp_path / "y.npy").read_bytes()
    refused = run("sample", "plain", "--sampler", "ddpm", "--sampler.variance", "learned", "-n", 10)
    assert refused.code == 1
    assert "--learn-variance" in refused.error
