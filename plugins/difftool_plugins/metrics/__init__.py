"""The built-in metrics."""

from difftool import Metric, hookimpl
from difftool_plugins.metrics.sliced import SlicedWasserstein


@hookimpl
def difftool_metrics() -> list[type[Metric]]:
    return [SlicedWasserstein]
