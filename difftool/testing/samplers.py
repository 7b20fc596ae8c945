"""Laws of samplers, asked with an exact denoiser: a mixture of Gaussians on a line, whose flow is known too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product

import torch
from torch import Tensor

from difftool.components import Sampler
from difftool.diffusion.estimate import Estimate, Step
from difftool.diffusion.schedule import CLEAN, Level, Schedule
from difftool.rng import sample_noise
from difftool.sampling.denoiser import Counted
from difftool.testing.examine import describe
from difftool.testing.known import DEVIATION, TABLES, distance, evenly, grid, mixture, quantiles
from difftool.testing.laws import Broken, NotAsked, accelerators

ROUNDING = 1e-9
"""How far float64 results may differ that should be the same."""
POINTS, STEPS, FARTHEST = 8000, 200, 0.03
"""Samples and steps of a walk, and the Wasserstein-1 distance it may end at: chance alone makes 0.005 to 0.015."""
DOUBLING = (80, 160, 320)
"""Steps between which an error must fall, ..."""
SHARE = 0.85
"""... and what part of the claimed order is enough: the slope is reached in the limit."""
ITEMS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "points": ((1,), (2,), (7,)),
    "images": ((1, 1, 1), (3, 4, 4), (1, 6, 5)),
}
"""Shapes of items, the smallest first: in that one the laws of distribution and order are asked."""
OFF_TABLE = 1e-6
"""How far, in radians, a level may be from the table at the t that it says it has."""


@dataclass(frozen=True)
class Walker:
    """A sampler, the tables that it walks, and the shapes of items that it takes."""

    sampler: Sampler
    tables: Mapping[str, Schedule]
    shapes: tuple[tuple[int, ...], ...]
    refused: Mapping[str, str]
    """What it refuses, and why."""

    def start(self, levels: Sequence[Level], count: int, first: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """x_T of the samples first.. (count, *shape)."""
        return levels[0].norm * self.noise(count, first, dtype)(-1)

    def noise(self, count: int, first: int = 0, dtype: torch.dtype = torch.float64) -> Callable[[int], Tensor]:
        return noise_of(count, self.shapes[0], dtype, first)

    def end(self, levels: Sequence[Level], count: int, first: int = 0) -> Tensor:
        """Where the samples first.. end."""
        *_, last = self.sampler.sample(mixture, self.start(levels, count, first), levels, self.noise(count, first))
        return last.x

    def levels(self, steps: int) -> list[Level]:
        """A walk on the first of its tables."""
        return [*grid(next(iter(self.tables.values())), steps), CLEAN]

    def flow(self, levels: Sequence[Level]) -> Step:
        """The last step of the walk that starts at the exact quantiles."""
        x = self.shaped(quantiles(levels[0]))
        *_, last = self.sampler.sample(mixture, x, levels, self.noise(len(x)))
        return last

    def shaped(self, x: Tensor) -> Tensor:
        """Numbers (N,) as items."""
        return x.view(-1, *self.shapes[0])


def subject(sampler: Sampler) -> Walker:
    """What it refuses with a ValueError before it asks anything is not asked of it; it must take something."""
    refused: dict[str, str] = {}
    for name, shapes in ITEMS.items():
        tables = {}
        for table, schedule in TABLES.items():
            if reason := refusal(sampler, schedule, shapes[0]):
                refused[f"{name} on {table}"] = reason
            else:
                tables[table] = schedule
        if tables:
            first = next(iter(tables.values()))
            others = [shape for other, some in ITEMS.items() if other != name for shape in some]
            return Walker(sampler, tables, (*shapes, *(s for s in others if not refusal(sampler, first, s))), refused)
    raise Broken(f"it refuses everything: {'; '.join(f'{what}: {why}' for what, why in refused.items())}")


def refusal(sampler: Sampler, schedule: Schedule, shape: tuple[int, ...]) -> str:
    """Why a sampler does not walk this table or these items, or an empty text; said before the denoiser is asked."""
    levels, asked = [*trailing(schedule, 2), CLEAN], Counted(mixture)
    x = levels[0].norm * noise_of(2, shape)(-1)
    try:
        next(iter(sampler.sample(asked, x, levels, noise_of(2, shape))))
    except ValueError as error:
        return str(error) if asked.calls == 0 else ""
    except Exception:  # a fault, not a refusal: the laws will meet it
        return ""
    return ""


def walks_the_levels_it_is_given(walker: Walker) -> str:
    """It makes one step a level, in shape and dtype, finite, on tables with and without a last signal, in 1, 2 and 10
    steps, of points and images, in float32 and float64; and it asks the denoiser at levels that there are: none that is
    clean, and none whose t is another's. A level of its own is `Level.of(alpha, sigma)`."""
    count = 0
    for name, schedule in walker.tables.items():
        for steps, shape, dtype in product((1, 2, 10), walker.shapes, (torch.float32, torch.float64)):
            count += 1
            try:
                check_walk(walker.sampler, schedule, steps, shape, dtype)
            except Broken as broken:
                where = f"{steps} steps of {name}, items {shape}, {dtype}".replace("torch.", "")
                raise Broken(f"{where}: {broken}") from None
    refused = "".join(f"; refuses {what}: {why}" for what, why in walker.refused.items())
    return f"{count} walks{refused}"


def repeats_itself(walker: Walker) -> str:
    """The same noise gives the same samples to the last bit: nothing is drawn elsewhere, nothing is remembered."""
    a, b = (walker.end(walker.levels(20), 16) for _ in range(2))
    if not torch.equal(a, b):
        raise Broken(f"two walks from the same noise end {gap(a, b):.2g} apart; draw all noise by noise(i)")
    return "equal to the last bit"


def leaves_states_alone(walker: Walker) -> str:
    """Neither the noise it starts from, nor a state it has asked about or yielded, nor what the denoiser said changes
    afterwards: what a denoiser says of a state may be worked out only when it is asked for."""
    levels, told_by, asked = walker.levels(10), list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()

    def denoise(x: Tensor, level: Level) -> Estimate:
        estimate = mixture(x, level)
        asked.append((x, x.clone()))
        told_by.extend((part, part.clone()) for part in (estimate.x_0, estimate.eps))
        return estimate

    start = walker.start(levels, 8)
    before = start.clone()
    kept = [(step.x, step.x.clone()) for step in walker.sampler.sample(denoise, start, levels, walker.noise(8))]
    if not torch.equal(start, before):
        raise Broken("the noise it started from was changed in place; make new tensors")
    for number, (x, then) in enumerate(kept, start=1):
        if not torch.equal(x, then):
            raise Broken(f"the state of step {number} was changed in place later; make new tensors")
    if not all(torch.equal(x, then) for x, then in asked):
        raise Broken("a state that the denoiser was asked about was changed in place later; make new tensors")
    if not all(torch.equal(part, then) for part, then in told_by):
        raise Broken("an estimate of the denoiser was changed in place; make new tensors")
    return f"{len(kept)} states and {len(told_by) // 2} estimates unchanged"


def cares_for_no_batch_size(walker: Walker) -> str:
    """Samples walked together, in batches of 5 or alone are the same, for noise belongs to a sample's number."""
    levels, n = walker.levels(20), 12
    together, worst = walker.end(levels, n), 0.0
    for size in (1, 5):
        parts = [walker.end(levels, min(size, n - first), first) for first in range(0, n, size)]
        worst = max(worst, gap(torch.cat(parts), together))
    if not worst <= ROUNDING:
        raise Broken(f"samples differ by {worst:.2g} between batches of 1, 5 and {n}; at most {ROUNDING:g} is rounding")
    return f"{worst:.1g} apart, of {ROUNDING:g} at most"


def keeps_to_its_calls(walker: Walker) -> str:
    """A walk asks the denoiser as often as `claimed_calls` says, whatever it walks."""
    rows, claims = [], walker.sampler.claimed_calls(1) is not None
    for steps in (1, 2, 10, 50):
        claimed = walker.sampler.claimed_calls(steps)
        made = {name: calls(walker, [*trailing(table, steps), CLEAN]) for name, table in walker.tables.items()}
        for name, found in made.items():
            if claimed is not None and found != claimed:
                raise Broken(f"{found} calls in {steps} steps of {name}, but claimed_calls({steps}) is {claimed}")
        rows.append(f"{'/'.join(map(str, sorted(set(made.values()))))} in {steps}")
    return f"calls in steps: {', '.join(rows)}{'' if claims else '; none claimed'}"


def reaches_the_distribution(walker: Walker) -> str:
    """In 200 steps it ends at the mixture that the denoiser is of, on a table that keeps the variance, on straight
    lines without a last signal, and on one whose variance explodes. Wasserstein-1, of a deviation of 0.92."""
    found = {}
    for name, table in walker.tables.items():
        levels = [*grid(table, STEPS), CLEAN]
        order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(0))
        start = walker.shaped(quantiles(levels[0], evenly(POINTS))[order])
        *_, last = walker.sampler.sample(mixture, start, levels, walker.noise(POINTS))
        found[name] = distance(last.x.flatten())
        if not found[name] <= FARTHEST:
            width = float(last.x.std(correction=0))
            raise Broken(
                f"it ends at a Wasserstein-1 distance of {found[name]:.3f} on {name}; at most {FARTHEST} was due (its "
                f"samples have a deviation of {width:.2f}, the data of {DEVIATION:.2f})"
            )
    return f"Wasserstein-1 {', '.join(f'{name} {value:.3f}' for name, value in found.items())}, of {FARTHEST} at most"


def has_the_order_it_claims(walker: Walker) -> str:
    """From 80 to 160 to 320 steps the error against the exact flow falls by 2^order, at the last noisy level (the step
    to the clean end would hide it), on each table; 0.85 of the order is enough."""
    claimed = walker.sampler.claimed_order()
    if draws_noise(walker):
        if claimed is not None:
            raise Broken(f"claims order {claimed}, but draws noise, so that there is no flow to follow")
        raise NotAsked("it draws noise, and claims none")
    slopes = {}
    for name, table in walker.tables.items():
        errors = [error(walker, grid(table, steps + 1)) for steps in DOUBLING]
        slopes[name] = min(math.log2(a / b) if b else math.inf for a, b in pairwise(errors))
    rows = ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items())
    if claimed is not None and not min(slopes.values()) >= SHARE * claimed:
        raise Broken(f"claims order {claimed}, but the error falls with order {rows}; {SHARE * claimed:.2f} was due")
    return f"{rows}; {'none' if claimed is None else claimed} claimed"


def works_on_every_device(walker: Walker) -> str:
    """On each accelerator that is here it ends where it ends on the CPU, to 1e-3 in float32."""
    others = accelerators()
    levels, n = walker.levels(20), 64
    noise, start = walker.noise(n, dtype=torch.float32), walker.start(levels, n, dtype=torch.float32)
    *_, here = walker.sampler.sample(mixture, start, levels, noise)
    for device in others:
        *_, there = walker.sampler.sample(mixture, start.to(device), levels, partial(_on, device, noise))
        if not (apart := gap(there.x.cpu(), here.x)) <= 1e-3:
            raise Broken(f"{device} ends {apart:.2g} from the CPU")
    return ", ".join(map(str, others))


LAWS = (
    walks_the_levels_it_is_given,
    repeats_itself,
    leaves_states_alone,
    cares_for_no_batch_size,
    keeps_to_its_calls,
    reaches_the_distribution,
    has_the_order_it_claims,
    works_on_every_device,
)


def noise_of(
    count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, first: int = 0
) -> Callable[[int], Tensor]:
    """The standard normal noise of each step, keyed by the numbers of the samples, as in `difftool sample`."""
    return lambda step: sample_noise(first, count, shape, 0, "law", step).to(dtype)


def _on(device: torch.device, noise: Callable[[int], Tensor], step: int) -> Tensor:
    return noise(step).to(device)


def trailing(schedule: Schedule, steps: int) -> list[Level]:
    """Table rows from the very last one, which may have no signal."""
    return [schedule[round(len(schedule) * (steps - i) / steps) - 1] for i in range(steps)]


def check_walk(sampler: Sampler, schedule: Schedule, steps: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Walk three items, and look at every question and every step. Raises `Broken` with the reason alone."""
    levels, noise = [*trailing(schedule, steps), CLEAN], noise_of(3, shape, dtype)
    start = levels[0].norm * noise(-1)

    def denoise(x: Tensor, level: Level) -> Estimate:
        if x.shape != start.shape or x.dtype != start.dtype:
            raise Broken(f"the denoiser was asked about {kind(x)}, not {kind(start)}")
        check_level(level, schedule)
        return mixture(x, level)

    try:
        walked = list(sampler.sample(denoise, start, levels, noise))
    except Broken:
        raise
    except Exception as error:
        raise Broken(describe(error)) from None
    for number, step in enumerate(walked, start=1):
        if not isinstance(step, Step):
            raise Broken(f"step {number} is a {type(step).__name__}, no Step")
        if step.x.shape != start.shape or step.x.dtype != start.dtype:
            raise Broken(f"step {number} gave {kind(step.x)}, not {kind(start)}")
        if not bool(step.x.isfinite().all()):
            raise Broken(f"the state of step {number} is not finite")
    if len(walked) != steps:
        raise Broken(f"it yielded {len(walked)} steps")
    for number, (step, level) in enumerate(zip(walked, levels[1:], strict=True), start=1):
        if step.level != level:
            raise Broken(f"step {number} says it is at {step.level}, but {level} was its end")


def check_level(level: Level, schedule: Schedule) -> None:
    """Refuse a level that no network could be asked at: a clean one, or one whose t belongs to another noise."""
    if level.sigma == 0.0:
        raise Broken("the denoiser was asked at the clean end, where nothing is to be denoised")
    if math.isnan(level.t):
        return
    if not -1.0 <= level.t <= len(schedule) - 1 or abs(schedule.at(level.t).theta - level.theta) > OFF_TABLE:
        raise Broken(
            f"the denoiser was asked at {level}, but that t is another level's, and t is all that a network "
            "sees of the noise; a level of your own is Level.of(alpha, sigma)"
        )


def kind(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype}".replace("torch.", "")


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def calls(walker: Walker, levels: Sequence[Level]) -> int:
    counted = Counted(mixture)
    for _ in walker.sampler.sample(counted, walker.start(levels, 2), levels, walker.noise(2)):
        pass
    return counted.calls


def draws_noise(walker: Walker) -> bool:
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return walker.noise(2)(step)

    levels = walker.levels(20)
    for _ in walker.sampler.sample(mixture, walker.start(levels, 2), levels, noise):
        pass
    return bool(asked)


def error(walker: Walker, levels: Sequence[Level]) -> float:
    """Root mean square against the exact flow, at the noisy level where the walk ends."""
    last = walker.flow(levels)
    return float((last.x.flatten() - quantiles(last.level)).square().mean().sqrt())
