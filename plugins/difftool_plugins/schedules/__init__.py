"""Built-in noise schedules, all variance preserving."""

from difftool import NoiseSchedule, hookimpl
from difftool_plugins.schedules.variance_preserving import Cosine, Linear, Quadratic, ScaledLinear, Sigmoid


@hookimpl
def difftool_schedules() -> list[type[NoiseSchedule]]:
    return [Linear, ScaledLinear, Cosine, Quadratic, Sigmoid]
