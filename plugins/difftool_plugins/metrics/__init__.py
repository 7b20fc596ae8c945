"""The built-in metrics."""

from difftool import Metric, hookimpl
from difftool_plugins.metrics.fid import Frechet
from difftool_plugins.metrics.known import Known
from difftool_plugins.metrics.likelihood import Likelihood
from difftool_plugins.metrics.mmd import KernelInceptionDistance, MaximumMeanDiscrepancy
from difftool_plugins.metrics.prdc import PRDC
from difftool_plugins.metrics.sliced import SlicedWasserstein


@hookimpl
def difftool_metrics() -> list[type[Metric]]:
    return [Frechet, KernelInceptionDistance, MaximumMeanDiscrepancy, PRDC, SlicedWasserstein, Known, Likelihood]
