"""Level grids: which of the T levels a walk of n steps visits. T = 1000, n = 10 gives the examples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from difftool import Spacing, option

if TYPE_CHECKING:
    from difftool import Level, Schedule


class Trailing(Spacing, name="trailing"):
    """999, 899, ..., 99: always begins at the noisiest level (Lin et al., 2024)."""

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        T = len(schedule)
        return [schedule[round(T * (steps - i) / steps) - 1] for i in range(steps)]


class Leading(Spacing, name="leading"):
    """900, 800, ..., 0: ends at the cleanest level, never visits the noisiest (Song et al., 2021)."""

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        stride = len(schedule) // steps
        return [schedule[stride * (steps - 1 - i)] for i in range(steps)]


class Linspace(Spacing, name="linspace"):
    """999, 888, ..., 0: both ends (Nichol & Dhariwal, 2021)."""

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        last = len(schedule) - 1
        return [schedule[round(last * (1 - i / max(steps - 1, 1)))] for i in range(steps)]


class LogSNR(Spacing, name="log-snr"):
    """Evenly spaced in log-SNR, between table rows where need be (Lu et al., 2022)."""

    floor: float = option(default=-10.2, le=0, help="log-SNR at which the noisy end is clipped (cosine reaches -20)")

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        last = len(schedule) - 1
        noisy, clean = max(schedule[last].log_snr, self.floor), schedule[0].log_snr
        if not math.isfinite(clean):
            raise ValueError("log-snr spacing needs a schedule whose first level has some noise")
        targets = [noisy + (clean - noisy) * i / max(steps - 1, 1) for i in range(steps)]
        return [schedule.at(schedule.t_of(target)) for target in targets]
