"""The configs of examples/papers that change training: tables and steps beside formulas, and beside diffusers."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from at_work import CPU, PAPERS, draws, small
from torch import Tensor, nn

import difftool
from difftool import Estimate, NoiseSchedule, Prediction, Schedule
from difftool.data.facts import DataFacts
from difftool.runs.recipe import Recipe, build_recipe
from difftool.sampling.denoiser import Denoiser
from difftool.specs import ObjectiveSpec
from difftool.training.loss import Objective
from difftool.training.minimise import Predictor, batch_of, minimise
from difftool.training.prepare import build_objective

T = 1000


@dataclass
class Paper:
    """The schedule, prediction and objective of a config."""

    recipe: Recipe
    schedule: Schedule
    objective: Objective

    @property
    def alpha_bars(self) -> Tensor:
        return self.schedule.alpha_bars

    def factor(self) -> Tensor:
        """Return the factor of the loss at each level."""
        return self.objective.factor.double()

    def loss(self, network: nn.Module, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        inputs = self.objective.inputs(x_0, eps, t, None)
        predict = Predictor(self.objective, network, inputs)
        return minimise(self.objective, predict, batch_of(self.objective, inputs, None), None)[0]

    def denoiser(self, network: Any) -> Denoiser:
        learned = self.recipe.training.learn_variance
        return Denoiser(
            network, self.recipe[Prediction], ObjectiveSpec(schedule=self.schedule), learned_variance=learned
        )


def paper(name: str, **prediction: str) -> Paper:
    document = tomllib.loads((PAPERS / f"{name}.toml").read_text(encoding="utf-8"))
    if prediction:
        document["prediction"] = {"name": prediction["prediction"]}
    recipe = build_recipe(document)
    schedule = recipe[NoiseSchedule].build(recipe.training.timesteps)
    return Paper(recipe, schedule, build_objective(recipe, schedule, DataFacts(shape=(2,)), CPU))


def gradients(loss: Tensor, network: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def test_improved_ddpm_has_the_cosine_schedule_of_eq_17_and_of_diffusers() -> None:
    made = paper("improved_ddpm")
    t = torch.arange(4001, dtype=torch.float64) / 4000
    f = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
    betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    torch.testing.assert_close(made.schedule.betas, betas, rtol=1e-9, atol=1e-12)
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(4000, beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(made.alpha_bars.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-9)


def test_improved_ddpm_learns_the_variance_of_eq_15_and_steps_as_diffusers_does() -> None:
    """With the same noise, a step of ddpm is that of diffusers' scheduler with the variance type learned_range."""
    diffusers = pytest.importorskip("diffusers")
    made, x, output = paper("improved_ddpm"), torch.randn(3, 2), torch.randn(3, 4).clamp(-1, 1)
    theirs = diffusers.DDPMScheduler(
        4000, beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=False
    )
    ddpm = difftool.component("sampler", "ddpm", variance="learned")
    for t in (3500, 700, 3, 1):
        random, again = (torch.Generator().manual_seed(t) for _ in range(2))
        levels, z = [made.schedule[t], made.schedule[t - 1]], torch.randn(3, 2, generator=random)
        (step,) = ddpm.sample(made.denoiser(lambda *_: output), x, levels, lambda _, z=z: z)
        expected = theirs.step(output, t, x, generator=again).prev_sample
        torch.testing.assert_close(step.x, expected, rtol=1e-3, atol=1e-3)  # their table is float32
        variance = theirs._get_variance(t, predicted_variance=output[:, 2:]).exp()
        assert t > 3 or float(variance.min() / variance.max()) < 0.9  # there the fraction matters
        beta, smallest = made.schedule.betas[t], made.schedule.betas[t] * (levels[1].sigma / levels[0].sigma) ** 2
        fraction = (output[:, 2:].double() + 1) / 2
        torch.testing.assert_close(
            (fraction * beta.log() + (1 - fraction) * smallest.log()).exp().float(), variance, rtol=1e-2, atol=0
        )


def test_improved_ddpm_minimises_the_hybrid_of_eq_16() -> None:
    """L_simple + 0.001 L_vlb in bits, of which the bound has a gradient in the variance alone."""
    made, network = paper("improved_ddpm"), small_pair()
    x_0, eps, t = draws(64, levels=4000)
    t = t.clamp(min=1)  # the likelihood of level 0 has a formula of its own
    loss = made.loss(network, x_0, eps, t)
    schedule = made.schedule
    (alpha, sigma), (alpha_s, sigma_s) = (
        (schedule.alpha[row][:, None], schedule.sigma[row][:, None]) for row in (t, t - 1)
    )
    x_t = (alpha * x_0 + sigma * eps).float()
    out, v = network(x_t, t / 4, None).chunk(2, dim=1)
    simple = (out - eps).square().mean()
    beta = 1 - (alpha / alpha_s) ** 2
    smallest, fraction = beta * (sigma_s / sigma) ** 2, (v.double() + 1) / 2
    variance = torch.exp(fraction * beta.log() + (1 - fraction) * smallest.log())
    x_hat = (x_t - sigma * out.detach()) / alpha
    gap = alpha_s * beta / sigma**2 * (x_0 - x_hat)  # of the posterior means (Ho et al., 2020, eq. 7)
    bound = ((variance / smallest).log() + (smallest + gap**2) / variance - 1) / 2 / math.log(2)
    expected = simple + 0.001 * 4000 * bound.mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=0)
    (ours,), (of_simple,), (of_all,) = (
        torch.autograd.grad(value, network.last.weight, retain_graph=True) for value in (loss, simple, expected)
    )
    torch.testing.assert_close(ours[:2], of_simple[:2])
    torch.testing.assert_close(ours[2:], of_all[2:], rtol=1e-2, atol=1e-4)


def small_pair() -> Any:
    from difftool import BackboneSpec

    torch.manual_seed(0)
    spec = BackboneSpec(shape=(2,), out_channels=4)
    network = difftool.component("backbone", "mlp", width=16, depth=1).build(spec)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return network


def test_v_prediction_has_the_target_and_the_estimates_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    made = paper("v_prediction")
    theirs = diffusers.DDIMScheduler(
        T, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    )
    x_0, eps, t = draws(50)
    inputs = made.objective.inputs(x_0, eps, t, None)
    torch.testing.assert_close(inputs.target, theirs.get_velocity(x_0, eps, t), rtol=1e-4, atol=1e-5)
    theirs.set_timesteps(T)
    for i in range(0, 50, 7):
        found = made.denoiser(lambda *_, i=i: inputs.target[i : i + 1])(inputs.x_t[i : i + 1], made.schedule[int(t[i])])
        torch.testing.assert_close(found.x_0, x_0[i : i + 1], rtol=0, atol=1e-5)
        step = theirs.step(inputs.target[i : i + 1], int(t[i]), inputs.x_t[i : i + 1])
        torch.testing.assert_close(step.pred_original_sample, found.x_0, rtol=0, atol=2e-4)


def test_v_prediction_weighs_errors_of_x_0_by_snr_plus_1() -> None:
    made, network = paper("v_prediction"), small()
    x_0, eps, t = draws(64)
    alpha, sigma = (table[t].float()[:, None] for table in (made.schedule.alpha, made.schedule.sigma))
    x_t = alpha * x_0 + sigma * eps
    x_hat = alpha * x_t - sigma * network(x_t, t.float(), None)
    loss = (((alpha / sigma).square() + 1) * (x_hat - x_0).square()).mean()
    ours = made.loss(network, x_0, eps, t)
    torch.testing.assert_close(ours, loss, rtol=1e-3, atol=0)  # x_hat - x_0 has a few digits where sigma is 0.006
    torch.testing.assert_close(gradients(ours, network), gradients(loss, network), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_min_snr_has_the_factors_of_section_3_4(prediction: str) -> None:
    made = paper("min_snr", prediction=prediction)
    snr = made.alpha_bars / (1 - made.alpha_bars)
    least = snr.clamp(max=5.0)
    expected = {"eps": least / snr, "x0": least, "v": least / (snr + 1)}[prediction]
    torch.testing.assert_close(made.factor(), expected, rtol=1e-6, atol=1e-7)


def test_min_snr_weighs_as_the_training_script_of_diffusers() -> None:
    training = pytest.importorskip("diffusers.training_utils")
    diffusers = pytest.importorskip("diffusers")
    made = paper("min_snr", prediction="eps")
    t = torch.arange(0, 990, 7)
    snr = training.compute_snr(diffusers.DDPMScheduler(T, beta_schedule="squaredcos_cap_v2"), t)
    theirs = torch.stack([snr, 5.0 * torch.ones_like(snr)], dim=1).min(dim=1)[0] / snr  # as the script computes it
    torch.testing.assert_close(made.factor()[t].float(), theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_p2_divides_the_loss_of_eps_by_a_power_of_k_plus_snr(prediction: str) -> None:
    """The weight of an error of eps is the same whatever the network predicts; it has the values of a table by hand."""
    made = paper("p2", prediction=prediction)
    snr = made.alpha_bars / (1 - made.alpha_bars)
    of_eps = 1 / (1 + snr)  # 1 - alpha-bar, for k = 1 and gamma = 1
    torch.testing.assert_close(of_eps, 1 - made.alpha_bars)
    expected = of_eps if prediction == "eps" else of_eps * snr / (snr + 1)
    torch.testing.assert_close(made.factor(), expected, rtol=1e-5, atol=1e-9)


def test_zero_terminal_snr_has_the_betas_of_diffusers_and_ends_in_pure_noise() -> None:
    diffusers = pytest.importorskip("diffusers")
    made = paper("zero_terminal_snr")
    assert float(made.schedule.alpha[-1]) == 0.0
    theirs = diffusers.DDIMScheduler(
        T, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    torch.testing.assert_close(made.alpha_bars.float()[:-1], theirs.alphas_cumprod[:-1], rtol=2e-3, atol=1e-6)
    assert theirs.alphas_cumprod[-1] < 1e-6


def test_zero_terminal_snr_begins_at_the_last_level_as_diffusers_does() -> None:
    diffusers = pytest.importorskip("diffusers")
    made = paper("zero_terminal_snr")
    theirs = diffusers.DDIMScheduler(T, timestep_spacing="trailing")
    spacing = difftool.component("spacing", "trailing")
    for steps in (1, 5, 7, 50):
        theirs.set_timesteps(steps)
        assert [int(level.t) for level in spacing.levels(made.schedule, steps)] == theirs.timesteps.tolist()
    assert spacing.levels(made.schedule, 20)[0].alpha == 0.0


def test_flow_matching_learns_the_velocity_of_eq_23() -> None:
    """The objective on x_t = (1 - u) x_0 + u eps is the squared error of eps - x_0, gradients included."""
    made, network = paper("flow_matching"), small()
    x_0, eps, t = draws(64)
    u = ((t + 1) / T)[:, None]
    x_t = (1 - u) * x_0 + u * eps
    scaled = x_t / torch.hypot(1 - u, u)  # the network's input has unit variance
    loss = (network(scaled, t.float(), None) - (eps - x_0)).square().mean()
    ours = made.loss(network, x_0, eps, t)
    torch.testing.assert_close(ours, loss)
    torch.testing.assert_close(gradients(ours, network), gradients(loss, network))
    assert bool((made.factor() == 1).all())


def test_flow_matching_samples_as_the_euler_steps_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    made, network = paper("flow_matching"), small()
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(T, shift=1.0)
    levels = [*difftool.component("spacing", "trailing").levels(made.schedule, 10), difftool.CLEAN]
    theirs.set_timesteps(sigmas=[level.sigma for level in levels[:-1]])
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        *_, last = difftool.component("sampler", "ddim").sample(made.denoiser(network), x, levels, torch.zeros_like)
        for t, level in zip(theirs.timesteps, levels, strict=False):
            velocity = network(x / level.norm, torch.full((5,), level.t), None)
            x = theirs.step(velocity, t, x).prev_sample
    torch.testing.assert_close(last.x, x, rtol=1e-4, atol=1e-5)


def test_flow_matching_brings_noise_to_a_gaussian_along_the_exact_flow() -> None:
    """With the exact velocity of N(m, s^2), z ends at m + s z, and Euler's error falls in proportion to the step."""
    made, m, s = paper("flow_matching"), 0.7, 0.4
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def exact(x: Tensor, level: difftool.Level) -> Estimate:
        gain = level.alpha * s**2 / ((level.alpha * s) ** 2 + level.sigma**2)
        x_0 = m + gain * (x - level.alpha * m)
        return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)

    errors = []
    for steps in (25, 50, 100):
        levels = [*difftool.component("spacing", "trailing").levels(made.schedule, steps), difftool.CLEAN]
        *_, last = difftool.component("sampler", "ddim").sample(exact, z, levels, torch.zeros_like)
        errors.append(float((last.x - (m + s * z)).abs().max()))
    assert errors[2] < 0.02
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 1.8 < errors[1] / errors[2] < 2.2
