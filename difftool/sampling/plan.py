"""Plans: a sampler, its levels and the settings of sampling, resolved against a source."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from difftool.components import Guidance, Sampler, Spacing
from difftool.data.condition import Condition
from difftool.data.facts import classes_text
from difftool.data.own_images import own_image
from difftool.devices import check_precision, has_fast
from difftool.diffusion.estimate import Estimate
from difftool.diffusion.schedule import CLEAN, Level, Schedule
from difftool.errors import DifftoolError, UsageError, blaming, counted
from difftool.plugins.registry import given, given_guidance, registry
from difftool.sampling.conditions import Given, Rows, read_rows, words_of
from difftool.sampling.inpainting import Inpainting
from difftool.sampling.predictions import BatchPredictions, calls_at, guided
from difftool.settings import AUTO, STRENGTH, Sampling

if TYPE_CHECKING:
    from difftool.sampling.source import Source

POINTS, IMAGES, PATH = 2_000, 16, 9
"""Default numbers of samples: points, images or arrays; PATH along --interpolate."""
LARGEST_GAIN, FORGETFUL, CURES = 10.0, 50, ("log-snr", "karras")
"""Without a warning, the first step may multiply an error by this factor, or more in this many steps with noise; the
spacings that begin with short steps."""
BATCH_ELEMENTS, BATCH_SAMPLES, BATCH_ON_CPU = 2**17, 8_192, 2_048
"""Numbers and samples that a batch holds at most by default; on a CPU, the hidden layers of larger ones fall out of
its cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The settings of sampling, resolved against a source, so that nothing is left to decide."""

    sampler: Sampler
    spacing: Spacing
    guidance: Guidance | None = None
    levels: tuple[Level, ...]
    """The levels visited; the last one is clean."""
    settings: Sampling
    num_samples: int
    batch_size: int
    rows: Rows = field(default_factory=dict)
    """The conditions of samples by field, (K, ...) as the user gave them: sample k takes row k modulo K."""
    names: tuple[str, ...] = ()
    """The names of the rows of condition images, or () if they have none."""
    init: Tensor | None = None
    """(*shape) in model units: the image that trajectories start from, noised."""
    inpainting: Inpainting | None = None

    @classmethod
    def of(
        cls,
        source: Source,
        settings: Sampling | None = None,
        *,
        sampler: str | Sampler = "ddim",
        spacing: str | Spacing = "trailing",
        guidance: float | str | Guidance | None = None,
        conditions: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Resolve settings against a source. `conditions` are arrays in place of the settings of these names.

        A number as guidance is a scale of classifier-free guidance. Raises `UsageError` for what does not go together,
        `TypeError` for something else than a sampler, a spacing or a guidance, and `DifftoolError` for files that
        cannot be read.
        """
        settings = settings or Sampling()
        if settings.precision == AUTO:
            fast = has_fast(source.device, source.precision)
            settings = replace(settings, precision=source.precision if fast else "fp32")
        check_settings(source, settings)
        sampler, spacing = given(Sampler, sampler), given(Spacing, spacing)
        numbers = max(math.prod(source.space.shape), math.prod(source.data.shape))
        guidance = None if guidance is None else given_guidance(guidance)
        levels = levels_visited(source, settings, sampler, spacing)
        init = None
        if settings.init is not None:
            init = own_image(settings.init, source.data, source.name, "--init").to(source.device)
        most = settings.num_samples or usual_count(source)
        given_conditions = read_rows(source, settings, conditions or {}, most=most)
        count = settings.num_samples or default_count(source, settings, given_conditions)
        check_classes(source, settings, given_conditions.rows.get("label"), count)
        plan = cls(
            sampler=sampler,
            spacing=spacing,
            levels=levels,
            settings=settings,
            init=init,
            inpainting=Inpainting.of(source, settings),
            num_samples=count,
            batch_size=settings.batch_size or default_batch_size(source.device, numbers),
            rows=given_conditions.rows,
            names=given_conditions.names,
        )
        return plan.with_guidance(source, guidance)

    def varied(
        self,
        source: Source,
        *,
        sampler: Sampler | None = None,
        spacing: Spacing | None = None,
        guidance: Guidance | None = None,
        steps: int | None = None,
        seed: int | None = None,
    ) -> Plan:
        """Return the plan with what is not None in place of its own, and all else alike. Raises as `of` does."""
        own = self.settings
        settings = replace(own, steps=own.steps if steps is None else steps, seed=own.seed if seed is None else seed)
        sampler, spacing = sampler or self.sampler, spacing or self.spacing
        levels = levels_visited(source, settings, sampler, spacing)
        plan = replace(self, settings=settings, sampler=sampler, spacing=spacing, levels=levels)
        return plan.with_guidance(source, guidance or self.guidance)

    def with_guidance(self, source: Source, guidance: Guidance | None) -> Plan:
        """Return the plan with another guidance. Raises `UsageError` if the guidance does not suit the source."""
        plan = replace(self, guidance=guidance)
        if guidance is not None:  # which refuses before anything is drawn what it does not suit
            guided(guidance, plan.predictions(source, 0, plan.count(0)))
        return plan

    def predictions(self, source: Source, first: int, count: int) -> BatchPredictions:
        """Return the denoisers of the samples first..first+count-1, which count their calls."""
        condition, precision = self.condition(first, count), self.settings.precision
        return BatchPredictions(source, condition, first=first, count=count, precision=precision)

    def calls_at(self, source: Source) -> Callable[[Level], int]:
        """Return a function that gives the network calls of one guided estimate at a level."""
        return calls_at(self.guidance, self.predictions(source, 0, 1).spec())

    @property
    def label(self) -> int | None:
        """The class of all samples, or None if they have none, or several."""
        labels = self.rows.get("label")
        return int(labels[0]) if labels is not None and len(labels) == 1 else None

    def condition(self, first: int, count: int) -> Condition | None:
        """Return the conditions of the samples first..first+count-1 as the user gave them, or None without any."""
        numbers = torch.arange(first, first + count)
        return Condition.shown({name: rows[numbers % len(rows)] for name, rows in self.rows.items()})

    def conditions_in_words(self, source: Source) -> list[str]:
        """Return the conditions in words, such as `class cat` and `vector 0.3,1.2`."""
        return words_of(self.rows, self.settings, source.data.class_names)

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    @property
    def batches(self) -> int:
        """Number of batches."""
        return -(-self.num_samples // self.batch_size)

    def count(self, batch: int) -> int:
        """Return the number of samples in a batch: the last one may have fewer."""
        return min(self.batch_size, self.num_samples - batch * self.batch_size)

    @property
    def stem(self) -> str:
        """The beginning of file names, such as `ddim-50`."""
        return f"{self.sampler.name}-{self.steps}"


def levels_visited(source: Source, settings: Sampling, sampler: Sampler, spacing: Spacing) -> tuple[Level, ...]:
    """Return the levels that the samples of a sampler pass, the clean one last. Raises as `Plan.of` does."""
    levels = spaced_levels(source.schedule, spacing, all_steps(source.schedule, settings, sampler))
    if settings.interpolate is not None and dry_run(sampler, (*levels, CLEAN)).draws_noise:
        raise UsageError(
            f"--interpolate: the sampler {sampler.name} draws noise, so its samples are not a function of "
            "where they start; choose one that draws none, such as ddim with eta 0"
        )
    if settings.init is not None:
        levels = last_levels(levels, settings.strength or STRENGTH)
    return (*levels, CLEAN)


def all_steps(schedule: Schedule, settings: Sampling, sampler: Sampler) -> int:
    """Return the steps from pure noise, of which samples that start from an image take the last ones."""
    T = len(schedule)
    return settings.steps or min(sampler.default_steps or T, T)


def default_count(source: Source, settings: Sampling, conditions: Given) -> int:
    """Return the number of samples of a plan whose settings name none: as many of each class."""
    classes = len(conditions.rows.get("label", ()))
    if conditions.count is not None:
        return max(conditions.count, classes)
    if settings.interpolate is not None:
        return PATH
    most = usual_count(source)
    return most if classes < 2 else classes * max(1, most // classes)


def usual_count(source: Source) -> int:
    """Return the number of samples that a picture shows well."""
    return POINTS if source.data.is_points else IMAGES


def default_batch_size(device: torch.device, numbers: int) -> int:
    """Return the samples of a batch that suit a device, by the numbers of a sample."""
    return max(1, min(BATCH_ON_CPU if device.type == "cpu" else BATCH_SAMPLES, BATCH_ELEMENTS // numbers))


def check_classes(source: Source, settings: Sampling, labels: Tensor | None, count: int) -> None:
    """Raise `UsageError` for several classes on one path, and warn of classes that get none of `count` samples."""
    if labels is None or len(labels) < 2:
        return
    if settings.interpolate is not None:
        raise UsageError("--label: --interpolate draws a path of one class; name one")
    if missing := sorted({*labels.tolist()} - {*labels[:count].tolist()}):
        what = f"{counted(count, 'sample')} of {len({*labels.tolist()}):,} classes leave"
        names = classes_text([source.data.class_names[label] for label in missing])
        warnings.warn(f"--num-samples: {what} {names} without one", stacklevel=3)


def caution(source: Source, plan: Plan) -> str:
    """Return a warning if the first step spoils the samples and another spacing does not, or an empty text.

    Estimates that are clipped cannot go astray, and a sampler that draws noise over many steps forgets its first one.
    """
    clipped = source.space.bounds is not None and plan.settings.clip
    gain = first_gain(source, plan.levels)
    if clipped or gain <= LARGEST_GAIN:
        return ""
    if plan.steps >= FORGETFUL and dry_run(plan.sampler, plan.levels).draws_noise:
        return ""
    for name in [name for name in CURES if name in registry().names(Spacing.kind)]:
        levels = spaced_levels(source.schedule, given(Spacing, name), plan.steps)
        if first_gain(source, (*levels, CLEAN)) <= max(LARGEST_GAIN, gain / 10):
            return (
                f"the first of {plan.steps} steps makes what the network gets wrong {gain:,.0f} times as large, so "
                f"many samples may lie far from the data; --spacing {name} avoids this, and so does training with "
                "--prediction v"
            )
    return ""  # so few steps are rough with any spacing


def first_gain(source: Source, levels: Sequence[Level]) -> float:
    """Return the factor by which the first step multiplies errors, relative to the spread of x after it."""
    t, s = levels[:2]
    return source.step_gain(t, s) / math.hypot(s.alpha * source.space.std, s.sigma)


def check_settings(source: Source, settings: Sampling) -> None:
    """Raise `UsageError` for settings that do not suit the source or its device."""
    check_precision(source.device, settings.precision)
    if settings.threshold is not None and source.space.bounds is None:
        what = "data" if source.latents is None else "latents"
        raise UsageError(f"--threshold: the {what} of {source.name} have no bounds")


def spaced_levels(schedule: Schedule, spacing: Spacing, steps: int) -> Sequence[Level]:
    """Return the levels of a spacing, from noisy to clean.

    Raises `UsageError` if the schedule has fewer, and `DifftoolError` unless they are `steps` strictly falling ones.
    """
    if steps > len(schedule):
        raise UsageError(f"--steps: {steps} is more than the schedule's {len(schedule)} levels")
    with blaming(f"spacing {spacing.name}", refusal=UsageError):
        levels = list(spacing.levels(schedule, steps))
    angles = [level.theta for level in levels]
    if len(levels) != steps or any(a <= b for a, b in pairwise(angles)) or angles[-1] <= 0.0:
        raise DifftoolError(f"spacing {spacing.name} did not give {steps} strictly falling levels")
    return levels


def last_levels(levels: Sequence[Level], strength: float) -> Sequence[Level]:
    """Return the last levels, as large a part of them as the strength: 0.6 of 50 steps are the last 30.

    Raises `UsageError` if none is left.
    """
    steps = round(strength * len(levels))
    if steps == 0:
        raise UsageError(
            f"--strength: {strength:g} of {len(levels)} steps leaves none; choose at least {1 / len(levels):.2g}, "
            "or more --steps"
        )
    return levels[-steps:]


class DryRun(NamedTuple):
    """The network calls of a trajectory, and whether it draws noise."""

    calls: int
    """Network calls."""
    draws_noise: bool


def dry_run(sampler: Sampler, levels: Sequence[Level], calls_at: Callable[[Level], int] | None = None) -> DryRun:
    """Sample one number with a denoiser that always estimates 0, and return the network calls.

    An estimate is one call, or as many as `calls_at` gives for its level. Raises `DifftoolError` if the sampler fails.
    """
    drawn: list[int] = []
    calls = 0

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return torch.zeros(1, 1)

    def zero(x: Tensor, level: Level) -> Estimate:
        nonlocal calls
        calls += 1 if calls_at is None else calls_at(level)
        return Estimate(torch.zeros_like(x), torch.zeros_like(x))

    with blaming(f"sampler {sampler.name}"):
        for _ in sampler.sample(zero, torch.zeros(1, 1), levels, noise):
            pass
    return DryRun(calls, bool(drawn))
