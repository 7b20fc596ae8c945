"""The laws of samplers and spacings.

Samplers are checked with an exact denoiser: that of a mixture of Gaussians on a line, whose flow is known too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from difftool.components import Sampler, Spacing
from difftool.diffusion.estimate import Denoise, Estimate, Step
from difftool.diffusion.schedule import CLEAN, Level, Schedule
from difftool.errors import DifftoolError
from difftool.rng import sample_noise
from difftool.sampling.denoiser import Counted
from difftool.sampling.plan import spaced_levels
from difftool.testing.known import DEVIATION, QUANTILES, TABLES, distance, evenly, log_snr_levels, mixture, quantiles
from difftool.testing.laws import Failed, Skipped, accelerators, gap, raised, require

Noise = Callable[[int], Tensor]

ROUNDING = 1e-9
"""Largest difference between float64 results that should be equal."""
SAMPLES, STEPS, FARTHEST = 8000, 200, 0.03
"""Samples and steps, and the largest Wasserstein-1 distance to the data. Chance alone makes 0.005 to 0.015."""
DOUBLING = (80, 160, 320)
"""Numbers of steps between which the error must fall."""
SHARE = 0.85
"""Share of the claimed order that is enough, since the order is the limit for many steps."""
SHAPES: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "points": ((1,), (2,), (7,)),
    "images": ((1, 1, 1), (3, 4, 4), (1, 6, 5)),
}
"""Shapes of items. The first of each row holds one number, so the known distribution applies to it."""
OFF_TABLE = 1e-6
"""Largest angle, in radians, between a level and the schedule's level at the same t."""
COUNTS = (1, 2, 7, 61, 999, 1000)
"""Numbers of levels that a spacing is asked for."""


@dataclass(frozen=True)
class Case:
    """A sampler with the schedules and the shapes of items that it accepts."""

    sampler: Sampler
    tables: Mapping[str, Schedule]
    shapes: tuple[tuple[int, ...], ...]
    refused: Mapping[str, str]
    """The reasons for which it refuses the others."""

    def levels(self, steps: int) -> list[Level]:
        """Return evenly spaced levels of the first accepted schedule, and the clean end."""
        return [*log_snr_levels(next(iter(self.tables.values())), steps), CLEAN]

    def noise(self, count: int, first: int = 0, dtype: torch.dtype = torch.float64) -> Noise:
        return noise_of(count, self.shapes[0], dtype, first)

    def trajectory(
        self, levels: Sequence[Level], count: int, first: int = 0, denoise: Denoise = mixture, x: Tensor | None = None
    ) -> Iterator[Step]:
        """Sample items number `first` and following, from their own noise or from numbers x (count,)."""
        noise = self.noise(count, first)
        start = levels[0].norm * noise(-1) if x is None else x.view(count, *self.shapes[0])
        return self.sampler.sample(denoise, start, levels, noise)

    def end(self, levels: Sequence[Level], count: int, first: int = 0, x: Tensor | None = None) -> Tensor:
        """Return the last state of a trajectory."""
        *_, last = self.trajectory(levels, count, first, x=x)
        return last.x


def prepare(sampler: Sampler) -> Case:
    """Find out what the sampler accepts. It may refuse schedules and shapes with a `ValueError` before it calls the
    denoiser. Raises `Failed` if it refuses everything."""
    refused: dict[str, str] = {}
    for name, shapes in SHAPES.items():
        tables = {}
        for table, schedule in TABLES.items():
            if reason := refusal(sampler, schedule, shapes[0]):
                refused[f"{name} on {table}"] = reason
            else:
                tables[table] = schedule
        if tables:
            first = next(iter(tables.values()))
            others = [shape for other, some in SHAPES.items() if other != name for shape in some]
            return Case(sampler, tables, (*shapes, *(s for s in others if not refusal(sampler, first, s))), refused)
    raise Failed(f"it refuses everything: {'; '.join(f'{what}: {why}' for what, why in refused.items())}")


def refusal(sampler: Sampler, schedule: Schedule, shape: tuple[int, ...], steps: int = 2) -> str:
    """Return the reason for which a sampler refuses a schedule, a shape or a number of steps, or an empty text."""
    levels, denoise, noise = [*trailing(schedule, steps), CLEAN], Counted(mixture), noise_of(2, shape)
    try:
        next(iter(sampler.sample(denoise, levels[0].norm * noise(-1), levels, noise)))
    except Exception as error:  # any error but a ValueError is left to the laws
        return str(error) if isinstance(error, ValueError) and denoise.calls == 0 else ""
    return ""


def visits_the_given_levels(case: Case) -> str:
    """It makes one step to each level and keeps shape and dtype, and every state is finite: on schedules with and
    without signal at the last level, in 1, 2 and 10 steps, for points and images, in float32 and float64. It never
    calls the denoiser at the clean end or with the t of another level; `Level.of(alpha, sigma)` makes new levels."""
    trials = list(product(case.tables.items(), (1, 2, 10), case.shapes, (torch.float32, torch.float64)))
    for (name, schedule), steps, shape, dtype in trials:
        try:
            check_trajectory(case.sampler, schedule, steps, shape, dtype)
        except Exception as error:
            where = f"{steps} steps of {name}, items {shape}, {dtype}".replace("torch.", "")
            raise Failed(f"{where}: {error if isinstance(error, Failed) else raised(error)}") from None
    refused = "".join(f"; refuses {what}: {why}" for what, why in case.refused.items())
    return f"{len(trials)} trajectories{refused}"


def is_reproducible(case: Case) -> str:
    """The same noise gives the same samples to the last bit: nothing is drawn elsewhere and nothing is remembered."""
    a, b = (case.end(case.levels(20), 16) for _ in range(2))
    if not torch.equal(a, b):
        raise Failed(f"two trajectories from the same noise end {gap(a, b):.2g} apart; draw all noise by noise(i)")
    return "equal to the last bit"


def modifies_no_tensor_in_place(case: Case) -> str:
    """The first noise, the states that it yields or passes to the denoiser, and the denoiser's estimates keep their
    values, since the caller may keep these tensors."""
    seen: list[tuple[str, Tensor, Tensor]] = []

    def remember(what: str, x: Tensor) -> None:
        seen.append((what, x, x.clone()))

    def denoise(x: Tensor, level: Level) -> Estimate:
        estimate = mixture(x, level)
        remember("a state that was passed to the denoiser", x)
        remember("an estimate of the denoiser", estimate.x_0)
        remember("an estimate of the denoiser", estimate.eps)
        return estimate

    levels = case.levels(10)
    start = levels[0].norm * case.noise(8)(-1)
    remember("the noise that it starts from", start)
    for number, step in enumerate(case.trajectory(levels, 8, denoise=denoise, x=start), start=1):
        remember(f"the state of step {number}", step.x)
    for what, x, value in seen:
        require(torch.equal(x, value), f"{what} was changed in place later; make new tensors")
    return f"{len(seen)} tensors unchanged"


def is_independent_of_the_batch_size(case: Case) -> str:
    """Samples that are made together, in batches of 5 and one at a time are the same, since the noise belongs to the
    number of the sample."""
    levels, n = case.levels(20), 12
    together, worst = case.end(levels, n), 0.0
    for size in (1, 5):
        parts = [case.end(levels, min(size, n - first), first) for first in range(0, n, size)]
        worst = max(worst, gap(torch.cat(parts), together))
    if not worst <= ROUNDING:
        raise Failed(f"samples differ by {worst:.2g} between batches of 1, 5 and {n}; at most {ROUNDING:g} is rounding")
    return f"{worst:.1g} apart, at most {ROUNDING:g}"


def makes_the_calls_it_claims(case: Case) -> str:
    """If `claimed_calls` returns a number, it is the number of denoiser calls on every schedule."""
    rows, first = [], next(iter(case.tables.values()))
    for steps in (1, 2, 10, 50):
        if refusal(case.sampler, first, case.shapes[0], steps):
            continue
        claimed, made = case.sampler.claimed_calls(steps), set()
        for name, table in case.tables.items():
            denoise = Counted(mixture)
            list(case.trajectory([*trailing(table, steps), CLEAN], 2, denoise=denoise))
            if claimed not in (None, denoise.calls):
                raise Failed(
                    f"{denoise.calls} calls in {steps} steps of {name}, but claimed_calls({steps}) is {claimed}"
                )
            made.add(denoise.calls)
        rows.append(f"{'/'.join(map(str, sorted(made)))} in {steps}")
    return f"calls in steps: {', '.join(rows)}{'; none claimed' if case.sampler.claimed_calls(1) is None else ''}"


def reaches_the_data_distribution(case: Case) -> str:
    """After 200 steps, 8000 samples are within a Wasserstein-1 distance of 0.03 of the mixture whose denoiser it calls
    (standard deviation 0.92), on a variance-preserving schedule, on straight lines without signal at the last level,
    and on a variance-exploding schedule. A sampler that refuses so many steps is for models that need few."""
    distances = {}
    if reason := refusal(case.sampler, next(iter(case.tables.values())), case.shapes[0], STEPS):
        raise Skipped(reason)
    for name, table in case.tables.items():
        levels = [*log_snr_levels(table, STEPS), CLEAN]
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
        samples = case.end(levels, SAMPLES, x=quantiles(levels[0], evenly(SAMPLES))[order]).flatten()
        distances[name] = distance(samples)
        if not distances[name] <= FARTHEST:
            raise Failed(
                f"it ends at a Wasserstein-1 distance of {distances[name]:.3f} on {name}; at most {FARTHEST} is "
                f"required (standard deviation of the samples {float(samples.std(correction=0)):.2f}, of the data "
                f"{DEVIATION:.2f})"
            )
    return f"Wasserstein-1 {', '.join(f'{name} {value:.3f}' for name, value in distances.items())}, at most {FARTHEST}"


def has_the_order_it_claims(case: Case) -> str:
    """From 80 to 160 to 320 steps, the error against the exact flow falls by 2^order on each schedule, with 0.85 of the
    order as tolerance. It is measured at the last noisy level, since the first-order step to the clean end hides it."""
    claimed = case.sampler.claimed_order()
    if draws_noise(case):
        if claimed is not None:
            raise Failed(f"claims order {claimed}, but draws noise, so it follows no flow")
        raise Skipped("it draws noise and claims no order")
    orders = {}
    for name, table in case.tables.items():
        errors = [flow_error(case, log_snr_levels(table, steps + 1)) for steps in DOUBLING]
        orders[name] = min(math.log2(a / b) if b else math.inf for a, b in pairwise(errors))
    rows = ", ".join(f"{name} {order:.2f}" for name, order in orders.items())
    if claimed is not None and not min(orders.values()) >= SHARE * claimed:
        raise Failed(f"claims order {claimed}, but its error has order {rows}; {SHARE * claimed:.2f} is required")
    return f"{rows}; {'none' if claimed is None else claimed} claimed"


def works_on_every_device(case: Case) -> str:
    """On each accelerator of the machine its float32 samples differ from those on the CPU by at most 1e-3."""
    devices, levels = accelerators(), case.levels(20)
    noise = case.noise(64, dtype=torch.float32)

    def end_on(device: torch.device) -> Tensor:
        start = (levels[0].norm * noise(-1)).to(device)
        *_, last = case.sampler.sample(mixture, start, levels, lambda step: noise(step).to(device))
        return last.x.cpu()

    expected = end_on(torch.device("cpu"))
    for device in devices:
        if not (difference := gap(end_on(device), expected)) <= 1e-3:
            raise Failed(f"samples on {device} and on the CPU differ by {difference:.2g}")
    return ", ".join(map(str, devices))


LAWS = (
    visits_the_given_levels,
    is_reproducible,
    modifies_no_tensor_in_place,
    is_independent_of_the_batch_size,
    makes_the_calls_it_claims,
    reaches_the_data_distribution,
    has_the_order_it_claims,
    works_on_every_device,
)


def noise_of(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, first: int = 0) -> Noise:
    """Return the noise of each step, keyed by the sample's number as in `difftool sample`."""
    return lambda step: sample_noise(first, count, shape, 0, "law", step).to(dtype)


def trailing(schedule: Schedule, steps: int) -> list[Level]:
    """Return evenly spaced levels from the last one, which may have no signal."""
    return [schedule[round(len(schedule) * (steps - i) / steps) - 1] for i in range(steps)]


def check_trajectory(
    sampler: Sampler, schedule: Schedule, steps: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Sample three items and check every denoiser call and every step. Raises `Failed`."""
    levels, noise = [*trailing(schedule, steps), CLEAN], noise_of(3, shape, dtype)
    start = levels[0].norm * noise(-1)

    def denoise(x: Tensor, level: Level) -> Estimate:
        if x.shape != start.shape or x.dtype != start.dtype:
            raise Failed(f"the denoiser was called with {form(x)}, not {form(start)}")
        check_level(level, schedule)
        return mixture(x, level)

    trajectory = list(sampler.sample(denoise, start, levels, noise))
    for number, step in enumerate(trajectory, start=1):
        if not isinstance(step, Step):
            raise Failed(f"step {number} is a {type(step).__name__}, not a Step")
        if step.x.shape != start.shape or step.x.dtype != start.dtype:
            raise Failed(f"step {number} has {form(step.x)}, not {form(start)}")
        require(step.x.isfinite().all(), f"the state of step {number} is not finite")
    require(len(trajectory) == steps, f"it yielded {len(trajectory)} steps")
    for number, (step, level) in enumerate(zip(trajectory, levels[1:], strict=True), start=1):
        require(step.level == level, f"step {number} claims to be at {step.level}, but should be at {level}")


def check_level(level: Level, schedule: Schedule) -> None:
    """Refuse a level at which no network could be called: the clean end, or the t of another level."""
    require(level.sigma != 0.0, "the denoiser was called at the clean end, where there is nothing to denoise")
    if math.isnan(level.t):
        return
    if not -1.0 <= level.t <= len(schedule) - 1 or abs(schedule.at(level.t).theta - level.theta) > OFF_TABLE:
        raise Failed(
            f"the denoiser was called at {level}, but that t belongs to another level, and a network sees t alone; "
            "make a level of your own by Level.of(alpha, sigma)"
        )


def form(x: Tensor) -> str:
    """Return shape and dtype as text."""
    return f"{tuple(x.shape)} {x.dtype}".replace("torch.", "")


def draws_noise(case: Case) -> bool:
    steps: list[int] = []

    def noise(step: int) -> Tensor:
        steps.append(step)
        return case.noise(2)(step)

    levels = case.levels(20)
    list(case.sampler.sample(mixture, levels[0].norm * case.noise(2)(-1), levels, noise))
    return bool(steps)


def flow_error(case: Case, levels: Sequence[Level]) -> float:
    """Return the root mean square error against the exact flow at the last of the levels, which is noisy."""
    x = case.end(levels, len(QUANTILES), x=quantiles(levels[0])).flatten()
    return float((x - quantiles(levels[-1])).square().mean().sqrt())


# ── spacings ────────────────────────────────────────────────────────────────────────────────────


def gives_the_requested_number_of_levels(spacing: Spacing) -> str:
    """For 1, 2, 7, 61, 999 and 1000 levels of each of three schedules, it gives exactly that many, strictly from noisy
    to clean."""
    for name, table in TABLES.items():
        for count in COUNTS:
            try:
                spaced_levels(table, spacing, count)
            except DifftoolError as error:
                raise Failed(f"{count} levels of {name}: {error}") from None
    return f"{', '.join(map(str, COUNTS))} levels of {', '.join(TABLES)}"


def gives_the_same_levels_again(spacing: Spacing) -> str:
    """A second call gives the same levels, so nothing is random and nothing is remembered."""
    if list(spacing.levels(TABLES["linear"], 61)) != list(spacing.levels(TABLES["linear"], 61)):
        raise Failed("two calls for 61 levels differ")
    return "two calls for 61 levels"


SPACING_LAWS = (gives_the_requested_number_of_levels, gives_the_same_levels_again)
