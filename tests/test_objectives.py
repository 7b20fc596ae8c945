"""Weightings and time densities against the papers' forms, and the objective they make with a prediction type."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from conftest import POINTS, Run
from torch import Tensor

from difftool import Condition, NoiseSchedule, ObjectiveSpec, Prediction, TimestepSampling, Weighting
from difftool.data.facts import DataFacts
from difftool.diffusion.prediction import native_weight, tables
from difftool.errors import UsageError
from difftool.plugins.validation import problem
from difftool.training.inputs import StepNoise
from difftool.training.loss import Objective, distribution
from difftool.training.minimise import Predictor, batch_of, minimise, recorded_losses
from difftool_plugins.objectives import difftool_predictions, difftool_timestep_samplings, difftool_weightings
from difftool_plugins.objectives.losses import MSE
from difftool_plugins.objectives.predictions import (
    EDMPrediction,
    EpsPrediction,
    FlowPrediction,
    VPrediction,
    X0Prediction,
)
from difftool_plugins.objectives.timestep_sampling import LogitNormal, LogNormal, Uniform
from difftool_plugins.objectives.weightings import P2, SNR, EDMWeighting, MinSNR, SoftMinSNR, Unweighted
from difftool_plugins.schedules.log_snr import Laplace
from difftool_plugins.schedules.paths import VE, Flow
from difftool_plugins.schedules.variance_preserving import Cosine, Linear

SCHEDULES: dict[str, NoiseSchedule] = {
    "linear": Linear(),
    "cosine": Cosine(),
    "laplace": Laplace(),
    "zero-snr": Linear(zero_snr=True),
    "flow": Flow(),
    "ve": VE(),
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_prediction = pytest.mark.parametrize("prediction", [c() for c in difftool_predictions()], ids=lambda p: p.name)
SD = 0.7


def spec(name: str, T: int = 200) -> ObjectiveSpec:
    return ObjectiveSpec(schedule=SCHEDULES[name].build(T), sigma_data=SD)


def facts(**values: Any) -> DataFacts:
    return DataFacts(shape=(2,), shift=(0.0, 0.0), scale=(1.0, 1.0), **values)


def objective(
    about: ObjectiveSpec,
    prediction: Prediction | None = None,
    weighting: Weighting | None = None,
    time: TimestepSampling | None = None,
    **options: Any,
) -> Objective:
    return Objective(
        about,
        prediction or EpsPrediction(),
        weighting or Unweighted(),
        time or Uniform(),
        MSE(),
        device=torch.device("cpu"),
        data=facts(),
        **options,
    )


def factor(weighting: Weighting, prediction: Prediction, about: ObjectiveSpec) -> Tensor:
    """What the squared error of the answer is multiplied by."""
    _, _, det = tables(prediction, about)
    native = native_weight(det, about.schedule.sigma)
    return weighting.weight(native, about) / native


# --- weightings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "cosine", "laplace", "ve", "flow"])
def test_min_snr_has_its_published_factors(name: str) -> None:
    about = spec(name)
    alpha, sigma, snr = about.schedule.alpha, about.schedule.sigma, about.schedule.snr
    for gamma in (5.0, 1.0):
        capped = snr.clamp(max=gamma)
        published: list[tuple[Prediction, Tensor]] = [
            (EpsPrediction(), capped / snr),
            (X0Prediction(), capped),
            (VPrediction(), capped / (snr + 1)),
            (FlowPrediction(), capped * sigma**2 / (alpha + sigma) ** 2),
        ]
        for prediction, expected in published[1:] if name == "flow" else published:
            found = factor(MinSNR(gamma=gamma), prediction, about)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert MinSNR().gamma == 5.0


@pytest.mark.parametrize(("k", "gamma"), [(1.0, 1.0), (1.0, 0.5), (2.0, 1.0), (1.0, 0.0)])
def test_p2_divides_the_loss_of_eps(k: float, gamma: float) -> None:
    """Choi et al. (2022), eq. 8, with lambda of the plain loss of eps."""
    about = spec("linear")
    bar = about.schedule.alpha_bars
    expected = 1 / (k + bar / (1 - bar)) ** gamma
    torch.testing.assert_close(factor(P2(k=k, gamma=gamma), EpsPrediction(), about), expected, rtol=1e-9, atol=0)
    if (k, gamma) == (1.0, 1.0):  # 1/(1 + snr) is the share of noise
        torch.testing.assert_close(factor(P2(), EpsPrediction(), about), 1 - bar, rtol=1e-9, atol=0)


def test_edm_weighs_by_its_lambda() -> None:
    about = spec("ve")
    s = about.schedule.sigma
    published = (s**2 + SD**2) / (s * SD) ** 2
    torch.testing.assert_close(factor(EDMWeighting(), X0Prediction(), about), published, rtol=1e-12, atol=0)
    for name in SCHEDULES:  # so the plain loss of F is what EDM minimises
        found = factor(EDMWeighting(), EDMPrediction(), spec(name))
        torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-10, atol=0)


def test_soft_min_snr_as_k_diffusion_has_it() -> None:
    """On the loss of EDM's F it is (s sd)^2/(s^2 + sd^2)^2, with gamma = 1/sd^2."""
    about = spec("ve")
    s = about.schedule.sigma
    found = factor(SoftMinSNR(gamma=1 / SD**2), EDMPrediction(), about)
    torch.testing.assert_close(found, (s * SD) ** 2 / (s**2 + SD**2) ** 2, rtol=1e-10, atol=0)


def test_soft_min_snr_is_below_min_snr_and_near_it_far_from_the_kink() -> None:
    about = spec("linear")
    native = torch.ones_like(about.schedule.snr)
    soft, hard = SoftMinSNR(gamma=5).weight(native, about), MinSNR(gamma=5).weight(native, about)
    assert bool((soft < hard).all())
    assert float((hard / soft).max()) == pytest.approx(2.0, rel=0.05)  # where snr = gamma
    assert float((hard / soft)[0]) == pytest.approx(1.0, abs=0.01)
    assert float((hard / soft)[-1]) == pytest.approx(1.0, abs=0.01)


@every_prediction
@every_schedule
def test_snr_makes_any_loss_that_of_eps(prediction: Prediction, name: str) -> None:
    about = spec(name)
    if prediction.name == "eps":
        return
    _, _, det = tables(prediction, about)
    found = factor(SNR(), prediction, about)
    expected = (about.schedule.alpha / det) ** 2  # an error e of the answer is one of e alpha/det of eps
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@every_schedule
@pytest.mark.parametrize("T", [2, 1000])
def test_factors_are_finite_wherever_the_prediction_is_defined(name: str, T: int) -> None:
    about = spec(name, 21 if T == 2 and name in ("linear", "zero-snr") else T)  # shorter ones warn of a cap
    for one, other in product(difftool_predictions(), difftool_weightings()):
        prediction, weighting = one(), other()
        pair = f"{prediction.name}, {weighting.name}"
        if prediction.name == "eps" and name in ("zero-snr", "flow"):
            with pytest.raises(UsageError, match="no finite weight at some level"):
                objective(about, prediction, weighting)
            continue
        made = objective(about, prediction, weighting)
        assert bool(torch.isfinite(made.factor).all()), pair
        assert bool((made.factor[about.schedule.alpha > 0] > 0).all()), pair


@every_prediction
def test_unweighted_is_one(prediction: Prediction) -> None:
    made = objective(spec("cosine"), prediction)
    assert bool((made.factor == 1.0).all())
    assert not made.weighted


# --- how often a level is drawn ------------------------------------------------------------------------------------


def normal_mass(low: float, high: float, mean: float, std: float, n: int = 2001) -> float:
    """The trapezoidal rule, within 10 standard deviations."""
    low, high = max(low, mean - 10 * std), min(high, mean + 10 * std)
    if low >= high:
        return 0.0
    x = torch.linspace(low, high, n, dtype=torch.float64)
    density = (-((x - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi))
    return float(torch.trapezoid(density, x))


@every_schedule
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.0, 0.3), (3.0, 2.0)])
def test_log_normal_holds_the_mass_around_each_level(name: str, mean: float, std: float) -> None:
    schedule = SCHEDULES[name].build(25)
    found = LogNormal(mean=mean, std=std).density(ObjectiveSpec(schedule=schedule)).tolist()
    halfway = [schedule.at(t + 0.5) for t in range(24)]
    borders = [-math.inf, *(math.log(x.sigma / x.alpha) for x in halfway), math.inf]
    for i in range(25):
        assert found[i] == pytest.approx(normal_mass(borders[i], borders[i + 1], mean, std), abs=2e-5)
    assert math.fsum(found) == pytest.approx(1.0, abs=1e-12)


def test_log_normal_is_edms_distribution_of_sigma() -> None:
    schedule = VE().build(4000)
    density = LogNormal().density(ObjectiveSpec(schedule=schedule))
    x = schedule.sigma.log()
    step = math.log(80 / 0.002) / 3999
    expected = (-((x + 1.2) ** 2) / (2 * 1.2**2)).exp() / (1.2 * math.sqrt(2 * math.pi)) * step
    torch.testing.assert_close(density[1:-1], expected[1:-1], rtol=0, atol=1e-3 * float(expected.max()))
    assert float((density * x).sum()) == pytest.approx(-1.2, abs=1e-3)
    assert float((density * (x + 1.2) ** 2).sum()) == pytest.approx(1.44, abs=5e-3)


def test_a_level_without_signal_has_its_share() -> None:
    for name in ("flow", "zero-snr"):
        far = LogNormal(mean=12.0, std=1.0).density(spec(name))
        assert float(far[-1]) > 0.99
        assert bool((far >= 0).all())
    assert LogNormal().density(ObjectiveSpec(schedule=Flow().build(1))).tolist() == [1.0]
    assert LogitNormal().density(ObjectiveSpec(schedule=Flow().build(1))).tolist() == [1.0]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.6)])
def test_logit_normal_holds_the_mass_of_its_part_of_the_table(mean: float, std: float) -> None:
    found = LogitNormal(mean=mean, std=std).density(spec("cosine", 20)).tolist()
    for i in range(20):
        low = math.log(i / (20 - i)) if i else -math.inf
        high = math.log((i + 1) / (19 - i)) if i < 19 else math.inf
        assert found[i] == pytest.approx(normal_mass(low, high, mean, std), abs=1e-6)
    assert found != pytest.approx([1 / 20] * 20, rel=0.5)


def test_logit_normal_of_straight_paths_is_log_normal() -> None:
    """There sigma/alpha = u/(1 - u)."""
    about = spec("flow", 5000)
    one, other = (t.density(about).cumsum(0) for t in (LogitNormal(), LogNormal(mean=0.0, std=1.0)))
    assert float((one - other).abs().max()) < 2e-4


@pytest.mark.parametrize("time", [Uniform(), LogNormal(), LogNormal(mean=9.0), LogitNormal()], ids=repr)
@every_schedule
def test_levels_are_drawn_as_often_as_they_should(time: TimestepSampling, name: str) -> None:
    about, n = spec(name, 25), 200_000
    made = objective(about, VPrediction(), time=time)
    u = torch.rand(n, generator=torch.Generator().manual_seed(2))
    frequency = torch.bincount(made.draw(u), minlength=25) / n
    expected = time.density(about)
    expected = expected / expected.sum()
    tolerance = 5 * (expected * (1 - expected) / n).sqrt() + 1e-6
    assert bool(((frequency - expected).abs() <= tolerance).all())
    assert bool((frequency[expected == 0] == 0).all())


def test_draws_at_both_ends_of_the_unit_interval() -> None:
    made = objective(spec("linear", 1000), time=Uniform())
    u = torch.tensor([0.0, 0.0004, 0.0011, 0.5004, 0.9989, 0.9995, 1.0])
    assert made.draw(u).tolist() == [0, 0, 1, 500, 998, 999, 999]


@every_schedule
def test_every_density_is_one_for_every_length(name: str) -> None:
    for T in (2, 3, 1000):
        about = spec(name, 21 if T < 21 and name in ("linear", "zero-snr") else T)
        for cls in difftool_timestep_samplings():
            cumulative = distribution(cls(), about)
            assert float(cumulative[-1]) == 1.0
            assert bool((cumulative.diff() >= 0).all())


class Broken(TimestepSampling, name="broken"):
    """Gives whatever it is told."""

    values: tuple[float, ...] = (1.0,)

    def density(self, spec: ObjectiveSpec) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64)


@pytest.mark.parametrize("values", [(1.0,), (0.0, 0.0, 0.0), (1.0, -1.0, 1.0), (1.0, math.nan, 1.0), (math.inf,) * 3])
def test_what_is_no_density_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="timestep sampling broken: it gives no distribution"):
        objective(spec("cosine", 3), time=Broken(values=values))


# --- stratified ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [Uniform(), LogNormal()], ids=repr)
def test_every_stratum_gets_exactly_one(time: TimestepSampling) -> None:
    B, about = 16, spec("cosine", 160)
    noise = StepNoise(3, B, (2,), objective(about, VPrediction(), time=time), stratified=True)
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), distribution(time, about)])
    parts = torch.arange(B, dtype=torch.float64) / B
    for step in range(40):
        t = noise(step)[1]
        # the part of level t, from cumulative[t] to cumulative[t + 1], meets the item's sixteenth
        assert bool((cumulative[t] < parts + 1 / B + 1e-6).all())
        assert bool((cumulative[t + 1] > parts - 1e-6).all())
        if isinstance(time, Uniform):
            assert (t // 10).tolist() == list(range(B))


def test_stratified_levels_have_the_same_mean_and_a_lower_variance() -> None:
    made, steps = objective(spec("cosine", 1000)), 400
    means = {}
    for stratified in (False, True):
        noise = StepNoise(0, 32, (2,), made, stratified=stratified)
        t = torch.stack([noise(step)[1] for step in range(steps)]).double()
        means[stratified] = t.mean(1)
        assert float(t.mean()) == pytest.approx(499.5, abs=5 * 1000 / math.sqrt(12 * 32 * steps))
        counts = torch.histc(t, 10, 0, 1000) / t.numel()
        assert float((counts - 0.1).abs().max()) < 0.015
    # 1000^2/12/32 for independent levels; a 32nd of the range each, 1/32^2 of that
    assert float(means[False].var()) == pytest.approx(1000**2 / 12 / 32, rel=0.3)
    assert float(means[True].var()) == pytest.approx(1000**2 / 12 / 32**3, rel=0.3)


# --- what is minimised ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", [Unweighted(), MinSNR(), P2(), SNR(), SoftMinSNR()], ids=repr)
@pytest.mark.parametrize("time", [Uniform(), LogNormal(), LogitNormal()], ids=repr)
def test_the_minimum_is_where_density_and_weight_put_it(weighting: Weighting, time: TimestepSampling) -> None:
    """The network c x_t asked for v of data of variance 1/4: c = sum p f E[v x_t] / sum p f E[x_t^2],

    with E[v x_t] = alpha sigma (1 - 1/4) and E[x_t^2] = alpha^2/4 + sigma^2.
    """
    schedule = Linear().build(40)
    about, n = ObjectiveSpec(schedule=schedule), 400_000
    made = objective(about, VPrediction(), weighting, time)
    generator = torch.Generator().manual_seed(0)
    t = made.draw(torch.rand(n, generator=generator))
    x_0 = 0.5 * torch.randn(n, 2, generator=generator)
    eps = torch.randn(n, 2, generator=generator)
    inputs = made.inputs(x_0, eps, t, None)

    def loss(c: float) -> float:
        predict = Predictor(made, lambda x, t, cond: c * x, inputs)
        return float(minimise(made, predict, batch_of(made, inputs, None), None)[0])

    left, middle, right = loss(-1.0), loss(0.0), loss(1.0)
    found = (left - right) / (2 * (left + right - 2 * middle))  # the vertex of a parabola
    p = time.density(about)
    f = factor(weighting, VPrediction(), about)
    alpha, sigma = schedule.alpha, schedule.sigma
    expected = (p * f * alpha * sigma * 0.75).sum() / (p * f * (alpha**2 / 4 + sigma**2)).sum()
    assert found == pytest.approx(float(expected), rel=0.02)


@every_prediction
@every_schedule
def test_the_target_is_the_combination(prediction: Prediction, name: str) -> None:
    about = spec(name, 50)
    if prediction.name == "eps" and name in ("zero-snr", "flow"):
        return
    made = objective(about, prediction)
    x_0, eps = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    t = torch.arange(50)
    a, b, _ = tables(prediction, about)
    expected = a[:, None] * x_0 + b[:, None] * eps
    torch.testing.assert_close(made.target(x_0, eps, t).double(), expected, rtol=1e-5, atol=1e-6)
    x_t = about.schedule.alpha[:, None] * x_0 + about.schedule.sigma[:, None] * eps
    inputs = made.inputs(x_0, eps, t, None)
    torch.testing.assert_close(inputs.x_t.double(), x_t, rtol=1e-5, atol=1e-6)
    losses = recorded_losses(made, torch.zeros_like(x_0), inputs.target, inputs.t)
    torch.testing.assert_close(losses.double(), expected.square().mean(1), rtol=1e-4, atol=1e-6)


@every_schedule
def test_the_network_sees_inputs_of_its_scale_and_time_in_0_to_1000(name: str) -> None:
    about = spec(name, 50)
    seen: list[Tensor] = []

    def network(x: Tensor, time: Tensor, cond: Condition | None) -> Tensor:
        seen.extend([x, time])
        return x

    x_0, eps = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    for prediction in (VPrediction(), EDMPrediction()):
        seen.clear()
        made = objective(about, prediction)
        inputs = made.inputs(x_0, eps, torch.arange(50), None)
        made.predict(network, inputs)
        scale = torch.tensor([prediction.input_scale(level, about) for level in about.schedule])
        torch.testing.assert_close(seen[0], scale[:, None] * inputs.x_t, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(seen[1], torch.arange(50) * 20.0)


# --- on the command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--schedule.zero-snr",), "linear"),
        (("--schedule", "cosine", "--schedule.zero-snr", "--prediction", "eps"), "cosine"),
        (("--schedule", "flow", "--prediction", "eps"), "flow"),
    ],
)
def test_eps_where_no_signal_is_left_is_one_line(run: Run, tmp_path: Any, flags: tuple[str, ...], name: str) -> None:
    outcome = run("train", *POINTS, "--steps", 1, *flags)
    assert outcome.code == 2
    assert f"prediction eps, schedule {name}: at level 999 (alpha 0, sigma 1) it leaves x_0" in outcome.error
    assert outcome.error.endswith("take another --prediction, such as v")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "prediction"),
    [
        (("--schedule.zero-snr", "--prediction", "v", "--timestep-sampling", "log-normal"), "v"),
        (("--schedule", "flow", "--timestep-sampling", "logit-normal", "--stratified"), "flow"),
        (("--schedule", "ve", "--timestep-sampling", "log-normal"), "edm"),
        (("--schedule", "laplace", "--weighting", "p2", "--weighting.gamma", 0.5), "eps"),
        (("--schedule", "log-linear", "--weighting", "soft-min-snr", "--prediction", "mean"), "mean"),
        (("--schedule", "flow", "--timesteps", 1), "flow"),
    ],
)
def test_schedules_bring_a_prediction_that_suits_them(run: Run, flags: tuple[object, ...], prediction: str) -> None:
    outcome = run("train", *POINTS, "--steps", 2, *flags)
    assert outcome.code == 0, outcome.err
    assert f"/ {prediction};" in outcome.err.splitlines()[0]


def test_zero_snr_of_one_level_is_one_line(run: Run) -> None:
    outcome = run("inspect-schedule", "linear", "--timesteps", 1, "--schedule.zero-snr")
    assert outcome.code == 2
    assert "schedule linear: zero_snr keeps the first level and empties the last: take at least 2" in outcome.error


def test_the_hooks_offer_sound_components() -> None:
    assert {c.name for c in difftool_weightings()} == {"none", "min-snr", "soft-min-snr", "p2", "edm", "snr"}
    assert {c.name for c in difftool_timestep_samplings()} == {"uniform", "log-normal", "logit-normal"}
    assert {problem(c) for c in (*difftool_weightings(), *difftool_timestep_samplings())} == {None}
