"""Built-in noise schedules."""

from difftool import NoiseSchedule, hookimpl
from difftool_plugins.schedules.log_snr import Laplace, LogLinear
from difftool_plugins.schedules.paths import VE, Flow
from difftool_plugins.schedules.variance_preserving import Cosine, Linear, Quadratic, ScaledLinear, Sigmoid


@hookimpl
def difftool_schedules() -> list[type[NoiseSchedule]]:
    return [Linear, ScaledLinear, Cosine, Quadratic, Sigmoid, Laplace, LogLinear, Flow, VE]
