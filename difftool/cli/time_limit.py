"""The time that a job has: `--time-limit`, or what its queue grants. A run ends in good order before it is over."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from difftool.errors import UsageError, printable

if TYPE_CHECKING:
    from difftool.training.experiment import Experiment

UNITS = re.compile(r"(?=\d)(?:(\d{1,5})d)?(?:(\d{1,6})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?", re.ASCII)
CLOCK = re.compile(r"(?:(\d{1,5})-)?(\d{1,6}):([0-5]\d):([0-5]\d)", re.ASCII)
SECONDS = (86400, 3600, 60, 1)
"""The seconds of the numbers in both forms: days, hours, minutes, seconds."""
SLURM = "SLURM_JOB_END_TIME"
"""The variable by which SLURM says when a job ends, in seconds since 1970."""
MARGIN = 1.5
"""The factor by which a step and a save may take longer than the longest so far."""
ENDING = 1.0
"""The seconds from the end of a save to that of the process."""
SLOWEST = 50e6
"""The bytes a second of which a save is expected before one was measured."""
LONGEST = 366 * 86400
"""A time that is further away, in seconds, is no limit."""


def seconds_of(text: str) -> float:
    """Return the seconds in a time: units such as 7h30m, or a clock such as 1-12:00:00. Raises `UsageError`."""
    found = UNITS.fullmatch(text) or CLOCK.fullmatch(text)
    total = sum(int(n or 0) * each for n, each in zip(found.groups(), SECONDS, strict=True)) if found else 0
    if not total:
        raise UsageError(
            f"--time-limit: must be a time such as 20s, 90m, 7h30m or 1-12:00:00 (days-hours:minutes:seconds), "
            f"not {printable(text)[:80]!r}"
        )
    return float(total)


def started() -> float:
    """Return when this process began, in seconds since 1970: on Linux exactly, elsewhere when it imported this."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError, IndexError):
        return IMPORTED


IMPORTED = time.time()


def now() -> float:
    """Return the time, in seconds since 1970."""
    return time.time()


@dataclass
class Deadline:
    """The time at which the process must have ended. It learns how long steps and saves take."""

    end: float
    """Seconds since 1970."""
    name: str
    """The limit, for messages: `the time limit of 20s`."""
    flags: str = ""
    """The flags that set it again."""
    longest: float = field(default=0.0, init=False)
    """The longest step so far, with all that is done between two steps, in seconds. The first one is left out."""
    _last: float | None = field(default=None, init=False)

    @classmethod
    def of(cls, limit: str | None, environment: Mapping[str, str] = os.environ) -> Deadline | None:
        """Return the deadline that the user gives, or else that of the queue, or None. Raises `UsageError`."""
        if limit is not None:
            return cls(started() + seconds_of(limit), f"the time limit of {limit}", f" --time-limit {limit}")
        text = environment.get(SLURM, "")
        if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or not 0 < int(text) - now() < LONGEST:
            return None
        return cls(float(text), f"the end of this SLURM job at {datetime.fromtimestamp(int(text)):%Y-%m-%d %H:%M:%S}")

    def reserve(self, experiment: Experiment) -> float:
        """Return the seconds that one more step, a save and the end of the process take at most."""
        save = experiment.saver.longest or experiment.state.bytes / SLOWEST
        return MARGIN * (self.longest + save * (2 if experiment.saver.busy else 1)) + ENDING

    def is_near(self, experiment: Experiment) -> bool:
        """Return whether one more step may be too many."""
        return experiment.state.step < experiment.steps and now() + self.reserve(experiment) > self.end

    def is_near_after_step(self, experiment: Experiment) -> bool:
        """Return whether one more step may be too many. It is asked after each step, and so learns their times."""
        time, last = now(), self._last
        self._last = time
        if last is not None:
            self.longest = max(self.longest, time - last)
        return self.is_near(experiment)

    def shortness(self, experiment: Experiment) -> str:
        """Return a message about a deadline that is near before the first step."""
        return (
            f"{self.name} leaves no time to train: {max(self.end - now(), 0):.0f} s are left after the start, and "
            f"{self.reserve(experiment):.0f} s are kept for saving; give more time"
        )
