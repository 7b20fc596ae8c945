"""Samplers against each other on one source: how far from the exact solution, and from the data, for so many calls.

The exact solution of a walk starts from the walk's own x_T at the walk's own first level, for grids differ in where
they begin. It follows the probability-flow ODE in many small steps, even in log-SNR, to where next to nothing is left
of the noise. Levels cleaner than the table are asked of an oracle as they are, of a network at its cleanest time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difftool.components import Dataset, Sampler, Spacing
from difftool.data.samples import Samples, Scaling
from difftool.diffusion.schedule import CLEAN, Level, Schedule
from difftool.errors import DifftoolError
from difftool.options import fields
from difftool.plugins.build import load_samples
from difftool.plugins.registry import registry
from difftool.rng import generator, permutation
from difftool.sampling.loop import Plan, grid_levels, rehearse, sample
from difftool.sampling.source import Source
from difftool.settings import Sampling

SOLVER = "dpmpp-3m"
"""Walks the reference: of third order."""
NOISIEST, CLEANEST = -14.0, 16.0
"""Log-SNR between which the reference goes in even steps: beyond, signal or noise are less than 0.001 of the other."""
REHEARSED = 20
"""Steps after which a sampler that ever adds noise has done so."""
DIRECTIONS, SETS = 200, 5
"""Of sliced distances; sets of data that samples are held against."""
FRESH = (1_000_001, 1_000_002)
"""Seeds of the data that samples and data are held against, which no source is likely to know."""


@dataclass(frozen=True)
class Walk:
    """One sampler on one grid, with as many steps as the calls allow."""

    plan: Plan
    calls: int
    noisy: bool
    """Whether the sampler adds noise, if perhaps not in this walk: it has no exact solution."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.plan.sampler.name, self.plan.spacing.name, self.plan.steps


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What became of a walk. NaN where it diverged."""

    walk: Walk
    error: float | None
    """Root mean square, over samples and coordinates, of the distance to the exact solution; None with added noise."""
    sliced_w2: float | None
    """Sliced Wasserstein-2 distance to fresh data; None where there are none. Both in model units."""
    seconds: float


def adds_noise(sampler: Sampler, spacing: Spacing, schedule: Schedule) -> bool:
    """Whether a walk of a usual length asks for noise."""
    levels = grid_levels(schedule, spacing, min(REHEARSED, len(schedule)))
    return rehearse(sampler, (*levels, CLEAN))[1]


def calls_of(sampler: Sampler, levels: Sequence[Level]) -> int:
    """Network calls of a walk."""
    return rehearse(sampler, levels)[0]


def deterministic(schedule: Schedule, spacing: Spacing) -> list[Sampler]:
    """All samplers that add no noise, as they are without options."""
    classes = (registry().of_kind(Sampler, name) for name in registry().names("sampler"))
    samplers = [cls() for cls in classes if not any(f.required for f in fields(cls))]
    return [sampler for sampler in samplers if not adds_noise(sampler, spacing, schedule)]


def steps_within(calls: int, sampler: Sampler, spacing: Spacing, schedule: Schedule) -> int | None:
    """The most steps that need no more calls than these; None where one step needs more."""

    def fits(steps: int) -> bool:
        return calls_of(sampler, (*grid_levels(schedule, spacing, steps), CLEAN)) <= calls

    low, high = 0, min(calls, len(schedule))  # a step takes one call at least
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low or None


def plan_walks(
    source: Source,
    samplers: Sequence[Sampler],
    spacings: Sequence[Spacing],
    calls: Sequence[int],
    settings: Sampling,
) -> list[Walk]:
    """The walks to measure: for every sampler and grid the most steps that each number of calls allows."""
    walks: dict[tuple[str, str, int], Walk] = {}
    for spacing in spacings:
        for sampler in samplers:
            noisy = adds_noise(sampler, spacing, source.schedule)
            for most in calls:
                steps = steps_within(most, sampler, spacing, source.schedule)
                if steps is not None:
                    plan = Plan.of(source, replace(settings, steps=steps), sampler=sampler, spacing=spacing)
                    walk = Walk(plan, calls_of(sampler, plan.levels), noisy)
                    walks.setdefault(walk.key, walk)
    return list(walks.values())


def reference_levels(first: Level, schedule: Schedule, steps: int) -> tuple[Level, ...]:
    """From the first level of a walk down in steps that are even in log-SNR, also beyond the table, then to the end."""
    start, end = max(first.log_snr, NOISIEST), max(schedule[0].log_snr, CLEANEST)
    targets = [start + (end - start) * i / (steps - 1) for i in range(1, steps)]
    levels = [schedule.at(schedule.t_of(target)) for target in targets]
    return first, *(level for level in levels if 0.0 < level.theta < first.theta), CLEAN


class Exact:
    """The exact solutions, one for each level where walks begin, and how far they can be trusted."""

    def __init__(self, source: Source, settings: Sampling, steps: int) -> None:
        self.source, self.steps = source, steps
        self.plan = Plan.of(source, replace(settings, steps=1), sampler=SOLVER)
        self.doubt = 0.0
        """How far half the steps would have ended from here (RMS), at worst."""
        self._known: dict[Level, Tensor] = {}

    def __contains__(self, first: Level) -> bool:
        return first in self._known

    def solve(self, first: Level) -> Iterator[int]:
        """Find the solution from a level; yields after each step, with the calls so far."""
        ends, calls = [], 0
        for steps in (max(1, self.steps // 2), self.steps):
            levels = reference_levels(first, self.source.schedule, steps)
            for x, made in _walked(self.source, replace(self.plan, levels=levels)):
                yield calls + made
                end = x
            ends.append(end)
            calls += made
        if not bool(ends[1].isfinite().all()):
            raise DifftoolError(
                f"the solution to compare with is not finite: the estimates of {self.source.name} ran away"
            )
        self.doubt = max(self.doubt, rms(ends[0] - ends[1]))
        self._known[first] = ends[1]

    def error(self, x: Tensor, first: Level) -> float:
        return rms(x - self._known[first])


class FreshData:
    """Sets of data that no source was made from, projected and sorted: what samples are held against."""

    def __init__(self, sets: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Pairs of sets (N, *shape), all of one size, in model units; those of a pair share no item."""
        width = math.prod(sets[0].shape[1:])
        directions = torch.randn(width, DIRECTIONS, generator=generator(0, "directions"))
        self.directions = directions / directions.norm(dim=0)
        self.count = len(sets[0])
        self._sorted = [self._project(items) for items in sets]
        self.floor = statistics.median(
            rms(self._project(other) - known) for other, known in zip(others, self._sorted, strict=True)
        )
        """The distance between two sets of data."""

    @classmethod
    def of(cls, dataset: Dataset, scaling: Scaling, label: int | None, count: int) -> FreshData:
        """From the dataset, generated anew where it is. Raises `DifftoolError`."""
        a, b = (load_samples(dataset, seed) for seed in FRESH)
        known = [_of_class(samples, label) for samples in (a, b)]
        n = min(map(len, known))
        size = min(count, max(1, n // 2))
        # from both ends of one order, so that data that are the same for every seed share no item either
        order = permutation(n, "fresh")
        pairs = range(max(1, min(SETS, n // (2 * size))))
        head = [order[i * size : (i + 1) * size] for i in pairs]
        tail = [order.flip(0)[i * size : (i + 1) * size] for i in pairs]

        def taken(samples: Samples, known: Tensor, picked: Tensor) -> Tensor:
            return scaling.to_model(samples.take(known[picked].tolist())[0])

        return cls([taken(a, known[0], p) for p in head], [taken(b, known[1], p) for p in tail])

    def distance(self, x: Tensor) -> float:
        """Sliced Wasserstein-2 (Bonneel et al., 2015): the median over the sets."""
        projected = self._project(x[: self.count])
        return statistics.median(rms(projected - known) for known in self._sorted)

    def _project(self, x: Tensor) -> Tensor:
        projected: Tensor = x.flatten(1).float() @ self.directions
        return projected.sort(dim=0).values


def rms(x: Tensor) -> float:
    """Root of the mean square; NaN where x is not finite."""
    value = float(x.double().square().mean().sqrt())
    return value if math.isfinite(value) else math.nan


def measure(
    source: Source, walk: Walk, exact: Exact, fresh: FreshData | None, watch: Callable[[str], None]
) -> Measured:
    """Walk it. `watch` is told again and again what is being done."""
    sampler, spacing, _ = walk.key
    first = walk.plan.levels[0]
    if not walk.noisy and first not in exact:
        for calls in exact.solve(first):
            watch(f"the exact solution from log-SNR {first.log_snr:.1f}, {calls} calls")
    start = time.perf_counter()
    for x, _ in _walked(source, walk.plan):
        watch(f"{sampler} on {spacing}, {walk.calls} calls")
        end = x
    seconds = time.perf_counter() - start
    error = None if walk.noisy else exact.error(end, first)
    distance = None if fresh is None else fresh.distance(end) if bool(end.isfinite().all()) else math.nan
    return Measured(walk=walk, error=error, sliced_w2=distance, seconds=seconds)


def fresh_data(source: Source, dataset: Dataset, plan: Plan) -> FreshData | None:
    """Data to hold samples against; None where they cannot be had here."""
    try:
        return FreshData.of(dataset, source.data.scaling, plan.label, plan.num_samples)
    except DifftoolError:
        return None


def _walked(source: Source, plan: Plan) -> Iterator[tuple[Tensor, int]]:
    """After each step the samples finished so far, on the CPU, and the calls so far of all batches."""
    done: list[Tensor] = []
    before = 0
    for at in sample(source, plan):
        if at.done:
            done.append(at.x.cpu())
        yield torch.cat(done) if done else at.x, before + at.calls
        before += at.calls if at.done else 0


def _of_class(samples: Samples, label: int | None) -> Tensor:
    if label is None or samples.labels is None:
        return torch.arange(len(samples))
    return (samples.labels == label).nonzero().flatten()
