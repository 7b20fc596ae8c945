"""Schedules and the table they build: published constants, every T, the forward process itself."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from difftool import CLEAN, Level, NoiseSchedule, Schedule
from difftool.errors import InvalidOption
from difftool.validation import make, problem
from difftool_plugins.samplers.ancestral import DDPM
from difftool_plugins.schedules import difftool_schedules
from difftool_plugins.schedules.variance_preserving import Cosine, Linear, Quadratic, ScaledLinear, Sigmoid

SCHEDULES = [Linear(), ScaledLinear(), Cosine(), Quadratic(), Sigmoid(), Sigmoid(form="alpha-bar")]
IDS = ["linear", "scaled-linear", "cosine", "quadratic", "sigmoid", "sigmoid-alpha-bar"]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)


def build(schedule: NoiseSchedule, timesteps: int) -> Schedule:
    """The table; short ones cap their betas, which is not what the test is about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return schedule.build(timesteps)


def table(alpha: list[float], sigma: list[float]) -> Schedule:
    return Schedule(torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))


def flow(T: int) -> Schedule:
    u = torch.arange(1, T + 1, dtype=torch.float64) / T
    return Schedule(1 - u, u)


# The published schedules


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last"),
    [
        (Linear(), "0.99990000", "0.07858724", "4.03582977e-05"),
        (ScaledLinear(), "0.99915000", "0.27766965", "4.66009851e-03"),
        (Quadratic(), "0.99990000", "0.33318777", "7.33412460e-04"),
        (Cosine(), "0.99995872", "0.49384359", "2.42876691e-09"),
        (Sigmoid(), "0.99985079", "0.30193106", "3.96818199e-05"),
        (Sigmoid(form="alpha-bar"), "0.99969972", "0.50000000", "3.00279200e-07"),
    ],
    ids=["linear", "scaled-linear", "quadratic", "cosine", "sigmoid", "sigmoid-alpha-bar"],
)
def test_alpha_bars_to_the_printed_digits(schedule: NoiseSchedule, first: str, middle: str, last: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = schedule.build(1000).alpha_bars
    assert (f"{a[0]:.8f}", f"{a[499]:.8f}", f"{a[999]:.8e}") == (first, middle, last)


@pytest.mark.parametrize(("timesteps", "signal"), [(50, 0.603), (100, 0.364), (200, 0.132), (300, 0.048)])
def test_a_short_unscaled_schedule_keeps_much_signal(timesteps: int, signal: float) -> None:
    assert round(float(Linear(rescale=False).build(timesteps).alpha_bars[-1]), 3) == signal
    assert float(Linear().build(timesteps).alpha_bars[-1]) < 1e-4


@pytest.mark.parametrize("schedule", [Linear, ScaledLinear, Quadratic, Sigmoid])
def test_rescaling_changes_nothing_at_T_1000(schedule: type[Linear]) -> None:
    assert torch.equal(schedule().build(1000).alpha, schedule(rescale=False).build(1000).alpha)


@pytest.mark.parametrize("schedule", [Cosine(), Sigmoid(form="alpha-bar")])
def test_a_formula_in_alpha_bar_clips_exactly_one_beta(schedule: NoiseSchedule) -> None:
    for T in (2, 50, 1000, 4000):
        betas = schedule.build(T).betas
        assert (betas > 0.9989).nonzero().flatten().tolist() == [T - 1]
        assert float(betas[-1]) == pytest.approx(0.999, abs=1e-9)


def test_cosine_follows_its_formula_up_to_the_clip() -> None:
    f = [math.cos((i / 200 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(201)]
    torch.testing.assert_close(
        Cosine().build(200).alpha_bars[:-1], torch.tensor(f[1:-1], dtype=torch.float64) / f[0], rtol=1e-12, atol=0
    )
    assert float(Cosine(beta_max=0.5).build(200).betas.max()) == pytest.approx(0.5)


def test_start_end_and_tau_of_the_sigmoid() -> None:
    halved = Sigmoid(start=-3, end=3, tau=0.5).build(1000)
    torch.testing.assert_close(halved.alpha, Sigmoid().build(1000).alpha, rtol=1e-14, atol=0)
    skewed = Sigmoid(form="alpha-bar", start=0, end=3, tau=0.3).build(1000).alpha_bars
    low, high = (1 / (1 + math.exp(-x / 0.3)) for x in (0.0, 3.0))  # Jabri et al., algorithm 1
    at_half = 1 / (1 + math.exp(-1.5 / 0.3))
    assert float(skewed[499]) == pytest.approx((high - at_half) / (high - low), rel=1e-10)


@pytest.mark.parametrize("schedule", [Linear(), Quadratic()])
def test_a_cap_that_bites_warns(schedule: NoiseSchedule) -> None:
    with pytest.warns(UserWarning, match=r"capped 1 of 20 betas at 0\.999") as caught:
        capped = schedule.build(20)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert float(capped.betas[-1]) == pytest.approx(0.999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.build(21)
        Cosine().build(2)


@every_schedule
@pytest.mark.parametrize("T", [1, 2, 7, 50, 300, 1000, 4000])
def test_snr_falls_strictly_at_every_length(schedule: NoiseSchedule, T: int) -> None:
    built = build(schedule, T)
    assert len(built) == T
    assert built.variance_preserving
    assert bool((built.snr.diff() < 0).all())
    assert bool(((built.betas > 0) & (built.betas <= 0.999 + 1e-9)).all())
    assert bool(torch.isfinite(built.log_snr).all())
    assert float(built.alpha_bars[-1]) < 5e-3


@every_schedule
def test_long_tables_and_tables_of_one(schedule: NoiseSchedule) -> None:
    long = build(schedule, 100_000)
    reference = build(schedule, 1000)
    assert float(long.alpha_bars[49_999]) == pytest.approx(float(reference.alpha_bars[499]), rel=0.02)
    one = build(schedule, 1)
    assert float(one.alpha_bars[0]) == pytest.approx(0.001)  # noise, not the first beta
    assert one.at(0.0) == one[0]


@pytest.mark.parametrize(
    ("schedule", "values", "field"),
    [
        (Linear, {"beta_min": 0.02}, "beta_max"),
        (Linear, {"beta_min": 0.03}, "beta_max"),
        (ScaledLinear, {"beta_max": 1e-4}, "beta_max"),
        (Sigmoid, {"beta_max": 1e-5}, "beta_max"),
        (Sigmoid, {"start": 1.0, "end": 1.0}, "end"),
        (Sigmoid, {"form": "alpha-bar", "beta_max": 0.03}, "beta_max"),
        (Sigmoid, {"form": "alpha-bar", "beta_min": 0.001}, "beta_min"),
        (Linear, {"beta_max": 1.0}, "beta_max"),
        (Linear, {"beta_min": 0.0}, "beta_min"),
        (Cosine, {"beta_max": 1.0}, "beta_max"),
        (Cosine, {"s": -0.1}, "s"),
    ],
)
def test_options_that_do_not_fit_are_named(
    schedule: type[NoiseSchedule], values: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidOption) as refused:
        make(schedule, values)
    assert refused.value.field == field


def test_a_range_that_leaves_no_signal_is_refused() -> None:
    with pytest.raises(ValueError, match="narrower range or fewer timesteps"):
        Linear(rescale=False).build(100_000)


def test_the_hook_offers_them_all() -> None:
    offered = difftool_schedules()
    assert sorted(c.name for c in offered) == ["cosine", "linear", "quadratic", "scaled-linear", "sigmoid"]
    assert [problem(c) for c in offered] == [None] * 5


# The table


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_from_betas_refuses(beta: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        Schedule.from_betas(torch.tensor([0.1, beta]))


def test_betas_round_trip() -> None:
    betas = torch.tensor([0.1, 0.02, 0.5, 0.999, 0.3], dtype=torch.float64)
    built = Schedule.from_betas(betas)
    torch.testing.assert_close(built.betas, betas, rtol=1e-12, atol=0)
    assert float(built.alpha_bars[1]) == pytest.approx(0.9 * 0.98)


def test_tables_that_are_none() -> None:
    with pytest.raises(ValueError, match="fall strictly"):
        table([0.9, 0.9], [0.4, 0.4])
    with pytest.raises(ValueError, match="fall strictly"):
        table([0.5, 0.9], [0.5, 0.1])
    with pytest.raises(ValueError, match="one length"):
        table([0.9, 0.5], [0.4])
    with pytest.raises(ValueError, match="at least 1"):
        table([], [])
    with pytest.raises(ValueError, match="finite and not negative"):
        table([0.9, -0.5], [0.4, 0.5])
    with pytest.raises(ValueError, match="finite and not negative"):
        table([0.9, 0.5], [0.4, math.inf])
    with pytest.raises(ValueError, match="float64"):
        Schedule(torch.tensor([0.9]), torch.tensor([0.4]))


def test_levels_between_rows() -> None:
    linear = Linear().build(1000)
    for t in (0.25, 17.5, 998.999):
        low, level = int(t), linear.at(t)
        assert level.t == t
        assert level.norm == pytest.approx(1.0, abs=1e-14)
        part = t - low
        expected = (1 - part) * linear[low].theta + part * linear[low + 1].theta
        assert level.theta == pytest.approx(expected, abs=1e-14)
    assert linear.at(12.0) == linear[12]
    assert linear.at(999.0) == linear[999]
    ve = table([1.0, 1.0], [3.0, 4.0])
    assert ve.at(0.5).norm == pytest.approx((math.hypot(1, 3) + math.hypot(1, 4)) / 2)
    for t in (-0.1, 999.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 999"):
            linear.at(t)


@pytest.mark.parametrize("built", [*(build(s, 1000) for s in SCHEDULES), flow(1000)], ids=[*IDS, "flow"])
def test_t_of_undoes_at(built: Schedule) -> None:
    grid = torch.linspace(0, 999, 2998, dtype=torch.float64).tolist()
    assert max(abs(built.t_of(built.at(t).log_snr) - t) for t in grid) < 1e-9


def test_t_of_keeps_to_the_table() -> None:
    linear = Linear().build(1000)
    assert linear.t_of(math.inf) == linear.t_of(100.0) == 0.0
    assert linear.t_of(-math.inf) == linear.t_of(-5000.0) == linear.t_of(-100.0) == 999.0
    assert flow(10).t_of(-math.inf) == 9.0


def test_levels_at_both_ends() -> None:
    assert (CLEAN.t, CLEAN.alpha, CLEAN.sigma) == (-1.0, 1.0, 0.0)
    assert (CLEAN.theta, CLEAN.log_snr, CLEAN.norm) == (0.0, math.inf, 1.0)
    noise = Level(9.0, 0.0, 80.0)
    assert (noise.theta, noise.log_snr, noise.norm) == (math.pi / 2, -math.inf, 80.0)
    assert flow(10)[9].log_snr == -math.inf
    assert Level(0.0, 3.0, 4.0).log_snr == pytest.approx(math.log(9 / 16))


@pytest.mark.parametrize("T", [1, 50, 1000, 4000])
def test_networks_see_time_in_0_to_1000(T: int) -> None:
    built = build(Linear(), T)
    assert built.time(0) == 0.0
    assert built.time(T / 2) == pytest.approx(500.0)
    assert built.time(T - 1) < 1000.0


def test_a_walk_starts_from_the_variance_of_the_last_level() -> None:
    assert Linear(rescale=False).build(50).prior_std == pytest.approx(1.0)
    assert table([1.0, 1.0], [0.002, 80.0]).prior_std == pytest.approx(math.hypot(1, 80))
    assert flow(10).prior_std == 1.0


# The process


def test_the_variance_of_the_posterior() -> None:
    linear = Linear().build(1000)
    small, large = DDPM(variance="fixed-small"), DDPM(variance="fixed-large")
    assert f"{small.std(linear[1], linear[0]) ** 2:.6e}" == "5.453188e-05"
    assert f"{small.std(linear[999], linear[998]) ** 2:.10f}" == "0.0199999835"
    for t in (1, 2, 500, 999):
        assert large.std(linear[t], linear[t - 1]) ** 2 == pytest.approx(float(linear.betas[t]), rel=1e-9)


@every_schedule
@pytest.mark.parametrize("T", [7, 50, 1000])
def test_iterating_the_forward_process_gives_the_closed_form(schedule: NoiseSchedule, T: int) -> None:
    """x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) z, in mean and variance, against alpha and sigma^2."""
    built = build(schedule, T)
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(built.betas.tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert mean == pytest.approx(built[t].alpha, rel=1e-9)
        assert variance == pytest.approx(built[t].sigma ** 2, rel=1e-9)


def test_iterating_the_forward_process_on_samples() -> None:
    n, start = 100_000, 1.7
    built = build(Linear(), 40)
    generator = torch.Generator().manual_seed(0)
    x = torch.full((n,), start, dtype=torch.float64)
    for t, beta in enumerate(built.betas.tolist()):
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * torch.randn(n, dtype=torch.float64, generator=generator)
        if t in (0, 9, 19, 39):
            variance = built[t].sigma ** 2
            assert abs(float(x.mean()) - built[t].alpha * start) < 4 * math.sqrt(variance / n)
            assert abs(float(x.var()) - variance) < 4 * variance * math.sqrt(2 / n)
