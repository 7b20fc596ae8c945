"""ddpm.toml and ddim.toml: the loss of equation 14, and the states of diffusers at every step under the same noise."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from others import Noises, document, normal, objective, states, their_states
from torch import Tensor

from difftool import CLEAN, Level, Schedule, component
from difftool.testing.known import linear, mixture

T = 1000
TABLE: Schedule = linear(T)


def sampler(kind: str, **options: Any) -> Any:
    return component("sampler", kind, **options)


@pytest.mark.parametrize("name", ["ddpm.toml", "ddim.toml"])
def test_the_loss_is_l_simple(name: str) -> None:
    """Eq. 14: |eps - eps_theta(sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) eps, t)|^2, t uniform, beta 1e-4 to 0.02."""

    def network(x: Tensor, time: Tensor, cond: object = None) -> Tensor:
        return torch.tanh(x) + 1e-3 * time[:, None]

    made = objective(name)
    random = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 64, 2, generator=random)
    t = torch.randint(T, (64,), generator=random)
    inputs = made.inputs(x_0, eps, t, None)
    found = made.factor[t] * (network(inputs.net_input, inputs.time) - inputs.target).square().mean(1)
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64)).cumprod(0)[t].float()[:, None]
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    torch.testing.assert_close(found, (eps - network(x_t, t.float())).square().mean(1), rtol=1e-4, atol=1e-5)
    drawn = made.draw((torch.arange(10 * T) + 0.5) / (10 * T))
    assert torch.equal(drawn.bincount(), torch.full((T,), 10))


def test_the_settings_are_those_of_the_paper() -> None:
    training = document("ddpm.toml")["training"]
    assert (training["lr"], training["batch_size"], training["ema"]) == (2e-4, 128, 0.9999)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_algorithm_2_is_that_of_diffusers(variance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 1000 steps, from the same x_T under the same noise."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_ddpm as module

    scheduler = diffusers.DDPMScheduler(variance_type=variance, clip_sample=False)
    scheduler.alphas_cumprod = TABLE.alpha_bars
    scheduler.betas, scheduler.alphas = TABLE.betas, 1 - TABLE.betas
    scheduler.one = scheduler.one.double()
    noise, levels = normal((16, 1)), [*reversed(list(TABLE)), CLEAN]
    monkeypatch.setattr(module, "randn_tensor", Noises(noise))
    theirs = their_states(scheduler, noise(-1), levels)
    ours = states(sampler("ddpm", variance=variance.replace("_", "-")), noise(-1), levels)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_equation_12_is_that_of_diffusers(eta: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_ddim as module

    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = TABLE.alpha_bars, torch.tensor(1.0).double()
    scheduler.set_timesteps(steps)
    noise = normal((64, 1))
    levels: list[Level] = [*component("spacing", "leading").levels(TABLE, steps), CLEAN]  # type: ignore[attr-defined]
    assert [level.t for level in levels[:-1]] == scheduler.timesteps.tolist()
    monkeypatch.setattr(module, "randn_tensor", Noises(noise))
    x, theirs = noise(-1), []
    for t, level in zip(scheduler.timesteps, levels, strict=False):
        x = scheduler.step(mixture(x, level).eps, t, x, eta=eta).prev_sample
        theirs.append(x)
    for a, b in zip(states(sampler("ddim", eta=eta), noise(-1), levels), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_single_posterior_is_bayes_rule() -> None:
    """Eq. 6 and 7 between neighbouring levels: the posterior's mean and variance."""
    for t, s in list(pairwise(reversed(list(TABLE))))[::100]:
        beta = 1 - (t.alpha / s.alpha) ** 2
        x_t, z = normal((8, 1))(-1), normal((8, 1))(0)
        x_0 = mixture(x_t, t).x_0
        mean = s.alpha * beta / t.sigma**2 * x_0 + t.alpha / s.alpha * s.sigma**2 / t.sigma**2 * x_t
        x_s = states(sampler("ddpm"), x_t, [t, s])[0]
        torch.testing.assert_close(x_s, mean + s.sigma / t.sigma * beta**0.5 * z, rtol=0, atol=1e-12)
