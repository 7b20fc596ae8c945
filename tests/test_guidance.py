"""Guidance: the built-in ones against formulas and closed forms, other runs, counted calls, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import IMAGES, POINTS, Outcome, Run
from torch import Tensor

import difftool
from difftool import (
    Component,
    Condition,
    Dataset,
    Denoise,
    Estimate,
    Guidance,
    GuidanceSpec,
    Level,
    Predictions,
    Sampler,
    Schedule,
    component,
    option,
)
from difftool.data.facts import DataFacts
from difftool.data.scaling import Scaling
from difftool.plugins.validation import problem
from difftool.sampling.comparison import Comparison, conditions_of_items, entries
from difftool.sampling.denoiser import Counted, clipped
from difftool.sampling.loop import draw, sample
from difftool.sampling.matching import check_same_data, matched
from difftool.sampling.oracle import OracleSource
from difftool.sampling.plan import Plan
from difftool.sampling.predictions import guided as guided_by
from difftool.sampling.source import Source
from difftool.settings import Sampling
from difftool.testing import guidances as laws
from difftool.testing.examine import check_law
from difftool.testing.laws import Failed, Law, name_of
from difftool_plugins.samplers.spacings import Trailing
from difftool_plugins.schedules.variance_preserving import Linear

LINEAR = Linear().build(1000)


def of(x_0: Callable[[Tensor], Tensor]) -> Denoise:
    """The denoiser that finds this x_0."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        found = x_0(x)
        return Estimate(found, (x - level.alpha * found) / level.sigma)

    return denoise


conditional, opposite = of(lambda x: 0.7 + 0.4 * x), of(lambda x: -0.3 * x + 0.1)
FLAT = of(lambda x: torch.full_like(x, 0.5))


def normal(shape: Sequence[int], seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def guided(name: str, c: Denoise, u: Denoise, *, is_image: bool = True, **options: Any) -> Denoise:
    """The denoiser that a built-in guidance makes of two: the model's, and the one without a condition, or worse."""
    guidance = component("guidance", name, **options)
    assert isinstance(guidance, Guidance)
    spec = GuidanceSpec(
        shape=(3, 4, 4),
        schedule=LINEAR,
        is_image=is_image,
        count=5,
        decode=lambda x: x,
        scaling=Scaling((0.0,), (1.0,)),
        device=torch.device("cpu"),
    )

    def predict(*, hidden: bool = False, run: Path | None = None, weights: str = "ema", **_: object) -> Denoise:
        return u if hidden or run is not None else c

    return guidance.denoiser(predict, spec)


# The formulas


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 7.5])
@pytest.mark.parametrize(("name", "options"), [("cfg", {}), ("autoguidance", {"run": Path("worse")})])
def test_guidance_extrapolates_from_the_weaker_estimate(name: str, options: dict[str, Any], scale: float) -> None:
    c_0, c_eps, u_0, u_eps = normal([4, 3, 30]).unbind()
    denoise = guided(
        name, lambda x, level: Estimate(c_0, c_eps), lambda x, level: Estimate(u_0, u_eps), scale=scale, **options
    )
    found = denoise(torch.zeros(3, 30, dtype=torch.float64), LINEAR[500])
    torch.testing.assert_close(found.x_0, u_0 + scale * (c_0 - u_0), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.eps, u_eps + scale * (c_eps - u_eps), rtol=0, atol=1e-13)
    if scale in (0.0, 1.0):
        assert torch.equal(found.x_0, (u_0, c_0)[int(scale)])


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaled_guidance_has_the_deviation_of_the_conditional(phi: float) -> None:
    """Lin et al. (2024), eq. 15-16, item by item."""
    x, level = normal([5, 3, 4, 4]), LINEAR[400]
    found = guided("cfg", conditional, opposite, scale=4.0, rescale=phi)(x, level).x_0
    c, u = conditional(x, level).x_0, opposite(x, level).x_0
    plain = u + 4 * (c - u)
    for i in range(5):
        rescaled = plain[i] * c[i].std(correction=0) / plain[i].std(correction=0)
        torch.testing.assert_close(found[i], phi * rescaled + (1 - phi) * plain[i], rtol=0, atol=1e-12)
        if phi == 1.0:
            assert float(found[i].std()) == pytest.approx(float(c[i].std()), rel=1e-12)


def test_a_flat_image_survives_rescaling() -> None:
    found = guided("cfg", FLAT, FLAT, scale=3.0, rescale=1.0)(normal([2, 3, 4, 4]), LINEAR[400])
    assert bool(torch.isfinite(found.x_0).all())


@pytest.mark.parametrize(("name", "options"), [("cfg", {}), ("autoguidance", {"run": Path("worse")})])
def test_guidance_within_an_interval_calls_the_other_model_only_there(name: str, options: dict[str, Any]) -> None:
    c, u = Counted(conditional), Counted(opposite)
    low, high = 0.5, 3.0
    denoise = guided(name, c, u, scale=3.0, interval=(low, high), **options)
    everywhere = guided(name, conditional, opposite, scale=3.0, **options)
    x, levels = normal([4, 2]), Trailing().levels(LINEAR, 20)
    inside = [low <= level.sigma / level.alpha <= high for level in levels]
    assert 3 < sum(inside) < 17
    for level, here in zip(levels, inside, strict=True):
        assert torch.equal(denoise(x, level).x_0, (everywhere if here else conditional)(x, level).x_0)
    assert (c.calls, u.calls) == (20, sum(inside))


def test_no_signal_lies_beyond_every_interval() -> None:
    u = Counted(opposite)
    guided("cfg", conditional, u, interval=(0.1, 1e6))(normal([2, 2]), Level(999.0, 0.0, 1.0))
    assert u.calls == 0


EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    "cfg": ("cfg", {"scale": 3.0}),
    "rescaled": ("cfg", {"scale": 3.0, "rescale": 0.7}),
    "interval": ("cfg", {"scale": 3.0, "interval": (0.1, 2.0)}),
    "autoguidance": ("autoguidance", {"run": Path("worse"), "scale": 3.0}),
    "apg": ("apg", {"scale": 3.0, "norm": 0.5, "parallel": 0.3}),
}
every_guidance = pytest.mark.parametrize(("name", "options"), EVERY.values(), ids=EVERY.keys())


@every_guidance
@pytest.mark.parametrize("schedule", ["linear", "ve", "flow"])
def test_every_estimate_still_describes_x_t(name: str, options: dict[str, Any], schedule: str) -> None:
    table = component("schedule", schedule).build(1000)  # type: ignore[attr-defined]
    denoise = guided(name, conditional, opposite, **options)
    for t in (990, 500, 5):
        level, x = table[t], table[t].norm * normal([4, 30])
        found = denoise(x, level)
        torch.testing.assert_close(level.alpha * found.x_0 + level.sigma * found.eps, x, rtol=1e-9, atol=1e-9)


@every_guidance
def test_what_else_an_estimate_says_is_kept(name: str, options: dict[str, Any]) -> None:
    part, x, level = normal([2, 3]), normal([2, 3]), LINEAR[300]
    u = opposite(x, level)
    found = guided(name, lambda x, level: Estimate(x, x, variance_fraction=part), opposite, **options)(x, level)
    assert found.variance_fraction is part
    clip = clipped(guided(name, conditional, opposite, **options), (-0.1, 0.1))(x, level)
    if name == "autoguidance":  # its worse model is no unconditional one
        assert found.unconditional is clip.unconditional is None
    else:
        assert found.unconditional is not None
        assert clip.unconditional is not None
        assert torch.equal(found.unconditional.x_0, u.x_0)
        assert torch.equal(clip.unconditional.eps, u.eps)


# Closed forms


class Gaussians(Source):
    """Exact denoisers of Gaussian data, in units of their own: N(m_k, s^2) in class k, N(m, s^2) without a class."""

    name = schedule_name = description = "gaussians"

    def __init__(
        self,
        *,
        means: Sequence[float] = (2.0, -1.0),
        mean: float = 0.5,
        std: float = 0.7,
        shift: Sequence[float] = (0.0,),
        scale: Sequence[float] = (1.0,),
        schedule: str = "linear",
        timesteps: int = 1000,
        other: Gaussians | None = None,
    ) -> None:
        self.data = DataFacts(shape=(2,), shift=tuple(shift), scale=tuple(scale), class_names=("a", "b"))
        self.schedule: Schedule = component("schedule", schedule).build(timesteps)  # type: ignore[attr-defined]
        self.device, self.means, self.mean, self.std, self.elsewhere = torch.device("cpu"), means, mean, std, other
        self.opened = 0

    def denoiser(self, count: int, *, condition: Any = None, autocast: Any = None, gradients: bool = False) -> Denoise:
        shift, scale = (torch.tensor(v) for v in (self.data.shift, self.data.scale))
        means = torch.full((count, 1), self.mean)
        if condition is not None and condition.label is not None:
            means = torch.tensor(self.means)[condition.label].view(-1, 1)
        m, s = (means - shift) / scale, self.std / scale

        def denoise(x: Tensor, level: Level) -> Estimate:
            if math.isnan(level.t):  # as a network does, which knows the levels of its table alone
                twin = self.schedule.at(self.schedule.t_of(level.log_snr))
                x_twin = x * (twin.norm / level.norm)
                return Estimate(denoise(x_twin, twin).x_0, x).with_x_0(denoise(x_twin, twin).x_0, x, level)
            with torch.set_grad_enabled(gradients):
                gain = level.alpha * s**2 / (level.alpha**2 * s**2 + level.sigma**2)
                x_0 = m + gain * (x - level.alpha * m)
                return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)

        return denoise

    def open_other(self, run: Path, weights: str) -> Source:
        assert self.elsewhere is not None
        self.opened += 1
        return self.elsewhere

    def load_samples(self) -> Any:
        raise difftool.UsageError("none")


def plan_of(source: Source, guidance: Any = None, **settings: Any) -> Plan:
    return Plan.of(source, Sampling(**settings), guidance=guidance)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.0, 5.0])
def test_guided_samples_of_gaussians_of_one_width_are_gaussian(w: float) -> None:
    """u + w (c - u) is then the denoiser of N(m_u + w (m_c - m_u), s^2), whose flow keeps each quantile."""
    source = Gaussians()
    plan = Plan.of(source, Sampling(num_samples=50, steps=400, label="a"), sampler="dpmpp-2m", guidance=w)
    first = plan.levels[0]
    x_T = next(sample(source, plan)).x
    m, s = 0.5 + w * 1.5, 0.7
    exact = m + s / math.hypot(first.alpha * s, first.sigma) * (x_T - first.alpha * m)
    torch.testing.assert_close(draw(source, plan), exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("w", [0.5, 3.0])
def test_guidance_of_a_mixture_is_that_of_its_scores(w: float) -> None:
    """eps = -sigma grad log p_t, with p_t of the mixture and of one of its components, differentiated by torch."""
    dataset = component("dataset", "gaussian-mixture", components=4, labels=True, n=400)
    noise = component("schedule", "linear")
    source = OracleSource.of(component("oracle", "closed-form"), dataset, noise)  # type: ignore[arg-type]
    mixture = source.samples.mixture
    assert mixture is not None
    plan = plan_of(source, w, label="2", num_samples=30)
    denoise = guided_by(plan.guidance, plan.predictions(source, 0, 30))
    means = source.data.scaling.to_model(mixture.means).double()
    std = mixture.std / torch.tensor(source.data.scale).double()

    def log_density(x: Tensor, level: Level, chosen: Tensor) -> Tensor:
        variance = (level.alpha * std) ** 2 + level.sigma**2
        squares = ((x[:, None] - level.alpha * chosen) ** 2 / variance).sum(2)
        return torch.logsumexp(-squares / 2, dim=1)

    for t in (900, 500, 150):
        level = source.schedule[t]
        x = normal([30, 2]).requires_grad_()
        log_p = (1 - w) * log_density(x, level, means) + w * log_density(x, level, means[mixture.labels == 2])
        (score,) = torch.autograd.grad(log_p.sum(), x)
        with torch.no_grad():
            found = denoise(x.detach(), level)
        torch.testing.assert_close(found.eps, -level.sigma * score, rtol=1e-6, atol=1e-6)


# Other runs


UNITS: dict[str, dict[str, Any]] = {
    "the same": {},
    "another schedule": {"schedule": "cosine", "timesteps": 300},
    "straight lines": {"schedule": "flow"},
    "variance exploding": {"schedule": "ve"},
    "another scale": {"scale": (3.0,), "shift": (0.4,)},
    "shift of each coordinate": {"scale": (0.5, 0.5), "shift": (0.4, -2.0)},
    "both": {"schedule": "ve", "scale": (2.0,), "shift": (-1.0,)},
}


@pytest.mark.parametrize("options", UNITS.values(), ids=UNITS.keys())
@pytest.mark.parametrize("mine", ["linear", "ve"])
def test_another_run_is_called_at_the_same_signal_to_noise_ratio(mine: str, options: dict[str, Any]) -> None:
    """Both know the same data exactly, so they must agree, whatever schedule and units the other has."""
    source = Gaussians(schedule=mine, scale=(1.5,), shift=(0.2,))
    other = Gaussians(**{"scale": (1.5,), "shift": (0.2,), **options})
    condition = Condition.shown({"label": torch.tensor([0, 1, 0])})
    alone = source.denoiser(3, condition=condition)
    check_same_data(source, other)
    found = matched(other.denoiser(3, condition=condition), source, other)
    for t in (800, 500, 30):
        level = source.schedule[t]
        x = level.norm * normal([3, 2]).float()
        estimate, exact = found(x, level), alone(x, level)
        torch.testing.assert_close(estimate.x_0, exact.x_0, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(level.alpha * estimate.x_0 + level.sigma * estimate.eps, x, rtol=1e-4, atol=1e-4)


def test_a_run_of_the_same_schedule_and_units_is_called_as_it_is() -> None:
    source, other = Gaussians(), Gaussians(std=0.2)
    denoise = other.denoiser(1)
    assert matched(denoise, source, other) is denoise


def test_scales_of_two_draws_of_the_same_data_are_almost_the_same_noise() -> None:
    source, other = Gaussians(scale=(1.0, 2.0)), Gaussians(scale=(1.01, 1.98))
    check_same_data(source, other)
    level, x = LINEAR[400], normal([1, 2]).float()
    found, exact = matched(other.denoiser(1), source, other)(x, level), source.denoiser(1)(x, level)
    torch.testing.assert_close(found.x_0, exact.x_0, rtol=0, atol=0.02)
    with pytest.raises(difftool.UsageError, match="scales the coordinates or channels of its data in other proport"):
        check_same_data(source, Gaussians(scale=(1.0, 1.0)))


def test_another_run_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Gaussians(other=Gaussians(std=1.4))
    guidance = component("guidance", "autoguidance", run=Path("x"))
    chosen = Sampling(num_samples=10, batch_size=3)
    made = [Plan.of(source, chosen, guidance=guidance, sampler=name) for name in ("ddim", "heun")]
    for plan in made:
        assert draw(source, plan).isfinite().all()
    assert source.opened == 1


def small_run(run: Run, name: str, *options: object) -> Path:
    base = ("--dataset", "gaussian-mixture", "--dataset.components", 4, "--dataset.labels", "--dataset.n", 2000)
    tiny = ("--backbone.width", 16, "--backbone.depth", 1, "--batch-size", 64, "--steps", 60, "--preview-every", 0)
    assert run("train", *base, *tiny, *options, "--out", name).code == 0
    return Path(name)


def test_autoguidance_by_a_run_of_another_schedule(run: Run, labels_run: Path) -> None:
    small = small_run(run, "small", "--schedule", "cosine", "--timesteps", 300, "--prediction", "v")
    model, worse = (difftool.load(path, device="cpu") for path in (labels_run, small))
    guidance = component("guidance", "autoguidance", run=small, scale=3.0)
    plan = plan_of(model, guidance, label="1", num_samples=5)
    condition = Condition.of_labels(torch.full((5,), 1), 4)
    m, b = model.denoiser(5, condition=condition), worse.denoiser(5, condition=condition)
    denoise = guided_by(plan.guidance, plan.predictions(model, 0, 5))
    for t in (900, 400, 50):
        level, x = model.schedule[t], normal([5, 2]).float()
        strong, weak = m(x, level), b(x, Level.of(level.alpha, level.sigma))
        torch.testing.assert_close(denoise(x, level).x_0, weak.x_0 + 3 * (strong.x_0 - weak.x_0), rtol=1e-4, atol=1e-4)
    without = plan_of(model, guidance, num_samples=5)  # it needs no condition
    assert draw(model, without).isfinite().all()


def test_autoguidance_at_scale_0_is_the_worse_run(run: Run, labels_run: Path) -> None:
    small = small_run(run, "small")
    model, worse = (difftool.load(path, device="cpu") for path in (labels_run, small))
    off = model.sample(20, label=2, steps=10, guidance=component("guidance", "autoguidance", run=small, scale=0.0))
    assert torch.equal(off, worse.sample(20, label=2, steps=10))
    on = component("guidance", "autoguidance", run=small, scale=1.0)
    assert torch.equal(model.sample(20, label=2, steps=10, guidance=on), model.sample(20, label=2, steps=10))


def test_runs_that_do_not_fit_are_refused(run: Run, labels_run: Path, points_run: Path, images_run: Path) -> None:
    def refusal(model: Path, other: Path, *options: object) -> str:
        outcome = run("sample", model, "--guidance", "autoguidance", "--guidance.run", other, *options)
        assert outcome.code == 2, outcome.err
        return outcome.error

    shapes = "the data of gradients-unet are images of 3x8x8, and those of swiss-roll-mlp points of 2"
    assert shapes in refusal(points_run, images_run)
    words = "gaussian-mixture-mlp knows 3 classes: 0, 1, 2, not 4 classes: 0, 1, 2, 3"
    three = small_run(run, "three", "--dataset.components", 3)
    assert words in refusal(labels_run, three, "--label", 0)
    needy = small_run(run, "needy", "--condition-dropout", 0)
    words = "gaussian-mixture-mlp needs a label, and the samples have none"
    assert words in refusal(labels_run, needy, "--label", "none")
    assert "unknown weights 'ema-0.5'" in refusal(labels_run, three, "--guidance.weights", "ema-0.5")


def test_runs_on_latents_need_the_same_codec(run: Run, images_run: Path) -> None:
    def latents(name: str, *options: object) -> str:
        outcome = run("train", *IMAGES, "--dataset", "gradients", "--steps", 2, *options, "--out", name)
        assert outcome.code == 0, outcome.err
        return name

    def guide(model: object, other: object) -> Outcome:
        return run("sample", model, "--guidance", "autoguidance", "--guidance.run", other, *few)

    few = ("-n", 2, "--steps", 2, "--out", "x.npy", "--overwrite")
    pca = ("--codec", "pca", "--codec.size", 4)
    a, b, c = latents("a", *pca), latents("b", *pca, "--lr", 0.1), latents("c", *pca, "--seed", 1)
    assert guide(a, b).code == 0
    for model, other in ((a, c), (a, images_run), (images_run, a)):
        assert "works in other latents than gradients-unet; both need the same codec" in guide(model, other).error


def test_conditions_of_other_runs_are_their_own(run: Run, labels_run: Path, points_run: Path) -> None:
    """Another run may be called without a condition, whether this model has one or not, and gets those it knows."""
    model = difftool.load(labels_run, device="cpu")
    worse = difftool.load(small_run(run, "small"), device="cpu")
    plain = small_run(run, "plain", "--condition", "none")
    x, level = normal([4, 2]).float(), LINEAR[300]
    labelled = plan_of(model, num_samples=4, label="3").predictions(model, 0, 4)
    chosen = Condition.of_labels(torch.tensor([0, 1, 2, 3]), 4)
    ours = {"hidden": labelled(run=Path("small"), hidden=True), "chosen": labelled(run=Path("small"), condition=chosen)}
    expected = {"hidden": worse.denoiser(4), "chosen": worse.denoiser(4, condition=chosen)}
    for what, denoise in ours.items():
        torch.testing.assert_close(denoise(x, level).x_0, expected[what](x, level).x_0, rtol=1e-5, atol=1e-5)
    assert labelled(run=plain)(x, level).x_0.isfinite().all()  # which knows no classes
    without = difftool.load(plain, device="cpu")
    bare = plan_of(without, num_samples=4).predictions(without, 0, 4)
    assert bare(run=Path("small"), hidden=True)(x, level).x_0.isfinite().all()
    with pytest.raises(difftool.UsageError, match="gaussian-mixture-mlp has no classes, and no other condition"):
        bare(condition=chosen)


# Gradients


def test_gradients_of_the_mean_lead_back_to_x() -> None:
    """For N(m, s^2), dx_0/dx is the gain; without `gradients`, estimates have no graph."""
    source = Gaussians()
    predictions = plan_of(source, num_samples=4).predictions(source, 0, 4)
    level, x = LINEAR[300], normal([4, 2]).float().requires_grad_()
    with torch.no_grad():
        estimate = predictions(gradients=True)(x, level)
        assert not predictions()(x, level).x_0.requires_grad
    (gradient,) = torch.autograd.grad(estimate.x_0.sum(), x)
    gain = level.alpha * 0.49 / (level.alpha**2 * 0.49 + level.sigma**2)
    torch.testing.assert_close(gradient, torch.full((4, 2), gain))
    assert predictions.calls == 2


class Pull(Guidance, name="pull"):
    """A gradient step towards 3, as in diffusion posterior sampling."""

    weights: str = option(default="", help="the run, if not the model itself")

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        model = predict(gradients=True, run=Path(self.weights) if self.weights else None)

        def denoise(x: Tensor, level: Level) -> Estimate:
            x = x.detach().requires_grad_()
            estimate = model(x, level)
            distance = (spec.decode(estimate.x_0) - 3.0).square().sum()
            (gradient,) = torch.autograd.grad(distance, x)
            return estimate.with_x_0(estimate.x_0 - gradient, x, level)

        return denoise


def test_a_guidance_by_gradients_follows_its_formula() -> None:
    source = Gaussians()
    plan = plan_of(source, Pull(), num_samples=4, label="none")
    denoise = guided_by(plan.guidance, predictions := plan.predictions(source, 0, 4))
    level, x = LINEAR[300], normal([4, 2]).float()
    with torch.no_grad():  # as sampling does
        found = denoise(x, level)
    x_0 = source.denoiser(4)(x, level).x_0
    gain = level.alpha * 0.49 / (level.alpha**2 * 0.49 + level.sigma**2)
    torch.testing.assert_close(found.x_0, x_0 - 2 * gain * (x_0 - 3.0))
    assert not found.x_0.requires_grad
    assert not found.eps.requires_grad
    assert predictions.calls == 1


def test_gradients_of_networks_and_oracles(labels_run: Path) -> None:
    """Against differences of two estimates, through the levels of another run as well."""
    model = difftool.load(labels_run, device="cpu")
    dataset = component("dataset", "gaussian-mixture", n=50)
    noise = component("schedule", "linear")
    oracle = OracleSource.of(component("oracle", "ideal"), dataset, noise)  # type: ignore[arg-type]
    for source, options in ((model, {}), (oracle, {}), (oracle, {"run": labels_run})):
        predict = plan_of(source, num_samples=3).predictions(source, 0, 3)
        denoise = predict(gradients=True, **options)
        level, x = source.schedule[500], normal([3, 2]).float().requires_grad_()
        direction = normal([3, 2], seed=5).float()
        (gradient,) = torch.autograd.grad(denoise(x, level).x_0.sum(), x)
        h = 1e-2
        with torch.no_grad():
            ends = [denoise(x + sign * h * direction, level).x_0.sum() for sign in (1, -1)]
        difference = float(ends[0] - ends[1]) / (2 * h)
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=0.05, abs=0.02)
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert draw(model, plan_of(model, Pull(), num_samples=5, steps=5)).isfinite().all()


def test_gradients_of_a_network_that_sees_its_last_estimate(run: Run) -> None:
    """Each step has a graph of its own: the last estimate is a constant in it."""
    assert run("train", *POINTS, "--self-condition", "--steps", 2, "--out", "x").code == 0
    model = difftool.load("x", device="cpu")
    assert model.sample(4, steps=3, guidance=Pull()).isfinite().all()


# Adaptive projected guidance


def published(c: Tensor, u: Tensor, w: float, eta: float, r: float, beta: float, average: Tensor) -> tuple[Tensor, ...]:
    """Algorithm 1 of Sadat, Hilliges & Weber (2025) for one item, in float64."""
    average = (c - u) + beta * average
    d = average * min(1.0, r / float(average.norm()))
    unit = c / c.norm()
    parallel = (d * unit).sum() * unit
    return c + (w - 1) * (d - parallel + eta * parallel), average


@pytest.mark.parametrize(
    ("eta", "r", "beta"), [(0.0, math.inf, 0.0), (0.3, 1.5, -0.5), (1.0, 1.5, 0.6), (0.0, 99, -0.75)]
)
def test_apg_is_the_published_algorithm(eta: float, r: float, beta: float) -> None:
    options = {} if math.isinf(r) else {"norm": r}
    denoise = guided("apg", conditional, opposite, scale=6.0, parallel=eta, momentum=beta, **options)
    averages = [torch.zeros(3, 4, 4, dtype=torch.float64)] * 5
    for number, t in enumerate((900, 600, 300, 50)):
        x, level = normal([5, 3, 4, 4], seed=number), LINEAR[t]
        found, c, u = denoise(x, level).x_0, conditional(x, level).x_0, opposite(x, level).x_0
        for i in range(5):
            expected, averages[i] = published(c[i], u[i], 6.0, eta, r, beta, averages[i])
            torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-11)


def test_apg_with_all_of_the_parallel_part_and_nothing_else_is_cfg() -> None:
    x, level = normal([5, 3, 4, 4]), LINEAR[300]
    found = guided("apg", conditional, opposite, scale=4.0, parallel=1.0, momentum=0.0)(x, level)
    expected = guided("cfg", conditional, opposite, scale=4.0)(x, level)
    torch.testing.assert_close(found.x_0, expected.x_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.eps, expected.eps, rtol=0, atol=1e-9)


def test_apg_keeps_the_length_of_the_conditional_for_small_steps() -> None:
    """Without the parallel part, c is turned and not lengthened: |x_0|^2 = |c|^2 + |(w - 1) d|^2."""
    x, level = normal([5, 3, 4, 4]), LINEAR[300]
    found, c = guided("apg", conditional, opposite, scale=3.0)(x, level).x_0, conditional(x, level).x_0
    torch.testing.assert_close(
        ((found - c) * c).flatten(1).sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_apg_of_zeros_is_finite() -> None:
    zero = of(torch.zeros_like)
    found = guided("apg", zero, zero, scale=4.0, norm=1.0)(normal([2, 3, 4, 4]), LINEAR[300])
    assert bool(found.x_0.isfinite().all())


# From Python


def test_python_takes_scales_names_and_components(labels_run: Path) -> None:
    model = difftool.load(labels_run, device="cpu")
    base: dict[str, Any] = {"label": 0, "steps": 5}
    two = model.sample(8, guidance=2, **base)
    for same in (2.0, "cfg", component("guidance", "cfg")):
        assert torch.equal(model.sample(8, guidance=same, **base), two)
    assert not torch.equal(model.sample(8, **base), two)
    for wrong in (True, [2.0], Guidance, {"scale": 2}):
        with pytest.raises(TypeError, match="a guidance is given by its name, by a scale such as 2, or as a Guidance"):
            model.sample(8, guidance=wrong, **base)  # type: ignore[arg-type]
    with pytest.raises(difftool.UsageError, match="--guidance: must be less than or equal to 1000"):
        model.sample(8, guidance=1001, **base)
    with pytest.raises(difftool.UsageError, match="unknown guidance '2'"):
        model.sample(8, guidance="2", **base)


@pytest.mark.parametrize("name", ["2", "007", "1e5", "nan", "inf", "infinity"])
@pytest.mark.parametrize("base", [Guidance, Sampler], ids=["guidance", "sampler"])
def test_names_that_are_numbers_are_refused(base: type[Component], name: str) -> None:
    made = type("Made", (base,), {"denoiser": None, "sample": None, "__doc__": "Made."}, name=name)
    assert problem(made) == f"Made: name must not be a number, as {name!r} is"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cfg", {"scale": 2.5}, "guidance 2.5"),
        (
            "cfg",
            {"interval": (0.3, 5.0), "rescale": 0.7},
            "guidance 2, only for sigma/alpha of 0.3 to 5, rescaled by 0.7",
        ),
        ("autoguidance", {"run": Path("runs/small")}, "autoguidance small, scale 2"),
        ("autoguidance", {"run": Path("x"), "weights": "raw", "scale": 3}, "autoguidance x, raw weights, scale 3"),
        ("apg", {"scale": 8.0}, "apg, scale 8, momentum -0.5"),
        ("apg", {"norm": 15.0, "parallel": 0.2}, "apg, scale 2, parallel 0.2, norm 15, momentum -0.5"),
    ],
)
def test_words(name: str, options: dict[str, Any], words: str) -> None:
    guidance = component("guidance", name, **options)
    assert isinstance(guidance, Guidance)
    assert guidance.words() == words
    assert Made(scale=3.0).words() == "made, scale 3.0"


def test_mistakes_of_a_guidance_name_it(labels_run: Path) -> None:
    model = difftool.load(labels_run, device="cpu")

    def outcome(change: Callable[[Predictions, GuidanceSpec], Denoise]) -> str:
        cls = type("Wrong", (Made,), {"denoiser": lambda self, predict, spec: change(predict, spec)}, name="wrong")
        with pytest.raises(difftool.DifftoolError) as error:
            model.sample(6, label=1, steps=2, guidance=cls())
        return str(error.value)

    zero = Condition(label=torch.zeros(2, dtype=torch.int64), hidden=torch.zeros(2, dtype=torch.bool))
    assert outcome(lambda predict, spec: predict(hidden=True, condition=spec.condition)).startswith(
        "guidance wrong: a denoiser is either hidden or under a condition"
    )
    assert "the condition is of 2 items, and the batch has 6" in outcome(lambda p, s: p(condition=zero))
    assert "guidance wrong gave no estimate shaped (6, 2)" in outcome(lambda p, s: lambda x, level: None)  # type: ignore
    assert "guidance wrong failed: ZeroDivisionError" in outcome(lambda p, s: lambda x, level: 1 / 0)  # type: ignore


# Comparisons


def test_compare_takes_guidances_as_an_axis(run: Run, labels_run: Path, tmp_path: Path) -> None:
    quick = ("--samplers", "ddim,heun", "--spacings", "trailing", "--calls", "4,12", "-n", 20, "--reference", 10)
    outcome = run("compare", labels_run, *quick, "--guidance", "1,3,apg", "--json", "--out", "x.png")
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["results"]
    found = {(row["guidance"]["name"], row["guidance"]["scale"], row["sampler"], row["calls"]): row for row in rows}
    assert {key[:2] for key in found} == {("cfg", 1.0), ("cfg", 3.0), ("apg", 2.0)}
    steps = {key: row["steps"] for key, row in found.items() if key[2] == "ddim"}
    assert steps["cfg", 1.0, "ddim", 12] == 12  # at scale 1 an estimate is one call, otherwise two
    assert steps["cfg", 3.0, "ddim", 12] == 6
    assert steps["apg", 2.0, "ddim", 4] == 2
    assert found["cfg", 3.0, "heun", 10]["steps"] == 3
    assert all(row["error"] > 0 for row in rows)
    assert "20 samples under the conditions of items" in outcome.err
    calls, total = re.findall(r"comparing (\d+)/(\d+)", outcome.err)[-1]
    assert calls == total
    lines = [line.split() for line in outcome.err.splitlines() if line.startswith("ddim")]
    assert lines[0][:4] == ["ddim", "trailing", "guidance", "1"]
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_the_calls_that_compare_announces_are_those_that_it_makes(labels_run: Path) -> None:
    model = difftool.load(labels_run, device="cpu")
    guidances = [component("guidance", "cfg", interval=(0.5, 3.0)), component("guidance", "cfg", scale=1.0)]
    settings = Sampling(num_samples=6, batch_size=4)
    conditions = conditions_of_items(model, settings)
    assert len(set(conditions["label"].tolist())) > 1
    assert conditions_of_items(model, Sampling(label="0")) == {}
    samplers, spacings = [component("sampler", "ddim")], [component("spacing", "trailing")]
    planned = entries(model, samplers, spacings, [5, 20], settings, conditions, guidances)  # type: ignore[arg-type]
    comparison = Comparison(model, model.recipe[Dataset], settings, 8, conditions, guidances)  # type: ignore[arg-type]
    results = [comparison.measure(entry, lambda words: None) for entry in planned]
    assert comparison.count.done == comparison.calls_of(planned)
    assert all(entry.calls <= limit for entry, limit in zip(planned, [5, 20, 5, 20], strict=True))
    assert planned[1].plan.steps < 20
    assert planned[3].plan.steps == 20
    solutions = [reference.solution(planned[0].plan.levels[0]) for reference in comparison.references.values()]
    assert float((solutions[0] - solutions[1]).abs().max()) > 0.01  # one for each guidance
    assert [result.entry.guidance for result in results] == [guidances[0]] * 2 + [guidances[1]] * 2


def test_compare_without_a_condition_to_guide_towards(run: Run, points_run: Path, labels_run: Path) -> None:
    outcome = run("compare", points_run, "--guidance", "2")
    assert (outcome.code, outcome.error) == (
        2,
        "difftool: error: --guidance: swiss-roll-mlp has no classes, and no other condition",
    )
    quick = ("--samplers", "ddim", "--spacings", "trailing", "--calls", 4, "-n", 4, "--reference", 4, "--out", "x.png")
    outcome = run("compare", labels_run, *quick, "--label", 1, "--guidance", "2", "--guidance.interval", "0.3,5")
    assert outcome.code == 0, outcome.err
    assert "4 samples of class 1, guidance 2, only for sigma/alpha of 0.3 to 5" in outcome.err


# From the command line


def test_the_calls_of_a_guided_trajectory_are_counted(run: Run, labels_run: Path) -> None:
    base = ("sample", labels_run, "-n", 4, "--steps", 20, "--label", 0, "--out", "x.npy", "--json", "--overwrite")

    def calls(*options: object) -> int:
        outcome = run(*base, *options)
        assert outcome.code == 0, outcome.err
        found = json.loads(outcome.out)["calls"]
        assert f"{found} network calls each" in outcome.err
        return int(found)

    inside = sum(0.5 <= level.sigma / level.alpha <= 3 for level in Trailing().levels(LINEAR, 20))
    assert 0 < inside < 20
    assert calls() == calls("--guidance", 1) == 20
    assert calls("--guidance", 2) == 40
    assert calls("--guidance", 2, "--guidance.interval", "0.5,3") == 20 + inside
    assert calls("--guidance", "autoguidance", "--guidance.run", labels_run) == 40


def test_an_interval_is_between_no_guidance_and_all_of_it(labels_run: Path) -> None:
    model = difftool.load(labels_run, device="cpu")
    base: dict[str, Any] = {"label": 0, "steps": 10}

    def within(*interval: float) -> Tensor:
        return model.sample(50, guidance=component("guidance", "cfg", scale=3.0, interval=interval), **base)

    plain, full = model.sample(50, **base), model.sample(50, guidance=3.0, **base)
    part = within(0.3, 2.0)
    assert torch.equal(within(1e5, 1e6), plain)
    assert torch.equal(within(0, 1e6), full)
    assert min(float((part - other).abs().max()) for other in (plain, full)) > 1e-3


def test_guidance_needs_a_network_that_knows_no_class(run: Run, tmp_path: Path) -> None:
    base = ("--dataset", "gaussian-mixture", "--dataset.labels", "--dataset.n", 100, "--backbone.width", 8)
    assert run("train", *base, "--condition-dropout", 0, "--steps", 1, "--preview-every", 0, "--out", "x").code == 0
    outcome = run("sample", "x", "--label", 0, "--guidance", 2)
    assert outcome.code == 2
    assert "--guidance: the model was trained with --condition-dropout 0 and has nothing" in outcome.error
    assert run("reconstruct", "x", "--out", "r.png").code == 0  # with the items' own labels


REFUSED: dict[str, tuple[list[object], str]] = {
    "rescale of points": (["--guidance", 2, "--guidance.rescale", 0.7], "guidance cfg: rescale brings back the contra"),
    "rescale without guidance": (["--guidance.rescale", 0.7], "is an option of the guidance cfg; choose it with --gui"),
    "interval reversed": (["--guidance", 2, "--guidance.interval", "5,0.3"], "--guidance.interval: must be LOW,HIGH"),
    "interval of one": (["--guidance", 2, "--guidance.interval", "3"], "--guidance.interval: must be LOW,HIGH"),
    "interval below 0": (["--guidance", 2, "--guidance.interval", "-1,3"], "--guidance.interval: must be greater than"),
    "interval of words": (["--guidance", 2, "--guidance.interval", "a,b"], "--guidance.interval"),
    "two scales": (["--guidance", 2, "--guidance.scale", 3], "--guidance.scale: --guidance 2 is a scale already"),
    "no such guidance": (["--guidance", "cgf"], "unknown guidance 'cgf'; did you mean 'cfg'?"),
    "an empty word": (["--guidance", "1,,2"], "--guidance: must be scales or names joined by commas, such as 1,2,4"),
    "scale out of range": (["--guidance", "2000"], "--guidance: must be less than or equal to 1000"),
    "not finite": (["--guidance", "nan"], "--guidance: must be a finite number"),
    "no run": (["--guidance", "autoguidance"], "--guidance.run"),
    "run is nowhere": (["--guidance", "autoguidance", "--guidance.run", "nowhere"], "nowhere does not exist"),
}


@pytest.mark.parametrize(("arguments", "piece"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_guidance_is_refused(run: Run, labels_run: Path, arguments: list[object], piece: str) -> None:
    outcome = run("sample", labels_run, "--label", 0, *arguments)
    assert outcome.code in (1, 2)
    assert piece in outcome.error


# The laws


def shifted(estimate: Estimate, x: Tensor, level: Level, by: Tensor | float = 0.1) -> Estimate:
    return estimate.with_x_0(estimate.x_0 + by, x, level)


class Made(Guidance, name="made"):
    """A guidance made by a function."""

    scale: float = option(default=2.0, help="a scale")
    change: ClassVar[Callable[[Estimate, Tensor, Level], Estimate]] = shifted

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        model = predict()
        return lambda x, level: type(self).change(model(x, level), x, level)


def made(change: Callable[[Estimate, Tensor, Level], Estimate]) -> Guidance:
    return type("Changed", (Made,), {"change": staticmethod(change), "__doc__": "Changed."}, name="changed")()  # type: ignore


def in_place(estimate: Estimate, x: Tensor, level: Level) -> Estimate:
    x.add_(1.0)
    return estimate


class Remembers(Made, name="remembers"):
    """A guidance that returns the same tensor again and again."""

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        model, kept = predict(), torch.zeros(spec.count, *spec.shape)

        def denoise(x: Tensor, level: Level) -> Estimate:
            return model(x, level).with_x_0(kept.add_(0.1), x, level)

        return denoise


class Twice(Made, name="twice"):
    """A guidance that calls the model twice for nothing."""

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        model = predict()

        def denoise(x: Tensor, level: Level) -> Estimate:
            model(x, level)
            return model(x, level)

        return denoise


class Adaptive(Made, name="adaptive"):
    """A guidance whose calls depend on x."""

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        model, other = predict(), predict(run=Path("other"))

        def denoise(x: Tensor, level: Level) -> Estimate:
            found = model(x, level)
            return other(x, level) if float(found.x_0.abs().max()) > 0.0 else found

        return denoise


class Refuses(Made, name="refuses"):
    """A guidance that fits nothing."""

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        raise ValueError("no such data")


BROKEN: dict[Law, dict[str, Guidance]] = {
    laws.gives_consistent_estimates: {
        "points with classes on linear: alpha x_0 + sigma eps is 0.": made(
            lambda e, x, level: Estimate(e.x_0 + 0.1 / max(level.alpha, 0.01), e.eps)
        ),
        "alpha x_0 + sigma eps is inf from the noisy state": made(lambda e, x, level: Estimate(e.x_0 / 0.0, e.eps)),
        "guidance changed gave no estimate shaped (6, 2)": made(lambda e, x, level: Estimate(e.x_0[:1], e.eps)),
        "guidance changed failed: ZeroDivisionError": made(lambda e, x, level: Estimate(e.x_0, e.eps * (1 / 0))),
    },
    laws.is_off_at_scale_1: {
        "with scale 1 its x_0 is 0.1 from the model's": made(shifted),
        "with scale 1 it makes 14 calls for 7 estimates": Twice(),
    },
    laws.is_reproducible: {"two x_0 at log-SNR": made(lambda e, x, level: shifted(e, x, level, torch.rand(1)))},
    laws.is_independent_of_the_batch_size: {
        "between batches of 1 and 6": made(lambda e, x, level: shifted(e, x, level, x.mean())),
    },
    laws.modifies_no_tensor_in_place: {
        "a state that it was called with was changed in place": made(in_place),
        "a x_0 was changed in place later; make new tensors": Remembers(),
    },
    laws.makes_calls_that_depend_on_the_level_alone: {"2 calls at log-SNR -10.1, but 1 on zeros": Adaptive()},
}


@pytest.mark.parametrize(
    ("guidance", "law", "words"),
    [
        pytest.param(guidance, law, words, id=f"{name_of(law)}: {words[:30]}")
        for law, found in BROKEN.items()
        for words, guidance in found.items()
    ],
)
def test_guidances_that_fail_a_law(guidance: Guidance, law: Law, words: str) -> None:
    finding = check_law(law, laws.prepare(guidance))
    assert finding.failed, finding
    assert words in finding.measured


def test_every_law_of_guidances_can_fail() -> None:
    assert {*BROKEN} == {*laws.LAWS} - {laws.works_on_every_device}


def test_a_guidance_that_fits_nothing_cannot_be_checked() -> None:
    words = "it refuses everything: points with classes: guidance refuses: no such data; images with classes: "
    with pytest.raises(Failed, match=f"^{words}"):
        laws.prepare(Refuses())
