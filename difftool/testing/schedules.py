"""The laws of noise schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch

from difftool.components import NoiseSchedule, Prediction
from difftool.diffusion.prediction import check
from difftool.diffusion.schedule import CLEAN, LARGEST_SIGNAL_LEFT, Schedule
from difftool.errors import UsageError
from difftool.options import make
from difftool.plugins.registry import registry
from difftool.specs import ObjectiveSpec
from difftool.testing.known import distance, evenly, log_snr_levels, mixture, quantiles
from difftool.testing.laws import Failed, Skipped, raised

LENGTHS = (50, 250, 1000, 4000)
"""Numbers of timesteps that schedules are built for."""
MOST_NOISE = 0.1
"""Share of noise in the variance of the first of 1000 levels."""
FARTHEST_ANGLE = 0.05
"""Radians between the levels at the same fraction of two tables; from signal to noise it is 1.57."""
STEPS, SAMPLES, FARTHEST = 200, 2000, 0.03


@dataclass(frozen=True)
class Case:
    """A schedule with its tables by number of timesteps."""

    schedule: NoiseSchedule
    tables: Mapping[int, Schedule | str]
    """The reason in place of a table that could not be built."""

    def __getitem__(self, timesteps: int) -> Schedule:
        """Return the table of this length. Raises `Skipped` if there is none."""
        table = self.tables[timesteps]
        if isinstance(table, str):
            raise Skipped(f"it builds no table of {timesteps} levels")
        return table


def prepare(schedule: NoiseSchedule) -> Case:
    return Case(schedule, {timesteps: build(schedule, timesteps) for timesteps in LENGTHS})


def build(schedule: NoiseSchedule, timesteps: int) -> Schedule | str:
    """Build a table, or return the reason why there is none."""
    try:
        table: object = schedule.build(timesteps)
    except Exception as error:
        return raised(error)
    if not isinstance(table, Schedule):
        return f"build() returned a {type(table).__name__}, not a Schedule"
    return table if len(table) == timesteps else f"build({timesteps}) returned {len(table)} levels"


def builds_a_table_of_any_length(case: Case) -> str:
    """It builds float64 tables of 50, 250, 1000 and 4000 levels. They are finite and not negative, and the
    signal-to-noise ratio strictly falls."""
    for timesteps, table in case.tables.items():
        if isinstance(table, str):
            raise Failed(f"{timesteps} timesteps: {table}")
    smallest = min(float(case[timesteps].theta.diff().min()) for timesteps in LENGTHS)
    return f"{', '.join(map(str, LENGTHS))} levels; the angle from signal to noise grows by {smallest:.2g} or more"


def starts_near_the_data(case: Case) -> str:
    """At the first of 1000 levels, at most a tenth of the variance is noise, else no sample would be clean. Some of it
    is noise, since the clean end comes before the table."""
    noise = 1.0 - float(case[1000].alpha_bars[0])
    if not noise <= MOST_NOISE:
        raise Failed(
            f"{noise:.3g} of the variance is noise at the first of 1000 levels; at most {MOST_NOISE} is allowed"
        )
    if float(case[1000].sigma[0]) == 0.0:
        raise Failed("the first level has no noise; the clean end is not part of the table, so begin at u = 1/T")
    return f"{noise:.2g} of the variance is noise, at most {MOST_NOISE}"


def ends_in_noise(case: Case) -> str:
    """At the last of 250, 1000 and 4000 levels, at most a hundredth of the variance is signal, since sampling starts
    from pure noise."""
    signal = {timesteps: float(case[timesteps].alpha_bars[-1]) for timesteps in LENGTHS[1:]}
    for timesteps, share in signal.items():
        if not share <= LARGEST_SIGNAL_LEFT:
            raise Failed(
                f"{share:.3g} of the variance is signal at the last of {timesteps} levels; at most "
                f"{LARGEST_SIGNAL_LEFT:g} is allowed: scale the schedule by the number of timesteps"
            )
    return f"{max(signal.values()):.2g} of the variance is signal, at most {LARGEST_SIGNAL_LEFT:g}"


def has_the_same_shape_at_every_length(case: Case) -> str:
    """At the same fraction of the time, tables of 250, 1000 and 4000 levels have the same signal-to-noise ratio."""
    worst = 0.0
    for timesteps in (250, 4000):
        for fraction in (0.1, 0.25, 0.5, 0.75, 0.9):
            a, b = (table.at(fraction * len(table) - 1.0).theta for table in (case[1000], case[timesteps]))
            worst = max(worst, abs(a - b))
    if not worst <= FARTHEST_ANGLE:
        raise Failed(f"levels at the same fraction differ by {worst:.3g} rad; at most {FARTHEST_ANGLE} is allowed")
    return f"{worst:.2g} rad apart, at most {FARTHEST_ANGLE}"


def is_reproducible(case: Case) -> str:
    """A second table equals the first to the last bit, so nothing is random and nothing is remembered."""
    a, b = case[1000], build(case.schedule, 1000)
    if not isinstance(b, Schedule) or not (torch.equal(a.alpha, b.alpha) and torch.equal(a.sigma, b.sigma)):
        raise Failed("two tables of 1000 levels differ")
    return "equal to the last bit"


def fits_its_default_prediction(case: Case) -> str:
    """The schedule's `default_prediction` is installed, and x_0 and eps follow from it at every level of the table."""
    name = case.schedule.default_prediction
    try:
        check(make(registry().of_kind(Prediction, name), {}), ObjectiveSpec(schedule=case[1000]))
    except (ValueError, UsageError) as error:
        raise Failed(f"prediction {name}: {error}") from None
    return name


def leads_from_noise_to_data(case: Case) -> str:
    """200 DDIM steps along its table, with the exact denoiser of a mixture of Gaussians, end within a Wasserstein-1
    distance of 0.03 of the mixture, whose standard deviation is 0.92."""
    levels = [*log_snr_levels(case[1000], STEPS), CLEAN]
    x = quantiles(levels[0], evenly(SAMPLES))
    for t, s in pairwise(levels):
        estimate = mixture(x, t)
        x = s.alpha * estimate.x_0 + s.sigma * estimate.eps
    if not distance(x) <= FARTHEST:
        raise Failed(f"the samples end at a Wasserstein-1 distance of {distance(x):.3f}; at most {FARTHEST} is allowed")
    return f"Wasserstein-1 {distance(x):.3f}, at most {FARTHEST}"


LAWS = (
    builds_a_table_of_any_length,
    starts_near_the_data,
    ends_in_noise,
    has_the_same_shape_at_every_length,
    is_reproducible,
    fits_its_default_prediction,
    leads_from_noise_to_data,
)
