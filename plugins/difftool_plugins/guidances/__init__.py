"""Built-in guidances: denoisers around the denoisers of a model."""

from difftool import Guidance, hookimpl
from difftool_plugins.guidances.apg import AdaptiveProjected
from difftool_plugins.guidances.autoguidance import Autoguidance
from difftool_plugins.guidances.cfg import ClassifierFree


@hookimpl
def difftool_guidances() -> list[type[Guidance]]:
    return [ClassifierFree, Autoguidance, AdaptiveProjected]
