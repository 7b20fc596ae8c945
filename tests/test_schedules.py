"""Schedules and the table they build: published constants, every T, the forward process itself."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from difftool import CLEAN, Level, NoiseSchedule, Schedule
from difftool.errors import InvalidOption
from difftool.options import make
from difftool.plugins.validation import problem
from difftool_plugins.samplers.ddpm import DDPM
from difftool_plugins.schedules import difftool_schedules
from difftool_plugins.schedules.log_snr import Laplace, LogLinear
from difftool_plugins.schedules.paths import VE, Flow
from difftool_plugins.schedules.variance_preserving import (
    Cosine,
    Linear,
    Quadratic,
    ScaledLinear,
    Sigmoid,
    VariancePreserving,
)

SCHEDULES = [Linear(), ScaledLinear(), Cosine(), Quadratic(), Sigmoid(), Sigmoid(form="alpha-bar")]
IDS = ["linear", "scaled-linear", "cosine", "quadratic", "sigmoid", "sigmoid-alpha-bar"]
NEWER = [Laplace(), LogLinear(), Flow(), Flow(shift=3.0), VE()]
ZERO = [type(s)(**{**vars(s), "zero_snr": True}) for s in (*SCHEDULES, Laplace(), LogLinear())]
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


def label(schedule: NoiseSchedule) -> str:
    return "-".join([schedule.name, *(str(v) for v in vars(schedule).values())])


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
    with pytest.raises(ValueError, match="narrower range or fewer timesteps"):
        Laplace(b=10.0).build(100_000)


def test_the_hook_offers_them_all() -> None:
    offered = difftool_schedules()
    assert {c.name for c in offered} == {*IDS[:5], "laplace", "log-linear", "flow", "ve"}
    assert [problem(c) for c in offered] == [None] * 9
    assert {c.name: c.default_prediction for c in offered if c.default_prediction != "eps"} == {
        "cosine": "v",
        "flow": "flow",
        "ve": "edm",
    }


# Flow, VE, and those drawn in log-SNR


@pytest.mark.parametrize("schedule", [*SCHEDULES, *NEWER, *ZERO], ids=label)
@pytest.mark.parametrize("T", [1, 2, 3, 7, 1000, 100_000])
def test_every_length_is_built_or_refused_in_one_line(schedule: NoiseSchedule, T: int) -> None:
    if getattr(schedule, "zero_snr", False) and T == 1:
        with pytest.raises(ValueError, match="at least 2 timesteps"):
            build(schedule, T)
        return
    built = build(schedule, T)
    assert len(built) == T
    assert bool((built.theta.diff() > 0).all())
    assert not bool(built.log_snr.isnan().any())
    assert bool(torch.isfinite(built.snr).all())
    assert bool(((built.betas > 0) & (built.betas <= 1)).all())
    for level in (built[0], built[T - 1]):
        assert not math.isnan(level.log_snr)


@pytest.mark.parametrize("schedule", [*SCHEDULES, *NEWER, *ZERO], ids=label)
def test_the_last_level_is_noise_by_default(schedule: NoiseSchedule) -> None:
    assert build(schedule, 1000).signal_left is None


@pytest.mark.parametrize("shift", [1.0, 0.1, 3.0, 100.0])
@pytest.mark.parametrize("T", [1, 2, 10, 999])
def test_flow_goes_straight_from_data_to_noise(T: int, shift: float) -> None:
    built = Flow(shift=shift).build(T)
    for i in range(T):
        u = (i + 1) / T
        shifted = shift * u / (1 + (shift - 1) * u)
        assert built[i].sigma == pytest.approx(shifted, rel=1e-12)
        assert built[i].alpha == pytest.approx(1 - shifted, rel=1e-12, abs=1e-15)
        # a shift by s divides the signal-to-noise ratio by s^2
        if i < T - 1:
            assert built[i].log_snr == pytest.approx(2 * math.log((1 - u) / u / shift), abs=1e-9)
    assert built[T - 1].alpha == 0.0


def test_ve_is_a_geometric_series() -> None:
    built = VE().build(5)
    assert built.alpha.tolist() == [1.0] * 5
    expected = [0.002 * 40_000 ** (i / 4) for i in range(5)]
    assert built.sigma.tolist() == pytest.approx(expected, rel=1e-12)
    assert (built[0].sigma, built[4].sigma) == (pytest.approx(0.002), pytest.approx(80.0))
    assert built.prior_std == pytest.approx(math.hypot(1, 80))
    assert VE().build(1)[0].sigma == pytest.approx(80.0)  # a single level is the noisy end
    assert VE(sigma_min=0.01, sigma_max=10).build(7).sigma[3] == pytest.approx(math.sqrt(0.1))


@pytest.mark.parametrize(("mu", "b"), [(0.0, 1.0), (1.5, 0.3), (0.0, 0.5)])
def test_laplace_has_the_quantiles_of_its_distribution(mu: float, b: float) -> None:
    T = 400
    log_snr = Laplace(mu=mu, b=b).build(T).log_snr
    noisier = [0.5 * math.exp((x - mu) / b) if x < mu else 1 - 0.5 * math.exp((mu - x) / b) for x in log_snr.tolist()]
    assert noisier == pytest.approx([1 - (i + 0.5) / T for i in range(T)], abs=1e-10)  # its distribution function


def test_laplace_with_the_papers_spread_leaves_signal() -> None:
    left = Laplace(b=0.5).build(1000).signal_left
    assert left == pytest.approx(1 / (1 + math.sqrt(1000)), rel=1e-9)
    assert left == pytest.approx(0.03, abs=0.002)  # as the help says


def test_log_linear_falls_evenly() -> None:
    built = LogLinear().build(101)
    assert built.variance_preserving
    assert built.log_snr.tolist() == pytest.approx([13.3 - 18.3 * i / 100 for i in range(101)], abs=1e-12)
    assert built[0].sigma ** 2 == pytest.approx(1 / (1 + math.exp(13.3)), rel=1e-12)  # no digits lost at either end
    deep = LogLinear(log_snr_max=30, log_snr_min=-30).build(11)
    assert deep.log_snr.tolist() == pytest.approx([30 - 6 * i for i in range(11)], abs=1e-10)


def test_zero_terminal_snr_of_the_linear_schedule() -> None:
    """Lin et al. (2024), algorithm 1."""
    before, after = Linear().build(1000), Linear(zero_snr=True).build(1000)
    assert (f"{before.alpha_bars[499]:.6f}", f"{after.alpha_bars[499]:.6f}") == ("0.078587", "0.076029")
    assert after[0].alpha == before[0].alpha
    assert (after[999].alpha, after[999].sigma, after[999].log_snr) == (0.0, 1.0, -math.inf)
    r = before.alpha_bars.sqrt().tolist()
    assert after.alpha.tolist() == pytest.approx([(x - r[-1]) * r[0] / (r[0] - r[-1]) for x in r], rel=1e-12, abs=1e-15)
    assert float(after.betas[-1]) == 1.0


@pytest.mark.parametrize("schedule", ZERO, ids=label)
@pytest.mark.parametrize("T", [2, 50, 1000, 100_000])
def test_zero_terminal_snr_keeps_both_ends_exactly(schedule: VariancePreserving, T: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        before, after = schedule.table(T), schedule.build(T)
    assert after[0].alpha == before[0].alpha
    assert (after[T - 1].alpha, after[T - 1].sigma) == (0.0, 1.0)
    assert after.variance_preserving


@pytest.mark.parametrize(
    ("schedule", "values", "field"),
    [
        (VE, {"sigma_min": 80.0}, "sigma_max"),
        (VE, {"sigma_min": 0.0}, "sigma_min"),
        (LogLinear, {"log_snr_min": 13.3}, "log_snr_min"),
        (Flow, {"shift": 0.0}, "shift"),
        (Laplace, {"b": 0.0}, "b"),
    ],
)
def test_ranges_of_the_newer_schedules(schedule: type[NoiseSchedule], values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidOption) as refused:
        make(schedule, values)
    assert refused.value.field == field


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
    half = linear.at(-0.5)  # between the clean end and the first row
    assert half.theta == pytest.approx(linear[0].theta / 2, abs=1e-14)
    assert linear.at(-1.0) == CLEAN
    for t in (-1.1, 999.1, math.nan):
        with pytest.raises(ValueError, match="between -1 and 999"):
            linear.at(t)


@pytest.mark.parametrize("schedule", [*SCHEDULES, *NEWER, *ZERO], ids=label)
def test_t_of_undoes_at(schedule: NoiseSchedule) -> None:
    built = build(schedule, 1000)
    grid = torch.linspace(-1, 999, 3001, dtype=torch.float64).tolist()
    # rows of log-linear lie as close as 1e-5 in angle
    assert max(abs(built.t_of(built.at(t).log_snr) - t) for t in grid) < 1e-8


def test_t_of_keeps_to_the_table() -> None:
    linear = Linear().build(1000)
    assert linear.t_of(math.inf) == -1.0
    assert -1.0 <= linear.t_of(100.0) < -0.99
    assert linear.t_of(linear[0].log_snr) == pytest.approx(0.0, abs=1e-9)
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
