"""Level grids and samplers against closed forms: one Gaussian, whose optimal denoiser and flow are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from difftool import CLEAN, Denoise, Estimate, Level, Sampler, Schedule, Spacing, Step
from difftool.denoiser import Clipped, Denoiser, Guided
from difftool.validation import problem
from difftool_plugins.objectives.predictions import EpsPrediction
from difftool_plugins.samplers import difftool_samplers, difftool_spacings
from difftool_plugins.samplers.ancestral import DDIM, DDPM
from difftool_plugins.samplers.spacings import Leading, Linspace, LogSNR, Trailing
from difftool_plugins.schedules.variance_preserving import Cosine, Linear

MEAN, STD = 0.7, 0.4
"""The data: one Gaussian."""


def ve(T: int) -> Schedule:
    sigma = torch.logspace(math.log10(0.002), math.log10(80), T, dtype=torch.float64)
    return Schedule(torch.ones_like(sigma), sigma)


def flow(T: int) -> Schedule:
    u = torch.arange(1, T + 1, dtype=torch.float64) / T
    return Schedule(1 - u, u)


LINEAR = Linear().build(1000)
TABLES = {"vp": LINEAR, "ve": ve(1000), "flow": flow(1000)}
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
SAMPLERS = {
    "ddpm-small": DDPM(),
    "ddpm-large": DDPM(variance="fixed-large"),
    "ddim": DDIM(),
    "ddim-half": DDIM(eta=0.5),
    "ddim-one": DDIM(eta=1),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def gain(level: Level) -> float:
    """E[x_0 | x_t] = m + gain (x_t - alpha m)."""
    return level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)


def gaussian(x: Tensor, level: Level) -> Estimate:
    """The optimal denoiser of N(m, s^2)."""
    x_0 = MEAN + gain(level) * (x - level.alpha * MEAN)
    return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)


def normal(shape: Sequence[int], seed: int = 0) -> Callable[[int], Tensor]:
    """Noise of step i, -1 the start; float64."""

    def noise(i: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + i + 1)
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return noise


def walk(sampler: Sampler, denoise: Denoise, x: Tensor, levels: Sequence[Level], seed: int = 0) -> list[Step]:
    return list(sampler.walk(denoise, x, levels, normal(x.shape, seed)))


# Level grids


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
def test_published_grids(spacing: Spacing, steps: int, expected: list[int]) -> None:
    assert indices(spacing, steps) == expected


@pytest.mark.parametrize("spacing", [c() for c in difftool_spacings()], ids=lambda s: s.name)
@pytest.mark.parametrize("steps", [1, 2, 7, 61, 999, 1000])
def test_grids_fall_strictly_and_are_complete(spacing: Spacing, steps: int) -> None:
    for schedule in (LINEAR, Cosine().build(1000), *TABLES.values()):
        levels = spacing.levels(schedule, steps)
        assert len(levels) == steps
        assert all(t.t > s.t and t.theta > s.theta for t, s in pairwise(levels))
        assert 0 <= levels[-1].t <= levels[0].t <= 999
        assert all(math.isfinite(level.alpha) and level.sigma > 0 for level in levels)


def test_trailing_at_every_number_of_steps() -> None:
    for steps in range(1, 1001):
        t = indices(Trailing(), steps)
        assert len(t) == steps
        assert t[0] == 999
        assert t[-1] >= 0
        assert all(a > b for a, b in pairwise(t))
    assert (
        indices(Trailing(), 1000) == indices(Leading(), 1000) == indices(Linspace(), 1000) == list(range(999, -1, -1))
    )


@pytest.mark.parametrize("schedule", [LINEAR, Cosine().build(1000), TABLES["ve"], TABLES["flow"]])
def test_log_snr_grid_is_even(schedule: Schedule) -> None:
    values = [level.log_snr for level in LogSNR().levels(schedule, 20)]
    noisy, clean = max(schedule[999].log_snr, -10.2), schedule[0].log_snr
    for i, value in enumerate(values):
        assert value == pytest.approx(noisy + (clean - noisy) * i / 19, abs=1e-9)


def test_log_snr_grid_clips_the_noisy_end() -> None:
    cosine = Cosine().build(1000)
    assert cosine[999].log_snr < -19
    assert LogSNR().levels(cosine, 10)[0].log_snr == pytest.approx(-10.2, abs=1e-9)
    assert LogSNR(floor=-15).levels(cosine, 10)[0].log_snr == pytest.approx(-15, abs=1e-9)
    (only,) = LogSNR().levels(cosine, 1)  # one step starts where many do
    assert only == LogSNR().levels(cosine, 10)[0]
    assert LogSNR().levels(LINEAR, 1) == [LINEAR[999]]
    clean = Schedule(torch.tensor([1.0, 0.5]).double(), torch.tensor([0.0, 0.5]).double())
    with pytest.raises(ValueError, match="some noise"):
        LogSNR().levels(clean, 2)


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
            (step,) = sampler.walk(
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
        walk(DDIM(eta=1), gaussian, start, levels), walk(DDPM(), gaussian, start, levels), strict=True
    ):
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=1e-10)


def test_ddim_with_eta_0_draws_no_noise() -> None:
    def noise(i: int) -> Tensor:
        raise AssertionError("noise was drawn")

    levels = [*Trailing().levels(LINEAR, 10), CLEAN]
    assert len(list(DDIM().walk(gaussian, torch.zeros(3, dtype=torch.float64), levels, noise))) == 10


# Whole walks


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddim_converges_at_order_1(name: str) -> None:
    """Against the exact flow of one Gaussian, at the last noisy level: the first-order last step would hide it."""
    table = {"linear": Linear, "cosine": Cosine}[name]().build(100_000)

    def error(steps: int) -> float:
        levels = LogSNR().levels(table, steps + 1)  # no clean end
        first, last = levels[0], levels[-1]
        start = normal([50])(-1)
        std = [math.sqrt((level.alpha * STD) ** 2 + level.sigma**2) for level in (first, last)]
        exact = last.alpha * MEAN + std[1] / std[0] * (start - first.alpha * MEAN)
        return float((walk(DDIM(), gaussian, start, levels)[-1].x - exact).square().mean().sqrt())

    counts = [20, 40, 80, 160, 320]
    errors = [error(n) for n in counts]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(0.9 <= slope <= 1.15 for slope in slopes), slopes
    assert errors[-1] < 5e-3


def transition(sampler: DDPM | DDIM, t: Level, s: Level) -> tuple[float, float, float]:
    """(c_0, c_t, variance) of x_s = c_0 x_0 + c_t x_t + noise, by Bayes' rule for the chain x_0 -> x_s -> x_t.

    x_s | x_0 ~ N(alpha_s x_0, sigma_s^2) and x_t | x_s ~ N(r x_s, tau^2): their precisions add.
    """
    if s.sigma == 0.0:
        return s.alpha, 0.0, 0.0
    r = t.alpha / s.alpha
    tau_2 = t.sigma**2 - r**2 * s.sigma**2
    precision = 1 / s.sigma**2 + r**2 / tau_2
    if isinstance(sampler, DDPM):
        return (
            s.alpha / s.sigma**2 / precision,
            r / tau_2 / precision,
            1 / precision if sampler.variance == "fixed-small" else tau_2,
        )
    variance = sampler.eta**2 / precision
    direction = math.sqrt(s.sigma**2 - variance) / t.sigma  # of eps = (x_t - alpha_t x_0) / sigma_t
    return s.alpha - direction * t.alpha, direction, variance


def recursion(sampler: DDPM | DDIM, levels: Sequence[Level], std: float) -> Iterator[tuple[float, float]]:
    """Mean and variance after each step, the optimal denoiser of N(m, s^2) put in."""
    mean, variance = 0.0, std**2
    for t, s in pairwise(levels):
        c_0, c_t, added = transition(sampler, t, s)
        slope = c_t + c_0 * gain(t)
        mean = slope * mean + c_0 * MEAN * (1 - gain(t) * t.alpha)
        variance = slope**2 * variance + added
        yield mean, variance


@every_sampler
@every_table
def test_samples_of_a_gaussian_keep_to_the_recursion(sampler: DDPM | DDIM, table: Schedule) -> None:
    """Against the sampler's own linear recursion: few steps are biased, and rightly so."""
    n = 100_000
    levels = [*Trailing().levels(table, 12), CLEAN]
    steps = walk(sampler, gaussian, table.prior_std * normal([n])(-1), levels, seed=5)
    expected = list(recursion(sampler, levels, table.prior_std))
    for i in (0, 5, 10, 11):
        mean, variance = expected[i]
        assert abs(float(steps[i].x.mean()) - mean) < 4 * math.sqrt(variance / n)
        assert abs(float(steps[i].x.var()) - variance) < 4 * variance * math.sqrt(2 / n)


@every_sampler
@every_table
def test_many_steps_reach_the_data(sampler: DDPM | DDIM, table: Schedule) -> None:
    """The recursion itself tends to the data, whatever the noise of a step."""
    levels = [*LogSNR().levels(table, 1000), CLEAN]
    *_, (mean, variance) = recursion(sampler, levels, table.prior_std)
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert variance == pytest.approx(STD**2, rel=0.05)


@every_sampler
def test_the_last_step_is_the_estimate(sampler: Sampler) -> None:
    levels = [*Trailing().levels(LINEAR, 10), CLEAN]
    last = walk(sampler, gaussian, normal([20])(-1), levels)[-1]
    assert last.level == CLEAN
    assert torch.equal(last.x, last.estimate.x_0)


class Counting(nn.Module):
    """Answers zero; remembers the times it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        assert t.dtype == torch.float32
        assert t.shape == (len(x),)
        self.times.append(float(t[0]))
        return torch.zeros_like(x)


@every_sampler
def test_one_network_call_a_step(sampler: Sampler) -> None:
    network = Counting()
    table = Linear().build(500)
    denoise = Denoiser(network, table, EpsPrediction())
    walk(sampler, denoise, normal([4, 2])(-1), [*Trailing().levels(table, 10), CLEAN])
    assert denoise.calls == len(network.times) == 10
    assert network.times == [998, 898, 798, 698, 598, 498, 398, 298, 198, 98]  # index x 1000/T


@every_table
def test_networks_see_unit_variance(table: Schedule) -> None:
    seen: list[float] = []

    class Measure(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            seen.append(float(x.std()))
            return torch.zeros_like(x)

    x_0, eps = normal([50_000])(0), normal([50_000])(1)
    for t in (0, 300, 600, 900):
        level = table[t]
        Denoiser(Measure(), table, EpsPrediction())(level.alpha * x_0 + level.sigma * eps, level)
    assert seen == pytest.approx([1.0] * 4, abs=0.02)


@pytest.mark.parametrize("sampler", [c() for c in difftool_samplers()], ids=lambda s: s.name)
@pytest.mark.parametrize("table", [*TABLES.values(), Cosine().build(1000)], ids=[*TABLES, "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_every_sampler_keeps_the_contract(sampler: Sampler, table: Schedule, steps: int) -> None:
    """A step for each level, never a question at the clean end, nothing but finite numbers."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        assert level.sigma > 0
        assert level.t >= 0
        return gaussian(x, level)

    levels = [*Trailing().levels(table, steps), CLEAN]
    taken = walk(sampler, denoise, table.prior_std * normal([64])(-1), levels)
    assert [step.level for step in taken] == levels[1:]
    assert all(bool(torch.isfinite(step.x).all()) and step.x.shape == (64,) for step in taken)
    assert all(step.x.dtype == torch.float64 for step in taken)
    assert abs(float(taken[-1].x.mean()) - MEAN) < 0.5


@pytest.mark.parametrize("sampler", [c() for c in difftool_samplers()], ids=lambda s: s.name)
def test_a_walk_leaves_its_start_alone(sampler: Sampler) -> None:
    start = normal([8])(-1)
    kept = start.clone()
    walk(sampler, gaussian, start, [*Trailing().levels(LINEAR, 5), CLEAN])
    assert torch.equal(start, kept)


def test_the_hooks_offer_sound_components() -> None:
    assert {"ddpm", "ddim"} <= {c.name for c in difftool_samplers()}
    assert {"trailing", "leading", "linspace", "log-snr"} <= {c.name for c in difftool_spacings()}
    assert {problem(c) for c in (*difftool_samplers(), *difftool_spacings())} == {None}


# Denoisers around a denoiser


@every_table
def test_clipping_derives_eps_again(table: Schedule) -> None:
    level = table[600]
    x = 5 * table.prior_std * normal([100])(0)
    raw, clipped = gaussian(x, level), Clipped(gaussian, (0.5, 0.9))(x, level)
    assert torch.equal(clipped.x_0, raw.x_0.clamp(0.5, 0.9))
    assert not torch.equal(clipped.x_0, raw.x_0)
    torch.testing.assert_close(level.alpha * clipped.x_0 + level.sigma * clipped.eps, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 7.5])
def test_guidance_extrapolates_from_the_unconditional(scale: float) -> None:
    c_0, c_eps, u_0, u_eps = normal([4, 30])(0).unbind()
    guided = Guided(lambda x, level: Estimate(c_0, c_eps), lambda x, level: Estimate(u_0, u_eps), scale)
    found = guided(torch.zeros(30, dtype=torch.float64), LINEAR[500])
    torch.testing.assert_close(found.x_0, u_0 + scale * (c_0 - u_0), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.eps, u_eps + scale * (c_eps - u_eps), rtol=0, atol=1e-13)
    if scale in (0.0, 1.0):
        assert torch.equal(found.x_0, (u_0, c_0)[int(scale)])


def test_guided_estimates_still_describe_x_t() -> None:
    level, x = LINEAR[500], normal([30])(0)

    def other(x: Tensor, level: Level) -> Estimate:
        x_0 = -0.3 * x
        return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)

    found = Guided(gaussian, other, 3.0)(x, level)
    torch.testing.assert_close(level.alpha * found.x_0 + level.sigma * found.eps, x)
