"""Spacings and samplers against closed forms: one Gaussian, whose optimal denoiser and flow are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import difftool
from difftool import CLEAN, Condition, Denoise, Estimate, Level, ObjectiveSpec, Sampler, Schedule, Spacing, Step
from difftool.plugins.validation import problem
from difftool.sampling.denoiser import Denoiser
from difftool.sampling.loop import collect, draw, sample
from difftool.sampling.plan import Plan
from difftool.settings import Sampling
from difftool.testing.known import flow, ve
from difftool_plugins.objectives.predictions import EpsPrediction
from difftool_plugins.samplers import difftool_samplers, difftool_spacings
from difftool_plugins.samplers.ddim import DDIM
from difftool_plugins.samplers.ddpm import DDPM
from difftool_plugins.samplers.dpmpp import DPMpp2M, DPMpp2MSDE, DPMpp3M
from difftool_plugins.samplers.euler import Euler, EulerAncestral
from difftool_plugins.samplers.heun import Heun, Restart
from difftool_plugins.samplers.lms import LMS
from difftool_plugins.samplers.multistep import exponential_moments, exponential_update, plain_moments, quadrature
from difftool_plugins.samplers.spacings import Karras, Leading, Linspace, LogSNR, Trailing
from difftool_plugins.samplers.unipc import UniPC
from difftool_plugins.schedules.variance_preserving import Cosine, Linear

MEAN, STD = 0.7, 0.4
"""The data: one Gaussian."""


LINEAR = Linear().build(1000)
TABLES = {"vp": LINEAR, "ve": ve(1000), "flow": flow(1000), "zero-terminal-snr": Linear(zero_snr=True).build(1000)}
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
STOCHASTIC: dict[str, Sampler] = {
    "ddpm-small": DDPM(),
    "ddpm-large": DDPM(variance="fixed-large"),
    "ddim-half": DDIM(eta=0.5),
    "ddim-one": DDIM(eta=1),
    "euler-ancestral": EulerAncestral(),
    "euler-ancestral-half": EulerAncestral(eta=0.5),
    "dpmpp-2m-sde": DPMpp2MSDE(),
    "dpmpp-2m-sde-half": DPMpp2MSDE(eta=0.5),
    "restart": Restart(low=0.6, high=3),
    "restart-twice": Restart(low=0.6, high=3, repeats=2),
}
SAMPLERS: dict[str, Sampler] = {
    **STOCHASTIC,
    "ddim": DDIM(),
    "euler": Euler(),
    "heun": Heun(),
    "dpmpp-2m": DPMpp2M(),
    "dpmpp-3m": DPMpp3M(),
    "unipc-1": UniPC(order=1),
    "unipc": UniPC(),
    "unipc-3": UniPC(order=3),
    "lms-1": LMS(order=1),
    "lms": LMS(),
    "lms-4": LMS(order=4),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
every_stochastic = pytest.mark.parametrize("sampler", STOCHASTIC.values(), ids=STOCHASTIC.keys())


def gain(level: Level) -> float:
    """E[x_0 | x_t] = m + gain (x_t - alpha m)."""
    return level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)


def gaussian(x: Tensor, level: Level) -> Estimate:
    """The optimal denoiser of N(m, s^2)."""
    x_0 = MEAN + gain(level) * (x - level.alpha * MEAN)
    return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)


def normal(shape: Sequence[int], seed: int = 0) -> Callable[[int], Tensor]:
    """Return the noise of step i, and x_T's as that of step -1; float64."""

    def noise(i: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + i + 1)
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return noise


def trajectory(sampler: Sampler, denoise: Denoise, x: Tensor, levels: Sequence[Level], seed: int = 0) -> list[Step]:
    return list(sampler.sample(denoise, x, levels, normal(x.shape, seed)))


# Spacings


def indices(spacing: Spacing, steps: int, schedule: Schedule = LINEAR) -> list[float]:
    return [level.t for level in spacing.levels(schedule, steps)]


@pytest.mark.parametrize(
    ("spacing", "steps", "expected"),
    [
        (Trailing(), 10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (Leading(), 10, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        (Linspace(), 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        (Trailing(), 7, [999, 856, 713, 570, 428, 285, 142]),
        (Leading(), 7, [852, 710, 568, 426, 284, 142, 0]),
        (Linspace(), 7, [999, 832, 666, 500, 333, 166, 0]),
        (Trailing(), 1, [999]),
        (Linspace(), 1, [999]),
    ],
)
def test_published_spacings(spacing: Spacing, steps: int, expected: list[int]) -> None:
    assert indices(spacing, steps) == expected


@pytest.mark.parametrize("spacing", [c() for c in difftool_spacings()], ids=lambda s: s.name)
@pytest.mark.parametrize("steps", [1, 2, 7, 61, 999, 1000])
def test_levels_fall_strictly_and_are_complete(spacing: Spacing, steps: int) -> None:
    for schedule in (LINEAR, Cosine().build(1000), *TABLES.values()):
        levels = spacing.levels(schedule, steps)
        assert len(levels) == steps
        assert all(t.t > s.t and t.theta > s.theta for t, s in pairwise(levels))
        assert 0 <= levels[-1].t <= levels[0].t <= 999
        if steps > 1 and not isinstance(spacing, Trailing | LogSNR):
            assert levels[-1] == schedule[0]
        assert all(math.isfinite(level.alpha) and level.sigma > 0 for level in levels)


def test_trailing_at_every_number_of_steps() -> None:
    rows: Any = [*LINEAR]  # a spacing asks a schedule for its length and its rows, and a list gives them faster
    for steps in range(1, 1001):
        t = indices(Trailing(), steps, rows)
        assert len(t) == steps
        assert t[0] == 999
        assert t[-1] >= 0
        assert all(a > b for a, b in pairwise(t))
    assert (
        indices(Trailing(), 1000) == indices(Leading(), 1000) == indices(Linspace(), 1000) == list(range(999, -1, -1))
    )


@pytest.mark.parametrize("schedule", [LINEAR, Cosine().build(1000), TABLES["ve"], TABLES["flow"]])
def test_log_snr_is_even(schedule: Schedule) -> None:
    values = [level.log_snr for level in LogSNR().levels(schedule, 20)]
    noisy, clean = max(schedule[999].log_snr, -10.2), schedule[0].log_snr
    for i, value in enumerate(values):
        assert value == pytest.approx(noisy + (clean - noisy) * i / 20, abs=1e-9)


def test_the_published_karras_levels() -> None:
    """Karras et al. (2022), eq. 5: sigma 80 to 0.002, rho 7."""
    found = [level.sigma / level.alpha for level in Karras().levels(TABLES["ve"], 5)]
    assert found == pytest.approx([80, 17.527832, 2.515219, 0.169753, 0.002], abs=1e-6)
    found = [level.sigma / level.alpha for level in Karras().levels(TABLES["ve"], 18)]
    assert found[1:4] == pytest.approx([57.586, 40.7856, 28.3746], rel=1e-5)
    assert found[-3:] == pytest.approx([0.0229, 0.0075, 0.002], abs=5e-5)


def test_karras_with_rho_1_is_even() -> None:
    found = [level.sigma / level.alpha for level in Karras(rho=1).levels(LINEAR, 20)]
    assert [a - b for a, b in pairwise(found)] == pytest.approx([(found[0] - found[-1]) / 19] * 19)


@pytest.mark.parametrize("grid", [Karras, LogSNR])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
@pytest.mark.parametrize("steps", [2, 7, 1000])
def test_a_ceiling_moves_the_clean_end(grid: type[Karras | LogSNR], table: Schedule, steps: int) -> None:
    for ceiling, row in ((16.0, True), (0.0, False)):
        levels = grid(ceiling=ceiling).levels(table, steps)
        assert len(levels) == steps
        noisy = levels[0].log_snr
        if grid is Karras:
            assert levels[-1].log_snr == pytest.approx(ceiling, abs=1e-6)
        else:  # the last part leads from the last level to the ceiling
            assert levels[-1].log_snr == pytest.approx(ceiling - (ceiling - max(noisy, -10.2)) / steps, abs=1e-6)
        assert (levels[-1].theta < table[0].theta) == (levels[-1].t < 0)
        assert row or levels[-1].t > 0
        assert all(t.t > s.t and t.theta > s.theta for t, s in pairwise([*levels, CLEAN]))


@pytest.mark.parametrize("grid", [Karras, LogSNR])
def test_a_ceiling_above_which_there_is_nothing_is_refused(grid: type[Karras | LogSNR]) -> None:
    with pytest.raises(ValueError, match=r"ceiling: must be above the log-SNR of the noisy end, -10\.1, not -11"):
        grid(ceiling=-11).levels(LINEAR, 5)


def test_log_snr_clips_the_noisy_end() -> None:
    cosine = Cosine().build(1000)
    assert cosine[999].log_snr < -19
    assert LogSNR().levels(cosine, 10)[0].log_snr == pytest.approx(-10.2, abs=1e-9)
    assert LogSNR(floor=-15).levels(cosine, 10)[0].log_snr == pytest.approx(-15, abs=1e-9)
    (only,) = LogSNR().levels(cosine, 1)  # one step starts where many do
    assert only == LogSNR().levels(cosine, 10)[0]
    assert LogSNR().levels(LINEAR, 1) == [LINEAR[999]]
    clean = Schedule(torch.tensor([1.0, 0.5]).double(), torch.tensor([0.0, 0.5]).double())
    for grid in (LogSNR(), Karras()):
        with pytest.raises(ValueError, match="some noise"):
            grid.levels(clean, 2)


# One step


def test_a_ddpm_step_is_the_textbook_posterior() -> None:
    """Ho et al. (2020), eq. 6-7: between adjacent levels, in beta and alpha-bar."""
    x, x_0, z = (torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).unbind()
    a, beta = LINEAR.alpha_bars.tolist(), LINEAR.betas.tolist()
    for t in (1, 2, 10, 500, 999):
        mean = (
            beta[t] * math.sqrt(a[t - 1]) / (1 - a[t]) * x_0 + (1 - a[t - 1]) * math.sqrt(1 - beta[t]) / (1 - a[t]) * x
        )
        deviations = {"fixed-small": beta[t] * (1 - a[t - 1]) / (1 - a[t]), "fixed-large": beta[t]}
        for sampler in (DDPM(), DDPM(variance="fixed-large")):
            (step,) = sampler.sample(
                lambda x, level: Estimate(x_0, (x - level.alpha * x_0) / level.sigma),
                x,
                [LINEAR[t], LINEAR[t - 1]],
                lambda i: z,
            )
            expected = mean + math.sqrt(deviations[sampler.variance]) * z
            torch.testing.assert_close(step.x, expected, rtol=0, atol=1e-11)


@every_table
def test_ddim_with_eta_1_is_ddpm(table: Schedule) -> None:
    levels = [*Trailing().levels(table, 50), CLEAN]
    start = table.prior_std * normal([200])(-1)
    for one, other in zip(
        trajectory(DDIM(eta=1), gaussian, start, levels), trajectory(DDPM(), gaussian, start, levels), strict=True
    ):
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=1e-10)


def test_ddim_with_eta_0_draws_no_noise() -> None:
    def noise(i: int) -> Tensor:
        raise AssertionError("noise was drawn")

    levels = [*Trailing().levels(LINEAR, 10), CLEAN]
    assert len(list(DDIM().sample(gaussian, torch.zeros(3, dtype=torch.float64), levels, noise))) == 10


# Whole trajectories


# The recursions. Every sampler is linear in x where the denoiser is: what it does to one Gaussian is known in full.
# They are written in sigma/alpha at alpha = 1, or by Bayes' rule, not as the samplers are.

Affine = tuple[float, float]
"""(a, b) of a x + b."""


def bayes(t: Level, s: Level) -> tuple[float, float, float, float]:
    """(c_0, c_t, variance, tau^2) of x_s | x_0, x_t, for the chain x_0 -> x_s -> x_t.

    x_s | x_0 ~ N(alpha_s x_0, sigma_s^2) and x_t | x_s ~ N(r x_s, tau^2): their precisions add.
    """
    r = t.alpha / s.alpha
    tau_2 = t.sigma**2 - r**2 * s.sigma**2
    precision = 1 / s.sigma**2 + r**2 / tau_2
    return s.alpha / s.sigma**2 / precision, r / tau_2 / precision, 1 / precision, tau_2


def estimate_of(level: Level) -> Affine:
    """E[x_0 | x_t] as (a, b) of a x_t + b."""
    return gain(level), MEAN * (1 - gain(level) * level.alpha)


def velocity_of(level: Level) -> Affine:
    """d(x/norm)/dtheta as (a, b) of a (x/norm) + b."""
    a, b = estimate_of(level)
    c, d = math.cos(level.theta), math.sin(level.theta)
    # cos eps - sin x_0, eps = (x/norm - cos x_0) / sin
    return c / d - a * level.norm / d, -b / d


def after(outer: Affine, inner: Affine) -> Affine:
    return outer[0] * inner[0], outer[0] * inner[1] + outer[1]


def plus(one: Affine, other: Affine, times: float = 1.0) -> Affine:
    return one[0] + times * other[0], one[1] + times * other[1]


def ddpm(sampler: DDPM, t: Level, s: Level) -> tuple[Affine, float]:
    c_0, c_t, posterior, tau_2 = bayes(t, s)
    a, b = estimate_of(t)
    return (c_t + c_0 * a, c_0 * b), posterior if sampler.variance == "fixed-small" else tau_2


def ddim(sampler: DDIM, t: Level, s: Level) -> tuple[Affine, float]:
    variance = sampler.eta**2 * bayes(t, s)[2]
    direction = math.sqrt(s.sigma**2 - variance) / t.sigma  # of eps = (x_t - alpha_t x_0) / sigma_t
    a, b = estimate_of(t)
    return (direction + (s.alpha - direction * t.alpha) * a, (s.alpha - direction * t.alpha) * b), variance


def euler_ancestral(sampler: EulerAncestral, t: Level, s: Level) -> tuple[Affine, float]:
    """k-diffusion's sigma_up and sigma_down, at alpha = 1; sigma_t may be infinite."""
    fresh = 1 - (s.sigma / s.alpha * t.alpha / t.sigma) ** 2
    up = sampler.eta * s.sigma / s.alpha * math.sqrt(fresh)
    down = math.sqrt((s.sigma / s.alpha) ** 2 - up**2)
    a, b = velocity_of(t)
    turned = plus((1.0, 0.0), (a, b), math.atan(down) - t.theta)
    norm = s.alpha * math.hypot(1.0, down)
    return (norm * turned[0] / t.norm, norm * turned[1]), (s.alpha * up) ** 2


def heun(t: Level, s: Level) -> Affine:
    turn, v_t, v_s = s.theta - t.theta, velocity_of(t), velocity_of(s)
    ahead = after(v_s, plus((1.0, 0.0), v_t, turn))
    moved = plus((1.0, 0.0), plus(v_t, ahead), turn / 2)
    return s.norm * moved[0] / t.norm, s.norm * moved[1]


Moments = Iterator[tuple[float, float]]
"""Mean and variance after each step."""


def one_step_recursion(sampler: Sampler, levels: Sequence[Level], std: float) -> Moments:
    """The estimate at t is all that a step uses."""
    steps = {DDPM: ddpm, DDIM: ddim, EulerAncestral: euler_ancestral}
    mean, variance = 0.0, std**2
    for t, s in pairwise(levels):
        (a, b), added = steps[type(sampler)](sampler, t, s) if s.sigma else (estimate_of(t), 0.0)  # type: ignore[operator]
        mean, variance = a * mean + b, a * a * variance + added
        yield mean, variance


def restart_recursion(sampler: Restart, levels: Sequence[Level], std: float) -> Moments:
    noisy = levels[:-1]
    top, bottom = (
        next(i for i, t in enumerate(noisy) if t.sigma <= end * t.alpha) for end in (sampler.high, sampler.low)
    )
    mean, variance = 0.0, std**2
    for i, (t, s) in enumerate(pairwise(levels), start=1):
        a, b = heun(t, s) if s.sigma else estimate_of(t)
        mean, variance = a * mean + b, a * a * variance
        for _ in range(sampler.repeats if i == bottom else 0):
            r = noisy[top].alpha / noisy[bottom].alpha
            mean, variance = r * mean, r * r * variance + bayes(noisy[top], noisy[bottom])[3]
            for higher, lower in pairwise(levels[top : bottom + 1]):
                a, b = heun(higher, lower)
                mean, variance = a * mean + b, a * a * variance
        yield mean, variance


def multistep_recursion(sampler: DPMpp2MSDE, levels: Sequence[Level], std: float) -> Moments:
    """The joint mean and covariance of (x_t, the last estimate), in k-diffusion's letters."""
    mean, covariance = torch.zeros(2).double(), torch.tensor([[std**2, 0.0], [0.0, 0.0]]).double()
    h_last = math.inf
    for t, s in pairwise(levels):
        a, b = estimate_of(t)
        h = math.log(t.sigma / t.alpha * s.alpha / s.sigma) if s.sigma and t.alpha else math.inf
        slope = 0.0 if math.isinf(h_last) or math.isinf(h) else h / h_last / 2
        old, new = math.exp(-sampler.eta * h) * s.sigma / t.sigma, -s.alpha * math.expm1(-h - sampler.eta * h)
        # the first row moves x, the second keeps the estimate
        matrix = torch.tensor([[old + new * (1 + slope) * a, -new * slope], [a, 0.0]]).double()
        mean = matrix @ mean + torch.tensor([new * (1 + slope) * b, b]).double()
        covariance = matrix @ covariance @ matrix.T
        covariance[0, 0] += -(s.sigma**2) * math.expm1(-2 * sampler.eta * h)
        h_last = h
        yield float(mean[0]), float(covariance[0, 0])


def recursion(sampler: Sampler, levels: Sequence[Level], std: float) -> Moments:
    if isinstance(sampler, Restart):
        return restart_recursion(sampler, levels, std)
    if isinstance(sampler, DPMpp2MSDE):
        return multistep_recursion(sampler, levels, std)
    return one_step_recursion(sampler, levels, std)


@every_stochastic
@every_table
def test_samples_of_a_gaussian_keep_to_the_recursion(sampler: Sampler, table: Schedule) -> None:
    """Against the sampler's own linear recursion: few steps are biased, and rightly so."""
    n = 100_000
    levels = [*Trailing().levels(table, 12), CLEAN]
    steps = trajectory(sampler, gaussian, table.prior_std * normal([n // 2, 2])(-1), levels, seed=5)
    expected = list(recursion(sampler, levels, table.prior_std))
    for i in (0, 5, 8, 9, 10, 11):
        mean, variance = expected[i]
        x = steps[i].x
        assert abs(float(x.mean()) - mean) < 4 * math.sqrt(variance / n)
        assert abs(float(x.var()) - variance) < 4 * variance * math.sqrt(2 / n)
        # two coordinates know nothing of each other
        assert abs(float((x - mean).prod(1).mean())) < 4 * variance * math.sqrt(2 / n)


@every_stochastic
@every_table
def test_many_steps_reach_the_data(sampler: Sampler, table: Schedule) -> None:
    """The recursion itself tends to the data, whatever the noise of a step."""
    levels = [*LogSNR().levels(table, 1000), CLEAN]
    *_, (mean, variance) = recursion(sampler, levels, table.prior_std)
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert variance == pytest.approx(STD**2, rel=0.05)


@every_sampler
def test_the_last_step_is_the_estimate(sampler: Sampler) -> None:
    levels = [*Trailing().levels(LINEAR, 10), CLEAN]
    last = trajectory(sampler, gaussian, normal([20])(-1), levels)[-1]
    assert last.level == CLEAN
    assert torch.equal(last.x, last.estimate.x_0)


# One sampler is another


def same(one: Sampler, other: Sampler, levels: Sequence[Level], atol: float = 1e-12) -> None:
    start = levels[0].norm * normal([100])(-1)
    for a, b in zip(trajectory(one, gaussian, start, levels), trajectory(other, gaussian, start, levels), strict=True):
        assert a.level == b.level
        torch.testing.assert_close(a.x, b.x, rtol=0, atol=atol * levels[0].norm)


@every_table
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (DPMpp2MSDE(eta=0), DPMpp2M()),
        (EulerAncestral(eta=0), Euler()),
        (Restart(repeats=0), Heun()),
    ],
    ids=["dpmpp-2m-sde-0", "euler-ancestral-0", "restart-0"],
)
def test_one_sampler_without_its_extra_is_another(one: Sampler, other: Sampler, table: Schedule) -> None:
    same(one, other, [*Trailing().levels(table, 10), CLEAN])


@every_table
def test_lms_of_order_1_is_euler(table: Schedule) -> None:
    same(LMS(order=1), Euler(), Trailing().levels(table, 10))  # at the clean end lms extrapolates
    same(LMS(order=1), Euler(), [table[999], table[800], CLEAN])  # but not from afar


@every_table
def test_exponential_steps_begin_as_ddim(table: Schedule) -> None:
    """With one estimate, all that x_0 can be along the step is constant."""
    t, s = table[999], table[700]
    x = t.norm * normal([50])(-1)
    estimate = gaussian(x, t)
    (ddim_step,) = DDIM().sample(gaussian, x, [t, s], normal([50]))
    (first,) = DPMpp2M().sample(gaussian, x, [t, s], normal([50]))
    torch.testing.assert_close(first.x, ddim_step.x, rtol=0, atol=1e-12)
    torch.testing.assert_close(exponential_update(x, t, s, [(t, estimate)]), ddim_step.x, rtol=0, atol=1e-12)


@every_table
def test_one_step_of_the_full_sde_is_ddpm(table: Schedule) -> None:
    t, s = table[999], table[700]
    x, z = t.norm * normal([50])(-1), normal([50])
    (sde,) = DPMpp2MSDE().sample(gaussian, x, [t, s], z)
    (posterior,) = DDPM().sample(gaussian, x, [t, s], z)
    torch.testing.assert_close(sde.x, posterior.x, rtol=0, atol=1e-12)


def point(x: Tensor, level: Level) -> Estimate:
    """The optimal denoiser of data that is one point."""
    x_0 = torch.full_like(x, MEAN)
    return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)


@every_sampler
def test_one_point_is_reached_exactly(sampler: Sampler) -> None:
    for table, spacing in product(TABLES.values(), (Trailing(), LogSNR())):
        levels = [*spacing.levels(table, 10), CLEAN]
        start = table.prior_std * normal([50])(-1)
        steps = trajectory(sampler, point, start, levels)
        assert torch.equal(steps[-1].x, torch.full_like(start, MEAN))
        if isinstance(sampler, DDIM | DPMpp2M | DPMpp3M | UniPC) and not getattr(sampler, "eta", 0):
            eps = point(start, levels[0]).eps  # no noise is added and the step is exact, so that eps stays the same
            for s in steps[:-1]:
                torch.testing.assert_close(s.x, s.level.alpha * MEAN + s.level.sigma * eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", [name for name in SAMPLERS if name != "ddpm-large"]
)  # beta is no property of the ratio alone
def test_the_scale_of_the_table_does_not_matter(name: str) -> None:
    """A variance-preserving trajectory and the same at alpha = 1, sigma/alpha: one x_0, with one noise."""
    sampler = SAMPLERS[name]
    vp = [*LogSNR().levels(LINEAR, 20), CLEAN]
    scaled = {level.t: Level(level.t, 1.0, level.sigma / level.alpha) for level in vp}

    def denoise(x: Tensor, level: Level) -> Estimate:
        (twin,) = (t for t in vp if t.t == level.t)
        return gaussian(twin.alpha * x, twin)

    start = normal([50])(-1)
    one = trajectory(sampler, gaussian, start, vp)
    other = trajectory(sampler, denoise, start / vp[0].alpha, list(scaled.values()))
    torch.testing.assert_close(one[-1].x, other[-1].x, rtol=0, atol=1e-9)


# What the samplers share


def polynomial_integral(coefficients: Sequence[float], weight: Callable[[float], float]) -> float:
    """By Simpson's rule on 0..1."""
    n = 2000
    values = [weight(i / n) * sum(c * (i / n) ** k for k, c in enumerate(coefficients)) for i in range(n + 1)]
    return (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])) / (3 * n)


@pytest.mark.parametrize("h", [1e-6, 0.01, 0.3, 0.999999, 1.0, 1.000001, 2.5, 9.0])
def test_quadrature_is_exact_for_polynomials(h: float) -> None:
    nodes, coefficients = [0.0, -0.7, -1.9, 1.0], [0.3, -1.1, 0.8, 0.5]
    values = [sum(c * u**k for k, c in enumerate(coefficients)) for u in nodes]
    for moments, weight in (
        (exponential_moments(h, 4), lambda u: h * math.exp(-h * (1 - u))),
        (plain_moments(4), lambda u: 1.0),
    ):
        found = sum(w * v for w, v in zip(quadrature(nodes, moments), values, strict=True))
        expected = polynomial_integral(coefficients, weight)
        assert found == pytest.approx(expected, rel=1e-9)
    assert exponential_moments(h, 1) == [pytest.approx(-math.expm1(-h), rel=1e-14)]
    assert exponential_moments(math.inf, 4) == [1.0] * 4


@pytest.mark.parametrize(
    "sampler", [DPMpp2M(), DPMpp3M(), UniPC(), UniPC(order=3)], ids=["2m", "3m", "unipc", "unipc-3"]
)
@pytest.mark.parametrize("spacing", [Leading(), Linspace()], ids=lambda s: s.name)
def test_no_overshoot_where_steps_grow_suddenly(sampler: Sampler, spacing: Spacing) -> None:
    """From t = 100 to 0 the log-SNR moves by 3.5 times the step before: a line through the last two leads astray."""
    levels = [*spacing.levels(LINEAR, 10), CLEAN]
    start = normal([500])(-1)
    *_, last = trajectory(sampler, gaussian, start, levels)
    *_, plain = trajectory(DDIM(), gaussian, start, levels)
    exact = MEAN + STD * start  # to 1 %: some signal is left at the first level
    assert float((last.x - exact).abs().max()) < float((plain.x - exact).abs().max())


def test_restart_repeats_its_interval() -> None:
    """The levels of the calls, and the noise drawn: the indices of the steps themselves are left alone."""
    levels = [*Trailing().levels(LINEAR, 10), CLEAN]
    ratios = [level.sigma / level.alpha for level in levels[:-1]]
    asked: list[float] = []
    drawn: list[int] = []

    def denoise(x: Tensor, level: Level) -> Estimate:
        asked.append(level.t)
        return gaussian(x, level)

    def noise(i: int) -> Tensor:
        drawn.append(i)
        return normal([4])(i)

    start = normal([4])(-1)
    steps = list(Restart(low=1.5, high=3, repeats=2).sample(denoise, start, levels, noise))
    assert [step.level for step in steps] == levels[1:]
    assert drawn == [11, 12]
    assert ratios[5] > 3 >= ratios[6] > 1.5 >= ratios[7]  # t = 399 and 299
    assert asked.count(399) == 1 + 1 + 2  # t = 399 ends a step once, then begins one each time
    assert asked.count(299) == 1 + 2 + 1
    # if all levels stay above `low`, from the last noisy one
    drawn.clear()
    asked.clear()
    list(Restart(low=0.01, high=1).sample(denoise, start, levels, noise))
    assert drawn == [11]
    assert len(asked) == 19 + 2
    drawn.clear()
    list(Restart(low=0.01, high=0.02).sample(denoise, start, levels, noise))
    assert drawn == []


def test_restart_wants_an_interval() -> None:
    with pytest.raises(ValueError, match="high: must be above low"):
        Restart(low=2, high=1)


class Counting(nn.Module):
    """Answers zero; remembers the times it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        assert t.dtype == torch.float32
        assert t.shape == (len(x),)
        self.times.append(float(t[0]))
        return torch.zeros_like(x)


@every_sampler
def test_network_calls(sampler: Sampler) -> None:
    """One for each level; Heun calls at the end of each step too, and Restart repeats some of them."""
    network, table = Counting(), Linear().build(500)
    levels = [*Trailing().levels(table, 10), CLEAN]
    trajectory(sampler, Denoiser(network, EpsPrediction(), ObjectiveSpec(schedule=table)), normal([4, 2])(-1), levels)
    times = [998, 898, 798, 698, 598, 498, 398, 298, 198, 98]  # index x 1000/T
    if isinstance(sampler, Heun | Restart):
        assert sorted(set(network.times), reverse=True) == times
        again = 3 * getattr(sampler, "repeats", 0)  # steps from t = 398 to 98
        assert len(network.times) == 2 * 10 - 1 + 2 * again
    else:
        assert network.times == times


@every_table
def test_networks_see_unit_variance(table: Schedule) -> None:
    seen: list[float] = []

    class Measure(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
            seen.append(float(x.std()))
            return torch.zeros_like(x)

    x_0, eps = normal([50_000])(0), normal([50_000])(1)
    for t in (0, 300, 600, 900):
        level = table[t]
        Denoiser(Measure(), EpsPrediction(), ObjectiveSpec(schedule=table))(
            level.alpha * x_0 + level.sigma * eps, level
        )
    assert seen == pytest.approx([1.0] * 4, abs=0.02)


@every_sampler
def test_every_sampler_keeps_the_contract(sampler: Sampler) -> None:
    """A step for each level, no call at the clean end, finite states of one dtype, and a start that stays as it was."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        assert level.sigma > 0
        assert level.t >= 0
        return gaussian(x, level)

    for table, steps in product((*TABLES.values(), Cosine().build(1000)), (1, 2, 7, 50)):
        levels = [*Trailing().levels(table, steps), CLEAN]
        start = table.prior_std * normal([64])(-1)
        before = start.clone()
        taken = trajectory(sampler, denoise, start, levels)
        assert [step.level for step in taken] == levels[1:]
        assert all(bool(torch.isfinite(step.x).all()) and step.x.shape == (64,) for step in taken)
        assert all(step.x.dtype == torch.float64 for step in taken)
        assert torch.equal(start, before)
        last = taken[-1].x
        assert abs(float(last.mean()) - MEAN) < 0.5 + 4 * float(last.std()) / 8  # 64 samples
    for table in TABLES.values():
        levels, noise = [*Trailing().levels(table, 5), CLEAN], normal([8])
        taken = list(sampler.sample(gaussian, noise(-1).float(), levels, lambda i, noise=noise: noise(i).float()))  # type: ignore[misc]
        assert {step.x.dtype for step in taken} == {torch.float32}


def test_collected_states_are_those_of_the_steps(points_run: Path) -> None:
    model = difftool.load(points_run, device="cpu")
    plan = Plan.of(model, Sampling(steps=4, num_samples=10, batch_size=4), sampler="heun")
    watched: list[Step] = []
    found = collect(model, plan, (0, 3), watch=watched.append)
    assert [(step.first, step.number) for step in watched] == [(b, n) for b in (0, 4, 8) for n in range(5)]
    assert [step.done for step in watched[:5]] == [False, False, False, False, True]
    for x, number in ((found.x, 4), (found.states[0], 0), (found.states[1], 3)):
        assert torch.equal(x, torch.cat([step.x for step in watched if step.number == number]))
    assert list(found.levels) == [plan.levels[0], plan.levels[3]]
    assert found.calls == watched[-1].calls == 7
    middle = collect(model, plan, batches=[1])
    assert torch.equal(middle.x[4:8], found.x[4:8])
    assert torch.equal(draw(model, plan), model.data.scaling.to_data(found.x))


def test_batches_in_threads_give_the_same_samples(points_run: Path) -> None:
    model = difftool.load(points_run, device="cpu")
    plan = Plan.of(model, Sampling(steps=4, num_samples=23, batch_size=4), sampler="ddpm")
    watched: list[Step] = []
    alone, together = collect(model, plan, (0, 3)), collect(model, plan, (0, 3), parallel=3, watch=watched.append)
    assert torch.equal(together.x, alone.x)
    assert torch.equal(together.states, alone.states)
    assert together.calls == alone.calls == 4
    assert len(watched) == 6 * 5
    assert sum(len(step.x) for step in watched if step.done) == 23


def test_a_failure_in_a_thread_ends_the_others(points_run: Path) -> None:
    model = difftool.load(points_run, device="cpu")
    plan = Plan.of(model, Sampling(steps=900, num_samples=8, batch_size=1))
    watched: list[int] = []

    def watch(step: Step) -> None:
        watched.append(step.number)
        if step.number == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        collect(model, plan, parallel=2, watch=watch)
    assert max(watched) < 900


def test_a_time_that_all_samples_share_is_embedded_once(points_run: Path) -> None:
    network = difftool.load(points_run, device="cpu").network
    x, t = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), torch.full((1,), 321.0)
    with torch.no_grad():
        shared = network(x, t.expand(9))
        assert torch.allclose(shared, network(x, t.repeat(9)), atol=1e-6)
    assert torch.allclose(shared, network(x, t.repeat(9)), atol=1e-6)  # with gradients nothing is done in place


class Operations(TorchDispatchMode):
    """Records the operations that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@every_sampler
def test_a_step_is_a_few_operations_that_never_wait_for_the_device(
    sampler: Sampler, points_run: Path, images_run: Path
) -> None:
    """Reading a number from a tensor would stop a GPU in each step. Gradients are off in a step, and on after it."""
    for run in (points_run, images_run):
        model = difftool.load(run, device="cpu")
        model.forward = lambda x, t, cond: torch.neg(x)
        steps = sample(model, Plan.of(model, Sampling(steps=10, num_samples=2), sampler=sampler))
        next(steps)
        calls = 0
        for _ in range(10):
            with Operations() as operations:
                step = next(steps)
            assert "aten._local_scalar_dense.default" not in operations.names
            assert len(operations.names) <= 64 * max(1, step.calls - calls)
            assert torch.is_grad_enabled()
            assert not step.x.requires_grad
            calls = step.calls


def test_the_hooks_offer_sound_components() -> None:
    assert [c.name for c in difftool_samplers()] == [
        *("ddpm", "ddim", "euler", "euler-ancestral", "heun", "restart"),
        *("dpmpp-2m", "dpmpp-2m-sde", "dpmpp-3m", "unipc", "lms"),
    ]
    assert [c.name for c in difftool_spacings()] == ["trailing", "leading", "linspace", "karras", "log-snr"]
    assert {problem(c) for c in (*difftool_samplers(), *difftool_spacings())} == {None}
