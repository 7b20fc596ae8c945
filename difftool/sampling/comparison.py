"""Samplers compared on one source: the distance from the exact solution, and from the data, by network calls.

The exact solution starts from the same x_T at the same first level as the samples, since spacings begin at different
levels. It follows the probability-flow ODE in many small steps, even in log-SNR, to where next to no noise is left. An
oracle estimates at levels cleaner than the table as they are, a network at its cleanest time.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from torch import Tensor

from difftool.components import Dataset, Guidance, Sampler, Spacing
from difftool.diffusion.estimate import Step
from difftool.diffusion.schedule import CLEAN, Level, Schedule
from difftool.errors import DifftoolError, printable
from difftool.options import fields
from difftool.plugins.registry import registry
from difftool.rng import permutation
from difftool.sampling.conditions import Rows
from difftool.sampling.fresh_data import FreshData, of_class, rms
from difftool.sampling.loop import collect
from difftool.sampling.plan import Plan, dry_run, spaced_levels, usual_count
from difftool.sampling.progress import CallCount
from difftool.sampling.source import Source
from difftool.settings import Sampling

SOLVER = "dpmpp-3m"
"""The sampler that solves for the reference: of third order."""
NOISIEST, CLEANEST = -14.0, 16.0
"""Log-SNRs between which the reference takes even steps: beyond them, signal or noise is less than 0.001 of the
other."""
USUAL_STEPS = 20
"""Steps within which a sampler that ever draws noise has done so."""


@dataclass(frozen=True)
class Entry:
    """A sampler on a spacing under a guidance, with as many steps as the network calls allow."""

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

    @property
    def guidance(self) -> Guidance | None:
        return self.plan.guidance


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
    """Return the conditions of items of the source's data, so that classes come as often, or of the chosen class alone.

    Return none without the data. Raises `DifftoolError` if the source needs other conditions than classes and its data
    are not available here.
    """
    others = {*source.data.condition.shapes} - {"label"}
    if not source.data.condition.shapes or (settings.label is not None and not others):
        return {}
    try:
        samples = source.load_samples()
    except DifftoolError:
        if source.needs_condition and others:
            raise
        return {}
    indices = of_class(samples, source.label_index(settings.label))
    count = settings.num_samples or usual_count(source)
    _, condition = samples.take(indices[permutation(len(indices), "conditions")[:count]].tolist())
    fields = {} if condition is None else condition.fields()
    return {name: rows for name, rows in fields.items() if name != "label" or settings.label is None}


def draws_noise(sampler: Sampler, spacing: Spacing, schedule: Schedule) -> bool:
    """Return whether a sampler draws noise in a usual number of steps."""
    levels = spaced_levels(schedule, spacing, min(USUAL_STEPS, len(schedule)))
    return dry_run(sampler, (*levels, CLEAN)).draws_noise


def deterministic(schedule: Schedule, spacing: Spacing) -> list[Sampler]:
    """Return all samplers that draw no noise by default, with their default options.

    Those that fail on a single number, as samplers of images alone may, are left out with a warning.
    """
    classes = (registry().of_kind(Sampler, name) for name in registry().names("sampler"))
    found = []
    for sampler in (cls() for cls in classes if not any(f.required for f in fields(cls))):
        try:
            noisy = draws_noise(sampler, spacing, schedule)
        except DifftoolError as error:
            warnings.warn(f"{error}; it is left out", stacklevel=2)
            continue
        found += [] if noisy else [sampler]
    return found


def steps_within(
    calls: int,
    sampler: Sampler,
    spacing: Spacing,
    schedule: Schedule,
    calls_at: Callable[[Level], int] | None = None,
) -> int | None:
    """Return the largest number of steps that needs no more network calls; None if one step needs more."""

    def needed(steps: int) -> int:
        return dry_run(sampler, (*spaced_levels(schedule, spacing, steps), CLEAN), calls_at).calls

    most = min(calls, len(schedule))  # a step takes one call at least
    return bisect.bisect_right(range(1, most + 1), calls, key=needed) or None


def entries(
    source: Source,
    samplers: Sequence[Sampler],
    spacings: Sequence[Spacing],
    calls: Sequence[int],
    settings: Sampling,
    conditions: Rows | None = None,
    guidances: Sequence[Guidance | None] = (None,),
) -> list[Entry]:
    """Return what to measure: each sampler on each spacing under each guidance.

    Each has the most steps that each number of network calls allows, those of the guidance included.
    """
    found: dict[tuple[object, ...], Entry] = {}
    for guidance in guidances:
        one = Plan.of(source, replace(settings, steps=1), guidance=guidance, conditions=conditions)
        calls_at = one.calls_at(source)
        for spacing, sampler in product(spacings, samplers):
            noisy = draws_noise(sampler, spacing, source.schedule)
            for limit in calls:
                if steps := steps_within(limit, sampler, spacing, source.schedule, calls_at):
                    plan = Plan.of(
                        source,
                        replace(settings, steps=steps),
                        sampler=sampler,
                        spacing=spacing,
                        guidance=guidance,
                        conditions=conditions,
                    )
                    entry = Entry(plan, dry_run(sampler, plan.levels, calls_at).calls, noisy)
                    found.setdefault((guidance, sampler.name, spacing.name, steps), entry)
    return list(found.values())


class Comparison:
    """The references, one for each guidance, and the data that samples of one source are measured against."""

    def __init__(
        self,
        source: Source,
        dataset: Dataset,
        settings: Sampling,
        reference_steps: int,
        conditions: Rows | None = None,
        guidances: Sequence[Guidance | None] = (None,),
    ) -> None:
        """Load data to compare with, if they are available here."""
        self.source = source
        self.references = {
            guidance: Reference(source, settings, reference_steps, conditions, guidance) for guidance in guidances
        }
        self.count = CallCount()
        """The network calls so far, of one batch each."""
        self.fresh: FreshData | None = None
        """Fresh data; None if they are not available here."""
        self.reference_steps = reference_steps
        plan = self._plan
        with contextlib.suppress(DifftoolError):
            self.fresh = FreshData.of(dataset, source.data.scaling, plan.label, plan.num_samples)

    @property
    def num_samples(self) -> int:
        return self._plan.num_samples

    @property
    def reference_error(self) -> float:
        """The largest distance (RMS) of a reference to a solution in half the steps."""
        return max(reference.error for reference in self.references.values())

    @property
    def _plan(self) -> Plan:
        return next(iter(self.references.values())).plan

    def calls_of(self, entries: Sequence[Entry]) -> int:
        """Return the network calls, of one batch each, that measuring all of these takes."""
        starts = {(entry.guidance, entry.plan.levels[0]) for entry in entries if not entry.draws_noise}
        solutions = sum(self.references[guidance].calls(start) for guidance, start in starts)
        return (sum(entry.calls for entry in entries) + solutions) * self._plan.batches

    def reference_calls(self, entries: Sequence[Entry]) -> int:
        """Return those of these calls that the exact solutions take."""
        return self.calls_of(entries) - sum(entry.calls for entry in entries) * self._plan.batches

    def seconds_of_a_call(self) -> float:
        """Return the time of a network call of one batch, measured by the second of two."""
        plan = replace(self._plan, num_samples=self._plan.count(0))
        seconds = 0.0
        for _ in range(2):  # the first call prepares what later ones find ready
            start = time.perf_counter()
            calls = collect(self.source, plan).calls
            seconds = (time.perf_counter() - start) / max(1, calls)
        return seconds

    def measure(self, entry: Entry, watch: Callable[[str], object]) -> Result:
        """Draw the samples of an entry and measure them. `watch` is called after each step, with what is being done.

        `count` grows as it goes. Raises `DifftoolError` if the exact solution is not finite.
        """
        first = entry.plan.levels[0]
        solution = None
        if not entry.draws_noise:
            words, reference = f"the exact solution from log-SNR {first.log_snr:.1f}", self.references[entry.guidance]
            calls = 0 if reference.is_known(first) else reference.calls(first) * self._plan.batches
            with self.count.work(calls, partial(watch, words)) as counted:
                solution = reference.solution(first, counted)
        start = time.perf_counter()
        guided = "" if entry.guidance is None else f", {printable(entry.guidance.words())}"
        words = f"{entry.sampler} on {entry.spacing}{guided}, {entry.calls} calls"
        with self.count.work(entry.calls * self._plan.batches, partial(watch, words)) as counted:
            found = collect(self.source, entry.plan, watch=counted)
        x, seconds = found.x, time.perf_counter() - start
        distance = None
        if self.fresh is not None:
            distance = self.fresh.distance(x) if bool(x.isfinite().all()) else math.nan
        error = None if solution is None else rms(x - solution)
        # of a sampler with adaptive steps, no dry run knows the calls
        return Result(entry=replace(entry, calls=found.calls), error=error, sliced_w2=distance, seconds=seconds)


def reference_levels(first: Level, schedule: Schedule, steps: int) -> tuple[Level, ...]:
    """Return levels from `first` down in steps that are even in log-SNR, also beyond the table, and the clean end."""
    start, end = max(first.log_snr, NOISIEST), max(schedule[0].log_snr, CLEANEST)
    log_snrs = [start + (end - start) * i / (steps - 1) for i in range(1, steps)]
    levels = [schedule.at(schedule.t_of(log_snr)) for log_snr in log_snrs]
    return first, *(level for level in levels if 0.0 < level.theta < first.theta), CLEAN


class Reference:
    """The exact solutions, one for each first level, and their own error."""

    def __init__(
        self,
        source: Source,
        settings: Sampling,
        steps: int,
        conditions: Rows | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        self.source, self.steps = source, steps
        self.plan = Plan.of(
            source, replace(settings, steps=1), sampler=SOLVER, guidance=guidance, conditions=conditions
        )
        self.error = 0.0
        """The largest distance (RMS) to a solution in half the steps."""
        self._solutions: dict[Level, Tensor] = {}

    def trials(self, first: Level) -> list[tuple[Level, ...]]:
        """Return the levels of the solution in half the steps, and in all of them."""
        return [reference_levels(first, self.source.schedule, n) for n in (max(1, self.steps // 2), self.steps)]

    def calls(self, first: Level) -> int:
        """Return the network calls for each sample that the solution from a level takes."""
        calls_at = self.plan.calls_at(self.source)
        return sum(dry_run(self.plan.sampler, levels, calls_at).calls for levels in self.trials(first))

    def is_known(self, first: Level) -> bool:
        """Return whether the solution from a level has been computed."""
        return first in self._solutions

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
