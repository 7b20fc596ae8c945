"""Spacings: the levels that a sampler visits in n steps. The examples are for T = 1000 and n = 10."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from difftool import Spacing, option

if TYPE_CHECKING:
    from difftool import Level, Schedule


class Trailing(Spacing, name="trailing"):
    """999, 899, ..., 99: always begins at the noisiest level (Lin et al., 2024)."""

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        T = len(schedule)
        return [schedule[round(T * (steps - i) / steps) - 1] for i in range(steps)]


class Leading(Spacing, name="leading"):
    """900, 800, ..., 0: ends at the cleanest level, begins below the noisiest (Song, Meng & Ermon, 2021)."""

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        stride = len(schedule) // steps
        return [schedule[stride * (steps - 1 - i)] for i in range(steps)]


class Linspace(Spacing, name="linspace"):
    """999, 888, ..., 0: both ends (Nichol & Dhariwal, 2021)."""

    rounding: Literal["nearest", "down"] = option(
        default="nearest", help="round a level between two rows to the nearest, or down, as int() does"
    )

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        last = len(schedule) - 1
        if self.rounding == "down":
            parts = max(steps - 1, 1)
            return [schedule[last * (parts - i) // parts] for i in range(steps)]
        return [schedule[round(last * (1 - i / max(steps - 1, 1)))] for i in range(steps)]


class BetweenRows(Spacing):
    """The options of spacings that lie between two log-SNRs, and so between table rows."""

    floor: float = option(
        default=-10.2, ge=-60, le=0, help="log-SNR at which the noisy end is clipped (cosine reaches -20)"
    )
    ceiling: float | None = option(
        default=None,
        le=30,
        otherwise="the schedule's first level",
        help="log-SNR at which the levels end; above the schedule's range, the last step becomes finer",
    )

    def ends(self, schedule: Schedule) -> tuple[float, float]:
        """Return the log-SNR of the noisy and of the clean end. Raises `ValueError` if they leave no range."""
        noisy = max(schedule[len(schedule) - 1].log_snr, self.floor)
        clean = schedule[0].log_snr if self.ceiling is None else self.ceiling
        if clean == math.inf:
            raise ValueError("it needs a schedule whose first level has some noise")
        if clean == -math.inf:
            raise ValueError("it needs a schedule whose first level has some signal; take more timesteps")
        if clean <= noisy and len(schedule) > 1:
            raise ValueError(f"ceiling: must be above the log-SNR of the noisy end, {noisy:.3g}, not {clean:g}")
        return noisy, clean


class Karras(BetweenRows, name="karras"):
    """Evenly spaced in the rho-th root of sigma/alpha, both ends included (Karras et al., 2022, eq. 5)."""

    rho: float = option(default=7.0, ge=1, le=100, help="the larger, the more levels are near the clean end")

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        # sigma/alpha = e^(-log_snr / 2)
        noisy, clean = (math.exp(-end / (2 * self.rho)) for end in self.ends(schedule))
        roots = [noisy + (clean - noisy) * i / max(steps - 1, 1) for i in range(steps)]
        levels = [schedule.at(schedule.t_of(-2 * self.rho * math.log(root))) for root in roots]
        if self.ceiling is None and steps > 1:
            levels[-1] = schedule[0]  # exactly
        return levels


class LogSNR(BetweenRows, name="log-snr"):
    """Evenly spaced in log-SNR (Lu et al., 2022): each level begins one of n equal parts."""

    # The last part leads to the clean end. With a level at the very end too, few steps would be spent where the data
    # hardly change: ten steps of dpmpp-2m on the swiss roll came out 1.7 times the data's own distance, and so 1.4.

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        noisy, clean = self.ends(schedule)
        return [schedule.at(schedule.t_of(noisy + (clean - noisy) * i / steps)) for i in range(steps)]
