"""Laws of samplers, asked with an exact denoiser: a mixture of Gaussians on a line, whose flow is known too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from difftool.components import Sampler
from difftool.contracts import Denoise, Estimate, Step
from difftool.denoiser import Counted
from difftool.keys import sample_noise
from difftool.schedule import CLEAN, Level, Schedule
from difftool.testing.known import TABLES, distance, evenly, grid, mixture, quantiles
from difftool.testing.laws import Broken, NotAsked, accelerators

ROUNDING = 1e-9
"""How far float64 results may differ that should be the same."""
POINTS, STEPS, FARTHEST = 4000, 200, 0.04
"""Samples and steps of a walk, and the Wasserstein-1 distance it may end at: chance alone makes 0.01 to 0.02."""
DOUBLING = (80, 160, 320)
"""Steps between which an error must fall, ..."""
SHARE = 0.85
"""... and what part of the claimed order is enough: the slope is reached in the limit."""
SHAPES = ((3, 2), (2, 3, 4, 4), (5, 7))


def walks_the_levels_it_is_given(sampler: Sampler) -> str:
    """It makes one step a level, in shape and dtype, finite, from levels with and without signal, and asks a denoiser
    about no clean level. Walks of 1, 2 and 10 steps, of points and images, in float32 and float64."""
    count = 0
    for name, schedule in TABLES.items():
        for steps in (1, 2, 10):
            levels = [*_trailing(schedule, steps), CLEAN]
            for shape in SHAPES:
                for dtype in (torch.float32, torch.float64):
                    x = levels[0].norm * noise_of(shape[0], shape[1:], dtype)(-1)
                    _check_walk(sampler, x, levels, f"{steps} steps of {name}, {shape}, {dtype}".replace("torch.", ""))
                    count += 1
    return f"{count} walks"


def repeats_itself(sampler: Sampler) -> str:
    """The same noise gives the same samples to the last bit: nothing is drawn elsewhere, nothing is remembered."""
    a, b = (_end(sampler, _levels("linear", 20), 16) for _ in range(2))
    if not torch.equal(a, b):
        raise Broken(f"two walks from the same noise end {_gap(a, b):.2g} apart; draw all noise by noise(i)")
    return "equal to the last bit"


def leaves_states_alone(sampler: Sampler) -> str:
    """Neither the noise it starts from nor a state it has yielded changes afterwards: films keep them."""
    levels = _levels("linear", 10)
    start = levels[0].norm * noise_of(8, ())(-1)
    before = start.clone()
    kept = [(step.x, step.x.clone()) for step in sampler.walk(mixture, start, levels, noise_of(8, ()))]
    if not torch.equal(start, before):
        raise Broken("the noise it started from was changed in place; make new tensors")
    for number, (x, then) in enumerate(kept, start=1):
        if not torch.equal(x, then):
            raise Broken(f"the state of step {number} was changed in place later; make new tensors")
    return f"{len(kept)} states unchanged"


def cares_for_no_batch_size(sampler: Sampler) -> str:
    """Samples walked together, in batches of 5 or alone are the same, for noise belongs to a sample's number."""
    levels, n = _levels("linear", 20), 12
    together = _end(sampler, levels, n)
    worst = 0.0
    for size in (1, 5):
        parts = [_end(sampler, levels, min(size, n - first), first) for first in range(0, n, size)]
        worst = max(worst, _gap(torch.cat(parts), together))
    if not worst <= ROUNDING:
        raise Broken(f"samples differ by {worst:.2g} between batches of 1, 5 and {n}; at most {ROUNDING:g} is rounding")
    return f"largest difference {worst:.1g}"


def keeps_to_its_calls(sampler: Sampler) -> str:
    """A walk asks the denoiser as often as `claimed_calls` says, whatever it walks."""
    told = []
    for steps in (1, 2, 10, 50):
        claimed = sampler.claimed_calls(steps)
        made = {name: _calls(sampler, [*_trailing(schedule, steps), CLEAN]) for name, schedule in TABLES.items()}
        for name, calls in made.items():
            if claimed is not None and calls != claimed:
                raise Broken(f"{calls} calls in {steps} steps of {name}, but claimed_calls({steps}) is {claimed}")
        told.append(f"{steps}: {'/'.join(map(str, sorted(set(made.values()))))}")
    return f"steps: calls {', '.join(told)}{'' if sampler.claimed_calls(1) is not None else '; none claimed'}"


def reaches_the_distribution(sampler: Sampler) -> str:
    """In 200 steps it ends at the mixture that the denoiser is of, on a table that keeps the variance, on straight
    lines without a last signal, and on one whose variance explodes. Wasserstein-1, of a deviation of 0.92."""
    found = {}
    for name in TABLES:
        levels = _levels(name, STEPS)
        start = quantiles(levels[0], evenly(POINTS))[torch.randperm(POINTS, generator=torch.Generator().manual_seed(0))]
        *_, last = sampler.walk(mixture, start, levels, noise_of(POINTS, ()))
        found[name] = distance(last.x)
    told = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    if not max(found.values()) <= FARTHEST:
        raise Broken(f"Wasserstein-1 distances {told}; at most {FARTHEST} were due")
    return f"Wasserstein-1 {told}"


def has_the_order_it_claims(sampler: Sampler) -> str:
    """From 80 to 160 to 320 steps the error against the exact flow falls by 2^order, at the last noisy level (the step
    to the clean end would hide it), on three tables."""
    claimed = sampler.claimed_order()
    if _draws_noise(sampler):
        if claimed is not None:
            raise Broken(f"claims order {claimed}, but draws noise, so that there is no flow to follow")
        raise NotAsked("it draws noise, and claims none")
    slopes = {}
    for name in TABLES:
        errors = [_error(sampler, grid(TABLES[name], steps + 1)) for steps in DOUBLING]
        slopes[name] = min(math.log2(a / b) if b else math.inf for a, b in pairwise(errors))
    told = ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items())
    if claimed is not None and not min(slopes.values()) >= SHARE * claimed:
        raise Broken(f"claims order {claimed}, but the error falls with order {told}; {SHARE * claimed:.2f} were due")
    return f"{told}; {'none' if claimed is None else claimed} claimed"


def works_on_every_device(sampler: Sampler) -> str:
    """On each accelerator that is here it ends where it ends on the CPU, to 1e-3 in float32."""
    others = accelerators()
    levels, n = _levels("linear", 20), 64
    noise = noise_of(n, (), torch.float32)
    start = levels[0].norm * noise(-1)
    *_, here = sampler.walk(mixture, start, levels, noise)
    for device in others:
        *_, there = sampler.walk(mixture, start.to(device), levels, partial(_on, device, noise))
        if not (gap := _gap(there.x.cpu(), here.x)) <= 1e-3:
            raise Broken(f"{device} ends {gap:.2g} from the CPU")
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


def _trailing(schedule: Schedule, steps: int) -> list[Level]:
    """Table rows from the very last one, which may have no signal."""
    return [schedule[round(len(schedule) * (steps - i) / steps) - 1] for i in range(steps)]


def _levels(name: str, steps: int) -> list[Level]:
    return [*grid(TABLES[name], steps), CLEAN]


def _check_walk(sampler: Sampler, start: Tensor, levels: Sequence[Level], where: str) -> None:
    def denoise(x: Tensor, level: Level) -> Estimate:
        if level.sigma == 0.0:
            raise Broken(f"{where}: the denoiser was asked at the clean end, where nothing is to be denoised")
        if x.shape != start.shape or x.dtype != start.dtype:
            raise Broken(f"{where}: the denoiser was asked about {_kind(x)}, not {_kind(start)}")
        return mixture(x, level)

    noise = noise_of(len(start), tuple(start.shape[1:]), start.dtype)
    steps = list(sampler.walk(denoise, start, levels, noise))
    if len(steps) != len(levels) - 1:
        raise Broken(f"{where}: it yielded {len(steps)} steps")
    for number, (step, level) in enumerate(zip(steps, levels[1:], strict=True), start=1):
        if not isinstance(step, Step):
            raise Broken(f"{where}: step {number} is a {type(step).__name__}, no Step")
        if step.x.shape != start.shape or step.x.dtype != start.dtype:
            raise Broken(f"{where}: step {number} gave {_kind(step.x)}, not {_kind(start)}")
        if step.level != level:
            raise Broken(f"{where}: step {number} says it is at {step.level}, but {level} was its end")
        if not bool(step.x.isfinite().all()):
            raise Broken(f"{where}: the state of step {number} is not finite")


def _kind(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype}".replace("torch.", "")


def _end(sampler: Sampler, levels: Sequence[Level], count: int, first: int = 0) -> Tensor:
    """Where the samples first.. end."""
    noise = noise_of(count, (3,), first=first)
    *_, last = sampler.walk(mixture, levels[0].norm * noise(-1), levels, noise)
    return last.x


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _calls(sampler: Sampler, levels: Sequence[Level]) -> int:
    counted = Counted(mixture)
    for _ in sampler.walk(counted, levels[0].norm * noise_of(2, ())(-1), levels, noise_of(2, ())):
        pass
    return counted.calls


def _draws_noise(sampler: Sampler) -> bool:
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return noise_of(2, ())(step)

    denoise: Denoise = mixture
    for _ in sampler.walk(denoise, noise_of(2, ())(-1), _levels("linear", 20), noise):
        pass
    return bool(asked)


def _error(sampler: Sampler, levels: Sequence[Level]) -> float:
    """Root mean square against the exact flow, at the noisy level where the walk ends."""
    *_, last = sampler.walk(mixture, quantiles(levels[0]), levels, noise_of(33, ()))
    return float((last.x - quantiles(last.level)).square().mean().sqrt())
