"""Samplers compared on one source: the distance from the exact solution, and from the data, by network calls.

The exact solution starts from the same x_T at the same first level as the samples, since spacings begin at different
levels. It follows the probability-flow ODE in many small steps, even in log-SNR, to where next to no noise is left. An
oracle estimates at levels cleaner than the table as they are, a network at its cleanest time.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from difftool.components import Dataset, Sampler, Spacing
from difftool.data.samples import Samples
from difftool.data.scaling import Scaling
from difftool.diffusion.estimate import Step
from difftool.diffusion.schedule import CLEAN, Level, Schedule
from difftool.errors import DifftoolError
from difftool.options import fields
from difftool.plugins.build import load_samples
from difftool.plugins.registry import registry
from difftool.rng import generator, permutation
from difftool.sampling.conditions import Rows
from difftool.sampling.loop import collect
from difftool.sampling.plan import IMAGES, POINTS, Plan, dry_run, spaced_levels
from difftool.sampling.source import Source
from difftool.settings import Sampling

SOLVER = "dpmpp-3m"
"""The sampler that solves for the reference: of third order."""
NOISIEST, CLEANEST = -14.0, 16.0
"""Log-SNRs between which the reference takes even steps: beyond them, signal or noise is less than 0.001 of the
other."""
USUAL_STEPS = 20
"""Steps within which a sampler that ever draws noise has done so."""
DIRECTIONS, SETS = 200, 5
"""Number of projections, and of sets of data that samples are compared with."""
FRESH = (1_000_001, 1_000_002)
"""Seeds of the data that samples and data are compared with; no source is likely to have used them."""


@dataclass(frozen=True)
class Entry:
    """A sampler on a spacing, with as many steps as the network calls allow."""

    plan: Plan
    calls: int
    draws_noise: bool
    """True if the sampler can draw noise, even if it does not in these steps: it has no exact solution."""

    @property
    def sampler(self) -> str:
        return self.plan.sampler.name

    @property
    def spacing(self) -> str:
        return self.plan.spacing.name


@dataclass(frozen=True, kw_only=True)
class Result:
    """The measures of an entry, in model units. They are NaN where it diverged."""

    entry: Entry
    error: float | None
    """Root mean square, over samples and coordinates, of the distance to the exact solution; None with drawn noise."""
    sliced_w2: float | None
    """Sliced Wasserstein-2 distance to fresh data; None if there are none."""
    seconds: float


def conditions_of_items(source: Source, settings: Sampling) -> Rows:
    """Return the conditions of items of the source's data, of the chosen class if there is one.

    Return none for data with no other conditions than labels, and without the data. Raises `DifftoolError` if the
    source needs conditions and its data are not available here.
    """
    if not {*source.data.condition.shapes} - {"label"}:
        return {}
    try:
        samples = source.load_samples()
    except DifftoolError:
        if source.needs_condition:
            raise
        return {}
    indices = _of_class(samples, source.label_index(settings.label))
    count = settings.num_samples or (POINTS if source.data.is_points else IMAGES)
    _, condition = samples.take(indices[permutation(len(indices), "conditions")[:count]].tolist())
    fields = {} if condition is None else condition.fields()
    return {name: rows for name, rows in fields.items() if name != "label" or settings.label is None}


def draws_noise(sampler: Sampler, spacing: Spacing, schedule: Schedule) -> bool:
    """Return whether a sampler draws noise in a usual number of steps."""
    levels = spaced_levels(schedule, spacing, min(USUAL_STEPS, len(schedule)))
    return dry_run(sampler, (*levels, CLEAN)).draws_noise


def deterministic(schedule: Schedule, spacing: Spacing) -> list[Sampler]:
    """Return all samplers that draw no noise by default, with their default options."""
    classes = (registry().of_kind(Sampler, name) for name in registry().names("sampler"))
    samplers = [cls() for cls in classes if not any(f.required for f in fields(cls))]
    return [sampler for sampler in samplers if not draws_noise(sampler, spacing, schedule)]


def steps_within(calls: int, sampler: Sampler, spacing: Spacing, schedule: Schedule) -> int | None:
    """Return the largest number of steps that needs no more network calls; None if one step needs more."""

    def needed(steps: int) -> int:
        return dry_run(sampler, (*spaced_levels(schedule, spacing, steps), CLEAN)).calls

    most = min(calls, len(schedule))  # a step takes one call at least
    return bisect.bisect_right(range(1, most + 1), calls, key=needed) or None


def entries(
    source: Source,
    samplers: Sequence[Sampler],
    spacings: Sequence[Spacing],
    calls: Sequence[int],
    settings: Sampling,
    conditions: Rows | None = None,
) -> list[Entry]:
    """Return what to measure: each sampler on each spacing, with the most steps that each number of calls allows."""
    found: dict[tuple[str, str, int], Entry] = {}
    for spacing, sampler in product(spacings, samplers):
        noisy = draws_noise(sampler, spacing, source.schedule)
        for limit in calls:
            if steps := steps_within(limit, sampler, spacing, source.schedule):
                chosen = replace(settings, steps=steps)
                plan = Plan.of(source, chosen, sampler=sampler, spacing=spacing, conditions=conditions)
                entry = Entry(plan, dry_run(sampler, plan.levels).calls, noisy)
                found.setdefault((sampler.name, spacing.name, steps), entry)
    return list(found.values())


class Comparison:
    """The reference and the data that samples of one source are measured against."""

    def __init__(
        self,
        source: Source,
        dataset: Dataset,
        settings: Sampling,
        reference_steps: int,
        conditions: Rows | None = None,
    ) -> None:
        """Load data to compare with, if they are available here."""
        self.source = source
        self.reference = Reference(source, settings, reference_steps, conditions)
        self.calls = 0
        """Network calls so far, of one batch each."""
        self.fresh: FreshData | None = None
        """Fresh data; None if they are not available here."""
        plan = self.reference.plan
        with contextlib.suppress(DifftoolError):
            self.fresh = FreshData.of(dataset, source.data.scaling, plan.label, plan.num_samples)

    @property
    def num_samples(self) -> int:
        return self.reference.plan.num_samples

    def calls_of(self, entries: Sequence[Entry]) -> int:
        """Return the network calls, of one batch each, that measuring all of these takes."""
        starts = {entry.plan.levels[0] for entry in entries if not entry.draws_noise}
        solutions = sum(len(levels) - 1 for start in starts for levels in self.reference.trials(start))
        return (sum(entry.calls for entry in entries) + solutions) * self.reference.plan.batches

    def measure(self, entry: Entry, watch: Callable[[str], object]) -> Result:
        """Draw the samples of an entry and measure them. `watch` is called after each step, with what is being done.

        `calls` grows as it goes.

        Raises `DifftoolError` if the exact solution is not finite.
        """
        first = entry.plan.levels[0]
        solution = None
        if not entry.draws_noise:
            words = f"the exact solution from log-SNR {first.log_snr:.1f}"
            solution = self.reference.solution(first, self._counting(words, watch))
        start = time.perf_counter()
        words = f"{entry.sampler} on {entry.spacing}, {entry.calls} calls"
        x = collect(self.source, entry.plan, watch=self._counting(words, watch)).x
        seconds = time.perf_counter() - start
        distance = None
        if self.fresh is not None:
            distance = self.fresh.distance(x) if bool(x.isfinite().all()) else math.nan
        error = None if solution is None else rms(x - solution)
        return Result(entry=entry, error=error, sliced_w2=distance, seconds=seconds)

    def _counting(self, words: str, watch: Callable[[str], object]) -> Callable[[Step], object]:
        """Return a function that counts the calls of each step, and passes the words on."""
        before = 0

        def count(step: Step) -> None:
            nonlocal before
            self.calls += step.calls - before if step.number else 0
            before = step.calls if step.number and not step.done else 0
            watch(words)

        return count


def reference_levels(first: Level, schedule: Schedule, steps: int) -> tuple[Level, ...]:
    """Return levels from `first` down in steps that are even in log-SNR, also beyond the table, and the clean end."""
    start, end = max(first.log_snr, NOISIEST), max(schedule[0].log_snr, CLEANEST)
    log_snrs = [start + (end - start) * i / (steps - 1) for i in range(1, steps)]
    levels = [schedule.at(schedule.t_of(log_snr)) for log_snr in log_snrs]
    return first, *(level for level in levels if 0.0 < level.theta < first.theta), CLEAN


class Reference:
    """The exact solutions, one for each first level, and their own error."""

    def __init__(self, source: Source, settings: Sampling, steps: int, conditions: Rows | None = None) -> None:
        self.source, self.steps = source, steps
        self.plan = Plan.of(source, replace(settings, steps=1), sampler=SOLVER, conditions=conditions)
        self.error = 0.0
        """The largest distance (RMS) to a solution in half the steps."""
        self._solutions: dict[Level, Tensor] = {}

    def trials(self, first: Level) -> list[tuple[Level, ...]]:
        """Return the levels of the solution in half the steps, and in all of them."""
        return [reference_levels(first, self.source.schedule, n) for n in (max(1, self.steps // 2), self.steps)]

    def solution(self, first: Level, watch: Callable[[Step], object] | None = None) -> Tensor:
        """Return the exact solution (N, *shape) from a level, on the CPU. It is computed once.

        `watch` is called after each step. Raises `DifftoolError` if the solution is not finite.
        """
        if first not in self._solutions:
            plans = (replace(self.plan, levels=levels) for levels in self.trials(first))
            half, full = (collect(self.source, plan, watch=watch).x for plan in plans)
            if not bool(full.isfinite().all()):
                raise DifftoolError(
                    f"the solution to compare with is not finite: the estimates of {self.source.name} diverged"
                )
            self.error = max(self.error, rms(half - full))
            self._solutions[first] = full
        return self._solutions[first]


class FreshData:
    """Sets of data that no source was made from, projected and sorted, to compare samples with."""

    def __init__(self, sets: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Take pairs of sets (N, *shape), all of one size, in model units; the two of a pair share no item."""
        width = math.prod(sets[0].shape[1:])
        directions = torch.randn(width, DIRECTIONS, generator=generator(0, "directions"))
        self.directions = directions / directions.norm(dim=0)
        self.count = len(sets[0])
        self._sorted = [self._project(items) for items in sets]
        self.data_distance = statistics.median(
            rms(self._project(other) - projected) for other, projected in zip(others, self._sorted, strict=True)
        )
        """The distance between two sets of data."""

    @classmethod
    def of(cls, dataset: Dataset, scaling: Scaling, label: int | None, count: int) -> FreshData:
        """Load sets of about `count` items from the dataset, generated anew if it is random. Raises `DifftoolError`."""
        a, b = (load_samples(dataset, seed) for seed in FRESH)
        indices_a, indices_b = (_of_class(samples, label) for samples in (a, b))
        n = min(len(indices_a), len(indices_b))
        size = min(count, max(1, n // 2))
        # from both ends of one order, so that data that are the same for every seed share no item either
        order = permutation(n, "fresh")
        parts = [slice(i * size, (i + 1) * size) for i in range(max(1, min(SETS, n // (2 * size))))]

        def take(samples: Samples, indices: Tensor) -> Tensor:
            return scaling.to_model(samples.take_items(indices.tolist()))

        sets = [take(a, indices_a[order[part]]) for part in parts]
        others = [take(b, indices_b[order.flip(0)[part]]) for part in parts]
        return cls(sets, others)

    def distance(self, x: Tensor) -> float:
        """Return the sliced Wasserstein-2 distance (Bonneel et al., 2015): the median over the sets."""
        projected = self._project(x[: self.count])
        return statistics.median(rms(projected - items) for items in self._sorted)

    def _project(self, x: Tensor) -> Tensor:
        projected: Tensor = x.flatten(1).float() @ self.directions
        return projected.sort(dim=0).values


def rms(x: Tensor) -> float:
    """Return the root of the mean square; NaN if x is not finite."""
    value = float(x.double().square().mean().sqrt())
    return value if math.isfinite(value) else math.nan


def _of_class(samples: Samples, label: int | None) -> Tensor:
    """Return the indices of the items of a class, or of all items."""
    if label is None or samples.labels is None:
        return torch.arange(len(samples))
    return (samples.labels == label).nonzero().flatten()
