"""Prediction types: a x_0 + b eps and back again, against the papers' own forms, on every kind of schedule."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from difftool import CLEAN, Estimate, Level, NoiseSchedule, ObjectiveSpec, Prediction, Schedule
from difftool.diffusion.prediction import check, determinant, estimate, first_step_gain, native_weight, tables
from difftool.plugins.registry import registry
from difftool.plugins.validation import problem
from difftool.sampling.denoiser import Denoiser
from difftool_plugins.objectives import difftool_predictions
from difftool_plugins.objectives.predictions import (
    EDMPrediction,
    EpsPrediction,
    FlowPrediction,
    MeanPrediction,
    VPrediction,
    X0Prediction,
)
from difftool_plugins.schedules import difftool_schedules
from difftool_plugins.schedules.log_snr import Laplace, LogLinear
from difftool_plugins.schedules.paths import VE, Flow
from difftool_plugins.schedules.variance_preserving import Cosine, Linear

SCHEDULES = {
    "linear": Linear().build(1000),
    "cosine": Cosine().build(1000),
    "laplace": Laplace().build(1000),
    "log-linear": LogLinear().build(1000),
    "zero-snr": Linear(zero_snr=True).build(1000),
    "flow": Flow().build(100),
    "flow-shift": Flow(shift=3.0).build(100),
    "ve": VE().build(100),
    "one": Schedule.from_alpha_bars(torch.tensor([0.3])),
}
EMPTY = {"zero-snr", "flow", "flow-shift"}  # their last level holds no signal
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_prediction = pytest.mark.parametrize("prediction", [c() for c in difftool_predictions()], ids=lambda p: p.name)


def spec(name: str, sigma_data: float = 0.7) -> ObjectiveSpec:
    return ObjectiveSpec(schedule=SCHEDULES[name], sigma_data=sigma_data)


def levels(prediction: Prediction, name: str) -> list[Level]:
    """Rows at which the prediction is defined, and levels between them."""
    schedule = SCHEDULES[name]
    rows = [schedule[t] for t in range(0, len(schedule), max(1, len(schedule) // 97))] + [schedule[len(schedule) - 1]]
    between = [schedule.at(t) for t in (-0.5, 0.3, len(schedule) / 2 + 0.25) if t < len(schedule) - 1]
    return [x for x in rows + between if x.alpha > 0 or not isinstance(prediction, EpsPrediction)]


def pair(n: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_0, eps = torch.randn(2, n, dtype=torch.float64, generator=generator)
    return x_0, eps


# --- the algebra ---------------------------------------------------------------------------------------------------


@every_prediction
@every_schedule
def test_every_round_trip_is_the_identity(prediction: Prediction, name: str) -> None:
    x_0, eps = pair()
    for level in levels(prediction, name):
        a, b = prediction.coefficients(level, spec(name))
        x_t, answer = level.alpha * x_0 + level.sigma * eps, a * x_0 + b * eps
        found = estimate(prediction, answer, x_t, level, spec(name))
        # what rounding of answer and state, and of a and b, becomes when the two equations are solved
        det = abs(determinant(level, a, b))
        largest = max(abs(a), abs(b)) * level.norm
        assert float((found.x_0 - x_0).abs().max()) < 4e-15 * (1 + largest / det), level
        assert float((found.eps - eps).abs().max()) < 4e-15 * (1 + largest / det), level


@every_prediction
@every_schedule
def test_any_answer_describes_x_t(prediction: Prediction, name: str) -> None:
    """x_t = alpha x_0 + sigma eps holds for an estimate, however wrong the network is."""
    x_t, answer = pair()
    for level in levels(prediction, name):
        found = estimate(prediction, answer, x_t, level, spec(name))
        scale = float((level.alpha * found.x_0).abs().max() + (level.sigma * found.eps).abs().max())
        again = level.alpha * found.x_0 + level.sigma * found.eps
        assert float((again - x_t).abs().max()) < 1e-14 * (1 + scale), level


def test_another_x_0_brings_its_eps() -> None:
    """x_t = alpha x_0 + sigma eps holds of it again, and the learned variance stays."""
    x_t, x_0 = pair()
    fraction = torch.ones(2)
    for level in SCHEDULES["linear"][500], SCHEDULES["ve"][99], SCHEDULES["flow"][99]:
        found = Estimate(x_t, x_t, fraction).with_x_0(x_0, x_t, level)
        assert found.x_0 is x_0
        assert found.variance_fraction is fraction
        torch.testing.assert_close(level.alpha * found.x_0 + level.sigma * found.eps, x_t, rtol=1e-13, atol=1e-13)


def test_an_estimate_has_no_gradient() -> None:
    network = torch.nn.Linear(32, 32).double()
    x = pair()[0][None].requires_grad_()
    denoise = Denoiser(lambda x, t, cond: network(x), EpsPrediction(), spec("linear"))
    found = denoise(x, SCHEDULES["linear"][500])
    assert not found.x_0.requires_grad
    assert not found.eps.requires_grad
    assert torch.is_grad_enabled()


@every_prediction
@every_schedule
def test_the_native_weight_turns_errors_of_x_0_into_errors_of_the_answer(prediction: Prediction, name: str) -> None:
    schedule = SCHEDULES[name]
    _, _, det = tables(prediction, spec(name))
    weight = native_weight(det, schedule.sigma)
    x_t, answer = pair()
    for level in (x for x in levels(prediction, name) if x.t.is_integer()):
        wrong = estimate(prediction, answer + 1.0, x_t, level, spec(name))
        right = estimate(prediction, answer, x_t, level, spec(name))
        error = float((wrong.x_0 - right.x_0).square().mean())
        assert float(weight[int(level.t)]) * error == pytest.approx(1.0, rel=1e-4)


@every_schedule
def test_tables_are_the_coefficients_of_the_rows(name: str) -> None:
    a, b, det = tables(FlowPrediction(), spec(name))
    schedule = SCHEDULES[name]
    assert bool((a == -1).all())
    assert bool((b == 1).all())
    torch.testing.assert_close(det, schedule.alpha + schedule.sigma, rtol=1e-15, atol=0)


@every_schedule
def test_native_weights_are_the_published_ones(name: str) -> None:
    schedule, sd = SCHEDULES[name], 0.7
    alpha, sigma, snr = schedule.alpha, schedule.sigma, schedule.snr
    s = sigma / alpha  # EDM's sigma, infinite where there is no signal
    edm = torch.where(alpha > 0, (s**2 + sd**2) / (s * sd) ** 2, 1 / sd**2)
    for prediction, expected in (
        (EpsPrediction(), snr),
        (X0Prediction(), torch.ones_like(snr)),
        (VPrediction(), snr + 1),
        (FlowPrediction(), (alpha + sigma) ** 2 / sigma**2),
        (EDMPrediction(), edm),
    ):
        _, _, det = tables(prediction, spec(name, sd))
        torch.testing.assert_close(native_weight(det, sigma), expected, rtol=1e-10, atol=0)


# --- the papers' forms ---------------------------------------------------------------------------------------------


def test_v_is_the_usual_v_where_variance_is_preserved() -> None:
    schedule = SCHEDULES["linear"]
    for t, bar in enumerate(schedule.alpha_bars.tolist()):
        found = VPrediction().coefficients(schedule[t], spec("linear"))
        assert found == pytest.approx((-math.sqrt(1 - bar), math.sqrt(bar)), abs=1e-12)


@every_schedule
def test_v_is_the_derivative_by_theta(name: str) -> None:
    """x / norm = cos(theta) x_0 + sin(theta) eps, whatever the variance is."""
    h = 1e-6
    for level in levels(VPrediction(), name):
        a, b = VPrediction().coefficients(level, spec(name))
        assert a == pytest.approx((math.cos(level.theta + h) - math.cos(level.theta - h)) / (2 * h), abs=1e-8)
        assert b == pytest.approx((math.sin(level.theta + h) - math.sin(level.theta - h)) / (2 * h), abs=1e-8)


def test_flow_is_the_derivative_of_straight_paths() -> None:
    """x_t = (1 - u) x_0 + u eps."""
    schedule = SCHEDULES["flow"]
    (a, b), h = FlowPrediction().coefficients(schedule[40], spec("flow")), 1 / 100
    assert a == pytest.approx((schedule[41].alpha - schedule[40].alpha) / h)
    assert b == pytest.approx((schedule[41].sigma - schedule[40].sigma) / h)
    shifted = SCHEDULES["flow-shift"]  # the same paths, walked at another pace
    rate = (shifted[41].sigma - shifted[40].sigma, shifted[41].alpha - shifted[40].alpha)
    assert rate[1] / rate[0] == pytest.approx(a / b)


@pytest.mark.parametrize("sd", [0.5, 1.0, 2.5])
def test_edm_as_its_table_1_has_it(sd: float) -> None:
    """D(x; s) = c_skip x + c_out F(c_in x), written out with s = sigma/alpha."""
    x_0, eps = pair()
    prediction = EDMPrediction()
    for name in ("ve", "linear", "flow"):
        for level in levels(EpsPrediction(), name):
            s, about = level.sigma / level.alpha, spec(name, sd)
            c_skip, c_out = sd**2 / (s**2 + sd**2), s * sd / math.sqrt(s**2 + sd**2)
            c_in = 1 / math.sqrt(s**2 + sd**2)
            x = x_0 + s * eps
            assert prediction.input_scale(level, about) * level.alpha == pytest.approx(c_in)
            a, b = prediction.coefficients(level, about)
            # c_skip and c_out cancel where there is little noise
            tolerance = 1e-14 * (1 + 1 / c_out)
            torch.testing.assert_close(a * x_0 + b * eps, (x_0 - c_skip * x) / c_out, rtol=0, atol=tolerance)
            answer = torch.tanh(x)
            found = estimate(prediction, answer, level.alpha * x, level, about)
            torch.testing.assert_close(found.x_0, c_skip * x + c_out * answer, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sd", [0.5, 1.0])
@every_schedule
def test_edm_asks_for_unit_variance_of_unit_variance(name: str, sd: float) -> None:
    """... of data that have the standard deviation sigma_data, at every level."""
    for level in levels(EDMPrediction(), name):
        about = spec(name, sd)
        a, b = EDMPrediction().coefficients(level, about)
        assert (a * sd) ** 2 + b**2 == pytest.approx(1.0)
        scale = EDMPrediction().input_scale(level, about)
        assert scale**2 * ((level.alpha * sd) ** 2 + level.sigma**2) == pytest.approx(1.0)
        # and the answer is not correlated with what the network sees
        assert a * level.alpha * sd**2 + b * level.sigma == pytest.approx(0.0, abs=1e-12 * (1 + level.norm))


@every_schedule
def test_inputs_have_unit_variance_for_data_of_unit_variance(name: str) -> None:
    for level in levels(EpsPrediction(), name):
        for prediction in (EpsPrediction(), X0Prediction(), VPrediction(), FlowPrediction(), MeanPrediction()):
            assert prediction.input_scale(level, spec(name)) * level.norm == pytest.approx(1.0)


def test_edm_with_unit_variance_is_minus_v() -> None:
    for name in SCHEDULES:
        for level in levels(EDMPrediction(), name):
            a, b = VPrediction().coefficients(level, spec(name))
            assert EDMPrediction().coefficients(level, spec(name, 1.0)) == pytest.approx((-a, -b))


@pytest.mark.parametrize("name", ["linear", "cosine", "laplace", "zero-snr"])
def test_mean_is_the_mean_of_ddpms_posterior(name: str) -> None:
    """Ho et al. (2020), eq. 7, in betas."""
    schedule = SCHEDULES[name]
    bars, betas = schedule.alpha_bars.tolist(), schedule.betas.tolist()
    x_0, eps = pair()
    for t in (0, 1, 2, 499, 998, 999):
        before = bars[t - 1] if t else 1.0
        x_t = schedule[t].alpha * x_0 + schedule[t].sigma * eps
        mean = math.sqrt(before) * betas[t] / (1 - bars[t]) * x_0
        mean = mean + math.sqrt(1 - betas[t]) * (1 - before) / (1 - bars[t]) * x_t
        a, b = MeanPrediction().coefficients(schedule[t], spec(name))
        torch.testing.assert_close(a * x_0 + b * eps, mean, rtol=0, atol=1e-11)


@every_schedule
def test_mean_is_the_mean_given_both(name: str) -> None:
    """E[x_s | x_t, x_0] by conditioning a Gaussian: x_t = (alpha_t/alpha_s) x_s + noise; also where alpha is 1."""
    schedule = SCHEDULES[name]
    for t in range(1, len(schedule), max(1, len(schedule) // 7)):
        s, here = schedule[t - 1], schedule[t]
        covariance = here.alpha / s.alpha * s.sigma**2  # of x_s and x_t, x_0 being given
        gain = covariance / here.sigma**2
        expected = (s.alpha - gain * here.alpha + gain * here.alpha, gain * here.sigma)
        assert MeanPrediction().coefficients(here, spec(name)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every_schedule
def test_mean_between_the_rows_is_continuous(name: str) -> None:
    schedule = SCHEDULES[name]
    for t in (0.0, *((1.0, len(schedule) / 2) if len(schedule) > 2 else ())):
        below, at = (
            MeanPrediction().coefficients(schedule.at(x), spec(name)) for x in (t - 1e-9 if t else -1e-9, float(t))
        )
        assert below == pytest.approx(at, abs=1e-6)
    assert MeanPrediction().coefficients(schedule[0], spec(name)) == pytest.approx((1.0, 0.0))  # the sample itself


# --- what is not defined -------------------------------------------------------------------------------------------


@every_prediction
@every_schedule
def test_undefined_pairs_are_refused_and_all_others_taken(prediction: Prediction, name: str) -> None:
    if prediction.name == "eps" and name in EMPTY:
        last = len(SCHEDULES[name]) - 1
        with pytest.raises(ValueError, match=rf"at level {last} \(alpha 0, sigma 1\) it leaves"):
            check(prediction, spec(name))
    else:
        check(prediction, spec(name))


@every_prediction
def test_long_tables_are_taken(prediction: Prediction) -> None:
    for schedule in (Linear(), Cosine(), LogLinear(), VE()):
        about = ObjectiveSpec(schedule=schedule.build(20_000))
        check(prediction, about)
        assert all(bool(torch.isfinite(x).all()) for x in tables(prediction, about))


def test_pure_noise_tells_v_flow_and_x_0_what_the_sample_is() -> None:
    x_0, eps = pair()
    level = SCHEDULES["zero-snr"][999]
    for prediction in (VPrediction(), X0Prediction(), FlowPrediction(), EDMPrediction(), MeanPrediction()):
        a, b = prediction.coefficients(level, spec("zero-snr"))
        found = estimate(prediction, a * x_0 + b * eps, eps, level, spec("zero-snr"))
        torch.testing.assert_close(found.x_0, x_0, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(found.eps, eps, rtol=0, atol=1e-15)


def test_the_hook_offers_sound_components() -> None:
    offered = difftool_predictions()
    assert {c.name for c in offered} == {"eps", "x0", "v", "flow", "mean", "edm"}
    assert {problem(c) for c in offered} == {None}


@pytest.mark.parametrize("T", [1, 2, 1000])
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Laplace(), Flow(), VE()], ids=lambda s: s.name)
def test_the_gain_of_the_first_step_is_that_of_ddim(schedule: NoiseSchedule, T: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # betas that are capped where T is small
        about = ObjectiveSpec(schedule=schedule.build(T))
    levels = [*about.schedule]
    t, s = levels[-1], levels[-2] if T > 1 else CLEAN
    x, answer = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for prediction in (VPrediction(), X0Prediction(), FlowPrediction()):
        right, wrong = (estimate(prediction, a, x, t, about) for a in (answer, answer + 0.5))
        ends = [s.alpha * found.x_0 + s.sigma * found.eps for found in (right, wrong)]
        moved = float((ends[1] - ends[0]).abs() / 0.5)
        assert first_step_gain(prediction, about) == pytest.approx(moved, rel=1e-9)


def test_no_schedule_suits_a_prediction_that_cannot_begin() -> None:
    """From eps alone, the first step of cosine would multiply each error by 31."""
    assert first_step_gain(EpsPrediction(), ObjectiveSpec(schedule=Cosine().build(1000))) == pytest.approx(
        30.6, abs=0.1
    )
    for cls in difftool_schedules():
        suited = registry().of_kind(Prediction, cls.default_prediction)()
        assert first_step_gain(suited, ObjectiveSpec(schedule=cls().build(1000))) < 1
