"""Laws of noise schedules."""

from __future__ import annotations

from itertools import pairwise

import torch

from difftool.components import NoiseSchedule, Prediction
from difftool.model import build_schedule
from difftool.plugins import registry
from difftool.schedule import CLEAN, LARGEST_SIGNAL_LEFT, Schedule
from difftool.testing.known import distance, evenly, grid, mixture, quantiles
from difftool.testing.laws import Broken
from difftool.validation import make

LENGTHS = (50, 250, 1000, 4000)
"""Numbers of timesteps to ask for."""
MOST_NOISE = 0.1
"""Share of noise in the variance of the first of 1000 levels."""
FARTHEST_ANGLE = 0.05
"""Radians between the levels at the same part of a long and of a short table; a quarter turn is 1.57."""
STEPS, POINTS, FARTHEST = 200, 2000, 0.03


def gives_a_table_of_each_length(schedule: NoiseSchedule) -> str:
    """It builds float64 tables of 50, 250, 1000 and 4000 levels, finite and not negative."""
    for timesteps in LENGTHS:
        _table(schedule, timesteps)
    return ", ".join(map(str, LENGTHS))


def loses_signal_at_every_level(schedule: NoiseSchedule) -> str:
    """The signal-to-noise ratio falls strictly; measured by the angle between signal and noise, which must grow."""
    least = min(float(_table(schedule, timesteps).theta.diff().min()) for timesteps in LENGTHS)
    if not least > 0.0:
        raise Broken(f"from one level to the next the angle changes by {least:.3g}; it must grow")
    return f"the angle grows by {least:.2g} at least"


def begins_with_data(schedule: NoiseSchedule) -> str:
    """At the first of 1000 levels at most a tenth of the variance is noise: else no sample gets clean."""
    noise = 1.0 - float(_table(schedule, 1000).alpha_bars[0])
    if not noise <= MOST_NOISE:
        raise Broken(f"{noise:.3g} of the variance is noise at the first of 1000 levels; at most {MOST_NOISE} is due")
    return f"{noise:.2g} of the variance is noise"


def ends_in_noise(schedule: NoiseSchedule) -> str:
    """At the last of 250, 1000 and 4000 levels at most a hundredth of the variance is signal: walks begin in noise."""
    left = {timesteps: float(_table(schedule, timesteps).alpha_bars[-1]) for timesteps in LENGTHS[1:]}
    for timesteps, share in left.items():
        if not share <= LARGEST_SIGNAL_LEFT:
            raise Broken(
                f"{share:.3g} of the variance is signal at the last of {timesteps} levels; at most "
                f"{LARGEST_SIGNAL_LEFT:g} is due: scale what it is made of by the number of timesteps"
            )
    return f"{max(left.values()):.2g} of the variance is signal at most"


def means_the_same_at_every_length(schedule: NoiseSchedule) -> str:
    """Half way through 250 or 4000 levels there is as much noise as half way through 1000: time has one meaning."""
    long, worst = _table(schedule, 1000), 0.0
    for timesteps in (250, 4000):
        other = _table(schedule, timesteps)
        for part in (0.1, 0.25, 0.5, 0.75, 0.9):
            a, b = (table.at(part * len(table) - 1.0).theta for table in (long, other))
            worst = max(worst, abs(a - b))
    if not worst <= FARTHEST_ANGLE:
        raise Broken(f"levels at one part of the time differ by {worst:.3g} rad; at most {FARTHEST_ANGLE} is due")
    return f"{worst:.2g} rad apart at most"


def repeats_itself(schedule: NoiseSchedule) -> str:
    """Two tables are equal to the last bit: nothing in them is random or remembered."""
    a, b = _table(schedule, 1000), _table(schedule, 1000)
    if not (torch.equal(a.alpha, b.alpha) and torch.equal(a.sigma, b.sigma)):
        raise Broken("two tables of 1000 levels differ")
    return "equal to the last bit"


def suits_its_prediction(schedule: NoiseSchedule) -> str:
    """Its `default_prediction` is installed, and tells x_0 and eps at every level of its table."""
    prediction = make(registry().of_kind(Prediction, schedule.default_prediction), {})
    build_schedule(schedule, 1000, prediction)
    return schedule.default_prediction


def carries_noise_to_data(schedule: NoiseSchedule) -> str:
    """200 plain steps along its table, with the exact denoiser of a mixture, end at the mixture: Wasserstein-1, of a
    deviation of 0.92."""
    table = _table(schedule, 1000)
    levels = [*grid(table, STEPS), CLEAN]
    x = quantiles(levels[0], evenly(POINTS))
    for t, s in pairwise(levels):
        estimate = mixture(x, t)
        x = s.alpha * estimate.x_0 + s.sigma * estimate.eps
    found = distance(x)
    if not found <= FARTHEST:
        raise Broken(f"the walk ends at a Wasserstein-1 distance of {found:.3f}; at most {FARTHEST} was due")
    return f"Wasserstein-1 {found:.3f}"


LAWS = (
    gives_a_table_of_each_length,
    loses_signal_at_every_level,
    begins_with_data,
    ends_in_noise,
    means_the_same_at_every_length,
    repeats_itself,
    suits_its_prediction,
    carries_noise_to_data,
)


def _table(schedule: NoiseSchedule, timesteps: int) -> Schedule:
    """The table, with the reason where there is none."""
    try:
        table = build_schedule(schedule, timesteps)
    except Exception as error:
        raise Broken(f"{timesteps} timesteps: {error}") from None
    if not isinstance(table, Schedule):
        raise Broken(f"build({timesteps}) gave a {type(table).__name__}, not a Schedule")
    return table
