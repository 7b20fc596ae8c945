"""Prediction types and weightings: round trips, and the one weight in x_0 space that explains them all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difftool import Prediction, Schedule
from difftool.validation import problem
from difftool_plugins.objectives import difftool_predictions, difftool_weightings
from difftool_plugins.objectives.predictions import EpsPrediction, VPrediction, X0Prediction
from difftool_plugins.objectives.weightings import MinSNR, Unweighted
from difftool_plugins.schedules.variance_preserving import Cosine, Linear


def ve(T: int) -> Schedule:
    sigma = torch.logspace(-2.69897, 1.90309, T, dtype=torch.float64)  # 0.002 to 80
    return Schedule(torch.ones_like(sigma), sigma)


def flow(T: int) -> Schedule:
    u = torch.arange(1, T + 1, dtype=torch.float64) / T
    return Schedule(1 - u, u)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Lin et al. (2024), algorithm 1: shift and scale sqrt(alpha-bar) so that it ends at 0."""
    r = schedule.alpha_bars.sqrt()
    return Schedule.from_alpha_bars(((r - r[-1]) * r[0] / (r[0] - r[-1])).square())


TABLES = {"vp": Linear().build(1000), "cosine": Cosine().build(1000), "ve": ve(100), "flow": flow(100)}
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
every_prediction = pytest.mark.parametrize("prediction", [c() for c in difftool_predictions()], ids=lambda p: p.name)
native = pytest.mark.parametrize("prediction", [EpsPrediction(), X0Prediction(), VPrediction()], ids=lambda p: p.name)


def rows(table: Schedule, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """alpha and sigma (T, 1) of all levels at which the prediction is defined."""
    keep = table.alpha > 0 if isinstance(prediction, EpsPrediction) else table.alpha >= 0
    return table.alpha[keep][:, None], table.sigma[keep][:, None]


def pair(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_0, eps = (torch.randn(n, 32, dtype=torch.float64, generator=generator) for _ in range(2))
    return x_0, eps


@every_prediction
@every_table
def test_every_round_trip_is_the_identity(prediction: Prediction, table: Schedule) -> None:
    alpha, sigma = rows(table, prediction)
    x_0, eps = pair(len(alpha))
    x_t = alpha * x_0 + sigma * eps
    output = prediction.target(x_0, eps, alpha, sigma)
    found_x_0, found_eps = prediction.estimate(output, x_t, alpha, sigma)
    # rounding of x_t, 1e-16 norm, is divided by alpha for x_0 and by sigma for eps
    norm = torch.hypot(alpha, sigma)
    assert bool(((found_x_0 - x_0).abs() < 1e-14 * norm / alpha.clamp(min=1e-9) + 1e-13).all())
    assert bool(((found_eps - eps).abs() < 1e-14 * norm / sigma + 1e-13).all())
    again = prediction.target(found_x_0, found_eps, alpha, sigma)
    torch.testing.assert_close(again, output, rtol=0, atol=1e-9)


@every_prediction
@every_table
def test_any_answer_describes_x_t(prediction: Prediction, table: Schedule) -> None:
    """x_t = alpha x_0 + sigma eps holds for an estimate, however wrong the network is."""
    alpha, sigma = rows(table, prediction)
    x_t, output = pair(len(alpha))
    x_0, eps = prediction.estimate(output, x_t, alpha, sigma)
    torch.testing.assert_close(alpha * x_0 + sigma * eps, x_t, rtol=0, atol=1e-12)


@every_prediction
def test_floats_and_tables_agree(prediction: Prediction) -> None:
    table = TABLES["vp"]
    x_0, eps = pair(1)
    alpha, sigma = table.alpha[500:501, None], table.sigma[500:501, None]
    by_table = prediction.target(x_0, eps, alpha, sigma)
    torch.testing.assert_close(prediction.target(x_0, eps, table[500].alpha, table[500].sigma), by_table)
    answers = zip(
        prediction.estimate(by_table, x_0, table[500].alpha, table[500].sigma),
        prediction.estimate(by_table, x_0, alpha, sigma),
        strict=True,
    )
    for one, other in answers:
        torch.testing.assert_close(one, other)


def test_v_is_the_usual_v_where_variance_is_preserved() -> None:
    table = TABLES["vp"]
    x_0, eps = pair(len(table))
    a = table.alpha_bars[:, None]
    found = VPrediction().target(x_0, eps, table.alpha[:, None], table.sigma[:, None])
    torch.testing.assert_close(found, a.sqrt() * eps - (1 - a).sqrt() * x_0, rtol=0, atol=1e-13)


def test_v_is_the_derivative_by_theta() -> None:
    """x / norm = cos(theta) x_0 + sin(theta) eps, on every table."""
    table, h = TABLES["ve"], 1e-6
    x_0, eps = pair(len(table))
    theta = table.theta[:, None]
    late, early = ((theta + d).cos() * x_0 + (theta + d).sin() * eps for d in (h, -h))
    found = VPrediction().target(x_0, eps, table.alpha[:, None], table.sigma[:, None])
    torch.testing.assert_close(found, (late - early) / (2 * h), rtol=0, atol=1e-8)


@every_prediction
@every_table
def test_the_native_weight_turns_errors_of_x_0_into_errors_of_the_answer(
    prediction: Prediction, table: Schedule
) -> None:
    alpha, sigma = rows(table, prediction)
    x_0, eps = pair(len(alpha))
    x_t = alpha * x_0 + sigma * eps
    exact = prediction.target(x_0, eps, alpha, sigma)
    _, direction = pair(len(alpha))
    wrong_x_0, _ = prediction.estimate(exact + direction, x_t, alpha, sigma)
    right_x_0, _ = prediction.estimate(exact, x_t, alpha, sigma)
    weight = torch.as_tensor(prediction.native_weight(alpha, sigma)).expand_as(alpha)
    torch.testing.assert_close(
        direction.square().mean(1, keepdim=True),
        weight * (wrong_x_0 - right_x_0).square().mean(1, keepdim=True),
        rtol=1e-6,
        atol=0,
    )


def test_native_weights_in_snr() -> None:
    table = TABLES["vp"]
    snr = table.snr
    for prediction, expected in (
        (EpsPrediction(), snr),
        (X0Prediction(), torch.ones_like(snr)),
        (VPrediction(), snr + 1),
    ):
        torch.testing.assert_close(prediction.native_weight(table.alpha, table.sigma), expected, rtol=1e-12, atol=0)
    assert float(VPrediction().native_weight(0.0, 1.0)) == 1.0


@native
def test_min_snr_has_its_published_forms(prediction: Prediction) -> None:
    table = TABLES["vp"]
    snr = table.snr
    capped = snr.clamp(max=5.0)
    published = {"eps": capped / snr, "x0": capped, "v": capped / (snr + 1)}
    native_weight = torch.as_tensor(prediction.native_weight(table.alpha, table.sigma)).expand_as(snr)
    torch.testing.assert_close(MinSNR().factor(snr, native_weight), published[prediction.name], rtol=1e-12, atol=0)
    doubled = MinSNR(gamma=10).factor(snr, native_weight)[0]
    assert float(doubled / MinSNR().factor(snr, native_weight)[0]) == pytest.approx(2.0)


@every_prediction
@pytest.mark.parametrize("weighting", [c() for c in difftool_weightings()], ids=lambda w: w.name)
def test_factors_are_finite_and_positive_where_the_prediction_is_defined(
    prediction: Prediction, weighting: Unweighted
) -> None:
    for table in (*TABLES.values(), zero_terminal_snr(Linear().build(1000))):
        keep = table.alpha > 0
        native_weight = torch.as_tensor(prediction.native_weight(table.alpha, table.sigma)).expand_as(table.snr)
        factor = weighting.factor(table.snr, native_weight)
        assert factor.shape == table.snr.shape
        assert bool((torch.isfinite(factor) & (factor > 0))[keep].all())


def test_unweighted_is_one() -> None:
    snr = TABLES["vp"].snr
    assert torch.equal(Unweighted().factor(snr, snr + 1), torch.ones_like(snr))


def test_eps_is_refused_where_no_signal_is_left() -> None:
    table = zero_terminal_snr(Linear().build(1000))
    assert float(table.alpha_bars[499]) == pytest.approx(0.076029, abs=5e-7)
    assert table[999].alpha == 0.0
    for empty in (table, TABLES["flow"]):
        with pytest.raises(ValueError, match="no signal"):
            EpsPrediction().check(empty)
        X0Prediction().check(empty)
        VPrediction().check(empty)
    for name in ("vp", "cosine", "ve"):
        EpsPrediction().check(TABLES[name])


def test_v_and_x_0_at_pure_noise() -> None:
    x_0, eps = pair(1)
    for prediction in (VPrediction(), X0Prediction()):
        output = prediction.target(x_0, eps, 0.0, 1.0)
        found_x_0, found_eps = prediction.estimate(output, eps, 0.0, 1.0)
        assert torch.equal(found_x_0, x_0)
        assert torch.equal(found_eps, eps)


def test_the_hooks_offer_sound_components() -> None:
    assert {"eps", "x0", "v"} <= {c.name for c in difftool_predictions()}
    assert {"none", "min-snr"} <= {c.name for c in difftool_weightings()}
    assert {problem(c) for c in (*difftool_predictions(), *difftool_weightings())} == {None}
