"""Variance-preserving schedules, alpha^2 + sigma^2 = 1, each in the letters of its paper: beta_t, alpha-bar_t.

Ranges of beta are meant for T = 1000 and are rescaled by 1000/T. Unscaled, 60 % of the variance would still be signal
at the last of 50 levels of the linear schedule.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

from difftool import NoiseSchedule, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Schedule


class VariancePreserving(NoiseSchedule):
    """The base of these schedules, with the option to end in pure noise."""

    zero_snr: bool = option(
        default=False,
        help="shift and scale sqrt(alpha-bar) to end in pure noise, where eps says nothing: take --prediction v",
    )

    @abstractmethod
    def table(self, timesteps: int) -> Schedule:
        """Return the table as the paper defines it."""

    def build(self, timesteps: int) -> Schedule:
        if not self.zero_snr:
            return self.table(timesteps)
        if timesteps == 1:
            raise ValueError("zero_snr keeps the first level and empties the last: take at least 2 timesteps")
        from difftool_plugins.schedules.tables import zero_terminal_snr

        return zero_terminal_snr(self.table(timesteps))


class BetaRange(VariancePreserving):
    """The options of a schedule with a first and a last beta."""

    beta_min: float = option(default=1e-4, gt=0, lt=1, help="beta of the first level, for T = 1000")
    beta_max: float = option(default=0.02, gt=0, lt=1, help="beta of the last level, for T = 1000")
    rescale: bool = option(default=True, help="betas are meant for T = 1000 and are rescaled by 1000/T")

    def __post_init__(self) -> None:
        if self.beta_min >= self.beta_max:
            raise ValueError(f"beta_max: must be above beta_min, {self.beta_min:g}, not {self.beta_max:g}")


class Linear(BetaRange, name="linear"):
    """beta rises linearly (Ho et al., 2020)."""

    def table(self, timesteps: int) -> Schedule:
        from difftool_plugins.schedules.tables import from_betas, ramp

        return from_betas(ramp(self.beta_min, self.beta_max, timesteps), rescale=self.rescale)


class Quadratic(BetaRange, name="quadratic"):
    """sqrt(beta) rises linearly, in DDPM's range (Song et al., 2021)."""

    def table(self, timesteps: int) -> Schedule:
        from difftool_plugins.schedules.tables import from_betas, ramp

        return from_betas(ramp(self.beta_min**0.5, self.beta_max**0.5, timesteps).square(), rescale=self.rescale)


class ScaledLinear(Quadratic, name="scaled-linear"):
    """sqrt(beta) rises linearly, in Stable Diffusion's range (Rombach et al., 2022), which leaves some signal."""

    beta_min: float = option(default=0.00085, gt=0, lt=1, help="beta of the first level, for T = 1000")
    beta_max: float = option(default=0.012, gt=0, lt=1, help="beta of the last level, for T = 1000")


class Cosine(VariancePreserving, name="cosine"):
    """alpha-bar falls as a squared cosine (Nichol & Dhariwal, 2021, eq. 17)."""

    # alpha is 1/20,000 at the last level, so that an error of eps becomes one of x_0 that is 20,000 times as large.
    default_prediction = "v"

    s: float = option(default=0.008, ge=0, le=1, help="offset that keeps the first betas from vanishing")
    beta_max: float = option(default=0.999, gt=0, lt=1, help="betas are clipped to this; 0.999 clips only the last one")
    beta_floor: float = option(default=0.0, ge=0, lt=1, help="smaller betas are raised to this")

    def __post_init__(self) -> None:
        if self.beta_floor >= self.beta_max:
            raise ValueError(f"beta_floor: must be below beta_max, {self.beta_max:g}, not {self.beta_floor:g}")

    def table(self, timesteps: int) -> Schedule:
        import math

        from difftool_plugins.schedules.tables import from_alpha_bar

        def f(u: Tensor) -> Tensor:
            return ((u + self.s) / (1 + self.s) * (math.pi / 2)).cos().square()

        return from_alpha_bar(f, timesteps, self.beta_max, self.beta_floor)


class Sigmoid(BetaRange, name="sigmoid"):
    """A sigmoid, in beta (Xu et al., 2022, GeoDiff) or in alpha-bar (Jabri et al., 2022)."""

    form: Literal["beta", "alpha-bar"] = option(
        default="beta", help="beta rises as a sigmoid from beta-min to beta-max, or alpha-bar falls as one from 1 to 0"
    )
    start: float | None = option(
        default=None, ge=-20, le=20, help="where on the sigmoid to start: -6, for alpha-bar -3"
    )
    end: float | None = option(default=None, ge=-20, le=20, help="where on the sigmoid to end: 6, for alpha-bar 3")
    tau: float = option(default=1.0, gt=0, help="temperature: start and end are divided by it")

    def __post_init__(self) -> None:
        super().__post_init__()
        start, end = self._interval()
        if start >= end:
            raise ValueError(f"end: must be above start, {start:g}, not {end:g}")
        if self.form == "alpha-bar":
            for name in ("beta_min", "beta_max"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"{name}: the form alpha-bar has no range of beta; take the form beta")

    def _interval(self) -> tuple[float, float]:
        widest = 6.0 if self.form == "beta" else 3.0
        return -widest if self.start is None else self.start, widest if self.end is None else self.end

    def table(self, timesteps: int) -> Schedule:
        from difftool_plugins.schedules.tables import from_alpha_bar, from_betas, ramp

        start, end = self._interval()
        if self.form == "beta":
            rise = (ramp(start, end, timesteps) / self.tau).sigmoid()
            return from_betas(self.beta_min + (self.beta_max - self.beta_min) * rise, rescale=self.rescale)

        def alpha_bar(u: Tensor) -> Tensor:
            falling = (-(start + (end - start) * u) / self.tau).sigmoid()
            return (falling - falling[-1]) / (falling[0] - falling[-1])

        return from_alpha_bar(alpha_bar, timesteps)
