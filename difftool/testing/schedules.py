"""Laws of noise schedules."""

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
from difftool.testing.examine import describe
from difftool.testing.known import distance, evenly, grid, mixture, quantiles
from difftool.testing.laws import Broken, NotAsked

LENGTHS = (50, 250, 1000, 4000)
"""Numbers of timesteps to ask for."""
MOST_NOISE = 0.1
"""Share of noise in the variance of the first of 1000 levels."""
FARTHEST_ANGLE = 0.05
"""Radians between the levels at the same part of a long and of a short table; a quarter turn is 1.57."""
STEPS, POINTS, FARTHEST = 200, 2000, 0.03


@dataclass(frozen=True)
class Tables:
    """A schedule, and its tables by length, or why there is none."""

    schedule: NoiseSchedule
    built: Mapping[int, Schedule | str]

    def __getitem__(self, timesteps: int) -> Schedule:
        table = self.built[timesteps]
        if isinstance(table, str):
            raise NotAsked(f"it gives no table of {timesteps} levels")
        return table


def subject(schedule: NoiseSchedule) -> Tables:
    return Tables(schedule, {timesteps: _built(schedule, timesteps) for timesteps in LENGTHS})


def _built(schedule: NoiseSchedule, timesteps: int) -> Schedule | str:
    try:
        table = schedule.build(timesteps)
    except Exception as error:
        return describe(error)
    given: object = table
    if not isinstance(given, Schedule):
        return f"build() gave a {type(given).__name__}, not a Schedule"
    return table if len(table) == timesteps else f"build({timesteps}) gave {len(table)} levels"


def gives_a_table_of_each_length(tables: Tables) -> str:
    """It builds float64 tables of 50, 250, 1000 and 4000 levels, finite and not negative, whose signal-to-noise ratio
    falls strictly."""
    for timesteps, table in tables.built.items():
        if isinstance(table, str):
            raise Broken(f"{timesteps} timesteps: {table}")
    least = min(float(tables[timesteps].theta.diff().min()) for timesteps in LENGTHS)
    return f"{', '.join(map(str, LENGTHS))} levels; the angle from signal to noise grows by {least:.2g} at least"


def begins_with_data(tables: Tables) -> str:
    """At the first of 1000 levels at most a tenth of the variance is noise, or no sample would get clean; but some is,
    for the clean end stands before the table."""
    noise = 1.0 - float(tables[1000].alpha_bars[0])
    if not noise <= MOST_NOISE:
        raise Broken(f"{noise:.3g} of the variance is noise at the first of 1000 levels; at most {MOST_NOISE} is due")
    if float(tables[1000].sigma[0]) == 0.0:
        raise Broken("the first level has no noise: the clean end is not part of the table, begin at u = 1/T")
    return f"{noise:.2g} of the variance is noise, of {MOST_NOISE} at most"


def ends_in_noise(tables: Tables) -> str:
    """At the last of 250, 1000 and 4000 levels at most a hundredth of the variance is signal: walks begin in noise."""
    left = {timesteps: float(tables[timesteps].alpha_bars[-1]) for timesteps in LENGTHS[1:]}
    for timesteps, share in left.items():
        if not share <= LARGEST_SIGNAL_LEFT:
            raise Broken(
                f"{share:.3g} of the variance is signal at the last of {timesteps} levels; at most "
                f"{LARGEST_SIGNAL_LEFT:g} is due: scale what it is made of by the number of timesteps"
            )
    return f"{max(left.values()):.2g} of the variance is signal, of {LARGEST_SIGNAL_LEFT:g} at most"


def means_the_same_at_every_length(tables: Tables) -> str:
    """Half way through 250 or 4000 levels there is as much noise as half way through 1000: time has one meaning."""
    long, worst = tables[1000], 0.0
    for timesteps in (250, 4000):
        other = tables[timesteps]
        for part in (0.1, 0.25, 0.5, 0.75, 0.9):
            a, b = (table.at(part * len(table) - 1.0).theta for table in (long, other))
            worst = max(worst, abs(a - b))
    if not worst <= FARTHEST_ANGLE:
        raise Broken(f"levels at one part of the time differ by {worst:.3g} rad; at most {FARTHEST_ANGLE} is due")
    return f"{worst:.2g} rad apart, of {FARTHEST_ANGLE} at most"


def repeats_itself(tables: Tables) -> str:
    """A second table is equal to the first to the last bit: nothing in it is random or remembered."""
    a, b = tables[1000], _built(tables.schedule, 1000)
    if not isinstance(b, Schedule) or not (torch.equal(a.alpha, b.alpha) and torch.equal(a.sigma, b.sigma)):
        raise Broken("two tables of 1000 levels differ")
    return "equal to the last bit"


def suits_its_prediction(tables: Tables) -> str:
    """Its `default_prediction` is installed, and tells x_0 and eps at every level of its table."""
    name = tables.schedule.default_prediction
    try:
        check(make(registry().of_kind(Prediction, name), {}), ObjectiveSpec(schedule=tables[1000]))
    except (ValueError, UsageError) as error:
        raise Broken(str(error)) from None
    return name


def carries_noise_to_data(tables: Tables) -> str:
    """200 plain steps along its table, with the exact denoiser of a mixture, end at the mixture: Wasserstein-1, of a
    deviation of 0.92."""
    levels = [*grid(tables[1000], STEPS), CLEAN]
    x = quantiles(levels[0], evenly(POINTS))
    for t, s in pairwise(levels):
        estimate = mixture(x, t)
        x = s.alpha * estimate.x_0 + s.sigma * estimate.eps
    found = distance(x)
    if not found <= FARTHEST:
        raise Broken(f"the walk ends at a Wasserstein-1 distance of {found:.3f}; at most {FARTHEST} was due")
    return f"Wasserstein-1 {found:.3f}, of {FARTHEST} at most"


LAWS = (
    gives_a_table_of_each_length,
    begins_with_data,
    ends_in_noise,
    means_the_same_at_every_length,
    repeats_itself,
    suits_its_prediction,
    carries_noise_to_data,
)
